//! The coordinator core through its public door.

#![allow(clippy::unwrap_used, reason = "a test that meets the unexpected should end there")]

mod fixture;
mod golden;
mod hub;
mod laws;
mod presence;
mod registry;
mod rivals;
