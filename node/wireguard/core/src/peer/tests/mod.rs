//! Peers as the shell has them, one at a time or two that talk, and what only looks inside them can tell.

mod handshakes;
mod interop;
mod known_answers;
mod random_messages;
mod timing;
#[path = "../../../tests/world/mod.rs"]
mod world;

use super::*;
use crate::keys::{DATA_HEADER, TAG};
use crate::message::{INITIATION_LEN, Initiation, MessageKind, RESPONSE_LEN, Response, classify};
use crate::noise::Remote;
use mesh_types::PrivateKey;
use std::collections::BTreeSet;
use std::net::SocketAddr;
use world::host::{Host, MAX_STAGED, identity, padded};
use x25519_dalek::StaticSecret;

const PSK: PresharedKey = PresharedKey::from_bytes([7; 32]);

/// Two hosts that know each other.
fn pair(now: Instant) -> (Host, Host) {
    world::host::pair(&PSK, now)
}

/// Carries everything that either has to say to the other, at one moment, until there is silence.
fn talk(a: &mut Host, b: &mut Host, now: Instant) {
    loop {
        a.drain(now);
        b.drain(now);
        if a.out.is_empty() && b.out.is_empty() {
            return;
        }
        for datagram in std::mem::take(&mut a.out) {
            let _ = b.receive(&datagram, a.address, now);
        }
        for datagram in std::mem::take(&mut b.out) {
            let _ = a.receive(&datagram, b.address, now);
        }
    }
}

/// A pair with a session, made by the first, and nothing left to acknowledge.
fn connected(now: Instant) -> (Host, Host) {
    let (mut a, mut b) = pair(now);
    a.send(b"hello", now);
    talk(&mut a, &mut b, now);
    b.send(b"hello", now);
    talk(&mut a, &mut b, now);
    a.send_keepalive(now);
    talk(&mut a, &mut b, now);
    for host in [&mut a, &mut b] {
        assert_eq!(std::mem::take(&mut host.delivered), [padded(b"hello")]);
        assert_eq!(host.completed, 1);
    }
    (a, b)
}

fn secs(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

fn kinds(datagrams: &VecDeque<Vec<u8>>) -> Vec<MessageKind> {
    datagrams.iter().filter_map(|datagram| classify(datagram)).collect()
}
