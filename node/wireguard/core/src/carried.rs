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
