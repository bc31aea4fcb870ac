//! The coordinators' thinking: the replicated registry, presence and sessions. No I/O, clock or randomness.

pub mod clock;
mod codec;
pub mod command;
pub mod hub;
pub mod level;
pub mod presence;
pub mod rate;
pub mod registry;
pub mod reply;

pub use codec::DecodeError;
pub use command::{Command, Entry, Proposal};
pub use hub::{Hub, HubAction, SessionId};
pub use registry::Registry;
pub use reply::{Rejection, Reply};
