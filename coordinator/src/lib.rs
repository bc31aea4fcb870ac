//! The authority of a mesh: a replica of the registry on Raft and disk, and the gRPC services over it.

mod home;
pub mod options;
mod peers;
mod raft;
mod random;
