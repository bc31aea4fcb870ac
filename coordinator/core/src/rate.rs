//! How often something may be done: buckets that refill evenly, and bounded tables of them.

use crate::clock::Monotonic;
use mesh_types::MeshDuration;
use mesh_types::limits::Allowance;
use std::collections::BTreeMap;

/// What one actor may still do.
#[derive(Clone, Debug)]
pub struct Bucket {
    left: u32,
    refilled: Monotonic,
}

impl Bucket {
    /// A full one.
    pub fn new(allowance: Allowance, now: Monotonic) -> Self {
        Self { left: allowance.burst, refilled: now }
    }

    /// Takes one out; if there is none, says how long it takes until there is.
    pub fn take(&mut self, allowance: Allowance, now: Monotonic) -> Result<(), MeshDuration> {
        self.refill(allowance, now);
        match self.left.checked_sub(1) {
            Some(left) => {
                self.left = left;
                Ok(())
            }
            None => Err(MeshDuration(allowance.every.0.saturating_sub(now.since(self.refilled).0))),
        }
    }

    fn refill(&mut self, allowance: Allowance, now: Monotonic) {
        let drops = now.since(self.refilled).0 / allowance.every.0;
        self.refilled = self.refilled + MeshDuration(drops * allowance.every.0);
        let drops = u32::try_from(drops).unwrap_or(u32::MAX);
        self.left = self.left.saturating_add(drops).min(allowance.burst);
    }
}

/// A bucket for each of many actors; one that has long done nothing takes no place.
#[derive(Debug)]
pub struct RateTable<K> {
    allowance: Allowance,
    most: usize,
    buckets: BTreeMap<K, Bucket>,
    swept: Monotonic,
}

impl<K: Ord> RateTable<K> {
    /// For at most so many actors at once. Further ones have to wait until some of them have been idle.
    pub fn new(allowance: Allowance, most: usize) -> Self {
        Self { allowance, most, buckets: BTreeMap::new(), swept: Monotonic::default() }
    }

    /// Takes one from an actor's bucket; if it may not, says when it may.
    pub fn take(&mut self, key: K, now: Monotonic) -> Result<(), MeshDuration> {
        if let Some(bucket) = self.buckets.get_mut(&key) {
            return bucket.take(self.allowance, now);
        }
        if self.buckets.len() >= self.most {
            self.sweep(now);
        }
        if self.buckets.len() >= self.most {
            return Err(self.allowance.every);
        }
        let mut bucket = Bucket::new(self.allowance, now);
        let taken = bucket.take(self.allowance, now);
        self.buckets.insert(key, bucket);
        taken
    }

    /// Drops buckets that are full. Not oftener than one can become so: it looks at all of them.
    fn sweep(&mut self, now: Monotonic) {
        let allowance = self.allowance;
        if now.since(self.swept) >= allowance.every {
            self.swept = now;
            self.buckets.retain(|_, bucket| {
                bucket.refill(allowance, now);
                bucket.left < allowance.burst
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALLOWANCE: Allowance = Allowance { burst: 3, every: MeshDuration(1_000) };

    #[test]
    fn a_full_bucket_empties_and_refills_evenly_and_says_when() {
        let mut bucket = Bucket::new(ALLOWANCE, Monotonic(0));
        for _ in 0..3 {
            assert_eq!(bucket.take(ALLOWANCE, Monotonic(10)), Ok(()));
        }
        assert_eq!(bucket.take(ALLOWANCE, Monotonic(10)), Err(MeshDuration(990)));
        assert_eq!(bucket.take(ALLOWANCE, Monotonic(999)), Err(MeshDuration(1)));
        assert_eq!(bucket.take(ALLOWANCE, Monotonic(1_000)), Ok(()));
        assert_eq!(bucket.take(ALLOWANCE, Monotonic(1_001)), Err(MeshDuration(999)));
        let later = Monotonic(1_000_000);
        assert_eq!(
            [(); 4].map(|()| bucket.take(ALLOWANCE, later).is_ok()),
            [true, true, true, false],
            "no more than full"
        );
    }

    #[test]
    fn one_actor_does_not_use_up_what_is_anothers() {
        let mut table = RateTable::new(ALLOWANCE, 9);
        while table.take("loud", Monotonic(0)).is_ok() {}
        assert_eq!(table.take("other", Monotonic(0)), Ok(()));
    }

    #[test]
    fn a_table_is_bounded_and_makes_room_for_new_actors_when_others_have_been_idle() {
        let mut table = RateTable::new(ALLOWANCE, 2);
        let start = Monotonic(5_000);
        for actor in [1, 1, 2] {
            assert_eq!(table.take(actor, start), Ok(()));
        }
        assert_eq!(table.take(3, start), Err(ALLOWANCE.every));
        let later = start + ALLOWANCE.every;
        assert_eq!(table.take(3, later), Ok(()), "the second has its bucket full again");
        assert_eq!(table.take(4, later), Err(ALLOWANCE.every));
        assert_eq!(table.buckets.len(), 2);
    }
}
