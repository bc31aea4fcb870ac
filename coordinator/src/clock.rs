//! The clocks of this replica, behind the guard that keeps a wild one out of the registry.

use mesh_coordinator_core::clock::{ClockGuard, ClockRefusal, Monotonic, Now, Witness};
use mesh_types::MeshTime;
use nix::time::{ClockId, clock_gettime};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::SystemTime;

/// Where time comes from.
pub(crate) trait Source: std::fmt::Debug + Send + Sync {
    /// The wall clock.
    fn wall(&self) -> MeshTime;
    /// A clock that goes on while the host sleeps, unlike `Instant`.
    fn monotonic(&self) -> Monotonic;
    /// Whether a time service keeps the wall clock right.
    fn is_synchronised(&self) -> bool;
}

/// Both clocks, read together.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Reading {
    /// The wall clock as it is, right or wrong.
    pub(crate) wall: MeshTime,
    /// For spans.
    pub(crate) monotonic: Monotonic,
}

/// The wall clock, the boot clock and the guard; clones share them.
#[derive(Clone, Debug)]
pub(crate) struct Clock {
    source: Arc<dyn Source>,
    guard: Arc<Mutex<ClockGuard>>,
    /// The other replicas' clocks say that this one's is wrong.
    doubted: Arc<AtomicBool>,
    /// The operator vouches for the wall clock.
    confirmed: bool,
}

impl Clock {
    /// A clock that knows no stamp yet. `confirmed` if the operator says that the wall clock is right.
    pub(crate) fn of(source: Arc<dyn Source>, confirmed: bool) -> Self {
        let guard = Arc::new(Mutex::new(ClockGuard::new(MeshTime(0), source.monotonic())));
        Self { source, guard, doubted: Arc::default(), confirmed }
    }

    /// One over this host's clocks.
    #[cfg(test)]
    pub(crate) fn new(confirmed: bool) -> Self {
        Self::of(Arc::new(Host), confirmed)
    }

    /// Whether the other replicas' clocks say that this one's is wrong, from now on.
    pub(crate) fn doubt(&self, doubted: bool) {
        self.doubted.store(doubted, Ordering::Relaxed);
    }

    /// Both clocks, for nodes: they judge deadlines by it, so a wall clock that is known to be wrong is left out.
    pub(crate) fn told(&self) -> Now {
        let monotonic = self.source.monotonic();
        match self.doubted.load(Ordering::Relaxed) {
            true => Now { monotonic, mesh: self.guard().elapsed_time(monotonic) },
            false => self.now(),
        }
    }

    /// Both clocks: the mesh time is the wall clock, held to what the registry's stamps allow.
    pub(crate) fn now(&self) -> Now {
        let Reading { wall, monotonic } = self.read();
        Now { monotonic, mesh: self.guard().mesh_time(wall, monotonic) }
    }

    /// The clocks as they are, to compare with other replicas.
    pub(crate) fn read(&self) -> Reading {
        Reading { wall: self.source.wall(), monotonic: self.source.monotonic() }
    }

    /// The registry's time, after entries were applied.
    pub(crate) fn observe(&self, stamp: MeshTime) {
        self.guard().observe(stamp, self.source.monotonic());
    }

    /// Takes the wall clock for right if the witness says so, so that nodes are told it before the next write.
    pub(crate) fn confirm(&self, witness: &Witness, now: Reading) {
        self.guard().confirm(now.wall, witness, now.monotonic);
    }

    /// The stamp for an entry proposed now. The witness spoke of the same reading: a clock that is set in between must not
    /// be vouched for by what was said of it before.
    pub(crate) fn stamp(&self, witness: &Witness, now: Reading) -> Result<MeshTime, ClockRefusal> {
        self.guard().stamp(now.wall, witness, now.monotonic)
    }

    /// Whether someone vouches for the wall clock of a replica that is alone: the operator, or the kernel.
    pub(crate) fn is_confirmed(&self) -> bool {
        self.confirmed || self.source.is_synchronised()
    }

    fn guard(&self) -> MutexGuard<'_, ClockGuard> {
        self.guard.lock().expect("the guard does not panic")
    }
}

/// This host's clocks.
#[derive(Debug)]
pub(crate) struct Host;

impl Source for Host {
    fn wall(&self) -> MeshTime {
        MeshTime::from_system(SystemTime::now())
    }

    fn monotonic(&self) -> Monotonic {
        let time = clock_gettime(ClockId::CLOCK_BOOTTIME).expect("Linux has had this clock since 2.6.39");
        let millis = time.tv_sec().unsigned_abs() * 1_000 + time.tv_nsec().unsigned_abs() / 1_000_000;
        Monotonic(millis)
    }

    fn is_synchronised(&self) -> bool {
        // SAFETY: all-zero is a valid `timex` (plain integers), and with `modes` zero the call only reads the clock's
        // state into it.
        let state = unsafe {
            let mut timex: libc::timex = std::mem::zeroed();
            libc::adjtimex(&mut timex)
        };
        state >= 0 && state != libc::TIME_ERROR
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_goes_forward_and_never_behind_what_was_observed() {
        let clock = Clock::new(false);
        let first = clock.now();
        let ahead = first.mesh + mesh_types::MeshDuration::from_secs(30);
        clock.observe(ahead);
        let second = clock.now();
        assert!(second.mesh >= ahead && second.monotonic >= first.monotonic);
    }

    #[test]
    fn a_clock_in_doubt_is_not_told_to_nodes() {
        let clock = Clock::new(false);
        let behind = Host.wall() - mesh_types::MeshDuration::from_secs(300);
        clock.observe(behind);
        assert!(clock.told().mesh > behind + mesh_types::MeshDuration::from_secs(200), "the wall clock's");
        clock.doubt(true);
        assert!(clock.told().mesh < behind + mesh_types::MeshDuration::from_secs(200), "what elapsed");
        clock.doubt(false);
        assert!(clock.told().mesh > behind + mesh_types::MeshDuration::from_secs(200), "the wall clock's again");
    }
}
