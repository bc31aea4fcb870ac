//! The types that openraft is instantiated with.
//!
//! Raft carries encoded entries and never looks inside: only [`super::machine`] decodes them. Raft's own node data is
//! empty, since addresses live in the registry, where they can change without a membership change.

use bytes::Bytes;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::fmt;

#[allow(deprecated, missing_docs)]
mod config {
    openraft::declare_raft_types!(
        /// The parameters of this Raft.
        pub Types:
            D = super::EntryBytes,
            R = Option<mesh_coordinator_core::Reply>,
            NodeId = u64,
            Node = openraft::EmptyNode,
    );
}
pub(crate) use config::Types;

pub(crate) type LogId = openraft::type_config::alias::LogIdOf<Types>;
pub(crate) type Vote = openraft::type_config::alias::VoteOf<Types>;
pub(crate) type RaftEntry = openraft::type_config::alias::EntryOf<Types>;
pub(crate) type StoredMembership = openraft::type_config::alias::StoredMembershipOf<Types>;
pub(crate) type SnapshotMeta = openraft::type_config::alias::SnapshotMetaOf<Types>;
pub(crate) type Snapshot = openraft::type_config::alias::SnapshotOf<Types, Bytes>;
pub(crate) type Payload = openraft::EntryPayload<EntryBytes, u64, openraft::EmptyNode>;

/// One encoded [`mesh_coordinator_core::Entry`].
#[derive(Clone, PartialEq, Eq)]
pub struct EntryBytes(pub(crate) Bytes);

impl fmt::Debug for EntryBytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "EntryBytes({})", self.0.len())
    }
}

impl fmt::Display for EntryBytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes", self.0.len())
    }
}

impl Serialize for EntryBytes {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(&self.0)
    }
}

impl<'de> Deserialize<'de> for EntryBytes {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        serde_bytes::ByteBuf::deserialize(deserializer).map(|bytes| Self(Bytes::from(bytes.into_vec())))
    }
}
