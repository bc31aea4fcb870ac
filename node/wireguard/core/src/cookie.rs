//! MACs and cookies of handshake messages (paper, sections 5.3 and 5.4.4), both roles.
//!
//! mac1 proves that the sender knows this side's public key: without it there is silence. Under load a message must also
//! carry mac2, made with a cookie that only the owner of its source address was sent. `CookieChecker` is the side that
//! is asked, `CookieJar` the side that asks. The clock, the load (`gate`) and random bytes are given in.

use crate::identity::LocalIdentity;
use crate::message::{COOKIE_REPLY_LEN, CookieReply, MAC, TAG};
use crate::noise;
use crate::ratelimit::RateLimiter;
use aws_lc_rs::constant_time::verify_slices_are_equal;
use blake2::Blake2sMac;
use blake2::digest::consts::U16;
use blake2::digest::{FixedOutput, KeyInit, Update};
use chacha20poly1305::aead::AeadInOut;
use chacha20poly1305::{XChaCha20Poly1305, XNonce};
use mesh_types::PublicKey;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};
use zeroize::Zeroizing;

/// A cookie is good as long as the secret that it was made with.
const SECRET_MAX_AGE: Duration = Duration::from_secs(120);
/// Whoever holds a cookie stops using it this much earlier, for the way and for clocks.
const SECRET_LATENCY: Duration = Duration::from_secs(5);

const COOKIE: usize = 16;

/// What is to become of a handshake message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// mac1 is wrong: silence.
    Invalid,
    /// mac1 is right, but there is load and no valid cookie: `CookieChecker::reply`, and no more.
    NeedsCookie,
    /// The cookie is right, but its source asks too often: silence.
    RateLimited,
    /// Work on it.
    Valid,
}

/// Random input for one cookie reply.
pub struct CookieRandom {
    /// Becomes the secret that cookies are made with, if the present one is too old.
    pub secret: [u8; 32],
    /// The reply's nonce.
    pub nonce: [u8; 24],
}

/// Judges handshake messages by their MACs and makes cookie replies; one for a device.
pub struct CookieChecker {
    keys: MacKeys,
    secret: Option<(Zeroizing<[u8; 32]>, Instant)>,
    limiter: RateLimiter,
}

impl CookieChecker {
    /// A checker of messages to `identity`; without a secret until the first reply.
    pub fn new(identity: &LocalIdentity) -> Self {
        Self { keys: identity.mac_keys().clone(), secret: None, limiter: RateLimiter::default() }
    }

    /// Judges a whole handshake message, initiation or response, that came from `source`.
    pub fn check(&mut self, message: &[u8], source: SocketAddr, under_load: bool, now: Instant) -> Verdict {
        let Some((body, mac1, mac2)) = split_macs(message) else { return Verdict::Invalid };
        if !equal(&mac(&self.keys.mac1, &[body]), mac1) {
            return Verdict::Invalid;
        }
        if !under_load {
            return Verdict::Valid;
        }
        let Some(secret) = self.secret(now) else { return Verdict::NeedsCookie };
        if !equal(&mac(&*cookie(secret, source), &[body, mac1]), mac2) {
            return Verdict::NeedsCookie;
        }
        if self.limiter.allow(source.ip(), now) { Verdict::Valid } else { Verdict::RateLimited }
    }

    /// The answer to a message that `check` found to need a cookie, or nothing if it is no handshake message.
    pub fn reply(
        &mut self,
        message: &[u8],
        source: SocketAddr,
        random: CookieRandom,
        now: Instant,
    ) -> Option<[u8; COOKIE_REPLY_LEN]> {
        let (_, mac1, _) = split_macs(message)?;
        let receiver = u32::from_le_bytes(*message.get(4..)?.first_chunk()?);
        let CookieRandom { secret, nonce } = random;
        let fresh = Zeroizing::new(secret);
        if self.secret(now).is_none() {
            self.secret = Some((fresh, now));
        }
        let mut sealed_cookie = [0; COOKIE + TAG];
        let (text, tag) = sealed_cookie.split_at_mut(COOKIE);
        text.copy_from_slice(&*cookie(self.secret(now)?, source));
        let sealed = cipher(&self.keys).encrypt_inout_detached(&XNonce::from(nonce), mac1, text.into());
        tag.copy_from_slice(&sealed.ok()?);
        Some(CookieReply { receiver, nonce, sealed_cookie }.write())
    }

    fn secret(&self, now: Instant) -> Option<&[u8; 32]> {
        let (secret, since) = self.secret.as_ref()?;
        (now.saturating_duration_since(*since) < SECRET_MAX_AGE).then_some(&**secret)
    }
}

/// The cookie that a peer sent, and what is needed to ask for one.
pub(crate) struct CookieJar {
    keys: MacKeys,
    /// mac1 of the last handshake message, unless a reply to it was taken.
    asked: Option<[u8; MAC]>,
    cookie: Option<(Zeroizing<[u8; COOKIE]>, Instant)>,
}

impl CookieJar {
    pub(crate) fn new(remote: &PublicKey) -> Self {
        Self { keys: MacKeys::of(remote), asked: None, cookie: None }
    }

    /// Puts both MACs to the end of a handshake message.
    pub(crate) fn sign(&mut self, message: &mut [u8], now: Instant) {
        let Some((body, macs)) = message.split_last_chunk_mut::<{ 2 * MAC }>() else { return };
        let (first, second) = macs.split_at_mut(MAC);
        let mac1 = mac(&self.keys.mac1, &[body]);
        first.copy_from_slice(&mac1);
        self.asked = Some(mac1);
        let good = |since: Instant| now.saturating_duration_since(since) < SECRET_MAX_AGE - SECRET_LATENCY;
        if let Some((cookie, _)) = self.cookie.as_ref().filter(|(_, since)| good(*since)) {
            second.copy_from_slice(&mac(&**cookie, &[body, first]));
        }
    }

    /// Takes the cookie out of a reply to the last handshake message; says whether it was one.
    pub(crate) fn take(&mut self, reply: &CookieReply, now: Instant) -> bool {
        let Some(mac1) = self.asked else { return false };
        let mut cookie = Zeroizing::new([0; COOKIE]);
        let (text, tag) = reply.sealed_cookie.split_at(COOKIE);
        cookie.copy_from_slice(text);
        let Ok(tag) = <[u8; TAG]>::try_from(tag) else { return false };
        let opened = cipher(&self.keys).decrypt_inout_detached(
            &XNonce::from(reply.nonce),
            &mac1,
            cookie.as_mut_slice().into(),
            &tag.into(),
        );
        if opened.is_err() {
            return false;
        }
        self.cookie = Some((cookie, now));
        self.asked = None;
        true
    }
}

/// Keys that everyone who knows a public key can make: of mac1 and of cookie replies.
#[derive(Clone)]
pub(crate) struct MacKeys {
    mac1: [u8; 32],
    reply: [u8; 32],
}

impl MacKeys {
    pub(crate) fn of(public: &PublicKey) -> Self {
        let of = |label: &[u8; 8]| noise::hash(&[label, public.as_bytes()]);
        Self { mac1: of(b"mac1----"), reply: of(b"cookie--") }
    }
}

fn cipher(keys: &MacKeys) -> XChaCha20Poly1305 {
    XChaCha20Poly1305::new(&keys.reply.into())
}

/// The part that mac1 is over, mac1, mac2.
fn split_macs(message: &[u8]) -> Option<(&[u8], &[u8; MAC], &[u8; MAC])> {
    let (rest, mac2) = message.split_last_chunk()?;
    let (body, mac1) = rest.split_last_chunk()?;
    Some((body, mac1, mac2))
}

/// What proves that a sender receives at `source`.
fn cookie(secret: &[u8; 32], source: SocketAddr) -> Zeroizing<[u8; COOKIE]> {
    let port = source.port().to_be_bytes();
    Zeroizing::new(match source.ip() {
        IpAddr::V4(address) => mac(secret, &[&address.octets(), &port]),
        IpAddr::V6(address) => mac(secret, &[&address.octets(), &port]),
    })
}

/// BLAKE2s with a key and 16 bytes of output.
fn mac(key: &[u8], parts: &[&[u8]]) -> [u8; MAC] {
    let mut state = Blake2sMac::<U16>::new_from_slice(key).expect("BLAKE2s takes keys of up to 32 bytes");
    for part in parts {
        state.update(part);
    }
    state.finalize_fixed().into()
}

fn equal(one: &[u8; MAC], other: &[u8; MAC]) -> bool {
    verify_slices_are_equal(one, other).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::{INITIATION_LEN, RESPONSE_LEN};
    use mesh_types::PrivateKey;
    use proptest::prelude::*;

    const SOURCE: ([u8; 4], u16) = ([192, 0, 2, 1], 51820);

    /// A checker, and what knows its key.
    fn both() -> (CookieChecker, CookieJar) {
        let identity = LocalIdentity::new(&PrivateKey::from_bytes([1; 32]));
        (CookieChecker::new(&identity), CookieJar::new(&identity.public_key()))
    }

    fn random(byte: u8) -> CookieRandom {
        CookieRandom { secret: [byte; 32], nonce: [byte; 24] }
    }

    fn signed(jar: &mut CookieJar, now: Instant) -> [u8; RESPONSE_LEN] {
        let mut message = [7; RESPONSE_LEN];
        message[RESPONSE_LEN - 2 * MAC..].fill(0);
        jar.sign(&mut message, now);
        message
    }

    #[test]
    fn without_load_mac1_is_enough_and_needed() {
        let now = Instant::now();
        let (mut checker, mut jar) = both();
        let message = signed(&mut jar, now);
        assert_eq!(checker.check(&message, SOURCE.into(), false, now), Verdict::Valid);
        for byte in [0, 4, RESPONSE_LEN - 2 * MAC - 1, RESPONSE_LEN - 2 * MAC, RESPONSE_LEN - MAC - 1] {
            let mut message = message;
            message[byte] ^= 1;
            for under_load in [false, true] {
                assert_eq!(checker.check(&message, SOURCE.into(), under_load, now), Verdict::Invalid);
            }
        }
    }

    #[test]
    fn a_cookie_is_good_for_one_address_and_port_until_the_secret_is_two_minutes_old() {
        let now = Instant::now();
        let (mut checker, mut jar) = both();
        let message = signed(&mut jar, now);
        assert_eq!(checker.check(&message, SOURCE.into(), true, now), Verdict::NeedsCookie);
        let reply = checker.reply(&message, SOURCE.into(), random(1), now).unwrap();
        assert!(jar.take(&CookieReply::parse(&reply).unwrap(), now));

        let message = signed(&mut jar, now);
        let later = now + SECRET_MAX_AGE - Duration::from_millis(1);
        assert_eq!(checker.check(&message, SOURCE.into(), true, later), Verdict::Valid);
        for other in [([192, 0, 2, 1], 51821), ([192, 0, 2, 2], 51820)] {
            assert_eq!(checker.check(&message, other.into(), true, later), Verdict::NeedsCookie);
        }
        assert_eq!(checker.check(&message, SOURCE.into(), true, now + SECRET_MAX_AGE), Verdict::NeedsCookie);

        // The next reply brings a new secret, and no reply before that.
        checker.reply(&message, SOURCE.into(), random(2), later).unwrap();
        assert_eq!(checker.check(&message, SOURCE.into(), true, later), Verdict::Valid);
        checker.reply(&message, SOURCE.into(), random(2), now + SECRET_MAX_AGE).unwrap();
        assert_eq!(checker.check(&message, SOURCE.into(), true, now + SECRET_MAX_AGE), Verdict::NeedsCookie);
    }

    #[test]
    fn a_source_with_a_cookie_is_still_limited() {
        let now = Instant::now();
        let (mut checker, mut jar) = both();
        let message = signed(&mut jar, now);
        let reply = checker.reply(&message, SOURCE.into(), random(1), now).unwrap();
        assert!(jar.take(&CookieReply::parse(&reply).unwrap(), now));
        let message = signed(&mut jar, now);
        let verdicts: Vec<Verdict> = (0..7).map(|_| checker.check(&message, SOURCE.into(), true, now)).collect();
        assert_eq!(verdicts, [&[Verdict::Valid; 5][..], &[Verdict::RateLimited; 2]].concat());
        assert_eq!(checker.check(&message, SOURCE.into(), false, now), Verdict::Valid);
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn nonsense_of_any_length_is_invalid(bytes in proptest::collection::vec(any::<u8>(), 0..INITIATION_LEN + 1)) {
            let now = Instant::now();
            let (mut checker, _) = both();
            prop_assert_eq!(checker.check(&bytes, SOURCE.into(), true, now), Verdict::Invalid);
            let _ = checker.reply(&bytes, SOURCE.into(), random(1), now);
        }
    }
}
