//! What comes out of the tunnel: packets of several flows, well made or not, in any order, some of which met congestion on
//! their way. What is joined is cut into the same packets again, none is lost, and none overtakes another of its flow; and
//! a row that segmentation made becomes what it was made of.

#![no_main]

mod flows;
#[path = "../../../node/wireguard/core/tests/packets/joining.rs"]
mod joining;
#[path = "../../../node/wireguard/core/tests/packets/mod.rs"]
mod packets;
#[path = "../../../node/wireguard/core/tests/packets/traffic.rs"]
mod traffic;

use arbitrary::{Arbitrary, Result, Unstructured};
use joining::{check_joined, check_there_and_back, join_with};
use libfuzzer_sys::fuzz_target;
use mesh_wireguard_core::offload::{Capabilities, Joiner};
use packets::{Flow, Part, payload};
use traffic::{Move, Next, traffic};

/// More take too long for what they show.
const MAX_MOVES: usize = 200;

#[derive(Debug, Arbitrary)]
enum Input {
    Traffic { flows: [Flow; 3], moves: Vec<Move>, takes: [bool; 3], batch: u8 },
    Row { flow: Flow, id: u16, sequence: u32, flags: u8, size: u16, count: u8, last: u16 },
}

fuzz_target!(|input: Input| {
    match input {
        Input::Traffic { flows, moves, takes: [tcp4, tcp6, udp], batch } => {
            let takes = Capabilities { tcp4, tcp6, udp };
            let packets = traffic(&flows, &moves[..moves.len().min(MAX_MOVES)]);
            let mut joiner = Joiner::new(takes);
            for batch in packets.chunks(usize::from(batch) + 1) {
                check_joined(takes, batch, &join_with(&mut joiner, batch));
            }
        }
        Input::Row { flow, id, sequence, flags, size, count, last } => {
            let size = usize::from(size).max(1);
            let length = (size * usize::from(count) + usize::from(last) % size + 1).min(65_535 - flow.headers());
            check_there_and_back(&flow, &Part { id, sequence, flags, payload: payload(length, id.into()) }, size);
        }
    }
});

impl<'a> Arbitrary<'a> for Move {
    fn arbitrary(u: &mut Unstructured<'a>) -> Result<Self> {
        let outer = if u.arbitrary()? { Some(u.int_in_range(0..=3)?) } else { None };
        Ok(Self { flow: u.arbitrary::<u8>()?.into(), packet: u.arbitrary()?, outer })
    }
}

impl<'a> Arbitrary<'a> for Next {
    fn arbitrary(u: &mut Unstructured<'a>) -> Result<Self> {
        Ok(match u.int_in_range(0..=11)? {
            0 => Self::Follows,
            1 => Self::Row(u.int_in_range(0..=79)?),
            2 => Self::Flags(u.arbitrary()?),
            3 => Self::Size(u.arbitrary()?),
            4 => Self::Shorter(u.arbitrary::<u8>()?.into()),
            5 => Self::Empty,
            6 => Self::Sequence(u.arbitrary()?),
            7 => Self::Identification(u.arbitrary()?),
            8 => Self::Changed { at: u.arbitrary::<u8>()?.into(), byte: u.arbitrary()?, sealed: u.arbitrary()? },
            9 => Self::CutOff(u.arbitrary::<u8>()?.into()),
            10 => Self::Padded(u.arbitrary()?),
            _ => Self::Raw(u.arbitrary()?),
        })
    }
}
