//! The way to one peer.
