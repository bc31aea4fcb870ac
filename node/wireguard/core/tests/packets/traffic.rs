//! Traffic out of the tunnel: packets of several flows, well made or not, in any order.

use super::joining::ACK;
use super::packets::sums::{seal, sum, word};
use super::packets::{Flow, Part, payload};
use mesh_wireguard_core::carried::{mark_congestion, source_and_length};
use std::net::IpAddr;

/// One packet of one of the flows.
#[derive(Clone, Debug)]
pub(crate) struct Move {
    pub(crate) flow: usize,
    pub(crate) packet: Next,
    /// The ECN field of the packet around it; without one it is joined as it is, with whatever is behind it.
    pub(crate) outer: Option<u8>,
}

#[derive(Clone, Debug)]
pub(crate) enum Next {
    /// As segmentation would make it.
    Follows,
    /// So many more behind it.
    Row(u8),
    Flags(u8),
    /// Its payload's, and of those behind it.
    Size(u16),
    Shorter(u16),
    Empty,
    Sequence(u32),
    Identification(u16),
    Changed {
        at: usize,
        byte: u8,
        sealed: bool,
    },
    CutOff(usize),
    Padded(u8),
    /// No packet of the flow at all.
    Raw(Vec<u8>),
}

/// What a flow has come to.
struct State {
    id: u16,
    sequence: u32,
    size: usize,
}

pub(crate) fn traffic(flows: &[Flow], moves: &[Move]) -> Vec<Vec<u8>> {
    let mut states: Vec<State> = flows.iter().map(|_| State { id: 0, sequence: 0, size: 100 }).collect();
    let mut packets = Vec::new();
    for Move { flow, packet, outer } in moves {
        let which = flow % flows.len();
        let mut made = make(&flows[which], &mut states[which], packet);
        if let Some(last) = made.last_mut() {
            spoil(&flows[which], last, packet);
        }
        packets.extend(made.into_iter().map(|packet| match outer {
            Some(ecn) => arrived(&packet, *ecn),
            None => packet,
        }));
    }
    packets
}

/// Well-made packets, on from where the flow is.
fn make(flow: &Flow, state: &mut State, next: &Next) -> Vec<Vec<u8>> {
    if let Next::Raw(bytes) = next {
        return vec![bytes.clone()];
    }
    let (mut flags, mut count) = (ACK, 1);
    match next {
        Next::Row(more) => count += usize::from(*more),
        Next::Flags(all) => flags = *all,
        Next::Size(other) => state.size = usize::from(*other).min(65_535 - flow.headers()),
        Next::Sequence(skip) => state.sequence = state.sequence.wrapping_add(*skip),
        Next::Identification(skip) => state.id = state.id.wrapping_add(*skip),
        _ => {}
    }
    let size = match next {
        Next::Shorter(by) => state.size.saturating_sub((*by).into()),
        Next::Empty => 0,
        _ => state.size,
    };
    let make_one = |_| {
        let (id, sequence) = (state.id, state.sequence);
        state.id = id.wrapping_add(1);
        state.sequence = sequence.wrapping_add(size as u32);
        flow.packet(&Part { id, sequence, flags, payload: payload(size, id.into()) })
    };
    (0..count).map(make_one).collect()
}

fn spoil(flow: &Flow, packet: &mut Vec<u8>, next: &Next) {
    match next {
        Next::Changed { at, byte, sealed } => {
            let at = at % packet.len();
            packet[at] = *byte;
            if *sealed {
                seal(flow.kind, packet);
            }
        }
        Next::CutOff(keep) => packet.truncate(*keep),
        Next::Padded(zeroes) => packet.resize(packet.len() + usize::from(*zeroes), 0),
        _ => {}
    }
}

/// What is joined of a packet that came in padding, in an outer packet with this ECN field, once all that must hold of it
/// was looked at. What is no packet comes out as it is: the joiner has to bear it.
fn arrived(packet: &[u8], ecn: u8) -> Vec<u8> {
    let mut carried = packet.to_vec();
    carried.resize(packet.len().next_multiple_of(16), 0);
    let judged = source_and_length(&carried);
    assert_eq!(judged, read(&carried), "source and length");
    let Some((_, length)) = judged else { return packet.to_vec() };
    carried.truncate(length);
    let before = carried.clone();
    mark_congestion(&mut carried, ecn);
    check_marked(&before, &carried, ecn);
    carried
}

/// Source and length as RFC 791 (3.1) and RFC 8200 (3) have them, of what is all there.
fn read(packet: &[u8]) -> Option<(IpAddr, usize)> {
    let (source, length) = match packet.first()? >> 4 {
        4 if packet.len() >= 20 => (<[u8; 4]>::try_from(&packet[12..16]).ok()?.into(), usize::from(word(packet, 2))),
        6 if packet.len() >= 40 => {
            (<[u8; 16]>::try_from(&packet[8..24]).ok()?.into(), 40 + usize::from(word(packet, 4)))
        }
        _ => return None,
    };
    (20..=packet.len()).contains(&length).then_some((source, length))
}

/// RFC 6040 (4.2), for all that WireGuard takes of it: a mark that the outer packet got is never lost, none is made up, and
/// of what cannot be marked, and beside the mark, nothing changes. What a header's checksum said it says again.
fn check_marked(before: &[u8], after: &[u8], outer: u8) {
    let v4 = before[0] >> 4 == 4;
    let class = |packet: &[u8]| if v4 { packet[1] } else { (word(packet, 0) >> 4) as u8 };
    // Not-ECT, ECT(1), ECT(0), CE: what comes of each under an outer CE.
    let marked = [0, 3, 3, 3][usize::from(class(before) & 3)];
    let expected = if outer & 3 == 3 { class(before) & 0xfc | marked } else { class(before) };
    assert_eq!(class(after), expected, "{:#04x} in {outer}", class(before));
    let mut unlike = before.to_vec();
    if v4 {
        assert_eq!(sum(&after[..20]), sum(&before[..20]), "the header's checksum follows");
        [1..2, 10..12].into_iter().for_each(|range| unlike[range.clone()].copy_from_slice(&after[range]));
    } else {
        unlike[..2].copy_from_slice(&after[..2]);
        assert_eq!((after[0] ^ before[0]) & 0xf0 | (after[1] ^ before[1]) & 0x0f, 0, "the fields around it");
    }
    assert_eq!(after, unlike, "the rest of the packet");
}
