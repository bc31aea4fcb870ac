//! How changes reach sessions: each is one message with all its recipients.

use super::{Hub, Phase, SessionId};
use crate::clock::Now;
use crate::registry::Registry;
use mesh_types::digest::Buckets;
use mesh_types::session::{CloseReason, PresenceUpdate};
use mesh_types::{CoordinatorMessage, NodeId, Revision, SignedPresence, limits};
use std::collections::BTreeMap;

impl Hub {
    /// The registry may have moved on. Costs nothing if it has not.
    pub fn handle_applied(&mut self, registry: &Registry, now: Now) {
        let held = (registry.epoch(), registry.revision());
        if self.told == held {
            return;
        }
        let (epoch, revision) = std::mem::replace(&mut self.told, held);
        if epoch != held.0 || revision > held.1 {
            // What was said belongs to another history: nodes have to compare afresh.
            self.close_all(CloseReason::GoElsewhere);
            self.presence.retain_members(registry);
        } else {
            self.fan_out(revision, registry, now);
        }
        self.catch_up_with_those_ahead(registry);
        self.admit_waiting(registry, now);
    }

    fn fan_out(&mut self, from: Revision, registry: &Registry, now: Now) {
        let changes = registry.changes_since(from);
        match &changes {
            Some(changes) => {
                changes.removals.iter().for_each(|&node| self.drop_node(node));
                changes.upserts.iter().for_each(|record| self.take_early(record.id, registry, now));
            }
            None => self.drop_strangers(registry),
        }
        let sessions = self.following();
        match changes {
            Some(changes) => self.send(sessions, CoordinatorMessage::Delta(changes)),
            None => self.send_snapshot(&sessions, registry),
        }
    }

    /// What leads from `revision` to the registry's: a delta, a snapshot where there is none, nothing where none is
    /// needed.
    pub(super) fn send_changes(&mut self, sessions: &[SessionId], revision: Revision, registry: &Registry) {
        if revision == registry.revision() {
            return;
        }
        match registry.changes_since(revision) {
            Some(changes) => self.send(sessions.to_vec(), CoordinatorMessage::Delta(changes)),
            None => self.send_snapshot(sessions, registry),
        }
    }

    pub(super) fn send_snapshot(&mut self, sessions: &[SessionId], registry: &Registry) {
        if sessions.is_empty() {
            return;
        }
        for page in registry.snapshot_pages() {
            self.send(sessions.to_vec(), CoordinatorMessage::Snapshot(page));
        }
    }

    /// Sends presence that changed since the last time, and what they lack of it to sessions that began since.
    pub(super) fn flush_presence(&mut self) {
        let nodes = std::mem::take(&mut self.pending.records);
        let changed = nodes.iter().filter_map(|&node| self.presence.record(node)).cloned().collect();
        let (online, offline) = self.turned();
        let newcomers = std::mem::take(&mut self.newcomers);
        let settled = self.live.values().copied().filter(|session| !newcomers.contains_key(session)).collect();
        self.send_presence(settled, changed, online, offline);
        if !newcomers.is_empty() {
            // Whoever is not named online is offline: a node starts afresh with each welcome.
            let online = self.told_online.iter().copied().collect();
            let all = newcomers.keys().copied().collect();
            self.send_lacking(newcomers);
            self.send_presence(all, Vec::new(), online, Vec::new());
        }
    }

    /// Sends each newcomer the records of the buckets in which it holds something else; whoever lacks the same, mostly
    /// all or nothing, shares one copy.
    fn send_lacking(&mut self, newcomers: BTreeMap<SessionId, Vec<u64>>) {
        let mut groups: BTreeMap<Buckets, Vec<SessionId>> = BTreeMap::new();
        for (session, held) in newcomers {
            groups.entry(self.presence.digest().differing(&held)).or_default().push(session);
        }
        for (buckets, sessions) in groups {
            let records = self.presence.records_in(&buckets).cloned().collect();
            self.send_presence(sessions, records, Vec::new(), Vec::new());
        }
    }

    fn send_presence(
        &mut self,
        sessions: Vec<SessionId>,
        records: Vec<SignedPresence>,
        online: Vec<NodeId>,
        offline: Vec<NodeId>,
    ) {
        for batch in records.chunks(limits::PRESENCE_BATCH) {
            let update = PresenceUpdate { records: batch.to_vec(), ..PresenceUpdate::default() };
            self.send(sessions.clone(), CoordinatorMessage::Presence(update));
        }
        if !online.is_empty() || !offline.is_empty() {
            let update = PresenceUpdate { records: Vec::new(), online, offline };
            self.send(sessions, CoordinatorMessage::Presence(update));
        }
    }

    /// Who went online or offline compared with what sessions were told; who did both meanwhile is not named.
    fn turned(&mut self) -> (Vec<NodeId>, Vec<NodeId>) {
        let (mut online, mut offline) = (Vec::new(), Vec::new());
        for node in std::mem::take(&mut self.pending.online) {
            match (self.online.is_online(node), self.told_online.contains(&node)) {
                (true, false) => {
                    self.told_online.insert(node);
                    online.push(node);
                }
                (false, true) => {
                    self.told_online.remove(&node);
                    offline.push(node);
                }
                (true, true) | (false, false) => {}
            }
        }
        (online, offline)
    }

    /// Sessions that hold what the others hold.
    fn following(&self) -> Vec<SessionId> {
        let follows = |session: &&SessionId| {
            matches!(self.sessions.get(session).map(|held| &held.phase), Some(Phase::Live { ahead: None, .. }))
        };
        self.live.values().filter(follows).copied().collect()
    }

    fn catch_up_with_those_ahead(&mut self, registry: &Registry) {
        let mut reached = Vec::new();
        for (&session, held) in &mut self.sessions {
            if let Phase::Live { ahead, .. } = &mut held.phase
                && let Some(revision) = ahead.take_if(|revision| *revision <= registry.revision())
            {
                reached.push((session, revision));
            }
        }
        for (session, revision) in reached {
            self.send_changes(&[session], revision, registry);
        }
    }

    fn take_early(&mut self, node: NodeId, registry: &Registry, now: Now) {
        if let Some(node) = self.presence.offer_early(node, registry, now.monotonic) {
            self.note_record(node, false);
        }
    }

    fn drop_node(&mut self, node: NodeId) {
        self.presence.forget(node);
        let theirs = self.by_node.get(&node).cloned().unwrap_or_default();
        theirs.into_iter().for_each(|session| self.close(session, CloseReason::Removed));
    }

    /// After a jump over so many changes that they are not known one by one.
    fn drop_strangers(&mut self, registry: &Registry) {
        self.presence.retain_members(registry);
        let strangers: Vec<NodeId> = self.live.keys().copied().filter(|&node| registry.node(node).is_none()).collect();
        strangers.into_iter().for_each(|node| self.drop_node(node));
    }

    fn close_all(&mut self, reason: CloseReason) {
        let all: Vec<SessionId> = self.live.values().copied().collect();
        all.into_iter().for_each(|session| self.close(session, reason));
    }
}
