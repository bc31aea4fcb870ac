//! What nodes get to see of the registry: a snapshot in pages, or what changed since a revision.

use super::Registry;
use mesh_types::session::SnapshotPage;
use mesh_types::{Changes, NodeRecord, Revision, limits};
use std::ops::Bound;

impl Registry {
    /// What changed after `from`. `None` if that is not known: `from` lies below the floor or ahead of this registry,
    /// or so much changed that a snapshot is the shorter way. Costs as much as there are changes.
    pub fn changes_since(&self, from: Revision) -> Option<Changes> {
        let mesh = self.state.mesh.as_ref()?;
        if from < self.state.floor || from > self.state.revision {
            return None;
        }
        let after = (Bound::Excluded(from), Bound::Unbounded);
        let removals: Vec<_> =
            self.index.removals.range(after).map(|(_, &id)| id).take(limits::MAX_DELTA + 1).collect();
        let upserts: Vec<_> =
            self.index.changed.range(after).map(|(_, id)| self.record(id)).take(limits::MAX_DELTA + 1).collect();
        if removals.len() + upserts.len() > limits::MAX_DELTA {
            return None;
        }
        let config = (mesh.config.revision > from).then(|| mesh.config.clone());
        Some(Changes { from, to: self.state.revision, upserts, removals, config })
    }

    /// Everything, in pages of [`limits::SNAPSHOT_PAGE`] nodes; none before the mesh is founded.
    pub fn snapshot_pages(&self) -> impl Iterator<Item = SnapshotPage> {
        let pages = match &self.state.mesh {
            Some(_) => self.state.nodes.len().div_ceil(limits::SNAPSHOT_PAGE).max(1),
            None => 0,
        };
        let mut nodes = self.nodes();
        (0..pages).map(move |page| SnapshotPage {
            revision: self.state.revision,
            config: self.config().filter(|_| page == 0).cloned(),
            nodes: nodes.by_ref().take(limits::SNAPSHOT_PAGE).cloned().collect(),
            last: page + 1 == pages,
        })
    }

    fn record(&self, id: &mesh_types::NodeId) -> NodeRecord {
        self.state.nodes[id].record.clone()
    }
}
