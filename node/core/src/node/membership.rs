//! Who is in the mesh, as the node acts on it: the index of peers, presence, and whether the node itself belongs.

use super::{Node, Session};
use crate::action::{Action, DesiredLink, Link, Warning};
use crate::clock::{BootTime, Now};
use crate::device::EndpointIntent;
use crate::journal::{Intent, Record};
use crate::path::Path;
use crate::presence::{Signer, host_candidates};
use crate::status::{PathStatus, PeerStatus, Phase, Status};
use crate::view::{Online, View};
use mesh_types::limits::MAX_PENDING_PRESENCE;
use mesh_types::session::PresenceUpdate;
use mesh_types::{Candidate, NodeId, NodeMessage, NodeRecord, Presence, Revision, SignedPresence};
use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

impl Node {
    /// All members but this node.
    pub(super) fn peers(&self) -> impl Iterator<Item = &NodeRecord> {
        let own = self.setup.record.id;
        self.cache.netmap.iter().flat_map(|n| n.nodes.values()).filter(move |n| n.id != own)
    }

    pub(super) fn peer(&self, id: NodeId) -> Option<&NodeRecord> {
        self.cache.netmap.as_ref()?.nodes.get(&id).filter(|n| n.id != self.setup.record.id)
    }

    /// This node's record: of the netmap, else as told at join.
    pub(super) fn own_record(&self) -> &NodeRecord {
        let held = self.cache.netmap.as_ref().and_then(|n| n.nodes.get(&self.setup.record.id));
        held.unwrap_or(&self.setup.record)
    }

    /// Whether this node belongs to the mesh, as far as it knows.
    pub(super) fn is_member(&self) -> bool {
        let listed = self.cache.netmap.as_ref().is_none_or(|n| n.nodes.contains_key(&self.setup.record.id));
        listed && !self.removed
    }

    pub(super) fn is_up(&self) -> bool {
        matches!(self.link, Some(DesiredLink::Up(_)))
    }

    /// Makes a change of the netmap the node's own: journal first, then all that follows from it.
    pub(super) fn adopt(&mut self, record: Record, now: Now) {
        self.remember(record);
        self.index_peers(now.boot);
        self.bar();
        self.look.changed = true;
        let early = std::mem::take(&mut self.early);
        for signed in early.into_values() {
            self.take_presence(signed, now);
        }
    }

    /// Brings paths and indexes in line with the netmap. A peer with another key is another peer to the device.
    pub(super) fn index_peers(&mut self, now: BootTime) {
        let own = self.setup.record.id;
        let nodes: BTreeMap<NodeId, &NodeRecord> = self
            .cache
            .netmap
            .iter()
            .flat_map(|n| n.nodes.iter())
            .map(|(&id, n)| (id, n))
            .filter(|(id, _)| *id != own)
            .collect();
        self.paths.retain(|id, _| nodes.contains_key(id));
        self.online.retain(|id| nodes.contains_key(id));
        self.heard.retain(|id| nodes.contains_key(&id));
        self.own_tunnel.retain(|id| nodes.contains_key(&id));
        let old_keys = std::mem::take(&mut self.by_key);
        self.by_address.clear();
        for (&id, node) in &nodes {
            let path = self.paths.entry(id).or_insert_with(|| Path::new(now));
            let known = old_keys.get(&node.public_key) == Some(&id);
            if !known && old_keys.values().any(|held| *held == id) {
                path.forget_device(now);
            }
            self.by_key.insert(node.public_key, id);
            self.by_address.extend(node.addresses.iter().map(|address| (address, id)));
        }
    }

    /// Takes which peers said something, came or went.
    pub(super) fn take_presence_update(&mut self, update: PresenceUpdate, now: Now) {
        for id in update.offline {
            self.online.remove(&id);
        }
        for signed in update.records {
            self.take_presence(signed, now);
        }
        for id in update.online {
            if let Some(path) = self.paths.get_mut(&id)
                && self.online.insert(id)
            {
                path.came_online(now.boot);
            }
        }
    }

    /// Takes one word of a peer, if it is the peer's and newer than what is held. A word may come before the record of
    /// its node: presence and registry travel independently.
    fn take_presence(&mut self, signed: SignedPresence, now: Now) {
        let Ok(claimed) = signed.parse_unverified() else { return };
        let Some(record) = self.peer(claimed.node) else {
            if claimed.node != self.setup.record.id
                && (self.early.len() < MAX_PENDING_PRESENCE || self.early.contains_key(&claimed.node))
            {
                self.early.insert(claimed.node, signed);
            }
            return;
        };
        let key = record.identity_key;
        if !self.paths.get(&claimed.node).is_some_and(|path| path.is_news(claimed.version())) {
            return;
        }
        match signed.verify(self.cache.mesh, &key) {
            Ok(presence) => {
                self.heard.take(presence.node, &signed);
                self.take_word(presence, now);
            }
            Err(error) => tracing::warn!(node = %claimed.node, %error, "presence refused"),
        }
    }

    fn take_word(&mut self, presence: Presence, now: Now) {
        let version = presence.version();
        let ago = self.clock.now(now).since(presence.signed_at).to_std();
        let micros = u64::try_from(ago.as_micros()).unwrap_or(u64::MAX);
        let signed = BootTime::from_micros(now.boot.as_micros().saturating_sub(micros));
        let candidates: Vec<Candidate> =
            presence.candidates.into_iter().filter(|candidate| self.is_usable(candidate)).collect();
        if let Some(path) = self.paths.get_mut(&presence.node) {
            path.take_candidates(version, candidates, signed, now.boot);
            self.look.changed = true;
        }
    }

    /// Whether packets sent there could reach another host than this one, outside the tunnel.
    fn is_usable(&self, candidate: &Candidate) -> bool {
        let at = SocketAddr::new(candidate.endpoint.ip().to_canonical(), candidate.endpoint.port());
        let ours = self.own_addresses().contains(&at.ip()) && at.port() == self.setup.listen_port;
        candidate.is_plausible() && self.barred().permits(at) && !ours
    }

    /// Takes the host's addresses: what can be reached from outside is said to all, and peers are asked from there.
    pub(super) fn take_underlay(&mut self, addresses: Vec<IpAddr>, now: Now) {
        let usable: Vec<IpAddr> =
            host_candidates(&addresses, u16::MAX, self.barred()).iter().map(|c| c.endpoint.ip()).collect();
        if self.underlay.as_ref() == Some(&usable) {
            return;
        }
        let moved = self.underlay.is_some() && !usable.is_empty();
        self.underlay = Some(usable);
        self.announce();
        if moved {
            let underlay = self.underlay.as_deref().unwrap_or_default();
            for path in self.paths.values_mut() {
                path.we_moved(underlay, now);
            }
            // What peers have sent until now says nothing about the new place.
            self.look.wanted = true;
        }
    }

    fn own_addresses(&self) -> &[IpAddr] {
        self.underlay.as_deref().unwrap_or_default()
    }

    /// Says where the node may be reached from now on: nowhere while its interface is down.
    pub(super) fn announce(&mut self) {
        let up = self.cache.intent == Intent::Up;
        let addresses = if up { self.own_addresses() } else { &[] };
        let candidates = host_candidates(addresses, self.setup.listen_port, self.barred());
        self.voice.want(candidates);
    }

    /// Signs and says what changed, if there is someone to say it to.
    pub(super) fn speak(&mut self, now: Now) {
        if self.session.as_ref().is_none_or(|s| s.welcomed.is_none()) {
            return;
        }
        let mesh_time = self.clock.now(now);
        let signer = Signer { mesh: self.cache.mesh, node: self.setup.record.id, key: &self.setup.identity };
        if let Some(signed) = self.voice.speak(&signer, mesh_time, now.boot) {
            self.actions.push_back(Action::Say(NodeMessage::Presence(signed)));
        }
    }

    /// Compares what the interface should be with what was last asked for.
    pub(super) fn decide_link(&mut self, now: Now) {
        let member = self.is_member();
        let wanted = if member && self.cache.intent == Intent::Up {
            DesiredLink::Up(Link { addresses: self.own_record().addresses, overlay: self.config().overlay })
        } else {
            DesiredLink::Down
        };
        if self.link.as_ref() != Some(&wanted) {
            self.forget_device(now);
            self.actions.push_back(Action::Link(wanted.clone()));
            self.link = Some(wanted);
        }
        if self.warn(Warning::Removed, !member) {
            self.actions.push_back(Action::Removed);
        }
    }

    /// What a path needs to know of the rest of the node.
    pub(super) fn view(&self, id: NodeId, fresh: bool) -> View<'_> {
        let online = match &self.session {
            Some(Session { welcomed: Some(_) }) if self.online.contains(&id) => Online::Yes,
            Some(Session { welcomed: Some(_) }) => Online::No,
            _ => Online::Unknown,
        };
        let worked = self.cache.endpoints.get(&id).copied();
        View { underlay: self.own_addresses(), barred: self.barred(), worked, online, fresh }
    }

    pub(super) fn picture(&self, now: Now) -> Status {
        let netmap = self.cache.netmap.as_ref();
        let mut peers: Vec<PeerStatus> = self.peers().map(|peer| self.peer_picture(peer, now)).collect();
        peers.sort_by(|a, b| a.node.name.cmp(&b.node.name));
        Status {
            phase: match (self.is_member(), self.cache.intent) {
                (false, _) => Phase::Removed,
                (true, Intent::Down) => Phase::Down,
                (true, Intent::Up) => Phase::Up,
            },
            node: self.own_record().clone(),
            epoch: netmap.map(|n| n.epoch),
            revision: netmap.map_or(Revision::NONE, |n| n.revision),
            session: self.session.as_ref().and_then(|s| s.welcomed.as_ref()).map(|(_, status)| status.clone()),
            coordinators: self.config().coordinators.clone(),
            time: self.clock.now(now),
            trust: self.clock.trust(now),
            candidates: self.voice.candidates().to_vec(),
            dropped: self.own_tunnel.dropped(),
            peers,
            warnings: self.warnings.iter().cloned().collect(),
        }
    }

    fn peer_picture(&self, peer: &NodeRecord, now: Now) -> PeerStatus {
        let path = self.paths.get(&peer.id);
        let found = self.actual.as_ref().and_then(|device| device.peers.get(&peer.public_key));
        let good = found.is_some() && path.is_some_and(Path::is_good);
        PeerStatus {
            node: peer.clone(),
            endpoint: found.and_then(|f| f.endpoint),
            path: if good { PathStatus::Direct } else { PathStatus::None },
            online: self.view(peer.id, false).online == Online::Yes || path.is_some_and(|p| p.was_heard(now.boot)),
            refused: self.own_tunnel.refused(peer.id),
            last_handshake: found.and_then(|f| f.last_handshake),
            latency: path.and_then(Path::latency),
            rx_bytes: found.map_or(0, |f| f.rx_bytes),
            tx_bytes: found.map_or(0, |f| f.tx_bytes),
        }
    }

    /// What to do about the endpoint of a peer: nothing, unless the device has none that may be, or a path aims at another.
    pub(super) fn endpoint_intent(&self, id: NodeId, present: Option<SocketAddr>) -> EndpointIntent {
        let present = present.filter(|at| self.barred().permits(*at));
        let aim = self.look.aims.get(&id).map(|aim| aim.endpoint);
        let first = || self.paths.get(&id).filter(|_| present.is_none())?.first_place(&self.view(id, false));
        aim.or_else(first).map_or(EndpointIntent::Keep, EndpointIntent::Set)
    }
}
