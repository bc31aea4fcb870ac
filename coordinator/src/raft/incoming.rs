//! Puts the pieces of a snapshot together. Whether it is installed is Raft's business.

use super::network::SnapshotChunk;
use super::types::{SnapshotMeta, Vote};

/// Bytes of a snapshot that are taken from a leader: far above the largest registry.
const MAX_SNAPSHOT: usize = 256 << 20;

/// A snapshot on its way in, and whose it is: an old leader may still be sending when a new one begins.
#[derive(Default)]
pub(super) struct Incoming {
    of: Option<(Vote, SnapshotMeta)>,
    pub(super) content: Vec<u8>,
}

impl Incoming {
    /// Takes the next piece; false if it is not the next one of the same snapshot, or if a later leader's is under way.
    pub(super) fn take(&mut self, chunk: &SnapshotChunk) -> bool {
        let whose = (chunk.vote, chunk.meta.clone());
        if self.of.as_ref().is_some_and(|(vote, _)| *vote > chunk.vote) {
            return false;
        }
        if chunk.offset == 0 {
            *self = Self { of: Some(whose.clone()), content: Vec::new() };
        }
        let in_order = chunk.offset == self.content.len() as u64 && self.of.as_ref() == Some(&whose);
        if !in_order || self.content.len() + chunk.data.len() > MAX_SNAPSHOT {
            *self = Self::default();
            return false;
        }
        self.content.extend_from_slice(&chunk.data);
        true
    }
}
