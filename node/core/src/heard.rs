//! Which words of peers the node holds, so that a coordinator it comes to sends only what it lacks.
//!
//! Lasts as long as the daemon, over all its sessions. What the words say is kept by the paths; here is only a hash of
//! each.

use mesh_types::digest::hash;
use mesh_types::{NodeId, PresenceDigest, SignedPresence};
use std::collections::BTreeMap;

/// A hash of the newest word of each peer, and the digest over them.
#[derive(Default)]
pub(crate) struct Heard {
    words: BTreeMap<NodeId, u64>,
    digest: PresenceDigest,
}

impl Heard {
    /// Takes a word in the place of the peer's earlier one.
    pub(crate) fn take(&mut self, node: NodeId, word: &SignedPresence) {
        let hash = hash(word);
        self.digest.add(node, hash);
        if let Some(before) = self.words.insert(node, hash) {
            self.digest.remove(node, before);
        }
    }

    /// Forgets the words of all but these.
    pub(crate) fn retain(&mut self, stays: impl Fn(NodeId) -> bool) {
        for (node, hash) in self.words.extract_if(.., |&node, _| !stays(node)) {
            self.digest.remove(node, hash);
        }
    }

    /// What to show a coordinator: the digest over what is held and the node's own last word; nothing if none is held.
    pub(crate) fn digest(&self, own: Option<(NodeId, &SignedPresence)>) -> Vec<u64> {
        if self.words.is_empty() {
            return Vec::new();
        }
        let mut digest = self.digest.clone();
        if let Some((node, word)) = own {
            digest.add(node, hash(word));
        }
        digest.sums().to_vec()
    }
}
