//! The sessions with one peer, from the one to come to those that only late packets still use.
//!
//! A responder must not send on a new session before its initiator has shown, by using it, that the handshake arrived:
//! until then it is `next`. Old sessions go on receiving, so that a rekey loses nothing; two of them are kept, because
//! two handshakes that cross each other replace two sessions at once. (The kernel keeps one, and lets neither of two
//! crossing handshakes succeed.)

use super::limits::REJECT_AFTER_MESSAGES;
use crate::keys::KeyPair;
use crate::replay::ReplayWindow;
use std::sync::Arc;
use std::time::Instant;

/// One session: its keys and what has been used up of them.
pub(super) struct Session {
    pub(super) keys: Arc<KeyPair>,
    pub(super) next_counter: u64,
    /// Cleared for good when the keys may not send any more.
    pub(super) sending: bool,
    pub(super) window: ReplayWindow,
}

impl Session {
    pub(super) fn new(keys: Arc<KeyPair>) -> Box<Self> {
        Box::new(Self { keys, next_counter: 0, sending: true, window: ReplayWindow::default() })
    }
}

/// Every session that may still send or receive.
#[derive(Default)]
pub(super) struct Sessions {
    /// Made as responder, not confirmed yet.
    pub(super) next: Option<Box<Session>>,
    /// The one to send on.
    pub(super) current: Option<Box<Session>>,
    /// Those before it, the youngest first.
    pub(super) previous: [Option<Box<Session>>; 2],
}

impl Sessions {
    /// Takes a session that is known to both sides, and calls `release` for those that have to go.
    pub(super) fn begin(&mut self, session: Box<Session>, release: impl FnMut(u32)) {
        let next = self.next.take();
        let current = self.current.replace(session);
        self.retire([next, current], release);
    }

    /// Takes a session that the initiator has yet to confirm.
    pub(super) fn prepare(&mut self, session: Box<Session>, mut release: impl FnMut(u32)) {
        if let Some(unused) = self.next.replace(session) {
            release(unused.keys.local_index());
        }
    }

    /// Makes the next session the current one.
    pub(super) fn confirm(&mut self, release: impl FnMut(u32)) {
        if let Some(next) = self.next.take() {
            let current = self.current.replace(next);
            self.retire([current, None], release);
        }
    }

    /// Ends sending on all sessions; what is under way towards here is still received.
    pub(super) fn stop_sending(&mut self) {
        for session in [&mut self.next, &mut self.current].into_iter().flatten() {
            session.sending = false;
        }
    }

    /// Forgets all sessions.
    pub(super) fn clear(&mut self, mut release: impl FnMut(u32)) {
        let Self { next, current, previous: [first, second] } = std::mem::take(self);
        [next, current, first, second].into_iter().flatten().for_each(|session| release(session.keys.local_index()));
    }

    /// Reserves `packets` counters of the current session, all or none.
    pub(super) fn reserve(&mut self, packets: u32, now: Instant) -> Option<(&mut Session, u64)> {
        let session = self.current.as_deref_mut().filter(|session| session.sending)?;
        let first = session.next_counter;
        let end = first.saturating_add(packets.into());
        if session.keys.expired(now) || end > REJECT_AFTER_MESSAGES {
            session.sending = false;
            return None;
        }
        session.next_counter = end;
        Some((session, first))
    }

    pub(super) fn find(&mut self, local_index: u32) -> Option<&mut Session> {
        let Self { next, current, previous: [first, second] } = self;
        [current, next, first, second]
            .into_iter()
            .filter_map(|slot| slot.as_deref_mut())
            .find(|session| session.keys.local_index() == local_index)
    }

    /// The local indices of all sessions.
    pub(super) fn indices(&self) -> impl Iterator<Item = u32> {
        let Self { next, current, previous: [first, second] } = self;
        [next, current, first, second].into_iter().flatten().map(|session| session.keys.local_index())
    }

    pub(super) fn is_next(&self, local_index: u32) -> bool {
        self.next.as_ref().is_some_and(|session| session.keys.local_index() == local_index)
    }

    fn retire(&mut self, retired: [Option<Box<Session>>; 2], mut release: impl FnMut(u32)) {
        let previous = std::mem::take(&mut self.previous);
        let mut sessions = retired.into_iter().chain(previous).flatten();
        self.previous = [sessions.next(), sessions.next()];
        sessions.for_each(|session| release(session.keys.local_index()));
    }
}
