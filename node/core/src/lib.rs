//! The node's thinking: netmap and observations in, desired device and actions out. No I/O, clock or randomness.
//!
//! [`node::Node`] is the door: inputs through `handle_*`, outputs through `poll_action` and `poll_timeout`, the present
//! always as the last argument. [`journal`] is the codec of what a node remembers over restarts.

pub mod action;
mod allowance;
mod barred;
mod budget;
pub mod clock;
pub mod device;
pub mod diff;
mod heard;
pub mod journal;
mod memory;
pub mod netmap;
pub mod node;
mod pace;
mod path;
mod place;
mod presence;
pub mod probe;
mod random;
pub mod status;
mod view;

pub use action::{Action, DesiredLink, EndReason, Link, Pong, Warning};
pub use clock::{BootTime, Now};
pub use journal::{Cache, Intent, Record};
pub use node::{Node, SessionEvent, Setup, Validity};
pub use status::Status;
