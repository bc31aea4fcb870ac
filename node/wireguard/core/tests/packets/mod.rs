//! Packets of TCP and UDP over both versions of IP, as a careful reader of the RFCs would build and judge them, with nothing
//! of the code under test.

pub(crate) mod cutting;
pub(crate) mod sums;

use mesh_wireguard_core::offload::{Gso, VnetHeader};
use sums::{pseudo_header, put, seal, sum};

pub(crate) const FIN: u8 = 0x01;
pub(crate) const PSH: u8 = 0x08;
pub(crate) const CWR: u8 = 0x80;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Kind {
    Tcp4,
    Tcp6,
    Udp4,
    Udp6,
}

pub(crate) const KINDS: [Kind; 4] = [Kind::Tcp4, Kind::Tcp6, Kind::Udp4, Kind::Udp6];

/// What the packets of a flow have in common.
#[derive(Clone, Debug)]
pub(crate) struct Flow {
    pub(crate) kind: Kind,
    pub(crate) host: u8,
    pub(crate) port: u16,
    pub(crate) tos: u8,
    pub(crate) ttl: u8,
    pub(crate) label: u32,
    pub(crate) dont_fragment: bool,
    pub(crate) ack: u32,
    pub(crate) window: u16,
    /// Of TCP, in whole words.
    pub(crate) options: Vec<u8>,
}

/// What differs from packet to packet.
#[derive(Clone, Debug)]
pub(crate) struct Part {
    pub(crate) id: u16,
    pub(crate) sequence: u32,
    pub(crate) flags: u8,
    pub(crate) payload: Vec<u8>,
}

impl Kind {
    pub(crate) fn is_v4(self) -> bool {
        matches!(self, Self::Tcp4 | Self::Udp4)
    }

    pub(crate) fn is_tcp(self) -> bool {
        matches!(self, Self::Tcp4 | Self::Tcp6)
    }

    /// Where the transport header begins.
    pub(crate) fn start(self) -> usize {
        if self.is_v4() { 20 } else { 40 }
    }

    pub(crate) fn checksum_offset(self) -> usize {
        if self.is_tcp() { 16 } else { 6 }
    }

    /// The protocol's number.
    pub(crate) fn number(self) -> u8 {
        if self.is_tcp() { 6 } else { 17 }
    }

    pub(crate) fn gso(self) -> Gso {
        match self {
            Self::Tcp4 => Gso::TcpV4,
            Self::Tcp6 => Gso::TcpV6,
            Self::Udp4 | Self::Udp6 => Gso::Udp,
        }
    }
}

impl Flow {
    /// Bytes of all headers.
    pub(crate) fn headers(&self) -> usize {
        self.kind.start() + if self.kind.is_tcp() { 20 + self.options.len() } else { 8 }
    }

    /// A packet with all its checksums; its payload fits in one.
    pub(crate) fn packet(&self, part: &Part) -> Vec<u8> {
        let transport = self.transport(part);
        let mut packet = self.network(part.id, transport.len());
        packet.extend(transport);
        seal(self.kind, &mut packet);
        packet
    }

    /// What the kernel hands over instead of many packets: the checksum field holds only the pseudo-header's sum.
    pub(crate) fn super_packet(&self, part: &Part, size: usize) -> (VnetHeader, Vec<u8>) {
        let mut packet = self.packet(part);
        let start = self.kind.start();
        let sum = sum(&pseudo_header(&packet, start, self.kind.number()));
        put(&mut packet, start + self.kind.checksum_offset(), sum);
        let header = VnetHeader {
            needs_csum: true,
            gso: self.kind.gso(),
            hdr_len: self.headers() as u16,
            gso_size: size as u16,
            csum_start: start as u16,
            csum_offset: self.kind.checksum_offset() as u16,
        };
        (header, packet)
    }

    /// What a super-packet of this is to be cut into.
    pub(crate) fn segments(&self, whole: &Part, size: usize) -> Vec<Vec<u8>> {
        let chunks: Vec<&[u8]> = whole.payload.chunks(size).collect();
        let last = chunks.len() - 1;
        let of = |(i, chunk): (usize, &&[u8])| {
            let first = if i == 0 { 0xff } else { !CWR };
            let middle = if i == last { 0xff } else { !(FIN | PSH) };
            self.packet(&Part {
                id: whole.id.wrapping_add(i as u16),
                sequence: whole.sequence.wrapping_add((i * size) as u32),
                flags: whole.flags & first & middle,
                payload: chunk.to_vec(),
            })
        };
        chunks.iter().enumerate().map(of).collect()
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
            header.extend((6 << 28 | u32::from(self.tos) << 20 | self.label).to_be_bytes());
            header.extend((length as u16).to_be_bytes());
            header.extend([self.kind.number(), self.ttl]);
            header.extend([0xfd, 0, 0, 86, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, self.host]);
            header.extend([0xfd, 0, 0, 86, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 1]);
        }
        header
    }

    fn transport(&self, part: &Part) -> Vec<u8> {
        let mut bytes = Vec::new();
        bytes.extend(self.port.to_be_bytes());
        bytes.extend(5201_u16.to_be_bytes());
        if self.kind.is_tcp() {
            bytes.extend(part.sequence.to_be_bytes());
            bytes.extend(self.ack.to_be_bytes());
            bytes.extend([(5 + self.options.len() as u8 / 4) << 4, part.flags]);
            bytes.extend(self.window.to_be_bytes());
            bytes.extend([0; 4]);
            bytes.extend(&self.options);
        } else {
            bytes.extend((8 + part.payload.len() as u16).to_be_bytes());
            bytes.extend([0; 2]);
        }
        bytes.extend(&part.payload);
        bytes
    }
}

/// Some bytes that differ from place to place.
pub(crate) fn payload(length: usize, seed: u64) -> Vec<u8> {
    let mut state = seed | 1;
    let next = |_| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 56) as u8
    };
    (0..length).map(next).collect()
}
