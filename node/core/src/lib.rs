//! The node's thinking: netmap and observations in, desired device and actions out. No I/O, clock or randomness.

pub mod device;
