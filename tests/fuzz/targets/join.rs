//! What comes out of the tunnel: packets of several flows, well made or not, in any order. What is joined is cut into the
//! same packets again, none is lost, and none overtakes another of its flow.

#![no_main]

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use mesh_fuzz::packets::{Flow, Part, payload, seal};
use mesh_wireguard_core::offload::{Capabilities, Gso, Joiner, MAX_JOINED, Place, VnetHeader, split};

#[derive(Debug, Arbitrary)]
struct Input {
    flows: [Flow; 3],
    moves: Vec<Move>,
    takes: [bool; 3],
    batch: u8,
}

#[derive(Debug, Arbitrary)]
struct Move {
    flow: u8,
    packet: Next,
}

#[derive(Debug, Arbitrary)]
enum Next {
    /// As segmentation would make it.
    Follows,
    Row(u8),
    Flags(u8),
    Size(u16),
    Shorter(u8),
    Empty,
    Sequence(u32),
    Identification(u16),
    Changed {
        at: u8,
        byte: u8,
        sealed: bool,
    },
    CutOff(u8),
    Padded(u8),
    Raw(Vec<u8>),
}

/// What a flow comes to.
struct State {
    id: u16,
    sequence: u32,
    size: usize,
}

fuzz_target!(|input: Input| {
    let packets = traffic(&input.flows, input.moves);
    let [tcp4, tcp6, udp] = input.takes;
    let mut joiner = Joiner::new(Capabilities { tcp4, tcp6, udp });
    for batch in packets.chunks(usize::from(input.batch) + 1) {
        check(&mut joiner, batch, input.takes);
    }
});

fn traffic(flows: &[Flow; 3], moves: Vec<Move>) -> Vec<Vec<u8>> {
    const ACK: u8 = 0x10;
    let mut states = [0, 1, 2].map(|n| State { id: n, sequence: 0, size: 100 });
    let mut packets = Vec::new();
    for Move { flow, packet } in moves.into_iter().take(200) {
        let which = usize::from(flow) % flows.len();
        let (flow, state) = (&flows[which], &mut states[which]);
        let mut flags = ACK;
        let mut size = state.size;
        let mut count = 1;
        match packet {
            Next::Row(more) => count += usize::from(more % 80),
            Next::Flags(more) => flags = more,
            Next::Size(other) => {
                size = usize::from(other).min(65_535 - flow.headers());
                state.size = size;
            }
            Next::Shorter(by) => size = size.saturating_sub(by.into()),
            Next::Empty => size = 0,
            Next::Sequence(skip) => state.sequence = state.sequence.wrapping_add(skip),
            Next::Identification(skip) => state.id = state.id.wrapping_add(skip),
            Next::Raw(bytes) => {
                packets.push(bytes);
                continue;
            }
            Next::Follows | Next::Changed { .. } | Next::CutOff(_) | Next::Padded(_) => {}
        }
        for _ in 0..count {
            let part = Part { id: state.id, sequence: state.sequence, flags, payload: payload(size, state.id as u8) };
            state.id = state.id.wrapping_add(1);
            state.sequence = state.sequence.wrapping_add(size as u32);
            packets.push(flow.packet(&part));
        }
        let last = packets.last_mut().expect("at least one was made");
        match packet {
            Next::Changed { at, byte, sealed } => {
                let at = usize::from(at) % last.len();
                last[at] = byte;
                if sealed {
                    seal(flow.kind, last);
                }
            }
            Next::CutOff(keep) => last.truncate(keep.into()),
            Next::Padded(zeroes) => last.resize(last.len() + usize::from(zeroes), 0),
            _ => {}
        }
    }
    packets
}

fn check(joiner: &mut Joiner, packets: &[Vec<u8>], takes: [bool; 3]) {
    for (i, packet) in packets.iter().enumerate() {
        joiner.push(Place { buffer: i as u32, start: 0, len: packet.len() as u32 }, packet);
    }
    let mut order = Vec::new();
    joiner.drain(|group| {
        let header = VnetHeader::parse(&group.vnet().to_bytes()).expect("what the device knows");
        let mut whole = group.headers().to_vec();
        for place in group.payloads() {
            whole.extend(&packets[place.buffer as usize][place.start as usize..(place.start + place.len) as usize]);
        }
        let of: Vec<usize> = group.payloads().iter().map(|place| place.buffer as usize).collect();
        if let [alone] = of[..] {
            assert_eq!((header, &whole), (VnetHeader::default(), &packets[alone]), "alone and unchanged");
        } else {
            assert!(of.len() <= MAX_JOINED && whole.len() <= 65_535);
            let [tcp4, tcp6, udp] = takes;
            assert!(match header.gso {
                Gso::None => false,
                Gso::TcpV4 => tcp4,
                Gso::TcpV6 => tcp6,
                Gso::Udp => udp,
            });
            let segments = split(&header, &whole).expect("what was joined can be cut");
            assert_eq!(segments.count(), of.len());
            for (n, packet) in of.iter().enumerate() {
                let mut out = vec![0xa5; segments.len(n)];
                segments.write(n, &mut out);
                assert_eq!(meant(&out), meant(&packets[*packet]));
            }
        }
        order.extend(of);
    });
    let flows: Vec<_> = packets.iter().map(|packet| flow_of(packet)).collect();
    for (i, later) in order.iter().enumerate() {
        for earlier in order[..i].iter().filter(|earlier| *earlier > later) {
            assert!(flows[*earlier].is_none() || flows[*earlier] != flows[*later], "{later} behind {earlier}");
        }
    }
    order.sort_unstable();
    assert!(order.into_iter().eq(0..packets.len()), "each comes out once");
}

/// A packet without what has no meaning in it: the identification of an IPv4 packet that cannot be a fragment, over
/// which segmentation may count (RFC 6864).
fn meant(packet: &[u8]) -> Vec<u8> {
    let mut packet = packet.to_vec();
    if packet[0] >> 4 == 4 && packet[6] & 0x40 != 0 {
        packet[4..6].fill(0);
        packet[10..12].fill(0);
    }
    packet
}

/// Addresses, protocol and ports of a packet that shows all of them.
fn flow_of(packet: &[u8]) -> Option<(u8, &[u8], &[u8])> {
    let (start, protocol, addresses) = match packet.first()? >> 4 {
        4 if packet.len() >= 28 && packet[0] == 0x45 && packet[6] & 0x3f == 0 && packet[7] == 0 => {
            (20, packet[9], &packet[12..20])
        }
        6 if packet.len() >= 48 => (40, packet[6], &packet[8..40]),
        _ => return None,
    };
    [6, 17].contains(&protocol).then(|| (protocol, addresses, &packet[start..start + 4]))
}
