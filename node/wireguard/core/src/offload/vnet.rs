//! The header between a TUN device and its user: Linux's `virtio_net_hdr` of 10 bytes, in the host's byte order.

use thiserror::Error;

const NEEDS_CSUM: u8 = 1;
const GSO_NONE: u8 = 0;
const GSO_TCPV4: u8 = 1;
const GSO_TCPV6: u8 = 4;
const GSO_UDP_L4: u8 = 5;
/// Rides on TCP's types: the super-packet has CWR set, which belongs to its first segment alone.
const GSO_ECN: u8 = 0x80;

/// What a super-packet is cut into.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub enum Gso {
    /// Nothing: it is one packet.
    #[default]
    None,
    /// TCP segments over IPv4.
    TcpV4,
    /// TCP segments over IPv6.
    TcpV6,
    /// UDP datagrams over either.
    Udp,
}

/// What is known about the packet behind it. The default says: one packet, complete.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct VnetHeader {
    /// The checksum field holds the sum of the pseudo-header alone; the rest, from `csum_start` on, is to be added.
    pub needs_csum: bool,
    /// What to cut it into.
    pub gso: Gso,
    /// Bytes of all headers. Only a hint from the kernel, which may name more.
    pub hdr_len: u16,
    /// Payload bytes of every segment but the last.
    pub gso_size: u16,
    /// Where the checksummed part begins.
    pub csum_start: u16,
    /// Where the checksum lies, from `csum_start`.
    pub csum_offset: u16,
}

/// A TUN device hands over what it was not asked for.
#[derive(Clone, Copy, PartialEq, Eq, Error, Debug)]
#[error("super-packet of GSO type {0:#04x}; expected TCP or USO: set no other offload on the TUN device")]
pub struct UnknownGso(pub u8);

impl VnetHeader {
    /// Bytes on the wire.
    pub const LEN: usize = 10;

    /// Reads what the kernel wrote.
    pub fn parse(bytes: &[u8; Self::LEN]) -> Result<Self, UnknownGso> {
        let [flags, gso_type, rest @ ..] = *bytes;
        let gso = match gso_type {
            GSO_NONE => Gso::None,
            GSO_UDP_L4 => Gso::Udp,
            _ => match gso_type & !GSO_ECN {
                GSO_TCPV4 => Gso::TcpV4,
                GSO_TCPV6 => Gso::TcpV6,
                _ => return Err(UnknownGso(gso_type)),
            },
        };
        let field = |at: usize| u16::from_ne_bytes([rest[at], rest[at + 1]]);
        Ok(Self {
            needs_csum: flags & NEEDS_CSUM != 0,
            gso,
            hdr_len: field(0),
            gso_size: field(2),
            csum_start: field(4),
            csum_offset: field(6),
        })
    }

    /// What the kernel is to read.
    pub fn to_bytes(self) -> [u8; Self::LEN] {
        let gso_type = match self.gso {
            Gso::None => GSO_NONE,
            Gso::TcpV4 => GSO_TCPV4,
            Gso::TcpV6 => GSO_TCPV6,
            Gso::Udp => GSO_UDP_L4,
        };
        let [h0, h1] = self.hdr_len.to_ne_bytes();
        let [g0, g1] = self.gso_size.to_ne_bytes();
        let [s0, s1] = self.csum_start.to_ne_bytes();
        let [o0, o1] = self.csum_offset.to_ne_bytes();
        [u8::from(self.needs_csum), gso_type, h0, h1, g0, g1, s0, s1, o0, o1]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_written_is_read() {
        for gso in [Gso::None, Gso::TcpV4, Gso::TcpV6, Gso::Udp] {
            for needs_csum in [false, true] {
                let header =
                    VnetHeader { needs_csum, gso, hdr_len: 52, gso_size: 1368, csum_start: 20, csum_offset: 16 };
                assert_eq!(VnetHeader::parse(&header.to_bytes()), Ok(header));
            }
        }
    }

    #[test]
    fn ecn_rides_on_tcp_and_what_was_not_asked_for_is_refused() {
        let typed = |gso_type: u8| VnetHeader::parse(&[0, gso_type, 0, 0, 0, 0, 0, 0, 0, 0]).map(|header| header.gso);
        assert_eq!(typed(GSO_TCPV4 | GSO_ECN), Ok(Gso::TcpV4));
        assert_eq!(typed(GSO_TCPV6 | GSO_ECN), Ok(Gso::TcpV6));
        for unknown in [2, 3, 6, GSO_ECN, GSO_UDP_L4 | GSO_ECN, 0x10, 0x21, 0xff] {
            assert_eq!(typed(unknown), Err(UnknownGso(unknown)));
        }
    }
}
