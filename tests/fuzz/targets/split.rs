//! What the host hands over: a `virtio_net_hdr` and a packet, both of which may lie. Whatever is cut holds the payload it
//! held before, in headers and with checksums that an independent reader finds right.

#![no_main]

mod flows;
#[path = "../../../node/wireguard/core/tests/packets/mod.rs"]
mod packets;

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use mesh_wireguard_core::offload::{Gso, VnetHeader, split};
use packets::cutting::{check_cut, check_real, number, transport};
use packets::sums::{pseudo_header, put, sum};
use packets::{Flow, Part, payload};

/// Built by the reader of the RFCs: a row of thousands takes long and shows no more.
const MAX_SEGMENTS: usize = 100;

#[derive(Debug, Arbitrary)]
struct Input {
    packet: Packet,
    /// Overwritten afterwards.
    lies: Vec<(u8, u8)>,
    /// Of the header.
    header_lies: Vec<(u8, u8)>,
    /// Bytes put behind it: a short input can be a long packet.
    stretch: u16,
    /// Whether the sum of the pseudo-header is made right again where the kernel would have put it.
    amend: bool,
}

#[derive(Debug, Arbitrary)]
enum Packet {
    Real { flow: Flow, id: u16, sequence: u32, flags: u8, length: u16, size: u16, verified: bool },
    Raw { header: [u8; 10], bytes: Vec<u8> },
}

fuzz_target!(|input: Input| {
    let (mut header, mut packet) = made(input.packet);
    for (at, byte) in input.header_lies {
        header[usize::from(at) % VnetHeader::LEN] = byte;
    }
    for (at, byte) in input.lies {
        if let Some(place) = packet.get_mut(usize::from(at)) {
            *place = byte;
        }
    }
    packet.extend(payload(input.stretch.into(), 0));
    let Ok(header) = VnetHeader::parse(&header) else { return };
    assert_eq!(VnetHeader::parse(&header.to_bytes()), Ok(header));
    if input.amend && header.needs_csum && header.gso != Gso::None && split(&header, &packet).is_ok() {
        let start = transport(&header, &packet);
        let sum = sum(&pseudo_header(&packet, start, number(&header)));
        put(&mut packet, start + usize::from(header.csum_offset), sum);
    }
    check_cut(&header, &packet, input.amend || !header.needs_csum);
});

fn made(packet: Packet) -> ([u8; VnetHeader::LEN], Vec<u8>) {
    match packet {
        Packet::Raw { header, bytes } => (header, bytes),
        Packet::Real { flow, id, sequence, flags, length, size, verified } => {
            let length = usize::from(length).min(65_535 - flow.headers());
            let part = Part { id, sequence, flags, payload: payload(length, flags.into()) };
            if size > 0 && (1..=MAX_SEGMENTS).contains(&length.div_ceil(size.into())) {
                check_real(&flow, &part, size.into());
            }
            let (header, packet) = flow.super_packet(&part, size.into());
            if verified {
                let header = VnetHeader { needs_csum: false, csum_start: 0, csum_offset: 0, ..header };
                return (header.to_bytes(), flow.packet(&part));
            }
            (header.to_bytes(), packet)
        }
    }
}
