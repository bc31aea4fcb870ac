//! The engine's threads in many orders, tried by a model checker: the control thread, what workers do both ways, and
//! changes of configuration, against a peer that answers. Sockets are real, on the loopback interface, where what was
//! sent is there at once; who waits for one looks again and again. No time passes that would repeat what got lost.
//!
//! A run that fails prints its schedule; `shuttle::replay(scenario, "…")` in place of [`explore`] runs it again.

use super::clock;
use super::control::Control;
use super::inbound::Inbound;
use super::inbox::{Identity, Inbox, KNOCKS_AT_ONCE, Knock};
use super::indices::Indexed;
use super::outbound::Outbound;
use super::shared::{Cell, Shared, Tables};
use super::sync::atomic::Ordering;
use super::worker::Worker;
use crate::tun::{Queue, Tun};
use crate::udp::{Endpoint, Socket};
use mesh_types::PrivateKey;
use mesh_wireguard_core::keys::{DATA_HEADER, KeyPair, TAG};
use mesh_wireguard_core::message::{DataHeader, Initiation, MessageKind, Response, classify};
use mesh_wireguard_core::peer::{Action, Fresh, Incoming, Outgoing};
use mesh_wireguard_core::tai64n::Tai64n;
use mesh_wireguard_core::{LocalIdentity, Peer};
use nix::poll::PollTimeout;
use shuttle::scheduler::{PctScheduler, RandomScheduler};
use shuttle::thread;
use shuttle::{Config, MaxSteps, Runner};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io::Write as _;
use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::time::Duration;

/// Where far's packets go.
const FAR: [u8; 4] = [10, 0, 0, 2];

/// Tries a scenario in orders that are random, and in orders with few but unlikely changes of thread.
pub(super) fn explore(times: usize, scenario: fn()) {
    let mut config = Config::new();
    config.stack_size = 1 << 20;
    // Far more than any needs that ends.
    config.max_steps = MaxSteps::FailAfter(50_000);
    Runner::new(RandomScheduler::new(times), config.clone()).run(scenario);
    Runner::new(PctScheduler::new(3, times), config).run(scenario);
}

#[test]
fn who_leaves_something_in_the_inbox_wakes_who_takes_it() {
    const EACH: usize = KNOCKS_AT_ONCE / 2 + 5;
    explore(300, || {
        let inbox = Arc::new(Inbox::new().unwrap());
        let local = Arc::new(LocalIdentity::new(&PrivateKey::from_bytes([1; 32])));
        let mut tables = Tables::default();
        await_answer(&mut tables, &local);
        let endpoint = Endpoint { remote: SocketAddr::from(([192, 0, 2, 1], 1)), source: None };
        let cookie = Knock::judge(&COOKIE, endpoint, &Identity::default(), &tables, clock::now()).unwrap();
        let senders: Vec<_> = (0..2)
            .map(|n| {
                let inbox = inbox.clone();
                thread::spawn(move || {
                    // First, since it wakes whatever waits already.
                    inbox.attend(n);
                    for _ in 0..EACH {
                        inbox.knock(cookie);
                    }
                })
            })
            .collect();
        let (mut knocks, mut attention, mut taken) = (VecDeque::new(), Vec::new(), 0);
        while taken < 2 * EACH || attention.len() < 2 {
            let waiting = inbox.take(&mut knocks, &mut attention);
            taken += knocks.drain(..).count();
            if !waiting.more && (taken < 2 * EACH || attention.len() < 2) {
                inbox.waker.wait(None, PollTimeout::NONE).unwrap();
            }
        }
        senders.into_iter().for_each(|sender| sender.join().unwrap());
    });
}

#[test]
fn every_packet_that_waits_for_a_session_is_sent_once() {
    explore(150, || {
        let (near, mut far) = both();
        let senders = [near.sends(1..4), near.sends(4..7)];
        let arrived = far.hears(6);
        senders.into_iter().for_each(|sender| sender.join().unwrap());
        near.end();
        assert_eq!(arrived, (1..7).collect());
    });
}

#[test]
fn handshakes_that_cross_lose_no_packet() {
    explore(150, || {
        let (near, mut far) = both();
        let senders = [near.sends(1..4)];
        far.initiates();
        let arrived = far.hears(3);
        senders.into_iter().for_each(|sender| sender.join().unwrap());
        near.end();
        assert_eq!(arrived, (1..4).collect());
    });
}

#[test]
fn no_index_leads_to_a_peer_that_was_taken_away() {
    explore(200, || {
        let (near, mut far) = both();
        let senders = [near.sends(1..4)];
        let changes = {
            let (shared, near_key) = (near.shared.clone(), near.local.clone());
            let (key, endpoint) = (far.local.public_key(), far.endpoint());
            thread::spawn(move || {
                shared.tables_mut().remove(&key);
                let cell = add(&shared, &near_key, &far_identity(), endpoint);
                shared.tables_mut().clear();
                drop(cell);
                add(&shared, &near_key, &far_identity(), endpoint);
            })
        };
        far.initiates();
        for _ in 0..20 {
            far.turn();
            thread::yield_now();
        }
        changes.join().unwrap();
        senders.into_iter().for_each(|sender| sender.join().unwrap());
        let shared = near.shared.clone();
        near.end();
        let tables = shared.tables();
        assert_eq!(tables.peers.len(), 1);
        for (index, indexed) in tables.indices.iter() {
            let cell = tables.peers.get(&indexed.cell.id);
            assert!(cell.is_some_and(|cell| Arc::ptr_eq(cell, &indexed.cell)), "{index} leads to a peer that is gone");
            assert!(indexed.cell.lock().core.indices().any(|held| held == index), "{index} leads to no session");
        }
    });
}

#[test]
fn a_deadline_that_the_machine_slept_through_is_told_by_the_next_packet() {
    explore(1, || {
        let local = Arc::new(LocalIdentity::new(&PrivateKey::from_bytes([1; 32])));
        let core = Peer::new(&local, far_identity().public_key(), None, None);
        let cell = Tables::default().insert(core, far_identity().public_key());
        let mut state = cell.lock();
        let now = clock::now();
        state.core.send(1, 48, now);
        assert!(state.sooner(now));
        while state.core.poll(now).is_some() {}
        let next = state.schedule(now).expect("the handshake is tried again");
        // The thread that waits for it sleeps by a clock that stood still meanwhile.
        let later = next + Duration::from_secs(3_600);
        state.core.send(1, 48, later);
        assert!(state.sooner(later));
        assert!(!state.sooner(later), "once");
    });
}

#[test]
fn a_side_that_always_has_something_does_not_keep_the_other_waiting() {
    explore(1, || {
        let shared = Arc::new(Shared::new(Tun::absent(), 1).unwrap());
        shared.set_sockets(Socket::bind_group(1, 0, 0, &shared.barred).unwrap());
        let local = Arc::new(LocalIdentity::new(&PrivateKey::from_bytes([1; 32])));
        let port = shared.socket(0).unwrap().port().unwrap();
        let network = UdpSocket::bind("127.0.0.1:0").unwrap();
        let remote = network.local_addr().unwrap();
        let cell = add(&shared, &local, &far_identity(), Endpoint { remote, source: None });
        let (queue, mut host) = Queue::piped();
        await_answer(&mut shared.tables_mut(), &local);
        let mut worker = Worker::new(0, shared.clone(), queue);
        for number in 0..100 {
            host.write_all(&raw(number)).unwrap();
            network.send_to(&COOKIE, ("127.0.0.1", port)).unwrap();
        }
        // Packets of the host wait for a session, and messages for the control thread, which there is none of.
        let (mut knocks, mut attention, mut rounds) = (VecDeque::new(), Vec::new(), 0);
        let (mut from_host, mut from_network) = (0, 0);
        while from_host < 100 || from_network < 100 {
            assert!(worker.round().unwrap(), "{from_host} and {from_network} of 100 were taken");
            let waiting = cell.lock().staged.len();
            assert!(waiting > from_host || from_host == 100, "round {rounds} takes nothing of the host's");
            from_host = waiting;
            shared.inbox.take(&mut knocks, &mut attention);
            let taken = knocks.drain(..).count();
            assert!(taken > 0 || from_network == 100, "round {rounds} takes nothing of the network's");
            from_network += taken;
            rounds += 1;
        }
        assert!(rounds > 1, "both had more than a round takes");
    });
}

/// A cookie reply to the handshake with index 0.
const COOKIE: [u8; 64] = {
    let mut message = [0; 64];
    message[0] = 3;
    message
};

/// Has a handshake with index 0 wait for its answer.
fn await_answer(tables: &mut Tables, local: &Arc<LocalIdentity>) {
    let key = LocalIdentity::new(&PrivateKey::from_bytes([3; 32])).public_key();
    let cell = tables.insert(Peer::new(local, key, None, None), key);
    tables.indices.insert(0, Indexed { cell, keys: None });
}

/// An engine without an interface: its control thread, and a worker's way in.
pub(super) struct Near {
    pub(super) shared: Arc<Shared>,
    local: Arc<LocalIdentity>,
    threads: [thread::JoinHandle<()>; 2],
}

/// The peer: an engine of its own in one turn.
pub(super) struct Far {
    pub(super) peer: Peer,
    local: Arc<LocalIdentity>,
    pub(super) socket: UdpSocket,
    /// What came, as it came.
    pub(super) heard: Vec<Vec<u8>>,
    sessions: BTreeMap<u32, Arc<KeyPair>>,
    arrived: BTreeSet<u8>,
    /// Sessions and counters that were used.
    seen: BTreeSet<(u32, u64)>,
    fresh: u32,
}

pub(super) fn both() -> (Near, Far) {
    let local = Arc::new(LocalIdentity::new(&PrivateKey::from_bytes([1; 32])));
    let far = Far {
        peer: Peer::new(&far_identity(), local.public_key(), None, None),
        local: far_identity(),
        socket: UdpSocket::bind("127.0.0.1:0").unwrap(),
        heard: Vec::new(),
        sessions: BTreeMap::new(),
        arrived: BTreeSet::new(),
        seen: BTreeSet::new(),
        fresh: 0,
    };
    far.socket.set_nonblocking(true).unwrap();
    let shared = Arc::new(Shared::new(Tun::absent(), 1).unwrap());
    shared.set_sockets(Socket::bind_group(1, 0, 0, &shared.barred).unwrap());
    add(&shared, &local, &far.local, far.endpoint());
    shared.identity.set(Some(local.clone()));
    let port = shared.socket(0).unwrap().port().unwrap();
    far.socket.connect(("127.0.0.1", port)).unwrap();
    let control = thread::spawn({
        let shared = shared.clone();
        move || Control::new(shared).run()
    });
    let worker = thread::spawn({
        let shared = shared.clone();
        move || take_in(&shared)
    });
    (Near { shared, local, threads: [control, worker] }, far)
}

/// What comes from the network, until the end.
fn take_in(shared: &Shared) {
    let (mut inbound, socket, queue) = (Inbound::new(shared), shared.socket(0).unwrap(), Queue::nowhere());
    while !shared.is_stopping() {
        if !inbound.pump(shared, &socket, &queue).unwrap() {
            thread::yield_now();
        }
    }
}

pub(super) fn far_identity() -> Arc<LocalIdentity> {
    Arc::new(LocalIdentity::new(&PrivateKey::from_bytes([2; 32])))
}

fn add(shared: &Shared, local: &Arc<LocalIdentity>, far: &LocalIdentity, endpoint: Endpoint) -> Arc<Cell> {
    let core = Peer::new(local, far.public_key(), None, None);
    let mut tables = shared.tables_mut();
    tables.remove(&far.public_key());
    let cell = tables.insert(core, far.public_key());
    tables.allowed.insert("10.0.0.0/24".parse().unwrap(), cell.id);
    drop(tables);
    assert!(cell.lock().endpoint.take(endpoint, &cell.key, &shared.barred));
    cell
}

impl Near {
    /// Has the host send packets with these numbers, as a worker does.
    pub(super) fn sends(&self, numbers: std::ops::Range<u8>) -> thread::JoinHandle<()> {
        let shared = self.shared.clone();
        thread::spawn(move || {
            let (mut outbound, socket) = (Outbound::new(), shared.socket(0));
            for number in numbers {
                outbound.take(&raw(number), &shared, socket.as_deref(), clock::now());
                outbound.flush(socket.as_deref());
            }
        })
    }

    pub(super) fn end(self) {
        self.shared.stopping.store(true, Ordering::Release);
        self.shared.wake_all();
        self.threads.into_iter().for_each(|thread| thread.join().unwrap());
    }
}

/// What a read of the interface gives: no offload, and a packet of IPv4 that ends in its number.
fn raw(number: u8) -> Vec<u8> {
    let mut raw = vec![0; 10 + 21];
    raw[10..14].copy_from_slice(&[0x45, 0, 0, 21]);
    raw[26..30].copy_from_slice(&FAR);
    raw[30] = number;
    raw
}

impl Far {
    fn endpoint(&self) -> Endpoint {
        Endpoint { remote: self.socket.local_addr().unwrap(), source: None }
    }

    /// Answers until so many packets have come.
    pub(super) fn hears(&mut self, count: usize) -> BTreeSet<u8> {
        while self.arrived.len() < count {
            if !self.turn() {
                thread::yield_now();
            }
        }
        self.arrived.clone()
    }

    pub(super) fn initiates(&mut self) {
        let (fresh, now) = (self.fresh(), clock::now());
        let message = self.peer.initiate(fresh, Tai64n::from_unix(Duration::from_secs(1_700_000_000)), now).unwrap();
        self.socket.send(&message).unwrap();
    }

    /// Takes one datagram, if there is one.
    pub(super) fn turn(&mut self) -> bool {
        let mut buffer = [0; 2_048];
        let Ok(length) = self.socket.recv(&mut buffer) else { return false };
        let (datagram, now) = (&mut buffer[..length], clock::now());
        self.heard.push(datagram.to_vec());
        match classify(datagram) {
            Some(MessageKind::Initiation) => {
                let opened = self.local.open_initiation(&Initiation::parse(datagram).unwrap()).unwrap();
                let fresh = self.fresh();
                // One that comes too soon after another is refused, and comes again.
                if let Ok(response) = self.peer.handle_initiation(opened, fresh, now) {
                    self.act();
                    self.socket.send(&response).unwrap();
                }
            }
            Some(MessageKind::Response) => {
                let _ = self.peer.handle_response(&Response::parse(datagram).unwrap(), now);
                self.act();
            }
            Some(MessageKind::Data) => self.opens(datagram),
            Some(MessageKind::Cookie) | None => panic!("nothing else is said"),
        }
        true
    }

    fn opens(&mut self, datagram: &mut [u8]) {
        let DataHeader { receiver, counter } = DataHeader::parse(datagram).unwrap();
        let len = self.sessions[&receiver].open_message(datagram).expect("sealed for this session");
        assert!(self.seen.insert((receiver, counter)), "counter {counter} is used twice");
        let mut incoming = [Incoming { counter, len, fresh: false }];
        self.peer.receive(receiver, &mut incoming, clock::now());
        self.act();
        if len > 0 {
            assert!(self.arrived.insert(datagram[DATA_HEADER + 20]), "a packet comes twice");
        }
    }

    /// Does what its peer asks for. It has no packets of its own, and begins no handshake by itself.
    fn act(&mut self) {
        let now = clock::now();
        while let Some(action) = self.peer.poll(now) {
            match action {
                Action::Install(keys) => drop(self.sessions.insert(keys.local_index(), keys)),
                Action::SendKeepalive => {
                    let Outgoing::Session { keys, first_counter } = self.peer.send_keepalive(now) else { continue };
                    let mut keepalive = [0; DATA_HEADER + TAG];
                    keys.seal_message(first_counter, &mut keepalive);
                    self.socket.send(&keepalive).unwrap();
                }
                // What was retired still opens what is late.
                Action::Release(_) | Action::Initiate | Action::SendStaged | Action::DropStaged | Action::Completed => {
                }
            }
        }
    }

    fn fresh(&mut self) -> Fresh {
        self.fresh += 1;
        Fresh { ephemeral: [self.fresh as u8; 32], index: self.fresh }
    }
}
