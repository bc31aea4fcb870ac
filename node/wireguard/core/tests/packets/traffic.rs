//! Traffic out of the tunnel: packets of several flows, well made or not, in any order.

use super::joining::ACK;
use super::packets::sums::seal;
use super::packets::{Flow, Part, payload};

/// One packet of one of the flows.
#[derive(Clone, Debug)]
pub(crate) struct Move {
    pub(crate) flow: usize,
    pub(crate) packet: Next,
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
    for Move { flow, packet } in moves {
        let which = flow % flows.len();
        let mut made = make(&flows[which], &mut states[which], packet);
        if let Some(last) = made.last_mut() {
            spoil(&flows[which], last, packet);
        }
        packets.extend(made);
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
