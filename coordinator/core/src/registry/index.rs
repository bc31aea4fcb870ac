//! What is looked up in the registry by something other than the id: derived from the state, never encoded.

use super::state::{Member, RemovedNode, State};
use crate::reply::KeyHolder;
use mesh_types::{CoordinatorRecord, IdentityKey, NodeId, NodeName, NodeRecord, PublicKey, Revision};
use std::collections::BTreeMap;

/// Holders of names and keys, and the order in which records changed.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct Index {
    /// Members only: a removed node's name is free.
    pub(super) names: BTreeMap<NodeName, NodeId>,
    /// Members and removed nodes.
    pub(super) public_keys: BTreeMap<PublicKey, NodeId>,
    /// Members, removed nodes, coordinators and former coordinators.
    pub(super) identity_keys: BTreeMap<IdentityKey, KeyHolder>,
    /// Members by the revision that last changed them.
    pub(super) changed: BTreeMap<Revision, NodeId>,
    /// Removed nodes by the revision of their removal.
    pub(super) removals: BTreeMap<Revision, NodeId>,
}

impl Index {
    /// The index of a whole state.
    pub(super) fn of(state: &State) -> Self {
        let mut index = Self::default();
        for member in state.nodes.values() {
            index.add_member(member);
        }
        for removed in state.removed.values() {
            index.add_removed(removed);
        }
        if let Some(mesh) = &state.mesh {
            let coordinators = mesh.config.coordinators.iter().chain(mesh.former_coordinators.values());
            coordinators.for_each(|record| index.add_coordinator(record));
        }
        index
    }

    pub(super) fn add_member(&mut self, member: &Member) {
        self.names.insert(member.record.name.clone(), member.record.id);
        self.changed.insert(member.record.revision, member.record.id);
        self.add_keys(&member.record);
    }

    pub(super) fn drop_member(&mut self, member: &Member) {
        self.names.remove(&member.record.name);
        self.changed.remove(&member.record.revision);
        self.drop_keys(&member.record);
    }

    pub(super) fn add_removed(&mut self, removed: &RemovedNode) {
        self.removals.insert(removed.record.revision, removed.record.id);
        self.add_keys(&removed.record);
    }

    pub(super) fn drop_removed(&mut self, removed: &RemovedNode) {
        self.removals.remove(&removed.record.revision);
        self.drop_keys(&removed.record);
    }

    /// Current or former: their keys stay theirs.
    pub(super) fn add_coordinator(&mut self, record: &CoordinatorRecord) {
        self.identity_keys.insert(record.identity_key, KeyHolder::Coordinator(record.id));
    }

    pub(super) fn drop_coordinator(&mut self, record: &CoordinatorRecord) {
        self.identity_keys.remove(&record.identity_key);
    }

    fn add_keys(&mut self, record: &NodeRecord) {
        self.public_keys.insert(record.public_key, record.id);
        self.identity_keys.insert(record.identity_key, KeyHolder::Node(record.id));
    }

    fn drop_keys(&mut self, record: &NodeRecord) {
        self.public_keys.remove(&record.public_key);
        self.identity_keys.remove(&record.identity_key);
    }
}
