//! The pool of address slots. A slot stands for one IPv4 and one IPv6 address of the overlay.
//!
//! A freed slot rests, at least as long as any node may still hold its last owner as a peer, and is then the first to
//! be given again: so the pool remembers no more than what rests, and the mesh's addresses stay close together.

use mesh_types::MeshTime;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;

/// Which slots are free.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, Debug, Default)]
pub(super) struct AddressPool {
    /// Slots 1 to this have been given at least once.
    highest: u32,
    resting: BTreeSet<(MeshTime, u32)>,
}

impl AddressPool {
    /// Takes a free slot of `1..=capacity`; else says when the next one has rested, if any does.
    pub(super) fn take(&mut self, capacity: u32, now: MeshTime) -> Result<u32, Option<MeshTime>> {
        if let Some(&(until, slot)) = self.resting.first()
            && until <= now
        {
            self.resting.pop_first();
            return Ok(slot);
        }
        if self.highest < capacity {
            self.highest += 1;
            return Ok(self.highest);
        }
        Err(self.resting.first().map(|&(until, _)| until))
    }

    /// Takes back the very slot that was put to rest until `until`, if nobody got it meanwhile.
    pub(super) fn take_back(&mut self, slot: u32, until: MeshTime) -> bool {
        self.resting.remove(&(until, slot))
    }

    /// Puts to rest until `until` the next `count` slots that were never given, and what would rest for less.
    pub(super) fn rest_unseen(&mut self, count: u32, until: MeshTime) {
        let ahead = self.highest..self.highest.saturating_add(count);
        self.highest = ahead.end;
        let resting = std::mem::take(&mut self.resting).into_iter().map(|(time, slot)| (time.max(until), slot));
        self.resting = resting.chain(ahead.map(|slot| (until, slot + 1))).collect();
    }

    /// Whether that slot was put to rest until `until`, and nobody got it meanwhile.
    pub(super) fn rests(&self, slot: u32, until: MeshTime) -> bool {
        self.resting.contains(&(until, slot))
    }

    /// How many of `1..=capacity` were never given.
    pub(super) fn never_given(&self, capacity: u32) -> u32 {
        capacity.saturating_sub(self.highest)
    }

    /// Puts a slot to rest.
    pub(super) fn free(&mut self, slot: u32, until: MeshTime) {
        self.resting.insert((until, slot));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_freed_slot_rests_before_anyone_gets_it_again() {
        let mut pool = AddressPool::default();
        assert_eq!(pool.take(2, MeshTime(0)), Ok(1));
        assert_eq!(pool.take(2, MeshTime(0)), Ok(2));
        assert_eq!(pool.take(2, MeshTime(0)), Err(None));
        pool.free(1, MeshTime(10));
        assert_eq!(pool.take(2, MeshTime(9)), Err(Some(MeshTime(10))));
        assert_eq!(pool.take(2, MeshTime(10)), Ok(1));
    }

    #[test]
    fn slots_that_may_be_given_unseen_rest_and_are_then_given() {
        let mut pool = AddressPool::default();
        assert_eq!([pool.take(5, MeshTime(0)), pool.take(5, MeshTime(0))], [Ok(1), Ok(2)]);
        pool.free(1, MeshTime(10));
        assert_eq!(pool.never_given(5), 3);
        pool.rest_unseen(2, MeshTime(20));
        assert_eq!(pool.take(5, MeshTime(10)), Ok(5), "neither what rested less nor what comes next");
        assert_eq!(pool.take(5, MeshTime(19)), Err(Some(MeshTime(20))));
        assert!(pool.take_back(1, MeshTime(20)));
        assert_eq!([pool.take(5, MeshTime(20)), pool.take(5, MeshTime(20))], [Ok(3), Ok(4)]);
    }

    #[test]
    fn a_slot_comes_back_to_its_owner_only_while_nobody_else_had_it() {
        let mut pool = AddressPool::default();
        assert_eq!(pool.take(9, MeshTime(0)), Ok(1));
        pool.free(1, MeshTime(10));
        assert!(pool.take_back(1, MeshTime(10)));
        pool.free(1, MeshTime(20));
        assert_eq!(pool.take(9, MeshTime(20)), Ok(1));
        pool.free(1, MeshTime(40));
        assert!(!pool.take_back(1, MeshTime(20)));
    }
}
