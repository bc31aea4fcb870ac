//! The coordinator core through its public door.

mod fixture;
mod golden;
mod hub;
mod laws;
mod presence;
mod registry;
