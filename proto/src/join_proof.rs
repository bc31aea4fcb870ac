//! Proof that whoever joins holds the WireGuard private key of the public key it names.
//!
//! The coordinator hands out an X25519 public key (the challenge) on a TLS connection. The node computes the shared
//! secret with its WireGuard key and sends a MAC over everything that `Join` binds together, and over the exporter of
//! that very connection, so that the proof is worth nothing on any other. The challenge's private key is derived from
//! the exporter and a secret of the process: the coordinator keeps nothing per connection.

use hmac::{Hmac, KeyInit as _, Mac as _};
use mesh_types::{IdentityKey, MeshId, PrivateKey, PublicKey, TokenId};
use sha2::{Digest as _, Sha256};
use thiserror::Error;
use x25519_dalek::StaticSecret;
use zeroize::Zeroizing;

const PROOF_DOMAIN: &[u8] = b"meshctl join proof v1\0";
const CHALLENGE_DOMAIN: &[u8] = b"meshctl join challenge v1\0";

/// Keying material of one TLS connection, the same at both ends and on no other connection (RFC 9266's purpose).
pub type Exporter = [u8; 32];

/// Everything that a proof binds together.
#[derive(Clone, Copy, Debug)]
pub struct Statement<'a> {
    /// Of the connection that challenge and `Join` go over.
    pub exporter: &'a Exporter,
    /// The mesh to join.
    pub mesh: MeshId,
    /// The token used.
    pub token: TokenId,
    /// The WireGuard key claimed.
    pub public_key: PublicKey,
    /// The identity key, as in the certificate request.
    pub identity_key: IdentityKey,
    /// The certificate request, DER.
    pub certificate_request: &'a [u8],
}

/// Why a proof was not made or not taken.
#[derive(Debug, Error, PartialEq, Eq, Clone, Copy)]
pub enum ProofError {
    /// One of the X25519 keys is a point of small order, which makes every shared secret the same.
    #[error("X25519 key is of small order: it proves nothing")]
    SmallOrder,
    /// The MAC is another's: wrong private key, other connection, or changed fields.
    #[error("join proof does not verify: the WireGuard private key was not shown on this connection")]
    Mismatch,
}

/// The WireGuard public key of a private key.
pub fn public_key(private_key: &PrivateKey) -> PublicKey {
    PublicKey::from_bytes(x25519_dalek::PublicKey::from(&secret(private_key)).to_bytes())
}

/// The node's side: proves `statement` to whoever holds the private key of `challenge`.
pub fn prove(statement: &Statement<'_>, key: &PrivateKey, challenge: PublicKey) -> Result<[u8; 32], ProofError> {
    Ok(mac(statement, &secret(key), challenge, challenge)?.finalize().into_bytes().into())
}

/// The coordinator's side; one for the life of the process.
pub struct Challenger {
    secret: Zeroizing<[u8; 32]>,
}

impl Challenger {
    /// Takes 32 random bytes, never stored: a restart voids the challenges handed out before.
    pub fn new(secret: [u8; 32]) -> Self {
        Self { secret: Zeroizing::new(secret) }
    }

    /// The challenge of the connection with this exporter.
    pub fn challenge(&self, exporter: &Exporter) -> PublicKey {
        PublicKey::from_bytes(x25519_dalek::PublicKey::from(&self.derive(exporter)).to_bytes())
    }

    /// Checks, in constant time, that `proof` was made for `statement` with the claimed key's private half.
    pub fn verify(&self, statement: &Statement<'_>, proof: &[u8]) -> Result<(), ProofError> {
        let challenge = self.challenge(statement.exporter);
        let mac = mac(statement, &self.derive(statement.exporter), statement.public_key, challenge)?;
        mac.verify_slice(proof).map_err(|_| ProofError::Mismatch)
    }

    fn derive(&self, exporter: &Exporter) -> StaticSecret {
        let mut mac = keyed(self.secret.as_slice());
        mac.update(CHALLENGE_DOMAIN);
        mac.update(exporter);
        let seed: Zeroizing<[u8; 32]> = Zeroizing::new(mac.finalize().into_bytes().into());
        StaticSecret::from(*seed)
    }
}

fn secret(key: &PrivateKey) -> StaticSecret {
    StaticSecret::from(*key.as_bytes())
}

/// All parts have a fixed length, so that no two statements give the same bytes.
fn mac(
    statement: &Statement<'_>,
    ours: &StaticSecret,
    theirs: PublicKey,
    challenge: PublicKey,
) -> Result<Hmac<Sha256>, ProofError> {
    let shared = ours.diffie_hellman(&x25519_dalek::PublicKey::from(*theirs.as_bytes()));
    if !shared.was_contributory() {
        return Err(ProofError::SmallOrder);
    }
    let mut mac = keyed(shared.as_bytes());
    mac.update(PROOF_DOMAIN);
    mac.update(statement.exporter);
    mac.update(challenge.as_bytes());
    mac.update(statement.mesh.as_bytes());
    mac.update(statement.token.as_bytes());
    mac.update(statement.public_key.as_bytes());
    mac.update(statement.identity_key.as_bytes());
    mac.update(&Sha256::digest(statement.certificate_request));
    Ok(mac)
}

fn keyed(key: &[u8]) -> Hmac<Sha256> {
    Hmac::new_from_slice(key).expect("HMAC takes keys of any length")
}

#[cfg(test)]
mod tests {
    use super::*;

    const EXPORTER: Exporter = [1; 32];
    const REQUEST: &[u8] = b"certificate request";

    fn key() -> PrivateKey {
        PrivateKey::from_bytes([7; 32])
    }

    fn statement() -> Statement<'static> {
        Statement {
            exporter: &EXPORTER,
            mesh: MeshId::from_bytes([2; 16]),
            token: TokenId::from_bytes([3; 8]),
            public_key: public_key(&key()),
            identity_key: IdentityKey::from_bytes([4; 32]),
            certificate_request: REQUEST,
        }
    }

    #[test]
    fn the_holder_of_the_private_key_proves_it() {
        let challenger = Challenger::new([9; 32]);
        let proof = prove(&statement(), &key(), challenger.challenge(&EXPORTER)).unwrap();
        assert_eq!(challenger.verify(&statement(), &proof), Ok(()));
    }

    #[test]
    fn a_proof_fails_when_any_part_of_the_statement_changes() {
        let challenger = Challenger::new([9; 32]);
        let proof = prove(&statement(), &key(), challenger.challenge(&EXPORTER)).unwrap();
        let other_exporter = [5; 32];
        let changes: [(&str, Statement<'_>); 6] = [
            ("exporter", Statement { exporter: &other_exporter, ..statement() }),
            ("mesh", Statement { mesh: MeshId::from_bytes([5; 16]), ..statement() }),
            ("token", Statement { token: TokenId::from_bytes([5; 8]), ..statement() }),
            ("public key", Statement { public_key: public_key(&PrivateKey::from_bytes([5; 32])), ..statement() }),
            ("identity key", Statement { identity_key: IdentityKey::from_bytes([5; 32]), ..statement() }),
            ("certificate request", Statement { certificate_request: b"another", ..statement() }),
        ];
        for (what, changed) in changes {
            assert_eq!(challenger.verify(&changed, &proof), Err(ProofError::Mismatch), "{what}");
        }
    }

    #[test]
    fn a_proof_by_another_key_for_another_challenger_or_cut_short_fails() {
        let challenger = Challenger::new([9; 32]);
        let by_another =
            prove(&statement(), &PrivateKey::from_bytes([8; 32]), challenger.challenge(&EXPORTER)).unwrap();
        assert_eq!(challenger.verify(&statement(), &by_another), Err(ProofError::Mismatch));
        let proof = prove(&statement(), &key(), challenger.challenge(&EXPORTER)).unwrap();
        assert_eq!(Challenger::new([10; 32]).verify(&statement(), &proof), Err(ProofError::Mismatch));
        assert_eq!(challenger.verify(&statement(), &proof[..31]), Err(ProofError::Mismatch));
        assert_eq!(challenger.verify(&statement(), &[]), Err(ProofError::Mismatch));
    }

    #[test]
    fn keys_of_small_order_prove_nothing_on_either_side() {
        let zero = PublicKey::from_bytes([0; 32]);
        assert_eq!(prove(&statement(), &key(), zero), Err(ProofError::SmallOrder));
        let claimed = Statement { public_key: zero, ..statement() };
        assert_eq!(Challenger::new([9; 32]).verify(&claimed, &[0; 32]), Err(ProofError::SmallOrder));
    }

    #[test]
    fn public_keys_are_those_of_wireguard() {
        // RFC 7748, 6.1: Alice's pair.
        let private = PrivateKey::from_bytes([
            0x77, 0x07, 0x6d, 0x0a, 0x73, 0x18, 0xa5, 0x7d, 0x3c, 0x16, 0xc1, 0x72, 0x51, 0xb2, 0x66, 0x45, 0xdf, 0x4c,
            0x2f, 0x87, 0xeb, 0xc0, 0x99, 0x2a, 0xb1, 0x77, 0xfb, 0xa5, 0x1d, 0xb9, 0x2c, 0x2a,
        ]);
        let public = PublicKey::from_bytes([
            0x85, 0x20, 0xf0, 0x09, 0x89, 0x30, 0xa7, 0x54, 0x74, 0x8b, 0x7d, 0xdc, 0xb4, 0x3e, 0xf7, 0x5a, 0x0d, 0xbf,
            0x3a, 0x0d, 0x26, 0x38, 0x1a, 0xf4, 0xeb, 0xa4, 0xa9, 0x8e, 0xaa, 0x9b, 0x4e, 0x6a,
        ]);
        assert_eq!(public_key(&private), public);
    }
}
