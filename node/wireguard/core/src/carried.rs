//! The IP packet that a data message carries, as far as a tunnel looks into it.

use crate::offload::checksum::Sum;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// The packet's source and length, without WireGuard's padding; `None` if it is no IP packet.
#[inline]
pub fn source_and_length(packet: &[u8]) -> Option<(IpAddr, usize)> {
    let (source, length): (IpAddr, usize) = match packet.first()? >> 4 {
        4 => {
            let header = packet.first_chunk::<20>()?;
            let source = Ipv4Addr::from(*header[12..].first_chunk::<4>()?);
            (source.into(), u16::from_be_bytes([header[2], header[3]]).into())
        }
        6 => {
            let header = packet.first_chunk::<40>()?;
            let source = Ipv6Addr::from(*header[8..].first_chunk::<16>()?);
            (source.into(), usize::from(u16::from_be_bytes([header[4], header[5]])) + 40)
        }
        _ => return None,
    };
    (length >= 20 && length <= packet.len()).then_some((source, length))
}

/// What a UDP packet carries, as far as it is there: of a packet in fragments the beginning, in the first of them. `None`
/// for any other packet.
#[inline]
pub fn udp_payload(packet: &[u8]) -> Option<&[u8]> {
    const UDP: u8 = 17;
    const FRAGMENT: u8 = 44;
    let payload = match packet.first()? >> 4 {
        4 => {
            let header = packet.first_chunk::<20>()?;
            let is_first = u16::from_be_bytes([header[6], header[7]]) & 0x1fff == 0;
            (header[9] == UDP && is_first).then_some(usize::from(header[0] & 0xf) * 4)
        }
        6 => {
            let header = packet.first_chunk::<40>()?;
            match header[6] {
                UDP => Some(40),
                FRAGMENT => {
                    let fragment = packet[40..].first_chunk::<8>()?;
                    let is_first = u16::from_be_bytes([fragment[2], fragment[3]]) & 0xfff8 == 0;
                    (fragment[0] == UDP && is_first).then_some(48)
                }
                _ => None,
            }
        }
        _ => None,
    }?;
    packet.get(payload + 8..)
}

/// Congestion that the outer packet met, by the ECN field that it came with, is told to the inner one, if that understands
/// it (RFC 6040). One that does not is left as it is rather than dropped, as WireGuard does it everywhere.
///
/// `packet` has the whole header that [`source_and_length`] asks for.
#[inline]
pub fn mark_congestion(packet: &mut [u8], outer: u8) {
    const CE: u8 = 3;
    if outer != CE {
        return;
    }
    if packet[0] >> 4 == 4 {
        let before = u16::from_be_bytes([packet[0], packet[1]]);
        if packet[1] & CE == 0 {
            return;
        }
        packet[1] |= CE;
        let after = u16::from_be_bytes([packet[0], packet[1]]);
        let sum = u16::from_be_bytes([packet[10], packet[11]]);
        // RFC 1624.
        let sum = Sum::default().plus(!sum).minus(before).plus(after).checksum();
        packet[10..12].copy_from_slice(&sum.to_be_bytes());
    } else if (packet[1] >> 4) & CE != 0 {
        packet[1] |= CE << 4;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn padding_is_cut_off_and_nonsense_is_no_packet() {
        let mut v4 = [0; 48];
        v4[0] = 0x45;
        v4[3] = 33;
        v4[12..16].copy_from_slice(&[10, 0, 0, 7]);
        assert_eq!(source_and_length(&v4), Some(("10.0.0.7".parse().unwrap(), 33)));
        v4[3] = 49;
        assert_eq!(source_and_length(&v4), None, "longer than what came");
        v4[3] = 19;
        assert_eq!(source_and_length(&v4), None, "shorter than its header");
        assert_eq!(source_and_length(&[]), None);
        assert_eq!(source_and_length(&[0x60; 39]), None);
        assert_eq!(source_and_length(&[0x10; 60]), None);
    }

    #[test]
    fn the_payload_of_udp_is_found_in_whole_packets_and_first_fragments_alone() {
        let v4 = |protocol: u8, header: u8, offset: [u8; 2]| {
            let mut packet = vec![0; 64];
            (packet[0], packet[9]) = (0x40 | header, protocol);
            packet[6..8].copy_from_slice(&offset);
            packet[usize::from(header) * 4 + 8] = 7;
            packet
        };
        for (packet, payload) in [
            (v4(17, 5, [0, 0]), Some(36)),
            (v4(17, 8, [0x40, 0]), Some(24)),
            (v4(17, 5, [0x20, 0]), Some(36)),
            (v4(17, 5, [0x20, 1]), None),
            (v4(6, 5, [0, 0]), None),
        ] {
            assert_eq!(udp_payload(&packet).map(|payload| (payload[0], payload.len())), payload.map(|len| (7, len)));
        }
        let v6 = |next: u8, fragment: [u8; 4], at: usize| {
            let mut packet = vec![0; 64];
            (packet[0], packet[6]) = (0x60, next);
            packet[40..44].copy_from_slice(&fragment);
            packet[at] = 7;
            packet
        };
        for (packet, payload) in [
            (v6(17, [0; 4], 48), Some(16)),
            (v6(44, [17, 0, 0, 1], 56), Some(8)),
            (v6(44, [17, 0, 0, 8], 56), None),
            (v6(44, [6, 0, 0, 1], 56), None),
            (v6(6, [0; 4], 48), None),
        ] {
            assert_eq!(udp_payload(&packet).map(|payload| (payload[0], payload.len())), payload.map(|len| (7, len)));
        }
        for packet in [v4(17, 5, [0, 0]), v4(17, 13, [0, 0]), v6(17, [0; 4], 48), v6(44, [17, 0, 0, 0], 56)] {
            (0..28).for_each(|length| assert_eq!(udp_payload(&packet[..length]), None, "{length}"));
        }
    }

    #[test]
    fn congestion_marks_only_what_understands_it() {
        for (inner, outer, expected) in [(0u8, 3u8, 0u8), (1, 3, 3), (2, 3, 3), (3, 3, 3), (2, 1, 2), (1, 0, 1)] {
            let mut v4 = [0u8; 20];
            (v4[0], v4[1]) = (0x45, 0xb8 | inner);
            let before = v4;
            mark_congestion(&mut v4, outer);
            assert_eq!(v4[1], 0xb8 | expected, "{inner} in {outer}");
            assert_eq!(v4[10..12] != before[10..12], inner != expected, "its checksum follows");
            let mut v6 = [0u8; 40];
            (v6[0], v6[1]) = (0x6b, 0x8f | inner << 4);
            mark_congestion(&mut v6, outer);
            assert_eq!((v6[1] >> 4) & 3, expected, "{inner} in {outer}");
        }
    }
}
