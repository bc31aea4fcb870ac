//! The wire of the mesh: generated messages and services, and what both ends of a wire must agree on.
//!
//! Messages become words of the mesh in [`convert`]; who may speak is settled in [`certificate`], [`tls`] and
//! [`join_proof`]; connections are accepted in [`listen`], served in [`serve`] and made in [`dial`]; [`local`] is the
//! same for the unix sockets of one host. What is said over a connection is no business of this crate.

/// The generated messages and services.
#[allow(missing_docs, unreachable_pub, clippy::all)]
pub mod v1 {
    tonic::include_proto!("mesh.v1");
}

pub mod certificate;
mod channel;
pub mod confine;
pub mod convert;
pub mod descriptors;
pub mod dial;
pub mod join_proof;
mod line;
pub mod listen;
pub mod local;
pub mod pushback;
mod redacted;
mod resolve;
pub mod serve;
mod shares;
mod terms;
pub mod tls;

pub use certificate::{Authority, Identity, Leaf, Member};
pub use convert::{Wire, WireError};
pub use dial::{Connection, DialError, Dialer};
pub use listen::{Caller, caller};
pub use tls::{Clock, Credentials, Expect, Trust};
