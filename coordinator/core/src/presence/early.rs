//! Records that came before their node did: presence needs no quorum and so overtakes the log.

use crate::clock::Monotonic;
use mesh_types::{MeshDuration, NodeId, SignedPresence, limits};
use std::collections::BTreeMap;

/// A replica with contact to the leader has applied a join long before; one without gets the record by digest later.
const KEPT: MeshDuration = MeshDuration::from_secs(10);

/// One record for each node that is not known yet. Not verified: there is no key to do it with.
#[derive(Debug, Default)]
pub(super) struct EarlyRecords {
    records: BTreeMap<NodeId, (SignedPresence, Monotonic)>,
}

impl EarlyRecords {
    pub(super) fn keep(&mut self, node: NodeId, signed: SignedPresence, now: Monotonic) {
        if self.records.len() < limits::MAX_EARLY_PRESENCE || self.records.contains_key(&node) {
            self.records.insert(node, (signed, now + KEPT));
        }
    }

    pub(super) fn take(&mut self, node: NodeId) -> Option<SignedPresence> {
        self.records.remove(&node).map(|(signed, _)| signed)
    }

    pub(super) fn expire(&mut self, now: Monotonic) {
        self.records.retain(|_, (_, until)| now < *until);
    }
}
