//! Waits between dials: doubling, and random, so that a thousand nodes do not come back in one moment.

use std::time::Duration;

const FIRST: Duration = Duration::from_millis(50);
const LONGEST: Duration = Duration::from_secs(5);

/// The waits of one row of failures.
pub(super) struct Backoff {
    bound: Duration,
}

impl Backoff {
    /// Begins with a wait of up to 50 ms.
    pub(super) fn new() -> Self {
        Self { bound: FIRST }
    }

    /// A random wait up to the bound, which doubles each time up to 5 s.
    pub(super) fn next(&mut self) -> Duration {
        let wait = jitter(self.bound);
        self.bound = (self.bound * 2).min(LONGEST);
        // From the second failure on a wait is never near zero: that would be a storm of our own.
        if self.bound == FIRST * 2 { wait } else { wait.max(self.bound / 8) }
    }
}

/// A random span below `bound`.
pub(super) fn jitter(bound: Duration) -> Duration {
    // Without randomness all wait alike, which is no reason to stop.
    let share = getrandom::u32().unwrap_or(u32::MAX / 2);
    bound.mul_f64(f64::from(share) / f64::from(u32::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_but_never_beyond_five_seconds() {
        let mut backoff = Backoff::new();
        assert!(backoff.next() <= FIRST);
        for _ in 0..20 {
            let wait = backoff.next();
            assert!(wait >= FIRST / 4 && wait <= LONGEST, "{wait:?}");
        }
        assert!(backoff.next() >= LONGEST / 8);
    }
}
