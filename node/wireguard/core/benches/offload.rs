//! How fast payload passes through what stands beside the encryption: `cargo bench -p mesh-wireguard-core`.
//!
//! One core, caches warm, the best of many rounds, in gigabytes of packets a second.

use mesh_wireguard_core::offload::checksum::Sum;
use mesh_wireguard_core::offload::{Capabilities, Gso, Joiner, Place, VnetHeader, split};
use std::hint::black_box;
use std::time::Instant;

/// What a tunnel of 1,420 bytes leaves to TCP with timestamps.
const SEGMENT: usize = 1_368;
const HEADERS: usize = 52;
const COUNT: usize = 47;
const ROUNDS: usize = 2_000;

fn main() {
    let bytes: Vec<u8> = (0..SEGMENT as u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    let mut copy = vec![0; SEGMENT];
    measure("sum", bytes.len(), || {
        black_box(Sum::of(black_box(&bytes)).fold());
    });
    measure("copy and sum", bytes.len(), || {
        black_box(Sum::copying(black_box(&bytes), black_box(&mut copy)).fold());
    });

    let (header, packet) = super_packet();
    let mut out = vec![0; COUNT * (HEADERS + SEGMENT)];
    measure("split TCP over IPv4", packet.len(), || {
        let segments = split(black_box(&header), black_box(&packet)).expect("a sound super-packet");
        for (i, out) in out.chunks_exact_mut(HEADERS + SEGMENT).enumerate() {
            segments.write(i, out);
        }
    });

    let packets: Vec<&[u8]> = out.chunks_exact(HEADERS + SEGMENT).collect();
    let mut joiner = Joiner::new(Capabilities { tcp4: true, tcp6: true, udp: true });
    let mut groups = 0;
    measure("join TCP over IPv4", out.len(), || {
        for (i, packet) in black_box(&packets).iter().enumerate() {
            joiner.push(Place { buffer: i as u32, start: 0, len: packet.len() as u32 }, packet);
        }
        groups = 0;
        joiner.drain(|group| {
            groups += 1;
            black_box((group.vnet(), group.headers(), group.payloads()));
        });
    });
    assert_eq!(groups, 1, "all of it is one super-packet");
}

fn measure(what: &str, bytes: usize, mut run: impl FnMut()) {
    let round = |_| {
        let start = Instant::now();
        (0..100).for_each(|_| run());
        start.elapsed().as_secs_f64() / 100.0
    };
    let best = (0..ROUNDS).map(round).fold(f64::MAX, f64::min);
    println!("{what:<22}{:6.1} GB/s {:8.0} ns for {bytes} bytes", bytes as f64 / best / 1e9, best * 1e9);
}

fn super_packet() -> (VnetHeader, Vec<u8>) {
    let mut packet = vec![0x45, 0, 0, 0, 0, 1, 0x40, 0, 64, 6, 0, 0, 10, 86, 0, 1, 10, 86, 0, 2];
    packet.extend([0x9c, 0x40, 0x14, 0x51, 0, 0, 0, 1, 0, 0, 0, 1, 0x80, 0x10, 2, 0, 0, 0, 0, 0]);
    packet.extend([1, 1, 8, 10, 0, 0, 0, 1, 0, 0, 0, 2]);
    packet.extend((0..SEGMENT * COUNT).map(|i| i as u8));
    let header = VnetHeader { gso: Gso::TcpV4, gso_size: SEGMENT as u16, ..VnetHeader::default() };
    (header, packet)
}
