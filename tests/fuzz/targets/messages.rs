//! Any datagram: it is at most one of WireGuard's messages, which is written as it was read; frames are none. Handshake
//! messages with a valid mac1, which anyone can make, are opened, and answered with cookies.

#![no_main]

#[path = "../../../node/wireguard/core/tests/world/macs.rs"]
mod macs;

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use mesh_types::PrivateKey;
use mesh_wireguard::engine::FRAME_MAGIC;
use mesh_wireguard_core::LocalIdentity;
use mesh_wireguard_core::cookie::{CookieChecker, CookieRandom, Verdict};
use mesh_wireguard_core::message::{
    CookieReply, DATA_HEADER, DATA_MIN, DataHeader, INITIATION_LEN, Initiation, MAC, MessageKind, RESPONSE_LEN,
    Response, classify,
};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

#[derive(Debug, Arbitrary)]
struct Input {
    /// Given the type and, cut off or filled up, the length of one of the messages.
    shape: Option<Shape>,
    bytes: Vec<u8>,
    source: ([u8; 16], u16),
    later: u8,
}

#[derive(Debug, Arbitrary)]
enum Shape {
    Initiation,
    Response,
    Cookie,
    Data,
}

fuzz_target!(|input: Input| {
    let Input { shape, mut bytes, source, later } = input;
    if let Some(shape) = shape {
        let (kind, length) = match shape {
            Shape::Initiation => (1, INITIATION_LEN),
            Shape::Response => (2, RESPONSE_LEN),
            Shape::Cookie => (3, 64),
            Shape::Data => (4, bytes.len().max(DATA_MIN)),
        };
        bytes.resize(length, 0);
        bytes[..4].copy_from_slice(&[kind, 0, 0, 0]);
        assert!(classify(&bytes).is_some(), "it has the type and the length of a message");
    }
    check_writing(&bytes);
    check_handshake(bytes, source.into(), Duration::from_secs(later.into()));
});

fn check_writing(bytes: &[u8]) {
    let kind = classify(bytes);
    assert!(kind.is_none() || !bytes.starts_with(&FRAME_MAGIC), "a frame is no message");
    let (initiation, response) = (Initiation::parse(bytes), Response::parse(bytes));
    let (cookie, data) = (CookieReply::parse(bytes), DataHeader::parse(bytes));
    assert_eq!(initiation.is_some(), kind == Some(MessageKind::Initiation));
    assert_eq!(response.is_some(), kind == Some(MessageKind::Response));
    assert_eq!(cookie.is_some(), kind == Some(MessageKind::Cookie));
    assert_eq!(data.is_some(), kind == Some(MessageKind::Data));
    let macs = bytes.len().saturating_sub(2 * MAC);
    if let Some(message) = initiation {
        assert_eq!(message.write()[..macs], bytes[..macs]);
    }
    if let Some(message) = response {
        assert_eq!(message.write()[..macs], bytes[..macs]);
    }
    if let Some(message) = cookie {
        assert_eq!(message.write()[..], *bytes);
    }
    if let Some(header) = data {
        assert_eq!(header.write()[..], bytes[..DATA_HEADER]);
    }
}

fn check_handshake(mut bytes: Vec<u8>, source: SocketAddr, later: Duration) {
    let now = Instant::now();
    let identity = LocalIdentity::new(&PrivateKey::from_bytes([7; 32]));
    let mut checker = CookieChecker::new(&identity);
    let random = || CookieRandom { secret: [1; 32], nonce: [2; 24] };
    // Whoever calls it has classified the message; nothing is taken on trust all the same.
    let _ = checker.reply(&bytes, source, random(), now);
    macs::sign(&mut bytes, &identity.public_key());
    assert_eq!(checker.check(&bytes, source, false, now) == Verdict::Valid, bytes.len() >= 2 * MAC);
    if let Some(initiation) = Initiation::parse(&bytes) {
        assert!(identity.open_initiation(&initiation).is_none(), "nobody sealed it");
    }
    let kind = classify(&bytes);
    if matches!(kind, Some(MessageKind::Initiation | MessageKind::Response)) {
        assert_eq!(checker.check(&bytes, source, true, now + later), Verdict::NeedsCookie);
        let reply = checker.reply(&bytes, source, random(), now + later).expect("an answer to a handshake message");
        let reply = CookieReply::parse(&reply).expect("a cookie reply");
        assert_eq!(reply.receiver.to_le_bytes(), bytes[4..8], "it goes to who sent the message");
    }
}
