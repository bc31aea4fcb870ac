//! Timestamps of initiations: TAI64N labels (<https://cr.yp.to/libtai/tai64.html>).
//!
//! A responder takes an initiation only if its label is greater than the greatest so far, so that a recorded one is
//! worth nothing.

use std::time::Duration;

/// Labels count in steps of this many nanoseconds, as the kernel does it: a finer clock would leak more than it tells,
/// and more than 50 initiations a second are refused anyway. The greatest power of two in a fiftieth of a second.
const STEP: u32 = 1 << 24;

/// 1970-01-01 00:00:00 TAI, and the ten seconds that TAI was ahead of UTC then.
const EPOCH: u64 = 0x4000_0000_0000_000a;

const NANOS_PER_SEC: u32 = 1_000_000_000;

/// A TAI64N label, ordered by time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Tai64n([u8; 12]);

impl Tai64n {
    /// The label of a wall clock that shows `since_epoch` since 1970, rounded down to about 17 ms.
    pub fn from_unix(since_epoch: Duration) -> Self {
        Self::new(EPOCH.wrapping_add(since_epoch.as_secs()), since_epoch.subsec_nanos())
    }

    /// The label as it came in a message.
    pub const fn from_bytes(bytes: [u8; 12]) -> Self {
        Self(bytes)
    }

    /// The label as it goes into a message.
    pub const fn as_bytes(&self) -> &[u8; 12] {
        &self.0
    }

    /// The next greater label.
    pub(crate) fn next(&self) -> Self {
        let (seconds, nanos) = self.0.split_at(8);
        let seconds = u64::from_be_bytes(seconds.try_into().expect("eight of twelve bytes"));
        let nanos = u32::from_be_bytes(nanos.try_into().expect("four of twelve bytes"));
        match nanos.saturating_add(STEP) {
            NANOS_PER_SEC.. => Self::new(seconds.wrapping_add(1), 0),
            nanos => Self::new(seconds, nanos),
        }
    }

    fn new(seconds: u64, nanos: u32) -> Self {
        let mut bytes = [0; 12];
        bytes[..8].copy_from_slice(&seconds.to_be_bytes());
        bytes[8..].copy_from_slice(&(nanos - nanos % STEP).to_be_bytes());
        Self(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_label_is_seconds_since_1970_tai_and_rounded_nanoseconds() {
        // cr.yp.to: 1992-06-02 08:07:09 TAI, 08:06:43 UTC, has the label 400000002a2b2c2d. WireGuard, like the
        // kernel, counts ten leap seconds for ever.
        let label = Tai64n::from_unix(Duration::new(0x2a2b2c2d - 10, 500_000_000));
        assert_eq!(hex::encode(label.as_bytes()), "400000002a2b2c2d1d000000");
    }

    #[test]
    fn labels_of_the_same_step_are_equal_and_the_next_is_greater() {
        let at = |nanos| Tai64n::from_unix(Duration::new(7, nanos));
        assert_eq!(at(0), at(STEP - 1));
        assert_eq!(at(0).next(), at(STEP));
        assert_eq!(at(999_999_999).next(), Tai64n::from_unix(Duration::new(8, 0)));
    }
}
