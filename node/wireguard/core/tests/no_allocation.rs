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
