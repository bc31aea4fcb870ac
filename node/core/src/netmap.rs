//! The netmap that a node holds: members and settings at one revision of one epoch.
//!
//! It only ever goes forward. A delta applies to what is held or is refused; a snapshot counts once all its pages have
//! come and its revision is not below the held one, and only a snapshot opens a later epoch. Until then the old netmap
//! stays whole: losing a coordinator in the middle of anything removes nobody.

use mesh_types::epoch::EpochOrder;
use mesh_types::limits::{MAX_AUTHORITIES, MAX_COORDINATORS, MAX_NODES, SNAPSHOT_PAGE};
use mesh_types::session::SnapshotPage;
use mesh_types::{Changes, Epoch, MeshConfig, MeshId, NodeId, NodeRecord, Revision};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use thiserror::Error;

/// Members and settings at one revision of one epoch.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, Debug)]
pub struct Netmap {
    /// The history that it belongs to.
    pub epoch: Epoch,
    /// How far into that history.
    pub revision: Revision,
    /// The settings.
    pub config: MeshConfig,
    /// All members, this node among them.
    pub nodes: BTreeMap<NodeId, NodeRecord>,
}

/// A delta that was found to apply.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, Debug)]
pub struct Delta {
    /// The revision afterwards.
    pub to: Revision,
    /// Members that are new or changed.
    pub upserts: Vec<NodeRecord>,
    /// Members that were removed.
    pub removals: Vec<NodeId>,
    /// The settings, if they changed.
    pub config: Option<MeshConfig>,
}

/// Why something from a coordinator does not become part of the netmap.
#[derive(Debug, Error, PartialEq, Eq, Clone)]
pub enum NetmapError {
    /// The coordinator follows an earlier history than this node.
    #[error("coordinator follows epoch {offered}, this node the later {held}")]
    OldEpoch {
        /// This node's.
        held: Epoch,
        /// The coordinator's.
        offered: Epoch,
    },
    /// The coordinator follows a history that split from this node's.
    #[error("coordinator follows epoch {offered}, which split from {held}")]
    SplitEpoch {
        /// This node's.
        held: Epoch,
        /// The coordinator's.
        offered: Epoch,
    },
    /// A delta came where only a snapshot can: nothing of this epoch is held.
    #[error("delta for an epoch of which nothing is held: expected a snapshot")]
    NoBase,
    /// Something between the held revision and the delta is missing.
    #[error("delta begins at revision {from}, held is {held}")]
    Gap {
        /// This node's revision.
        held: Revision,
        /// Where the delta begins.
        from: Revision,
    },
    /// A delta that goes backwards.
    #[error("delta from revision {from} to the earlier {to}")]
    Backwards {
        /// Where it begins.
        from: Revision,
        /// Where it ends.
        to: Revision,
    },
    /// A snapshot page that does not belong to a begun snapshot.
    #[error("snapshot page of revision {0} without its beginning")]
    StrayPage(Revision),
    /// More than any mesh may have.
    #[error("{what}: {count} are more than the {limit} that are taken")]
    TooMany {
        /// Of what.
        what: &'static str,
        /// How many came.
        count: usize,
        /// How many are taken.
        limit: usize,
    },
    /// Settings of another mesh.
    #[error("settings of mesh {offered}, this node belongs to {held}")]
    OtherMesh {
        /// This node's.
        held: MeshId,
        /// What came.
        offered: MeshId,
    },
}

impl Netmap {
    /// Applies what [`Incoming`] found to apply, or what is read back from the journal.
    pub fn apply(&mut self, delta: &Delta) {
        for id in &delta.removals {
            self.nodes.remove(id);
        }
        for record in &delta.upserts {
            self.nodes.insert(record.id, record.clone());
        }
        if let Some(config) = &delta.config {
            self.config = config.clone();
        }
        self.revision = delta.to;
    }
}

/// One session's side of the netmap: its epoch and the snapshot that is under way.
#[derive(Clone, Debug)]
pub struct Incoming {
    mesh: MeshId,
    epoch: Epoch,
    begun: Option<Begun>,
}

#[derive(Clone, Debug)]
struct Begun {
    revision: Revision,
    config: MeshConfig,
    nodes: BTreeMap<NodeId, NodeRecord>,
}

impl Incoming {
    /// Begins with what the coordinator says it follows; refuses an earlier or split history.
    pub fn new(mesh: MeshId, held: Option<&Netmap>, offered: Epoch) -> Result<Self, NetmapError> {
        if let Some(held) = held.map(|h| h.epoch) {
            match held.compare(offered) {
                EpochOrder::Same | EpochOrder::Newer => {}
                EpochOrder::Older => return Err(NetmapError::OldEpoch { held, offered }),
                EpochOrder::Split => return Err(NetmapError::SplitEpoch { held, offered }),
            }
        }
        Ok(Self { mesh, epoch: offered, begun: None })
    }

    /// Checks a delta against what is held: what to apply, or `None` if all of it is known.
    pub fn delta(&self, held: Option<&Netmap>, changes: Changes) -> Result<Option<Delta>, NetmapError> {
        let held = held.filter(|h| h.epoch == self.epoch).ok_or(NetmapError::NoBase)?;
        let Changes { from, to, upserts, removals, config } = changes;
        if to < from {
            return Err(NetmapError::Backwards { from, to });
        }
        if held.revision < from {
            return Err(NetmapError::Gap { held: held.revision, from });
        }
        if to <= held.revision {
            return Ok(None);
        }
        cap("nodes", held.nodes.len().saturating_add(upserts.len()), MAX_NODES * 2)?;
        if let Some(config) = &config {
            self.check_config(config)?;
        }
        Ok(Some(Delta { to, upserts, removals, config }))
    }

    /// Takes one page; the whole netmap if that completes a snapshot which replaces what is held.
    pub fn page(&mut self, held: Option<&Netmap>, page: SnapshotPage) -> Result<Option<Netmap>, NetmapError> {
        let SnapshotPage { revision, config, nodes, last } = page;
        cap("nodes on one snapshot page", nodes.len(), SNAPSHOT_PAGE)?;
        if let Some(config) = config {
            self.check_config(&config)?;
            self.begun = Some(Begun { revision, config, nodes: BTreeMap::new() });
        }
        let begun = self.begun.as_mut().filter(|b| b.revision == revision).ok_or(NetmapError::StrayPage(revision))?;
        begun.nodes.extend(nodes.into_iter().map(|n| (n.id, n)));
        cap("nodes", begun.nodes.len(), MAX_NODES)?;
        if !last {
            return Ok(None);
        }
        let whole = self.begun.take().map(|Begun { revision, config, nodes }| Netmap {
            epoch: self.epoch,
            revision,
            config,
            nodes,
        });
        Ok(whole.filter(|whole| match held {
            Some(held) if held.epoch == whole.epoch => held.revision <= whole.revision && held != whole,
            _ => true,
        }))
    }

    fn check_config(&self, config: &MeshConfig) -> Result<(), NetmapError> {
        if config.mesh != self.mesh {
            return Err(NetmapError::OtherMesh { held: self.mesh, offered: config.mesh });
        }
        cap("coordinators", config.coordinators.len(), MAX_COORDINATORS)?;
        cap("certificate authorities", config.authorities.len(), MAX_AUTHORITIES)
    }
}

fn cap(what: &'static str, count: usize, limit: usize) -> Result<(), NetmapError> {
    if count > limit { Err(NetmapError::TooMany { what, count, limit }) } else { Ok(()) }
}
