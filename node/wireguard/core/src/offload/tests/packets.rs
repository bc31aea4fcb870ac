//! Packets as a careful reader of the RFCs would build them, with nothing of the code under test.

use crate::offload::{Capabilities, Gso, Joiner, Place, VnetHeader, split};
use proptest::prelude::*;

pub(super) const FIN: u8 = 0x01;
pub(super) const SYN: u8 = 0x02;
pub(super) const RST: u8 = 0x04;
pub(super) const PSH: u8 = 0x08;
pub(super) const ACK: u8 = 0x10;
pub(super) const URG: u8 = 0x20;
pub(super) const ECE: u8 = 0x40;
pub(super) const CWR: u8 = 0x80;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Kind {
    Tcp4,
    Tcp6,
    Udp4,
    Udp6,
}

pub(super) const KINDS: [Kind; 4] = [Kind::Tcp4, Kind::Tcp6, Kind::Udp4, Kind::Udp6];

/// What the packets of a flow have in common.
#[derive(Clone, Debug)]
pub(super) struct Flow {
    pub(super) kind: Kind,
    pub(super) host: u8,
    pub(super) port: u16,
    pub(super) tos: u8,
    pub(super) ttl: u8,
    pub(super) label: u32,
    pub(super) dont_fragment: bool,
    pub(super) ack: u32,
    pub(super) window: u16,
    pub(super) options: Vec<u8>,
}

/// What differs from packet to packet.
#[derive(Clone, Debug)]
pub(super) struct Part {
    pub(super) id: u16,
    pub(super) sequence: u32,
    pub(super) flags: u8,
    pub(super) payload: Vec<u8>,
}

impl Kind {
    pub(super) fn is_v4(self) -> bool {
        matches!(self, Self::Tcp4 | Self::Udp4)
    }

    pub(super) fn is_tcp(self) -> bool {
        matches!(self, Self::Tcp4 | Self::Tcp6)
    }

    /// Where the transport header begins.
    pub(super) fn start(self) -> usize {
        if self.is_v4() { 20 } else { 40 }
    }

    pub(super) fn checksum_offset(self) -> usize {
        if self.is_tcp() { 16 } else { 6 }
    }

    fn number(self) -> u8 {
        if self.is_tcp() { 6 } else { 17 }
    }

    pub(super) fn gso(self) -> Gso {
        match self {
            Self::Tcp4 => Gso::TcpV4,
            Self::Tcp6 => Gso::TcpV6,
            Self::Udp4 | Self::Udp6 => Gso::Udp,
        }
    }
}

impl Flow {
    pub(super) fn plain(kind: Kind) -> Self {
        Self {
            kind,
            host: 7,
            port: 40_000,
            tos: 0,
            ttl: 64,
            label: 0x1234,
            dont_fragment: true,
            ack: 77,
            window: 500,
            options: if kind.is_tcp() { vec![1, 1, 8, 10, 0, 0, 0, 1, 0, 0, 0, 2] } else { vec![] },
        }
    }

    /// Bytes of all headers.
    pub(super) fn headers(&self) -> usize {
        self.kind.start() + if self.kind.is_tcp() { 20 + self.options.len() } else { 8 }
    }

    /// A packet with all its checksums.
    pub(super) fn packet(&self, part: &Part) -> Vec<u8> {
        let transport = self.transport(part);
        let mut packet = self.network(part.id, transport.len());
        packet.extend(transport);
        seal(self.kind, &mut packet);
        packet
    }

    /// What the kernel hands over instead of many packets: the checksum field holds only the pseudo-header's sum.
    pub(super) fn super_packet(&self, part: &Part, size: usize) -> (VnetHeader, Vec<u8>) {
        let mut packet = self.packet(part);
        let start = self.kind.start();
        let sum = naive_sum(&pseudo_header(self.kind, &packet));
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
    pub(super) fn segments(&self, whole: &Part, size: usize) -> Vec<Vec<u8>> {
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

/// Makes all checksums right.
pub(super) fn seal(kind: Kind, packet: &mut [u8]) {
    let start = kind.start();
    if kind.is_v4() {
        put(packet, 10, 0);
        let sum = naive_sum(&packet[..start]);
        put(packet, 10, !sum);
    }
    let at = start + kind.checksum_offset();
    put(packet, at, 0);
    let mut summed = pseudo_header(kind, packet);
    summed.extend(&packet[start..]);
    let checksum = !naive_sum(&summed);
    put(packet, at, if checksum == 0 && !kind.is_tcp() { 0xffff } else { checksum });
}

pub(super) fn put(packet: &mut [u8], at: usize, word: u16) {
    packet[at..at + 2].copy_from_slice(&word.to_be_bytes());
}

/// The sum of big-endian words, as RFC 1071 writes it down.
pub(super) fn naive_sum(bytes: &[u8]) -> u16 {
    let words = bytes.chunks(2).map(|pair| u64::from(pair[0]) << 8 | pair.get(1).map_or(0, |byte| u64::from(*byte)));
    let mut sum: u64 = words.sum();
    while sum > 0xffff {
        sum = (sum >> 16) + (sum & 0xffff);
    }
    sum as u16
}

fn pseudo_header(kind: Kind, packet: &[u8]) -> Vec<u8> {
    let addresses = if kind.is_v4() { 12..20 } else { 8..40 };
    let length = (packet.len() - kind.start()) as u32;
    let mut bytes = packet[addresses].to_vec();
    bytes.extend(length.to_be_bytes());
    bytes.extend([0, 0, 0, kind.number()]);
    bytes
}

/// Some bytes that differ from place to place.
pub(super) fn payload(length: usize, seed: u64) -> Vec<u8> {
    let mut state = seed | 1;
    let next = |_| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 56) as u8
    };
    (0..length).map(next).collect()
}

/// All segments of what the kernel handed over.
pub(super) fn cut(header: &VnetHeader, packet: &[u8]) -> Vec<Vec<u8>> {
    let segments = split(header, packet).unwrap();
    let write = |i| {
        let mut out = vec![0xa5; segments.len(i)];
        segments.write(i, &mut out);
        out
    };
    (0..segments.count()).map(write).collect()
}

/// One write to the device.
#[derive(Clone, Debug)]
pub(super) struct Written {
    pub(super) header: VnetHeader,
    pub(super) packet: Vec<u8>,
    /// Which of the pushed packets are in it.
    pub(super) of: Vec<usize>,
}

pub(super) const ALL: Capabilities = Capabilities { tcp4: true, tcp6: true, udp: true };

/// What a fresh joiner makes of packets.
pub(super) fn join(packets: &[Vec<u8>]) -> Vec<Written> {
    join_with(&mut Joiner::new(ALL), packets)
}

pub(super) fn join_with(joiner: &mut Joiner, packets: &[Vec<u8>]) -> Vec<Written> {
    // Each packet lies somewhere in its buffer, as one that was decrypted in place.
    let buffers: Vec<Vec<u8>> = packets.iter().map(|packet| [&[0xee; 16], &packet[..], &[0xdd; 16]].concat()).collect();
    for (i, packet) in packets.iter().enumerate() {
        joiner.push(Place { buffer: i as u32, start: 16, len: packet.len() as u32 }, packet);
    }
    let mut written = Vec::new();
    joiner.drain(|group| {
        let header = VnetHeader::parse(&group.vnet().to_bytes()).unwrap();
        let mut packet = group.headers().to_vec();
        for place in group.payloads() {
            let (start, end) = (place.start as usize, (place.start + place.len) as usize);
            packet.extend(&buffers[place.buffer as usize][start..end]);
        }
        let of = group.payloads().iter().map(|place| place.buffer as usize).collect();
        written.push(Written { header, packet, of });
    });
    written
}

pub(super) fn any_kind() -> impl Strategy<Value = Kind> {
    proptest::sample::select(KINDS.to_vec())
}

pub(super) fn any_flow() -> impl Strategy<Value = Flow> {
    let common = (any_kind(), any::<u8>(), any::<u16>(), any::<u8>(), any::<u8>(), 0_u32..1 << 20, any::<bool>());
    let tcp = (any::<u32>(), any::<u16>(), proptest::collection::vec(any::<u8>(), 0..=40));
    (common, tcp).prop_map(|((kind, host, port, tos, ttl, label, dont_fragment), (ack, window, mut options))| {
        options.truncate(if kind.is_tcp() { options.len() / 4 * 4 } else { 0 });
        Flow { kind, host, port, tos, ttl, label, dont_fragment, ack, window, options }
    })
}
