//! A few node cores on a model of a network, with a model of WireGuard and of a coordinator, all at one clock.
//!
//! The WireGuard model keeps what the core reasons about: sessions lost when a peer is made anew, roaming to wherever
//! authenticated packets come from, one initiation in five seconds, staged packets, counters. Packets take one
//! millisecond. Device operations are done at once.

use crate::action::Action;
use crate::clock::{BootTime, Now};
use crate::device::{ActualDevice, DeviceUpdate, PeerChange};
use crate::diff::public_key;
use crate::journal::{Cache, Record, encode};
use crate::node::{Node, SessionEvent, Setup};
use ed25519_dalek::SigningKey;
use mesh_types::session::{PresenceUpdate, SnapshotPage, Tick, Welcome};
use mesh_types::*;
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

pub(super) const MESH: MeshId = MeshId::from_bytes([0x11; 16]);
pub(super) const PORT: u16 = 51820;
/// The wall clock at boot.
const WALL: u64 = 1_800_000_000_000;
pub(super) const TTL: MeshDuration = MeshDuration::from_secs(86_400);

pub(super) struct World {
    pub(super) millis: u64,
    pub(super) hosts: Vec<Host>,
    packets: Vec<(u64, Packet)>,
    pub(super) registry: Registry,
    /// Records of presence that were sent to bring sessions up to date.
    pub(super) sent: usize,
}

/// The model of a coordinator.
pub(super) struct Registry {
    pub(super) up: bool,
    pub(super) fresh: bool,
    pub(super) epoch: Epoch,
    pub(super) revision: Revision,
    pub(super) nodes: BTreeMap<NodeId, NodeRecord>,
    presence: BTreeMap<NodeId, SignedPresence>,
}

pub(super) struct Host {
    pub(super) node: Node,
    pub(super) addresses: Vec<IpAddr>,
    pub(super) device: ActualDevice,
    wireguard: BTreeMap<PublicKey, Tunnel>,
    /// What the core asked for, with the time.
    pub(super) log: Vec<(u64, Action)>,
    pub(super) journal: Vec<u8>,
    pub(super) connected: bool,
    /// When bytes of users arrived.
    pub(super) delivered: Vec<u64>,
    /// Whether it answers at all.
    pub(super) alive: bool,
    /// The source of its packets, while the kernel picks another than it should.
    pub(super) source: Option<IpAddr>,
    /// When it sent into its own tunnel; its filter dropped that.
    pub(super) looped: Vec<u64>,
    /// Where it sent to, with the time.
    pub(super) sent_to: Vec<(u64, SocketAddr)>,
    /// Whether it lets no probes in.
    pub(super) firewall: bool,
    /// Whether its device does nothing that is asked of it.
    pub(super) broken: bool,
}

#[derive(Default)]
struct Tunnel {
    session: Option<u64>,
    initiated: Option<u64>,
    /// Since when data waits for anything to go back: after ten seconds a keepalive does.
    owes: Option<u64>,
    staged: Vec<Vec<u8>>,
}

#[derive(Clone)]
struct Packet {
    src: SocketAddr,
    dst: SocketAddr,
    from: PublicKey,
    to: PublicKey,
    body: Body,
}

#[derive(Clone)]
enum Body {
    Initiation(u64),
    Response(u64),
    Data(u64, Vec<u8>),
}

pub(super) fn id(index: usize) -> NodeId {
    NodeId::from_bytes([u8::try_from(index).unwrap() + 1; 16])
}

fn private(index: usize) -> PrivateKey {
    let mut bytes = [0x70; 32];
    bytes[1] = u8::try_from(index).unwrap();
    PrivateKey::from_bytes(bytes)
}

pub(super) fn identity(index: usize) -> SigningKey {
    SigningKey::from_bytes(&[u8::try_from(index).unwrap() + 1; 32])
}

pub(super) fn config() -> MeshConfig {
    let overlay = Overlay::new("10.99.0.0/16".parse().unwrap(), "fd00:99::/48".parse().unwrap()).unwrap();
    MeshConfig {
        mesh: MESH,
        overlay,
        authorities: Vec::new(),
        coordinators: Vec::new(),
        key_ttl: TTL,
        revision: Revision(1),
    }
}

pub(super) fn record(index: usize) -> NodeRecord {
    NodeRecord {
        id: id(index),
        name: format!("node-{index}").parse().unwrap(),
        public_key: public_key(&private(index)),
        identity_key: IdentityKey::from_bytes(identity(index).verifying_key().to_bytes()),
        addresses: config().overlay.addresses(u32::try_from(index).unwrap() + 1).unwrap(),
        expires_at: MeshTime(WALL) + TTL,
        revision: Revision(1),
    }
}

pub(super) fn setup(index: usize) -> Setup {
    Setup {
        record: record(index),
        config: config(),
        identity: identity(index),
        private_key: private(index),
        listen_port: PORT,
        fwmark: 0,
        software: "test".into(),
        instance: 1,
        seed: index as u64,
        certificate: None,
    }
}

/// The `last`-th address of network `net`.
pub(super) fn at(net: u8, last: usize) -> IpAddr {
    IpAddr::from([192, 0, net, u8::try_from(last).unwrap() + 1])
}

impl World {
    /// So many joined nodes, each with one address, none of which has run yet.
    pub(super) fn new(count: usize) -> Self {
        let registry = Registry {
            up: true,
            fresh: true,
            epoch: Epoch { counter: 1, id: 5 },
            revision: Revision(1),
            nodes: BTreeMap::new(),
            presence: BTreeMap::new(),
        };
        let mut world = Self { millis: 1_000, hosts: Vec::new(), packets: Vec::new(), registry, sent: 0 };
        for index in 0..count {
            world.join(index);
        }
        world
    }

    /// Brings one more node into the mesh and starts it.
    pub(super) fn join(&mut self, index: usize) {
        self.join_listing(index, vec![at(2, index)]);
    }

    /// The same, with a node that lists these addresses as its own.
    pub(super) fn join_listing(&mut self, index: usize, addresses: Vec<IpAddr>) {
        self.upsert(record(index));
        let host = self.boot(index, Cache::new(MESH, id(index)), addresses);
        self.hosts.push(host);
        self.start(index);
    }

    fn boot(&self, index: usize, cache: Cache, addresses: Vec<IpAddr>) -> Host {
        Host {
            journal: cache.compact(),
            node: Node::new(setup(index), cache, self.now()),
            addresses,
            device: ActualDevice::default(),
            wireguard: BTreeMap::new(),
            log: Vec::new(),
            connected: false,
            delivered: Vec::new(),
            alive: true,
            source: None,
            looped: Vec::new(),
            sent_to: Vec::new(),
            firewall: false,
            broken: false,
        }
    }

    fn start(&mut self, index: usize) {
        let (now, addresses) = (self.now(), self.hosts[index].addresses.clone());
        self.hosts[index].node.handle_underlay(addresses, now);
        self.perform(index);
        self.connect(index);
    }

    /// Ends the daemon and its device, and starts both anew from the journal.
    pub(super) fn restart(&mut self, index: usize) {
        let (cache, valid) = Cache::replay(&self.hosts[index].journal, MESH, id(index)).unwrap();
        assert_eq!(valid, self.hosts[index].journal.len());
        assert_eq!(cache, *self.hosts[index].node.cache(), "the journal holds what the node remembers");
        let addresses = self.hosts[index].addresses.clone();
        self.hosts[index] = self.boot(index, cache, addresses);
        self.start(index);
    }

    pub(super) fn now(&self) -> Now {
        Now { boot: BootTime::from_millis(self.millis), wall: MeshTime(WALL + self.millis) }
    }

    pub(super) fn connect(&mut self, index: usize) {
        if !self.registry.up || self.hosts[index].connected {
            return;
        }
        let now = self.now();
        self.hosts[index].connected = true;
        let hello = self.hosts[index].node.hello();
        self.hosts[index].node.handle_session(SessionEvent::Opened, now);
        let tick = self.tick();
        let epoch = self.registry.epoch;
        let welcome = Welcome { coordinator: CoordinatorId(1), epoch, incarnation: Incarnation(0), tick };
        self.tell(index, CoordinatorMessage::Welcome(welcome));
        let page = self.snapshot();
        self.tell(index, CoordinatorMessage::Snapshot(page));
        let differing = self.digest().differing(&hello.presence);
        let lacking = self.registry.presence.iter().filter(|(id, _)| differing.contains(**id));
        let records: Vec<_> = lacking.map(|(_, signed)| signed.clone()).collect();
        self.sent += records.len();
        let online: Vec<_> = (0..self.hosts.len()).filter(|&i| self.hosts[i].connected).map(id).collect();
        let update = PresenceUpdate { records, online, offline: Vec::new() };
        self.tell(index, CoordinatorMessage::Presence(update));
        self.broadcast(&PresenceUpdate { online: vec![id(index)], ..PresenceUpdate::default() });
    }

    pub(super) fn snapshot(&self) -> SnapshotPage {
        let nodes = self.registry.nodes.values().cloned().collect();
        SnapshotPage { revision: self.registry.revision, config: Some(config()), nodes, last: true }
    }

    /// The digest of all presence that the coordinator holds.
    pub(super) fn digest(&self) -> PresenceDigest {
        let mut digest = PresenceDigest::default();
        self.registry.presence.iter().for_each(|(&id, signed)| digest.add(id, digest::hash(signed)));
        digest
    }

    pub(super) fn tick(&self) -> Tick {
        let time = self.now().wall;
        Tick { time, fresh: self.registry.fresh, leader: None, voters: BTreeSet::new() }
    }

    /// Takes all coordinators away.
    pub(super) fn lose_coordinators(&mut self) {
        self.registry.up = false;
        let now = self.now();
        for index in 0..self.hosts.len() {
            self.hosts[index].connected = false;
            self.hosts[index].node.handle_session(SessionEvent::Closed, now);
            self.perform(index);
        }
    }

    /// Brings coordinators back; every node opens a session.
    pub(super) fn restore_coordinators(&mut self) {
        self.registry.up = true;
        for index in 0..self.hosts.len() {
            self.connect(index);
        }
    }

    pub(super) fn upsert(&mut self, record: NodeRecord) {
        self.registry.nodes.insert(record.id, record.clone());
        self.change(vec![record], Vec::new());
    }

    pub(super) fn remove(&mut self, index: usize) {
        self.registry.nodes.remove(&id(index));
        self.registry.presence.remove(&id(index));
        self.change(Vec::new(), vec![id(index)]);
    }

    /// Tells the first node of peers that are there but run nowhere.
    pub(super) fn tell_of(&mut self, peers: std::ops::Range<usize>) {
        let signed = |index: usize| {
            let kind = CandidateKind::Host;
            let candidates = vec![Candidate { kind, endpoint: SocketAddr::new(at(2, index), PORT) }];
            let (node, incarnation) = (id(index), Incarnation(1));
            Presence { node, incarnation, sequence: 1, signed_at: self.now().wall, candidates }
                .sign(MESH, &identity(index))
        };
        let records = peers.clone().map(signed).collect();
        let online = peers.map(id).collect();
        self.tell(0, CoordinatorMessage::Presence(PresenceUpdate { records, online, offline: Vec::new() }));
    }

    fn change(&mut self, upserts: Vec<NodeRecord>, removals: Vec<NodeId>) {
        let from = self.registry.revision;
        self.registry.revision = from.next();
        let changes = Changes { from, to: from.next(), upserts, removals, config: None };
        for index in 0..self.hosts.len() {
            self.tell(index, CoordinatorMessage::Delta(changes.clone()));
        }
    }

    fn broadcast(&mut self, update: &PresenceUpdate) {
        for index in 0..self.hosts.len() {
            self.tell(index, CoordinatorMessage::Presence(update.clone()));
        }
    }

    pub(super) fn tell(&mut self, index: usize, message: CoordinatorMessage) {
        if self.hosts[index].connected {
            let now = self.now();
            self.hosts[index].node.handle_message(message, now);
            self.perform(index);
        }
    }

    /// Gives a host other addresses: what was sent to the old ones is lost.
    pub(super) fn move_to(&mut self, index: usize, addresses: Vec<IpAddr>) {
        self.hosts[index].addresses.clone_from(&addresses);
        let now = self.now();
        self.hosts[index].node.handle_underlay(addresses, now);
        self.perform(index);
    }

    /// A user on one node sends to another.
    pub(super) fn send(&mut self, from: usize, to: usize) {
        self.transmit(from, record(to).public_key, b"from a user".to_vec());
    }

    pub(super) fn perform(&mut self, index: usize) {
        let mut actions = 0;
        while let Some(action) = self.hosts[index].node.poll_action() {
            actions += 1;
            assert!(actions < 10_000, "each action leads to the next, without end: {action:?}");
            let (now, millis) = (self.now(), self.millis);
            self.hosts[index].log.push((millis, action.clone()));
            let host = &mut self.hosts[index];
            match action {
                Action::Persist(record) => host.journal.extend(encode(&record)),
                Action::Read | Action::Apply(_) if host.broken => host.node.handle_device_failed(now),
                Action::Read => {
                    let device = host.device.clone();
                    host.node.handle_device(device, now);
                }
                Action::Apply(update) => {
                    host.apply(&update);
                    host.node.handle_applied(now);
                }
                Action::Link(crate::DesiredLink::Down) => {
                    host.device = ActualDevice::default();
                    host.wireguard.clear();
                }
                Action::CountDropped => {
                    let dropped = u64::try_from(host.looped.len()).unwrap();
                    host.node.handle_dropped(dropped, now);
                }
                Action::SendProbe { to, bytes } => {
                    let peer = host.device.peers.iter();
                    let key =
                        peer.filter(|(_, p)| p.allowed_ips.contains(&AllowedIp::host(to))).map(|(k, _)| *k).next();
                    if let Some(key) = key {
                        self.transmit(index, key, bytes.to_vec());
                    }
                }
                Action::Say(NodeMessage::Presence(signed)) if host.connected => {
                    self.registry.presence.insert(id(index), signed.clone());
                    self.broadcast(&PresenceUpdate { records: vec![signed], ..PresenceUpdate::default() });
                }
                Action::EndSession(_) => {
                    host.connected = false;
                    host.node.handle_session(SessionEvent::Closed, now);
                }
                _ => {}
            }
        }
    }

    fn transmit(&mut self, index: usize, to: PublicKey, bytes: Vec<u8>) {
        let millis = self.millis;
        let host = &mut self.hosts[index];
        let Some(peer) = host.device.peers.get_mut(&to) else { return };
        let tunnel = host.wireguard.entry(to).or_default();
        let Some(endpoint) = peer.endpoint else { return };
        let body = match tunnel.session {
            Some(session) => {
                tunnel.owes = None;
                peer.tx_bytes += if bytes.is_empty() { 32 } else { 96 };
                Body::Data(session, bytes)
            }
            None => {
                if !bytes.is_empty() {
                    tunnel.staged.push(bytes);
                }
                if tunnel.initiated.is_some_and(|at| millis < at + 5_000) {
                    return;
                }
                tunnel.initiated = Some(millis);
                peer.tx_bytes += 148;
                Body::Initiation(millis)
            }
        };
        self.post(index, to, endpoint, body);
    }

    fn post(&mut self, index: usize, to: PublicKey, dst: SocketAddr, body: Body) {
        let host = &mut self.hosts[index];
        host.sent_to.push((self.millis, dst));
        if config().overlay.contains(dst.ip()) {
            host.looped.push(self.millis);
            return;
        }
        let own = host.addresses.iter().find(|a| a.is_ipv4() == dst.is_ipv4());
        if let Some(&own) = own.filter(|_| host.alive) {
            let src = SocketAddr::new(host.source.unwrap_or(own), PORT);
            self.packets.push((self.millis + 1, Packet { src, dst, from: record(index).public_key, to, body }));
        }
    }

    fn receive(&mut self, packet: Packet) {
        let Packet { src, dst, from, to, body } = packet;
        let found = self.hosts.iter().position(|h| h.alive && h.addresses.contains(&dst.ip()) && dst.port() == PORT);
        let Some(index) = found.filter(|&i| record(i).public_key == to) else { return };
        let now = self.now();
        let host = &mut self.hosts[index];
        let Some(peer) = host.device.peers.get_mut(&from) else { return };
        let tunnel = host.wireguard.entry(from).or_default();
        match body {
            Body::Initiation(session) => {
                tunnel.session = Some(session);
                peer.rx_bytes += 148;
                peer.tx_bytes += 92;
                (peer.endpoint, peer.last_handshake) = (Some(src), Some(now.wall));
                self.post(index, from, src, Body::Response(session));
            }
            Body::Response(session) if tunnel.initiated == Some(session) => {
                tunnel.session = Some(session);
                peer.rx_bytes += 92;
                (peer.endpoint, peer.last_handshake) = (Some(src), Some(now.wall));
                for bytes in std::mem::take(&mut tunnel.staged) {
                    self.transmit(index, from, bytes);
                }
            }
            Body::Data(session, bytes) if tunnel.session == Some(session) => {
                peer.rx_bytes += if bytes.is_empty() { 32 } else { 96 };
                peer.endpoint = Some(src);
                if !bytes.is_empty() {
                    tunnel.owes.get_or_insert(self.millis);
                }
                self.deliver(index, from, &bytes);
            }
            Body::Response(_) | Body::Data(..) => {}
        }
    }

    fn deliver(&mut self, index: usize, from: PublicKey, bytes: &[u8]) {
        let now = self.now();
        let peer = (0..self.hosts.len()).find(|&i| record(i).public_key == from).unwrap();
        if bytes.starts_with(b"MSHP") {
            if self.hosts[index].firewall {
                return;
            }
            self.hosts[index].node.handle_probe(IpAddr::V4(record(peer).addresses.v4), bytes, now);
            self.perform(index);
        } else if !bytes.is_empty() {
            self.hosts[index].delivered.push(self.millis);
        }
    }

    fn keep_alive(&mut self, index: usize) {
        let late = |tunnel: &Tunnel| tunnel.owes.is_some_and(|since| since + 10_000 <= self.millis);
        let owing = self.hosts[index].wireguard.iter().filter(|(_, tunnel)| late(tunnel)).map(|(key, _)| *key);
        for key in owing.collect::<Vec<_>>() {
            self.transmit(index, key, Vec::new());
        }
    }

    /// Lets time pass, a millisecond at a time; the coordinator ticks every two seconds.
    pub(super) fn run(&mut self, span: Duration) {
        let end = self.millis + u64::try_from(span.as_millis()).unwrap();
        while self.millis < end {
            self.millis += 1;
            let due = self.packets.extract_if(.., |(at, _)| *at <= self.millis).collect::<Vec<_>>();
            for (_, packet) in due {
                self.receive(packet);
            }
            for index in 0..self.hosts.len() {
                self.keep_alive(index);
                let mut steps = 0;
                while self.hosts[index].node.poll_timeout().is_some_and(|at| at <= self.now().boot) {
                    let now = self.now();
                    self.hosts[index].node.handle_timeout(now);
                    self.perform(index);
                    steps += 1;
                    assert!(steps < 10, "the timer is set to a time that has passed, again and again");
                }
                if self.millis.is_multiple_of(2_000) {
                    let tick = self.tick();
                    self.tell(index, CoordinatorMessage::Tick(tick));
                }
            }
        }
    }
}

impl Host {
    fn apply(&mut self, update: &DeviceUpdate) {
        self.device.apply(update);
        for (key, change) in &update.peers {
            match change {
                PeerChange::Remove | PeerChange::Recreate(_) => {
                    self.wireguard.remove(key);
                }
                PeerChange::Add(_) | PeerChange::Modify(_) => {}
            }
        }
    }

    /// Loses all WireGuard sessions, as a restarted userspace device does.
    pub(super) fn forget_sessions(&mut self) {
        self.wireguard.clear();
    }

    pub(super) fn endpoint(&self, peer: usize) -> Option<SocketAddr> {
        self.device.peers.get(&record(peer).public_key)?.endpoint
    }

    /// Milliseconds at which something was asked for.
    pub(super) fn times(&self, wanted: impl Fn(&Action) -> bool) -> Vec<u64> {
        self.log.iter().filter(|(_, action)| wanted(action)).map(|(at, _)| *at).collect()
    }

    pub(super) fn records(&self) -> impl Iterator<Item = &Record> {
        self.log.iter().filter_map(|(_, action)| match action {
            Action::Persist(record) => Some(record),
            _ => None,
        })
    }
}
