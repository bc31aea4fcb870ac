//! Guards the proposer's clock: the registry's time only goes forward, so one wild stamp could not be undone.
//!
//! A stamp far beyond the last one plus the monotonic time elapsed since is refused, until others confirm it. The guard
//! lives as long as the process; it reads no clock itself.

use mesh_types::{MeshDuration, MeshTime};
use std::ops::{Add, Sub};
use thiserror::Error;

/// How far a stamp may jump ahead of what elapsed before somebody has to confirm it.
pub const MAX_JUMP: MeshDuration = MeshDuration::from_secs(600);

/// Two replicas' clocks agree within this: hosts with any time service do by far, others drift for months into it.
pub const MAX_SKEW: MeshDuration = MeshDuration::from_secs(60);

/// Milliseconds of a clock that only goes forward, also over suspend; its zero means nothing.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub struct Monotonic(pub u64);

impl Monotonic {
    /// The time since `earlier`; zero if it lies ahead.
    pub fn since(self, earlier: Monotonic) -> MeshDuration {
        MeshDuration(self.0.saturating_sub(earlier.0))
    }
}

impl Add<MeshDuration> for Monotonic {
    type Output = Self;

    fn add(self, span: MeshDuration) -> Self {
        Self(self.0.saturating_add(span.0))
    }
}

impl Sub<MeshDuration> for Monotonic {
    type Output = Self;

    fn sub(self, span: MeshDuration) -> Self {
        Self(self.0.saturating_sub(span.0))
    }
}

/// Both clocks, read together.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Now {
    /// For spans.
    pub monotonic: Monotonic,
    /// For stamps and for nodes.
    pub mesh: MeshTime,
}

/// Who else can say what time it is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Witness {
    /// Other voters.
    Voters {
        /// Milliseconds that each one's clock is ahead of ours, of those that answered.
        offsets: Vec<i64>,
        /// How many voters there are, this one among them.
        voters: usize,
    },
    /// This is the only voter.
    Alone {
        /// Whether the kernel says that its clock is synchronised, or the operator that it is right.
        confirmed: bool,
    },
}

impl Witness {
    fn confirms(&self) -> bool {
        match self {
            Self::Voters { offsets, voters } => {
                let agreeing = offsets.iter().filter(|offset| offset.unsigned_abs() <= MAX_SKEW.0).count();
                (agreeing + 1) * 2 > *voters
            }
            Self::Alone { confirmed } => *confirmed,
        }
    }
}

/// Why this replica must not stamp an entry now.
#[derive(Debug, Error, PartialEq, Eq, Clone)]
pub enum ClockRefusal {
    /// A jump that too few others confirm.
    #[error(
        "this coordinator's clock says {wall}, {ahead} ahead of the mesh's last known time, and no majority of coordinators agrees: set the clock right (chronyc makestep, or timedatectl set-ntp true)"
    )]
    NoMajority {
        /// What the clock says.
        wall: MeshTime,
        /// How far that is beyond what elapsed.
        ahead: MeshDuration,
    },
    /// A jump, and nobody to ask.
    #[error(
        "this coordinator's clock says {wall}, {ahead} ahead of the mesh's last known time, and is not synchronised: set the clock right (chronyc makestep, or timedatectl set-ntp true), or confirm it with --clock-is-right"
    )]
    NotSynchronised {
        /// What the clock says.
        wall: MeshTime,
        /// How far that is beyond what elapsed.
        ahead: MeshDuration,
    },
}

/// The highest stamp known, and what time it should be by now.
#[derive(Clone, Debug)]
pub struct ClockGuard {
    highest: MeshTime,
    /// A time that was right, and when it was.
    base: (MeshTime, Monotonic),
}

impl ClockGuard {
    /// Begins with the registry's time as it was read from disk.
    pub fn new(highest: MeshTime, now: Monotonic) -> Self {
        Self { highest, base: (highest, now) }
    }

    /// An entry with this stamp was applied.
    pub fn observe(&mut self, stamp: MeshTime, now: Monotonic) {
        if stamp > self.highest {
            self.highest = stamp;
            self.rebase(stamp, now);
        }
    }

    /// Takes the wall clock for right if the witness confirms it, as after a long pause without writes; says whether it
    /// does. Worth asking about once a second: until then [`ClockGuard::mesh_time`] lags after such a pause.
    pub fn confirm(&mut self, wall: MeshTime, witness: &Witness, now: Monotonic) -> bool {
        let confirmed = witness.confirms();
        if confirmed {
            self.rebase(wall, now);
        }
        confirmed
    }

    /// The stamp for an entry proposed at `now`: the wall clock, but never behind what is known. A registry without any
    /// stamp takes the first as it is: whoever founds a mesh is there to look at it.
    pub fn stamp(&self, wall: MeshTime, witness: &Witness, now: Monotonic) -> Result<MeshTime, ClockRefusal> {
        let ahead = wall.since(self.expected(now));
        if ahead <= MAX_JUMP || self.highest == MeshTime(0) || witness.confirms() {
            return Ok(wall.max(self.highest));
        }
        Err(match witness {
            Witness::Voters { .. } => ClockRefusal::NoMajority { wall, ahead },
            Witness::Alone { .. } => ClockRefusal::NotSynchronised { wall, ahead },
        })
    }

    /// The time to tell nodes: the wall clock, held between the last stamp and what may be stamped without asking.
    pub fn mesh_time(&self, wall: MeshTime, now: Monotonic) -> MeshTime {
        if self.highest == MeshTime(0) {
            return wall;
        }
        wall.min(self.expected(now) + MAX_JUMP).max(self.highest)
    }

    /// What a replica whose clock is wrong can still say: the last stamp, and what elapsed since.
    pub fn elapsed_time(&self, now: Monotonic) -> MeshTime {
        self.expected(now).max(self.highest)
    }

    fn expected(&self, now: Monotonic) -> MeshTime {
        self.base.0 + now.since(self.base.1)
    }

    /// What is expected never goes back.
    fn rebase(&mut self, time: MeshTime, now: Monotonic) {
        if time > self.expected(now) {
            self.base = (time, now);
        }
    }
}

/// Whether this replica's clock differs so much from the others' that it must not lead: a majority of all clocks known,
/// its own among them, lies beyond [`MAX_SKEW`] on the same side. Two clocks alone cannot tell who is wrong.
pub fn is_far_off(offsets: &[i64]) -> bool {
    let all = offsets.len() + 1;
    let ahead = offsets.iter().filter(|&&offset| offset > 0 && offset.unsigned_abs() > MAX_SKEW.0).count();
    let behind = offsets.iter().filter(|&&offset| offset < 0 && offset.unsigned_abs() > MAX_SKEW.0).count();
    ahead.max(behind) * 2 > all
}

/// Whether this clock differs from every other's that is known: a learner defers to those who vote, be it one alone.
pub fn differs(offsets: &[i64]) -> bool {
    !offsets.is_empty() && offsets.iter().all(|offset| offset.unsigned_abs() > MAX_SKEW.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: u64 = 3_600_000;
    const START: MeshTime = MeshTime(1_000 * HOUR);
    const ALONE: Witness = Witness::Alone { confirmed: false };

    fn guard() -> ClockGuard {
        ClockGuard::new(START, Monotonic(5))
    }

    #[test]
    fn time_that_elapsed_needs_no_confirmation() {
        let (wall, now) = (START + MeshDuration(9 * HOUR), Monotonic(5 + 9 * HOUR));
        assert_eq!(guard().stamp(wall, &ALONE, now), Ok(wall));
    }

    #[test]
    fn a_slow_clock_does_not_turn_time_back() {
        assert_eq!(guard().stamp(START - MeshDuration(HOUR), &ALONE, Monotonic(5)), Ok(START));
    }

    #[test]
    fn a_jump_needs_a_synchronised_clock_when_alone() {
        let wall = START + MeshDuration(HOUR);
        let refusal = guard().stamp(wall, &ALONE, Monotonic(5)).unwrap_err();
        assert_eq!(refusal, ClockRefusal::NotSynchronised { wall, ahead: MeshDuration(HOUR) });
        assert_eq!(guard().stamp(wall, &Witness::Alone { confirmed: true }, Monotonic(5)), Ok(wall));
    }

    #[test]
    fn a_jump_needs_a_majority_of_all_voters_not_of_those_that_answer() {
        let wall = START + MeshDuration(HOUR);
        let witness = |offsets: &[i64], voters| Witness::Voters { offsets: offsets.to_vec(), voters };
        assert_eq!(guard().stamp(wall, &witness(&[-20], 3), Monotonic(5)), Ok(wall));
        for (offsets, voters) in [(&[][..], 3), (&[-3_600_000], 3), (&[10, -3_600_000], 5)] {
            assert!(guard().stamp(wall, &witness(offsets, voters), Monotonic(5)).is_err(), "{offsets:?} of {voters}");
        }
    }

    #[test]
    fn an_applied_stamp_moves_what_is_expected() {
        let mut guard = guard();
        guard.observe(START + MeshDuration(HOUR), Monotonic(6));
        guard.observe(START, Monotonic(7));
        let wall = START + MeshDuration(HOUR + MAX_JUMP.0);
        assert_eq!(guard.stamp(wall, &ALONE, Monotonic(6)), Ok(wall));
    }

    #[test]
    fn after_a_long_pause_a_confirmed_clock_is_told_to_nodes_before_anything_is_written() {
        let mut guard = guard();
        let wall = START + MeshDuration(240 * HOUR);
        assert!(!guard.confirm(wall, &ALONE, Monotonic(5)));
        assert_eq!(guard.mesh_time(wall, Monotonic(5)), START + MAX_JUMP);
        assert!(guard.confirm(wall, &Witness::Alone { confirmed: true }, Monotonic(5)));
        assert_eq!(guard.mesh_time(wall, Monotonic(5)), wall);
        guard.observe(START + MeshDuration(HOUR), Monotonic(6));
        assert_eq!(guard.mesh_time(wall, Monotonic(6)), wall, "an older entry of the log changes nothing");
    }

    #[test]
    fn the_first_stamp_of_a_mesh_is_taken_as_it_is() {
        assert_eq!(ClockGuard::new(MeshTime(0), Monotonic(0)).stamp(START, &ALONE, Monotonic(0)), Ok(START));
    }

    #[test]
    fn nodes_are_told_no_time_that_could_not_be_stamped() {
        let guard = guard();
        assert_eq!(guard.mesh_time(START + MeshDuration(HOUR), Monotonic(5)), START + MAX_JUMP);
        assert_eq!(guard.mesh_time(MeshTime(7), Monotonic(5)), START);
        assert_eq!(guard.mesh_time(START + MeshDuration(9), Monotonic(5)), START + MeshDuration(9));
    }

    #[test]
    fn a_replica_that_distrusts_its_clock_tells_what_elapsed_since_the_last_stamp() {
        let mut guard = guard();
        assert_eq!(guard.elapsed_time(Monotonic(5 + HOUR)), START + MeshDuration(HOUR));
        guard.observe(START + MeshDuration(2 * HOUR), Monotonic(5 + HOUR));
        assert_eq!(guard.elapsed_time(Monotonic(6 + HOUR)), START + MeshDuration(2 * HOUR + 1));
    }

    #[test]
    fn a_replica_far_off_knows_it_only_from_a_majority_on_one_side() {
        let minute = 61_000;
        for (offsets, expected) in [
            (&[][..], false),
            (&[minute], false),
            (&[minute, minute], true),
            (&[-minute, -minute], true),
            (&[minute, -minute], false),
            (&[minute, 0], false),
            (&[minute, minute, 0, 0], false),
            (&[i64::MIN, i64::MIN], true),
        ] {
            assert_eq!(is_far_off(offsets), expected, "{offsets:?}");
        }
    }

    #[test]
    fn a_learner_differs_only_from_clocks_that_it_knows() {
        for (offsets, expected) in [(&[][..], false), (&[61_000], true), (&[-61_000], true), (&[61_000, 5], false)] {
            assert_eq!(differs(offsets), expected, "{offsets:?}");
        }
    }
}
