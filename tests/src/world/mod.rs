//! A whole mesh in one thread and one seed: real cores of coordinators and nodes over a simulated network and clock.
//!
//! What is real: registry, presence, sessions, netmap, journal, reconcile, path selection, probes. What is modelled:
//! consensus ([`cluster`]), WireGuard ([`wireguard`]), streams and packets (here). One seed gives one history; nothing
//! reads a clock or another source of chance.
//!
//! Contracts are checked where they could break first: when a node stores, when it applies, when it hears a revision;
//! and all of them at the end, after everything has healed ([`checks`]).

pub mod checks;
pub mod cluster;
pub mod host;
pub mod network;
pub mod rng;
pub mod scenario;
pub mod wireguard;

use cluster::{Cluster, coordinator_now};
use host::{Keys, Machine};
use mesh_coordinator_core::command::{Command, Join, RenewKey};
use mesh_coordinator_core::hub::{HubAction, SessionId};
use mesh_coordinator_core::reply::Reply;
use mesh_node_core::{Action, DesiredLink, SessionEvent, Validity, Warning};
use mesh_types::{CoordinatorId, CoordinatorMessage, ExchangeMessage, MeshDuration, MeshTime, NodeMessage, Overlay};
use network::{Host, Network, datagram_delay};
use rng::Rng;
use std::collections::{BTreeMap, VecDeque};
use std::net::IpAddr;
use wireguard::{Datagram, Device};

/// The world begins on 2026-01-01.
const BEGINNING: MeshTime = MeshTime(1_767_225_600_000);
/// Between two looks at everything that has no timer of its own.
const STEP: u64 = 50;
/// After how long both ends of a stream notice that nothing comes through.
const STREAM_TIMEOUT: u64 = 5_000;
/// How long a host may send from the wrong address after its primary one was replaced.
const WRONG_SOURCE: u64 = 400;
/// Lines of history shown when a check fails.
const HISTORY: usize = 60;

/// The right time, `millis` after the beginning.
pub fn mesh_time(millis: u64) -> MeshTime {
    BEGINNING + MeshDuration(millis)
}

/// Everything.
pub struct World {
    /// Chance.
    pub rng: Rng,
    /// The underlay.
    pub network: Network,
    /// The coordinators.
    pub cluster: Cluster,
    /// The machines, in the order of joining.
    pub machines: Vec<Machine>,
    now: u64,
    queue: BTreeMap<(u64, u64), Event>,
    sequence: u64,
    sessions: BTreeMap<SessionId, Stream>,
    exchanges: BTreeMap<(CoordinatorId, CoordinatorId), u64>,
    history: VecDeque<String>,
    seed: u64,
}

/// A node's stream to a coordinator.
struct Stream {
    machine: usize,
    coordinator: CoordinatorId,
    /// Since when nothing comes through.
    silent_since: Option<u64>,
}

enum Event {
    Timer(usize),
    Datagram { from: Host, datagram: Datagram },
    Connect(usize),
    Opened { machine: usize, session: SessionId },
    ToNode { session: SessionId, message: Box<CoordinatorMessage> },
    ToCoordinator { session: SessionId, message: NodeMessage },
    EndOfStream { session: SessionId },
    Exchange { from: CoordinatorId, to: CoordinatorId, message: ExchangeMessage },
}

impl World {
    /// A mesh with coordinators and no nodes.
    pub fn new(seed: u64, coordinators: u64) -> Self {
        let mut world = Self {
            rng: Rng::new(seed),
            network: Network::default(),
            cluster: Cluster::found(coordinators, coordinator_now(0)),
            machines: Vec::new(),
            now: 0,
            queue: BTreeMap::new(),
            sequence: 0,
            sessions: BTreeMap::new(),
            exchanges: BTreeMap::new(),
            history: VecDeque::new(),
            seed,
        };
        for id in 1..=coordinators {
            world.network.move_host(Host::Coordinator(id));
        }
        world
    }

    /// Milliseconds since the beginning.
    pub fn now(&self) -> u64 {
        self.now
    }

    /// Notes what happens, for when a check fails.
    pub fn note(&mut self, what: impl std::fmt::Display) {
        if self.history.len() == HISTORY {
            self.history.pop_front();
        }
        self.history.push_back(format!("{:>9} ms  {what}", self.now));
    }

    /// Fails unless `holds`, with the seed, the way to replay it and what happened last.
    #[track_caller]
    pub fn check(&self, holds: bool, what: impl FnOnce() -> String) {
        if !holds {
            let history: Vec<&str> = self.history.iter().map(String::as_str).collect();
            panic!(
                "{}\n  seed {}, at {} ms; replay: MESH_WORLD_SEED={} cargo test -p mesh-tests --test world\n{}",
                what(),
                self.seed,
                self.now,
                self.seed,
                history.join("\n")
            );
        }
    }

    /// Lets a new machine join through a coordinator; `None` if it gets no quorum.
    pub fn join(&mut self) -> Option<usize> {
        let keys = Keys::make(self.machines.len(), &mut self.rng);
        let at = self.rng.pick(&self.cluster.ids())?;
        let join = Command::Join(Join {
            token: cluster::TOKEN,
            secret_hash: cluster::secret_hash(),
            node: keys.node,
            public_key: keys.public_key,
            identity_key: keys.identity_key(),
            name: keys.name.clone(),
        });
        let Reply::Node(record) = self.cluster.propose(at, join, &self.network, mesh_time(self.now))? else {
            panic!("the world's token lets everybody join");
        };
        let machine = self.machines.len();
        let host = Host::Node(machine);
        self.network.move_host(host);
        let config = self.cluster.truth.config().expect("founded").clone();
        let kernel = self.rng.chance(50);
        self.note(format_args!(
            "node {machine} joins as {} ({})",
            record.name,
            if kernel { "kernel" } else { "userspace" }
        ));
        self.machines.push(Machine::new(host, keys, record, config, kernel));
        self.start(machine);
        Some(machine)
    }

    /// Starts a second daemon, on another host, on a copy of a machine's state directory.
    pub fn copy(&mut self, original: usize) -> usize {
        let machine = self.machines.len();
        let host = Host::Node(machine);
        self.network.move_host(host);
        let copy = self.machines[original].copy(host);
        self.note(format_args!("node {machine} starts as a copy of node {original}"));
        self.machines.push(copy);
        self.start(machine);
        machine
    }

    /// Starts a machine's daemon.
    pub fn start(&mut self, machine: usize) {
        let now = self.now;
        self.machines[machine].start(&mut self.rng, now);
        self.tell_addresses(machine);
        self.schedule(0, Event::Connect(machine));
    }

    /// Moves a machine to another address.
    pub fn roam(&mut self, machine: usize) -> IpAddr {
        let address = self.network.move_host(Host::Node(machine));
        // Without drawing from chance, so that a seed keeps its history.
        if (self.now / STEP).is_multiple_of(3) {
            self.note(format_args!("node {machine} sends from its overlay address for a moment"));
            self.machines[machine].wrong_source_until = self.now + WRONG_SOURCE;
        }
        // A stream dies with the address that it came from; the daemon sees that and dials again at once.
        if let Some((session, _)) = self.machines[machine].session.take() {
            self.with_node(machine, |node, now| node.handle_session(SessionEvent::Closed, now));
            self.sessions.remove(&session);
            self.schedule(STREAM_TIMEOUT, Event::EndOfStream { session });
            self.schedule(0, Event::Connect(machine));
        }
        self.tell_addresses(machine);
        address
    }

    /// Lets `millis` pass.
    pub fn run(&mut self, millis: u64) {
        let end = self.now + millis;
        while self.now < end {
            let step_end = (self.now + STEP).min(end);
            while let Some((&(at, _), _)) = self.queue.first_key_value().filter(|(key, _)| key.0 <= step_end) {
                self.now = self.now.max(at);
                if let Some((_, event)) = self.queue.pop_first() {
                    self.handle(event);
                }
            }
            self.now = step_end;
            self.step();
        }
    }

    fn schedule(&mut self, delay: u64, event: Event) {
        self.sequence += 1;
        self.queue.insert((self.now + delay, self.sequence), event);
    }

    /// What happens all the time: consensus, hubs' ticks, streams between coordinators, WireGuard's retries.
    fn step(&mut self) {
        let now = coordinator_now(self.now);
        self.cluster.advance(&self.network, now);
        self.cluster.tick(now);
        self.watch_exchanges();
        self.watch_streams();
        self.carry_out_hub_actions();
        if self.now.is_multiple_of(1_000) {
            self.check_deadlines();
            for machine in 0..self.machines.len() {
                let own = self.network.address(Host::Node(machine)).expect("every machine has one");
                let (rng, now) = (&mut self.rng, self.now);
                let datagrams = self.machines[machine].device.tick(own, || rng.draw(), now);
                self.transmit(machine, datagrams);
            }
        }
    }

    fn handle(&mut self, event: Event) {
        match event {
            Event::Timer(machine) => self.handle_timer(machine),
            Event::Datagram { from, datagram } => self.deliver(from, datagram),
            Event::Connect(machine) => self.connect(machine),
            Event::Opened { machine, session } => self.opened(machine, session),
            Event::ToNode { session, message } => self.hear_coordinator(session, *message),
            Event::ToCoordinator { session, message } => self.hear_node(session, message),
            Event::EndOfStream { session } => self.end_at_coordinators(session),
            Event::Exchange { from, to, message } => {
                let now = coordinator_now(self.now);
                if let Some(replica) = self.cluster.running(to) {
                    replica.hub.handle_exchange(from, message, &replica.registry, now);
                }
            }
        }
        self.carry_out_hub_actions();
    }

    fn handle_timer(&mut self, machine: usize) {
        let due = |at| at <= self.machines[machine].now(self.now).boot;
        if self.machines[machine].node.as_ref().and_then(mesh_node_core::Node::poll_timeout).is_some_and(due) {
            self.with_node(machine, |node, now| node.handle_timeout(now));
        }
    }

    /// Feeds a node and carries out what it asks for.
    pub fn with_node(&mut self, machine: usize, feed: impl FnOnce(&mut mesh_node_core::Node, mesh_node_core::Now)) {
        let now = self.machines[machine].now(self.now);
        let Some(node) = &mut self.machines[machine].node else { return };
        feed(node, now);
        while let Some(action) = self.machines[machine].node.as_mut().and_then(mesh_node_core::Node::poll_action) {
            self.carry_out(machine, action);
        }
        self.check_revision(machine);
        self.check_own_tunnel(machine);
        let Some(at) = self.machines[machine].node.as_ref().and_then(mesh_node_core::Node::poll_timeout) else {
            return;
        };
        let micros = at.since(now.boot).as_micros();
        self.schedule(
            u64::try_from(micros.div_ceil(1_000)).unwrap_or(u64::MAX / 2).min(86_400_000),
            Event::Timer(machine),
        );
    }

    fn carry_out(&mut self, machine: usize, action: Action) {
        let now = self.machines[machine].now(self.now);
        match action {
            Action::Persist(record) => self.machines[machine].persist(&record),
            Action::Link(DesiredLink::Up(_)) => {}
            Action::Link(DesiredLink::Down) if self.machines[machine].kernel => {
                self.machines[machine].device = Device::default();
            }
            Action::Link(DesiredLink::Down) => self.machines[machine].device.restart(),
            Action::Read => {
                let actual = self.machines[machine].device.read(mesh_time);
                self.machines[machine].looked = true;
                if let Some(node) = &mut self.machines[machine].node {
                    node.handle_device(actual, now);
                }
            }
            Action::Apply(update) => {
                self.check_update(machine, &update);
                let key = self.machines[machine].record.public_key;
                self.machines[machine].device.apply(&update, |_| key);
                if let Some(node) = &mut self.machines[machine].node {
                    node.handle_applied(now);
                }
            }
            Action::CountDropped => {
                let dropped = self.machines[machine].dropped;
                if let Some(node) = &mut self.machines[machine].node {
                    node.handle_dropped(dropped, now);
                }
            }
            Action::SendProbe { to, bytes } => self.send_overlay(machine, to, bytes.to_vec()),
            Action::Say(message) => self.say(machine, message),
            Action::EndSession(reason) => {
                if !self.machines[machine].removed {
                    self.note(format_args!("node {machine} ends its session: {reason:?}"));
                }
                self.drop_session(machine);
            }
            Action::LookElsewhere => self.look_elsewhere(machine),
            Action::RenewKey => {
                let renew = Command::RenewKey(RenewKey { node: self.machines[machine].record.id });
                if let Some((_, coordinator)) = self.machines[machine].session {
                    self.cluster.propose(coordinator, renew, &self.network, mesh_time(self.now));
                }
            }
            Action::RenewCertificate => {
                let not_before = mesh_time(self.now);
                let not_after = not_before + MeshDuration::from_secs(365 * 86_400);
                if let Some(node) = &mut self.machines[machine].node {
                    node.handle_certificate(Validity { not_before, not_after }, now);
                }
            }
            Action::Pong(pong) => {
                let answered = self.machines[machine].pongs.entry(pong.peer).or_default();
                *answered |= pong.latency.is_some();
            }
            Action::Removed => {
                self.note(format_args!("node {machine} learns that it was removed"));
                self.machines[machine].removed = true;
            }
            Action::Warn(Warning::Stale) => {}
            Action::Warn(warning) => self.note(format_args!("node {machine} warns: {warning:?}")),
        }
    }

    fn overlay(&self) -> Overlay {
        self.cluster.truth.config().expect("founded").overlay
    }

    fn tell_addresses(&mut self, machine: usize) {
        let addresses: Vec<IpAddr> = self.network.address(Host::Node(machine)).into_iter().collect();
        self.with_node(machine, |node, now| node.handle_underlay(addresses, now));
    }

    fn send_overlay(&mut self, machine: usize, to: IpAddr, payload: Vec<u8>) {
        let own = self.network.address(Host::Node(machine)).expect("every machine has one");
        let addresses = self.machines[machine].record.addresses;
        let from = if to.is_ipv4() { IpAddr::V4(addresses.v4) } else { IpAddr::V6(addresses.v6) };
        let (fresh, now) = (self.rng.draw(), self.now);
        let datagrams = self.machines[machine].device.send(own, (from, to), payload, fresh, now);
        self.transmit(machine, datagrams);
    }

    fn transmit(&mut self, machine: usize, datagrams: Vec<Datagram>) {
        let overlay = self.overlay();
        let wrong = self.now < self.machines[machine].wrong_source_until;
        for mut datagram in datagrams {
            if overlay.contains(datagram.target.ip()) {
                // The drop rule of the host counts it.
                self.machines[machine].dropped += 1;
                continue;
            }
            if wrong {
                let own = self.machines[machine].record.addresses.v4;
                datagram.source.set_ip(own.into());
            }
            let delay = datagram_delay(&mut self.rng);
            self.schedule(delay, Event::Datagram { from: Host::Node(machine), datagram });
        }
    }

    fn deliver(&mut self, from: Host, datagram: Datagram) {
        let Some(to @ Host::Node(machine)) = self.network.holder(datagram.target.ip()) else { return };
        if !self.network.reaches(from, to) || self.machines[machine].device.port() != datagram.target.port() {
            return;
        }
        let (own, now) = (datagram.target.ip(), self.now);
        let (answers, packet) = self.machines[machine].device.receive(own, datagram, now);
        self.transmit(machine, answers);
        if let Some((source, payload)) = packet {
            self.with_node(machine, |node, now| node.handle_probe(source, &payload, now));
        }
    }

    fn connect(&mut self, machine: usize) {
        if self.machines[machine].node.is_none() || self.machines[machine].session.is_some() {
            return;
        }
        let ids = self.cluster.ids();
        let choice = self.rng.pick(&ids).expect("there are coordinators");
        let reaches = self.network.reaches(Host::Node(machine), Host::Coordinator(choice.0));
        if !reaches || self.cluster.running(choice).is_none() {
            let again = 100 + self.rng.below(900);
            self.schedule(again, Event::Connect(machine));
            return;
        }
        let session = SessionId(self.rng.draw());
        self.sessions.insert(session, Stream { machine, coordinator: choice, silent_since: None });
        self.machines[machine].session = Some((session, choice));
        self.schedule(5, Event::Opened { machine, session });
    }

    fn opened(&mut self, machine: usize, session: SessionId) {
        let Some(Stream { coordinator, .. }) = self.sessions.get(&session) else { return };
        let (coordinator, id) = (*coordinator, self.machines[machine].record.id);
        let now = coordinator_now(self.now);
        if let Some(replica) = self.cluster.running(coordinator) {
            replica.hub.handle_opened(session, id, now);
        }
        let Some(node) = &self.machines[machine].node else { return };
        let hello = node.hello();
        self.schedule(5, Event::ToCoordinator { session, message: NodeMessage::Hello(hello) });
        self.with_node(machine, |node, now| node.handle_session(SessionEvent::Opened, now));
    }

    fn say(&mut self, machine: usize, message: NodeMessage) {
        if let Some((session, _)) = self.machines[machine].session {
            self.schedule(5, Event::ToCoordinator { session, message });
        }
    }

    fn hear_node(&mut self, session: SessionId, message: NodeMessage) {
        let Some(stream) = self.sessions.get(&session).filter(|stream| stream.silent_since.is_none()) else { return };
        let (coordinator, now) = (stream.coordinator, coordinator_now(self.now));
        if let Some(replica) = self.cluster.running(coordinator) {
            replica.hub.handle_message(session, message, &replica.registry, now);
        }
    }

    fn hear_coordinator(&mut self, session: SessionId, message: CoordinatorMessage) {
        let Some(stream) = self.sessions.get(&session).filter(|stream| stream.silent_since.is_none()) else { return };
        let machine = stream.machine;
        if let CoordinatorMessage::Presence(update) = &message {
            self.machines[machine].records_heard += update.records.len();
        }
        let closing = matches!(message, CoordinatorMessage::Close(_));
        self.with_node(machine, |node, now| node.handle_message(message, now));
        if closing && self.machines[machine].session.is_some_and(|(held, _)| held == session) {
            self.drop_session(machine);
        }
    }

    /// The session is given up only for a coordinator that is fresh and can be reached.
    fn look_elsewhere(&mut self, machine: usize) {
        let fresh = |world: &mut Self, id: CoordinatorId| {
            world.network.reaches(Host::Node(machine), Host::Coordinator(id.0))
                && world.cluster.running(id).is_some_and(|replica| replica.hub.health().fresh)
        };
        if self.cluster.ids().into_iter().any(|id| fresh(self, id)) {
            self.drop_session(machine);
        }
    }

    /// The node's end lets go; the coordinator's end learns it a little later.
    fn drop_session(&mut self, machine: usize) {
        let Some((session, _)) = self.machines[machine].session.take() else { return };
        let now = self.machines[machine].now(self.now);
        if let Some(node) = &mut self.machines[machine].node {
            node.handle_session(SessionEvent::Closed, now);
        }
        self.sessions.remove(&session);
        self.schedule(10, Event::EndOfStream { session });
        let again = match &self.machines[machine] {
            // One that was told that it is out asks again seldom: only `node allow` would change the answer.
            told if told.removed => 20_000,
            told if told.is_refused(self.now) => 1_000,
            _ => 50,
        };
        let again = again + self.rng.below(200);
        self.schedule(again, Event::Connect(machine));
    }

    fn end_at_coordinators(&mut self, session: SessionId) {
        let now = coordinator_now(self.now);
        for id in self.cluster.ids() {
            if let Some(replica) = self.cluster.running(id) {
                replica.hub.handle_closed(session, now);
            }
        }
    }

    /// Streams through which nothing comes die at both ends after a while; those of a dead daemon or coordinator too.
    fn watch_streams(&mut self) {
        let mut dead = Vec::new();
        for (session, stream) in &mut self.sessions {
            let machine = &self.machines[stream.machine];
            let alive = machine.node.is_some()
                && machine.session.is_some_and(|(held, _)| held == *session)
                && self.cluster.running(stream.coordinator).is_some()
                && self.network.reaches(machine.host, Host::Coordinator(stream.coordinator.0));
            let since = stream.silent_since.get_or_insert(self.now);
            if alive {
                stream.silent_since = None;
            } else if self.now - *since >= STREAM_TIMEOUT {
                dead.push(*session);
            }
        }
        for session in dead {
            let Some(stream) = self.sessions.remove(&session) else { continue };
            self.end_at_coordinators(session);
            if self.machines[stream.machine].session.is_some_and(|(held, _)| held == session) {
                self.machines[stream.machine].session = None;
                self.with_node(stream.machine, |node, now| node.handle_session(SessionEvent::Closed, now));
                self.schedule(0, Event::Connect(stream.machine));
            }
        }
    }

    /// Coordinators that reach each other keep a stream open.
    fn watch_exchanges(&mut self) {
        let ids = self.cluster.ids();
        let now = coordinator_now(self.now);
        for (a, b) in ids.iter().flat_map(|a| ids.iter().map(move |b| (*a, *b))).filter(|(a, b)| a < b) {
            let reaches = self.network.reaches(Host::Coordinator(a.0), Host::Coordinator(b.0));
            let up = reaches && self.cluster.running(a).is_some() && self.cluster.running(b).is_some();
            let open = self.exchanges.contains_key(&(a, b));
            if up == open {
                continue;
            }
            if up {
                self.exchanges.insert((a, b), self.now);
            } else {
                self.exchanges.remove(&(a, b));
            }
            for (end, other) in [(a, b), (b, a)] {
                let Some(replica) = self.cluster.running(end) else { continue };
                if up {
                    replica.hub.handle_exchange_opened(other, now);
                } else {
                    replica.hub.handle_exchange_closed(other, now);
                }
            }
        }
    }

    fn carry_out_hub_actions(&mut self) {
        for (id, action) in self.cluster.actions() {
            match action {
                HubAction::Send { sessions, message } => {
                    for session in sessions {
                        self.schedule(5, Event::ToNode { session, message: Box::new(message.clone()) });
                    }
                }
                HubAction::Close { session, reason } => {
                    let message = Box::new(CoordinatorMessage::Close(reason));
                    self.schedule(5, Event::ToNode { session, message });
                }
                HubAction::Exchange { to, message } => {
                    for to in to {
                        if self.exchanges.contains_key(&(id.min(to), id.max(to))) {
                            self.schedule(5, Event::Exchange { from: id, to, message: message.clone() });
                        }
                    }
                }
            }
        }
    }
}
