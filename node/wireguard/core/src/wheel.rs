//! When which of thousands of peers wants to be looked at.

use std::time::Instant;

/// Deadlines of many keys, each cheap to set. An entry is a hint: its owner looks at what is really due and inserts
/// again, so there is no removal, and a deadline that moved later needs no new entry.
pub struct Wheel<K> {
    entries: Vec<(Instant, K)>,
}

impl<K: Copy> Wheel<K> {
    /// Empty; no entry will be earlier than `now`, or it counts as due now.
    pub fn new(_now: Instant) -> Self {
        Self { entries: Vec::new() }
    }

    /// Wants `key` to be handed out once `at` has come.
    pub fn insert(&mut self, key: K, at: Instant) {
        self.entries.push((at, key));
    }

    /// Hands out every entry whose time has come, once, and forgets it.
    pub fn expire(&mut self, due: &mut impl FnMut(K), now: Instant) {
        self.entries.retain(|(at, key)| {
            let wait = *at > now;
            if !wait {
                due(*key);
            }
            wait
        });
    }

    /// When the earliest entry is due.
    pub fn next(&self) -> Option<Instant> {
        self.entries.iter().map(|(at, _)| *at).min()
    }
}
