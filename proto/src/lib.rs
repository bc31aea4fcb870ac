//! The wire of the mesh: generated messages and services, and what both ends of a wire must agree on.

/// The generated messages and services.
#[allow(missing_docs, unreachable_pub, clippy::all)]
pub mod v1 {
    tonic::include_proto!("mesh.v1");
}
