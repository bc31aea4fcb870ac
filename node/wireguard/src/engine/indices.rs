//! The indices by which messages name sessions and handshakes: ours lead to keys, and those of the other side tell which
//! messages are our own.
//!
//! An index of ours is drawn at random and is in an initiation or a response as its sender; one that a peer drew is in
//! every data message to it. So a datagram that carries a tunnel is known by its contents: another host's WireGuard, which
//! may pass through the mesh from the same port and, behind a translator, even from the same address, has other indices.
//! (By chance two are equal once in four billion; a cookie reply names nothing of ours, and only answers.)

use super::shared::Cell;
use mesh_wireguard_core::keys::KeyPair;
use mesh_wireguard_core::message::Named;
use std::collections::HashMap;
use std::sync::Arc;

/// What the indices in use lead to.
#[derive(Default)]
pub(crate) struct Indices {
    /// Those that we gave out: of sessions, and of handshakes under way.
    local: HashMap<u32, Indexed>,
    /// Those that peers gave out for sessions, with the index of ours that stands for the same.
    remote: HashMap<u32, u32>,
}

/// What a receiver index leads to.
#[derive(Clone)]
pub(crate) struct Indexed {
    pub(crate) cell: Arc<Cell>,
    /// `None` while the handshake is under way.
    pub(crate) keys: Option<Arc<KeyPair>>,
}

impl Indices {
    pub(crate) fn get(&self, index: u32) -> Option<&Indexed> {
        self.local.get(&index)
    }

    pub(crate) fn insert(&mut self, index: u32, indexed: Indexed) {
        if let Some(keys) = &indexed.keys {
            self.remote.insert(keys.remote_index(), index);
        }
        self.local.insert(index, indexed);
    }

    pub(crate) fn remove(&mut self, index: u32) {
        let remote = self.local.remove(&index).and_then(|indexed| indexed.keys).map(|keys| keys.remote_index());
        // Another peer may have drawn the same since.
        if let Some(remote) = remote.filter(|remote| self.remote.get(remote) == Some(&index)) {
            self.remote.remove(&remote);
        }
    }

    /// Whether a message is one that we sent.
    pub(crate) fn is_own(&self, message: Named) -> bool {
        match message {
            Named::Sender(index) => self.local.contains_key(&index),
            Named::Receiver(index) => self.remote.contains_key(&index),
        }
    }

    #[cfg(test)]
    pub(crate) fn iter(&self) -> impl Iterator<Item = (u32, &Indexed)> {
        self.local.iter().map(|(index, indexed)| (*index, indexed))
    }
}
