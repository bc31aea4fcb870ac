//! Two peers and a network that loses, repeats, reorders, replays and forges, under time jumps, rekeys, restarts and key
//! changes.
//!
//! What must always hold is checked by [`Host`] at every step. Here: nothing is delivered that was not sent, or twice; keys
//! end when nobody answers; and once the network is well again, packets get through within the time that the timers allow.
//! What happens is drawn by whoever includes this.

pub(crate) mod host;
mod macs;

use host::{Host, identity, padded, pair};
use mesh_types::PresharedKey;
use mesh_wireguard_core::peer::limits::{KEEPALIVE_TIMEOUT, REKEY_TIMEOUT, REKEY_TIMEOUT_JITTER, ZERO_KEYS_AFTER};
use std::collections::BTreeSet;
use std::time::{Duration, Instant};

/// How often packets are sent when the network is well again.
const STEP: Duration = Duration::from_millis(100);

/// How long it may take a handshake to be made, which waits for the last one's timeout.
const HANDSHAKE: Duration = REKEY_TIMEOUT.saturating_add(REKEY_TIMEOUT_JITTER);

/// How long packets may take without a session.
pub(crate) const WITHOUT_SESSIONS: Duration = HANDSHAKE.saturating_add(STEP);

/// How long packets may take with sessions of which the other side may know nothing: that is noticed when it does not
/// answer.
pub(crate) const WITH_SESSIONS: Duration = KEEPALIVE_TIMEOUT.saturating_add(HANDSHAKE).saturating_add(WITHOUT_SESSIONS);

#[derive(Clone, Copy, Debug)]
pub(crate) enum Side {
    A,
    B,
}

#[derive(Clone, Debug)]
pub(crate) enum Event {
    Send(Side),
    /// Delivers a datagram that is under way, and keeps it there with `again`.
    Deliver {
        which: usize,
        again: bool,
    },
    /// Delivers all that is under way, in its order.
    DeliverAll,
    Lose(usize),
    /// Delivers something from long ago once more, perhaps with a bit flipped, perhaps with its mac1 made right again.
    Replay {
        which: usize,
        flip: Option<(usize, u8)>,
        signed: bool,
    },
    /// Something that nobody sent, of one of the kinds of messages, which have their lengths.
    Forge {
        to: Side,
        kind: u8,
        length: u8,
        bytes: [u8; 8],
        signed: bool,
    },
    Wait(Duration),
    /// Asks for so many counters and lets them be.
    Burn(Side, u32),
    Initiate(Side),
    /// Both sides get another preshared key, at one moment, whatever is under way.
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

pub(crate) struct World {
    now: Instant,
    a: Host,
    b: Host,
    /// Datagrams under way, with whom they go to.
    under_way: Vec<(Side, Vec<u8>)>,
    /// All datagrams ever.
    past: Vec<(Side, Vec<u8>)>,
    sent: u32,
    psk: PresharedKey,
    /// Private keys that were given out.
    keys: u8,
}

impl World {
    pub(crate) fn new() -> Self {
        let now = Instant::now();
        let psk = PresharedKey::from_bytes([7; 32]);
        let (a, b) = pair(&psk, now);
        Self { now, a, b, under_way: Vec::new(), past: Vec::new(), sent: 0, psk, keys: 2 }
    }

    pub(crate) fn host(&mut self, side: Side) -> &mut Host {
        match side {
            Side::A => &mut self.a,
            Side::B => &mut self.b,
        }
    }

    pub(crate) fn act(&mut self, event: Event) {
        let now = self.now;
        match event {
            Event::Send(side) => self.send(side),
            Event::Deliver { which, again } => self.deliver_one(which, again),
            Event::DeliverAll => self.deliver_all(),
            Event::Lose(which) => {
                if let Some(index) = which.checked_rem(self.under_way.len()) {
                    self.under_way.remove(index);
                }
            }
            Event::Replay { which, flip, signed } => self.replay(which, flip, signed),
            Event::Forge { to, kind, length, bytes, signed } => {
                let lengths = [148, 92, 64, usize::from(length)];
                let mut datagram = bytes.repeat(32);
                datagram.truncate(lengths[usize::from(kind % 4)].max(4));
                datagram[..4].copy_from_slice(&[kind % 4 + 1, 0, 0, 0]);
                self.deliver_forged(to, datagram, signed);
            }
            Event::Wait(time) => self.wait(time),
            Event::Burn(side, packets) => self.host(side).burn(packets, now),
            Event::Initiate(side) => self.host(side).initiate(now),
            Event::ChangePresharedKey(key) => {
                self.psk = PresharedKey::from_bytes([key; 32]);
                self.a.peer.set_preshared_key(Some(self.psk.clone()));
                self.b.peer.set_preshared_key(Some(self.psk.clone()));
            }
            Event::ChangePrivateKey(side) => {
                self.keys += 1;
                let (key, psk) = (self.keys, self.psk.clone());
                self.host(side).become_another(key);
                self.host(side.other()).restart(identity(key).public_key(), Some(psk));
            }
            Event::Restart(side) => {
                let (remote, psk) = (self.host(side).peer.public_key(), self.psk.clone());
                self.host(side).restart(remote, Some(psk));
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

    /// What must hold after every event.
    pub(crate) fn check(&self) {
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
    pub(crate) fn heal(&mut self) {
        self.under_way.clear();
        for host in [&mut self.a, &mut self.b] {
            host.under_load = false;
            host.staged.clear();
            host.delivered.clear();
        }
    }

    /// Delivers nothing until both sides have forgotten their sessions.
    pub(crate) fn part(&mut self) {
        self.wait(ZERO_KEYS_AFTER);
        for host in [&self.a, &self.b] {
            assert!(host.indices.values().all(Option::is_none), "keys outlive {ZERO_KEYS_AFTER:?} of silence");
        }
    }

    /// Sends both ways every tenth of a second until both have got something, and tells how long it took.
    pub(crate) fn time_to_recover(&mut self) -> Duration {
        let start = self.now;
        while self.now - start < Duration::from_secs(60) {
            self.send(Side::A);
            self.send(Side::B);
            self.flush();
            if !self.a.delivered.is_empty() && !self.b.delivered.is_empty() {
                break;
            }
            self.wait(STEP);
        }
        self.now - start
    }

    /// Sends a packet that no other is like.
    fn send(&mut self, from: Side) {
        self.sent += 1;
        let (packet, now) = (padded(&self.sent.to_be_bytes()), self.now);
        self.host(from).send(&packet, now);
    }

    fn deliver_one(&mut self, which: usize, again: bool) {
        let Some(index) = which.checked_rem(self.under_way.len()) else { return };
        let (to, datagram) = self.under_way[index].clone();
        if !again {
            self.under_way.remove(index);
        }
        self.deliver(to, &datagram);
    }

    fn deliver_all(&mut self) {
        for (to, datagram) in std::mem::take(&mut self.under_way) {
            self.deliver(to, &datagram);
        }
    }

    fn replay(&mut self, which: usize, flip: Option<(usize, u8)>, signed: bool) {
        let Some(index) = which.checked_rem(self.past.len()) else { return };
        let (to, mut datagram) = self.past[index].clone();
        if let Some((byte, bit)) = flip {
            let length = datagram.len();
            datagram[byte % length] ^= 1 << (bit % 8);
        }
        self.deliver_forged(to, datagram, signed);
    }

    fn deliver_forged(&mut self, to: Side, mut datagram: Vec<u8>, signed: bool) {
        if signed {
            macs::sign(&mut datagram, &self.host(to).public_key());
        }
        self.deliver(to, &datagram);
    }

    fn deliver(&mut self, to: Side, datagram: &[u8]) {
        let (source, now) = (self.host(to.other()).address, self.now);
        // Much of what comes here is to be refused.
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

    /// Delivers everything, the answers too, until there is silence.
    fn flush(&mut self) {
        loop {
            self.collect();
            if self.under_way.is_empty() {
                return;
            }
            self.deliver_all();
        }
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
