//! The hands of the mesh: WireGuard devices, netlink, sockets, the session with a coordinator, the local API.
//!
//! One loop (`daemon`) feeds what happens on the host and on the wire to the node core, and does what the core says.

mod ask;
pub mod clock;
pub mod daemon;
pub mod device;
pub mod drop_rule;
pub mod failure;
pub mod ground;
pub mod guard;
pub mod host;
mod join;
pub mod link;
mod local;
pub mod log;
pub mod mark;
pub mod options;
mod port;
pub mod probe;
mod refusal;
mod renew;
pub mod run;
mod session;
pub mod state;
mod status;
mod token;
pub mod wireguard;
