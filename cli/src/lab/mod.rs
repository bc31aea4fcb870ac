//! The lab: hosts on one machine, for the demo and for tests with real processes and real packets.
//!
//! A [`World`] is entered first: new mount, network, PID and IPC namespaces (and a user namespace where the caller is
//! not root), whose first process is the one that builds the [`Lab`]. When that process ends, however it ends, the
//! kernel ends everything in the world and takes its interfaces away. In the lab every [`Host`] is a network namespace
//! with one interface on a common bridge, addressed from documentation ranges; [`Pings`] measure what packets feel.
//!
//! Deliberately not here: delay, loss and NAT. What needs those belongs to the simulated world or the kernel VM.

mod echo;
mod host;
mod network;
mod pings;
mod world;

pub use echo::{EchoSocket, Reply};
pub use host::Host;
pub use network::Lab;
pub use pings::{Flow, Pings};
pub use world::{Obstacle, Step, Way, World};
