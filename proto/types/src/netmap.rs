//! What the registry tells every node: records, mesh-wide settings, and how they change from revision to revision.

use crate::coordinator::CoordinatorRecord;
use crate::epoch::Revision;
use crate::id::{MeshId, NodeId};
use crate::key::{IdentityKey, PublicKey};
use crate::name::NodeName;
use crate::overlay::{Overlay, OverlayAddresses};
use crate::time::{MeshDuration, MeshTime};
use serde::{Deserialize, Serialize};

/// One member of the mesh.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, Debug)]
pub struct NodeRecord {
    /// Who.
    pub id: NodeId,
    /// Unique in the mesh.
    pub name: NodeName,
    /// Its WireGuard key.
    pub public_key: PublicKey,
    /// Signs its presence.
    pub identity_key: IdentityKey,
    /// Its overlay addresses.
    pub addresses: OverlayAddresses,
    /// When its key's lease ends; every other node stops talking to it then.
    pub expires_at: MeshTime,
    /// The revision that last changed this record.
    pub revision: Revision,
}

impl NodeRecord {
    /// Active or expired at `now`.
    pub fn state(&self, now: MeshTime) -> NodeState {
        if now < self.expires_at { NodeState::Active } else { NodeState::Expired }
    }
}

/// Where a node is in its life.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, Debug)]
#[serde(rename_all = "lowercase")]
pub enum NodeState {
    /// A member whose lease runs.
    Active,
    /// A member whose lease ended; it keeps name and addresses and may renew.
    Expired,
    /// Barred, id and keys, until it is allowed again.
    Removed,
}

/// Mesh-wide settings that every node holds.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, Debug)]
pub struct MeshConfig {
    /// Which mesh.
    pub mesh: MeshId,
    /// Its ranges.
    pub overlay: Overlay,
    /// Certificates (DER) of the CAs that members are verified by; a list, so that one can be replaced.
    pub authorities: Vec<Certificate>,
    /// All coordinators, by id.
    pub coordinators: Vec<CoordinatorRecord>,
    /// How long a key lives from its last renewal; nodes renew at half of it.
    pub key_ttl: MeshDuration,
    /// The revision that last changed these settings.
    pub revision: Revision,
}

/// An X.509 certificate in DER.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Certificate(#[serde(with = "serde_bytes")] pub Vec<u8>);

impl std::fmt::Debug for Certificate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Certificate({})", crate::key::Fingerprint::of(&self.0))
    }
}

/// The difference between the registry at two revisions of one epoch, the same for every node.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Changes {
    /// What the receiver must hold, or more, for the changes to apply.
    pub from: Revision,
    /// What it holds afterwards.
    pub to: Revision,
    /// Members that are new or changed.
    pub upserts: Vec<NodeRecord>,
    /// Members that were removed.
    pub removals: Vec<NodeId>,
    /// The settings, if they changed.
    pub config: Option<MeshConfig>,
}
