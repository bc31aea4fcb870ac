//! What must hold of whatever is cut, whoever draws it.

use super::sums::{put, sum, transport_sum, word};
use super::{CWR, FIN, Flow, PSH, Part};
use mesh_wireguard_core::offload::{Gso, Segments, VnetHeader, split};

/// All segments of what the kernel handed over.
pub(crate) fn cut(header: &VnetHeader, packet: &[u8]) -> Vec<Vec<u8>> {
    let segments = split(header, packet).expect("it can be cut");
    (0..segments.count()).map(|i| segment(&segments, i)).collect()
}

fn segment(segments: &Segments<'_>, i: usize) -> Vec<u8> {
    let mut out = vec![0xa5; segments.len(i)];
    segments.write(i, &mut out);
    out
}

/// A real super-packet is cut into what a reader of the RFCs would make of it, which is returned.
pub(crate) fn check_real(flow: &Flow, whole: &Part, size: usize) -> Vec<Vec<u8>> {
    let (header, packet) = flow.super_packet(whole, size);
    let expected = flow.segments(whole, size);
    assert_eq!(cut(&header, &packet), expected);
    expected
}

/// Whatever is cut holds the payload it held before, in headers and with checksums that an independent reader finds right:
/// the transport's only if it was `summed` as the kernel does.
pub(crate) fn check_cut(header: &VnetHeader, packet: &[u8], summed: bool) {
    let Ok(segments) = split(header, packet) else { return };
    if header.gso == Gso::None {
        check_single(header, packet, &segments);
    } else {
        check_segments(header, packet, &segments, summed);
    }
}

/// One packet: nothing but its checksum may change.
fn check_single(header: &VnetHeader, packet: &[u8], segments: &Segments<'_>) {
    assert_eq!(segments.count(), 1);
    let mut expected = packet.to_vec();
    if header.needs_csum {
        let start = usize::from(header.csum_start);
        let checksum = !sum(&packet[start..]);
        put(&mut expected, start + usize::from(header.csum_offset), if checksum == 0 { 0xffff } else { checksum });
    }
    assert_eq!(segment(segments, 0), expected);
}

/// Where the transport header begins, of a packet that could be cut.
pub(crate) fn transport(header: &VnetHeader, packet: &[u8]) -> usize {
    match packet[0] >> 4 {
        4 => usize::from(packet[0] & 15) * 4,
        _ if header.needs_csum => usize::from(header.csum_start).max(40),
        _ => 40,
    }
}

/// The number of the protocol that a super-packet is of.
pub(crate) fn number(header: &VnetHeader) -> u8 {
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
        let out = segment(segments, i);
        let body = &packet[headers + i * size..packet.len().min(headers + (i + 1) * size)];
        assert_eq!(&out[headers..], body, "the payload of segment {i}");
        let mut unlike = packet[..headers].to_vec();
        check_network(&out, &mut unlike, start, i);
        if tcp {
            check_tcp(&out[start..], &mut unlike[start..], i * size, (i == 0, i + 1 == count));
        } else {
            check_udp(&out[start..], &mut unlike[start..]);
        }
        assert_eq!(out[..headers], unlike, "the rest of the headers of segment {i}");
        if summed {
            assert_eq!(transport_sum(&out, start, number(header)), 0xffff, "the checksum of segment {i}");
        }
    }
}

/// The IP header of segment `i`, against the super-packet's headers. What was looked at is made equal in these.
fn check_network(out: &[u8], headers: &mut [u8], start: usize, i: usize) {
    if headers[0] >> 4 == 4 {
        assert_eq!(usize::from(word(out, 2)), out.len());
        assert_eq!(word(out, 4), word(headers, 4).wrapping_add(i as u16), "the identification counts on");
        assert_eq!(sum(&out[..start]), 0xffff, "the header's checksum");
        [2..6, 10..12].into_iter().for_each(|range| headers[range.clone()].copy_from_slice(&out[range]));
    } else {
        assert_eq!(usize::from(word(out, 4)), out.len() - 40);
        headers[4..6].copy_from_slice(&out[4..6]);
    }
}

/// A segment so many bytes into the super-packet, which is its first, its last, both or neither.
fn check_tcp(out: &[u8], header: &mut [u8], offset: usize, (first, last): (bool, bool)) {
    let sequence = |bytes: &[u8]| u32::from(word(bytes, 4)) << 16 | u32::from(word(bytes, 6));
    assert_eq!(sequence(out), sequence(header).wrapping_add(offset as u32));
    let kept = if first { 0xff } else { !CWR } & if last { 0xff } else { !(FIN | PSH) };
    assert_eq!(out[13], header[13] & kept, "CWR is the first's, FIN and PSH are the last's");
    [4..8, 13..14, 16..18].into_iter().for_each(|range| header[range.clone()].copy_from_slice(&out[range]));
}

fn check_udp(out: &[u8], header: &mut [u8]) {
    assert_eq!(usize::from(word(out, 4)), out.len());
    assert_ne!(word(out, 6), 0, "it has a checksum");
    header[4..8].copy_from_slice(&out[4..8]);
}
