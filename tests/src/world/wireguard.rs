//! A model of WireGuard as the node core sees it: peers, sessions, roaming, and the five seconds between initiations.
//!
//! Cryptography is replaced by names: a datagram says which key sent it and which session sealed it, and only the
//! device that holds that session takes it. Lifetimes and limits are those of the paper (section 6.1).

use mesh_node_core::device::{ActualDevice, ActualPeer, DeviceUpdate, NewPeer, PeerChange, PeerUpdate};
use mesh_types::{AllowedIp, MeshTime, PublicKey};
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

/// REKEY-TIMEOUT: a peer is sent at most one initiation in this many milliseconds.
pub const REKEY_TIMEOUT: u64 = 5_000;
/// REKEY-AFTER-TIME: a session older than this is renewed by who sends.
const REKEY_AFTER: u64 = 120_000;
/// REJECT-AFTER-TIME: a session older than this carries nothing.
const REJECT_AFTER: u64 = 180_000;
/// REKEY-ATTEMPT-TIME: how long a handshake is tried.
const ATTEMPT_TIME: u64 = 90_000;
/// KEEPALIVE-TIMEOUT: who received and has nothing to say, says so after this.
const KEEPALIVE: u64 = 10_000;
/// Packets waiting for a handshake; the kernel keeps more, the world needs few.
const STAGED: usize = 16;

/// What travels between two devices.
#[derive(Clone, Debug)]
pub struct Datagram {
    /// Where it comes from, as the receiver sees it.
    pub source: SocketAddr,
    /// Where it goes.
    pub target: SocketAddr,
    /// Whose device sent it.
    pub sender: PublicKey,
    /// What it is.
    pub kind: Kind,
}

/// WireGuard's messages.
#[derive(Clone, Debug)]
pub enum Kind {
    /// A handshake initiation for the device with this key, proposing a session.
    Initiation {
        /// For whom.
        responder: PublicKey,
        /// The session proposed.
        session: u64,
    },
    /// Its answer.
    Response {
        /// The session agreed.
        session: u64,
    },
    /// A packet inside a session, from an overlay address.
    Data {
        /// The session that seals it.
        session: u64,
        /// The overlay address that it is from.
        inner_source: IpAddr,
        /// What is in it; nothing in a keepalive.
        payload: Vec<u8>,
    },
}

/// One interface.
#[derive(Clone, Debug, Default)]
pub struct Device {
    key: Option<PublicKey>,
    port: u16,
    fwmark: u32,
    peers: BTreeMap<PublicKey, Peer>,
    /// Where it takes no endpoint; a kernel's takes whatever authenticated.
    barred: Option<BTreeSet<AllowedIp>>,
}

#[derive(Clone, Debug, Default)]
struct Peer {
    config: NewPeer,
    /// Id and birth of the sessions that may be received on, the one to send on last.
    sessions: Vec<(u64, u64)>,
    /// A session that we answered for: not sent on before something came on it, the answer may be lost.
    unconfirmed: Option<(u64, u64)>,
    /// Since when we have sent and heard nothing.
    unanswered: Option<u64>,
    /// Since when we have heard and sent nothing.
    owing: Option<u64>,
    proposed: Option<u64>,
    initiated: Option<u64>,
    trying_since: Option<u64>,
    last_handshake: Option<u64>,
    rx: u64,
    tx: u64,
    staged: Vec<(IpAddr, Vec<u8>)>,
}

impl Device {
    /// Applies an update as every backend does. `derive` gives the public half of a private key.
    pub fn apply(&mut self, update: &DeviceUpdate, derive: impl Fn(&mesh_types::PrivateKey) -> PublicKey) {
        if let Some(key) = &update.private_key {
            self.key = Some(derive(key));
        }
        self.port = update.listen_port.unwrap_or(self.port);
        self.fwmark = update.fwmark.unwrap_or(self.fwmark);
        self.barred = update.barred.clone().or(self.barred.take());
        for (key, change) in &update.peers {
            match change {
                PeerChange::Remove => drop(self.peers.remove(key)),
                PeerChange::Add(peer) => self.add(*key, peer),
                PeerChange::Modify(change) => self.modify(key, change),
                PeerChange::Recreate(peer) => {
                    self.peers.remove(key);
                    self.add(*key, peer);
                }
            }
        }
    }

    fn add(&mut self, key: PublicKey, peer: &NewPeer) {
        self.take_allowed_ips(peer.allowed_ips.iter().copied());
        let entry = self.peers.entry(key).or_default();
        let endpoint = peer.endpoint.or(entry.config.endpoint);
        entry.config = NewPeer { endpoint, ..peer.clone() };
    }

    fn modify(&mut self, key: &PublicKey, change: &PeerUpdate) {
        if !self.peers.contains_key(key) {
            return;
        }
        self.take_allowed_ips(change.allowed_ips.iter().flatten().copied());
        let Some(peer) = self.peers.get_mut(key) else { return };
        peer.config.endpoint = change.endpoint.or(peer.config.endpoint);
        if let Some(preshared_key) = &change.preshared_key {
            peer.config.preshared_key.clone_from(preshared_key);
        }
        peer.config.keepalive = change.keepalive.unwrap_or(peer.config.keepalive);
        if let Some(allowed_ips) = &change.allowed_ips {
            peer.config.allowed_ips.clone_from(allowed_ips);
        }
    }

    fn take_allowed_ips(&mut self, ips: impl Iterator<Item = mesh_types::AllowedIp>) {
        for ip in ips {
            for peer in self.peers.values_mut() {
                peer.config.allowed_ips.remove(&ip);
            }
        }
    }

    /// What a dump shows; `wall` turns the world's clock into the host's.
    pub fn read(&self, wall: impl Fn(u64) -> MeshTime) -> ActualDevice {
        let peer = |peer: &Peer| ActualPeer {
            preshared_key: peer.config.preshared_key.clone(),
            endpoint: peer.config.endpoint,
            keepalive: peer.config.keepalive,
            allowed_ips: peer.config.allowed_ips.clone(),
            refused: 0,
            last_refused: None,
            last_handshake: peer.last_handshake.map(&wall),
            rx_bytes: peer.rx,
            tx_bytes: peer.tx,
        };
        ActualDevice {
            public_key: self.key,
            listen_port: self.port,
            fwmark: self.fwmark,
            barred: self.barred.clone(),
            looped: 0,
            peers: self.peers.iter().map(|(key, p)| (*key, peer(p))).collect(),
        }
    }

    /// The UDP port.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The keys of all peers.
    pub fn peers(&self) -> impl Iterator<Item = &PublicKey> {
        self.peers.keys()
    }

    /// Whether it sends to an address like this.
    pub fn aims(&self, inside: impl Fn(IpAddr) -> bool) -> bool {
        self.peers.values().filter_map(|peer| peer.config.endpoint).any(|at| inside(at.ip()))
    }

    /// Forgets sessions and staged packets, as a restarted userspace engine has.
    pub fn restart(&mut self) {
        *self = Self { barred: Some(BTreeSet::new()), ..Self::default() };
    }

    /// Sends a packet to an overlay address from the host's underlay address `own`; `fresh` names a new session.
    pub fn send(
        &mut self,
        own: IpAddr,
        inner: (IpAddr, IpAddr),
        payload: Vec<u8>,
        fresh: u64,
        now: u64,
    ) -> Vec<Datagram> {
        let (inner_source, inner_target) = inner;
        let Some(key) = self.route(inner_target) else { return Vec::new() };
        let (sender, port) = (self.key, self.port);
        let (Some(peer), Some(sender)) = (self.peers.get_mut(&key), sender) else { return Vec::new() };
        let Some(target) = peer.config.endpoint else { return Vec::new() };
        let source = SocketAddr::new(own, port);
        let mut out = Vec::new();
        let current = peer.sessions.last().copied();
        let age = current.map(|(_, since)| now.saturating_sub(since));
        match current.filter(|_| age.is_some_and(|age| age < REJECT_AFTER)) {
            Some((session, _)) => {
                peer.sent(&payload, now);
                out.push(Datagram { source, target, sender, kind: Kind::Data { session, inner_source, payload } });
            }
            None if peer.staged.len() < STAGED => peer.staged.push((inner_source, payload)),
            None => {}
        }
        if age.is_none_or(|age| age >= REKEY_AFTER) {
            peer.trying_since.get_or_insert(now);
            out.extend(peer.initiate(key, source, target, sender, fresh, now));
        }
        out
    }

    /// Repeats initiations that got no answer; call it at least every second.
    pub fn tick(&mut self, own: IpAddr, mut fresh: impl FnMut() -> u64, now: u64) -> Vec<Datagram> {
        let (Some(sender), port) = (self.key, self.port) else { return Vec::new() };
        let mut out = Vec::new();
        let source = SocketAddr::new(own, port);
        for (key, peer) in &mut self.peers {
            let Some(target) = peer.config.endpoint else { continue };
            if peer.unanswered.is_some_and(|since| now.saturating_sub(since) >= KEEPALIVE + REKEY_TIMEOUT) {
                peer.trying_since.get_or_insert(now);
            }
            let owed = peer.owing.is_some_and(|since| now.saturating_sub(since) >= KEEPALIVE);
            if let Some((session, _)) = peer.sessions.last().copied().filter(|_| owed) {
                peer.sent(&[], now);
                out.push(Datagram { source, target, sender, kind: keepalive(session) });
            }
            let Some(since) = peer.trying_since else { continue };
            if now.saturating_sub(since) > ATTEMPT_TIME {
                peer.trying_since = None;
                peer.unanswered = None;
                peer.staged.clear();
            } else {
                out.extend(peer.initiate(*key, source, target, sender, fresh(), now));
            }
        }
        out
    }

    /// Takes a datagram; gives what is sent back and the packet for the host, with its overlay source.
    pub fn receive(&mut self, own: IpAddr, datagram: Datagram, now: u64) -> (Vec<Datagram>, Option<(IpAddr, Vec<u8>)>) {
        let port = self.port;
        let (Some(me), Some(peer)) = (self.key, self.peers.get_mut(&datagram.sender)) else {
            return (Vec::new(), None);
        };
        let inside = |range: &AllowedIp| range.net().contains(&datagram.source.ip());
        let refused = self.barred.iter().flatten().any(inside);
        let endpoint = if refused { peer.config.endpoint } else { Some(datagram.source) };
        let source = SocketAddr::new(own, port);
        let answer = |target, kind| Datagram { source, target, sender: me, kind };
        match datagram.kind {
            Kind::Initiation { responder, session } if responder == me => {
                // An initiation of our own stays open: when both begin at once, both sessions live.
                peer.config.endpoint = endpoint;
                peer.unconfirmed = Some((session, now));
                peer.last_handshake = Some(now);
                peer.rx += 148;
                peer.tx += 92;
                (endpoint.map(|to| answer(to, Kind::Response { session })).into_iter().collect(), None)
            }
            Kind::Response { session } if peer.proposed == Some(session) => {
                peer.proposed = None;
                peer.establish(session, endpoint, now);
                peer.rx += 92;
                let mut out = peer.flush(session, source, me, now);
                if out.is_empty() {
                    peer.sent(&[], now);
                    out.extend(endpoint.map(|to| answer(to, keepalive(session))));
                }
                (out, None)
            }
            Kind::Data { session, inner_source, payload } if peer.holds(session) => {
                let confirmed = peer.received(session, &payload, endpoint, now);
                let out = if confirmed { peer.flush(session, source, me, now) } else { Vec::new() };
                let allowed = peer.config.allowed_ips.iter().any(|ip| ip.net().contains(&inner_source));
                (out, (allowed && !payload.is_empty()).then_some((inner_source, payload)))
            }
            _ => (Vec::new(), None),
        }
    }

    fn route(&self, target: IpAddr) -> Option<PublicKey> {
        let holds = |peer: &Peer| peer.config.allowed_ips.iter().any(|ip| ip.net().contains(&target));
        self.peers.iter().find(|(_, peer)| holds(peer)).map(|(key, _)| *key)
    }
}

/// An empty packet.
fn keepalive(session: u64) -> Kind {
    Kind::Data { session, inner_source: IpAddr::V4(std::net::Ipv4Addr::UNSPECIFIED), payload: Vec::new() }
}

impl Peer {
    fn initiate(
        &mut self,
        responder: PublicKey,
        source: SocketAddr,
        target: SocketAddr,
        sender: PublicKey,
        session: u64,
        now: u64,
    ) -> Option<Datagram> {
        if self.initiated.is_some_and(|at| now.saturating_sub(at) < REKEY_TIMEOUT) {
            return None;
        }
        self.initiated = Some(now);
        self.proposed = Some(session);
        self.tx += 148;
        Some(Datagram { source, target, sender, kind: Kind::Initiation { responder, session } })
    }

    /// The initiator's end of a handshake.
    fn establish(&mut self, session: u64, from: Option<SocketAddr>, now: u64) {
        self.config.endpoint = from;
        self.adopt(session, now);
        self.last_handshake = Some(now);
        self.unanswered = None;
    }

    /// Sends on a session from now on; the one before stays for packets under way.
    fn adopt(&mut self, session: u64, since: u64) {
        self.sessions.push((session, since));
        if self.sessions.len() > 2 {
            self.sessions.remove(0);
        }
        self.trying_since = None;
    }

    fn holds(&self, session: u64) -> bool {
        self.sessions.iter().chain(&self.unconfirmed).any(|(held, _)| *held == session)
    }

    fn sent(&mut self, payload: &[u8], now: u64) {
        self.tx += payload.len() as u64 + 32;
        self.owing = None;
        if !payload.is_empty() {
            self.unanswered.get_or_insert(now);
        }
    }

    /// Whether the packet confirmed a session that we had answered for.
    fn received(&mut self, session: u64, payload: &[u8], from: Option<SocketAddr>, now: u64) -> bool {
        let confirmed = self.unconfirmed.take_if(|(waiting, _)| *waiting == session);
        if let Some((session, since)) = confirmed {
            self.adopt(session, since);
        }
        self.config.endpoint = from;
        self.rx += payload.len() as u64 + 32;
        self.unanswered = None;
        if !payload.is_empty() {
            self.owing.get_or_insert(now);
        }
        confirmed.is_some()
    }

    /// Sends what waited for a session.
    fn flush(&mut self, session: u64, source: SocketAddr, sender: PublicKey, now: u64) -> Vec<Datagram> {
        let Some(target) = self.config.endpoint else { return Vec::new() };
        let staged = std::mem::take(&mut self.staged);
        let seal = |(inner_source, payload): (IpAddr, Vec<u8>)| {
            self.sent(&payload, now);
            Datagram { source, target, sender, kind: Kind::Data { session, inner_source, payload } }
        };
        staged.into_iter().map(seal).collect()
    }
}
