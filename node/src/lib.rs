//! The hands of the mesh: WireGuard devices, netlink, sockets, the session with a coordinator, the local API.
//!
//! One loop (`daemon`) feeds what happens on the host and on the wire to the node core, and does what the core says.

pub mod clock;
pub mod device;
pub mod link;
pub mod state;
