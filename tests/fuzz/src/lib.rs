//! What the targets have in common: a host around a peer, and packets and MACs as a reader of the RFCs and the paper would
//! make and judge them, with nothing of the code under test.

pub mod host;
pub mod macs;
pub mod packets;
