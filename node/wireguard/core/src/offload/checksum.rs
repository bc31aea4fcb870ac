//! The Internet checksum (RFC 1071), alone and in one pass with a copy.
//!
//! A sum is kept in the byte order of memory, which the one's complement allows, and turned round only when it is read.

/// Bytes that one turn of a loop takes: four words for each of eight lanes let the compiler use the widest registers.
const TURN: usize = 32;

/// A one's complement sum under way. Pieces are added in any order, at even offsets: only the last may be odd.
#[derive(Clone, Copy, Default, Debug)]
pub struct Sum(u64);

impl Sum {
    /// Sums bytes.
    pub fn of(bytes: &[u8]) -> Self {
        let mut lanes = [0_u64; TURN / 4];
        let (turns, rest) = bytes.as_chunks::<TURN>();
        for turn in turns {
            add_turn(&mut lanes, turn);
        }
        Self(lanes.iter().sum::<u64>() + tail(rest))
    }

    /// Copies and sums bytes in one pass. Both are of the same length.
    pub fn copying(from: &[u8], to: &mut [u8]) -> Self {
        assert_eq!(from.len(), to.len(), "as long as what is copied into it");
        let mut lanes = [0_u64; TURN / 4];
        let (turns, rest) = from.as_chunks::<TURN>();
        let (to_turns, to_rest) = to.as_chunks_mut::<TURN>();
        for (turn, to) in turns.iter().zip(to_turns) {
            *to = *turn;
            add_turn(&mut lanes, turn);
        }
        to_rest.copy_from_slice(rest);
        Self(lanes.iter().sum::<u64>() + tail(rest))
    }

    /// With the big-endian 16-bit word that has this value.
    pub fn plus(self, word: u16) -> Self {
        Self(self.0 + u64::from(word.to_be()))
    }

    /// Without the big-endian 16-bit word that has this value and was summed before.
    pub fn minus(self, word: u16) -> Self {
        self.plus(!word)
    }

    /// With another piece.
    pub fn join(self, other: Self) -> Self {
        Self(self.0 + other.0)
    }

    /// The folded sum, as a number: 0xffff over what carries its right checksum.
    pub fn fold(self) -> u16 {
        let folded = self.0;
        let folded = (folded & 0xffff_ffff) + (folded >> 32);
        let folded = (folded & 0xffff) + ((folded >> 16) & 0xffff) + (folded >> 32);
        let folded = (folded & 0xffff) + (folded >> 16);
        let folded = (folded & 0xffff) + (folded >> 16);
        u16::from_be(folded as u16)
    }

    /// The checksum: its complement.
    pub fn checksum(self) -> u16 {
        !self.fold()
    }
}

#[inline(always)]
fn add_turn(lanes: &mut [u64; TURN / 4], turn: &[u8; TURN]) {
    for (lane, word) in lanes.iter_mut().zip(turn.as_chunks::<4>().0) {
        *lane += u64::from(u32::from_ne_bytes(*word));
    }
}

fn tail(rest: &[u8]) -> u64 {
    let (words, rest) = rest.as_chunks::<4>();
    let mut last = [0; 4];
    last[..rest.len()].copy_from_slice(rest);
    words.iter().chain([&last]).map(|word| u64::from(u32::from_ne_bytes(*word))).sum()
}
