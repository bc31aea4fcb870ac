//! Presence: where a node may be reached, said and signed by the node itself.
//!
//! The signed payload is carried as it came, so that a coordinator or node passes on fields it does not know. Its
//! layout, integers big-endian: version (1 byte), node id (16), incarnation (8), sequence (8), signed at (8), number
//! of candidates (1), then each candidate as kind (1), family (1: 4 or 6), address (4 or 16), port (2). What follows
//! is left to later versions.

use crate::candidate::{Candidate, CandidateKind};
use crate::id::{Incarnation, MeshId, NodeId};
use crate::key::{IdentityKey, Signature};
use crate::limits::{MAX_CANDIDATES, MAX_PRESENCE_PAYLOAD};
use crate::time::MeshTime;
use ed25519_dalek::{Signer as _, SigningKey, VerifyingKey};
use std::net::{IpAddr, SocketAddr};
use thiserror::Error;

const VERSION: u8 = 1;
const DOMAIN: &[u8] = b"meshctl presence v1\0";

/// What a node says of itself.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Presence {
    /// Who says it.
    pub node: NodeId,
    /// Which life of the node.
    pub incarnation: Incarnation,
    /// Which word of that life; the highest (incarnation, sequence) wins.
    pub sequence: u64,
    /// When it was said, by mesh time as the node knew it.
    pub signed_at: MeshTime,
    /// Where it may be reached.
    pub candidates: Vec<Candidate>,
}

/// A presence with its signature, verifiable by whoever holds the node's record.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SignedPresence {
    /// The encoded [`Presence`], exactly as it was signed.
    pub payload: Vec<u8>,
    /// Over domain, mesh id and payload.
    pub signature: Signature,
}

/// Why a presence was not taken.
#[derive(Debug, Error, PartialEq, Eq, Clone)]
pub enum PresenceError {
    /// Longer than any honest one.
    #[error("presence of {0} bytes: at most {MAX_PRESENCE_PAYLOAD} are taken")]
    TooLong(usize),
    /// Ends before it is complete.
    #[error("presence is cut short")]
    Truncated,
    /// Written by a version with another layout.
    #[error("presence has unknown version {0}")]
    Version(u8),
    /// Carries more candidates than allowed.
    #[error("presence carries {0} candidates: at most {MAX_CANDIDATES} are taken")]
    TooManyCandidates(usize),
    /// An address family other than 4 or 6.
    #[error("presence has a candidate of unknown address family {0}")]
    Family(u8),
    /// Not signed by the node it speaks of.
    #[error("presence signature does not verify with the node's identity key")]
    Signature,
}

impl Presence {
    /// The order of two words of one node.
    pub fn version(&self) -> (Incarnation, u64) {
        (self.incarnation, self.sequence)
    }

    /// Encodes and signs. More than [`MAX_CANDIDATES`] candidates are cut, the last ones first.
    pub fn sign(&self, mesh: MeshId, key: &SigningKey) -> SignedPresence {
        let payload = self.encode();
        let signature = Signature::from_bytes(key.sign(&signed_bytes(mesh, &payload)).to_bytes());
        SignedPresence { payload, signature }
    }

    fn encode(&self) -> Vec<u8> {
        let candidates = &self.candidates[..self.candidates.len().min(MAX_CANDIDATES)];
        let mut out = vec![VERSION];
        out.extend_from_slice(self.node.as_bytes());
        out.extend_from_slice(&self.incarnation.0.to_be_bytes());
        out.extend_from_slice(&self.sequence.to_be_bytes());
        out.extend_from_slice(&self.signed_at.0.to_be_bytes());
        out.push(u8::try_from(candidates.len()).expect("MAX_CANDIDATES fits a byte"));
        for candidate in candidates {
            out.push(candidate.kind.code());
            match candidate.endpoint.ip() {
                IpAddr::V4(ip) => {
                    out.push(4);
                    out.extend_from_slice(&ip.octets());
                }
                IpAddr::V6(ip) => {
                    out.push(6);
                    out.extend_from_slice(&ip.octets());
                }
            }
            out.extend_from_slice(&candidate.endpoint.port().to_be_bytes());
        }
        out
    }
}

impl SignedPresence {
    /// Decodes without checking the signature: only to learn whose key to check it with.
    ///
    /// Candidates of kinds that this version does not know are left out.
    pub fn parse_unverified(&self) -> Result<Presence, PresenceError> {
        if self.payload.len() > MAX_PRESENCE_PAYLOAD {
            return Err(PresenceError::TooLong(self.payload.len()));
        }
        let mut rest = self.payload.as_slice();
        let [version] = take(&mut rest)?;
        if version != VERSION {
            return Err(PresenceError::Version(version));
        }
        let node = NodeId::from_bytes(take(&mut rest)?);
        let incarnation = Incarnation(u64::from_be_bytes(take(&mut rest)?));
        let sequence = u64::from_be_bytes(take(&mut rest)?);
        let signed_at = MeshTime(u64::from_be_bytes(take(&mut rest)?));
        let [count] = take(&mut rest)?;
        if usize::from(count) > MAX_CANDIDATES {
            return Err(PresenceError::TooManyCandidates(count.into()));
        }
        let mut candidates = Vec::with_capacity(count.into());
        for _ in 0..count {
            candidates.extend(take_candidate(&mut rest)?);
        }
        Ok(Presence { node, incarnation, sequence, signed_at, candidates })
    }

    /// Decodes and checks that `key` signed it for `mesh`.
    pub fn verify(&self, mesh: MeshId, key: &IdentityKey) -> Result<Presence, PresenceError> {
        let presence = self.parse_unverified()?;
        let key = VerifyingKey::from_bytes(key.as_bytes()).map_err(|_| PresenceError::Signature)?;
        let signature = ed25519_dalek::Signature::from_bytes(self.signature.as_bytes());
        key.verify_strict(&signed_bytes(mesh, &self.payload), &signature).map_err(|_| PresenceError::Signature)?;
        Ok(presence)
    }
}

fn signed_bytes(mesh: MeshId, payload: &[u8]) -> Vec<u8> {
    [DOMAIN, mesh.as_bytes(), payload].concat()
}

fn take<const N: usize>(rest: &mut &[u8]) -> Result<[u8; N], PresenceError> {
    let (head, tail) = rest.split_first_chunk::<N>().ok_or(PresenceError::Truncated)?;
    *rest = tail;
    Ok(*head)
}

fn take_candidate(rest: &mut &[u8]) -> Result<Option<Candidate>, PresenceError> {
    let [kind, family] = take(rest)?;
    let ip = match family {
        4 => IpAddr::from(take::<4>(rest)?),
        6 => IpAddr::from(take::<16>(rest)?),
        other => return Err(PresenceError::Family(other)),
    };
    let endpoint = SocketAddr::new(ip, u16::from_be_bytes(take(rest)?));
    Ok(CandidateKind::from_code(kind).map(|kind| Candidate { kind, endpoint }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MESH: MeshId = MeshId::from_bytes([1; 16]);

    fn presence(endpoints: &[SocketAddr]) -> Presence {
        Presence {
            node: NodeId::from_bytes([2; 16]),
            incarnation: Incarnation(3),
            sequence: 4,
            signed_at: MeshTime(5),
            candidates: endpoints.iter().map(|&endpoint| Candidate { kind: CandidateKind::Host, endpoint }).collect(),
        }
    }

    fn identity(key: &SigningKey) -> IdentityKey {
        IdentityKey::from_bytes(key.verifying_key().to_bytes())
    }

    #[test]
    fn a_presence_verifies_only_in_its_mesh_with_its_key_and_unchanged() {
        let key = SigningKey::from_bytes(&[9; 32]);
        let word = presence(&["192.0.2.1:51820".parse().unwrap(), "[2001:db8::1]:7".parse().unwrap()]);
        let signed = word.sign(MESH, &key);
        assert_eq!(signed.verify(MESH, &identity(&key)), Ok(word));
        assert_eq!(signed.verify(MeshId::from_bytes([8; 16]), &identity(&key)), Err(PresenceError::Signature));
        let other = SigningKey::from_bytes(&[10; 32]);
        assert_eq!(signed.verify(MESH, &identity(&other)), Err(PresenceError::Signature));
        let mut changed = signed.clone();
        *changed.payload.last_mut().unwrap() ^= 1;
        assert_eq!(changed.verify(MESH, &identity(&key)), Err(PresenceError::Signature));
    }

    #[test]
    fn fields_of_later_versions_behind_the_known_ones_stay_under_the_signature() {
        let key = SigningKey::from_bytes(&[9; 32]);
        let word = presence(&[]);
        let mut payload = word.encode();
        payload.extend_from_slice(b"later");
        let signature = Signature::from_bytes(key.sign(&signed_bytes(MESH, &payload)).to_bytes());
        let signed = SignedPresence { payload, signature };
        assert_eq!(signed.verify(MESH, &identity(&key)), Ok(word));
    }

    proptest! {
        #[test]
        fn parsing_hostile_bytes_never_panics(payload in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = SignedPresence { payload, signature: Signature::from_bytes([0; 64]) }.parse_unverified();
        }

        #[test]
        fn what_is_encoded_is_parsed_again(ports in proptest::collection::vec(1u16.., 0..MAX_CANDIDATES)) {
            let endpoints: Vec<SocketAddr> = ports.iter().map(|&port| SocketAddr::from(([192, 0, 2, 7], port))).collect();
            let word = presence(&endpoints);
            let signed = SignedPresence { payload: word.encode(), signature: Signature::from_bytes([0; 64]) };
            prop_assert_eq!(signed.parse_unverified(), Ok(word));
        }
    }
}
