//! Every message for fixed keys, against a second construction written down from the paper's formulas (section 5.4)
//! with other libraries, and against bytes on record.

use super::sessions::Session;
use super::*;
use crate::cookie::{CookieChecker, CookieRandom};
use crate::keys::Indices;
use crate::message::{CookieReply, DataHeader};
use blake2::{Blake2s256, Blake2sMac, Digest};
use chacha20poly1305::aead::AeadInOut;
use chacha20poly1305::{ChaCha20Poly1305, XChaCha20Poly1305};
use hmac::{KeyInit, Mac, SimpleHmac};

const STAMP: [u8; 12] = [0x40, 0, 0, 0, 0x65, 0x53, 0xf1, 0x0a, 0x1d, 0, 0, 0];
const PSK: [u8; 32] = [0x77; 32];
const SECRET: [u8; 32] = [0x55; 32];
const NONCE: [u8; 24] = [0x24; 24];
const INITIATOR_INDEX: u32 = 0x1122_3344;
const RESPONDER_INDEX: u32 = 0x5566_7788;
const COUNTER: u64 = 0x0102_0304_0506_0708;

/// Private keys: static and ephemeral ones of the initiator and of the responder.
const S_I: [u8; 32] = [0x11; 32];
const S_R: [u8; 32] = [0x22; 32];
const E_I: [u8; 32] = [0x33; 32];
const E_R: [u8; 32] = [0x44; 32];

fn hash(parts: &[&[u8]]) -> [u8; 32] {
    parts.iter().fold(Blake2s256::new(), |state, part| state.chain_update(part)).finalize().into()
}

fn mac(key: &[u8], parts: &[&[u8]]) -> [u8; 16] {
    let state = <Blake2sMac<blake2::digest::consts::U16> as KeyInit>::new_from_slice(key).unwrap();
    parts.iter().fold(state, |state, part| state.chain_update(part)).finalize().into_bytes().into()
}

fn hmac(key: &[u8], parts: &[&[u8]]) -> [u8; 32] {
    let state = <SimpleHmac<Blake2s256> as KeyInit>::new_from_slice(key).unwrap();
    parts.iter().fold(state, |state, part| state.chain_update(part)).finalize().into_bytes().into()
}

fn kdf(key: &[u8], input: &[u8]) -> [[u8; 32]; 3] {
    let t0 = hmac(key, &[input]);
    let t1 = hmac(&t0, &[&[1]]);
    let t2 = hmac(&t0, &[&t1, &[2]]);
    [t1, t2, hmac(&t0, &[&t2, &[3]])]
}

fn aead(key: &[u8; 32], counter: u64, text: &[u8], associated: &[u8]) -> Vec<u8> {
    let mut nonce = [0; 12];
    nonce[4..].copy_from_slice(&counter.to_le_bytes());
    let mut sealed = text.to_vec();
    let cipher = ChaCha20Poly1305::new(key.into());
    let tag = cipher.encrypt_inout_detached(&nonce.into(), associated, sealed.as_mut_slice().into()).unwrap();
    sealed.extend(tag);
    sealed
}

fn dh(private: &[u8; 32], public: &[u8; 32]) -> [u8; 32] {
    x25519_dalek::x25519(*private, *public)
}

fn public(private: &[u8; 32]) -> [u8; 32] {
    dh(private, &x25519_dalek::X25519_BASEPOINT_BYTES)
}

struct Paper {
    initiation: Vec<u8>,
    response: Vec<u8>,
    data_to_responder: Vec<u8>,
    data_to_initiator: Vec<u8>,
    cookie: Vec<u8>,
}

/// The paper's formulas, one line each.
fn paper() -> Paper {
    let (s_i, s_r, e_i, e_r) = (public(&S_I), public(&S_R), public(&E_I), public(&E_R));

    let c = hash(&[b"Noise_IKpsk2_25519_ChaChaPoly_BLAKE2s"]);
    let h = hash(&[&c, b"WireGuard v1 zx2c4 Jason@zx2c4.com"]);
    let h = hash(&[&h, &s_r]);
    let [c, ..] = kdf(&c, &e_i);
    let h = hash(&[&h, &e_i]);
    let [c, k, _] = kdf(&c, &dh(&E_I, &s_r));
    let sealed_static = aead(&k, 0, &s_i, &h);
    let h = hash(&[&h, &sealed_static]);
    let [c, k, _] = kdf(&c, &dh(&S_I, &s_r));
    let timestamp = aead(&k, 0, &STAMP, &h);
    let h = hash(&[&h, &timestamp]);
    let mut initiation = vec![1, 0, 0, 0];
    initiation.extend(INITIATOR_INDEX.to_le_bytes());
    initiation.extend([&e_i[..], &sealed_static, &timestamp].concat());
    let mac1 = mac(&hash(&[b"mac1----", &s_r]), &[&initiation]);
    initiation.extend(mac1);
    initiation.extend([0; 16]);

    let [c, ..] = kdf(&c, &e_r);
    let h = hash(&[&h, &e_r]);
    let [c, ..] = kdf(&c, &dh(&E_R, &e_i));
    let [c, ..] = kdf(&c, &dh(&E_R, &s_i));
    let [c, t, k] = kdf(&c, &PSK);
    let h = hash(&[&h, &t]);
    let nothing = aead(&k, 0, &[], &h);
    let mut response = vec![2, 0, 0, 0];
    response.extend(RESPONDER_INDEX.to_le_bytes());
    response.extend(INITIATOR_INDEX.to_le_bytes());
    response.extend([&e_r[..], &nothing].concat());
    response.extend(mac(&hash(&[b"mac1----", &s_i]), &[&response]));
    response.extend([0; 16]);

    let [initiator_sends, responder_sends, _] = kdf(&c, &[]);
    let data = |receiver: u32, key| {
        let mut data = vec![4, 0, 0, 0];
        data.extend(receiver.to_le_bytes());
        data.extend(COUNTER.to_le_bytes());
        data.extend(aead(key, COUNTER, &TEXT, &[]));
        data
    };

    let tau = mac(&SECRET, &[&[192, 0, 2, 1], &51820_u16.to_be_bytes()]);
    let mut sealed = tau;
    let cipher = XChaCha20Poly1305::new(&hash(&[b"cookie--", &s_r]).into());
    let tag = cipher.encrypt_inout_detached(&NONCE.into(), &mac1, sealed.as_mut_slice().into()).unwrap();
    let mut cookie = vec![3, 0, 0, 0];
    cookie.extend(INITIATOR_INDEX.to_le_bytes());
    cookie.extend([&NONCE[..], &sealed, &tag].concat());

    Paper {
        initiation,
        response,
        data_to_responder: data(RESPONDER_INDEX, &initiator_sends),
        data_to_initiator: data(INITIATOR_INDEX, &responder_sends),
        cookie,
    }
}

const TEXT: [u8; 48] = [0x45; 48];

#[test]
fn every_message_is_what_the_paper_says() {
    let now = Instant::now();
    let paper = paper();
    let initiator = Arc::new(LocalIdentity::new(&PrivateKey::from_bytes(S_I)));
    let responder = Arc::new(LocalIdentity::new(&PrivateKey::from_bytes(S_R)));
    assert_eq!(*responder.public_key().as_bytes(), public(&S_R));
    let psk = Some(PresharedKey::from_bytes(PSK));
    let mut to_responder = Peer::new(&initiator, responder.public_key(), psk.clone(), None);
    let mut to_initiator = Peer::new(&responder, initiator.public_key(), psk, None);

    let fresh = Fresh { ephemeral: E_I, index: INITIATOR_INDEX };
    let initiation = to_responder.initiate(fresh, Tai64n::from_bytes(STAMP), now).unwrap();
    assert_eq!(hex::encode(initiation), hex::encode(paper.initiation));

    let opened = responder.open_initiation(&Initiation::parse(&initiation).unwrap()).unwrap();
    let fresh = Fresh { ephemeral: E_R, index: RESPONDER_INDEX };
    let response = to_initiator.handle_initiation(opened, fresh, now).unwrap();
    assert_eq!(hex::encode(response), hex::encode(paper.response));
    to_responder.handle_response(&Response::parse(&response).unwrap(), now).unwrap();

    let seal = |session: &Option<Box<Session>>| {
        let mut buffer = [0; DATA_HEADER + TEXT.len() + TAG];
        buffer[DATA_HEADER..][..TEXT.len()].copy_from_slice(&TEXT);
        session.as_ref().unwrap().keys.seal_message(COUNTER, &mut buffer);
        buffer
    };
    assert_eq!(hex::encode(seal(&to_responder.sessions.current)), hex::encode(paper.data_to_responder));
    assert_eq!(hex::encode(seal(&to_initiator.sessions.next)), hex::encode(paper.data_to_initiator));

    let source = SocketAddr::from(([192, 0, 2, 1], 51820));
    let random = CookieRandom { secret: SECRET, nonce: NONCE };
    let cookie = CookieChecker::new(&responder).reply(&initiation, source, random, now).unwrap();
    assert_eq!(hex::encode(cookie), hex::encode(&paper.cookie));
}

#[test]
fn a_message_with_a_cookie_carries_the_mac_that_the_paper_says() {
    let now = Instant::now();
    let initiator = Arc::new(LocalIdentity::new(&PrivateKey::from_bytes(S_I)));
    let mut peer = Peer::new(&initiator, PublicKey::from_bytes(public(&S_R)), None, None);
    let fresh = Fresh { ephemeral: E_I, index: INITIATOR_INDEX };
    peer.initiate(fresh, Tai64n::from_bytes(STAMP), now).unwrap();
    peer.handle_cookie(&CookieReply::parse(&paper().cookie).unwrap(), now).unwrap();
    let second = peer.initiate(Fresh { ephemeral: E_R, index: 7 }, Tai64n::from_bytes(STAMP), now).unwrap();
    let tau = mac(&SECRET, &[&[192, 0, 2, 1], &51820_u16.to_be_bytes()]);
    assert_eq!(second[132..], mac(&tau, &[&second[..132]]));
}

#[test]
fn the_messages_are_those_on_record() {
    let Paper { initiation, response, data_to_responder, data_to_initiator, cookie } = paper();
    let all = hash(&[&initiation, &response, &data_to_responder, &data_to_initiator, &cookie]);
    assert_eq!(hex::encode(all), "bdd9aa99efb0ca164c3ccc351c9e0e0bfe5874892c5ec0065d0c0ac60ea76e7f");
}

#[test]
fn a_sealed_message_is_opened_by_the_other_side_only_and_unchanged_only() {
    let indices = |local, remote| Indices { local, remote };
    let now = Instant::now();
    let one = KeyPair::new(&[1; 32], &[2; 32], indices(1, 2), true, now);
    let other = KeyPair::new(&[2; 32], &[1; 32], indices(2, 1), false, now);
    for len in [0, 1, 15, 16, 17, 1420, 65_000] {
        let mut message = vec![0x5a; DATA_HEADER + len + TAG];
        one.seal_message(9, &mut message);
        assert_eq!(DataHeader::parse(&message), Some(DataHeader { receiver: 2, counter: 9 }));
        assert_eq!(one.open_message(&mut message.clone()), None);
        for changed in [8, 15, 16, message.len() - 1] {
            let mut message = message.clone();
            message[changed] ^= 1;
            assert_eq!(other.open_message(&mut message), None);
            assert!(len < 16 || message[DATA_HEADER..][..len] != vec![0x5a; len], "a forgery is left readable");
        }
        assert_eq!(other.open_message(&mut message[..DATA_HEADER + TAG - 1]), None);
        assert_eq!(other.open_message(&mut message), Some(len));
        assert_eq!(message[DATA_HEADER..][..len], vec![0x5a; len]);
    }
}
