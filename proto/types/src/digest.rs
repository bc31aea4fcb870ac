//! A summary of all presence that someone holds, compared instead of the records: one hash for each bucket of nodes.
//!
//! Two coordinators compare theirs, and a node shows its own to the coordinator that it comes to: only records in
//! buckets that differ are sent.

use crate::id::NodeId;
use crate::key::Fingerprint;
use crate::presence::SignedPresence;

/// How many buckets: with 10,000 nodes one changed record makes about 40 be sent again.
pub const BUCKETS: usize = 256;

/// Sums of record hashes. A sum does not depend on the order and can be undone.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PresenceDigest {
    sums: Vec<u64>,
}

/// A set of buckets.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Buckets(Vec<bool>);

impl Default for PresenceDigest {
    fn default() -> Self {
        Self { sums: vec![0; BUCKETS] }
    }
}

impl PresenceDigest {
    /// Takes in a record of this hash.
    pub fn add(&mut self, node: NodeId, hash: u64) {
        let sum = &mut self.sums[bucket(node)];
        *sum = sum.wrapping_add(hash);
    }

    /// Takes out a record of this hash that was taken in.
    pub fn remove(&mut self, node: NodeId, hash: u64) {
        let sum = &mut self.sums[bucket(node)];
        *sum = sum.wrapping_sub(hash);
    }

    /// The hash of each bucket, for others.
    pub fn sums(&self) -> &[u64] {
        &self.sums
    }

    /// Which buckets differ from another's; all, if the other divides otherwise or shows nothing.
    pub fn differing(&self, theirs: &[u64]) -> Buckets {
        if theirs.len() != BUCKETS {
            return Buckets(vec![true; BUCKETS]);
        }
        Buckets(self.sums.iter().zip(theirs).map(|(ours, theirs)| ours != theirs).collect())
    }
}

impl Buckets {
    /// Whether a node's record lies in one of them.
    pub fn contains(&self, node: NodeId) -> bool {
        self.0[bucket(node)]
    }
}

/// A record's hash: of the payload alone, since a second valid signature over the same words is no difference.
pub fn hash(signed: &SignedPresence) -> u64 {
    let fingerprint = Fingerprint::of(&signed.payload);
    let (head, _) = fingerprint.as_bytes().split_first_chunk::<8>().expect("a SHA-256 has 32 bytes");
    u64::from_be_bytes(*head)
}

/// Node ids are random, so their first byte divides them evenly.
fn bucket(node: NodeId) -> usize {
    usize::from(node.as_bytes()[0])
}
