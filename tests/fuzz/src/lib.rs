//! What the targets have in common: a host around a peer, and MACs as a reader of the paper would make them, with nothing
//! of the code under test.

pub mod host;
pub mod macs;
