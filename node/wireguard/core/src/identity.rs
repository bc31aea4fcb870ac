//! This side's static key, and what is derived from it once.

use crate::cookie::MacKeys;
use crate::message::Initiation;
use crate::noise::{self, ConsumedInitiation};
use mesh_types::{PrivateKey, PublicKey};
use std::fmt;
use x25519_dalek::StaticSecret;

/// This side's static private key; shared by all peers of a device.
pub struct LocalIdentity {
    private: StaticSecret,
    public: PublicKey,
    mac_keys: MacKeys,
}

impl LocalIdentity {
    /// Derives the public key and the MAC keys.
    pub fn new(private: &PrivateKey) -> Self {
        let private = StaticSecret::from(*private.as_bytes());
        let public = PublicKey::from_bytes(x25519_dalek::PublicKey::from(&private).to_bytes());
        Self { private, public, mac_keys: MacKeys::of(&public) }
    }

    /// The public key.
    pub fn public_key(&self) -> PublicKey {
        self.public
    }

    /// Opens an initiation as far as to know whose it claims to be, at the cost of one Diffie-Hellman.
    ///
    /// The claim is proven by `Peer::handle_initiation`. `None` means that it was not made for this key, or with an
    /// ephemeral key of low order: there is no answer to it.
    pub fn open_initiation(&self, message: &Initiation) -> Option<ConsumedInitiation> {
        noise::open_initiation(self, message)
    }

    pub(crate) fn private(&self) -> &StaticSecret {
        &self.private
    }

    pub(crate) fn mac_keys(&self) -> &MacKeys {
        &self.mac_keys
    }
}

impl fmt::Debug for LocalIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "LocalIdentity({})", self.public)
    }
}

#[cfg(test)]
impl LocalIdentity {
    /// Someone who claims another's public key.
    pub(crate) fn impostor(private: &PrivateKey, public: PublicKey) -> Self {
        Self { public, ..Self::new(private) }
    }
}
