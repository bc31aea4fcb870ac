//! How many probes of one peer are answered: a bucket that fills with time.

use crate::clock::BootTime;
use mesh_types::limits::MAX_PROBE_ANSWERS_PER_SECOND as PER_SECOND;

/// What one answer costs, in microseconds of filling.
const COST: u64 = 1_000_000 / PER_SECOND;
/// A full bucket: a second's worth at once.
const FULL: u64 = PER_SECOND * COST;

/// The answers that a peer may still have.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Allowance {
    /// Microseconds of filling, as of then.
    level: u64,
    at: BootTime,
}

impl Allowance {
    /// A full one.
    pub(crate) fn new(now: BootTime) -> Self {
        Self { level: FULL, at: now }
    }

    /// Takes one answer, if there is one left.
    pub(crate) fn take(&mut self, now: BootTime) -> bool {
        let filled = now.as_micros().saturating_sub(self.at.as_micros());
        self.level = self.level.saturating_add(filled).min(FULL);
        self.at = self.at.max(now);
        let left = self.level.checked_sub(COST);
        self.level = left.unwrap_or(self.level);
        left.is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn taken(allowance: &mut Allowance, millis: u64) -> u64 {
        let now = BootTime::from_millis(millis);
        (0..10 * PER_SECOND).map_while(|_| allowance.take(now).then_some(1)).sum()
    }

    #[test]
    fn a_second_is_given_at_once_and_then_as_time_goes() {
        let mut allowance = Allowance::new(BootTime::from_millis(1_000));
        assert_eq!(taken(&mut allowance, 1_000), PER_SECOND);
        assert_eq!(taken(&mut allowance, 1_000), 0);
        assert_eq!(taken(&mut allowance, 1_100), PER_SECOND / 10);
        assert_eq!(taken(&mut allowance, 1_050), 0, "time that turns back gives nothing");
        assert_eq!(taken(&mut allowance, 1_200), PER_SECOND / 10);
        assert_eq!(taken(&mut allowance, 900_000), PER_SECOND, "it does not fill for ever");
    }
}
