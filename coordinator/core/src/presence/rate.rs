//! How often one node may change its presence: a bucket that refills evenly.

use crate::clock::Monotonic;
use mesh_types::MeshDuration;
use mesh_types::limits::MAX_PRESENCE_CHANGES_PER_MINUTE;

const REFILL: MeshDuration = MeshDuration(60_000 / MAX_PRESENCE_CHANGES_PER_MINUTE as u64);

/// One node's bucket.
#[derive(Debug)]
pub(super) struct Rate {
    left: u32,
    refilled: Monotonic,
}

impl Rate {
    pub(super) fn new(now: Monotonic) -> Self {
        Self { left: MAX_PRESENCE_CHANGES_PER_MINUTE, refilled: now }
    }

    /// Takes one change out of the bucket, if there is one.
    pub(super) fn allow(&mut self, now: Monotonic) -> bool {
        let drops = now.since(self.refilled).0 / REFILL.0;
        self.refilled = self.refilled + MeshDuration(drops * REFILL.0);
        let drops = u32::try_from(drops).unwrap_or(u32::MAX);
        self.left = self.left.saturating_add(drops).min(MAX_PRESENCE_CHANGES_PER_MINUTE);
        let allowed = self.left > 0;
        self.left = self.left.saturating_sub(1);
        allowed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_bucket_empties_and_refills_evenly() {
        let mut rate = Rate::new(Monotonic(0));
        for _ in 0..MAX_PRESENCE_CHANGES_PER_MINUTE {
            assert!(rate.allow(Monotonic(10)));
        }
        assert!(!rate.allow(Monotonic(10)));
        assert!(!rate.allow(Monotonic(REFILL.0 - 1)));
        assert!(rate.allow(Monotonic(REFILL.0)));
        assert!(!rate.allow(Monotonic(REFILL.0 + 1)));
    }
}
