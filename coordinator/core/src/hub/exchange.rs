//! Presence among coordinators: live relay of what own sessions say, digests to find what was missed, who is online.
//!
//! A record is relayed only by the coordinator whose session it came from, so there are no loops; where two coordinators
//! have no stream, the digests carry it by way of a third.

use super::Hub;
use crate::clock::{Monotonic, Now};
use crate::presence::PresenceRefusal;
use crate::registry::Registry;
use mesh_types::{
    CoordinatorId, ExchangeMessage, MeshDuration, NodeId, OnlineNode, OnlineNodes, SignedPresence, limits,
};

/// How long a coordinator's word about who is online holds.
const ONLINE_TTL: MeshDuration = MeshDuration::from_secs(10);
/// Thrice in a time to live.
const REFRESH_INTERVAL: MeshDuration = MeshDuration::from_secs(3);
/// Heals what live relay could not deliver.
const DIGEST_INTERVAL: MeshDuration = MeshDuration::from_secs(10);

impl Hub {
    /// A stream to another coordinator is open: both sides say what they have.
    pub fn handle_exchange_opened(&mut self, peer: CoordinatorId, _now: Now) {
        self.exchanges.insert(peer);
        self.exchange(vec![peer], ExchangeMessage::Digest(self.presence.digest().sums().to_vec()));
        let nodes = self.live.keys().copied().collect();
        self.exchange(vec![peer], self.online_nodes(nodes, Vec::new(), true));
    }

    /// A stream to another coordinator has ended. What it observed holds until its time has passed.
    pub fn handle_exchange_closed(&mut self, peer: CoordinatorId, _now: Now) {
        self.exchanges.remove(&peer);
    }

    /// Another coordinator said something; the shell has checked that it is who it says and a present member.
    pub fn handle_exchange(&mut self, from: CoordinatorId, message: ExchangeMessage, registry: &Registry, now: Now) {
        match message {
            ExchangeMessage::Digest(theirs) if theirs.len() > limits::MAX_DIGEST_BUCKETS => {
                tracing::warn!(coordinator = %from, buckets = theirs.len(), "digest too long: ignored");
            }
            ExchangeMessage::Digest(theirs) => {
                let records = self.presence.differing(&theirs);
                self.exchange_records(vec![from], &records);
            }
            ExchangeMessage::Records(records) => {
                records.into_iter().for_each(|signed| self.take_relayed(signed, registry, now.monotonic));
            }
            ExchangeMessage::Online(update) if update.coordinator != from || from == self.me => {
                tracing::warn!(coordinator = %from, about = %update.coordinator, "word about another's sessions: ignored");
            }
            ExchangeMessage::Online(mut update) => {
                update.ttl = update.ttl.min(ONLINE_TTL);
                let touched = self.online.learn(&update, now.monotonic);
                self.pending.online.extend(touched);
                self.compare_claims(from, &update.nodes);
            }
            ExchangeMessage::Ask(node) => self.handle_ask(from, node, now.monotonic),
            ExchangeMessage::Answer(answer) => {
                self.handle_answer(from, answer);
                self.admit_contenders(registry, now);
            }
        }
    }

    /// Tells others that this coordinator lives, and what it holds, when that is due.
    pub(super) fn refresh_exchanges(&mut self, now: Monotonic) {
        let peers: Vec<CoordinatorId> = self.exchanges.iter().copied().collect();
        if now.since(self.last_refresh) >= REFRESH_INTERVAL {
            self.last_refresh = now;
            self.exchange(peers.clone(), self.online_nodes(Vec::new(), Vec::new(), false));
        }
        if now.since(self.last_digest) >= DIGEST_INTERVAL {
            self.last_digest = now;
            self.exchange(peers, ExchangeMessage::Digest(self.presence.digest().sums().to_vec()));
        }
    }

    /// Relays what own sessions said since the last time.
    pub(super) fn flush_exchange(&mut self) {
        let own = std::mem::take(&mut self.pending.own);
        let relay = std::mem::take(&mut self.pending.relay);
        let peers: Vec<CoordinatorId> = self.exchanges.iter().copied().collect();
        let records: Vec<_> = relay.iter().filter_map(|&node| self.presence.record(node)).cloned().collect();
        self.exchange_records(peers.clone(), &records);
        if !own.is_empty() {
            let (nodes, gone) = own.into_iter().partition(|node| self.live.contains_key(node));
            self.exchange(peers, self.online_nodes(nodes, gone, false));
        }
    }

    fn take_relayed(&mut self, signed: SignedPresence, registry: &Registry, now: Monotonic) {
        match self.presence.offer(signed.clone(), registry, now) {
            Ok(node) => self.note_record(node, false),
            Err(PresenceRefusal::NotMember(node)) if registry.removed_node(node).is_none() => {
                self.presence.keep_early(node, signed, now);
            }
            Err(PresenceRefusal::NotNewer(_)) => {}
            Err(refusal) => tracing::debug!(%refusal, "relayed presence"),
        }
    }

    fn online_nodes(&self, nodes: Vec<NodeId>, gone: Vec<NodeId>, complete: bool) -> ExchangeMessage {
        let nodes = nodes.into_iter().map(|id| OnlineNode { id, claim: self.live_claim(id) }).collect();
        ExchangeMessage::Online(OnlineNodes { coordinator: self.me, nodes, ttl: ONLINE_TTL, complete, gone })
    }

    fn exchange_records(&mut self, to: Vec<CoordinatorId>, records: &[SignedPresence]) {
        for batch in records.chunks(limits::PRESENCE_BATCH) {
            self.exchange(to.clone(), ExchangeMessage::Records(batch.to_vec()));
        }
    }

    pub(super) fn exchange(&mut self, to: Vec<CoordinatorId>, message: ExchangeMessage) {
        if !to.is_empty() {
            self.actions.push_back(super::HubAction::Exchange { to, message });
        }
    }
}
