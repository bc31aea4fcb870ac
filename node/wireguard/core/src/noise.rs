//! The handshake: Noise_IKpsk2_25519_ChaChaPoly_BLAKE2s (paper, section 5.4), both roles.
//!
//! Pure functions from keys and messages to messages and states; who may speak when is `peer`'s. A shared secret of
//! zeros, which a public key of low order forces, ends the handshake. States and intermediate keys are wiped when
//! dropped.

use crate::aead::library::{self, nonce, seal_in_place};
use crate::identity::LocalIdentity;
use crate::keys::{Indices, KeyPair};
use crate::message::{Initiation, Response, TAG};
use crate::tai64n::Tai64n;
use aws_lc_rs::aead::Aad;
use blake2::{Blake2s256, Digest};
use mesh_types::{PresharedKey, PublicKey};
use std::fmt;
use std::time::Instant;
use x25519_dalek::StaticSecret;
use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

/// BLAKE2s of "Noise_IKpsk2_25519_ChaChaPoly_BLAKE2s".
const INITIAL_CHAINING: [u8; 32] = [
    0x60, 0xe2, 0x6d, 0xae, 0xf3, 0x27, 0xef, 0xc0, 0x2e, 0xc3, 0x35, 0xe2, 0xa0, 0x25, 0xd2, 0xd0, 0x16, 0xeb, 0x42,
    0x06, 0xf8, 0x72, 0x77, 0xf5, 0x2d, 0x38, 0xd1, 0x98, 0x8b, 0x78, 0xcd, 0x36,
];

/// BLAKE2s of that and "WireGuard v1 zx2c4 Jason@zx2c4.com".
const INITIAL_HASH: [u8; 32] = [
    0x22, 0x11, 0xb3, 0x61, 0x08, 0x1a, 0xc5, 0x66, 0x69, 0x12, 0x43, 0xdb, 0x45, 0x8a, 0xd5, 0x32, 0x2d, 0x9c, 0x6c,
    0x66, 0x22, 0x93, 0xe8, 0xb7, 0x0e, 0xe1, 0x9c, 0x65, 0xba, 0x07, 0x9e, 0xf3,
];

/// A 32-byte secret that is wiped when dropped.
pub(crate) type Secret = Zeroizing<[u8; 32]>;

/// An initiation whose sender's static key is known, but not yet proven.
pub struct ConsumedInitiation {
    remote: PublicKey,
    sender: u32,
    ephemeral: [u8; 32],
    sealed_timestamp: [u8; 12 + TAG],
    state: Symmetric,
}

impl ConsumedInitiation {
    /// The static public key that the initiation was made with, or so it claims.
    pub fn remote(&self) -> PublicKey {
        self.remote
    }
}

impl fmt::Debug for ConsumedInitiation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ConsumedInitiation({})", self.remote)
    }
}

/// The peer that a handshake is made with.
#[derive(Clone, Copy)]
pub(crate) struct Remote<'a> {
    pub(crate) public: &'a PublicKey,
    /// The Diffie-Hellman of both static keys.
    pub(crate) static_static: &'a Secret,
}

/// An initiator that waits for the response.
pub(crate) struct Initiator {
    pub(crate) index: u32,
    ephemeral: StaticSecret,
    state: Symmetric,
}

/// A responder that has proof of the initiator's identity.
pub(crate) struct Responder {
    pub(crate) timestamp: Tai64n,
    sender: u32,
    ephemeral: [u8; 32],
    state: Symmetric,
}

/// Diffie-Hellman, unless the result is zero.
pub(crate) fn shared_secret(private: &StaticSecret, public: &[u8; 32]) -> Option<Secret> {
    let shared = private.diffie_hellman(&x25519_dalek::PublicKey::from(*public));
    shared.was_contributory().then(|| Zeroizing::new(shared.to_bytes()))
}

/// Makes an initiation: e, es, s, ss, {timestamp}.
pub(crate) fn initiate(
    local: &LocalIdentity,
    remote: Remote<'_>,
    ephemeral: StaticSecret,
    index: u32,
    timestamp: Tai64n,
) -> Option<(Initiation, Initiator)> {
    let mut state = Symmetric::begin(remote.public);
    let public = x25519_dalek::PublicKey::from(&ephemeral).to_bytes();
    state.mix_ephemeral(&public);
    let key = state.mix_key(&*shared_secret(&ephemeral, remote.public.as_bytes())?);
    let sealed_static = state.seal(&key, *local.public_key().as_bytes());
    let key = state.mix_key(remote.static_static);
    let sealed_timestamp = state.seal(&key, *timestamp.as_bytes());
    let message = Initiation { sender: index, ephemeral: public, sealed_static, sealed_timestamp };
    Some((message, Initiator { index, ephemeral, state }))
}

/// Opens an initiation as far as the initiator's static key: e, es, s.
pub(crate) fn open_initiation(local: &LocalIdentity, message: &Initiation) -> Option<ConsumedInitiation> {
    let mut state = Symmetric::begin(&local.public_key());
    state.mix_ephemeral(&message.ephemeral);
    let key = state.mix_key(&*shared_secret(local.private(), &message.ephemeral)?);
    let remote = state.open::<{ 32 + TAG }, 32>(&key, message.sealed_static)?;
    Some(ConsumedInitiation {
        remote: PublicKey::from_bytes(remote),
        sender: message.sender,
        ephemeral: message.ephemeral,
        sealed_timestamp: message.sealed_timestamp,
        state,
    })
}

impl ConsumedInitiation {
    /// Has the initiation proven: ss, {timestamp}.
    pub(crate) fn prove(self, static_static: &Secret) -> Option<Responder> {
        let Self { sender, ephemeral, sealed_timestamp, mut state, .. } = self;
        let key = state.mix_key(static_static);
        let timestamp = Tai64n::from_bytes(state.open::<{ 12 + TAG }, 12>(&key, sealed_timestamp)?);
        Some(Responder { timestamp, sender, ephemeral, state })
    }
}

impl Responder {
    /// Makes the response, e, ee, se, psk, {}, and the session's keys.
    pub(crate) fn respond(
        self,
        remote: &PublicKey,
        preshared: &PresharedKey,
        ephemeral: &StaticSecret,
        index: u32,
        now: Instant,
    ) -> Option<(Response, KeyPair)> {
        let mut state = self.state;
        let public = x25519_dalek::PublicKey::from(ephemeral).to_bytes();
        state.mix_ephemeral(&public);
        state.mix_key(&*shared_secret(ephemeral, &self.ephemeral)?);
        state.mix_key(&*shared_secret(ephemeral, remote.as_bytes())?);
        let key = state.mix_psk(preshared);
        let sealed_nothing = state.seal(&key, []);
        let [receiving, sending] = state.split();
        let indices = Indices { local: index, remote: self.sender };
        let keys = KeyPair::new(&sending, &receiving, indices, false, now);
        Some((Response { sender: index, receiver: self.sender, ephemeral: public, sealed_nothing }, keys))
    }
}

impl Initiator {
    /// Takes the response; a wrong one leaves the initiator waiting for the right one.
    pub(crate) fn consume(
        &self,
        local: &LocalIdentity,
        preshared: &PresharedKey,
        message: &Response,
        now: Instant,
    ) -> Option<KeyPair> {
        let mut state = self.state.clone();
        state.mix_ephemeral(&message.ephemeral);
        state.mix_key(&*shared_secret(&self.ephemeral, &message.ephemeral)?);
        state.mix_key(&*shared_secret(local.private(), &message.ephemeral)?);
        let key = state.mix_psk(preshared);
        let [] = state.open::<TAG, 0>(&key, message.sealed_nothing)?;
        let [sending, receiving] = state.split();
        let indices = Indices { local: self.index, remote: message.sender };
        Some(KeyPair::new(&sending, &receiving, indices, true, now))
    }
}

/// Noise's symmetric state.
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
struct Symmetric {
    chaining: [u8; 32],
    hash: [u8; 32],
}

impl Symmetric {
    fn begin(responder: &PublicKey) -> Self {
        let mut state = Self { chaining: INITIAL_CHAINING, hash: INITIAL_HASH };
        state.mix_hash(responder.as_bytes());
        state
    }

    fn mix_hash(&mut self, input: &[u8]) {
        self.hash = hash(&[&self.hash, input]);
    }

    fn mix_ephemeral(&mut self, public: &[u8; 32]) {
        self.mix_hash(public);
        let [chaining] = derive(&self.chaining, public);
        self.chaining = *chaining;
    }

    fn mix_key(&mut self, input: &[u8; 32]) -> Secret {
        let [chaining, key] = derive(&self.chaining, input);
        self.chaining = *chaining;
        key
    }

    fn mix_psk(&mut self, preshared: &PresharedKey) -> Secret {
        let [chaining, hashed, key] = derive(&self.chaining, preshared.as_bytes());
        self.chaining = *chaining;
        self.mix_hash(&*hashed);
        key
    }

    /// The initiator's sending key and the responder's.
    fn split(&self) -> [Secret; 2] {
        derive(&self.chaining, &[])
    }

    fn seal<const N: usize, const SEALED: usize>(&mut self, with: &Secret, text: [u8; N]) -> [u8; SEALED] {
        const { assert!(SEALED == N + TAG) };
        let mut sealed = [0; SEALED];
        let (body, tag) = sealed.split_at_mut(N);
        body.copy_from_slice(&text);
        tag.copy_from_slice(&seal_in_place(&library::key(with), 0, &self.hash, body));
        self.mix_hash(&sealed);
        sealed
    }

    fn open<const SEALED: usize, const N: usize>(
        &mut self,
        with: &Secret,
        mut sealed: [u8; SEALED],
    ) -> Option<[u8; N]> {
        const { assert!(SEALED == N + TAG) };
        let associated = self.hash;
        self.mix_hash(&sealed);
        let (body, tag) = sealed.split_at_mut(N);
        let text =
            library::key(with).open_in_place_separate_tag(nonce(0), Aad::from(&associated[..]), tag, body).ok()?;
        (&*text).try_into().ok()
    }
}

/// BLAKE2s of the parts.
pub(crate) fn hash(parts: &[&[u8]]) -> [u8; 32] {
    let mut hasher = Blake2s256::new();
    for part in parts {
        hasher.update(part);
    }
    hasher.finalize().into()
}

/// The paper's Kdf: HKDF with HMAC-BLAKE2s and no info.
fn derive<const N: usize>(chaining: &[u8; 32], input: &[u8]) -> [Secret; N] {
    let secret = hmac(chaining, &[input]);
    let mut last = Secret::default();
    let mut number = 0;
    std::array::from_fn(|_| {
        number += 1;
        let before: &[u8] = if number == 1 { &[] } else { &*last };
        last = hmac(&secret, &[before, &[number]]);
        last.clone()
    })
}

/// HMAC-BLAKE2s with a key of 32 bytes, by hand: the `hmac` crate leaves the padded key in memory.
fn hmac(key: &[u8; 32], parts: &[&[u8]]) -> Secret {
    const BLOCK: usize = 64;
    let mut pad = Zeroizing::new([0x36; BLOCK]);
    pad.iter_mut().zip(key).for_each(|(pad, key)| *pad ^= key);
    let mut hasher = Blake2s256::new_with_prefix(*pad);
    for part in parts {
        hasher.update(part);
    }
    let inner = Zeroizing::new(<[u8; 32]>::from(hasher.finalize()));
    pad.iter_mut().for_each(|pad| *pad ^= 0x36 ^ 0x5c);
    Zeroizing::new(hash(&[&*pad, &*inner]))
}
