//! Text that may hold keys: all its memory is wiped, that too which it grew out of.

use std::fmt;
use zeroize::Zeroizing;

/// Bytes for most requests and answers, so that few grow.
const USUAL: usize = 4_096;

/// Bytes that are wiped when dropped.
#[derive(Default)]
pub(super) struct Wiped(Zeroizing<Vec<u8>>);

impl Wiped {
    pub(super) fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// Adds bytes. When there is no room, what was there is copied and wiped.
    pub(super) fn push(&mut self, bytes: &[u8]) {
        let length = self.0.len() + bytes.len();
        if length > self.0.capacity() {
            let mut larger = Zeroizing::new(Vec::with_capacity(length.next_power_of_two().max(USUAL)));
            larger.extend_from_slice(&self.0);
            self.0 = larger;
        }
        self.0.extend_from_slice(bytes);
    }

    /// Takes out what comes before a place.
    pub(super) fn split_to(&mut self, at: usize) -> Self {
        let (mut first, mut rest) = (Self::default(), Self::default());
        first.push(&self.0[..at]);
        rest.push(&self.0[at..]);
        *self = rest;
        first
    }
}

impl fmt::Write for Wiped {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.push(text.as_bytes());
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_added_is_there_however_often_it_grew() {
        let mut text = Wiped::default();
        for n in 0..10_000_u32 {
            text.push(&n.to_le_bytes());
        }
        let first = text.split_to(6);
        assert_eq!(first.as_bytes(), [0, 0, 0, 0, 1, 0]);
        assert_eq!(text.as_bytes()[2..6], 2_u32.to_le_bytes());
        assert_eq!(text.as_bytes().len(), 40_000 - 6);
    }
}
