//! Super-packets from outside: what goes in comes out, and nothing that is handed over brings it down.

#[path = "../packets/joining.rs"]
mod joining;
#[path = "../packets/mod.rs"]
mod packets;
mod rules;
#[path = "../packets/traffic.rs"]
mod traffic;

use joining::{ACK, ALL, check_joined, check_there_and_back, join_with};
use mesh_wireguard_core::offload::{Gso, Joiner, VnetHeader};
use packets::cutting::{check_cut, cut};
use packets::sums::put;
use packets::{FIN, Flow, KINDS, Kind, PSH, Part, payload};
use proptest::collection::vec;
use proptest::prelude::*;
use traffic::{Move, Next, traffic};

const ECE: u8 = 0x40;

fn part(payload: Vec<u8>) -> Part {
    Part { id: 100, sequence: 1_000, flags: ACK, payload }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_stream_that_is_cut_joined_and_cut_again_is_the_same_bytes(
        flow in any_flow(), id: u16, sequence: u32, flags in any_flags(),
        size in prop_oneof![1_usize..100, 500_usize..1_500, 1_000_usize..20_000],
        count in 1_usize..80, rest: usize, seed: u64,
    ) {
        let room = 65_535 - flow.headers();
        let length = (size * (count - 1) + rest % size + 1).min(room);
        check_there_and_back(&flow, &Part { id, sequence, flags, payload: payload(length, seed) }, size);
    }

    #[test]
    fn whatever_is_pushed_comes_out_unchanged_and_nothing_overtakes_within_a_flow(
        flows in vec(any_flow(), 1..4), moves in vec(any_move(), 1..80), rounds in 1_usize..3,
    ) {
        let packets = traffic(&flows, &moves);
        let mut joiner = Joiner::new(ALL);
        for _ in 0..rounds {
            check_joined(ALL, &packets, &join_with(&mut joiner, &packets));
        }
    }

    #[test]
    fn no_bytes_and_no_header_bring_the_cutting_down(
        bytes in vec(any::<u8>(), 0..200), header in any_header(), version in 0_u8..8,
    ) {
        let mut bytes = bytes;
        if let Some(first) = bytes.first_mut() {
            *first = version << 4 | *first & 0x0f;
        }
        check_cut(&header, &bytes, false);
        let packets = [bytes.clone(), bytes];
        check_joined(ALL, &packets, &join_with(&mut Joiner::new(ALL), &packets));
    }

    #[test]
    fn no_lie_in_a_real_super_packet_brings_the_cutting_down(
        flow in any_flow(), header in any_header(), which in 0_u8..64, length in 0_usize..4_000, keep: prop::sample::Index,
        changes in vec((0_usize..110, any::<u8>()), 0..4),
    ) {
        let (real, mut packet) = flow.super_packet(&part(payload(length, 3)), 100);
        let pick = |bit: u8, real, lie| if which & 1 << bit == 0 { real } else { lie };
        let header = VnetHeader {
            needs_csum: if which & 1 == 0 { real.needs_csum } else { header.needs_csum },
            gso: if which & 2 == 0 { real.gso } else { header.gso },
            hdr_len: header.hdr_len,
            gso_size: pick(2, real.gso_size, header.gso_size),
            csum_start: pick(3, real.csum_start, header.csum_start),
            csum_offset: pick(4, real.csum_offset, header.csum_offset),
        };
        for (at, byte) in changes {
            if let Some(target) = packet.get_mut(at) {
                *target = byte;
            }
        }
        if which & 32 != 0 {
            packet.truncate(keep.index(packet.len() + 1));
        }
        check_cut(&header, &packet, !header.needs_csum);
    }

    #[test]
    fn a_partial_checksum_is_completed_and_nothing_else_changes(flow in any_flow(), length in 0_usize..3_000, seed: u64) {
        let whole = part(payload(length, seed));
        let (mut header, packet) = flow.super_packet(&whole, 1);
        header = VnetHeader { gso: Gso::None, gso_size: 0, ..header };
        let mut expected = flow.packet(&whole);
        let at = flow.kind.start() + flow.kind.checksum_offset();
        if expected[at..at + 2] == [0, 0] {
            put(&mut expected, at, 0xffff);
        }
        prop_assert_eq!(cut(&header, &packet), [expected]);
    }

    #[test]
    fn what_needs_no_checksum_goes_through_untouched(bytes in vec(any::<u8>(), 0..3_000)) {
        prop_assert_eq!(cut(&VnetHeader::default(), &bytes), [bytes]);
    }
}

fn any_kind() -> impl Strategy<Value = Kind> {
    proptest::sample::select(KINDS.to_vec())
}

fn any_flow() -> impl Strategy<Value = Flow> {
    let common = (any_kind(), any::<u8>(), any::<u16>(), any::<u8>(), any::<u8>(), 0_u32..1 << 20, any::<bool>());
    let tcp = (any::<u32>(), any::<u16>(), vec(any::<u8>(), 0..=40));
    (common, tcp).prop_map(|((kind, host, port, tos, ttl, label, dont_fragment), (ack, window, mut options))| {
        options.truncate(if kind.is_tcp() { options.len() / 4 * 4 } else { 0 });
        Flow { kind, host, port, tos, ttl, label, dont_fragment, ack, window, options }
    })
}

/// Mostly those of the middle of a connection.
fn any_flags() -> impl Strategy<Value = u8> {
    prop_oneof![4 => any::<u8>().prop_map(|flags| ACK | flags & (FIN | PSH | ECE)), 1 => any::<u8>()]
}

fn any_move() -> impl Strategy<Value = Move> {
    let changed = (0_usize..60, any::<u8>(), any::<bool>());
    let next = prop_oneof![
        46 => Just(Next::Follows),
        2 => (2_u8..70).prop_map(Next::Row),
        2 => Just(Next::Flags(ACK | PSH)),
        2 => Just(Next::Flags(ACK | FIN)),
        2 => any::<u8>().prop_map(Next::Flags),
        2 => (0_u16..100).prop_map(Next::Shorter),
        2 => Just(Next::Empty),
        2 => (1_u16..257).prop_map(Next::Size),
        2 => (1_u32..257).prop_map(Next::Sequence),
        2 => (1_u16..257).prop_map(Next::Identification),
        16 => changed.prop_map(|(at, byte, sealed)| Next::Changed { at, byte, sealed }),
        2 => (0_usize..160).prop_map(Next::CutOff),
        2 => (0_u8..20).prop_map(Next::Padded),
        1 => vec(any::<u8>(), 0..100).prop_map(Next::Raw),
    ];
    let outer = proptest::option::of(0_u8..4);
    (any::<usize>(), next, outer).prop_map(|(flow, packet, outer)| Move { flow, packet, outer })
}

fn any_header() -> impl Strategy<Value = VnetHeader> {
    let small = || prop_oneof![0_u16..120, any::<u16>()];
    let gso = proptest::sample::select(vec![Gso::None, Gso::TcpV4, Gso::TcpV6, Gso::Udp]);
    (any::<bool>(), gso, small(), small(), small(), small()).prop_map(
        |(needs_csum, gso, hdr_len, gso_size, csum_start, csum_offset)| VnetHeader {
            needs_csum,
            gso,
            hdr_len,
            gso_size,
            csum_start,
            csum_offset,
        },
    )
}
