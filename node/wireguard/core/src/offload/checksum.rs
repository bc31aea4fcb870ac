//! The Internet checksum (RFC 1071), alone and in one pass with a copy.
//!
//! A sum is kept in the byte order of memory, which the one's complement allows, and turned round only when it is read.

/// Bytes that one turn of a loop takes: two chains of additions with carry, two words each.
const TURN: usize = 32;

/// A one's complement sum under way. Pieces are added in any order, each from an even offset: only the last may be odd.
#[derive(Clone, Copy, Default, Debug)]
pub struct Sum(u64);

impl Sum {
    /// Sums bytes.
    pub fn of(bytes: &[u8]) -> Self {
        let mut chains = [0; 2];
        let (turns, rest) = bytes.as_chunks();
        for turn in turns {
            add(&mut chains, turn);
        }
        Self::reduced(chains, rest)
    }

    /// Copies and sums bytes in one pass. Both are of the same length.
    pub fn copying(from: &[u8], to: &mut [u8]) -> Self {
        assert_eq!(from.len(), to.len(), "as long as what is copied into it");
        let mut chains = [0; 2];
        let (turns, rest) = from.as_chunks();
        let (to_turns, to_rest) = to.as_chunks_mut();
        for (turn, to) in turns.iter().zip(to_turns) {
            *to = *turn;
            add(&mut chains, turn);
        }
        to_rest.copy_from_slice(rest);
        Self::reduced(chains, rest)
    }

    /// With the big-endian word that has this value.
    pub fn plus(self, word: u16) -> Self {
        Self(self.0 + u64::from(word.to_be()))
    }

    /// Without the big-endian word that has this value and was summed before.
    pub fn minus(self, word: u16) -> Self {
        self.plus(!word)
    }

    /// With another piece.
    pub fn join(self, other: Self) -> Self {
        Self(self.0 + other.0)
    }

    /// The folded sum: 0xffff over whatever contains its right checksum.
    pub fn fold(self) -> u16 {
        let mut sum = self.0;
        while sum > 0xffff {
            sum = (sum & 0xffff) + (sum >> 16);
        }
        u16::from_be(sum as u16)
    }

    /// The checksum: its complement.
    pub fn checksum(self) -> u16 {
        !self.fold()
    }

    /// Leaves room above for 2^30 additions.
    fn reduced(chains: [u128; 2], rest: &[u8]) -> Self {
        let (words, rest) = rest.as_chunks();
        let mut last = [0; 8];
        last[..rest.len()].copy_from_slice(rest);
        let words = words.iter().chain([&last]).map(|word| u128::from(u64::from_ne_bytes(*word)));
        let sum = chains[0] + chains[1] + words.sum::<u128>();
        Self(u64::from(sum as u32) + u64::from((sum >> 32) as u32) + (sum >> 64) as u64)
    }
}

#[inline(always)]
fn add(chains: &mut [u128; 2], turn: &[u8; TURN]) {
    for (i, word) in turn.as_chunks().0.iter().enumerate() {
        chains[i % 2] += u128::from(u64::from_ne_bytes(*word));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// As RFC 1071 writes it down.
    fn naive(bytes: &[u8]) -> u16 {
        let mut sum = 0_u32;
        for pair in bytes.chunks(2) {
            sum += u32::from(pair[0]) << 8 | pair.get(1).map_or(0, |byte| u32::from(*byte));
            sum = (sum & 0xffff) + (sum >> 16);
        }
        sum as u16
    }

    #[test]
    fn the_example_of_the_rfc() {
        let sum = Sum::of(&[0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7]);
        assert_eq!((sum.fold(), sum.checksum()), (0xddf2, 0x220d));
    }

    #[test]
    fn carries_are_not_lost_at_the_largest_values_and_lengths() {
        for length in (0..200).chain(65_500..=65_600) {
            assert_eq!(Sum::of(&vec![0xff; length]).fold(), naive(&vec![0xff; length]), "{length} bytes");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_sum_up_as_the_rfc_writes_it_down(bytes in proptest::collection::vec(any::<u8>(), 0..3_000)) {
            let mut copy = vec![0; bytes.len()];
            prop_assert_eq!(Sum::of(&bytes).fold(), naive(&bytes));
            prop_assert_eq!(Sum::copying(&bytes, &mut copy).fold(), naive(&bytes));
            prop_assert_eq!(copy, bytes);
        }

        #[test]
        fn pieces_sum_up_to_the_whole_and_words_can_be_replaced(
            bytes in proptest::collection::vec(any::<u8>(), 4..300), cut in 0_usize..150, word: u16,
        ) {
            let (left, right) = bytes.split_at((cut * 2).min(bytes.len() / 2 * 2));
            prop_assert_eq!(Sum::of(left).join(Sum::of(right)).fold(), naive(&bytes));

            let old = u16::from_be_bytes([bytes[2], bytes[3]]);
            let mut replaced = bytes.clone();
            replaced[2..4].copy_from_slice(&word.to_be_bytes());
            // Zero has two representations; whatever carries a header is never all zeros.
            replaced[0] |= 1;
            let mut bytes = bytes;
            bytes[0] |= 1;
            prop_assert_eq!(Sum::of(&bytes).minus(old).plus(word).fold(), naive(&replaced));
        }
    }
}
