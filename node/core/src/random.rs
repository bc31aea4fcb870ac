//! Jitter and probe tokens from one seed (SplitMix64), so that a simulated run can be repeated.
//!
//! Not for secrets: what is drawn here only has to differ.

use std::time::Duration;

/// A small deterministic generator.
#[derive(Clone, Debug)]
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// `span` and up to a quarter more.
    pub(crate) fn jitter(&mut self, span: Duration) -> Duration {
        let quarter = u64::try_from(span.as_micros() / 4).unwrap_or(u64::MAX);
        span + Duration::from_micros(self.next() % quarter.saturating_add(1))
    }
}
