//! Super-packets from outside: what goes in comes out, and nothing that is handed over brings it down.

mod packets;
mod rules;

use super::{Gso, Joiner, MAX_JOINED, VnetHeader, split};
use packets::*;
use proptest::prelude::*;

fn part(payload: Vec<u8>) -> Part {
    Part { id: 100, sequence: 1_000, flags: ACK, payload }
}

proptest! {
    #[test]
    fn a_stream_that_is_cut_joined_and_cut_again_is_the_same_bytes(
        flow in any_flow(), id: u16, sequence: u32, fin: bool, psh: bool, ece: bool,
        size in prop_oneof![1_usize..100, 500_usize..1_500, 1_000_usize..20_000],
        count in 1_usize..80, rest: usize, seed: u64,
    ) {
        let room = 65_535 - flow.headers();
        let length = (size * (count - 1) + rest % size + 1).min(room);
        let flags = ACK | if fin { FIN } else { 0 } | if psh { PSH } else { 0 } | if ece { ECE } else { 0 };
        let whole = Part { id, sequence, flags, payload: payload(length, seed) };

        let (header, packet) = flow.super_packet(&whole, size);
        let expected = flow.segments(&whole, size);
        prop_assert_eq!(&cut(&header, &packet), &expected);

        let written = join(&expected);
        prop_assert_eq!(written.len(), expected.len().div_ceil(MAX_JOINED));
        if expected.len() > 1 && expected.len() <= MAX_JOINED {
            prop_assert_eq!(&written[0].packet, &packet);
            prop_assert_eq!(written[0].header, header);
        }
        let again: Vec<_> = written.iter().flat_map(|written| cut(&written.header, &written.packet)).collect();
        prop_assert_eq!(again, expected);
    }

    #[test]
    fn whatever_is_pushed_comes_out_unchanged_and_nothing_overtakes_within_a_flow(
        flows in proptest::collection::vec(any_flow(), 1..4),
        moves in proptest::collection::vec((any::<prop::sample::Index>(), 0_u8..40, any::<prop::sample::Index>(), any::<u8>()), 1..80),
        rounds in 1_usize..3,
    ) {
        let packets = traffic(&flows, &moves);
        let mut joiner = Joiner::new(ALL);
        for _ in 0..rounds {
            check_against_pushed(&packets, &join_with(&mut joiner, &packets))?;
        }
    }

    #[test]
    fn no_bytes_and_no_header_bring_the_cutting_down(
        bytes in proptest::collection::vec(any::<u8>(), 0..200), header in any_header(), version in 0_u8..8,
    ) {
        let mut bytes = bytes;
        if let Some(first) = bytes.first_mut() {
            *first = version << 4 | *first & 0x0f;
        }
        cut_if_possible(&header, &bytes);
        join(&[bytes.clone(), bytes]);
    }

    #[test]
    fn no_lie_in_a_real_super_packet_brings_the_cutting_down(
        flow in any_flow(), header in any_header(), which in 0_u8..64, length in 0_usize..4_000, keep: prop::sample::Index,
        changes in proptest::collection::vec((0_usize..110, any::<u8>()), 0..4),
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
        cut_if_possible(&header, &packet);
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
    fn what_needs_no_checksum_goes_through_untouched(bytes in proptest::collection::vec(any::<u8>(), 0..3_000)) {
        prop_assert_eq!(cut(&VnetHeader::default(), &bytes), [bytes]);
    }
}

/// Traffic with all that can happen to it, from a list of (flow, what happens, where, how).
fn traffic(flows: &[Flow], moves: &[(prop::sample::Index, u8, prop::sample::Index, u8)]) -> Vec<Vec<u8>> {
    let mut states = vec![(0_u16, 0_u32, 100_usize); flows.len()];
    let mut packets = Vec::new();
    for (which, what, at, how) in moves {
        let flow = which.index(flows.len());
        let (id, sequence, size) = &mut states[flow];
        let flow = &flows[flow];
        let mut next = Part { id: *id, sequence: *sequence, flags: ACK, payload: payload(*size, u64::from(*how)) };
        let mut change = None;
        match what {
            0 => next.flags |= PSH,
            1 => next.flags |= FIN,
            2 => next.flags = *how,
            3 => next.payload.truncate(usize::from(*how)),
            4 => next.payload.clear(),
            5 => *size = usize::from(*how) + 1,
            6 => next.sequence = next.sequence.wrapping_add(1 + u32::from(*how)),
            7 => next.id = next.id.wrapping_add(1 + u16::from(*how)),
            8..=11 => change = Some((at.index(flow.headers()), *how, false)),
            12..=15 => change = Some((at.index(flow.headers()), *how, true)),
            _ => (),
        }
        *id = next.id.wrapping_add(1);
        *sequence = next.sequence.wrapping_add(next.payload.len() as u32);
        let mut packet = flow.packet(&next);
        if let Some((at, byte, sealed)) = change {
            packet[at] = byte;
            if sealed {
                seal(flow.kind, &mut packet);
            }
        }
        if *what == 16 {
            packet.truncate(at.index(packet.len() + 1));
        }
        packets.push(packet);
    }
    packets
}

/// Cuts what was written and compares it with what was pushed.
fn check_against_pushed(pushed: &[Vec<u8>], written: &[Written]) -> Result<(), TestCaseError> {
    let mut order = Vec::new();
    for written in written {
        let packets = if written.of.len() == 1 {
            prop_assert_eq!(written.header, VnetHeader::default());
            vec![written.packet.clone()]
        } else {
            cut(&written.header, &written.packet)
        };
        prop_assert_eq!(packets.len(), written.of.len());
        for (packet, of) in packets.iter().zip(&written.of) {
            prop_assert_eq!(unmeant(packet), unmeant(&pushed[*of]));
            order.push(*of);
        }
    }
    for (i, later) in order.iter().enumerate() {
        for earlier in &order[..i] {
            prop_assert!(earlier < later || are_apart(&pushed[*earlier], &pushed[*later]), "{later} before {earlier}");
        }
    }
    order.sort_unstable();
    prop_assert_eq!(order, (0..pushed.len()).collect::<Vec<_>>());
    Ok(())
}

/// A packet without what has no meaning in it: the identification of an IPv4 packet that cannot be a fragment, over
/// which segmentation may count.
fn unmeant(packet: &[u8]) -> Vec<u8> {
    let mut packet = packet.to_vec();
    if packet.len() >= 20 && packet[0] >> 4 == 4 && packet[6] & 0x40 != 0 {
        packet[4..6].fill(0);
        packet[10..12].fill(0);
    }
    packet
}

/// What can be seen of a packet's flow.
struct Flows<'a> {
    addresses: &'a [u8],
    /// Behind the protocol's number, where they are in their place.
    ports: Option<(u8, &'a [u8])>,
}

/// Certainly of different flows.
fn are_apart(a: &[u8], b: &[u8]) -> bool {
    let (Some(a), Some(b)) = (flows_of(a), flows_of(b)) else { return true };
    a.addresses != b.addresses || a.ports.zip(b.ports).is_some_and(|(a, b)| a != b)
}

fn flows_of(packet: &[u8]) -> Option<Flows<'_>> {
    let (start, protocol, addresses, plain) = match packet.first()? >> 4 {
        4 if packet.len() >= 20 => {
            (20, packet[9], &packet[12..20], packet[0] == 0x45 && packet[6] & 0x3f == 0 && packet[7] == 0)
        }
        6 if packet.len() >= 40 => (40, packet[6], &packet[8..40], true),
        _ => return None,
    };
    let seen = plain && [6, 17].contains(&protocol) && packet.len() >= start + 8;
    Some(Flows { addresses, ports: seen.then(|| (protocol, &packet[start..start + 4])) })
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

fn cut_if_possible(header: &VnetHeader, packet: &[u8]) {
    if split(header, packet).is_ok() {
        cut(header, packet);
    }
}
