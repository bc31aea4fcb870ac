//! The userspace WireGuard data plane: an engine on a TUN interface, and the socket over which `wg(8)` configures it.
//!
//! The price of crossing between kernel and user space is paid once for 64 KiB: the interface hands over super-packets,
//! the network takes and gives trains of packets, and in between everything happens in place. The protocol itself, and
//! how super-packets are cut and joined, is `mesh_wireguard_core`'s.

pub mod ancillary;
mod barred;
pub mod engine;
mod tun;
pub mod uapi;
mod udp;

pub use tun::TunError;
