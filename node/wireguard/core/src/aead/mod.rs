//! ChaCha20-Poly1305 for data messages: one key, trains of messages, in place.
//!
//! A message is WireGuard's: a header that ends in the counter, which is the nonce, then the text, then the tag; nothing
//! is authenticated but the text (paper, section 5.4.6). AWS-LC does it on every processor (`library`). On one with
//! AVX-512 and its integer multiply-add sixteen messages are done at a time (`wide`), at several times the speed. There
//! AWS-LC is the judge: before the first key is made both do the same messages, and `wide` is not used unless they agree.

pub(crate) mod library;
#[cfg(target_arch = "x86_64")]
mod wide;

use crate::message::{DATA_HEADER as HEADER, DATA_MIN, TAG};
use aws_lc_rs::aead::LessSafeKey;
use std::ops::Range;

/// Messages that are done at a time.
const BATCH: usize = 16;

/// A key of one direction. It is wiped when dropped.
pub(crate) struct Cipher(Kind);

enum Kind {
    Library(LessSafeKey),
    #[cfg(target_arch = "x86_64")]
    Wide(wide::Key),
}

/// Where a message lies in a train.
#[derive(Clone, Copy, Default)]
struct Slot {
    start: usize,
    end: usize,
}

impl Cipher {
    /// The fastest there is on this processor.
    pub(crate) fn new(key: &[u8; 32]) -> Self {
        #[cfg(target_arch = "x86_64")]
        if let Some(key) = wide::Key::new(key)
            && wide_is_right()
        {
            return Self(Kind::Wide(key));
        }
        Self(Kind::Library(library::key(key)))
    }

    /// Seals every message of a train: `stride` bytes each, the last perhaps fewer. The headers are written already.
    ///
    /// # Panics
    /// When a message is too short for header and tag.
    pub(crate) fn seal(&self, train: &mut [u8], stride: usize) {
        for batch in train.chunks_mut(stride * BATCH) {
            match &self.0 {
                Kind::Library(key) => library::seal(key, batch, stride),
                #[cfg(target_arch = "x86_64")]
                Kind::Wide(key) => key.seal(batch, stride),
            }
        }
    }

    /// Opens every message of a train, and tells for each, in their order, whether it was authentic. The text of one
    /// that was not is left unreadable.
    ///
    /// # Panics
    /// When a message is too short for header and tag.
    pub(crate) fn open(&self, train: &mut [u8], stride: usize, mut opened: impl FnMut(bool)) {
        for batch in train.chunks_mut(stride * BATCH) {
            let authentic = match &self.0 {
                Kind::Library(key) => library::open(key, batch, stride),
                #[cfg(target_arch = "x86_64")]
                Kind::Wide(key) => key.open(batch, stride),
            };
            for n in 0..batch.len().div_ceil(stride) {
                opened(authentic >> n & 1 == 1);
            }
        }
    }
}

impl Slot {
    fn counter(&self, train: &[u8]) -> u64 {
        let end = self.start + HEADER;
        u64::from_le_bytes(train[end - 8..end].try_into().expect("eight bytes"))
    }

    fn text(&self) -> Range<usize> {
        self.start + HEADER..self.end - TAG
    }

    fn tag(&self) -> Range<usize> {
        self.end - TAG..self.end
    }
}

/// The messages of a train of `length` bytes.
fn slots(length: usize, stride: usize) -> impl Iterator<Item = Slot> {
    (0..length).step_by(stride).map(move |start| {
        let end = length.min(start + stride);
        assert!(end - start >= DATA_MIN, "a data message has a header and a tag");
        Slot { start, end }
    })
}

/// Whether `wide` does on this processor what AWS-LC does, tried once in a process.
#[cfg(target_arch = "x86_64")]
fn wide_is_right() -> bool {
    static RIGHT: std::sync::OnceLock<bool> = std::sync::OnceLock::new();
    *RIGHT.get_or_init(|| {
        let bytes: [u8; 32] = std::array::from_fn(|n| (n * 37 + 11) as u8);
        let Some(wide) = wide::Key::new(&bytes) else { return false };
        let library = library::key(&bytes);
        // Every lane, texts of whole blocks and not, and a short last message.
        [1_452, 1_440, 91].into_iter().all(|stride| {
            let plain: Vec<u8> = (0..stride * BATCH - 33).map(|n| ((n * n) >> 7) as u8).collect();
            let (mut ours, mut theirs) = (plain.clone(), plain.clone());
            wide.seal(&mut ours, stride);
            library::seal(&library, &mut theirs, stride);
            let sealed_alike = ours == theirs;
            ours[stride * 3] ^= 1; // not authenticated
            ours[stride * 5 + HEADER] ^= 1;
            let opened = wide.open(&mut ours, stride);
            sealed_alike && opened == 0xffff & !(1 << 5) && {
                let text = stride * 14 + HEADER..stride * 15 - TAG;
                ours[text.clone()] == plain[text]
            }
        })
    })
}
