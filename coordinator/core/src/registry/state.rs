//! What is replicated, as it is encoded in snapshots and hashed. Anything derived from it lives in the index.

use super::addresses::AddressPool;
use super::requests::RequestLog;
use mesh_types::{
    CoordinatorId, CoordinatorRecord, Epoch, Fingerprint, Level, MeshConfig, MeshTime, NodeId, NodeRecord, Revision,
    Role, TokenId,
};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// The whole registry.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, Debug)]
pub(super) struct State {
    pub(super) level: Level,
    /// The highest time stamp applied.
    pub(super) time: MeshTime,
    pub(super) revision: Revision,
    /// Differences from below this revision are not known any more.
    pub(super) floor: Revision,
    pub(super) mesh: Option<Mesh>,
    pub(super) nodes: BTreeMap<NodeId, Member>,
    pub(super) removed: BTreeMap<NodeId, RemovedNode>,
    pub(super) tokens: BTreeMap<TokenId, Token>,
    pub(super) pool: AddressPool,
    pub(super) requests: RequestLog,
}

/// What exists once the mesh is founded. The coordinators are in the settings, by id.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, Debug)]
pub(super) struct Mesh {
    pub(super) epoch: Epoch,
    pub(super) config: MeshConfig,
    pub(super) next_coordinator: CoordinatorId,
    /// By which token each coordinator joined; the first one has none.
    pub(super) coordinator_enrolments: BTreeMap<CoordinatorId, Enrolment>,
    pub(super) former_coordinators: BTreeMap<CoordinatorId, CoordinatorRecord>,
    /// Its last coordinator was removed. Nothing changes any more, and nodes keep what they hold.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(super) ended: bool,
}

/// A member.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, Debug)]
pub(super) struct Member {
    pub(super) record: NodeRecord,
    pub(super) slot: u32,
    pub(super) joined_at: MeshTime,
    pub(super) enrolment: Enrolment,
}

/// Which token a member joined with last, so that a repeated join is known also when the token is gone.
#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Debug)]
pub(super) struct Enrolment {
    pub(super) token: TokenId,
    pub(super) secret_hash: Fingerprint,
}

/// A node that was removed: its id and keys are barred.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, Debug)]
pub struct RemovedNode {
    /// The node as it was last, with the revision of its removal.
    pub record: NodeRecord,
    /// When it was removed.
    pub removed_at: MeshTime,
    /// Until when no other node may get its addresses.
    pub rests_until: MeshTime,
    pub(super) slot: u32,
    pub(super) joined_at: MeshTime,
    pub(super) enrolment: Enrolment,
}

/// A join token as the registry knows it: without its secret.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, Debug)]
pub struct Token {
    /// Its public name.
    pub id: TokenId,
    /// Of its secret.
    pub secret_hash: Fingerprint,
    /// What it lets its holder become.
    pub role: Role,
    /// When it was made.
    pub created_at: MeshTime,
    /// When it ends.
    pub expires_at: MeshTime,
    /// How many more machines may use it.
    pub uses_left: u32,
}

impl Token {
    /// Whether it still lets anyone in at `now`.
    pub fn is_live(&self, now: MeshTime) -> bool {
        self.uses_left > 0 && now < self.expires_at
    }
}

impl Default for State {
    fn default() -> Self {
        Self {
            level: Level::FIRST,
            time: MeshTime(0),
            revision: Revision::NONE,
            floor: Revision::NONE,
            mesh: None,
            nodes: BTreeMap::new(),
            removed: BTreeMap::new(),
            tokens: BTreeMap::new(),
            pool: AddressPool::default(),
            requests: RequestLog::default(),
        }
    }
}
