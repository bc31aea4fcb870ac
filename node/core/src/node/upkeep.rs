//! What time alone brings: the clock on disk, renewals, warnings, and the search for a fresh coordinator.

use super::{Node, Validity};
use crate::action::{Action, Warning};
use crate::clock::{BootTime, Now, StoredClock, Trust};
use crate::journal::Record;
use mesh_types::{MeshDuration, MeshTime};
use std::time::Duration;

/// Between two notes of the time on disk.
const STORE_CLOCK: Duration = Duration::from_secs(60);
/// Between the first two searches for a coordinator with contact to a leader, doubled each time: when none has, every
/// node asks every coordinator each time.
const LOOK_ELSEWHERE: Duration = Duration::from_secs(5);
/// The longest such wait. The session's own coordinator tells at once when it has contact again.
const LOOK_ELSEWHERE_LONGEST: Duration = Duration::from_secs(60);
/// The first wait after asking for a renewal, doubled each time.
const RENEW_RETRY: Duration = Duration::from_secs(1);
/// The longest such wait.
const RENEW_RETRY_LONGEST: Duration = Duration::from_secs(600);

/// When to do again what time brings.
#[derive(Default)]
pub(super) struct Upkeep {
    stored: Option<BootTime>,
    search: Search,
    /// Whether the session's coordinator had contact to a leader when last looked.
    fresh: bool,
    key: Renewal,
    certificate: Renewal,
}

/// Searching for a coordinator with contact to a leader, from when the session's has none until one has.
#[derive(Default)]
struct Search {
    tries: u32,
    not_before: BootTime,
}

impl Search {
    /// The wait after one more try.
    fn wait(&mut self) -> Duration {
        let wait = LOOK_ELSEWHERE.saturating_mul(1 << self.tries.min(10)).min(LOOK_ELSEWHERE_LONGEST);
        self.tries += 1;
        wait
    }
}

/// Asking for a renewal until the deadline is seen to move.
#[derive(Default)]
struct Renewal {
    deadline: MeshTime,
    tries: u32,
    not_before: BootTime,
}

impl Renewal {
    /// Forgets past tries if the deadline has moved.
    fn follow(&mut self, deadline: MeshTime) {
        if self.deadline != deadline {
            *self = Self { deadline, ..Self::default() };
        }
    }

    /// Past tries failed for a reason that is gone: tries again after `wait`.
    fn encourage(&mut self, wait: Duration, now: BootTime) {
        self.tries = 0;
        self.not_before = self.not_before.min(now + wait);
    }

    /// The wait after one more try.
    fn wait(&mut self) -> Duration {
        let wait = RENEW_RETRY.saturating_mul(1 << self.tries.min(10)).min(RENEW_RETRY_LONGEST);
        self.tries += 1;
        wait
    }
}

impl Node {
    pub(super) fn keep_up(&mut self, now: Now) {
        self.store_clock(now);
        self.notice_leader(now);
        self.renew_key(now);
        self.renew_certificate(now);
        self.look_elsewhere(now);
        self.warn_of_deadlines(now);
    }

    /// When anything is next to be done without anything happening.
    pub(super) fn next_wake(&self, now: Now) -> Option<BootTime> {
        let at = |time: MeshTime, not_before: BootTime| self.clock.boot_at(time, now).max(not_before);
        let key = self.is_member().then(|| at(self.key_renewal(), self.upkeep.key.not_before));
        let certificate = self.setup.certificate.map(|c| at(half_life(c), self.upkeep.certificate.not_before));
        let clock = self.clock.to_store(now).and(self.upkeep.stored).map(|at| at + STORE_CLOCK);
        let voice = self.voice.due().filter(|_| self.has_session());
        let search = (self.is_fresh() == Some(false)).then_some(self.upkeep.search.not_before);
        let deadline = self.own_record().expires_at;
        let warnings = [self.warning_of(deadline), deadline].into_iter().filter(|&time| time > self.clock.now(now));
        let warnings = warnings.min().map(|time| self.clock.boot_at(time, now));
        [key, certificate, clock, voice, search, warnings, self.device_due(now), self.probing_due(now)]
            .into_iter()
            .flatten()
            .min()
    }

    /// Raises or clears a warning; whether it is new.
    pub(super) fn warn(&mut self, warning: Warning, on: bool) -> bool {
        if !on {
            self.warnings.remove(&warning);
            return false;
        }
        let new = self.warnings.insert(warning.clone());
        if new {
            self.actions.push_back(Action::Warn(warning));
        }
        new
    }

    /// Once a minute, and at once when the host's clock was set: a restart would judge it by how wrong it was before.
    fn store_clock(&mut self, now: Now) {
        let due = self.upkeep.stored.is_none_or(|at| now.boot >= at + STORE_CLOCK);
        let set = |held: StoredClock| self.clock.to_store(now).is_some_and(|clock| held.was_set_before(&clock));
        if due || self.cache.clock.is_some_and(set) {
            self.remember_clock(now);
        }
    }

    /// Keeps the time for the next life, if a coordinator has vouched for it.
    pub(super) fn remember_clock(&mut self, now: Now) {
        if let Some(clock) = self.clock.to_store(now) {
            self.upkeep.stored = Some(now.boot);
            self.remember(Record::Clock(clock));
        }
    }

    /// When half of the lease is left, a little later for some nodes than for others.
    fn key_renewal(&self) -> MeshTime {
        let ttl = self.config().key_ttl.0;
        let spread = (ttl / 16 / 1024).saturating_mul(self.setup.seed % 1024);
        self.own_record().expires_at - MeshDuration((ttl / 2).saturating_sub(spread))
    }

    fn renew_key(&mut self, now: Now) {
        let deadline = self.own_record().expires_at;
        self.upkeep.key.follow(deadline);
        let due = self.clock.now(now) >= self.key_renewal() && now.boot >= self.upkeep.key.not_before;
        if due && self.is_member() {
            let wait = self.upkeep.key.wait();
            self.upkeep.key.not_before = now.boot + self.random.jitter(wait);
            self.actions.push_back(Action::RenewKey);
        }
    }

    fn renew_certificate(&mut self, now: Now) {
        let Some(validity) = self.setup.certificate else { return };
        self.upkeep.certificate.follow(validity.not_after);
        if self.clock.now(now) >= half_life(validity) && now.boot >= self.upkeep.certificate.not_before {
            let wait = self.upkeep.certificate.wait();
            self.upkeep.certificate.not_before = now.boot + self.random.jitter(wait);
            self.actions.push_back(Action::RenewCertificate);
        }
    }

    /// When a leader is back, a renewal that had to wait for one waits no longer; not all nodes at the same moment.
    fn notice_leader(&mut self, now: Now) {
        let fresh = self.is_fresh() == Some(true);
        if fresh && !self.upkeep.fresh {
            let wait = Duration::from_micros(self.random.next() % 1_000_000);
            self.upkeep.key.encourage(wait, now.boot);
        }
        self.upkeep.fresh = fresh;
    }

    /// Searches at once when the session's coordinator has lost its leader, then ever more seldom, also over sessions
    /// with others that have none either.
    fn look_elsewhere(&mut self, now: Now) {
        let fresh = self.is_fresh();
        self.warn(Warning::Stale, fresh == Some(false));
        match fresh {
            Some(true) => self.upkeep.search = Search::default(),
            Some(false) if now.boot >= self.upkeep.search.not_before => {
                let wait = self.upkeep.search.wait();
                self.upkeep.search.not_before = now.boot + self.random.jitter(wait);
                self.actions.push_back(Action::LookElsewhere);
            }
            Some(false) | None => {}
        }
    }

    /// Whether the session's coordinator has contact to a leader; none without a session.
    fn is_fresh(&self) -> Option<bool> {
        self.session.as_ref().and_then(|session| session.welcomed.as_ref()).map(|(_, status)| status.fresh)
    }

    /// From when on it is said that a lease which ends at `deadline` is not renewed: a quarter of it is left.
    fn warning_of(&self, deadline: MeshTime) -> MeshTime {
        deadline - MeshDuration(self.config().key_ttl.0 / 4)
    }

    fn warn_of_deadlines(&mut self, now: Now) {
        let deadline = self.own_record().expires_at;
        let present = self.clock.now(now);
        let others = |w: &Warning| matches!(w, Warning::ExpiresSoon(at) | Warning::Expired(at) if *at != deadline);
        self.warnings.retain(|w| !others(w));
        let expired = deadline <= present;
        self.warn(Warning::Expired(deadline), expired);
        self.warn(Warning::ExpiresSoon(deadline), !expired && self.warning_of(deadline) <= present);
        self.warn(Warning::ClockBehind, self.clock.trust(now) == Trust::Behind);
    }
}

/// The middle of a certificate's life.
fn half_life(validity: Validity) -> MeshTime {
    let Validity { not_before, not_after } = validity;
    not_before + MeshDuration(not_after.since(not_before).0 / 2)
}
