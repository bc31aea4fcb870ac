//! When which of thousands of peers wants to be looked at.
//!
//! A ring of slots, each of a quarter of a second: inserting touches one, and looking for what is due touches those
//! whose time came and no other. What lies beyond the ring's horizon waits in its last slot and is put in again from
//! there. Within its slot an entry keeps its own instant, so nothing is early and nothing is late.

use std::mem;
use std::time::{Duration, Instant};

/// What one slot spans.
const SPAN: Duration = Duration::from_millis(250);

/// Enough for four minutes: WireGuard's keepalives, rekeys and rejections, all but the wiping of old keys.
const SLOTS: usize = 1_024;

/// Deadlines of many keys, each cheap to set. An entry is a hint: its owner looks at what is really due and inserts
/// again. So there is no removal, and a deadline that became later needs no entry before the old one has come; who
/// inserts only for an earlier one has few entries for one key.
pub struct Wheel<K> {
    slots: Vec<Slot<K>>,
    /// The slot in which `now` was last, and when it began.
    current: usize,
    begin: Instant,
}

struct Slot<K> {
    entries: Vec<Entry<K>>,
    /// The earliest time of any of them.
    earliest: Option<Instant>,
}

#[derive(Clone, Copy)]
struct Entry<K> {
    key: K,
    at: Instant,
    /// When to look at it: `at`, or the horizon it was put in under.
    look: Instant,
}

impl<K: Copy> Wheel<K> {
    /// Empty. What is inserted for an instant before `now` is due at once.
    pub fn new(now: Instant) -> Self {
        Self {
            slots: (0..SLOTS).map(|_| Slot { entries: Vec::new(), earliest: None }).collect(),
            current: 0,
            begin: now,
        }
    }

    /// Wants `key` to be handed out once `at` has come.
    pub fn insert(&mut self, key: K, at: Instant) {
        let horizon = self.begin + SPAN * (SLOTS as u32 - 1);
        let look = at.min(horizon);
        let slot = (self.current + spans(self.begin, look)) % SLOTS;
        self.slots[slot].insert(Entry { key, at, look });
    }

    /// Hands out every entry whose time has come, once, and forgets it.
    pub fn expire(&mut self, due: &mut impl FnMut(K), now: Instant) {
        let (first, passed) = (self.current, spans(self.begin, now));
        self.current = (first + passed) % SLOTS;
        self.begin += SPAN * passed as u32;
        for ahead in 0..=passed.min(SLOTS - 1) {
            let slot = (first + ahead) % SLOTS;
            if self.slots[slot].earliest.is_some_and(|earliest| earliest <= now) {
                self.empty(slot, due, now);
            }
        }
    }

    /// When to call [`Wheel::expire`]: no later than the earliest entry is due.
    pub fn next(&self) -> Option<Instant> {
        (0..SLOTS).find_map(|ahead| self.slots[(self.current + ahead) % SLOTS].earliest)
    }

    fn empty(&mut self, slot: usize, due: &mut impl FnMut(K), now: Instant) {
        let mut waiting = mem::take(&mut self.slots[slot].entries);
        waiting.retain(|entry| {
            if entry.look > now {
                return true;
            }
            if entry.at <= now {
                due(entry.key);
            } else {
                self.insert(entry.key, entry.at);
            }
            false
        });
        let slot = &mut self.slots[slot];
        waiting.append(&mut slot.entries);
        slot.earliest = waiting.iter().map(|entry| entry.look).min();
        slot.entries = waiting;
    }
}

impl<K> Slot<K> {
    fn insert(&mut self, entry: Entry<K>) {
        self.earliest = Some(self.earliest.map_or(entry.look, |earliest| earliest.min(entry.look)));
        self.entries.push(entry);
    }
}

/// Whole spans from one instant to a later one; beyond what fits there is no machine that is up so long.
fn spans(from: Instant, to: Instant) -> usize {
    (to.saturating_duration_since(from).as_nanos() / SPAN.as_nanos()) as usize
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn expired(wheel: &mut Wheel<u32>, now: Instant) -> Vec<u32> {
        let mut keys = Vec::new();
        wheel.expire(&mut |key| keys.push(key), now);
        keys.sort_unstable();
        keys
    }

    #[test]
    fn an_entry_is_handed_out_once_at_its_instant_and_not_before() {
        let start = Instant::now();
        for millis in [0, 1, 249, 250, 251, 5_333, 120_000, 255_749, 255_750, 256_000, 540_000, 3_600_000] {
            let (mut wheel, at) = (Wheel::new(start), start + Duration::from_millis(millis));
            wheel.insert(7, at);
            let mut now = start;
            while let Some(next) = wheel.next().filter(|next| *next < at) {
                assert!(next > now || now == start, "each turn gets on");
                now = next;
                assert_eq!(expired(&mut wheel, now), [0; 0], "{millis} ms");
            }
            assert_eq!(wheel.next(), Some(at));
            assert_eq!(expired(&mut wheel, at), [7]);
            assert_eq!((wheel.next(), expired(&mut wheel, at + SPAN)), (None, vec![]));
        }
    }

    #[test]
    fn what_was_due_in_the_past_is_due_at_once() {
        let start = Instant::now() + Duration::from_secs(10);
        let mut wheel = Wheel::new(start);
        wheel.insert(1, start - Duration::from_secs(5));
        assert!(wheel.next().is_some_and(|next| next <= start));
        assert_eq!(expired(&mut wheel, start), [1]);
    }

    #[test]
    fn a_long_sleep_loses_nothing() {
        let start = Instant::now();
        let mut wheel = Wheel::new(start);
        for key in 0..4_000 {
            wheel.insert(key, start + Duration::from_millis(u64::from(key) * 151));
        }
        assert_eq!(expired(&mut wheel, start + Duration::from_secs(86_400)), (0..4_000).collect::<Vec<_>>());
        assert_eq!(wheel.next(), None);
        wheel.insert(1, start + Duration::from_secs(86_401));
        assert_eq!(wheel.next(), Some(start + Duration::from_secs(86_401)));
    }

    #[test]
    fn many_entries_for_one_instant_are_each_touched_once() {
        let start = Instant::now();
        let mut wheel = Wheel::new(start);
        let at = start + Duration::from_secs(25);
        (0..200_000).for_each(|key| wheel.insert(key, at));
        assert_eq!(expired(&mut wheel, at).len(), 200_000);
    }

    proptest! {
        #[test]
        fn any_history_goes_as_a_list_would(
            history in proptest::collection::vec((0_u64..700_000, prop_oneof![0_u64..400, 0_u64..90_000, 0_u64..600_000], 1_usize..5), 1..40),
        ) {
            let start = Instant::now();
            let (mut wheel, mut model, mut now) = (Wheel::new(start), Vec::new(), start);
            for (i, (ahead, step, count)) in history.into_iter().enumerate() {
                for n in 0..count as u64 {
                    let (key, at) = ((i * 8) as u32 + n as u32, now + Duration::from_millis(ahead / (n * n + 1)));
                    wheel.insert(key, at);
                    model.push((at, key));
                }
                let earliest = model.iter().map(|(at, _)| *at).min();
                prop_assert!(wheel.next().is_some() && wheel.next() <= earliest);
                now += Duration::from_millis(step);
                let mut due: Vec<u32> = model.extract_if(.., |(at, _)| *at <= now).map(|(_, key)| key).collect();
                due.sort_unstable();
                prop_assert_eq!(expired(&mut wheel, now), due);
                prop_assert!(wheel.next().is_none_or(|next| next > now));
            }
        }
    }
}
