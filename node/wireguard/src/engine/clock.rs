//! The engine's clock: it goes on while the machine sleeps, as WireGuard's deadlines do.
//!
//! `Instant` stands still then (CLOCK_MONOTONIC), and a key that the other side has long thrown away would pass for good.

use nix::time::{ClockId, clock_gettime};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

/// Now, by a clock that the machine's sleep does not stop.
pub(crate) fn now() -> Instant {
    static START: OnceLock<(Instant, Duration)> = OnceLock::new();
    let (start, booted) = START.get_or_init(|| (Instant::now(), since_boot()));
    *start + since_boot().saturating_sub(*booted)
}

fn since_boot() -> Duration {
    // A sandbox may have left it out; it does not sleep either.
    let time = clock_gettime(ClockId::CLOCK_BOOTTIME).or_else(|_| clock_gettime(ClockId::CLOCK_MONOTONIC));
    time.expect("every Unix has a monotonic clock").into()
}
