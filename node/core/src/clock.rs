//! Mesh time on a node: heard from the coordinators, carried on by the time since boot, remembered over restarts.
//!
//! The wall clock of the host is believed only until the first word of a fresh coordinator, and even then only
//! forwards: a host without a battery starts in 1970. What was found out about it is remembered, but somebody may have
//! set it right since. Nothing here reads a clock, the shell does that.

use mesh_types::session::Tick;
use mesh_types::{MeshDuration, MeshTime};
use serde::{Deserialize, Serialize};
use std::ops::Add;
use std::time::Duration;

/// A moment by the host's monotonic clock that goes on during suspend (`CLOCK_BOOTTIME`), in microseconds.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub struct BootTime(u64);

impl BootTime {
    /// The moment `elapsed` after boot.
    pub fn from_elapsed(elapsed: Duration) -> Self {
        Self(u64::try_from(elapsed.as_micros()).unwrap_or(u64::MAX))
    }

    /// The moment `millis` milliseconds after boot.
    pub const fn from_millis(millis: u64) -> Self {
        Self(millis.saturating_mul(1000))
    }

    /// The moment `micros` microseconds after boot.
    pub const fn from_micros(micros: u64) -> Self {
        Self(micros)
    }

    /// Microseconds since boot.
    pub const fn as_micros(self) -> u64 {
        self.0
    }

    /// The span since `earlier`; zero if that lies ahead.
    pub const fn since(self, earlier: Self) -> Duration {
        Duration::from_micros(self.0.saturating_sub(earlier.0))
    }
}

impl Add<Duration> for BootTime {
    type Output = Self;

    fn add(self, span: Duration) -> Self {
        Self(self.0.saturating_add(u64::try_from(span.as_micros()).unwrap_or(u64::MAX)))
    }
}

/// The present by both of the host's clocks; every input of the core carries one.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Now {
    /// Since boot: never jumps.
    pub boot: BootTime,
    /// The host's wall clock: may be wrong and may jump.
    pub wall: MeshTime,
}

/// What of mesh time survives a restart.
#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Debug)]
pub struct StoredClock {
    /// The highest mesh time that a coordinator vouched for.
    pub highest: MeshTime,
    /// Mesh time minus the host's wall clock at that moment, in milliseconds.
    pub offset: i64,
}

/// How far mesh time on this node can be relied on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Trust {
    /// A fresh coordinator told it since the daemon started.
    Heard,
    /// Taken from the host's clock, which does not contradict what was stored.
    Assumed,
    /// The host's clock is behind what was stored, or it may have been set since or not: mesh time may be behind, and
    /// deadlines pass late by up to the time that the host was off.
    Behind,
}

/// Mesh time as this node knows it.
#[derive(Clone, Debug)]
pub struct Clock {
    /// Mesh time was at least this much at that moment since boot.
    anchor: (BootTime, MeshTime),
    offset: i64,
    heard: bool,
}

/// A tick that is this much behind what we believe was held up on its way; more is a correction by the authority.
const DELAY: Duration = Duration::from_secs(10);
/// Clocks run apart by as much and nobody sets them for it; an offset that is larger, or changes by more, is no drift.
const DRIFT: MeshDuration = MeshDuration::from_secs(60);

impl StoredClock {
    /// Whether the host's clock was set between the two.
    pub fn was_set_before(&self, later: &Self) -> bool {
        self.offset.abs_diff(later.offset) > DRIFT.0
    }
}

impl Clock {
    /// Starts from what is stored: the highest mesh time seen, and how far the wall clock was off then.
    pub fn restore(stored: Option<StoredClock>, now: Now) -> Self {
        let offset = stored.map_or(0, |s| s.offset);
        let highest = stored.map_or(MeshTime(0), |s| s.highest);
        Self { anchor: (now.boot, highest), offset, heard: false }
    }

    /// Takes the mesh time from a coordinator; one without contact to a leader is not believed.
    pub fn hear(&mut self, tick: &Tick, now: Now) {
        if !tick.fresh {
            return;
        }
        let carried = self.carried(now.boot);
        let delayed = tick.time < carried && carried.since(tick.time).to_std() < DELAY;
        if !(self.heard && delayed) {
            self.anchor = (now.boot, tick.time);
        }
        self.heard = true;
    }

    /// Mesh time at `now`.
    pub fn now(&self, now: Now) -> MeshTime {
        let carried = self.carried(now.boot);
        if self.heard { carried } else { self.supposed(now).min().unwrap_or(carried) }
    }

    /// How far to rely on it.
    pub fn trust(&self, now: Now) -> Trust {
        match self.supposed(now).count() {
            _ if self.heard => Trust::Heard,
            1 => Trust::Assumed,
            _ => Trust::Behind,
        }
    }

    /// When, by the time since boot, mesh time will be `deadline`; the present if it has passed.
    pub fn boot_at(&self, deadline: MeshTime, now: Now) -> BootTime {
        now.boot + self.now(now).until(deadline).to_std()
    }

    /// What to store, if a coordinator has vouched for the time.
    pub fn to_store(&self, now: Now) -> Option<StoredClock> {
        let highest = self.carried(now.boot);
        self.heard.then(|| StoredClock { highest, offset: highest.0.wrapping_sub(now.wall.0).cast_signed() })
    }

    fn carried(&self, boot: BootTime) -> MeshTime {
        let (at, time) = self.anchor;
        MeshTime(time.0.saturating_add(u64::try_from(boot.since(at).as_millis()).unwrap_or(u64::MAX)))
    }

    /// What mesh time may be by the wall clock: with the offset that was stored, or as it is, if that offset is no
    /// drift and somebody may have set the clock right meanwhile. Memory rules out what lies before it.
    ///
    /// Of two the earlier is taken. If that is the wrong one, peers live longer by at most the time that the host was
    /// off; the later, if wrong, distrusts the certificates of all who could correct it.
    fn supposed(&self, now: Now) -> impl Iterator<Item = MeshTime> + use<> {
        let carried = self.carried(now.boot);
        let corrected = MeshTime(now.wall.0.saturating_add_signed(self.offset));
        let as_it_is = (self.offset.unsigned_abs() > DRIFT.0).then_some(now.wall);
        [Some(corrected), as_it_is].into_iter().flatten().filter(move |&time| time >= carried)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    const DAY: u64 = 86_400_000;
    const TODAY: u64 = 1_800_000_000_000;

    fn now(boot: u64, wall: u64) -> Now {
        Now { boot: BootTime::from_millis(boot), wall: MeshTime(wall) }
    }

    fn tick(time: u64, fresh: bool) -> Tick {
        Tick { time: MeshTime(time), fresh, leader: None, voters: BTreeSet::new() }
    }

    #[test]
    fn once_heard_time_goes_on_by_boot_time_whatever_the_wall_clock_does() {
        let mut clock = Clock::restore(None, now(0, 5));
        clock.hear(&tick(TODAY, true), now(1_000, 5));
        assert_eq!(clock.now(now(4_000, 99 * DAY)), MeshTime(TODAY + 3_000));
        assert_eq!(clock.trust(now(4_000, 0)), Trust::Heard);
    }

    #[test]
    fn a_coordinator_without_a_leader_is_not_believed() {
        let mut clock = Clock::restore(None, now(0, TODAY));
        clock.hear(&tick(TODAY + DAY, false), now(0, TODAY));
        assert_eq!(clock.now(now(0, TODAY)), MeshTime(TODAY));
        assert_eq!(clock.to_store(now(0, TODAY)), None);
    }

    #[test]
    fn after_a_boot_the_earliest_that_memory_allows_of_the_clock_as_it_is_and_as_it_was_corrected_counts() {
        let hour = DAY.cast_signed() / 24;
        let (ago, ahead) = (TODAY.cast_signed(), DAY.cast_signed());
        for (offset, wall, expected, trust) in [
            (500, TODAY + DAY, TODAY + DAY + 500, Trust::Assumed),
            (500, 0, TODAY, Trust::Behind),
            // As wrong as it was.
            (ago, 7_000, TODAY + 7_000, Trust::Assumed),
            (-ahead, TODAY + DAY + 7_000, TODAY + 7_000, Trust::Behind),
            // Set right since.
            (ago, TODAY + 7_000, TODAY + 7_000, Trust::Behind),
            (-ahead, TODAY + 7_000, TODAY + 7_000, Trust::Assumed),
            // Off for longer than it is wrong: one or the other.
            (hour, TODAY + DAY, TODAY + DAY, Trust::Behind),
            (-hour, TODAY + DAY, TODAY + DAY - DAY / 24, Trust::Behind),
        ] {
            let clock = Clock::restore(Some(StoredClock { highest: MeshTime(TODAY), offset }), now(7, wall));
            let found = (clock.now(now(7, wall)), clock.trust(now(7, wall)));
            assert_eq!(found, (MeshTime(expected), trust), "{offset} {wall}");
        }
        let stored = Some(StoredClock { highest: MeshTime(TODAY), offset: 500 });
        let behind = Clock::restore(stored, now(0, 0));
        assert_eq!(behind.now(now(60_000, 60_000)), MeshTime(TODAY + 60_000), "it goes on all the same");
        assert_eq!(behind.trust(now(60_000, TODAY + DAY)), Trust::Assumed, "the clock was set meanwhile");
    }

    #[test]
    fn what_is_stored_gives_the_same_time_after_a_restart() {
        let mut clock = Clock::restore(None, now(0, TODAY - 1_234));
        clock.hear(&tick(TODAY, true), now(0, TODAY - 1_234));
        let stored = clock.to_store(now(10_000, TODAY + 8_766));
        let again = Clock::restore(stored, now(3, TODAY + 100_000));
        assert_eq!(again.now(now(3, TODAY + 100_000)), MeshTime(TODAY + 101_234));
    }

    #[test]
    fn a_clock_that_is_set_right_while_mesh_time_is_known_is_no_more_corrected_after_a_restart() {
        let mut clock = Clock::restore(None, now(0, 0));
        clock.hear(&tick(TODAY, true), now(0, 0));
        let before = clock.to_store(now(1_000, 1_000)).unwrap();
        let after = clock.to_store(now(2_000, TODAY + 2_000)).unwrap();
        assert!(before.was_set_before(&after) && !after.was_set_before(&after));
        let again = Clock::restore(Some(after), now(0, TODAY + DAY));
        let present = now(0, TODAY + DAY);
        assert_eq!((again.now(present), again.trust(present)), (MeshTime(TODAY + DAY), Trust::Assumed));
    }

    #[test]
    fn a_late_tick_does_not_turn_time_back_but_a_correction_does() {
        let mut clock = Clock::restore(None, now(0, 0));
        clock.hear(&tick(TODAY, true), now(0, 0));
        clock.hear(&tick(TODAY, true), now(2_000, 0));
        assert_eq!(clock.now(now(2_000, 0)), MeshTime(TODAY + 2_000));
        clock.hear(&tick(TODAY - DAY, true), now(2_000, 0));
        assert_eq!(clock.now(now(2_000, 0)), MeshTime(TODAY - DAY));
    }

    #[test]
    fn a_wall_clock_of_the_far_future_is_put_right_by_the_first_word() {
        let mut clock = Clock::restore(None, now(0, TODAY * 2));
        assert_eq!(clock.now(now(0, TODAY * 2)), MeshTime(TODAY * 2));
        clock.hear(&tick(TODAY, true), now(0, TODAY * 2));
        assert_eq!(clock.now(now(0, TODAY * 2)), MeshTime(TODAY));
    }

    #[test]
    fn a_deadline_comes_exactly_when_mesh_time_reaches_it() {
        let mut clock = Clock::restore(None, now(0, 0));
        clock.hear(&tick(TODAY, true), now(777, 0));
        let present = now(1_000, 0);
        let at = clock.boot_at(MeshTime(TODAY + 5_000), present);
        assert_eq!(at, BootTime::from_millis(5_777));
        assert_eq!(clock.boot_at(MeshTime(5), present), present.boot);
    }
}
