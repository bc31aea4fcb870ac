//! How often something may be done: a bucket that fills with time.

use crate::clock::BootTime;
use mesh_types::limits::Allowance;

/// What may still be done.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bucket {
    /// What one time costs, in microseconds of filling.
    cost: u64,
    full: u64,
    /// Microseconds of filling, as of then.
    level: u64,
    at: BootTime,
}

impl Bucket {
    /// A full one.
    pub(crate) const fn new(allowance: Allowance, now: BootTime) -> Self {
        let cost = allowance.every.0.saturating_mul(1_000);
        let full = cost.saturating_mul(allowance.burst as u64);
        Self { cost, full, level: full, at: now }
    }

    /// Takes one, if there is one left.
    pub(crate) fn take(&mut self, now: BootTime) -> bool {
        self.fill(now);
        let left = self.level.checked_sub(self.cost);
        self.level = left.unwrap_or(self.level);
        left.is_some()
    }

    /// Gives one back.
    pub(crate) fn give_back(&mut self) {
        self.level = self.level.saturating_add(self.cost).min(self.full);
    }

    /// From when on there is one to take.
    pub(crate) fn next(&self) -> BootTime {
        self.at + std::time::Duration::from_micros(self.cost.saturating_sub(self.level))
    }

    fn fill(&mut self, now: BootTime) {
        let filled = now.as_micros().saturating_sub(self.at.as_micros());
        self.level = self.level.saturating_add(filled).min(self.full);
        self.at = self.at.max(now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use mesh_types::MeshDuration;

    const TEN_A_SECOND: Allowance = Allowance { burst: 10, every: MeshDuration(100) };

    fn taken(bucket: &mut Bucket, millis: u64) -> usize {
        let now = BootTime::from_millis(millis);
        (0..100).take_while(|_| bucket.take(now)).count()
    }

    #[test]
    fn a_burst_is_given_at_once_and_then_as_time_goes() {
        let mut bucket = Bucket::new(TEN_A_SECOND, BootTime::from_millis(1_000));
        assert_eq!(taken(&mut bucket, 1_000), 10);
        assert_eq!(taken(&mut bucket, 1_000), 0);
        assert_eq!(bucket.next(), BootTime::from_millis(1_100));
        assert_eq!(taken(&mut bucket, 1_100), 1);
        assert_eq!(taken(&mut bucket, 1_050), 0, "time that turns back gives nothing");
        assert_eq!(taken(&mut bucket, 1_300), 2);
        assert_eq!(taken(&mut bucket, 900_000), 10, "it does not fill for ever");
    }

    #[test]
    fn what_is_given_back_can_be_taken_again_at_once() {
        let mut bucket = Bucket::new(TEN_A_SECOND, BootTime::from_millis(1_000));
        bucket.give_back();
        assert_eq!(taken(&mut bucket, 1_000), 10, "never more than a burst");
        bucket.give_back();
        assert_eq!(bucket.next(), BootTime::from_millis(1_000));
        assert_eq!(taken(&mut bucket, 1_000), 1);
    }
}
