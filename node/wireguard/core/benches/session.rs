//! How fast packets pass through a session's keys and state: `cargo bench -p mesh-wireguard-core --bench session`.
//!
//! One core, caches warm, the best of many rounds, a batch of packets as one super-packet makes them.

#[path = "../tests/pair/mod.rs"]
mod pair;

use mesh_wireguard_core::keys::{DATA_HEADER, TAG};
use mesh_wireguard_core::message::DataHeader;
use mesh_wireguard_core::peer::{Incoming, Outgoing};
use pair::connected;
use std::hint::black_box;
use std::time::Instant;

/// A packet of the tunnel's usual MTU, padded.
const PLAINTEXT: usize = 1_420;
const STRIDE: usize = DATA_HEADER + PLAINTEXT + TAG;
const COUNT: usize = 45;
const ROUNDS: usize = 2_000;

fn main() {
    let now = Instant::now();
    let (mut from, mut to, opening) = connected(now);
    let mut train = vec![0; COUNT * STRIDE];
    let bytes = COUNT * PLAINTEXT;

    let Outgoing::Session { keys, first_counter } = from.send(COUNT as u32, 0, now) else { panic!("no session") };
    for (message, counter) in train.chunks_mut(STRIDE).zip(first_counter..) {
        keys.begin(counter, message);
    }
    measure("seal", bytes, || keys.seal(black_box(&mut train), STRIDE));
    measure("seal one by one", bytes, || {
        for message in train.chunks_mut(STRIDE) {
            keys.seal(black_box(message), STRIDE);
        }
    });
    let sealed = train.clone();
    measure("copy and open", bytes, || {
        train.copy_from_slice(black_box(&sealed));
        opening.open(black_box(&mut train), STRIDE, |authentic| assert!(authentic));
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
        for message in black_box(&sealed).chunks(STRIDE) {
            black_box(DataHeader::parse(message));
        }
    });
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
