//! Super-packet in, packets out: what the kernel's software segmentation makes of it, byte by byte.
//!
//! All headers are looked at once; a [`Template`] then holds the sums of what is the same in every segment, so that a
//! segment costs one pass over its payload and a handful of additions. Lengths come from the bytes handed over, as in
//! the kernel, never from the length fields in them.

use super::checksum::Sum;
use super::ip::{self, MAX_LENGTH, double_word, put_double_word, put_word, tcp, udp, v4, v6, word};
use super::vnet::{Gso, VnetHeader};
use std::ops::Range;
use thiserror::Error;

/// A TUN device handed over what contradicts itself.
#[derive(Clone, Copy, PartialEq, Eq, Error, Debug)]
pub enum SplitError {
    /// The packet ends before what its headers speak of.
    #[error("packet of {length} bytes; its headers speak of {needed}")]
    Truncated {
        /// Bytes there would have to be.
        needed: usize,
        /// Bytes there are.
        length: usize,
    },
    /// A super-packet longer than an IP packet can be.
    #[error("super-packet of {0} bytes; the length field of IP ends at 65535")]
    TooLong(usize),
    /// A super-packet whose segments hold nothing.
    #[error("super-packet with gso_size 0")]
    NoSegmentSize,
    /// The packet is of another IP version or protocol than its virtio_net_hdr says.
    #[error("super-packet of {0:?} over another IP version or protocol")]
    OtherProtocol(Gso),
    /// An IP or TCP header that says it is shorter than it can be.
    #[error("header that says it has {0} bytes; an IPv4 or TCP header has at least 20")]
    ShortHeader(usize),
    /// The checksum is not where the protocol has it.
    #[error("csum_start and csum_offset of {named:?}, where the headers have {expected:?}")]
    MisplacedChecksum {
        /// As handed over.
        named: (usize, usize),
        /// As the headers have it.
        expected: (usize, usize),
    },
}

/// The packets that a super-packet, or a single packet, is cut into.
pub struct Segments<'a> {
    packet: &'a [u8],
    work: Work,
    /// Bytes of headers that every segment begins with.
    headers: usize,
    /// Payload bytes of every segment but the last.
    size: usize,
    count: usize,
}

/// What has to be done to a copy.
enum Work {
    Nothing,
    Complete { start: usize, at: usize },
    Segment(Template),
}

/// What all segments of a super-packet have in common.
struct Template {
    network: Network,
    /// Where the transport header begins.
    start: usize,
    protocol: Protocol,
    /// Of the pseudo-header and the transport header, without what differs from segment to segment.
    sum: Sum,
}

enum Network {
    /// With the sum of the header without what differs.
    V4 {
        sum: Sum,
        id: u16,
    },
    V6,
}

/// Where a segment is in its super-packet.
struct Position {
    index: usize,
    /// Payload bytes before it.
    offset: usize,
    last: bool,
}

enum Protocol {
    Tcp { sequence: u32, offset: u8, flags: u8 },
    Udp,
}

/// Looks at what a TUN device handed over and cuts it in thought: nothing is copied before [`Segments::write`].
pub fn split<'a>(header: &VnetHeader, packet: &'a [u8]) -> Result<Segments<'a>, SplitError> {
    if header.gso == Gso::None {
        return single(header, packet);
    }
    let start = transport_start(header, packet)?;
    let end = start + transport_header(header, packet, start)?;
    let size = usize::from(header.gso_size);
    if size == 0 {
        return Err(SplitError::NoSegmentSize);
    }
    let count = (packet.len() - end).div_ceil(size).max(1);
    let template = Template::new(header, packet, start, end);
    Ok(Segments { packet, work: Work::Segment(template), headers: end, size, count })
}

/// One packet, whose checksum may have to be completed.
fn single<'a>(header: &VnetHeader, packet: &'a [u8]) -> Result<Segments<'a>, SplitError> {
    let work = if header.needs_csum {
        let start = usize::from(header.csum_start);
        let at = start + usize::from(header.csum_offset);
        long_enough(packet, at + 2)?;
        Work::Complete { start, at }
    } else {
        Work::Nothing
    };
    Ok(Segments { packet, work, headers: 0, size: packet.len(), count: 1 })
}

/// Where the transport header of a super-packet begins.
fn transport_start(header: &VnetHeader, packet: &[u8]) -> Result<usize, SplitError> {
    match (packet.first().map(|byte| byte >> 4), header.gso) {
        (Some(4), Gso::TcpV4 | Gso::Udp) => behind_v4(header, packet),
        (Some(6), Gso::TcpV6 | Gso::Udp) => behind_v6(header, packet),
        _ => Err(SplitError::OtherProtocol(header.gso)),
    }
}

fn behind_v4(header: &VnetHeader, packet: &[u8]) -> Result<usize, SplitError> {
    long_enough(packet, v4::HEADER)?;
    let length = v4::header_length(packet[0]);
    if length < v4::HEADER {
        return Err(SplitError::ShortHeader(length));
    }
    if packet[v4::PROTOCOL] != protocol_number(header.gso) {
        return Err(SplitError::OtherProtocol(header.gso));
    }
    short_enough(packet, MAX_LENGTH)?;
    long_enough(packet, length)?;
    Ok(length)
}

/// Extension headers are repeated in every segment as they are. Only the kernel's `csum_start` says how far they reach.
fn behind_v6(header: &VnetHeader, packet: &[u8]) -> Result<usize, SplitError> {
    long_enough(packet, v6::HEADER)?;
    short_enough(packet, v6::HEADER + MAX_LENGTH)?;
    let start = usize::from(header.csum_start);
    if header.needs_csum && start > v6::HEADER {
        long_enough(packet, start)?;
        Ok(start)
    } else if packet[v6::NEXT_HEADER] == protocol_number(header.gso) {
        Ok(v6::HEADER)
    } else {
        Err(SplitError::OtherProtocol(header.gso))
    }
}

/// Bytes of the transport header, once it is known that all of it is there and its checksum where the kernel says.
fn transport_header(header: &VnetHeader, packet: &[u8], start: usize) -> Result<usize, SplitError> {
    let (length, checksum) = if header.gso == Gso::Udp {
        (udp::HEADER, udp::CHECKSUM)
    } else {
        long_enough(packet, start + tcp::HEADER)?;
        (tcp::header_length(packet[start + tcp::OFFSET]), tcp::CHECKSUM)
    };
    if header.gso != Gso::Udp && length < tcp::HEADER {
        return Err(SplitError::ShortHeader(length));
    }
    long_enough(packet, start + length)?;
    let named = (usize::from(header.csum_start), usize::from(header.csum_offset));
    if header.needs_csum && named != (start, checksum) {
        return Err(SplitError::MisplacedChecksum { named, expected: (start, checksum) });
    }
    Ok(length)
}

fn protocol_number(gso: Gso) -> u8 {
    if gso == Gso::Udp { ip::UDP } else { ip::TCP }
}

fn long_enough(packet: &[u8], needed: usize) -> Result<(), SplitError> {
    if packet.len() < needed { Err(SplitError::Truncated { needed, length: packet.len() }) } else { Ok(()) }
}

fn short_enough(packet: &[u8], longest: usize) -> Result<(), SplitError> {
    if packet.len() > longest { Err(SplitError::TooLong(packet.len())) } else { Ok(()) }
}

impl Segments<'_> {
    /// How many; at least one.
    pub fn count(&self) -> usize {
        self.count
    }

    /// Bytes of segment `i`: all but the last are equal.
    pub fn len(&self, i: usize) -> usize {
        self.headers + self.payload(i).len()
    }

    /// Writes segment `i`, complete with all its checksums, into `out`, which is exactly as long.
    pub fn write(&self, i: usize, out: &mut [u8]) {
        let payload = &self.packet[self.payload(i)];
        let (headers, body) = out.split_at_mut(self.headers);
        match &self.work {
            Work::Nothing => body.copy_from_slice(payload),
            Work::Complete { start, at } => {
                let (plain, summed) = body.split_at_mut(*start);
                plain.copy_from_slice(&payload[..*start]);
                let checksum = Sum::copying(&payload[*start..], summed).checksum();
                put_word(body, *at, never_zero(checksum));
            }
            Work::Segment(template) => {
                headers.copy_from_slice(&self.packet[..self.headers]);
                let sum = Sum::copying(payload, body);
                let last = i + 1 == self.count;
                template.fill(headers, Position { index: i, offset: i * self.size, last }, payload.len(), sum);
            }
        }
    }

    /// Where the payload of segment `i` lies in the super-packet.
    fn payload(&self, i: usize) -> Range<usize> {
        assert!(i < self.count, "one of the segments");
        let start = self.headers + i * self.size;
        start..self.packet.len().min(start + self.size)
    }
}

impl Template {
    fn new(header: &VnetHeader, packet: &[u8], start: usize, end: usize) -> Self {
        let (ip_header, transport) = (&packet[..start], &packet[start..end]);
        let v4 = packet[0] >> 4 == 4;
        let network = if v4 {
            let fixed = [v4::TOTAL_LENGTH, v4::ID, v4::CHECKSUM].map(|at| word(ip_header, at));
            Network::V4 { sum: fixed.into_iter().fold(Sum::of(ip_header), Sum::minus), id: word(ip_header, v4::ID) }
        } else {
            Network::V6
        };
        let (protocol, checksum, varying) = if header.gso == Gso::Udp {
            (Protocol::Udp, udp::CHECKSUM, [udp::LENGTH].as_slice())
        } else {
            let tcp = Protocol::Tcp {
                sequence: double_word(transport, tcp::SEQUENCE),
                offset: transport[tcp::OFFSET],
                flags: transport[tcp::FLAGS],
            };
            (tcp, tcp::CHECKSUM, [tcp::SEQUENCE, tcp::SEQUENCE + 2, tcp::OFFSET].as_slice())
        };
        let fixed = varying.iter().map(|at| word(transport, *at)).fold(Sum::of(transport), Sum::minus);
        let sum = if header.needs_csum {
            // The field holds the pseudo-header's sum, over the length of the whole super-packet.
            fixed.minus((packet.len() - start) as u16)
        } else {
            let addresses = &ip_header[if v4 { v4::ADDRESSES } else { v6::ADDRESSES }];
            let number = protocol_number(header.gso).into();
            fixed.minus(word(transport, checksum)).join(Sum::of(addresses)).plus(number)
        };
        Self { network, start, protocol, sum }
    }

    /// Makes the super-packet's headers those of one segment, whose payload has this length and sum.
    fn fill(&self, headers: &mut [u8], position: Position, payload: usize, sum: Sum) {
        let (ip_header, transport) = headers.split_at_mut(self.start);
        let length = (transport.len() + payload) as u16;
        match self.network {
            Network::V4 { sum, id } => {
                let total = self.start as u16 + length;
                let id = id.wrapping_add(position.index as u16);
                put_word(ip_header, v4::TOTAL_LENGTH, total);
                put_word(ip_header, v4::ID, id);
                put_word(ip_header, v4::CHECKSUM, sum.plus(total).plus(id).checksum());
            }
            Network::V6 => put_word(ip_header, v6::PAYLOAD_LENGTH, (self.start - v6::HEADER) as u16 + length),
        }
        let sum = self.sum.join(sum).plus(length);
        match self.protocol {
            Protocol::Tcp { sequence, offset: words, flags } => {
                let sequence = sequence.wrapping_add(position.offset as u32);
                let flags = if position.index == 0 { flags } else { flags & !tcp::CWR };
                let flags = if position.last { flags } else { flags & !(tcp::FIN | tcp::PSH) };
                put_double_word(transport, tcp::SEQUENCE, sequence);
                transport[tcp::FLAGS] = flags;
                let sum = sum.plus((sequence >> 16) as u16).plus(sequence as u16);
                let sum = sum.plus(u16::from_be_bytes([words, flags]));
                put_word(transport, tcp::CHECKSUM, sum.checksum());
            }
            Protocol::Udp => {
                put_word(transport, udp::LENGTH, length);
                put_word(transport, udp::CHECKSUM, never_zero(sum.plus(length).checksum()));
            }
        }
    }
}

/// Zero says "no checksum" in UDP; its other representation says the same sum in every protocol.
fn never_zero(checksum: u16) -> u16 {
    if checksum == 0 { 0xffff } else { checksum }
}
