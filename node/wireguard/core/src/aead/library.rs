//! ChaCha20-Poly1305 by AWS-LC, message by message, on every processor. It holds each key in one heap cell that it
//! wipes when freed.

use super::{HEADER, TAG, slots};
use aws_lc_rs::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey};

pub(crate) fn key(bytes: &[u8; 32]) -> LessSafeKey {
    LessSafeKey::new(UnboundKey::new(&CHACHA20_POLY1305, bytes).expect("ChaCha20-Poly1305 takes 32 bytes"))
}

/// Seals `text` where it lies and returns its tag.
#[inline]
pub(crate) fn seal_in_place(key: &LessSafeKey, counter: u64, associated: &[u8], text: &mut [u8]) -> [u8; TAG] {
    let tag = key
        .seal_in_place_separate_tag(nonce(counter), Aad::from(associated), text)
        .expect("a datagram is far below ChaCha20's limit of 256 GiB");
    tag.as_ref().try_into().expect("Poly1305 tags have 16 bytes")
}

/// Four zero bytes and the counter (paper, section 5.4.6).
#[inline]
pub(crate) fn nonce(counter: u64) -> Nonce {
    let mut bytes = [0; 12];
    bytes[4..].copy_from_slice(&counter.to_le_bytes());
    Nonce::assume_unique_for_key(bytes)
}

/// Seals every message of a batch in place.
pub(super) fn seal(key: &LessSafeKey, batch: &mut [u8], stride: usize) {
    for slot in slots(batch.len(), stride) {
        let counter = slot.counter(batch);
        let tag = seal_in_place(key, counter, &[], &mut batch[slot.text()]);
        batch[slot.tag()].copy_from_slice(&tag);
    }
}

/// Opens every message of a batch in place, and says which were authentic, from the lowest bit on.
pub(super) fn open(key: &LessSafeKey, batch: &mut [u8], stride: usize) -> u32 {
    let mut authentic = 0;
    for (n, slot) in slots(batch.len(), stride).enumerate() {
        let nonce = nonce(slot.counter(batch));
        let (message, tag) = batch[slot.start..slot.end].split_at_mut(slot.end - slot.start - TAG);
        let opened = key.open_in_place_separate_tag(nonce, Aad::empty(), tag, &mut message[HEADER..]);
        authentic |= u32::from(opened.is_ok()) << n;
    }
    authentic
}
