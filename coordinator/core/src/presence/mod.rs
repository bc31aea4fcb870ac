//! Presence: the newest signed word of every node, and who is online where.
//!
//! Kept in memory alone, spread without a quorum, never in the log. A record is taken only with its node's signature,
//! from a member, above what is held, with candidates that could be honest, and not too often: candidates aim other
//! nodes' packets. What is refused changes nothing. Records of one node are ordered by (incarnation, sequence), and by
//! their bytes where a node said two things at once, so that all coordinators settle on the same one.

mod early;
mod online;

pub use online::OnlineTable;

use crate::clock::Monotonic;
use crate::rate::Bucket;
use crate::registry::Registry;
use early::EarlyRecords;
use mesh_types::digest::{Buckets, hash};
use mesh_types::limits::PRESENCE_CHANGES;
use mesh_types::presence::PresenceError;
use mesh_types::{Candidate, Incarnation, NodeId, Presence, PresenceDigest, SignedPresence};
use std::collections::BTreeMap;
use thiserror::Error;

/// Why a record was not taken.
#[derive(Debug, Error, PartialEq, Eq, Clone)]
pub enum PresenceRefusal {
    /// Not readable, or not signed by its node.
    #[error(transparent)]
    Invalid(#[from] PresenceError),
    /// The registry does not know the node, or not yet.
    #[error("presence of node {0}, which is not a member here")]
    NotMember(NodeId),
    /// What is held is as new or newer.
    #[error("presence of node {0} is not newer than what is held")]
    NotNewer(NodeId),
    /// A candidate that no honest node announces.
    #[error("presence of node {node} has candidate {}: it lies inside the overlay or cannot be reached", .candidate.endpoint)]
    Candidate {
        /// Whose.
        node: NodeId,
        /// Which.
        candidate: Candidate,
    },
    /// More changes than the limit; the newest is kept and taken when its time comes.
    #[error("presence of node {0} changes too often: put off")]
    TooOften(NodeId),
}

/// The newest record of every node.
#[derive(Debug, Default)]
pub struct PresenceTable {
    held: BTreeMap<NodeId, Held>,
    digest: PresenceDigest,
    rates: BTreeMap<NodeId, Bucket>,
    /// The newest record of a node that changes too often.
    deferred: BTreeMap<NodeId, SignedPresence>,
    early: EarlyRecords,
}

#[derive(Debug)]
struct Held {
    signed: SignedPresence,
    version: (Incarnation, u64),
}

impl PresenceTable {
    /// Takes a record if it is the node's newest, and says whose it is.
    pub fn offer(
        &mut self,
        signed: SignedPresence,
        registry: &Registry,
        now: Monotonic,
    ) -> Result<NodeId, PresenceRefusal> {
        let claimed = signed.parse_unverified()?;
        let node = claimed.node;
        let (Some(config), Some(record)) = (registry.config(), registry.node(node)) else {
            return Err(PresenceRefusal::NotMember(node));
        };
        if !self.is_newer(&claimed, &signed) {
            return Err(PresenceRefusal::NotNewer(node));
        }
        // Before the signature, so that its cost is bounded too.
        let rate = self.rates.entry(node).or_insert_with(|| Bucket::new(PRESENCE_CHANGES, now));
        if rate.take(PRESENCE_CHANGES, now).is_err() {
            self.defer(claimed, signed);
            return Err(PresenceRefusal::TooOften(node));
        }
        let presence = signed.verify(config.mesh, &record.identity_key)?;
        let inside = |candidate: &&Candidate| {
            !candidate.is_plausible() || config.overlay.contains(candidate.endpoint.ip().to_canonical())
        };
        if let Some(&candidate) = presence.candidates.iter().find(inside) {
            return Err(PresenceRefusal::Candidate { node, candidate });
        }
        self.hold(presence, signed);
        Ok(node)
    }

    /// Keeps a record of a node that another replica may know already; see [`PresenceTable::offer_early`].
    pub fn keep_early(&mut self, node: NodeId, signed: SignedPresence, now: Monotonic) {
        self.early.keep(node, signed, now);
    }

    /// Offers what was kept of a node that the registry knows by now.
    pub fn offer_early(&mut self, node: NodeId, registry: &Registry, now: Monotonic) -> Option<NodeId> {
        let signed = self.early.take(node)?;
        self.offer(signed, registry, now).ok()
    }

    /// Offers what was put off and forgets what waited too long; says whose records are new.
    pub fn offer_deferred(&mut self, registry: &Registry, now: Monotonic) -> Vec<NodeId> {
        self.early.expire(now);
        let deferred = std::mem::take(&mut self.deferred);
        deferred.into_values().filter_map(|signed| self.offer(signed, registry, now).ok()).collect()
    }

    /// Drops all of a node that is no member any more.
    pub fn forget(&mut self, node: NodeId) {
        if let Some(held) = self.held.remove(&node) {
            self.digest.remove(node, hash(&held.signed));
        }
        self.rates.remove(&node);
        self.deferred.remove(&node);
    }

    /// Drops all nodes that are no members.
    pub fn retain_members(&mut self, registry: &Registry) {
        // Whoever has a record or one put off has a rate.
        let gone: Vec<NodeId> = self.rates.keys().copied().filter(|&id| registry.node(id).is_none()).collect();
        gone.into_iter().for_each(|id| self.forget(id));
    }

    /// A node's newest record.
    pub fn record(&self, node: NodeId) -> Option<&SignedPresence> {
        self.held.get(&node).map(|held| &held.signed)
    }

    /// All records, by node.
    pub fn records(&self) -> impl Iterator<Item = &SignedPresence> {
        self.held.values().map(|held| &held.signed)
    }

    /// The highest incarnation known of a node; zero if none is.
    pub fn incarnation(&self, node: NodeId) -> Incarnation {
        self.held.get(&node).map_or(Incarnation::default(), |held| held.version.0)
    }

    /// One hash for each bucket of nodes, whatever the order in which the records came.
    pub fn digest(&self) -> &PresenceDigest {
        &self.digest
    }

    /// The records that whoever holds `theirs` may lack: those in buckets that differ.
    pub fn differing(&self, theirs: &[u64]) -> Vec<SignedPresence> {
        self.records_in(&self.digest.differing(theirs)).cloned().collect()
    }

    /// The records in some buckets.
    pub fn records_in(&self, buckets: &Buckets) -> impl Iterator<Item = &SignedPresence> {
        self.held.iter().filter(|&(&node, _)| buckets.contains(node)).map(|(_, held)| &held.signed)
    }

    fn is_newer(&self, presence: &Presence, signed: &SignedPresence) -> bool {
        self.held
            .get(&presence.node)
            .is_none_or(|held| (presence.version(), &signed.payload) > (held.version, &held.signed.payload))
    }

    fn defer(&mut self, claimed: Presence, signed: SignedPresence) {
        let waiting = self.deferred.get(&claimed.node).and_then(|held| held.parse_unverified().ok());
        if waiting.is_none_or(|waiting| waiting.version() < claimed.version()) {
            self.deferred.insert(claimed.node, signed);
        }
    }

    fn hold(&mut self, presence: Presence, signed: SignedPresence) {
        self.digest.add(presence.node, hash(&signed));
        let held = Held { version: presence.version(), signed };
        if let Some(before) = self.held.insert(presence.node, held) {
            self.digest.remove(presence.node, hash(&before.signed));
        }
    }
}
