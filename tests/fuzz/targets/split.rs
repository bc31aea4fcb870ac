//! What the host hands over: a `virtio_net_hdr` and a packet, both of which may lie. Whatever is cut holds the payload it
//! held before, in headers and with checksums that an independent reader finds right.

#![no_main]

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use mesh_fuzz::packets::{CWR, FIN, Flow, PSH, Part, payload, pseudo_header, put, sum, transport_sum, word};
use mesh_wireguard_core::offload::{Gso, Segments, VnetHeader, split};

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
    let Ok(segments) = split(&header, &packet) else { return };
    if header.gso == Gso::None {
        check_single(&header, &packet, &segments);
    } else {
        check_segments(&header, &packet, &segments, input.amend || !header.needs_csum);
    }
});

fn made(packet: Packet) -> ([u8; VnetHeader::LEN], Vec<u8>) {
    match packet {
        Packet::Raw { header, bytes } => (header, bytes),
        Packet::Real { flow, id, sequence, flags, length, size, verified } => {
            let length = usize::from(length).min(65_535 - flow.headers());
            let part = Part { id, sequence, flags, payload: payload(length, flags) };
            let (header, packet) = flow.super_packet(&part, size);
            if verified {
                let header = VnetHeader { needs_csum: false, csum_start: 0, csum_offset: 0, ..header };
                return (header.to_bytes(), flow.packet(&part));
            }
            (header.to_bytes(), packet)
        }
    }
}

fn written(segments: &Segments<'_>, i: usize) -> Vec<u8> {
    let mut out = vec![0xa5; segments.len(i)];
    segments.write(i, &mut out);
    out
}

/// One packet: nothing but its checksum may change.
fn check_single(header: &VnetHeader, packet: &[u8], segments: &Segments<'_>) {
    assert_eq!(segments.count(), 1);
    let out = written(segments, 0);
    if !header.needs_csum {
        assert_eq!(out, packet);
        return;
    }
    let start = usize::from(header.csum_start);
    let at = start + usize::from(header.csum_offset);
    let mut expected = packet.to_vec();
    let checksum = !sum(&packet[start..]);
    put(&mut expected, at, if checksum == 0 { 0xffff } else { checksum });
    assert_eq!(out, expected);
}

/// Where the transport header begins, of a packet that could be cut.
fn transport(header: &VnetHeader, packet: &[u8]) -> usize {
    match packet[0] >> 4 {
        4 => usize::from(packet[0] & 15) * 4,
        _ if header.needs_csum => usize::from(header.csum_start).max(40),
        _ => 40,
    }
}

fn number(header: &VnetHeader) -> u8 {
    if header.gso == Gso::Udp { 17 } else { 6 }
}

fn check_segments(header: &VnetHeader, packet: &[u8], segments: &Segments<'_>, summed: bool) {
    let start = transport(header, packet);
    let tcp = header.gso != Gso::Udp;
    let headers = start + if tcp { usize::from(packet[start + 12] >> 4) * 4 } else { 8 };
    let (size, count) = (usize::from(header.gso_size), segments.count());
    assert_eq!(count, (packet.len() - headers).div_ceil(size).max(1));
    // All of a long row would be looked at for minutes: the ends and some between are enough.
    let step = count.div_ceil(64);
    for i in (0..count).filter(|i| i % step == 0 || i + 1 == count) {
        let out = written(segments, i);
        let body = &packet[headers + i * size..packet.len().min(headers + (i + 1) * size)];
        assert_eq!(&out[headers..], body, "the payload of segment {i}");
        let mut unlike = packet[..headers].to_vec();
        if packet[0] >> 4 == 4 {
            assert_eq!(usize::from(word(&out, 2)), out.len());
            assert_eq!(word(&out, 4), word(packet, 4).wrapping_add(i as u16), "the identification counts on");
            assert_eq!(sum(&out[..start]), 0xffff, "the header's checksum");
            [2..6, 10..12].into_iter().for_each(|range| unlike[range.clone()].copy_from_slice(&out[range]));
        } else {
            assert_eq!(usize::from(word(&out, 4)), out.len() - 40);
            unlike[4..6].copy_from_slice(&out[4..6]);
        }
        if tcp {
            let sequence = |bytes: &[u8]| u32::from(word(bytes, start + 4)) << 16 | u32::from(word(bytes, start + 6));
            assert_eq!(sequence(&out), sequence(packet).wrapping_add((i * size) as u32));
            let first = if i == 0 { 0xff } else { !CWR };
            let last = if i + 1 == count { 0xff } else { !(FIN | PSH) };
            assert_eq!(out[start + 13], packet[start + 13] & first & last);
            [4..8, 13..14, 16..18].into_iter().for_each(|range| {
                let range = start + range.start..start + range.end;
                unlike[range.clone()].copy_from_slice(&out[range]);
            });
        } else {
            assert_eq!(usize::from(word(&out, start + 4)), out.len() - start);
            assert_ne!(word(&out, start + 6), 0, "it has a checksum");
            unlike[start + 4..start + 8].copy_from_slice(&out[start + 4..start + 8]);
        }
        assert_eq!(out[..headers], unlike, "the rest of the headers of segment {i}");
        if summed {
            assert_eq!(transport_sum(&out, start, number(header)), 0xffff, "the checksum of segment {i}");
        }
    }
}
