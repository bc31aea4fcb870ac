//! A mesh never carries itself: whatever makes a datagram of it come from an overlay address, nobody answers to there.
//!
//! `tests/roaming/run` runs these longer, and in a virtual machine with kernel devices; see there for `MESH_BACKEND` and
//! `MESH_ROUNDS`.

mod cable;
mod carried;
mod forged;
mod primary;
mod stage;
mod tap;
