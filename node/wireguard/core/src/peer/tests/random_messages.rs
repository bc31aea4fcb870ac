//! Two peers and a network that loses, repeats, reorders, replays and forges, under time jumps, rekeys and key changes.
//!
//! What must always hold is checked by `Host` at every step: no counter twice on a key, no key beyond its limits, no
//! index forgotten. Here: nothing is delivered that was not sent, or twice; and once the network is well again, packets
//! get through within the time that the timers allow.

use super::*;
use crate::peer::limits::{KEEPALIVE_TIMEOUT, REKEY_AFTER_MESSAGES, REKEY_TIMEOUT, REKEY_TIMEOUT_JITTER};
use proptest::collection::vec;
use proptest::prelude::*;

#[derive(Clone, Copy, Debug)]
enum Side {
    A,
    B,
}

#[derive(Clone, Debug)]
enum Event {
    Send(Side),
    /// Delivers a datagram that is under way, and keeps it there with `again`.
    Deliver {
        which: usize,
        again: bool,
    },
    Lose {
        which: usize,
    },
    /// Delivers something from long ago once more, perhaps with a bit flipped.
    Replay {
        which: usize,
        flip: Option<(usize, u8)>,
    },
    Wait(Duration),
    /// Brings the sending counter of the current session close to a limit.
    WearOut {
        side: Side,
        to: u64,
    },
    Initiate(Side),
    /// Both sides get another preshared key, at one moment, whatever is under way.
    ChangePresharedKey(u8),
    /// One side gets another private key, and the other a new peer in place of the old.
    ChangePrivateKey(Side),
    /// One side forgets everything but its configuration. Its clock is right again: with one that was set back for
    /// good WireGuard has to wait until it catches up.
    Restart(Side),
    SetKeepalive {
        side: Side,
        seconds: u16,
    },
    UnderLoad {
        side: Side,
        yes: bool,
    },
    MoveClock {
        side: Side,
        back: bool,
        seconds: u64,
    },
}

impl Side {
    fn other(self) -> Self {
        match self {
            Self::A => Self::B,
            Self::B => Self::A,
        }
    }
}

fn side() -> impl Strategy<Value = Side> {
    prop_oneof![Just(Side::A), Just(Side::B)]
}

fn event() -> impl Strategy<Value = Event> {
    let millis = prop_oneof![4 => 0..100_u64, 3 => 0..6_000_u64, 2 => 0..30_000_u64, 1 => 0..200_000_u64];
    let flip = proptest::option::of((any::<usize>(), 0..8_u8));
    let near = prop_oneof![Just(REKEY_AFTER_MESSAGES - 2), Just(REJECT_AFTER_MESSAGES - 3)];
    prop_oneof![
        12 => side().prop_map(Event::Send),
        20 => (any::<usize>(), prop::bool::weighted(0.1)).prop_map(|(which, again)| Event::Deliver { which, again }),
        3 => any::<usize>().prop_map(|which| Event::Lose { which }),
        3 => (any::<usize>(), flip).prop_map(|(which, flip)| Event::Replay { which, flip }),
        8 => millis.prop_map(|millis| Event::Wait(Duration::from_millis(millis))),
        1 => (side(), near).prop_map(|(side, to)| Event::WearOut { side, to }),
        1 => side().prop_map(Event::Initiate),
        1 => any::<u8>().prop_map(Event::ChangePresharedKey),
        1 => side().prop_map(Event::ChangePrivateKey),
        1 => side().prop_map(Event::Restart),
        1 => (side(), prop_oneof![Just(0), 1..60_u16]).prop_map(|(side, seconds)| Event::SetKeepalive { side, seconds }),
        1 => (side(), any::<bool>()).prop_map(|(side, yes)| Event::UnderLoad { side, yes }),
        1 => (side(), any::<bool>(), 0..1_000_u64)
            .prop_map(|(side, back, seconds)| Event::MoveClock { side, back, seconds }),
    ]
}

struct World {
    now: Instant,
    a: Host,
    b: Host,
    /// Datagrams under way, with whom they go to.
    under_way: Vec<(Side, Vec<u8>)>,
    /// All datagrams ever.
    past: Vec<(Side, Vec<u8>)>,
    sent: u32,
    psk: Option<PresharedKey>,
    /// Private keys that were given out.
    keys: u8,
}

impl World {
    fn new() -> Self {
        let now = Instant::now();
        let (a, b) = pair(now);
        let psk = Some(PresharedKey::from_bytes([7; 32]));
        Self { now, a, b, under_way: Vec::new(), past: Vec::new(), sent: 0, psk, keys: 2 }
    }

    fn host(&mut self, side: Side) -> &mut Host {
        match side {
            Side::A => &mut self.a,
            Side::B => &mut self.b,
        }
    }

    fn act(&mut self, event: Event) {
        let now = self.now;
        match event {
            Event::Send(side) => self.send(side),
            Event::Deliver { which, again } => {
                if let Some(index) = which.checked_rem(self.under_way.len()) {
                    let (to, datagram) = self.under_way[index].clone();
                    if !again {
                        self.under_way.remove(index);
                    }
                    self.deliver(to, &datagram);
                }
            }
            Event::Lose { which } => {
                if let Some(index) = which.checked_rem(self.under_way.len()) {
                    self.under_way.remove(index);
                }
            }
            Event::Replay { which, flip } => {
                if let Some(index) = which.checked_rem(self.past.len()) {
                    let (to, mut datagram) = self.past[index].clone();
                    if let Some((byte, bit)) = flip {
                        let len = datagram.len();
                        datagram[byte % len] ^= 1 << bit;
                    }
                    self.deliver(to, &datagram);
                }
            }
            Event::Wait(time) => self.wait(time),
            Event::WearOut { side, to } => {
                if let Some(session) = &mut self.host(side).peer.sessions.current {
                    session.next_counter = session.next_counter.max(to);
                }
            }
            Event::Initiate(side) => self.host(side).initiate(now),
            Event::ChangePresharedKey(key) => {
                self.psk = Some(PresharedKey::from_bytes([key; 32]));
                self.a.peer.set_preshared_key(self.psk.clone());
                self.b.peer.set_preshared_key(self.psk.clone());
            }
            Event::ChangePrivateKey(side) => {
                self.keys += 1;
                let identity = Arc::new(LocalIdentity::new(&private_key(self.keys)));
                let host = self.host(side);
                host.peer.set_identity(&identity);
                host.checker = CookieChecker::new(&identity);
                host.identity = identity.clone();
                self.restart(side.other(), identity.public_key());
            }
            Event::Restart(side) => {
                let remote = self.host(side).peer.public_key();
                self.restart(side, remote);
            }
            Event::SetKeepalive { side, seconds } => self.host(side).peer.set_keepalive(Some(seconds)),
            Event::UnderLoad { side, yes } => self.host(side).under_load = yes,
            Event::MoveClock { side, back, seconds } => {
                let host = self.host(side);
                host.furthest = host.furthest.max(host.wall);
                host.wall = if back { host.wall - secs(seconds) } else { host.wall + secs(seconds) };
            }
        }
        self.collect();
    }

    /// Sends a packet that no other is like.
    fn send(&mut self, from: Side) {
        self.sent += 1;
        let packet = padded(&self.sent.to_be_bytes());
        let now = self.now;
        self.host(from).send(&packet, now);
    }

    /// Puts a new peer in the place of a host's old one.
    fn restart(&mut self, side: Side, remote: PublicKey) {
        let psk = self.psk.clone();
        let host = self.host(side);
        host.wall = host.wall.max(host.furthest);
        host.peer = Peer::new(&host.identity, remote, psk, None);
        host.indices.clear();
        host.staged.clear();
    }

    fn deliver(&mut self, to: Side, datagram: &[u8]) {
        let now = self.now;
        let source = match to {
            Side::A => self.b.address,
            Side::B => self.a.address,
        };
        let _ = self.host(to).receive(datagram, source, now);
    }

    /// Lets time pass, stopping wherever a timer is due.
    fn wait(&mut self, time: Duration) {
        let end = self.now + time;
        loop {
            self.collect();
            let due = [self.a.peer.deadline(), self.b.peer.deadline()].into_iter().flatten().min();
            match due {
                Some(due) if due <= end => self.now = self.now.max(due),
                _ => break,
            }
        }
        self.now = end;
        self.collect();
    }

    fn collect(&mut self) {
        self.a.drain(self.now);
        self.b.drain(self.now);
        let from_a = self.a.out.drain(..).map(|datagram| (Side::B, datagram));
        let from_b = self.b.out.drain(..).map(|datagram| (Side::A, datagram));
        let new: Vec<_> = from_a.chain(from_b).collect();
        self.past.extend(new.iter().cloned());
        self.under_way.extend(new);
    }

    fn check(&self) {
        for host in [&self.a, &self.b] {
            let distinct: BTreeSet<&Vec<u8>> = host.delivered.iter().collect();
            assert_eq!(distinct.len(), host.delivered.len(), "a packet is delivered twice");
            let genuine = |packet: &Vec<u8>| {
                let number = u32::from_be_bytes(*packet.first_chunk().expect("sixteen bytes"));
                (1..=self.sent).contains(&number) && *packet == padded(&number.to_be_bytes())
            };
            assert!(host.delivered.iter().all(genuine), "a packet is delivered that nobody sent");
        }
    }

    /// From here on the network delivers everything at once and in order.
    fn heal(&mut self) {
        self.under_way.clear();
        for side in [Side::A, Side::B] {
            let host = self.host(side);
            host.under_load = false;
            host.staged.clear();
            host.delivered.clear();
        }
    }

    /// Delivers everything, the answers too, until there is silence.
    fn flush(&mut self) {
        loop {
            self.collect();
            if self.under_way.is_empty() {
                return;
            }
            for (to, datagram) in std::mem::take(&mut self.under_way) {
                self.deliver(to, &datagram);
            }
        }
    }

    /// Sends both ways every tenth of a second until both have got something, and tells how long it took.
    fn time_to_recover(&mut self) -> Duration {
        let start = self.now;
        let step = Duration::from_millis(100);
        while self.now - start < secs(60) {
            self.send(Side::A);
            self.send(Side::B);
            self.flush();
            if !self.a.delivered.is_empty() && !self.b.delivered.is_empty() {
                break;
            }
            self.wait(step);
        }
        self.now - start
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 100, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn whatever_the_network_does_nothing_is_repeated_forged_or_kept_beyond_its_limits(
        events in vec(event(), 1..150)
    ) {
        let mut world = World::new();
        for event in events {
            world.act(event);
            world.check();
        }
    }

    #[test]
    fn once_the_network_is_well_packets_get_through_within_the_timers(events in vec(event(), 1..150)) {
        let mut world = World::new();
        for event in events {
            world.act(event);
        }
        world.heal();
        let took = world.time_to_recover();
        // A session that only one side still has is noticed when it does not answer; then a handshake is made, which
        // waits for the last one's timeout.
        let noticed = KEEPALIVE_TIMEOUT + REKEY_TIMEOUT + REKEY_TIMEOUT_JITTER;
        let bound = noticed + REKEY_TIMEOUT + REKEY_TIMEOUT_JITTER + Duration::from_millis(100);
        prop_assert!(took <= bound, "took {took:?}");
    }

    #[test]
    fn without_a_session_packets_get_through_within_one_handshake_timeout(events in vec(event(), 1..150)) {
        let mut world = World::new();
        for event in events {
            world.act(event);
        }
        world.heal();
        for side in [Side::A, Side::B] {
            world.host(side).peer.end();
        }
        let took = world.time_to_recover();
        let bound = REKEY_TIMEOUT + REKEY_TIMEOUT_JITTER + Duration::from_millis(100);
        prop_assert!(took <= bound, "took {took:?}");
    }
}
