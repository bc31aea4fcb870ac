//! Who is online: every coordinator's own observation, with a time to live.
//!
//! A coordinator that falls silent takes its observations with it once their time has passed; a node that moved on to
//! another coordinator meanwhile stays online throughout.

use crate::clock::Monotonic;
use mesh_types::{Claim, CoordinatorId, NodeId, OnlineNodes, limits};
use std::collections::{BTreeMap, BTreeSet};

/// Nodes with a session, by the coordinator that it is with.
#[derive(Debug, Default)]
pub struct OnlineTable {
    observed: BTreeMap<CoordinatorId, Observation>,
}

#[derive(Debug, Default)]
struct Observation {
    nodes: BTreeMap<NodeId, Option<Claim>>,
    /// `None` is this coordinator's own, which needs no refreshing.
    until: Option<Monotonic>,
}

impl OnlineTable {
    /// Whether any coordinator has a session with the node.
    pub fn is_online(&self, node: NodeId) -> bool {
        self.observed.values().any(|observation| observation.nodes.contains_key(&node))
    }

    /// Who claims to be the node's daemon, by the coordinator that says so.
    pub(crate) fn claims(&self, node: NodeId) -> impl Iterator<Item = (CoordinatorId, Claim)> {
        self.observed.iter().filter_map(move |(&at, observation)| Some((at, (*observation.nodes.get(&node)?)?)))
    }

    /// Notes that this coordinator's session with a node began, or ended.
    pub(crate) fn observe(&mut self, me: CoordinatorId, node: NodeId, claim: Option<Claim>) {
        let own = self.observed.entry(me).or_default();
        match claim {
            Some(claim) => own.nodes.insert(node, Some(claim)),
            None => own.nodes.remove(&node),
        };
    }

    /// Takes another coordinator's observation; says which nodes it may have changed.
    pub(crate) fn learn(&mut self, update: &OnlineNodes, now: Monotonic) -> BTreeSet<NodeId> {
        let held = self.observed.entry(update.coordinator).or_default();
        held.until = Some(now + update.ttl);
        let mut touched: BTreeSet<NodeId> =
            update.nodes.iter().map(|node| node.id).chain(update.gone.iter().copied()).collect();
        if update.complete {
            touched.extend(std::mem::take(&mut held.nodes).into_keys());
        }
        update.gone.iter().for_each(|node| {
            held.nodes.remove(node);
        });
        let room = limits::MAX_SESSIONS.saturating_sub(held.nodes.len());
        held.nodes.extend(update.nodes.iter().take(room).map(|node| (node.id, node.claim)));
        touched
    }

    /// Drops observations whose time has passed; says which nodes that may have changed.
    pub(crate) fn expire(&mut self, now: Monotonic) -> BTreeSet<NodeId> {
        let mut touched = BTreeSet::new();
        self.observed.retain(|_, observation| {
            let holds = observation.until.is_none_or(|until| now < until);
            if !holds {
                touched.extend(observation.nodes.keys());
            }
            holds
        });
        touched
    }
}
