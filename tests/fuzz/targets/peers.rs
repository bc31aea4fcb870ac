//! Two peers and a network that loses, repeats, reorders, replays and forges, under time jumps, rekeys, restarts and key
//! changes. Nothing is delivered that was not sent, or twice; and once the network is well again, packets get through
//! within the time that the timers allow.

#![no_main]

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use mesh_fuzz::host::{Host, identity, padded};
use mesh_fuzz::macs;
use mesh_types::PresharedKey;
use mesh_wireguard_core::peer::limits::{KEEPALIVE_TIMEOUT, REKEY_TIMEOUT, REKEY_TIMEOUT_JITTER};
use std::collections::BTreeSet;
use std::time::{Duration, Instant};

/// More take too long for what they show.
const MAX_EVENTS: usize = 150;

#[derive(Clone, Copy, Debug, Arbitrary)]
enum Side {
    A,
    B,
}

#[derive(Debug, Arbitrary)]
enum Event {
    Send(Side),
    /// Delivers a datagram that is under way, and keeps it there with `again`.
    Deliver {
        which: u8,
        again: bool,
    },
    /// Delivers all that is under way, in its order.
    DeliverAll,
    Lose(u8),
    /// Delivers something from long ago once more, perhaps with a bit flipped, perhaps with its mac1 made right again.
    Replay {
        which: u16,
        flip: Option<(u8, u8)>,
        signed: bool,
    },
    /// Something that nobody sent.
    Forge {
        to: Side,
        kind: u8,
        length: u8,
        bytes: [u8; 8],
        signed: bool,
    },
    WaitMillis(u8),
    WaitSeconds(u8),
    Burn(Side, u32),
    Initiate(Side),
    ChangePresharedKey(u8),
    /// One side gets another private key, and the other a new peer in place of the old.
    ChangePrivateKey(Side),
    Restart(Side),
    SetKeepalive(Side, u16),
    UnderLoad(Side, bool),
    MoveClock {
        side: Side,
        back: bool,
        seconds: u16,
    },
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

fuzz_target!(|events: Vec<Event>| {
    let mut world = World::new();
    for event in events.into_iter().take(MAX_EVENTS) {
        world.act(event);
        world.check();
    }
    world.heal();
    // A session that only one side still has is noticed when it does not answer; then a handshake is made, which waits
    // for the last one's timeout.
    let noticed = KEEPALIVE_TIMEOUT + REKEY_TIMEOUT + REKEY_TIMEOUT_JITTER;
    let bound = noticed + REKEY_TIMEOUT + REKEY_TIMEOUT_JITTER + Duration::from_millis(100);
    let took = world.time_to_recover();
    assert!(took <= bound, "recovery took {took:?}");
    world.check();
});

impl World {
    fn new() -> Self {
        let now = Instant::now();
        let psk = Some(PresharedKey::from_bytes([7; 32]));
        let a = Host::new(1, identity(2).public_key(), psk.clone(), now);
        let b = Host::new(2, identity(1).public_key(), psk.clone(), now);
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
                if let Some(index) = usize::from(which).checked_rem(self.under_way.len()) {
                    let (to, datagram) = self.under_way[index].clone();
                    if !again {
                        self.under_way.remove(index);
                    }
                    self.deliver(to, &datagram);
                }
            }
            Event::DeliverAll => {
                for (to, datagram) in std::mem::take(&mut self.under_way) {
                    self.deliver(to, &datagram);
                }
            }
            Event::Lose(which) => {
                if let Some(index) = usize::from(which).checked_rem(self.under_way.len()) {
                    self.under_way.remove(index);
                }
            }
            Event::Replay { which, flip, signed } => {
                if let Some(index) = usize::from(which).checked_rem(self.past.len()) {
                    let (to, mut datagram) = self.past[index].clone();
                    if let Some((byte, bit)) = flip {
                        let length = datagram.len();
                        datagram[usize::from(byte) % length] ^= 1 << (bit % 8);
                    }
                    self.deliver_forged(to, datagram, signed);
                }
            }
            Event::Forge { to, kind, length, bytes, signed } => {
                let lengths = [148, 92, 64, usize::from(length)];
                let mut datagram = bytes.repeat(32);
                datagram.truncate(lengths[usize::from(kind % 4)].max(4));
                datagram[..4].copy_from_slice(&[kind % 4 + 1, 0, 0, 0]);
                self.deliver_forged(to, datagram, signed);
            }
            Event::WaitMillis(millis) => self.wait(Duration::from_millis(millis.into())),
            Event::WaitSeconds(seconds) => self.wait(Duration::from_secs(seconds.into())),
            Event::Burn(side, packets) => self.host(side).burn(packets, now),
            Event::Initiate(side) => self.host(side).initiate(now),
            Event::ChangePresharedKey(key) => {
                self.psk = Some(PresharedKey::from_bytes([key; 32]));
                self.a.peer.set_preshared_key(self.psk.clone());
                self.b.peer.set_preshared_key(self.psk.clone());
            }
            Event::ChangePrivateKey(side) => {
                self.keys += 1;
                let (key, psk) = (self.keys, self.psk.clone());
                self.host(side).become_another(key);
                self.host(side.other()).restart(identity(key).public_key(), psk);
            }
            Event::Restart(side) => {
                let (remote, psk) = (self.host(side).peer.public_key(), self.psk.clone());
                self.host(side).restart(remote, psk);
            }
            Event::SetKeepalive(side, seconds) => self.host(side).peer.set_keepalive(Some(seconds)),
            Event::UnderLoad(side, yes) => self.host(side).under_load = yes,
            Event::MoveClock { side, back, seconds } => {
                let (host, by) = (self.host(side), Duration::from_secs(seconds.into()));
                host.furthest = host.furthest.max(host.wall);
                host.wall = if back { host.wall.saturating_sub(by) } else { host.wall + by };
            }
        }
        self.collect();
    }

    /// Sends a packet that no other is like.
    fn send(&mut self, from: Side) {
        self.sent += 1;
        let (packet, now) = (padded(&self.sent.to_be_bytes()), self.now);
        self.host(from).send(packet, now);
    }

    fn deliver_forged(&mut self, to: Side, mut datagram: Vec<u8>, signed: bool) {
        if signed {
            macs::sign(&mut datagram, &self.host(to).identity.public_key());
        }
        self.deliver(to, &datagram);
    }

    fn deliver(&mut self, to: Side, datagram: &[u8]) {
        let (source, now) = (self.host(to.other()).address, self.now);
        self.host(to).receive(datagram, source, now);
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
        for host in [&mut self.a, &mut self.b] {
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
        while self.now - start < Duration::from_secs(60) {
            self.send(Side::A);
            self.send(Side::B);
            self.flush();
            if !self.a.delivered.is_empty() && !self.b.delivered.is_empty() {
                break;
            }
            self.wait(Duration::from_millis(100));
        }
        self.now - start
    }
}

impl Side {
    fn other(self) -> Self {
        match self {
            Self::A => Self::B,
            Self::B => Self::A,
        }
    }
}
