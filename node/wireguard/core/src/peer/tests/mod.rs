//! A host around one peer, as the shell would be: staged packets, the table of indices, datagrams out and packets in.
//!
//! It checks at every step what must always hold: no counter is used twice on a key, no key opens or seals beyond its
//! limits, and the table holds no index that the peer has forgotten.

mod handshakes;
mod interop;
mod known_answers;
mod random_messages;
mod timing;

use super::limits::{REJECT_AFTER_MESSAGES, REJECT_AFTER_TIME};
use super::sessions::Session;
use super::*;
use crate::cookie::{CookieChecker, CookieRandom, Verdict};
use crate::keys::{DATA_HEADER, TAG, padded_len};
use crate::message::{
    CookieReply, DataHeader, INITIATION_LEN, Initiation, MessageKind, RESPONSE_LEN, Response, classify,
};
use crate::noise::Remote;
use mesh_types::PrivateKey;
use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use x25519_dalek::StaticSecret;

const MTU: usize = 1420;

/// Staged packets that a host keeps, as the kernel does.
const MAX_STAGED: usize = 128;

struct Host {
    identity: Arc<LocalIdentity>,
    checker: CookieChecker,
    peer: Peer,
    address: SocketAddr,
    under_load: bool,
    /// What the wall clock shows at `epoch`.
    wall: Duration,
    /// What it showed at most before it was set back.
    furthest: Duration,
    epoch: Instant,
    indices: BTreeMap<u32, Option<Arc<KeyPair>>>,
    staged: VecDeque<Vec<u8>>,
    /// Datagrams to be sent.
    out: VecDeque<Vec<u8>>,
    /// Packets that came out of the tunnel.
    delivered: Vec<Vec<u8>>,
    completed: usize,
    dropped: usize,
    random: u64,
    /// Counters that were sealed with, per session.
    used: BTreeMap<u32, BTreeSet<u64>>,
}

/// Two hosts that know each other.
fn pair(now: Instant) -> (Host, Host) {
    let psk = PresharedKey::from_bytes([7; 32]);
    let (a, b) = (private_key(1), private_key(2));
    let public = |private: &PrivateKey| LocalIdentity::new(private).public_key();
    (Host::new(&a, public(&b), Some(psk.clone()), now), Host::new(&b, public(&a), Some(psk), now))
}

fn private_key(number: u8) -> PrivateKey {
    PrivateKey::from_bytes(noise::hash(&[b"private key", &[number]]))
}

impl Host {
    fn new(private: &PrivateKey, remote: PublicKey, psk: Option<PresharedKey>, now: Instant) -> Self {
        let identity = Arc::new(LocalIdentity::new(private));
        Self {
            checker: CookieChecker::new(&identity),
            peer: Peer::new(&identity, remote, psk, None),
            address: SocketAddr::from(([192, 0, 2, 1], u16::from(private.as_bytes()[0]))),
            under_load: false,
            wall: Duration::from_secs(1_700_000_000),
            furthest: Duration::ZERO,
            epoch: now,
            indices: BTreeMap::new(),
            staged: VecDeque::new(),
            out: VecDeque::new(),
            delivered: Vec::new(),
            completed: 0,
            dropped: 0,
            random: word(private.as_bytes()),
            used: BTreeMap::new(),
            identity,
        }
    }

    fn public_key(&self) -> PublicKey {
        self.identity.public_key()
    }

    /// Hands a packet to the tunnel.
    fn send(&mut self, packet: &[u8], now: Instant) {
        if self.staged.len() == MAX_STAGED {
            self.staged.pop_front();
        }
        self.staged.push_back(packet.to_vec());
        self.send_staged(now);
        self.drain(now);
    }

    /// Does what is due by now.
    fn drain(&mut self, now: Instant) {
        while let Some(action) = self.peer.poll(now) {
            self.act(action, now);
        }
        let known: BTreeSet<u32> = self.peer.indices().collect();
        assert!(self.indices.keys().eq(&known), "the table has {:?}, the peer {known:?}", self.indices.keys());
    }

    fn act(&mut self, action: Action, now: Instant) {
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

    fn initiate(&mut self, now: Instant) {
        let fresh = self.fresh();
        let index = fresh.index;
        let stamp = Tai64n::from_unix(self.wall + now.saturating_duration_since(self.epoch));
        if let Some(message) = self.peer.initiate(fresh, stamp, now) {
            self.indices.insert(index, None);
            self.out.push_back(message.to_vec());
        }
    }

    fn send_keepalive(&mut self, now: Instant) {
        let outgoing = self.peer.send_keepalive(now);
        self.seal(outgoing, vec![vec![]], now);
    }

    fn send_staged(&mut self, now: Instant) {
        if self.staged.is_empty() {
            return;
        }
        let lens = self.staged.iter().map(|packet| DATA_MIN + padded_len(packet.len(), MTU));
        let outgoing = self.peer.send(self.staged.len() as u32, lens.sum::<usize>() as u64, now);
        if let Outgoing::Session { .. } = outgoing {
            let staged = std::mem::take(&mut self.staged);
            self.seal(outgoing, staged.into(), now);
        }
    }

    fn seal(&mut self, outgoing: Outgoing, packets: Vec<Vec<u8>>, now: Instant) {
        let Outgoing::Session { keys, first_counter } = outgoing else { return };
        assert!(now.saturating_duration_since(keys.created()) < REJECT_AFTER_TIME, "a key seals beyond its age");
        for (packet, counter) in packets.into_iter().zip(first_counter..) {
            assert!(counter < REJECT_AFTER_MESSAGES, "a key seals beyond its count");
            let fresh = self.used.entry(keys.local_index()).or_default().insert(counter);
            assert!(fresh, "counter {counter} is used twice on {keys:?}");
            let mut buffer = vec![0; DATA_HEADER];
            buffer.extend(&packet);
            buffer.resize(DATA_HEADER + padded_len(packet.len(), MTU) + TAG, 0);
            keys.seal_message(counter, &mut buffer);
            self.out.push_back(buffer);
        }
    }

    /// Takes a datagram from the network.
    fn receive(&mut self, datagram: &[u8], source: SocketAddr, now: Instant) -> Result<(), Refused> {
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
                let random =
                    CookieRandom { secret: self.bytes(), nonce: *self.bytes().first_chunk().expect("24 of 32") };
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

    fn fresh(&mut self) -> Fresh {
        let ephemeral = self.bytes();
        let index = word(&self.bytes()) as u32;
        Fresh { ephemeral, index }
    }

    fn bytes(&mut self) -> [u8; 32] {
        self.random = self.random.wrapping_add(1);
        noise::hash(&[b"random", self.identity.public_key().as_bytes(), &self.random.to_le_bytes()])
    }
}

/// Carries everything that either has to say to the other, at one moment, until there is silence.
fn talk(a: &mut Host, b: &mut Host, now: Instant) {
    loop {
        a.drain(now);
        b.drain(now);
        if a.out.is_empty() && b.out.is_empty() {
            return;
        }
        for datagram in std::mem::take(&mut a.out) {
            let _ = b.receive(&datagram, a.address, now);
        }
        for datagram in std::mem::take(&mut b.out) {
            let _ = a.receive(&datagram, b.address, now);
        }
    }
}

/// A pair with a session, made by the first, and nothing left to acknowledge.
fn connected(now: Instant) -> (Host, Host) {
    let (mut a, mut b) = pair(now);
    a.send(b"hello", now);
    talk(&mut a, &mut b, now);
    b.send(b"hello", now);
    talk(&mut a, &mut b, now);
    a.send_keepalive(now);
    talk(&mut a, &mut b, now);
    for host in [&mut a, &mut b] {
        assert_eq!(std::mem::take(&mut host.delivered), [padded(b"hello")]);
        assert_eq!(host.completed, 1);
    }
    (a, b)
}

/// A packet as it comes out at the other end: cutting the padding off is the shell's, which reads the IP header.
fn padded(packet: &[u8]) -> Vec<u8> {
    let mut packet = packet.to_vec();
    packet.resize(padded_len(packet.len(), MTU), 0);
    packet
}

fn secs(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

fn kinds(datagrams: &VecDeque<Vec<u8>>) -> Vec<MessageKind> {
    datagrams.iter().filter_map(|datagram| classify(datagram)).collect()
}
