//! One packet out of the tunnel, as far as it matters for joining: whose flow it is of, and whether it is a plain TCP
//! segment or UDP datagram that may share a super-packet.

use super::checksum::Sum;
use super::ip::{self, tcp, udp, v4, v6, word};
use super::join::Capabilities;
use super::vnet::Gso;

/// IPv4's flags and offset of a fragment: everything but "don't fragment" and the reserved bit.
const FRAGMENT: u16 = 0x3fff;

/// What goes alone: a connection's beginning and end, urgent data, and CWR, of which kernels with and without accurate
/// ECN make something else when they segment.
const ALONE: u8 = tcp::SYN | tcp::RST | tcp::URG | tcp::CWR;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Version {
    V4,
    V6,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Protocol {
    Tcp,
    Udp,
}

/// Which headers a packet has: those whose fields name its flow.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Layout {
    pub(super) version: Version,
    pub(super) protocol: Protocol,
}

/// A segment that may be joined: all its checksums are right.
#[derive(Clone, Copy, Debug)]
pub(super) struct Segment {
    pub(super) layout: Layout,
    /// Bytes of all headers.
    pub(super) headers: usize,
    /// Bytes behind them; at least one.
    pub(super) payload: usize,
}

impl Version {
    pub(super) fn of(packet: &[u8]) -> Option<Self> {
        match packet.first()? >> 4 {
            4 if packet.len() >= v4::HEADER => Some(Self::V4),
            6 if packet.len() >= v6::HEADER => Some(Self::V6),
            _ => None,
        }
    }

    /// Both addresses, of a header that is whole.
    pub(super) fn addresses(self, header: &[u8]) -> &[u8] {
        match self {
            Self::V4 => &header[v4::ADDRESSES],
            Self::V6 => &header[v6::ADDRESSES],
        }
    }
}

impl Layout {
    /// Of whatever has its ports where they are expected: no fragments, IP options or extension headers.
    pub(super) fn of(packet: &[u8]) -> Option<Self> {
        let version = Version::of(packet)?;
        let number = match version {
            Version::V4 if packet[0] != v4::PLAIN || word(packet, v4::FRAGMENT) & FRAGMENT != 0 => return None,
            Version::V4 => packet[v4::PROTOCOL],
            Version::V6 => packet[v6::NEXT_HEADER],
        };
        let protocol = match number {
            ip::TCP => Protocol::Tcp,
            ip::UDP => Protocol::Udp,
            _ => return None,
        };
        let layout = Self { version, protocol };
        (packet.len() >= layout.start() + udp::HEADER).then_some(layout)
    }

    /// Where the transport header begins.
    pub(super) fn start(self) -> usize {
        match self.version {
            Version::V4 => v4::HEADER,
            Version::V6 => v6::HEADER,
        }
    }

    /// The addresses and ports of a packet with these headers.
    pub(super) fn flow(self, packet: &[u8]) -> (&[u8], &[u8]) {
        let start = self.start();
        (self.version.addresses(packet), &packet[start..start + 4])
    }

    pub(super) fn number(self) -> u8 {
        match self.protocol {
            Protocol::Tcp => ip::TCP,
            Protocol::Udp => ip::UDP,
        }
    }

    pub(super) fn gso(self) -> Gso {
        match (self.protocol, self.version) {
            (Protocol::Tcp, Version::V4) => Gso::TcpV4,
            (Protocol::Tcp, Version::V6) => Gso::TcpV6,
            (Protocol::Udp, _) => Gso::Udp,
        }
    }

    /// Where the checksum lies, from the start of the transport header.
    pub(super) fn checksum(self) -> usize {
        match self.protocol {
            Protocol::Tcp => tcp::CHECKSUM,
            Protocol::Udp => udp::CHECKSUM,
        }
    }

    /// Of the pseudo-header, for so many bytes from the transport header on.
    pub(super) fn pseudo_header(self, header: &[u8], length: usize) -> Sum {
        Sum::of(self.version.addresses(header)).plus(self.number().into()).plus(length as u16)
    }

    fn wanted(self, capabilities: Capabilities) -> bool {
        match self.gso() {
            Gso::TcpV4 => capabilities.tcp4,
            Gso::TcpV6 => capabilities.tcp6,
            Gso::Udp => capabilities.udp,
            Gso::None => false,
        }
    }
}

impl Segment {
    /// The segment in a packet with these headers, unless it must go alone.
    pub(super) fn of(layout: Layout, packet: &[u8], capabilities: Capabilities) -> Option<Self> {
        if !layout.wanted(capabilities) || !network_is_plain(layout.version, packet) {
            return None;
        }
        let transport = &packet[layout.start()..];
        let header = match layout.protocol {
            Protocol::Tcp => plain_tcp(transport)?,
            Protocol::Udp => plain_udp(transport)?,
        };
        let payload = transport.len().checked_sub(header).filter(|payload| *payload > 0)?;
        // Addresses and transport header are neighbours in both versions: one sum over both.
        let addresses = layout.version.addresses(packet);
        let summed = &packet[layout.start() - addresses.len()..];
        let sum = Sum::of(summed).plus(layout.number().into()).plus(transport.len() as u16);
        (sum.fold() == 0xffff).then_some(Self { layout, headers: layout.start() + header, payload })
    }
}

/// Its length is true, and so is the checksum, if it has one.
fn network_is_plain(version: Version, packet: &[u8]) -> bool {
    match version {
        Version::V4 => {
            usize::from(word(packet, v4::TOTAL_LENGTH)) == packet.len()
                && Sum::of(&packet[..v4::HEADER]).fold() == 0xffff
        }
        Version::V6 => usize::from(word(packet, v6::PAYLOAD_LENGTH)) == packet.len() - v6::HEADER,
    }
}

/// Bytes of the header of a TCP segment in the middle of a connection.
fn plain_tcp(transport: &[u8]) -> Option<usize> {
    let (offset, flags) = (*transport.get(tcp::OFFSET)?, *transport.get(tcp::FLAGS)?);
    let length = tcp::header_length(offset);
    (length >= tcp::HEADER && flags & tcp::ACK != 0 && flags & ALONE == 0).then_some(length)
}

/// Bytes of the header of a UDP datagram that has a checksum.
fn plain_udp(transport: &[u8]) -> Option<usize> {
    let whole = usize::from(word(transport, udp::LENGTH)) == transport.len();
    (whole && word(transport, udp::CHECKSUM) != 0).then_some(udp::HEADER)
}
