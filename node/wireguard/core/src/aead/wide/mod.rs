//! ChaCha20-Poly1305 of up to sixteen messages at a time, with AVX-512 and its integer multiply-add.
//!
//! The blocks of all messages form one row, which is made sixteen at a time: first the block of each message that its
//! one-time key is taken from, then those for its text. Tags are made for eight messages at a time. So short messages
//! are taken as fast as long ones, and no lane is idle between two of them.
//!
//! Key stream and one-time keys are wiped where they lay, as far as the compiler tells: what it put on the stack besides,
//! while it made them, is written over by the next batch.
//!
//! Two limits: the text of a message is shorter than 256 GiB, and there are no associated data; WireGuard's data
//! messages have none. The parts would do both, and any nonce.

mod chacha20;
mod poly1305;
#[cfg(test)]
mod tests;

use super::{BATCH, Slot, slots};
use chacha20::{BLOCK, BLOCKS, Inputs, key_stream, key_streams};
use poly1305::{LANES, OneTimeKey, TAG, tags};
use std::arch::x86_64::*;
use zeroize::{Zeroize as _, ZeroizeOnDrop};

/// A key, on a processor that has the instructions.
#[derive(ZeroizeOnDrop)]
pub(super) struct Key {
    words: [u32; 8],
}

impl Key {
    /// `None` if this processor lacks the instructions.
    pub(super) fn new(bytes: &[u8; 32]) -> Option<Self> {
        let supported = is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512vl")
            && is_x86_feature_detected!("avx512ifma");
        supported.then(|| {
            let (words, _) = bytes.as_chunks::<4>();
            Self { words: std::array::from_fn(|n| u32::from_le_bytes(words[n])) }
        })
    }

    /// Seals every message of a batch in place.
    pub(super) fn seal(&self, batch: &mut [u8], stride: usize) {
        // SAFETY: There is a key only where there are the instructions.
        unsafe { seal(&self.words, batch, stride) }
    }

    /// Opens every message of a batch in place, and says which were authentic, from the lowest bit on. What was not
    /// stays as it is.
    pub(super) fn open(&self, batch: &mut [u8], stride: usize) -> u32 {
        // SAFETY: There is a key only where there are the instructions.
        unsafe { open(&self.words, batch, stride) }
    }
}

/// Where the messages of a batch are.
struct Batch {
    slots: [Slot; BATCH],
    nonces: [[u32; 3]; BATCH],
    count: usize,
}

/// What the lanes of one run of ChaCha20 make, and where that goes.
struct Row {
    inputs: Inputs,
    places: [Place; BLOCKS],
}

/// Bytes of a text that one block of the key stream covers; none if `len` is 0.
#[derive(Clone, Copy, Default)]
struct Place {
    message: usize,
    at: usize,
    len: usize,
}

/// The next block that a text needs.
#[derive(Clone, Copy, Default)]
struct Cursor {
    message: usize,
    block: usize,
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512ifma")]
fn seal(key: &[u32; 8], bytes: &mut [u8], stride: usize) {
    let batch = Batch::of(bytes, stride);
    let mut cursor = Cursor::default();
    let row = batch.first_row(&mut cursor);
    let mut stream = key_stream(key, &row.inputs);
    let mut one_time = batch.one_time_keys(&stream);
    row.apply(&stream, bytes, u32::MAX);
    stream.zeroize();
    batch.apply_rest(key, cursor, bytes, u32::MAX);
    for (slot, tag) in batch.slots().iter().zip(batch.tags(&one_time, bytes)) {
        bytes[slot.tag()].copy_from_slice(&tag);
    }
    one_time.zeroize();
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512ifma")]
fn open(key: &[u32; 8], bytes: &mut [u8], stride: usize) -> u32 {
    let batch = Batch::of(bytes, stride);
    let mut cursor = Cursor::default();
    let row = batch.first_row(&mut cursor);
    let mut stream = key_stream(key, &row.inputs);
    let mut one_time = batch.one_time_keys(&stream);
    let mut authentic = 0;
    for (n, (slot, tag)) in batch.slots().iter().zip(batch.tags(&one_time, bytes)).enumerate() {
        let equal = aws_lc_rs::constant_time::verify_slices_are_equal(&tag, &bytes[slot.tag()]);
        authentic |= u32::from(equal.is_ok()) << n;
    }
    one_time.zeroize();
    row.apply(&stream, bytes, authentic);
    stream.zeroize();
    batch.apply_rest(key, cursor, bytes, authentic);
    authentic
}

impl Batch {
    fn of(bytes: &[u8], stride: usize) -> Self {
        let mut batch = Self { slots: [Slot::default(); BATCH], nonces: [[0; 3]; BATCH], count: 0 };
        for (n, slot) in slots(bytes.len(), stride).enumerate() {
            let counter = slot.counter(bytes);
            // Four zero bytes and the counter (paper, section 5.4.6).
            batch.nonces[n] = [0, counter as u32, (counter >> 32) as u32];
            batch.slots[n] = slot;
            batch.count = n + 1;
        }
        batch
    }

    fn slots(&self) -> &[Slot] {
        &self.slots[..self.count]
    }

    /// The row that begins with the blocks for the one-time keys: block 0 of every message.
    fn first_row(&self, cursor: &mut Cursor) -> Row {
        let mut row = Row::default();
        for n in 0..self.count {
            row.set(n, 0, self.nonces[n]);
        }
        self.fill(&mut row, self.count, cursor);
        row
    }

    fn row(&self, cursor: &mut Cursor) -> Row {
        let mut row = Row::default();
        self.fill(&mut row, 0, cursor);
        row
    }

    /// Adds the key stream to what is left of the texts of those messages whose bit is set.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512ifma")]
    fn apply_rest(&self, key: &[u32; 8], mut cursor: Cursor, bytes: &mut [u8], messages: u32) {
        // One place for all key stream, wiped once.
        let mut streams = [[_mm512_setzero_si512(); BLOCKS]; 2];
        while cursor.message < self.count {
            let one = self.row(&mut cursor);
            if cursor.message == self.count {
                streams[0] = key_stream(key, &one.inputs);
                one.apply(&streams[0], bytes, messages);
                break;
            }
            let two = self.row(&mut cursor);
            streams = key_streams(key, [&one.inputs, &two.inputs]);
            one.apply(&streams[0], bytes, messages);
            two.apply(&streams[1], bytes, messages);
        }
        streams.zeroize();
    }

    /// Gives the lanes from `lane` on to the blocks of texts from `cursor` on.
    fn fill(&self, row: &mut Row, mut lane: usize, cursor: &mut Cursor) {
        while lane < BLOCKS && cursor.message < self.count {
            let Cursor { message, block } = *cursor;
            let text = self.slots[message].text();
            let at = text.start + block * BLOCK;
            if at >= text.end {
                *cursor = Cursor { message: message + 1, block: 0 };
                continue;
            }
            row.set(lane, block as u32 + 1, self.nonces[message]);
            row.places[lane] = Place { message, at, len: BLOCK.min(text.end - at) };
            cursor.block += 1;
            lane += 1;
        }
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512ifma")]
    fn one_time_keys(&self, stream: &[__m512i; BLOCKS]) -> [OneTimeKey; BATCH] {
        let mut keys = [OneTimeKey::default(); BATCH];
        for (key, block) in keys.iter_mut().zip(&stream[..self.count]) {
            let mut words = [0u64; 8];
            // SAFETY: The array has the vector's 64 bytes, and the store asks for no alignment.
            unsafe { _mm512_storeu_si512(words.as_mut_ptr().cast(), *block) };
            *key = OneTimeKey { r: [words[0], words[1]], s: [words[2], words[3]] };
            words.zeroize();
        }
        keys
    }

    /// The tags of the texts as they are now.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512ifma")]
    fn tags(&self, keys: &[OneTimeKey; BATCH], bytes: &[u8]) -> [[u8; TAG]; BATCH] {
        let mut all = [[0; TAG]; BATCH];
        for first in (0..self.count).step_by(LANES) {
            // A lane without a message of its own does once more what the first one does.
            let of = |lane: usize| if first + lane < self.count { first + lane } else { first };
            let mut keys: [_; LANES] = std::array::from_fn(|lane| keys[of(lane)]);
            let texts: [&[u8]; LANES] = std::array::from_fn(|lane| &bytes[self.slots[of(lane)].text()]);
            let closing = texts.map(|text| [0, text.len() as u64]);
            all[first..first + LANES].copy_from_slice(&tags(&keys, &texts, &closing));
            keys.zeroize();
        }
        all
    }
}

impl Default for Row {
    fn default() -> Self {
        Self { inputs: Inputs::default(), places: [Place::default(); BLOCKS] }
    }
}

impl Row {
    fn set(&mut self, lane: usize, block: u32, nonce: [u32; 3]) {
        self.inputs.block[lane] = block;
        for (words, word) in self.inputs.nonce.iter_mut().zip(nonce) {
            words[lane] = word;
        }
    }

    /// Adds the key stream to the texts of those messages whose bit is set.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512ifma")]
    fn apply(&self, stream: &[__m512i; BLOCKS], bytes: &mut [u8], messages: u32) {
        for (place, block) in self.places.iter().zip(stream) {
            if messages >> place.message & 1 == 0 {
                continue;
            }
            let text = &mut bytes[place.at..place.at + place.len];
            match text.as_mut_array::<BLOCK>() {
                // SAFETY: The array has the vector's 64 bytes, and neither access asks for an alignment.
                Some(text) => unsafe {
                    let pointer = text.as_mut_ptr().cast();
                    _mm512_storeu_si512(pointer, _mm512_xor_si512(_mm512_loadu_si512(pointer), *block));
                },
                None => {
                    let mask = (1 << text.len()) - 1;
                    let pointer = text.as_mut_ptr().cast();
                    // SAFETY: The mask admits as many bytes as the text has, and the instructions touch no others.
                    unsafe {
                        let mixed = _mm512_xor_si512(_mm512_maskz_loadu_epi8(mask, pointer), *block);
                        _mm512_mask_storeu_epi8(pointer, mask, mixed);
                    }
                }
            }
        }
    }
}
