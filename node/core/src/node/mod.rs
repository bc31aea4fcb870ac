//! The node: ties netmap, presence, paths, probes and deadlines together.
//!
//! Life-cycle: made from what joining brought and what the journal remembers; then every event goes in through one
//! `handle_*`, after each of which the shell drains [`Node::poll_action`] in order and sets its one timer to
//! [`Node::poll_timeout`]. Device operations are answered in the order in which they were asked for.
//!
//! It owns what it decides and nothing else: the device is looked at, never assumed. What it remembers changes only by
//! records that go to the journal too, so that a replay gives the same memory.

mod device;
mod membership;
mod own_tunnel;
mod probing;
mod session;
mod upkeep;

#[cfg(test)]
mod tests;

use crate::action::{Action, DesiredLink, Warning};
use crate::clock::{BootTime, Clock, Now};
use crate::device::ActualDevice;
use crate::heard::Heard;
use crate::journal::{Cache, Intent, Record};
use crate::netmap::Incoming;
use crate::pace::Pace;
use crate::path::Path;
use crate::presence::Voice;
use crate::random::Random;
use crate::status::{SessionStatus, Status};
use ed25519_dalek::SigningKey;
use mesh_types::session::Hello;
use mesh_types::{
    AllowedIp, CoordinatorMessage, Level, MeshConfig, MeshTime, NodeId, NodeRecord, PrivateKey, PublicKey, Revision,
    SignedPresence,
};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::IpAddr;
use thiserror::Error;

/// What a node is made of.
pub struct Setup {
    /// Its own record, as told at join; a newer one in the netmap replaces it.
    pub record: NodeRecord,
    /// The settings, as told at join; those in the journal replace them.
    pub config: MeshConfig,
    /// Signs its presence.
    pub identity: SigningKey,
    /// Its WireGuard key.
    pub private_key: PrivateKey,
    /// UDP port of the device.
    pub listen_port: u16,
    /// Mark on the device's packets; 0 is none.
    pub fwmark: u32,
    /// Software version, for people.
    pub software: String,
    /// Random for each start of the daemon.
    pub instance: u64,
    /// Random; jitter and probe tokens come from it.
    pub seed: u64,
    /// Of its certificate, if the core shall ask for a new one in time.
    pub certificate: Option<Validity>,
}

/// When a certificate is valid.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Validity {
    /// From.
    pub not_before: MeshTime,
    /// Until.
    pub not_after: MeshTime,
}

/// What becomes of the session.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SessionEvent {
    /// The stream is open and `hello()` was sent on it. Any earlier session is forgotten.
    Opened,
    /// The stream has ended, however.
    Closed,
}

/// Why a ping cannot be.
#[derive(Debug, Error, PartialEq, Eq, Clone, Copy)]
pub enum PingError {
    /// No such member.
    #[error("no peer with id {0} and that address in the netmap")]
    UnknownPeer(NodeId),
    /// The interface is down.
    #[error("the interface is down: `meshctl up` brings it back")]
    Down,
    /// More pings under way than are kept.
    #[error("too many pings under way: try again in a moment")]
    TooMany,
}

/// A node's state and its decisions.
pub struct Node {
    setup: Setup,
    cache: Cache,
    clock: Clock,
    random: Random,
    actions: VecDeque<Action>,
    wake: Option<BootTime>,

    session: Option<Session>,
    /// A coordinator said that this node is removed, and none has welcomed it since.
    removed: bool,
    voice: Voice,
    /// None until the shell has first told.
    underlay: Option<Vec<IpAddr>>,
    own_tunnel: own_tunnel::OwnTunnel,

    paths: BTreeMap<NodeId, Path>,
    by_key: BTreeMap<PublicKey, NodeId>,
    by_address: BTreeMap<IpAddr, NodeId>,
    heard: Heard,
    early: BTreeMap<NodeId, SignedPresence>,
    online: BTreeSet<NodeId>,
    pace: Pace,
    pings: BTreeMap<u64, probing::Ping>,

    link: Option<DesiredLink>,
    actual: Option<ActualDevice>,
    operation: VecDeque<device::Operation>,
    look: device::Look,
    upkeep: upkeep::Upkeep,
    warnings: BTreeSet<Warning>,
}

/// The session that is open, from its opening on.
#[derive(Default)]
struct Session {
    /// From the welcome on.
    welcomed: Option<(Incoming, SessionStatus)>,
}

impl Node {
    /// Begins a life of the node. The first actions tell the shell to make the interface and read the device.
    pub fn new(setup: Setup, cache: Cache, now: Now) -> Self {
        let own_tunnel = own_tunnel::OwnTunnel::new(&setup, &cache);
        let mut node = Self {
            clock: Clock::restore(cache.clock, now),
            random: Random::new(setup.seed),
            voice: Voice::new(cache.incarnation, now.boot),
            pace: Pace::new(now.boot),
            setup,
            cache,
            actions: VecDeque::new(),
            wake: None,
            session: None,
            removed: false,
            underlay: None,
            own_tunnel,
            paths: BTreeMap::new(),
            by_key: BTreeMap::new(),
            by_address: BTreeMap::new(),
            heard: Heard::default(),
            early: BTreeMap::new(),
            online: BTreeSet::new(),
            pings: BTreeMap::new(),
            link: None,
            actual: None,
            operation: VecDeque::new(),
            look: device::Look::default(),
            upkeep: upkeep::Upkeep::default(),
            warnings: BTreeSet::new(),
        };
        node.remember(Record::Incarnation(node.voice.incarnation()));
        node.index_peers(now.boot);
        node.finish(now);
        node
    }

    /// What to say first on a new session.
    pub fn hello(&self) -> Hello {
        Hello {
            mesh: self.cache.mesh,
            epoch: self.cache.netmap.as_ref().map(|n| n.epoch),
            revision: self.cache.netmap.as_ref().map_or(Revision::NONE, |n| n.revision),
            level: Level::SUPPORTED,
            instance: self.setup.instance,
            software: self.setup.software.clone(),
            presence: self.heard.digest(self.voice.last_word().map(|word| (self.setup.record.id, word))),
        }
    }

    /// Takes what became of the session.
    pub fn handle_session(&mut self, event: SessionEvent, now: Now) {
        self.session = match event {
            SessionEvent::Opened => Some(Session::default()),
            SessionEvent::Closed => None,
        };
        self.finish(now);
    }

    /// Takes a message of the session's coordinator.
    pub fn handle_message(&mut self, message: CoordinatorMessage, now: Now) {
        self.take_message(message, now);
        self.finish(now);
    }

    /// Takes the addresses of the host's own interfaces, all of them, whenever they may have changed. Loopback,
    /// link-local and overlay addresses may be among them and are left out.
    pub fn handle_underlay(&mut self, addresses: Vec<IpAddr>, now: Now) {
        self.take_underlay(addresses, now);
        self.finish(now);
    }

    /// Takes the ranges that the host routes into our own interface or into a link that the mesh carries, all of them,
    /// whenever they may have changed; before [`Node::handle_underlay`], so that nothing inside is ever offered.
    pub fn handle_carried(&mut self, ranges: BTreeSet<AllowedIp>, now: Now) {
        self.take_carried(ranges);
        self.finish(now);
    }

    /// Takes the answer to [`Action::CountDropped`]: a count that begins anew with each of the host's filters.
    pub fn handle_dropped(&mut self, count: u64, now: Now) {
        self.take_dropped(count, now.boot);
        self.finish(now);
    }

    /// Takes the answer to [`Action::Read`]; a device that was not asked for is taken as well.
    pub fn handle_device(&mut self, actual: ActualDevice, now: Now) {
        self.take_device(actual, now);
        self.finish(now);
    }

    /// Takes the news that an [`Action::Apply`] was done.
    pub fn handle_applied(&mut self, now: Now) {
        self.take_applied(now);
        self.finish(now);
    }

    /// Takes the news that an [`Action::Read`] or [`Action::Apply`] failed; it is tried again after a while.
    pub fn handle_device_failed(&mut self, now: Now) {
        self.take_device_failed(now);
        self.finish(now);
    }

    /// Takes a datagram that came to the probe port through the tunnel. Peers send these as they like, so that only the
    /// path to the sender is looked at: a probe may settle it, which leaves less to do and never makes anything due.
    pub fn handle_probe(&mut self, from: IpAddr, bytes: &[u8], now: Now) {
        self.take_probe(from, bytes, now);
    }

    /// Probes a peer once, at one of its overlay addresses; the returned token comes back in [`Action::Pong`] within two
    /// seconds.
    pub fn handle_ping(&mut self, peer: NodeId, address: IpAddr, now: Now) -> Result<u64, PingError> {
        let token = self.begin_ping(peer, address, now);
        self.finish(now);
        token
    }

    /// Takes the interface down or up again, and remembers it.
    pub fn handle_intent(&mut self, intent: Intent, now: Now) {
        if self.cache.intent != intent {
            self.remember(Record::Intent(intent));
            self.announce();
        }
        self.finish(now);
    }

    /// Takes the validity of a new certificate.
    pub fn handle_certificate(&mut self, validity: Validity, now: Now) {
        self.setup.certificate = Some(validity);
        self.finish(now);
    }

    /// Takes the news that this life ends: what is stored now and then is stored now.
    pub fn handle_stop(&mut self, now: Now) {
        self.remember_clock(now);
    }

    /// Does what is due. Harmless when nothing is.
    pub fn handle_timeout(&mut self, now: Now) {
        self.finish(now);
    }

    /// When `handle_timeout` is next needed, if nothing else happens before.
    pub fn poll_timeout(&self) -> Option<BootTime> {
        self.wake
    }

    /// The next thing to do.
    pub fn poll_action(&mut self) -> Option<Action> {
        self.actions.pop_front()
    }

    /// The peer with this name, overlay address or id.
    pub fn find_peer(&self, text: &str) -> Option<&NodeRecord> {
        self.peers().find(|n| {
            n.name.as_str().eq_ignore_ascii_case(text)
                || n.id.to_string() == text
                || text.parse().is_ok_and(|ip: IpAddr| n.addresses.iter().any(|a| a == ip))
        })
    }

    /// All that the node remembers, for compacting the journal.
    pub fn cache(&self) -> &Cache {
        &self.cache
    }

    /// The settings held: ranges, authorities, coordinators.
    pub fn config(&self) -> &MeshConfig {
        self.cache.netmap.as_ref().map_or(&self.setup.config, |n| &n.config)
    }

    /// Mesh time, also for judging certificates.
    pub fn mesh_time(&self, now: Now) -> MeshTime {
        self.clock.now(now)
    }

    /// Whether there is a session and its coordinator has welcomed this node.
    pub fn has_session(&self) -> bool {
        self.session.as_ref().is_some_and(|session| session.welcomed.is_some())
    }

    /// Whether a coordinator did not know this node when last asked, and none did since.
    pub fn is_forgotten(&self) -> bool {
        self.warnings.contains(&Warning::Forgotten)
    }

    /// The picture for people.
    pub fn status(&self, now: Now) -> Status {
        self.picture(now)
    }

    /// After every input: make the link right, decide about paths, change the device, say what is to be said.
    fn finish(&mut self, now: Now) {
        self.decide_link(now);
        self.speak(now);
        self.step_paths(now);
        self.reconcile(now);
        self.send_due_probes(now);
        self.count_dropped_if_due(now);
        self.look_if_due(now);
        self.keep_up(now);
        self.wake = self.next_wake(now);
    }

    /// Changes what the node remembers, and the journal with it.
    fn remember(&mut self, record: Record) {
        self.cache.apply(&record);
        self.actions.push_back(Action::Persist(record));
    }
}
