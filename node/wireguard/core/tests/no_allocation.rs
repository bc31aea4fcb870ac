//! Packets of an established session pass through the peer and its keys without one allocation.

mod pair;

use mesh_wireguard_core::keys::{DATA_HEADER, KeyPair, TAG};
use mesh_wireguard_core::message::DataHeader;
use mesh_wireguard_core::peer::{Incoming, Outgoing, Peer};
use pair::connected;
use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
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
const STRIDE: usize = DATA_HEADER + PLAINTEXT + TAG;

/// Sends a batch of packets from one to the other, with everything that a worker does for it.
fn pass(from: &mut Peer, to: &mut Peer, keys: &KeyPair, train: &mut [u8], now: Instant) {
    let Outgoing::Session { keys: sealing, first_counter } = from.send(BATCH as u32, train.len() as u64, now) else {
        panic!("no session");
    };
    assert!(from.poll(now).is_none());
    let mut incoming = [Incoming { counter: 0, len: PLAINTEXT, fresh: false }; BATCH];
    for (message, counter) in train.chunks_mut(STRIDE).zip(first_counter..) {
        sealing.begin(counter, message);
    }
    sealing.seal(train, STRIDE);
    for (message, incoming) in train.chunks(STRIDE).zip(&mut incoming) {
        incoming.counter = DataHeader::parse(message).expect("a data message").counter;
    }
    keys.open(train, STRIDE, |authentic| assert!(authentic));
    to.receive(keys.local_index(), &mut incoming, now);
    assert!(incoming.iter().all(|packet| packet.fresh));
    while to.poll(now).is_some() {}
}

#[test]
fn packets_pass_without_an_allocation() {
    let now = Instant::now();
    let (mut from, mut to, keys) = connected(now);
    let mut train = vec![0; BATCH * STRIDE];
    pass(&mut from, &mut to, &keys, &mut train, now);
    let before = ALLOCATIONS.get();
    for number in 0..200 {
        pass(&mut from, &mut to, &keys, &mut train, now + Duration::from_millis(number));
    }
    assert_eq!(ALLOCATIONS.get() - before, 0);
}
