//! Packets of TCP and UDP over both versions of IP, and their checksums.

use arbitrary::Arbitrary;
use mesh_wireguard_core::offload::{Gso, VnetHeader};

pub const FIN: u8 = 0x01;
pub const PSH: u8 = 0x08;
pub const CWR: u8 = 0x80;

#[derive(Clone, Copy, PartialEq, Eq, Debug, Arbitrary)]
pub enum Kind {
    Tcp4,
    Tcp6,
    Udp4,
    Udp6,
}

/// What the packets of a flow have in common.
#[derive(Clone, Debug, Arbitrary)]
pub struct Flow {
    pub kind: Kind,
    pub host: u8,
    pub port: u8,
    pub tos: u8,
    pub ttl: u8,
    pub label: u16,
    pub dont_fragment: bool,
    pub ack: u32,
    pub window: u16,
    /// Words of TCP options; of these 0 to 10.
    pub options: u8,
}

/// What differs from packet to packet.
#[derive(Clone, Debug)]
pub struct Part {
    pub id: u16,
    pub sequence: u32,
    pub flags: u8,
    pub payload: Vec<u8>,
}

impl Kind {
    pub fn is_v4(self) -> bool {
        matches!(self, Self::Tcp4 | Self::Udp4)
    }

    pub fn is_tcp(self) -> bool {
        matches!(self, Self::Tcp4 | Self::Tcp6)
    }

    /// Where the transport header begins.
    pub fn start(self) -> usize {
        if self.is_v4() { 20 } else { 40 }
    }

    pub fn checksum_offset(self) -> usize {
        if self.is_tcp() { 16 } else { 6 }
    }

    pub fn gso(self) -> Gso {
        match self {
            Self::Tcp4 => Gso::TcpV4,
            Self::Tcp6 => Gso::TcpV6,
            Self::Udp4 | Self::Udp6 => Gso::Udp,
        }
    }

    fn number(self) -> u8 {
        if self.is_tcp() { 6 } else { 17 }
    }
}

impl Flow {
    /// Bytes of all headers.
    pub fn headers(&self) -> usize {
        self.kind.start() + if self.kind.is_tcp() { 20 + self.options().len() } else { 8 }
    }

    /// A packet with all its checksums; its payload fits in one.
    pub fn packet(&self, part: &Part) -> Vec<u8> {
        let transport = self.transport(part);
        let mut packet = self.network(part.id, transport.len());
        packet.extend(transport);
        seal(self.kind, &mut packet);
        packet
    }

    /// What the kernel hands over instead of many packets: the checksum field holds only the pseudo-header's sum.
    pub fn super_packet(&self, part: &Part, size: u16) -> (VnetHeader, Vec<u8>) {
        let mut packet = self.packet(part);
        let (start, offset) = (self.kind.start(), self.kind.checksum_offset());
        let sum = sum(&pseudo_header(&packet, start, self.kind.number()));
        put(&mut packet, start + offset, sum);
        let header = VnetHeader {
            needs_csum: true,
            gso: self.kind.gso(),
            hdr_len: self.headers() as u16,
            gso_size: size,
            csum_start: start as u16,
            csum_offset: offset as u16,
        };
        (header, packet)
    }

    fn options(&self) -> Vec<u8> {
        vec![1; usize::from(self.options % 11) * 4]
    }

    fn network(&self, id: u16, length: usize) -> Vec<u8> {
        let mut header = Vec::new();
        if self.kind.is_v4() {
            header.extend([0x45, self.tos]);
            header.extend((20 + length as u16).to_be_bytes());
            header.extend(id.to_be_bytes());
            header.extend(if self.dont_fragment { [0x40, 0] } else { [0, 0] });
            header.extend([self.ttl, self.kind.number(), 0, 0]);
            header.extend([10, 86, 0, self.host, 10, 86, 200, 1]);
        } else {
            header.extend((6 << 28 | u32::from(self.tos) << 20 | u32::from(self.label)).to_be_bytes());
            header.extend((length as u16).to_be_bytes());
            header.extend([self.kind.number(), self.ttl]);
            header.extend([0xfd, 0, 0, 86, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, self.host]);
            header.extend([0xfd, 0, 0, 86, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 1]);
        }
        header
    }

    fn transport(&self, part: &Part) -> Vec<u8> {
        let mut bytes = vec![0x9c, self.port, 0x14, 0x51];
        if self.kind.is_tcp() {
            let options = self.options();
            bytes.extend(part.sequence.to_be_bytes());
            bytes.extend(self.ack.to_be_bytes());
            bytes.extend([(5 + options.len() as u8 / 4) << 4, part.flags]);
            bytes.extend(self.window.to_be_bytes());
            bytes.extend([0; 4]);
            bytes.extend(options);
        } else {
            bytes.extend((8 + part.payload.len() as u16).to_be_bytes());
            bytes.extend([0; 2]);
        }
        bytes.extend(&part.payload);
        bytes
    }
}

/// Makes all checksums right.
pub fn seal(kind: Kind, packet: &mut [u8]) {
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
pub fn transport_sum(packet: &[u8], start: usize, number: u8) -> u16 {
    let mut summed = pseudo_header(packet, start, number);
    summed.extend(&packet[start..]);
    sum(&summed)
}

/// The pseudo-header of a packet whose transport header begins at `start`.
pub fn pseudo_header(packet: &[u8], start: usize, number: u8) -> Vec<u8> {
    let addresses = if packet[0] >> 4 == 4 { 12..20 } else { 8..40 };
    let mut bytes = packet[addresses].to_vec();
    bytes.extend(((packet.len() - start) as u32).to_be_bytes());
    bytes.extend([0, 0, 0, number]);
    bytes
}

/// The sum of big-endian words, as RFC 1071 writes it down.
pub fn sum(bytes: &[u8]) -> u16 {
    let words = bytes.chunks(2).map(|pair| u64::from(pair[0]) << 8 | pair.get(1).map_or(0, |byte| u64::from(*byte)));
    let mut sum: u64 = words.sum();
    while sum > 0xffff {
        sum = (sum >> 16) + (sum & 0xffff);
    }
    sum as u16
}

pub fn word(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([bytes[at], bytes[at + 1]])
}

pub fn put(packet: &mut [u8], at: usize, word: u16) {
    packet[at..at + 2].copy_from_slice(&word.to_be_bytes());
}

/// Some bytes that differ from place to place.
pub fn payload(length: usize, seed: u8) -> Vec<u8> {
    (0..length).map(|n| (n ^ n >> 8) as u8 ^ seed).collect()
}
