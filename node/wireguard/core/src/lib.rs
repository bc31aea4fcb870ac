//! The WireGuard protocol and what it carries, as pure functions and machines: no socket, file, clock, thread or chance.
//!
//! Time comes in as the last argument, random bytes with the input, and what must be sent goes out as bytes and actions.

// What the tests share with those outside names this library as they do.
#[cfg(test)]
extern crate self as mesh_wireguard_core;

mod aead;
pub mod allowed;
pub mod carried;
pub mod cookie;
pub mod gate;
pub mod identity;
pub mod keys;
pub mod message;
pub mod newest;
mod noise;
pub mod offload;
pub mod peer;
pub mod ranges;
mod ratelimit;
pub mod replay;
pub mod tai64n;
pub mod wheel;

pub use identity::LocalIdentity;
pub use noise::ConsumedInitiation;
pub use peer::Peer;
