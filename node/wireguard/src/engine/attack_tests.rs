//! What must hold whatever comes from wherever: of endpoints, of datagrams that come back, and of strangers' messages.

use super::clock;
use super::control::Control;
use super::inbound::Inbound;
use super::outbound::Outbound;
use super::shared::Shared;
use super::tests::{both, explore, far_identity};
use super::{Change, Engine, PeerChange, PeerChangeKind, Settings};
use crate::tun::{Queue, Tun};
use mesh_types::{AllowedIp, PrivateKey};
use mesh_wireguard_core::Peer;
use mesh_wireguard_core::gate::MAX_QUEUED_HANDSHAKES;
use mesh_wireguard_core::keys::{DATA_HEADER, KeyPair, TAG};
use mesh_wireguard_core::message::{INITIATION_LEN, Initiation, MessageKind, Response, classify};
use mesh_wireguard_core::peer::{Action, Fresh, Outgoing};
use mesh_wireguard_core::tai64n::Tai64n;
use shuttle::rand::{Rng, thread_rng};
use shuttle::thread;
use std::collections::{BTreeMap, VecDeque};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

/// A packet of the host: UDP over IPv4 from the engine's own port, to an address of far's.
fn from_own_port(payload: &[u8], number: u8) -> Vec<u8> {
    let mut raw = vec![0; 10 + 28];
    let length = 28 + payload.len() as u16;
    raw[10..14].copy_from_slice(&[0x45, 0, (length >> 8) as u8, length as u8]);
    raw[19] = 17;
    raw[26..30].copy_from_slice(&[10, 0, 0, 2]);
    // Where far looks for the number of a packet.
    raw[30] = number;
    raw.extend_from_slice(payload);
    raw
}

#[test]
fn a_datagram_of_the_engine_is_not_wrapped_again_and_one_of_another_host_is() {
    explore(20, || {
        let (near, mut far) = both();
        let sender = near.sends(1..3);
        far.initiates();
        far.hears(2);
        sender.join().unwrap();
        let (mut outbound, socket) = (Outbound::new(), near.shared.socket(0));
        let mut give = |payload: &[u8], number| {
            outbound.take(&from_own_port(payload, number), &near.shared, socket.as_deref(), clock::now());
            outbound.flush(socket.as_deref());
        };
        let own: Vec<_> = far.heard.iter().filter(|own| classify(own) != Some(MessageKind::Cookie)).cloned().collect();
        assert!(own.iter().any(|own| classify(own) == Some(MessageKind::Data)), "{own:?}");
        for payload in &own {
            give(payload, 9);
        }
        assert_eq!(near.shared.looped.load(Ordering::Relaxed), own.len() as u64);
        for (payload, number) in own.iter().zip(100..) {
            let mut of_another = payload.clone();
            of_another[4] ^= 0x55;
            give(&of_another, number);
        }
        let arrived = far.hears(2 + own.len());
        assert!(!arrived.contains(&9) && arrived.len() == 2 + own.len(), "{arrived:?}");
        assert_eq!(near.shared.looped.load(Ordering::Relaxed), own.len() as u64);
        near.end();
    });
}

#[test]
fn no_endpoint_stays_in_a_range_that_is_barred_while_packets_come_from_there() {
    explore(150, || {
        let (near, mut far) = both();
        let sender = near.sends(1..3);
        let barring = {
            let shared = near.shared.clone();
            thread::spawn(move || {
                shared.barred.set_ranges(vec!["127.0.0.0/8".parse().unwrap()]);
                shared.recheck_endpoints();
            })
        };
        far.initiates();
        for _ in 0..20 {
            far.turn();
            thread::yield_now();
        }
        barring.join().unwrap();
        sender.join().unwrap();
        let shared = near.shared.clone();
        near.end();
        assert!(shared.cells().iter().all(|cell| cell.lock().endpoint.get().is_none()));
    });
}

/// Places of the peer's, by the last byte of their addresses.
const PLACES: u8 = 5;

/// The engine, one thing at a time, and a peer that speaks from many places.
struct World {
    engine: Engine,
    control: Control,
    inbound: Inbound,
    outbound: Outbound,
    queue: Queue,
    port: u16,
    peer: Peer,
    places: Vec<UdpSocket>,
    sessions: BTreeMap<u32, Arc<KeyPair>>,
    fresh: u32,
    stamp: u64,
    barred: Vec<AllowedIp>,
    /// Datagrams that came to the peer.
    heard: usize,
}

impl World {
    fn new() -> Self {
        let shared = Arc::new(Shared::new(Tun::absent(), 1).unwrap());
        let engine =
            Engine { shared: shared.clone(), settings: super::Mutex::new(Settings::default()), threads: Vec::new() };
        engine.apply(&[Change::PrivateKey(Some(PrivateKey::from_bytes([1; 32])))]).unwrap();
        let places = (1..=PLACES).map(|n| {
            let place = UdpSocket::bind((Ipv4Addr::new(127, 0, 1, n), 0)).unwrap();
            place.set_nonblocking(true).unwrap();
            place
        });
        let mut world = Self {
            control: Control::new(shared.clone()),
            inbound: Inbound::new(&shared),
            outbound: Outbound::new(),
            queue: Queue::nowhere(),
            port: shared.socket(0).unwrap().port().unwrap(),
            peer: Peer::new(&far_identity(), engine.public_key().unwrap(), None, None),
            places: places.collect(),
            sessions: BTreeMap::new(),
            fresh: 0,
            stamp: 1_700_000_000,
            barred: Vec::new(),
            heard: 0,
            engine,
        };
        world.change(PeerChangeKind::Set, Some(0));
        world
    }

    /// Does one thing of many, then all that follows from it, and checks.
    fn step(&mut self) {
        let place = usize::from(thread_rng().gen_range(0..PLACES));
        match thread_rng().gen_range(0..16) {
            0 | 1 => self.initiate(place),
            2..6 => self.data(place, 21),
            6 | 7 => self.data(place, 0),
            8 => self.change(PeerChangeKind::Set, Some(place)),
            9 => self.change(PeerChangeKind::Recreate, Some(place)),
            10 => self.bar(),
            _ => self.host_sends(),
        }
        self.settle(place);
        let endpoint = self.endpoint();
        assert!(!endpoint.is_some_and(|endpoint| self.is_barred(endpoint.ip())), "{endpoint:?} in {:?}", self.barred);
    }

    /// Bars other places; from then on nothing may come to them.
    fn bar(&mut self) {
        let one_in_two = |_: &u8| thread_rng().gen_range(0..2) == 0;
        self.barred = (1..=PLACES)
            .filter(one_in_two)
            .map(|n| match n % 2 {
                0 => AllowedIp::host(Ipv4Addr::new(127, 0, 1, n).into()),
                _ => AllowedIp::host(Ipv4Addr::new(127, 0, 1, n).to_ipv6_mapped().into()),
            })
            .collect();
        self.engine.bar(self.barred.clone());
    }

    fn is_barred(&self, ip: IpAddr) -> bool {
        self.barred.iter().any(|range| range.net().network().to_canonical() == ip)
    }

    /// The engine works off what there is; the peer answers from the place given, until both are silent.
    fn settle(&mut self, place: usize) {
        let shared = self.engine.shared.clone();
        let socket = shared.socket(0).unwrap();
        loop {
            let mut quiet = true;
            while self.inbound.pump(&shared, &socket, &self.queue).unwrap() {
                quiet = false;
            }
            while self.control.turn(clock::now()) {}
            for at in 0..self.places.len() {
                let mut buffer = [0; 2_048];
                while let Ok((length, _)) = self.places[at].recv_from(&mut buffer) {
                    let barred = self.is_barred(self.places[at].local_addr().unwrap().ip());
                    assert!(!barred, "{length} bytes were sent to {:?}", self.places[at]);
                    (quiet, self.heard) = (false, self.heard + 1);
                    self.take(&buffer[..length], place);
                }
            }
            if quiet {
                return;
            }
        }
    }

    fn take(&mut self, datagram: &[u8], place: usize) {
        let now = clock::now();
        match classify(datagram) {
            Some(MessageKind::Initiation) => {
                let Some(opened) = far_identity().open_initiation(&Initiation::parse(datagram).unwrap()) else {
                    return;
                };
                let fresh = self.fresh();
                if let Ok(response) = self.peer.handle_initiation(opened, fresh, now) {
                    self.send(place, &response);
                }
            }
            Some(MessageKind::Response) => {
                let _ = self.peer.handle_response(&Response::parse(datagram).unwrap(), now);
            }
            Some(MessageKind::Data | MessageKind::Cookie) | None => {}
        }
        while let Some(action) = self.peer.poll(now) {
            match action {
                Action::Install(keys) => drop(self.sessions.insert(keys.local_index(), keys)),
                Action::SendKeepalive => self.data(place, 0),
                _ => {}
            }
        }
    }

    fn initiate(&mut self, place: usize) {
        let message = self.initiation();
        self.send(place, &message);
    }

    fn initiation(&mut self) -> [u8; INITIATION_LEN] {
        self.stamp += 1;
        let (fresh, stamp) = (self.fresh(), Tai64n::from_unix(Duration::from_secs(self.stamp)));
        self.peer.initiate(fresh, stamp, clock::now()).expect("both keys are good")
    }

    fn endpoint(&self) -> Option<SocketAddr> {
        self.engine.read().peers.first().and_then(|peer| peer.endpoint)
    }

    fn place(&self, place: usize) -> Option<SocketAddr> {
        self.places[place].local_addr().ok()
    }

    /// A data message, or a keepalive, if there is a session.
    fn data(&mut self, place: usize, length: usize) {
        let Outgoing::Session { keys, first_counter } = self.peer.send(1, 32, clock::now()) else { return };
        let mut message = vec![0; DATA_HEADER + length + TAG];
        keys.seal_message(first_counter, &mut message);
        self.send(place, &message);
    }

    fn send(&self, place: usize, message: &[u8]) {
        self.places[place].send_to(message, ("127.0.0.1", self.port)).unwrap();
    }

    fn host_sends(&mut self) {
        let shared = self.engine.shared.clone();
        let socket = shared.socket(0);
        self.outbound.take(&from_own_port(&[7; 9], 1), &shared, socket.as_deref(), clock::now());
        self.outbound.flush(socket.as_deref());
    }

    fn change(&mut self, kind: PeerChangeKind, place: Option<usize>) {
        let mut change = PeerChange::new(far_identity().public_key(), kind);
        change.endpoint = place.and_then(|place| self.place(place));
        change.allowed_ips.push("10.0.0.0/24".parse().unwrap());
        self.engine.apply(&[Change::Peer(change)]).unwrap();
    }

    fn fresh(&mut self) -> Fresh {
        self.fresh += 1;
        let mut ephemeral = [7; 32];
        ephemeral[..4].copy_from_slice(&self.fresh.to_le_bytes());
        Fresh { ephemeral, index: self.fresh }
    }
}

#[test]
fn whatever_comes_from_wherever_no_endpoint_is_barred_and_nothing_is_sent_there() {
    /// In all runs: in one of them all places may be barred at once.
    static HEARD: AtomicUsize = AtomicUsize::new(0);
    let scenario = || {
        let mut world = World::new();
        (0..60).for_each(|_| world.step());
        HEARD.fetch_add(world.heard, Ordering::Relaxed);
    };
    shuttle::check_random(scenario, 40);
    let heard = HEARD.load(Ordering::Relaxed);
    assert!(heard > 200, "only {heard} datagrams were sent to the peer");
}

#[test]
fn a_recorded_initiation_moves_no_endpoint_of_a_peer_that_is_made_anew() {
    type MadeAnew = fn(&mut World);
    let ways: [MadeAnew; 3] = [
        |world| world.change(PeerChangeKind::Recreate, Some(1)),
        |world| {
            world.change(PeerChangeKind::Remove, None);
            world.change(PeerChangeKind::Set, Some(1));
        },
        |world| {
            world.engine.apply(&[Change::RemoveAllPeers]).unwrap();
            world.change(PeerChangeKind::Set, Some(1));
        },
    ];
    for made_anew in ways {
        shuttle::check_random(
            move || {
                let mut world = World::new();
                let recorded = world.initiation();
                world.send(2, &recorded);
                world.settle(2);
                assert_eq!(world.endpoint(), world.place(2));
                made_anew(&mut world);
                world.send(3, &recorded);
                world.settle(3);
                assert_eq!(world.endpoint(), world.place(1), "the replay moved it");
                world.initiate(4);
                world.settle(4);
                assert_eq!(world.endpoint(), world.place(4), "a new one does");
            },
            1,
        );
    }
}

#[test]
fn what_strangers_send_takes_no_place_that_a_peer_needs() {
    let scenario = || {
        let mut world = World::new();
        let shared = world.engine.shared.clone();
        let socket = shared.socket(0).unwrap();
        // A wrong mac1, an answer to no handshake, and a cookie for none; the last two with indices that strangers guess.
        let kinds: [(u8, usize); 3] = [(1, INITIATION_LEN), (2, 92), (3, 64)];
        for number in 0..MAX_QUEUED_HANDSHAKES as u32 + 100 {
            for (kind, length) in kinds {
                let mut garbage = vec![0x55; length];
                garbage[..4].copy_from_slice(&[kind, 0, 0, 0]);
                garbage[4..8].copy_from_slice(&number.to_le_bytes());
                world.send(0, &garbage);
            }
            if number % 64 == 0 {
                while world.inbound.pump(&shared, &socket, &world.queue).unwrap() {}
            }
        }
        world.initiate(1);
        while world.inbound.pump(&shared, &socket, &world.queue).unwrap() {}
        let mut knocks = VecDeque::new();
        let waiting = shared.inbox.take(&mut knocks, &mut Vec::new());
        assert_eq!((knocks.len(), waiting.more), (1, false));
        let knock = knocks.pop_front().unwrap();
        shared.inbox.knock(knock);
        world.settle(1);
        assert_eq!(world.endpoint(), world.place(1), "and it is answered at once");
    };
    shuttle::check_random(scenario, 1);
}
