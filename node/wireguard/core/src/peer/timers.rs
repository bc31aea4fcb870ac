//! The timers of one peer (paper, section 6; the kernel's `timers.c`).
//!
//! Only when something is due: what is done then is `peer`'s. A timer is a point in time; none is ever cancelled
//! outside, one that was moved is simply not due yet.

use super::limits::{KEEPALIVE_TIMEOUT, MAX_ATTEMPTS, REKEY_TIMEOUT, REKEY_TIMEOUT_JITTER, ZERO_KEYS_AFTER};
use std::time::{Duration, Instant};

/// What has come due.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Due {
    /// An initiation may and should be sent.
    Initiate,
    /// The peer has not answered for too long.
    GiveUp,
    /// Data was received and not answered.
    Keepalive,
    /// Data was sent and not answered.
    NewHandshake,
    /// No new session for too long.
    ZeroKeys,
    /// The configured keepalive.
    PersistentKeepalive,
}

#[derive(Default)]
pub(super) struct Timers {
    /// The next initiation, first or repeated.
    initiate: Option<Instant>,
    keepalive: Option<Instant>,
    /// Data came while `keepalive` was already running.
    keepalive_again: bool,
    new_handshake: Option<Instant>,
    zero_keys: Option<Instant>,
    persistent: Option<Instant>,
    interval: Option<Duration>,
    /// Initiations since one was last asked for.
    attempts: u32,
    /// When a handshake message, initiation or response, was last sent.
    handshake_sent: Option<Instant>,
    jitter: Jitter,
}

impl Timers {
    pub(super) fn new(seed: u64) -> Self {
        Self { jitter: Jitter(seed), ..Self::default() }
    }

    /// The time at which something is due.
    pub(super) fn deadline(&self) -> Option<Instant> {
        [self.initiate, self.keepalive, self.new_handshake, self.zero_keys, self.persistent].into_iter().flatten().min()
    }

    /// Takes one thing that is due.
    pub(super) fn expire(&mut self, now: Instant) -> Option<Due> {
        if self.deadline().is_none_or(|deadline| deadline > now) {
            return None;
        }
        if take_due(&mut self.zero_keys, now) {
            return Some(Due::ZeroKeys);
        }
        if take_due(&mut self.new_handshake, now) {
            return Some(Due::NewHandshake);
        }
        if take_due(&mut self.keepalive, now) {
            return Some(Due::Keepalive);
        }
        if take_due(&mut self.persistent, now) {
            return Some(Due::PersistentKeepalive);
        }
        if take_due(&mut self.initiate, now) {
            return self.expire_initiate(now);
        }
        None
    }

    fn expire_initiate(&mut self, now: Instant) -> Option<Due> {
        if self.allowed(now) > now {
            // A response was sent meanwhile.
            self.initiate = Some(self.allowed(now) + self.jitter.next());
            return self.expire(now);
        }
        if self.attempts >= MAX_ATTEMPTS {
            self.keepalive = None;
            self.zero_keys.get_or_insert(now + ZERO_KEYS_AFTER);
            return Some(Due::GiveUp);
        }
        self.attempts += 1;
        // Should the initiation get lost on its way out, the next try comes all the same.
        self.initiated(now);
        Some(Due::Initiate)
    }

    /// A handshake is wanted, now or as soon as it is allowed.
    pub(super) fn want_handshake(&mut self, now: Instant) {
        self.attempts = 0;
        let allowed = self.allowed(now);
        if allowed <= now {
            self.initiate = Some(now);
        } else if self.initiate.is_none() {
            self.initiate = Some(allowed + self.jitter.next());
        }
    }

    /// An initiation is sent: wait for the response.
    pub(super) fn initiated(&mut self, now: Instant) {
        self.handshake_sent = Some(now);
        self.initiate = Some(now + REKEY_TIMEOUT + self.jitter.next());
    }

    /// A response is sent.
    pub(super) fn responded(&mut self, now: Instant) {
        self.handshake_sent = Some(now);
    }

    /// There are new keys.
    pub(super) fn session_derived(&mut self, now: Instant) {
        self.zero_keys = Some(now + ZERO_KEYS_AFTER);
    }

    /// Both sides have the new keys.
    pub(super) fn handshake_complete(&mut self) {
        self.initiate = None;
        self.attempts = 0;
    }

    /// The next handshake need not wait.
    pub(super) fn forget_handshake(&mut self) {
        self.handshake_sent = None;
    }

    /// Something authenticated, handshake messages too, is sent.
    pub(super) fn sent(&mut self, now: Instant) {
        self.keepalive = None;
        self.traversed(now);
    }

    /// Data is sent.
    pub(super) fn data_sent(&mut self, now: Instant) {
        self.keepalive_again = false;
        if self.new_handshake.is_none() {
            self.new_handshake = Some(now + KEEPALIVE_TIMEOUT + REKEY_TIMEOUT + self.jitter.next());
        }
    }

    /// A keepalive is sent.
    pub(super) fn keepalive_sent(&mut self, now: Instant) {
        if std::mem::take(&mut self.keepalive_again) {
            self.keepalive = Some(now + KEEPALIVE_TIMEOUT);
        }
    }

    /// Something authenticated, handshake messages too, was received.
    pub(super) fn received(&mut self, now: Instant) {
        self.new_handshake = None;
        self.traversed(now);
    }

    /// Data was received.
    pub(super) fn data_received(&mut self, now: Instant) {
        match self.keepalive {
            Some(_) => self.keepalive_again = true,
            None => self.keepalive = Some(now + KEEPALIVE_TIMEOUT),
        }
    }

    /// Sets the persistent keepalive; says whether it was off and is on now.
    pub(super) fn set_interval(&mut self, interval: Option<Duration>) -> bool {
        let turned_on = self.interval.is_none() && interval.is_some();
        self.interval = interval;
        if interval.is_none() {
            self.persistent = None;
        }
        turned_on
    }

    /// Makes jitter depend on one more random word.
    pub(super) fn stir(&mut self, random: u64) {
        self.jitter.0 ^= random;
    }

    fn traversed(&mut self, now: Instant) {
        if let Some(interval) = self.interval {
            self.persistent = Some(now + interval);
        }
    }

    fn allowed(&self, now: Instant) -> Instant {
        self.handshake_sent.map_or(now, |sent| sent + REKEY_TIMEOUT)
    }
}

fn take_due(timer: &mut Option<Instant>, now: Instant) -> bool {
    timer.take_if(|at| *at <= now).is_some()
}

/// A sequence of small times (SplitMix64): it keeps peers out of step and protects nothing.
#[derive(Default)]
struct Jitter(u64);

impl Jitter {
    fn next(&mut self) -> Duration {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut word = self.0;
        word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        word ^= word >> 31;
        REKEY_TIMEOUT_JITTER.mul_f64((word >> 32) as f64 / (1_u64 << 32) as f64)
    }
}
