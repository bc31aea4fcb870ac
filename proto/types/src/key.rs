//! Keys, fingerprints and signatures as opaque bytes.
//!
//! No arithmetic happens here: X25519 and Ed25519 are done where a key is used. Secrets are wiped when dropped and
//! their `Debug` shows nothing.

use crate::bytes::{byte_display, byte_newtype, byte_redacted, from_base64, from_hex, to_base64, to_hex};
use sha2::{Digest, Sha256};
use thiserror::Error;
use zeroize::{Zeroize, ZeroizeOnDrop};

/// Why a byte string was not taken.
#[derive(Debug, Error, PartialEq, Eq, Clone)]
pub enum ParseBytesError {
    /// The length is not the type's.
    #[error("{what}: expected {expected} bytes, got {got}")]
    Length {
        /// What was being parsed.
        what: &'static str,
        /// The type's length.
        expected: usize,
        /// The length met.
        got: usize,
    },
    /// The text is not in the type's encoding.
    #[error("{what}: not in its text encoding")]
    Encoding {
        /// What was being parsed.
        what: &'static str,
    },
}

/// A WireGuard public key (Curve25519; any 32 bytes are valid), base64 as `wg(8)` prints it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PublicKey([u8; 32]);
byte_newtype!(PublicKey, 32, to_base64, from_base64, "WireGuard public key");
byte_display!(PublicKey, to_base64);

/// A WireGuard private key. Never leaves the node that made it.
#[derive(Clone, PartialEq, Eq, Zeroize, ZeroizeOnDrop)]
pub struct PrivateKey([u8; 32]);
byte_newtype!(PrivateKey, 32, to_base64, from_base64, "WireGuard private key");
byte_redacted!(PrivateKey);

/// A WireGuard preshared key.
#[derive(Clone, PartialEq, Eq, Zeroize, ZeroizeOnDrop)]
pub struct PresharedKey([u8; 32]);
byte_newtype!(PresharedKey, 32, to_base64, from_base64, "WireGuard preshared key");
byte_redacted!(PresharedKey);

/// A long-lived Ed25519 public key: it signs a node's presence and is the key of its certificate.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct IdentityKey([u8; 32]);
byte_newtype!(IdentityKey, 32, to_base64, from_base64, "identity key");
byte_display!(IdentityKey, to_base64);

/// An Ed25519 signature.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Signature([u8; 64]);
byte_newtype!(Signature, 64, to_base64, from_base64, "signature");
byte_display!(Signature, to_base64);

/// SHA-256 of something public (a CA certificate's DER) or of a random secret (a token's).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Fingerprint([u8; 32]);
byte_newtype!(Fingerprint, 32, to_hex, from_hex, "SHA-256 fingerprint");
byte_display!(Fingerprint, to_hex);

impl Fingerprint {
    /// The fingerprint of `bytes`.
    pub fn of(bytes: &[u8]) -> Self {
        Self(Sha256::digest(bytes).into())
    }
}

/// The secret half of a join token: 20 random bytes, so that a plain hash of it may be stored.
#[derive(Clone, PartialEq, Eq, Zeroize, ZeroizeOnDrop)]
pub struct TokenSecret([u8; 20]);
byte_newtype!(TokenSecret, 20, to_hex, from_hex, "token secret");
byte_redacted!(TokenSecret);

impl TokenSecret {
    /// What the registry stores in place of the secret.
    pub fn hash(&self) -> Fingerprint {
        Fingerprint::of(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_do_not_show_in_debug() {
        assert_eq!(format!("{:?}", PrivateKey::from_bytes([1; 32])), "PrivateKey(redacted)");
        assert_eq!(format!("{:?}", TokenSecret::from_bytes([1; 20])), "TokenSecret(redacted)");
    }

    #[test]
    fn public_keys_read_and_print_as_wg_does() {
        let text = "HIgo9xNzJMWLKASShiTqIybxZ0U3wGLiUeJ1PKf8ykw=";
        assert_eq!(text.parse::<PublicKey>().unwrap().to_string(), text);
        assert!("not base64!".parse::<PublicKey>().is_err());
    }
}
