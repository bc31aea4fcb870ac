//! A mesh never carries itself: whatever makes a datagram of it come from an overlay address, nobody answers to there.
//!
//! `tests/roaming/run` runs these longer (`MESH_ROUNDS`), and in a virtual machine with kernel devices (`MESH_BACKEND`).

mod cable;
mod carried;
mod forged;
mod primary;
mod stage;
mod tap;
