//! Questions to the registry. None of them needs a quorum; how fresh the answer is, the caller knows.

use super::{Registry, RemovedNode, Token};
use mesh_types::{
    CoordinatorId, CoordinatorRecord, Epoch, Level, MeshConfig, MeshTime, NodeId, NodeRecord, Revision, TokenId,
};
use thiserror::Error;

/// Why a name or id does not mean one node.
#[derive(Debug, Error, PartialEq, Eq, Clone)]
pub enum LookupError {
    /// Nobody is called that.
    #[error("node {0:?} not known: see `meshctl node list`")]
    Unknown(String),
    /// Several removed nodes had that name.
    #[error("name {name:?} was that of {count} removed nodes: give the id, see `meshctl node list`")]
    Ambiguous {
        /// The name.
        name: String,
        /// How many.
        count: usize,
    },
}

impl Registry {
    /// The language of the log.
    pub fn level(&self) -> Level {
        self.state.level
    }

    /// The highest time stamp applied.
    pub fn time(&self) -> MeshTime {
        self.state.time
    }

    /// The last change that nodes see.
    pub fn revision(&self) -> Revision {
        self.state.revision
    }

    /// Differences from below this revision are not known any more.
    pub fn floor(&self) -> Revision {
        self.state.floor
    }

    /// The present history; `None` before the mesh is founded.
    pub fn epoch(&self) -> Option<Epoch> {
        self.state.mesh.as_ref().map(|mesh| mesh.epoch)
    }

    /// The settings that every node holds; `None` before the mesh is founded.
    pub fn config(&self) -> Option<&MeshConfig> {
        self.state.mesh.as_ref().map(|mesh| &mesh.config)
    }

    /// A member, active or expired.
    pub fn node(&self, id: NodeId) -> Option<&NodeRecord> {
        self.state.nodes.get(&id).map(|member| &member.record)
    }

    /// All members, by id.
    pub fn nodes(&self) -> impl Iterator<Item = &NodeRecord> {
        self.state.nodes.values().map(|member| &member.record)
    }

    /// How many members there are.
    pub fn node_count(&self) -> usize {
        self.state.nodes.len()
    }

    /// When a member first joined.
    pub fn joined_at(&self, id: NodeId) -> Option<MeshTime> {
        self.state.nodes.get(&id).map(|member| member.joined_at)
    }

    /// The member meant by an id in hex or a name. The id goes first, so that no node can hide another by its name.
    pub fn node_by_name_or_id(&self, text: &str) -> Option<&NodeRecord> {
        let by_id = text.parse().ok().and_then(|id| self.node(id));
        by_id.or_else(|| self.index.names.get(&text.parse().ok()?).and_then(|&id| self.node(id)))
    }

    /// A removed node that is still barred.
    pub fn removed_node(&self, id: NodeId) -> Option<&RemovedNode> {
        self.state.removed.get(&id)
    }

    /// All removed nodes that are still barred, by id.
    pub fn removed(&self) -> impl Iterator<Item = &RemovedNode> {
        self.state.removed.values()
    }

    /// The removed node meant by an id in hex or a name; removed nodes may share a name.
    pub fn removed_by_name_or_id(&self, text: &str) -> Result<&RemovedNode, LookupError> {
        if let Some(removed) = text.parse().ok().and_then(|id| self.removed_node(id)) {
            return Ok(removed);
        }
        let mut found = self.removed().filter(|removed| removed.record.name.as_str().eq_ignore_ascii_case(text));
        match (found.next(), found.count()) {
            (Some(removed), 0) => Ok(removed),
            (Some(_), others) => Err(LookupError::Ambiguous { name: text.to_owned(), count: others + 1 }),
            (None, _) => Err(LookupError::Unknown(text.to_owned())),
        }
    }

    /// All coordinators, by id.
    pub fn coordinators(&self) -> &[CoordinatorRecord] {
        self.config().map_or(&[], |config| &config.coordinators)
    }

    /// A present coordinator.
    pub fn coordinator(&self, id: CoordinatorId) -> Option<&CoordinatorRecord> {
        self.coordinators().iter().find(|record| record.id == id)
    }

    /// The coordinator meant by an id or a name; the id goes first.
    pub fn coordinator_by_name_or_id(&self, text: &str) -> Option<&CoordinatorRecord> {
        let by_id = text.parse().ok().and_then(|id| self.coordinator(CoordinatorId(id)));
        by_id.or_else(|| self.coordinators().iter().find(|record| record.name.as_str().eq_ignore_ascii_case(text)))
    }

    /// A coordinator that was removed; its id and key are barred.
    pub fn former_coordinator(&self, id: CoordinatorId) -> Option<&CoordinatorRecord> {
        self.state.mesh.as_ref()?.former_coordinators.get(&id)
    }

    /// The former coordinator meant by an id or a name; several may have had one name.
    pub fn former_coordinator_by_name_or_id(&self, text: &str) -> Option<&CoordinatorRecord> {
        let former = &self.state.mesh.as_ref()?.former_coordinators;
        let by_id = text.parse().ok().and_then(|id| former.get(&CoordinatorId(id)));
        by_id.or_else(|| former.values().find(|record| record.name.as_str().eq_ignore_ascii_case(text)))
    }

    /// The id that the next coordinator gets; `None` before the mesh is founded.
    pub fn next_coordinator_id(&self) -> Option<CoordinatorId> {
        self.state.mesh.as_ref().map(|mesh| mesh.next_coordinator)
    }

    /// A token, also one that ended lately.
    pub fn token(&self, id: TokenId) -> Option<&Token> {
        self.state.tokens.get(&id)
    }

    /// All tokens by id, also those that ended lately: see [`Token::is_live`].
    pub fn tokens(&self) -> impl Iterator<Item = &Token> {
        self.state.tokens.values()
    }
}
