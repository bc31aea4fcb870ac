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

#[cfg(test)]
mod tests {
    use super::*;
    use mesh_types::{IdentityKey, MeshDuration, MeshTime, Overlay, PublicKey};
    use proptest::prelude::*;

    const MESH: MeshId = MeshId::from_bytes([1; 16]);

    fn config(revision: u64) -> MeshConfig {
        MeshConfig {
            mesh: MESH,
            overlay: Overlay::new("10.1.0.0/16".parse().unwrap(), "fd00::/48".parse().unwrap()).unwrap(),
            authorities: Vec::new(),
            coordinators: Vec::new(),
            key_ttl: MeshDuration(revision),
            revision: Revision(revision),
        }
    }

    fn record(n: u8, revision: u64) -> NodeRecord {
        NodeRecord {
            id: NodeId::from_bytes([n; 16]),
            name: format!("n{n}").parse().unwrap(),
            public_key: PublicKey::from_bytes([n; 32]),
            identity_key: IdentityKey::from_bytes([n; 32]),
            addresses: config(0).overlay.addresses(u32::from(n) + 1).unwrap(),
            expires_at: MeshTime(revision),
            revision: Revision(revision),
        }
    }

    /// The truth at every revision of one epoch: each step changes one node, `None` removes it.
    fn history(epoch: Epoch, steps: &[(u8, bool)]) -> Vec<Netmap> {
        let mut states = vec![Netmap { epoch, revision: Revision(0), config: config(0), nodes: BTreeMap::new() }];
        for (n, there) in steps {
            let mut next = states.last().unwrap().clone();
            next.revision = next.revision.next();
            if *there {
                next.nodes.insert(NodeId::from_bytes([*n; 16]), record(*n, next.revision.0));
            } else {
                next.nodes.remove(&NodeId::from_bytes([*n; 16]));
            }
            states.push(next);
        }
        states
    }

    fn changes(history: &[Netmap], from: usize, to: usize) -> Changes {
        let (before, after) = (&history[from], &history[to]);
        Changes {
            from: before.revision,
            to: after.revision,
            upserts: after.nodes.values().filter(|n| n.revision > before.revision).cloned().collect(),
            // As a registry with tombstones says it: all that were removed since, whether held or not.
            removals: (0..8).map(|n| NodeId::from_bytes([n; 16])).filter(|id| !after.nodes.contains_key(id)).collect(),
            config: None,
        }
    }

    fn pages(whole: &Netmap, size: usize) -> Vec<SnapshotPage> {
        let nodes: Vec<_> = whole.nodes.values().cloned().collect();
        let count = nodes.len().div_ceil(size).max(1);
        (0..count)
            .map(|page| SnapshotPage {
                revision: whole.revision,
                config: (page == 0).then(|| whole.config.clone()),
                nodes: nodes.iter().skip(page * size).take(size).cloned().collect(),
                last: page + 1 == count,
            })
            .collect()
    }

    #[derive(Clone, Debug)]
    enum Event {
        /// A session with a coordinator of this epoch that has applied so much.
        Open(usize),
        Delta(usize, usize),
        /// A snapshot at a revision, in pages of a size, of which so many arrive.
        Snapshot(usize, usize, usize),
    }

    fn event() -> impl Strategy<Value = Event> {
        prop_oneof![
            (0usize..4).prop_map(Event::Open),
            (0usize..13, 0usize..13).prop_map(|(a, b)| Event::Delta(a, b)),
            (0usize..13, 1usize..4, 0usize..6).prop_map(|(at, size, arrive)| Event::Snapshot(at, size, arrive)),
        ]
    }

    proptest! {
        #[test]
        fn what_is_held_is_always_the_truth_of_some_revision_and_never_an_earlier_one(
            first in proptest::collection::vec((0u8..8, any::<bool>()), 12),
            second in proptest::collection::vec((0u8..8, any::<bool>()), 12),
            split in proptest::collection::vec((0u8..8, any::<bool>()), 12),
            events in proptest::collection::vec(event(), 1..40),
        ) {
            let epochs = [Epoch { counter: 1, id: 1 }, Epoch { counter: 2, id: 2 }, Epoch { counter: 2, id: 3 }];
            let truths = [history(epochs[0], &first), history(epochs[1], &second), history(epochs[2], &split)];
            let mut held: Option<Netmap> = None;
            let mut session: Option<(usize, Incoming)> = None;
            for event in events {
                let before = held.clone();
                match event {
                    Event::Open(which) => {
                        let which = which.min(2);
                        session = Incoming::new(MESH, held.as_ref(), epochs[which]).ok().map(|s| (which, s));
                    }
                    Event::Delta(a, b) => {
                        let Some((which, incoming)) = &session else { continue };
                        let delta = incoming.delta(held.as_ref(), changes(&truths[*which], a.min(b), a.max(b)));
                        if let (Ok(Some(delta)), Some(held)) = (delta, &mut held) {
                            held.apply(&delta);
                        }
                    }
                    Event::Snapshot(at, size, arrive) => {
                        let Some((which, incoming)) = &mut session else { continue };
                        for page in pages(&truths[*which][at], size).into_iter().take(arrive) {
                            if let Ok(Some(whole)) = incoming.page(held.as_ref(), page) {
                                held = Some(whole);
                            }
                        }
                    }
                }
                let Some(now) = &held else { continue };
                let which = epochs.iter().position(|e| *e == now.epoch).unwrap();
                let revision = usize::try_from(now.revision.0).unwrap();
                prop_assert_eq!(now, &truths[which][revision]);
                if let Some(before) = before {
                    let later = now.epoch.counter > before.epoch.counter;
                    prop_assert!(later || (now.epoch == before.epoch && now.revision >= before.revision));
                }
            }
        }
    }

    fn held() -> Netmap {
        history(Epoch { counter: 1, id: 1 }, &[(1, true), (2, true), (3, true)]).pop().unwrap()
    }

    #[test]
    fn a_delta_that_does_not_connect_is_refused_and_a_known_one_passed_over() {
        let held = held();
        let incoming = Incoming::new(MESH, Some(&held), held.epoch).unwrap();
        let delta = |from: u64, to: u64| Changes {
            from: Revision(from),
            to: Revision(to),
            upserts: Vec::new(),
            removals: Vec::new(),
            config: None,
        };
        let gap = Err(NetmapError::Gap { held: Revision(3), from: Revision(4) });
        assert_eq!(incoming.delta(Some(&held), delta(4, 5)), gap);
        assert_eq!(incoming.delta(Some(&held), delta(1, 3)), Ok(None));
        assert!(matches!(incoming.delta(Some(&held), delta(1, 4)), Ok(Some(_))));
        assert!(matches!(incoming.delta(Some(&held), delta(5, 4)), Err(NetmapError::Backwards { .. })));
        assert_eq!(incoming.delta(None, delta(0, 1)), Err(NetmapError::NoBase));
    }

    #[test]
    fn a_later_epoch_changes_nothing_until_its_snapshot_is_whole() {
        let held = held();
        let later = Epoch { counter: 2, id: 9 };
        let mut incoming = Incoming::new(MESH, Some(&held), later).unwrap();
        let next = history(later, &[(5, true)]).pop().unwrap();
        let [mut first, mut last] = [pages(&next, 9).remove(0), pages(&next, 9).remove(0)];
        (first.last, last.config) = (false, None);
        assert_eq!(incoming.page(Some(&held), first), Ok(None));
        assert_eq!(incoming.page(Some(&held), last), Ok(Some(next)));
    }

    #[test]
    fn pages_of_two_snapshots_do_not_mix() {
        let held = held();
        let mut incoming = Incoming::new(MESH, None, held.epoch).unwrap();
        let mut page = pages(&held, 9).remove(0);
        page.last = false;
        assert_eq!(incoming.page(None, page.clone()), Ok(None));
        (page.config, page.revision, page.last) = (None, Revision(4), true);
        assert_eq!(incoming.page(None, page), Err(NetmapError::StrayPage(Revision(4))));
    }

    #[test]
    fn settings_of_another_mesh_and_endless_snapshots_are_refused() {
        let mut incoming = Incoming::new(MESH, None, held().epoch).unwrap();
        let mut page = pages(&held(), 9).remove(0);
        let other = MeshId::from_bytes([7; 16]);
        page.config = Some(MeshConfig { mesh: other, ..config(1) });
        assert_eq!(incoming.page(None, page.clone()), Err(NetmapError::OtherMesh { held: MESH, offered: other }));
        page.nodes = vec![record(1, 1); SNAPSHOT_PAGE + 1];
        assert!(matches!(incoming.page(None, page), Err(NetmapError::TooMany { .. })));
    }
}
