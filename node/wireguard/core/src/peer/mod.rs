//! WireGuard's state about one peer: sessions, handshakes and timers, without I/O.
//!
//! The shell reserves counters with `send`, seals outside the lock and sends; it opens outside the lock and reports what
//! authenticated with `receive`. Handshake messages go through `initiate`, `handle_initiation`, `handle_response` and
//! `handle_cookie`; their mac1 must have been checked (`CookieChecker`). After every call, and when `deadline` has come,
//! `poll` says what there is to do. Staged packets, endpoints and the table of indices are the shell's.

mod handshake;
pub mod limits;
mod sessions;
#[cfg(test)]
mod tests;
mod timers;

use crate::cookie::CookieJar;
use crate::identity::LocalIdentity;
use crate::keys::KeyPair;
use crate::message::DATA_MIN;
use crate::noise::{self, Initiator, Secret};
use crate::tai64n::Tai64n;
use limits::{INITIATIONS_PER_SECOND, REKEY_AFTER_MESSAGES, REKEY_AFTER_TIME, REKEY_ON_RECEIVE_AFTER};
use mesh_types::{PresharedKey, PublicKey};
use sessions::Sessions;
use std::collections::VecDeque;
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};
use thiserror::Error;
use timers::{Due, Timers};
use zeroize::{Zeroize, ZeroizeOnDrop};

/// Random input for one handshake message.
#[derive(Zeroize, ZeroizeOnDrop)]
pub struct Fresh {
    /// An ephemeral private key: 32 random bytes.
    pub ephemeral: [u8; 32],
    /// An index that no handshake and no session of this device has now.
    pub index: u32,
}

/// What there is to send with.
#[derive(Debug)]
pub enum Outgoing {
    /// Seal with these keys, counting up from `first_counter`.
    Session {
        /// The keys.
        keys: Arc<KeyPair>,
        /// The counter of the first packet.
        first_counter: u64,
    },
    /// There is no session: stage the packets. A handshake has been asked for.
    NoSession,
}

/// One data message that authenticated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Incoming {
    /// Its counter.
    pub counter: u64,
    /// The length of its plaintext; 0 is a keepalive.
    pub len: usize,
    /// Set by `Peer::receive`: it was not seen before. Any other is to be dropped.
    pub fresh: bool,
}

/// What is to be done about a peer.
#[derive(Clone, Debug)]
pub enum Action {
    /// Call `initiate` and send the message.
    Initiate,
    /// Send what is staged.
    SendStaged,
    /// Send what is staged, or else one empty data message (`send_keepalive`).
    SendKeepalive,
    /// Drop what is staged: the peer has not answered for 90 seconds.
    DropStaged,
    /// Data messages for this local index are opened with these keys from now on.
    Install(Arc<KeyPair>),
    /// This local index, of a session or a handshake, is free again.
    Release(u32),
    /// A handshake is complete; the time for `latest handshake`.
    Completed,
}

/// Why a handshake message was dropped.
#[derive(Debug, Error, Clone, Copy, PartialEq, Eq)]
pub enum Refused {
    /// The initiation was made with another static key.
    #[error("the initiation is {0}'s, not this peer's")]
    Stranger(PublicKey),
    /// The shared secret of both static keys is zero, or the peer's key is this side's own.
    #[error("no handshake is possible with this public key: its shared secret is known to everyone, or it is our own")]
    UnusableKey,
    /// The message does not authenticate.
    #[error("the message does not authenticate: it was made with other keys or another preshared key, or forged")]
    Unauthentic,
    /// Its timestamp is not greater than the greatest seen.
    #[error("the initiation's timestamp is not newer than the last one: a replay, or the peer's clock went back")]
    Replayed,
    /// It comes too soon after the last one.
    #[error("more than {INITIATIONS_PER_SECOND} initiations a second")]
    Flood,
    /// No initiation of this side waits for it.
    #[error("no initiation waits for a response with receiver index {0:#010x}")]
    NotAwaited(u32),
    /// No message of this side waits for a cookie.
    #[error("the cookie reply does not belong to the last handshake message")]
    NoSuchCookie,
}

/// Counts and times, as `wg show` has them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Bytes of authenticated messages received.
    pub rx_bytes: u64,
    /// Bytes of messages sent.
    pub tx_bytes: u64,
    /// When the last handshake was complete.
    pub last_handshake: Option<Instant>,
    /// When something authenticated was last received.
    pub last_received: Option<Instant>,
}

/// The protocol's state about one peer.
pub struct Peer {
    local: Arc<LocalIdentity>,
    remote: PublicKey,
    /// The Diffie-Hellman of both static keys, unless there can be no handshake.
    static_static: Option<Secret>,
    preshared: PresharedKey,
    cookies: CookieJar,
    /// The initiation that waits for its response. One of the peer that crosses it leaves it alone.
    handshake: Option<Initiator>,
    /// The greatest timestamp of the peer's initiations.
    newest_initiation: Tai64n,
    initiation_taken: Option<Instant>,
    /// The timestamp of the last initiation of this side.
    last_stamp: Tai64n,
    sessions: Sessions,
    timers: Timers,
    /// The initiator has asked for a handshake because its current session ends soon.
    asked_on_receive: bool,
    actions: VecDeque<Action>,
    stats: Stats,
}

impl Peer {
    /// A peer without a session. With a persistent keepalive the first handshake is due at once.
    pub fn new(
        local: &Arc<LocalIdentity>,
        remote: PublicKey,
        preshared: Option<PresharedKey>,
        keepalive: Option<u16>,
    ) -> Self {
        let seed = noise::hash(&[local.public_key().as_bytes(), remote.as_bytes()]);
        let mut peer = Self {
            local: local.clone(),
            remote,
            static_static: static_static(local, &remote),
            preshared: preshared.unwrap_or(NO_PRESHARED_KEY),
            cookies: CookieJar::new(&remote),
            handshake: None,
            newest_initiation: Tai64n::default(),
            initiation_taken: None,
            last_stamp: Tai64n::default(),
            sessions: Sessions::default(),
            timers: Timers::new(word(&seed)),
            asked_on_receive: false,
            actions: VecDeque::new(),
            stats: Stats::default(),
        };
        peer.set_keepalive(keepalive);
        peer
    }

    /// The peer's static public key.
    pub fn public_key(&self) -> PublicKey {
        self.remote
    }

    /// The greatest timestamp of the peer's initiations; the smallest there is before the first.
    pub fn newest_initiation(&self) -> Tai64n {
        self.newest_initiation
    }

    /// Takes only initiations with a greater timestamp from now on: for a peer that was there before.
    pub fn set_newest_initiation(&mut self, newest: Tai64n) {
        self.newest_initiation = self.newest_initiation.max(newest);
    }

    /// Counts and times.
    pub fn stats(&self) -> Stats {
        self.stats
    }

    /// Sets the preshared key of handshakes to come; sessions live on.
    pub fn set_preshared_key(&mut self, preshared: Option<PresharedKey>) {
        self.preshared = preshared.unwrap_or(NO_PRESHARED_KEY);
    }

    /// Sets the persistent keepalive in seconds; 0 is off. Turning it on sends one at once.
    pub fn set_keepalive(&mut self, seconds: Option<u16>) {
        let interval = seconds.filter(|seconds| *seconds > 0).map(|seconds| Duration::from_secs(seconds.into()));
        if self.timers.set_interval(interval) {
            self.actions.push_back(Action::SendKeepalive);
        }
    }

    /// Gives this side a new static key: nothing more is sent on the sessions, the handshake under way is forgotten and
    /// the next one need not wait.
    pub fn set_identity(&mut self, local: &Arc<LocalIdentity>) {
        if local.public_key() == self.local.public_key() {
            return;
        }
        self.static_static = static_static(local, &self.remote);
        self.local = local.clone();
        self.end_handshake();
        self.sessions.stop_sending();
        self.timers.forget_handshake();
    }

    /// Reserves counters for `packets` data messages of `bytes` in all, headers and tags included.
    #[inline]
    pub fn send(&mut self, packets: u32, bytes: u64, now: Instant) -> Outgoing {
        let outgoing = self.reserve(packets, bytes, now);
        if let Outgoing::Session { .. } = outgoing {
            self.timers.data_sent(now);
        }
        outgoing
    }

    /// Reserves a counter for one empty data message.
    pub fn send_keepalive(&mut self, now: Instant) -> Outgoing {
        let outgoing = self.reserve(1, DATA_MIN as u64, now);
        if let Outgoing::Session { .. } = outgoing {
            self.timers.keepalive_sent(now);
        }
        outgoing
    }

    fn reserve(&mut self, packets: u32, bytes: u64, now: Instant) -> Outgoing {
        let Some((session, first_counter)) = self.sessions.reserve(packets, now) else {
            self.timers.want_handshake(now);
            return Outgoing::NoSession;
        };
        let keys = session.keys.clone();
        let worn = session.next_counter > REKEY_AFTER_MESSAGES
            || keys.is_initiator() && now.saturating_duration_since(keys.created()) >= REKEY_AFTER_TIME;
        self.stats.tx_bytes += bytes;
        self.timers.sent(now);
        if worn {
            self.timers.want_handshake(now);
        }
        Outgoing::Session { keys, first_counter }
    }

    /// Takes data messages of one session that authenticated, in their order, and marks those that are new.
    #[inline]
    pub fn receive(&mut self, local_index: u32, incoming: &mut [Incoming], now: Instant) {
        let session = self.sessions.find(local_index).filter(|session| !session.keys.expired(now));
        let Some(session) = session else {
            incoming.iter_mut().for_each(|packet| packet.fresh = false);
            return;
        };
        let mut data = false;
        let mut bytes = 0;
        for packet in incoming {
            packet.fresh = session.window.accept(packet.counter);
            if packet.fresh {
                data |= packet.len > 0;
                bytes += (DATA_MIN + packet.len) as u64;
            }
        }
        if bytes == 0 {
            return;
        }
        if self.sessions.is_next(local_index) {
            self.sessions.confirm(|index| self.actions.push_back(Action::Release(index)));
            self.complete(now);
            self.actions.push_back(Action::SendStaged);
        }
        self.refresh_on_receive(now);
        self.received(bytes, now);
        if data {
            self.timers.data_received(now);
        }
    }

    /// One thing that there is to do now.
    #[inline]
    pub fn poll(&mut self, now: Instant) -> Option<Action> {
        loop {
            if let Some(action) = self.actions.pop_front() {
                return Some(action);
            }
            match self.timers.expire(now)? {
                Due::Initiate => return Some(Action::Initiate),
                Due::GiveUp => return Some(Action::DropStaged),
                Due::Keepalive | Due::PersistentKeepalive => return Some(Action::SendKeepalive),
                Due::NewHandshake => self.timers.want_handshake(now),
                Due::ZeroKeys => self.end(),
            }
        }
    }

    /// The local indices that lead to this peer: of its sessions, of a handshake under way, and those that are free again
    /// and were not released yet.
    pub fn indices(&self) -> impl Iterator<Item = u32> {
        let freed = self.actions.iter().filter_map(|action| match action {
            Action::Release(index) => Some(*index),
            _ => None,
        });
        let handshake = self.handshake.as_ref().map(|handshake| handshake.index);
        handshake.into_iter().chain(self.sessions.indices()).chain(freed)
    }

    /// Whether `poll` has something to do whatever the time is.
    #[inline]
    pub fn has_actions(&self) -> bool {
        !self.actions.is_empty()
    }

    /// When `poll` has something to do again, if nothing is called before.
    pub fn deadline(&self) -> Option<Instant> {
        self.timers.deadline()
    }

    /// Wipes the keys of all sessions and of the handshake under way.
    fn end(&mut self) {
        self.end_handshake();
        self.sessions.clear(|index| self.actions.push_back(Action::Release(index)));
    }

    fn complete(&mut self, now: Instant) {
        self.timers.handshake_complete();
        self.asked_on_receive = false;
        self.stats.last_handshake = Some(now);
        self.actions.push_back(Action::Completed);
    }

    fn refresh_on_receive(&mut self, now: Instant) {
        let Some(session) = self.sessions.current.as_ref() else { return };
        let ends_soon = session.sending
            && session.keys.is_initiator()
            && now.saturating_duration_since(session.keys.created()) >= REKEY_ON_RECEIVE_AFTER;
        if ends_soon && !self.asked_on_receive {
            self.asked_on_receive = true;
            self.timers.want_handshake(now);
        }
    }

    fn sent(&mut self, bytes: usize, now: Instant) {
        self.stats.tx_bytes += bytes as u64;
        self.timers.sent(now);
    }

    fn received(&mut self, bytes: u64, now: Instant) {
        self.stats.rx_bytes += bytes;
        self.stats.last_received = Some(now);
        self.timers.received(now);
    }
}

impl fmt::Debug for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Peer").field("remote", &self.remote).field("stats", &self.stats).finish_non_exhaustive()
    }
}

/// What takes the place of a preshared key where there is none (paper, section 5.4).
const NO_PRESHARED_KEY: PresharedKey = PresharedKey::from_bytes([0; 32]);

fn static_static(local: &LocalIdentity, remote: &PublicKey) -> Option<Secret> {
    let own = local.public_key() == *remote;
    noise::shared_secret(local.private(), remote.as_bytes()).filter(|_| !own)
}

fn word(bytes: &[u8; 32]) -> u64 {
    u64::from_le_bytes(*bytes.first_chunk().expect("eight of thirty-two bytes"))
}
