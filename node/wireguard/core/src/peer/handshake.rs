//! A peer's handshakes, as initiator and as responder.
//!
//! Both roles are independent: an initiation of the peer that crosses one of this side leaves it waiting for its response,
//! so that both succeed, whichever comes first.

use super::limits::INITIATIONS_PER_SECOND;
use super::sessions::Session;
use super::{Action, Fresh, Peer, Refused, word};
use crate::message::{CookieReply, INITIATION_LEN, RESPONSE_LEN, Response};
use crate::noise::{self, ConsumedInitiation, Remote};
use crate::tai64n::Tai64n;
use std::sync::Arc;
use std::time::{Duration, Instant};
use x25519_dalek::StaticSecret;

impl Peer {
    /// Makes an initiation. `None` if there can be no handshake with the peer's key: the index is not used.
    ///
    /// `stamp` may stand still or go back: what is sent is greater than what was sent before.
    pub fn initiate(&mut self, fresh: Fresh, stamp: Tai64n, now: Instant) -> Option<[u8; INITIATION_LEN]> {
        self.timers.initiated(now);
        let remote = Remote { public: &self.remote, static_static: self.static_static.as_ref()? };
        let stamp = stamp.max(self.last_stamp.next());
        let ephemeral = StaticSecret::from(fresh.ephemeral);
        let (message, handshake) = noise::initiate(&self.local, remote, ephemeral, fresh.index, stamp)?;
        self.end_handshake();
        self.handshake = Some(handshake);
        self.last_stamp = stamp;
        self.timers.stir(word(&message.ephemeral));
        let mut bytes = message.write();
        self.cookies.sign(&mut bytes, now);
        self.sent(bytes.len(), now);
        Some(bytes)
    }

    /// Answers an initiation. The index of `fresh` is used only if there is an answer.
    pub fn handle_initiation(
        &mut self,
        initiation: ConsumedInitiation,
        fresh: Fresh,
        now: Instant,
    ) -> Result<[u8; RESPONSE_LEN], Refused> {
        if initiation.remote() != self.remote {
            return Err(Refused::Stranger(initiation.remote()));
        }
        let static_static = self.static_static.as_ref().ok_or(Refused::UnusableKey)?;
        let responder = initiation.prove(static_static).ok_or(Refused::Unauthentic)?;
        if responder.timestamp <= self.newest_initiation {
            return Err(Refused::Replayed);
        }
        let since = self.initiation_taken.map(|taken| now.saturating_duration_since(taken));
        if since.is_some_and(|since| since < Duration::from_secs(1) / INITIATIONS_PER_SECOND) {
            return Err(Refused::Flood);
        }
        self.newest_initiation = responder.timestamp;
        self.initiation_taken = Some(now);

        let ephemeral = StaticSecret::from(fresh.ephemeral);
        let (message, keys) = responder
            .respond(&self.remote, &self.preshared, &ephemeral, fresh.index, now)
            .ok_or(Refused::UnusableKey)?;
        let keys = Arc::new(keys);
        self.sessions.prepare(Session::new(keys.clone()), |index| self.actions.push_back(Action::Release(index)));
        self.actions.push_back(Action::Install(keys));
        self.timers.session_derived(now);
        self.timers.stir(word(&message.ephemeral));
        let mut bytes = message.write();
        self.cookies.sign(&mut bytes, now);
        self.timers.responded(now);
        self.sent(bytes.len(), now);
        self.received(INITIATION_LEN as u64, now);
        Ok(bytes)
    }

    /// Takes the response to this side's initiation: there is a session, to be confirmed at once by what is staged or a
    /// keepalive.
    pub fn handle_response(&mut self, message: &Response, now: Instant) -> Result<(), Refused> {
        let handshake = self.handshake.as_ref().filter(|handshake| handshake.index == message.receiver);
        let handshake = handshake.ok_or(Refused::NotAwaited(message.receiver))?;
        let keys = handshake.consume(&self.local, &self.preshared, message, now).ok_or(Refused::Unauthentic)?;
        self.handshake = None;
        let keys = Arc::new(keys);
        self.sessions.begin(Session::new(keys.clone()), |index| self.actions.push_back(Action::Release(index)));
        self.actions.push_back(Action::Install(keys));
        self.timers.session_derived(now);
        self.complete(now);
        self.actions.push_back(Action::SendKeepalive);
        self.received(RESPONSE_LEN as u64, now);
        Ok(())
    }

    /// Takes the answer of a peer under load: the next handshake message carries its cookie.
    pub fn handle_cookie(&mut self, message: &CookieReply, now: Instant) -> Result<(), Refused> {
        if self.cookies.take(message, now) { Ok(()) } else { Err(Refused::NoSuchCookie) }
    }

    /// Forgets the initiation under way, and wipes its keys.
    pub(super) fn end_handshake(&mut self) {
        if let Some(handshake) = self.handshake.take() {
            self.actions.push_back(Action::Release(handshake.index));
        }
    }
}
