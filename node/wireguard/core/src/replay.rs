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
