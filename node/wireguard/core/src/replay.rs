//! The replay window of one receiving key (RFC 6479).
//!
//! A ring of 8,192 bits, one per counter. The word that the highest counter lies in is only partly seen, so a packet may
//! be up to 8,128 behind the highest, as in the kernel.

use crate::peer::limits::REJECT_AFTER_MESSAGES;

const WORD: u64 = u64::BITS as u64;
const WORDS: u64 = 8_192 / WORD;

/// Counters behind the highest that are still told apart.
pub const WINDOW: u64 = WORDS * WORD - WORD;

/// Which counters were seen.
#[derive(Clone, Debug)]
pub struct ReplayWindow {
    ring: [u64; WORDS as usize],
    /// One more than the highest counter accepted, so that 0 means none.
    next: u64,
}

impl Default for ReplayWindow {
    fn default() -> Self {
        Self { ring: [0; WORDS as usize], next: 0 }
    }
}

impl ReplayWindow {
    /// Takes `counter` if it was not taken before, is not too far behind and below the limit of a key.
    #[inline]
    pub fn accept(&mut self, counter: u64) -> bool {
        if counter >= REJECT_AFTER_MESSAGES {
            return false;
        }
        let place = counter + 1;
        if place + WINDOW < self.next {
            return false;
        }
        let word = place / WORD;
        if place > self.next {
            let from = self.next / WORD;
            for passed in 1..=(word - from).min(WORDS) {
                self.ring[((from + passed) % WORDS) as usize] = 0;
            }
            self.next = place;
        }
        let bit = 1 << (place % WORD);
        let seen = &mut self.ring[(word % WORDS) as usize];
        let fresh = *seen & bit == 0;
        *seen |= bit;
        fresh
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    /// All that a window may say, from everything that it took.
    #[derive(Default)]
    struct Naive(BTreeSet<u64>);

    impl Naive {
        fn accept(&mut self, counter: u64) -> bool {
            let too_old = self.0.last().is_some_and(|highest| counter.saturating_add(WINDOW) < *highest);
            counter < REJECT_AFTER_MESSAGES && !too_old && self.0.insert(counter)
        }
    }

    /// Counters near each other, with jumps about as wide as the ring, around a start that may be anywhere.
    fn counters() -> impl Strategy<Value = Vec<u64>> {
        let start = prop_oneof![Just(0), any::<u64>(), Just(REJECT_AFTER_MESSAGES - 10_000)];
        let step = prop_oneof![
            6 => -80..80_i64,
            3 => -9_000..9_000_i64,
            1 => -100_000..100_000_i64,
            1 => prop_oneof![Just(WINDOW as i64), Just(WINDOW as i64 + 1), Just(8_192), Just(-(WINDOW as i64))],
        ];
        (start, proptest::collection::vec(step, 1..400)).prop_map(|(start, steps)| {
            let next = |counter: &mut u64, step| {
                *counter = counter.saturating_add_signed(step);
                Some(*counter)
            };
            steps.into_iter().scan(start, next).collect()
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn the_window_takes_what_a_complete_memory_would_take(counters in counters()) {
            let (mut window, mut naive) = (ReplayWindow::default(), Naive::default());
            for counter in counters {
                prop_assert_eq!(window.accept(counter), naive.accept(counter), "{}", counter);
            }
        }
    }

    #[test]
    fn every_counter_of_a_full_window_is_taken_once_in_any_order() {
        let mut window = ReplayWindow::default();
        assert!(window.accept(WINDOW));
        assert!((0..WINDOW).rev().all(|counter| window.accept(counter)));
        assert!(!(0..=WINDOW).any(|counter| window.accept(counter)));
        assert!(window.accept(WINDOW + 1));
        assert!(!window.accept(0), "too old, though its bit is gone");
    }

    #[test]
    fn a_jump_of_a_multiple_of_the_ring_forgets_everything() {
        let mut window = ReplayWindow::default();
        assert!((0..8_192).all(|counter| window.accept(counter)));
        assert!(window.accept(8_192 * 5));
        assert!((8_192 * 5 - WINDOW..8_192 * 5).all(|counter| window.accept(counter)));
    }

    #[test]
    fn the_limits_of_a_key_hold() {
        let mut window = ReplayWindow::default();
        assert!(!window.accept(u64::MAX) && !window.accept(REJECT_AFTER_MESSAGES));
        assert!(window.accept(REJECT_AFTER_MESSAGES - 1));
    }
}
