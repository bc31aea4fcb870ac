//! A summary of all records that two coordinators compare instead of the records: one hash for each bucket of nodes.

use mesh_types::{Fingerprint, NodeId, SignedPresence};

/// How many buckets: with 10,000 nodes one changed record makes about 40 be sent again.
pub const BUCKETS: usize = 256;

/// Sums of record hashes. A sum does not depend on the order and can be undone.
#[derive(Debug)]
pub(super) struct Digest {
    sums: Vec<u64>,
}

impl Default for Digest {
    fn default() -> Self {
        Self { sums: vec![0; BUCKETS] }
    }
}

impl Digest {
    pub(super) fn add(&mut self, node: NodeId, signed: &SignedPresence) {
        let sum = &mut self.sums[bucket(node)];
        *sum = sum.wrapping_add(hash(signed));
    }

    pub(super) fn remove(&mut self, node: NodeId, signed: &SignedPresence) {
        let sum = &mut self.sums[bucket(node)];
        *sum = sum.wrapping_sub(hash(signed));
    }

    pub(super) fn buckets(&self) -> Vec<u64> {
        self.sums.clone()
    }

    /// Which buckets differ; all, if the other divides otherwise.
    pub(super) fn differing(&self, theirs: &[u64]) -> Vec<bool> {
        if theirs.len() != BUCKETS {
            return vec![true; BUCKETS];
        }
        self.sums.iter().zip(theirs).map(|(ours, theirs)| ours != theirs).collect()
    }
}

/// Node ids are random, so their first byte divides them evenly.
pub(super) fn bucket(node: NodeId) -> usize {
    usize::from(node.as_bytes()[0])
}

/// Of the payload alone: a second valid signature over the same words is no difference.
fn hash(signed: &SignedPresence) -> u64 {
    let fingerprint = Fingerprint::of(&signed.payload);
    let (head, _) = fingerprint.as_bytes().split_first_chunk::<8>().expect("a SHA-256 has 32 bytes");
    u64::from_be_bytes(*head)
}
