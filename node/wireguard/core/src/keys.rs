//! Transport keys of one session: sealing and opening data messages in place.
//!
//! A `KeyPair` is immutable and shared by `Arc`, so that sealing and opening need no lock; counters and the replay
//! window belong to the peer. aws-lc holds each key in one heap cell that it wipes when freed.

use crate::message::{DATA_MIN, DataHeader};
use crate::peer::limits::REJECT_AFTER_TIME;
use aws_lc_rs::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey};
use std::fmt;
use std::time::Instant;

pub use crate::message::{DATA_HEADER, TAG};

/// Plaintexts are padded to a multiple of this, so that their length tells less (paper, section 5.4.6).
const PADDING: usize = 16;

/// The keys of one session, both directions.
pub struct KeyPair {
    sending: LessSafeKey,
    receiving: LessSafeKey,
    local_index: u32,
    remote_index: u32,
    created: Instant,
    is_initiator: bool,
}

impl KeyPair {
    /// Takes the two keys that a handshake derived.
    pub(crate) fn new(
        sending: &[u8; 32],
        receiving: &[u8; 32],
        indices: Indices,
        is_initiator: bool,
        created: Instant,
    ) -> Self {
        let Indices { local: local_index, remote: remote_index } = indices;
        Self { sending: key(sending), receiving: key(receiving), local_index, remote_index, created, is_initiator }
    }

    /// The index that the other side names this session by.
    #[inline]
    pub fn local_index(&self) -> u32 {
        self.local_index
    }

    /// The index that this side names the session by when it sends.
    #[inline]
    pub fn remote_index(&self) -> u32 {
        self.remote_index
    }

    /// When the keys were derived.
    #[inline]
    pub fn created(&self) -> Instant {
        self.created
    }

    /// Whether this side sent the initiation.
    #[inline]
    pub fn is_initiator(&self) -> bool {
        self.is_initiator
    }

    /// Whether the keys are too old to send or to accept anything.
    #[inline]
    pub fn expired(&self, now: Instant) -> bool {
        now.saturating_duration_since(self.created) >= REJECT_AFTER_TIME
    }

    /// Seals a data message in place: `buffer` is 16 bytes for the header, the padded plaintext, 16 bytes for the tag.
    ///
    /// `counter` must come from `Peer::send`, once.
    ///
    /// # Panics
    /// When `buffer` is shorter than header and tag.
    #[inline]
    pub fn seal(&self, counter: u64, buffer: &mut [u8]) {
        let (header, rest) =
            buffer.split_first_chunk_mut::<DATA_HEADER>().expect("a buffer has room for header and tag");
        let (plaintext, tag) = rest.split_last_chunk_mut::<TAG>().expect("a buffer has room for header and tag");
        *header = DataHeader { receiver: self.remote_index, counter }.write();
        *tag = seal_in_place(&self.sending, counter, &[], plaintext);
    }

    /// Opens a data message in place and returns the length of the plaintext, which begins at `DATA_HEADER`.
    ///
    /// It says that the message is authentic, not that it is new: that is `Peer::receive`. What did not authenticate
    /// is left unreadable.
    #[inline]
    pub fn open(&self, packet: &mut [u8]) -> Option<usize> {
        if packet.len() < DATA_MIN {
            return None;
        }
        let counter = DataHeader::parse(packet)?.counter;
        let (_, rest) = packet.split_first_chunk_mut::<DATA_HEADER>()?;
        let (ciphertext, tag) = rest.split_last_chunk_mut::<TAG>()?;
        self.receiving
            .open_in_place_separate_tag(nonce(counter), Aad::empty(), tag.as_slice(), ciphertext)
            .ok()
            .map(|plaintext| plaintext.len())
    }
}

impl fmt::Debug for KeyPair {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KeyPair")
            .field("local_index", &self.local_index)
            .field("remote_index", &self.remote_index)
            .field("is_initiator", &self.is_initiator)
            .finish_non_exhaustive()
    }
}

/// The two names of one session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Indices {
    pub(crate) local: u32,
    pub(crate) remote: u32,
}

/// Length that a packet of `len` bytes is padded to: the next multiple of 16, but not beyond `mtu`.
///
/// A packet longer than `mtu`, which is several in one, is padded by its last part; `mtu` 0 means no limit.
#[inline]
pub fn padded_len(len: usize, mtu: usize) -> usize {
    if mtu == 0 {
        return len.next_multiple_of(PADDING);
    }
    let last = if len > mtu { len % mtu } else { len };
    len - last + last.next_multiple_of(PADDING).min(mtu)
}

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packets_are_padded_to_sixteen_but_not_beyond_the_mtu() {
        for (len, mtu, padded) in [
            (0, 1420, 0),
            (1, 1420, 16),
            (16, 1420, 16),
            (1409, 1420, 1420),
            (1420, 1420, 1420),
            (1421, 1420, 1436),
            (2 * 1420, 1420, 2 * 1420),
            (2999, 1420, 3000),
            (5, 3, 6),
            (1421, 0, 1424),
        ] {
            assert_eq!(padded_len(len, mtu), padded, "{len} with MTU {mtu}");
        }
    }
}
