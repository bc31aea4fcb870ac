//! A host around one peer, as the engine is: staged packets, the table of indices, datagrams out and packets in.
//!
//! It checks at every step what must always hold: no counter is given out twice on a key, no key seals or opens beyond
//! its age or its count, and the table holds exactly the indices that the peer speaks of.

use mesh_types::{PresharedKey, PrivateKey, PublicKey};
use mesh_wireguard_core::cookie::{CookieChecker, CookieRandom, Verdict};
use mesh_wireguard_core::keys::{DATA_HEADER, KeyPair, TAG, padded_len};
use mesh_wireguard_core::message::{CookieReply, DATA_MIN, DataHeader, Initiation, MessageKind, Response, classify};
use mesh_wireguard_core::peer::limits::{REJECT_AFTER_MESSAGES, REJECT_AFTER_TIME};
use mesh_wireguard_core::peer::{Action, Fresh, Incoming, Outgoing, Refused};
use mesh_wireguard_core::tai64n::Tai64n;
use mesh_wireguard_core::{LocalIdentity, Peer};
use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

const MTU: usize = 1420;

/// Staged packets that a host keeps, as the kernel does.
pub(crate) const MAX_STAGED: usize = 128;

pub(crate) struct Host {
    pub(crate) identity: Arc<LocalIdentity>,
    pub(crate) peer: Peer,
    pub(crate) address: SocketAddr,
    pub(crate) under_load: bool,
    /// What the wall clock shows at `epoch`.
    pub(crate) wall: Duration,
    /// What it showed at most before it was set back.
    pub(crate) furthest: Duration,
    /// Datagrams to be sent.
    pub(crate) out: VecDeque<Vec<u8>>,
    /// Packets that came out of the tunnel.
    pub(crate) delivered: Vec<Vec<u8>>,
    pub(crate) staged: VecDeque<Vec<u8>>,
    /// Those that were dropped because nobody answered.
    pub(crate) dropped: usize,
    /// Handshakes.
    pub(crate) completed: usize,
    /// What leads to the peer: the keys of a session, or nothing yet for a handshake under way.
    pub(crate) indices: BTreeMap<u32, Option<Arc<KeyPair>>>,
    epoch: Instant,
    checker: CookieChecker,
    random: u64,
    /// The next counter of each session, by its index, of which there is a new one each time.
    counters: BTreeMap<u32, u64>,
}

/// Two hosts that know each other.
pub(crate) fn pair(psk: &PresharedKey, now: Instant) -> (Host, Host) {
    let host = |number, other| Host::new(number, identity(other).public_key(), Some(psk.clone()), now);
    (host(1, 2), host(2, 1))
}

impl Host {
    pub(crate) fn new(number: u8, remote: PublicKey, psk: Option<PresharedKey>, now: Instant) -> Self {
        let identity = identity(number);
        Self {
            checker: CookieChecker::new(&identity),
            peer: Peer::new(&identity, remote, psk, None),
            address: SocketAddr::from(([192, 0, 2, number], 51_820)),
            under_load: false,
            wall: Duration::from_secs(1_700_000_000),
            furthest: Duration::ZERO,
            out: VecDeque::new(),
            delivered: Vec::new(),
            staged: VecDeque::new(),
            dropped: 0,
            completed: 0,
            indices: BTreeMap::new(),
            epoch: now,
            random: u64::from(number) << 32,
            counters: BTreeMap::new(),
            identity,
        }
    }

    pub(crate) fn public_key(&self) -> PublicKey {
        self.identity.public_key()
    }

    /// Takes another private key; the peer stays.
    pub(crate) fn become_another(&mut self, number: u8) {
        self.identity = identity(number);
        self.checker = CookieChecker::new(&self.identity);
        self.peer.set_identity(&self.identity);
    }

    /// Forgets everything but its configuration. Its clock is right again: with one that was set back for good WireGuard
    /// has to wait until it catches up.
    pub(crate) fn restart(&mut self, remote: PublicKey, psk: Option<PresharedKey>) {
        self.wall = self.wall.max(self.furthest);
        self.peer = Peer::new(&self.identity, remote, psk, None);
        self.indices.clear();
        self.staged.clear();
    }

    /// Hands a packet to the tunnel.
    pub(crate) fn send(&mut self, packet: &[u8], now: Instant) {
        if self.staged.len() == MAX_STAGED {
            self.staged.pop_front();
        }
        self.staged.push_back(packet.to_vec());
        self.send_staged(now);
        self.drain(now);
    }

    /// Asks for counters and lets them be.
    pub(crate) fn burn(&mut self, packets: u32, now: Instant) {
        if let Outgoing::Session { keys, first_counter } = self.peer.send(packets, u64::from(packets) * 48, now) {
            self.check_counters(&keys, first_counter, packets, now);
        }
        self.drain(now);
    }

    /// Does what is due by now.
    pub(crate) fn drain(&mut self, now: Instant) {
        let mut turns = 0;
        while let Some(action) = self.peer.poll(now) {
            turns += 1;
            assert!(turns < 1_000, "it comes to rest");
            self.act(action, now);
        }
        assert!(!self.peer.has_actions());
        assert!(self.peer.deadline().is_none_or(|deadline| deadline > now), "nothing that is due is left");
        let mut known: Vec<u32> = self.peer.indices().collect();
        known.sort_unstable();
        assert!(self.indices.keys().eq(&known), "the table has {:?}, the peer {known:?}", self.indices.keys());
    }

    pub(crate) fn act(&mut self, action: Action, now: Instant) {
        match action {
            Action::Initiate => self.initiate(now),
            Action::SendStaged => self.send_staged(now),
            Action::SendKeepalive if self.staged.is_empty() => self.send_keepalive(now),
            Action::SendKeepalive => self.send_staged(now),
            Action::DropStaged => self.dropped += std::mem::take(&mut self.staged).len(),
            Action::Install(keys) => {
                let before = self.indices.insert(keys.local_index(), Some(keys));
                assert!(before.is_none_or(|keys| keys.is_none()), "an index of a session is taken twice");
            }
            Action::Release(index) => assert!(self.indices.remove(&index).is_some(), "index {index} is released twice"),
            Action::Completed => self.completed += 1,
        }
    }

    pub(crate) fn initiate(&mut self, now: Instant) {
        let fresh = self.fresh();
        let index = fresh.index;
        let stamp = Tai64n::from_unix(self.wall + now.saturating_duration_since(self.epoch));
        if let Some(message) = self.peer.initiate(fresh, stamp, now) {
            self.indices.insert(index, None);
            self.out.push_back(message.to_vec());
        }
    }

    pub(crate) fn send_keepalive(&mut self, now: Instant) {
        let outgoing = self.peer.send_keepalive(now);
        self.seal(outgoing, vec![vec![]], now);
    }

    fn send_staged(&mut self, now: Instant) {
        if self.staged.is_empty() {
            return;
        }
        let lengths = self.staged.iter().map(|packet| DATA_MIN + padded_len(packet.len(), MTU));
        let outgoing = self.peer.send(self.staged.len() as u32, lengths.sum::<usize>() as u64, now);
        if let Outgoing::Session { .. } = outgoing {
            let staged = std::mem::take(&mut self.staged);
            self.seal(outgoing, staged.into(), now);
        }
    }

    fn seal(&mut self, outgoing: Outgoing, packets: Vec<Vec<u8>>, now: Instant) {
        let Outgoing::Session { keys, first_counter } = outgoing else { return };
        self.check_counters(&keys, first_counter, packets.len() as u32, now);
        for (packet, counter) in packets.into_iter().zip(first_counter..) {
            let mut buffer = vec![0; DATA_HEADER];
            buffer.extend(&packet);
            buffer.resize(DATA_HEADER + padded_len(packet.len(), MTU) + TAG, 0);
            keys.seal_message(counter, &mut buffer);
            self.out.push_back(buffer);
        }
    }

    fn check_counters(&mut self, keys: &KeyPair, first: u64, count: u32, now: Instant) {
        assert!(now.saturating_duration_since(keys.created()) < REJECT_AFTER_TIME, "a key seals beyond its age");
        let next = self.counters.entry(keys.local_index()).or_default();
        assert!(first >= *next, "counter {first} is given out twice on {keys:?}");
        *next = first + u64::from(count);
        assert!(*next <= REJECT_AFTER_MESSAGES, "a key seals beyond its count");
    }

    /// Takes a datagram from the network.
    pub(crate) fn receive(&mut self, datagram: &[u8], source: SocketAddr, now: Instant) -> Result<(), Refused> {
        let result = match classify(datagram) {
            Some(MessageKind::Data) => {
                self.receive_data(datagram, now);
                Ok(())
            }
            Some(MessageKind::Cookie) => {
                let reply = CookieReply::parse(datagram).expect("classified");
                self.peer.handle_cookie(&reply, now)
            }
            Some(kind) => self.receive_handshake(kind, datagram, source, now),
            None => Ok(()),
        };
        self.drain(now);
        result
    }

    fn receive_data(&mut self, datagram: &[u8], now: Instant) {
        let Some(header) = DataHeader::parse(datagram) else { return };
        let Some(Some(keys)) = self.indices.get(&header.receiver).cloned() else { return };
        let mut packet = datagram.to_vec();
        let Some(len) = keys.open_message(&mut packet) else { return };
        let mut incoming = [Incoming { counter: header.counter, len, fresh: false }];
        self.peer.receive(header.receiver, &mut incoming, now);
        if incoming[0].fresh {
            assert!(now.saturating_duration_since(keys.created()) < REJECT_AFTER_TIME, "a key opens beyond its age");
            assert!(header.counter < REJECT_AFTER_MESSAGES, "a key opens beyond its count");
            if len > 0 {
                self.delivered.push(packet[DATA_HEADER..DATA_HEADER + len].to_vec());
            }
        }
    }

    fn receive_handshake(
        &mut self,
        kind: MessageKind,
        datagram: &[u8],
        source: SocketAddr,
        now: Instant,
    ) -> Result<(), Refused> {
        match self.checker.check(datagram, source, self.under_load, now) {
            Verdict::Valid => {}
            Verdict::Invalid | Verdict::RateLimited => return Ok(()),
            Verdict::NeedsCookie => {
                let random = CookieRandom { secret: self.bytes(), nonce: self.bytes() };
                self.out.extend(self.checker.reply(datagram, source, random, now).map(|reply| reply.to_vec()));
                return Ok(());
            }
        }
        if kind == MessageKind::Response {
            return self.peer.handle_response(&Response::parse(datagram).expect("classified"), now);
        }
        let initiation = Initiation::parse(datagram).expect("classified");
        let Some(opened) = self.identity.open_initiation(&initiation) else { return Ok(()) };
        let fresh = self.fresh();
        let response = self.peer.handle_initiation(opened, fresh, now)?;
        self.out.push_back(response.to_vec());
        Ok(())
    }

    /// Another index and another key each time; that nobody can guess them is not asked for here.
    pub(crate) fn fresh(&mut self) -> Fresh {
        let ephemeral = self.bytes();
        Fresh { ephemeral, index: (self.random as u32) << 8 | (self.random >> 32) as u32 }
    }

    /// Different where it counts: of a private key, the first three and the last two bits mean nothing.
    fn bytes<const N: usize>(&mut self) -> [u8; N] {
        self.random += 1;
        let mut bytes = [0x5a; N];
        bytes[8..16].copy_from_slice(&self.random.to_le_bytes());
        bytes
    }
}

pub(crate) fn identity(number: u8) -> Arc<LocalIdentity> {
    Arc::new(LocalIdentity::new(&PrivateKey::from_bytes([number; 32])))
}

/// A packet as it comes out at the other end: cutting the padding off is the engine's, which reads the IP header.
pub(crate) fn padded(packet: &[u8]) -> Vec<u8> {
    let mut packet = packet.to_vec();
    packet.resize(padded_len(packet.len(), MTU), 0);
    packet
}
