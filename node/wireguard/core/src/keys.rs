//! Transport keys of one session: sealing and opening data messages in place.
//!
//! A `KeyPair` is immutable and shared by `Arc`, so that sealing and opening need no lock; counters and the replay
//! window belong to the peer.

use crate::aead::Cipher;
use crate::message::{DATA_MIN, DataHeader};
use crate::peer::limits::REJECT_AFTER_TIME;
use std::fmt;
use std::time::Instant;

pub use crate::message::{DATA_HEADER, TAG};

/// Plaintexts are padded to a multiple of this, so that their length tells less (paper, section 5.4.6).
const PADDING: usize = 16;

/// The keys of one session, both directions.
pub struct KeyPair {
    sending: Cipher,
    receiving: Cipher,
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
        let (sending, receiving) = (Cipher::new(sending), Cipher::new(receiving));
        Self { sending, receiving, local_index, remote_index, created, is_initiator }
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

    /// Writes the header of a data message that is to be sealed with `counter`, which must come from `Peer::send`, once.
    ///
    /// # Panics
    /// When `message` is shorter than header and tag.
    #[inline]
    pub fn begin(&self, counter: u64, message: &mut [u8]) {
        let header = DataHeader { receiver: self.remote_index, counter }.write();
        assert!(message.len() >= DATA_MIN, "a data message has a header and a tag");
        message[..DATA_HEADER].copy_from_slice(&header);
    }

    /// Begins and seals one message, as `begin` and `seal` do.
    ///
    /// # Panics
    /// When `message` is shorter than header and tag.
    pub fn seal_message(&self, counter: u64, message: &mut [u8]) {
        self.begin(counter, message);
        self.seal(message, message.len());
    }

    /// Opens one message, as `open` does, and returns the length of the plaintext, which begins at `DATA_HEADER`.
    pub fn open_message(&self, message: &mut [u8]) -> Option<usize> {
        let len = message.len().checked_sub(DATA_MIN)?;
        let mut is_authentic = false;
        self.open(message, message.len(), |authentic| is_authentic = authentic);
        is_authentic.then_some(len)
    }

    /// Seals the data messages of a train in place: `stride` bytes each, the last perhaps fewer. Each is a header, as
    /// `begin` wrote it, the padded plaintext, and 16 bytes for the tag.
    ///
    /// # Panics
    /// When a message is shorter than header and tag.
    #[inline]
    pub fn seal(&self, train: &mut [u8], stride: usize) {
        self.sending.seal(train, stride);
    }

    /// Opens the data messages of a train in place: `stride` bytes each, the last perhaps fewer. Tells of each, in their
    /// order, whether it was authentic; its plaintext lies between header and tag.
    ///
    /// That it is authentic does not mean that it is new: that is `Peer::receive`. What did not authenticate is left
    /// unreadable.
    ///
    /// # Panics
    /// When a message is shorter than header and tag.
    #[inline]
    pub fn open(&self, train: &mut [u8], stride: usize, opened: impl FnMut(bool)) {
        self.receiving.open(train, stride, opened);
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
