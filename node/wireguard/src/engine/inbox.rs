//! What waits for the control thread, and what comes so far: handshake messages that prove something, and the numbers of
//! peers whose deadlines came closer.
//!
//! Whoever receives a message judges it first, so that strangers take no place that peers need: garbage takes none,
//! answers to handshakes that are not under way take none, and the three kinds that are left wait apart, each in a queue
//! of its own: answers, initiations to work on, and initiations that are told to bring a cookie.

use super::shared::{PeerId, Tables};
use super::sync::{Mutex, MutexGuard, Waker};
use crate::udp::Endpoint;
use mesh_wireguard_core::LocalIdentity;
use mesh_wireguard_core::cookie::{CookieRandom, Verdict};
use mesh_wireguard_core::gate::{Gate, MAX_QUEUED_HANDSHAKES};
use mesh_wireguard_core::message::{COOKIE_REPLY_LEN, CookieReply, INITIATION_LEN, MessageKind, Response, classify};
use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::{Arc, PoisonError};
use std::time::Instant;

/// Messages of each kind looked at before timers have their turn.
pub(super) const KNOCKS_AT_ONCE: usize = 64;

/// A message that is no data; an initiation is the longest.
#[derive(Clone, Copy)]
pub(crate) struct Knock {
    bytes: [u8; INITIATION_LEN],
    length: usize,
    pub(super) purpose: Purpose,
    pub(super) endpoint: Endpoint,
}

/// What is to be done with it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Purpose {
    /// The answer to an initiation of ours.
    Response,
    /// A cookie, for a handshake message of ours.
    Cookie,
    /// An initiation to answer.
    Initiation,
    /// An initiation or response to answer with a cookie.
    NeedsCookie,
}

impl Knock {
    /// Judges a message; `None` if it is not worth a place.
    pub(crate) fn judge(
        message: &[u8],
        endpoint: Endpoint,
        identity: &Identity,
        tables: &Tables,
        now: Instant,
    ) -> Option<Self> {
        let indexed = |index| tables.indices.get(index);
        let purpose = match classify(message)? {
            MessageKind::Data => return None,
            MessageKind::Cookie => {
                indexed(CookieReply::parse(message)?.receiver)?;
                Purpose::Cookie
            }
            MessageKind::Response => {
                indexed(Response::parse(message)?.receiver).filter(|indexed| indexed.keys.is_none())?;
                Purpose::Response
            }
            MessageKind::Initiation => Purpose::Initiation,
        };
        let purpose = match purpose {
            Purpose::Cookie => purpose,
            _ => match identity.judge(message, endpoint.remote, now) {
                Verdict::Valid => purpose,
                Verdict::NeedsCookie => Purpose::NeedsCookie,
                Verdict::Invalid | Verdict::RateLimited => return None,
            },
        };
        let mut bytes = [0; INITIATION_LEN];
        bytes[..message.len()].copy_from_slice(message);
        Some(Self { bytes, length: message.len(), purpose, endpoint })
    }

    pub(super) fn message(&self) -> &[u8] {
        &self.bytes[..self.length]
    }
}

/// What others leave for the control thread.
pub(crate) struct Inbox {
    held: Mutex<Held>,
    pub(super) waker: Waker,
}

#[derive(Default)]
struct Held {
    answers: VecDeque<Knock>,
    initiations: VecDeque<Knock>,
    need_cookies: VecDeque<Knock>,
    attention: Vec<PeerId>,
}

/// How much there was when some was taken.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Waiting {
    /// Initiations to work on.
    pub(super) initiations: usize,
    /// Whether messages are left.
    pub(super) more: bool,
}

impl Inbox {
    pub(crate) fn new() -> nix::Result<Self> {
        Ok(Self { held: Mutex::default(), waker: Waker::new()? })
    }

    /// Leaves a message, unless too many of its kind wait.
    pub(crate) fn knock(&self, knock: Knock) {
        let mut held = self.lock();
        let was_empty = held.queues().into_iter().all(|queue| queue.is_empty());
        let queue = held.queue(knock.purpose);
        if queue.len() < MAX_QUEUED_HANDSHAKES {
            queue.push_back(knock);
            drop(held);
            // It takes all that wait before it sleeps again.
            if was_empty {
                self.wake();
            }
        }
    }

    /// Asks to look at a peer.
    pub(crate) fn attend(&self, peer: PeerId) {
        self.lock().attention.push(peer);
        self.wake();
    }

    pub(crate) fn wake(&self) {
        self.waker.wake();
    }

    /// Takes some of the messages of each kind, and all numbers.
    pub(super) fn take(&self, knocks: &mut VecDeque<Knock>, attention: &mut Vec<PeerId>) -> Waiting {
        let mut held = self.lock();
        let initiations = held.initiations.len();
        for queue in held.queues() {
            knocks.extend(queue.drain(..queue.len().min(KNOCKS_AT_ONCE)));
        }
        attention.append(&mut held.attention);
        Waiting { initiations, more: held.queues().into_iter().any(|queue| !queue.is_empty()) }
    }

    fn lock(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Held {
    /// All queues of messages, those first that peers wait for.
    fn queues(&mut self) -> [&mut VecDeque<Knock>; 3] {
        [&mut self.answers, &mut self.initiations, &mut self.need_cookies]
    }

    fn queue(&mut self, purpose: Purpose) -> &mut VecDeque<Knock> {
        match purpose {
            Purpose::Response | Purpose::Cookie => &mut self.answers,
            Purpose::Initiation => &mut self.initiations,
            Purpose::NeedsCookie => &mut self.need_cookies,
        }
    }
}

/// Who the device is, and the gate before it; nobody, while it has no key.
#[derive(Default)]
pub(crate) struct Identity(Mutex<Option<(Arc<LocalIdentity>, Gate)>>);

impl Identity {
    pub(crate) fn set(&self, local: Option<Arc<LocalIdentity>>) {
        *self.lock() = local.map(|local| (local.clone(), Gate::new(&local)));
    }

    pub(super) fn get(&self) -> Option<Arc<LocalIdentity>> {
        self.lock().as_ref().map(|(local, _)| local.clone())
    }

    /// Takes note of how many initiations wait.
    pub(super) fn observe(&self, waiting: usize, now: Instant) {
        if let Some((_, gate)) = self.lock().as_mut() {
            gate.observe(waiting, now);
        }
    }

    /// The cookie reply to a message.
    pub(super) fn reply(&self, knock: &Knock, random: CookieRandom, now: Instant) -> Option<[u8; COOKIE_REPLY_LEN]> {
        let mut held = self.lock();
        held.as_mut()?.1.reply(knock.message(), knock.endpoint.remote, random, now)
    }

    fn judge(&self, message: &[u8], source: SocketAddr, now: Instant) -> Verdict {
        let mut held = self.lock();
        held.as_mut().map_or(Verdict::Invalid, |(_, gate)| gate.judge(message, source, now))
    }

    fn lock(&self) -> MutexGuard<'_, Option<(Arc<LocalIdentity>, Gate)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
