//! How fast packets pass through a session's keys and state: `cargo bench -p mesh-wireguard-core --bench session`.
//!
//! One core, caches warm, the best of many rounds, a batch of packets as one super-packet makes them.

use mesh_types::PrivateKey;
use mesh_wireguard_core::LocalIdentity;
use mesh_wireguard_core::keys::{DATA_HEADER, KeyPair, TAG};
use mesh_wireguard_core::message::{DataHeader, Initiation, Response};
use mesh_wireguard_core::peer::{Action, Fresh, Incoming, Outgoing, Peer};
use mesh_wireguard_core::tai64n::Tai64n;
use std::hint::black_box;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// A packet of the tunnel's usual MTU, padded.
const PLAINTEXT: usize = 1_420;
const COUNT: usize = 45;
const ROUNDS: usize = 2_000;

fn main() {
    let now = Instant::now();
    let (mut from, mut to, opening) = connected(now);
    let mut buffers = vec![[0; DATA_HEADER + PLAINTEXT + TAG]; COUNT];
    let bytes = COUNT * PLAINTEXT;

    let Outgoing::Session { keys, first_counter } = from.send(COUNT as u32, 0, now) else { panic!("no session") };
    measure("seal", bytes, || {
        for (buffer, counter) in buffers.iter_mut().zip(first_counter..) {
            keys.seal(counter, black_box(buffer));
        }
    });
    let sealed = buffers.clone();
    measure("copy and open", bytes, || {
        buffers.copy_from_slice(black_box(&sealed));
        for buffer in &mut buffers {
            opening.open(black_box(buffer)).expect("authentic");
        }
    });
    measure("reserve counters", bytes, || {
        black_box(from.send(COUNT as u32, bytes as u64, now));
        assert!(from.poll(now).is_none());
    });
    let mut counter = 0;
    let mut incoming = [Incoming { counter: 0, len: PLAINTEXT, fresh: false }; COUNT];
    measure("take what was opened", bytes, || {
        for packet in &mut incoming {
            packet.counter = counter;
            counter += 1;
        }
        to.receive(opening.local_index(), black_box(&mut incoming), now);
        while to.poll(now).is_some() {}
    });
    measure("read headers", bytes, || {
        for buffer in black_box(&sealed) {
            black_box(DataHeader::parse(buffer));
        }
    });
}

/// Two peers that have made a handshake, and the receiver's keys.
fn connected(now: Instant) -> (Peer, Peer, Arc<KeyPair>) {
    let [a, b] = [1, 2].map(|byte| Arc::new(LocalIdentity::new(&PrivateKey::from_bytes([byte; 32]))));
    let mut to_b = Peer::new(&a, b.public_key(), None, None);
    let mut to_a = Peer::new(&b, a.public_key(), None, None);
    let stamp = Tai64n::from_unix(Duration::from_secs(1));
    let initiation = to_b.initiate(Fresh { ephemeral: [3; 32], index: 1 }, stamp, now).expect("usable keys");
    let opened = Initiation::parse(&initiation).and_then(|message| b.open_initiation(&message)).expect("for b");
    let response = to_a.handle_initiation(opened, Fresh { ephemeral: [4; 32], index: 2 }, now).expect("of a");
    to_b.handle_response(&Response::parse(&response).expect("a response"), now).expect("awaited");
    let keys = std::iter::from_fn(|| to_a.poll(now)).find_map(|action| match action {
        Action::Install(keys) => Some(keys),
        _ => None,
    });
    while to_b.poll(now).is_some() {}
    (to_b, to_a, keys.expect("a responder has keys"))
}

fn measure(what: &str, bytes: usize, mut run: impl FnMut()) {
    let round = |_| {
        let start = Instant::now();
        run();
        start.elapsed().as_secs_f64()
    };
    let best = (0..ROUNDS).map(round).fold(f64::MAX, f64::min);
    println!("{what:<22}{:8.1} Gbit/s {:8.1} ns a packet", bytes as f64 * 8.0 / best / 1e9, best * 1e9 / COUNT as f64);
}
