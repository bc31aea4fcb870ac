//! Packets of an established session pass through the peer and its keys without one allocation.

use mesh_types::PrivateKey;
use mesh_wireguard_core::LocalIdentity;
use mesh_wireguard_core::keys::{DATA_HEADER, KeyPair, TAG};
use mesh_wireguard_core::message::{DataHeader, Initiation, Response};
use mesh_wireguard_core::peer::{Action, Fresh, Incoming, Outgoing, Peer};
use mesh_wireguard_core::tai64n::Tai64n;
use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::sync::Arc;
use std::time::{Duration, Instant};

struct Counting;

thread_local! {
    static ALLOCATIONS: Cell<usize> = const { Cell::new(0) };
}

// SAFETY: Both calls go to the system's allocator as they came; the counter is a constant-initialised thread local,
// which allocates nothing.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.set(ALLOCATIONS.get() + 1);
        // SAFETY: The caller keeps `alloc`'s contract.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: The caller keeps `dealloc`'s contract; `pointer` came from `System`.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

const BATCH: usize = 45;
const PLAINTEXT: usize = 1_424;

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

/// Sends a batch of packets from one to the other, with everything that a worker does for it.
fn pass(from: &mut Peer, to: &mut Peer, keys: &KeyPair, buffers: &mut [Vec<u8>], now: Instant) {
    let bytes: usize = buffers.iter().map(Vec::len).sum();
    let Outgoing::Session { keys: sealing, first_counter } = from.send(BATCH as u32, bytes as u64, now) else {
        panic!("no session");
    };
    assert!(from.poll(now).is_none());
    let mut incoming = [Incoming { counter: 0, len: 0, fresh: false }; BATCH];
    for ((buffer, incoming), counter) in buffers.iter_mut().zip(&mut incoming).zip(first_counter..) {
        sealing.seal(counter, buffer);
        let header = DataHeader::parse(buffer).expect("a data message");
        let len = keys.open(buffer).expect("authentic");
        *incoming = Incoming { counter: header.counter, len, fresh: false };
    }
    to.receive(keys.local_index(), &mut incoming, now);
    assert!(incoming.iter().all(|packet| packet.fresh));
    while to.poll(now).is_some() {}
}

#[test]
fn packets_pass_without_an_allocation() {
    let now = Instant::now();
    let (mut from, mut to, keys) = connected(now);
    let mut buffers = vec![vec![0; DATA_HEADER + PLAINTEXT + TAG]; BATCH];
    pass(&mut from, &mut to, &keys, &mut buffers, now);
    let before = ALLOCATIONS.get();
    for number in 0..200 {
        pass(&mut from, &mut to, &keys, &mut buffers, now + Duration::from_millis(number));
    }
    assert_eq!(ALLOCATIONS.get() - before, 0);
}
