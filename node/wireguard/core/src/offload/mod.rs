//! Super-packets: the price of crossing between kernel and user space, paid once for 64 KiB.
//!
//! A TUN device with `IFF_VNET_HDR` hands over TCP and UDP in super-packets of up to 64 KiB, each behind a
//! [`VnetHeader`] that says how to cut it. [`split`] cuts one into the packets that go into the tunnel, [`Joiner`] makes
//! one of the packets that come out of it. Both follow what the kernel does itself when it segments (GSO) and when it
//! merges (GRO), so that neither end of a flow can tell.
//!
//! Super-packets of super-packets (tunnels), UDP fragmentation offload and jumbograms are not asked for and are refused.

pub mod checksum;
mod ip;
mod join;
mod segment;
mod split;
mod vnet;

pub use join::{Capabilities, Group, Joiner, MAX_JOINED, Place};
pub use split::{Segments, SplitError, split};
pub use vnet::{Gso, UnknownGso, VnetHeader};
