//! The checksums of IP, TCP and UDP.

use super::Kind;

/// Makes all checksums right.
pub(crate) fn seal(kind: Kind, packet: &mut [u8]) {
    let start = kind.start();
    if kind.is_v4() {
        put(packet, 10, 0);
        let sum = sum(&packet[..start]);
        put(packet, 10, !sum);
    }
    let at = start + kind.checksum_offset();
    put(packet, at, 0);
    let checksum = !transport_sum(packet, start, kind.number());
    put(packet, at, if checksum == 0 && !kind.is_tcp() { 0xffff } else { checksum });
}

/// The sum of the transport header, what is behind it, and the pseudo-header: 0xffff if the checksum is right.
pub(crate) fn transport_sum(packet: &[u8], start: usize, number: u8) -> u16 {
    let mut summed = pseudo_header(packet, start, number);
    summed.extend(&packet[start..]);
    sum(&summed)
}

/// The pseudo-header of a packet whose transport header begins at `start`. What begins before the fortieth byte is not
/// behind an IPv6 header, whatever the version says.
pub(crate) fn pseudo_header(packet: &[u8], start: usize, number: u8) -> Vec<u8> {
    let addresses = if start < 40 || packet[0] >> 4 == 4 { 12..20 } else { 8..40 };
    let mut bytes = packet[addresses].to_vec();
    bytes.extend(((packet.len() - start) as u32).to_be_bytes());
    bytes.extend([0, 0, 0, number]);
    bytes
}

/// The sum of big-endian words, as RFC 1071 writes it down.
pub(crate) fn sum(bytes: &[u8]) -> u16 {
    let (words, odd) = bytes.as_chunks();
    let mut sum: u64 = words.iter().map(|word| u64::from(u16::from_be_bytes(*word))).sum();
    sum += odd.first().map_or(0, |byte| u64::from(*byte) << 8);
    while sum > 0xffff {
        sum = (sum >> 16) + (sum & 0xffff);
    }
    sum as u16
}

pub(crate) fn word(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([bytes[at], bytes[at + 1]])
}

pub(crate) fn put(packet: &mut [u8], at: usize, word: u16) {
    packet[at..at + 2].copy_from_slice(&word.to_be_bytes());
}
