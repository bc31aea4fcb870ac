//! Packets in, super-packets out: what the kernel's GRO makes of them, with its rules.
//!
//! Consecutive segments of a flow whose headers differ in nothing but what segmentation makes them differ in are one
//! group. Whatever else comes of a flow ends its group, so that nothing overtakes within a flow; flows do not wait for
//! each other. No payload is copied: a group names places, and carries headers of its own.

use super::checksum::Sum;
use super::ip::{MAX_LENGTH, double_word, put_word, tcp, udp, v4, v6, word};
use super::segment::{Layout, Protocol, Segment, Version};
use super::vnet::VnetHeader;
use std::ops::Range;

/// Packets in one group: what the kernel takes of UDP (`UDP_GRO_CNT_MAX`), and a `writev` with room in its 1,024 parts.
pub const MAX_JOINED: usize = 64;

/// Flows whose groups may grow at once, as many as in one of the kernel's GRO buckets: more would be looked through for
/// every packet.
const MAX_OPEN: usize = 8;

/// An IPv6 header and the longest TCP header.
const MAX_HEADERS: usize = v6::HEADER + 60;

/// What the TUN device accepts super-packets of.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Capabilities {
    /// TCP over IPv4 (`TUN_F_TSO4`).
    pub tcp4: bool,
    /// TCP over IPv6 (`TUN_F_TSO6`).
    pub tcp6: bool,
    /// UDP over both (`TUN_F_USO4` and `TUN_F_USO6`, since Linux 6.2).
    pub udp: bool,
}

/// Bytes in one of the caller's buffers.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Place {
    /// Which buffer, in the caller's count.
    pub buffer: u32,
    /// Where they begin.
    pub start: u32,
    /// How many.
    pub len: u32,
}

/// One write to the TUN device: the bytes of `vnet`, then `headers`, then what lies at `payloads`, in order.
pub struct Group {
    /// The whole packet as long as it is alone, then the payload of each.
    payloads: Vec<Place>,
    /// Of the first packet, until they are made those of all.
    headers: [u8; MAX_HEADERS],
    /// What was joined, or could have been.
    first: Option<Segment>,
    /// Bytes of headers and payloads.
    length: usize,
    /// From packet to packet: one, or none where nothing can be a fragment.
    id_step: u16,
}

/// Joins packets that were decrypted one after the other. It keeps its storage, so that a steady state allocates nothing.
pub struct Joiner {
    capabilities: Capabilities,
    groups: Vec<Group>,
    /// How many of them are in use.
    used: usize,
    /// Those which may still grow, the longest open first; each of another flow.
    open: Vec<usize>,
}

impl Joiner {
    /// With nothing in it.
    pub fn new(capabilities: Capabilities) -> Self {
        Self { capabilities, groups: Vec::new(), used: 0, open: Vec::with_capacity(MAX_OPEN) }
    }

    /// Takes the next packet: `packet` are the bytes at `place`, without any padding behind them.
    pub fn push(&mut self, place: Place, packet: &[u8]) {
        let Some(layout) = Layout::of(packet) else {
            self.close_between(packet);
            self.add(place);
            return;
        };
        let segment = Segment::of(layout, packet, self.capabilities);
        let open = self.open.iter().rposition(|group| self.groups[*group].is_of(layout, packet));
        if let (Some(at), Some(segment)) = (open, segment) {
            let group = &mut self.groups[self.open[at]];
            if group.accepts(&segment, packet) {
                group.join(segment, place, packet);
                if group.is_complete() {
                    self.open.remove(at);
                }
                return;
            }
        }
        if let Some(at) = open {
            self.open.remove(at);
        }
        let group = self.add(place);
        if let Some(segment) = segment {
            self.groups[group].begin(segment, packet);
            self.open(group);
        }
    }

    /// Hands out everything, in the order in which the first packets of the groups came, and is empty.
    pub fn drain(&mut self, mut write: impl FnMut(&Group)) {
        for group in &mut self.groups[..self.used] {
            group.finish();
            write(group);
        }
        self.used = 0;
        self.open.clear();
    }

    /// A new group of a packet that is alone so far.
    fn add(&mut self, place: Place) -> usize {
        if self.used == self.groups.len() {
            self.groups.push(Group::new());
        }
        let group = self.used;
        self.groups[group].reset(place);
        self.used += 1;
        group
    }

    fn open(&mut self, group: usize) {
        if self.groups[group].is_complete() {
            return;
        }
        if self.open.len() == MAX_OPEN {
            self.open.remove(0);
        }
        self.open.push(group);
    }

    /// A packet that hides its ports may be of any flow between its addresses.
    fn close_between(&mut self, packet: &[u8]) {
        let Some(version) = Version::of(packet) else { return };
        let addresses = version.addresses(packet);
        self.open.retain(|group| !self.groups[*group].is_between(version, addresses));
    }
}

impl Group {
    /// Goes first.
    pub fn vnet(&self) -> VnetHeader {
        match self.joined() {
            Some(first) => VnetHeader {
                needs_csum: true,
                gso: first.layout.gso(),
                hdr_len: first.headers as u16,
                gso_size: first.payload as u16,
                csum_start: first.layout.start() as u16,
                csum_offset: first.layout.checksum() as u16,
            },
            None => VnetHeader::default(),
        }
    }

    /// The headers of a super-packet; empty for a packet that goes out alone and unchanged.
    pub fn headers(&self) -> &[u8] {
        self.joined().map_or(&[], |first| &self.headers[..first.headers])
    }

    /// The payloads of a super-packet; the whole packet if it goes out alone. At most [`MAX_JOINED`].
    pub fn payloads(&self) -> &[Place] {
        &self.payloads
    }

    fn new() -> Self {
        Self { payloads: Vec::new(), headers: [0; MAX_HEADERS], first: None, length: 0, id_step: 0 }
    }

    fn reset(&mut self, place: Place) {
        self.first = None;
        self.payloads.clear();
        self.payloads.push(place);
    }

    /// The first of several.
    fn joined(&self) -> Option<&Segment> {
        self.first.as_ref().filter(|_| self.payloads.len() > 1)
    }

    fn begin(&mut self, segment: Segment, packet: &[u8]) {
        self.headers[..segment.headers].copy_from_slice(&packet[..segment.headers]);
        self.length = packet.len();
        self.first = Some(segment);
    }

    fn is_of(&self, layout: Layout, packet: &[u8]) -> bool {
        self.first.is_some_and(|first| first.layout == layout) && layout.flow(&self.headers) == layout.flow(packet)
    }

    fn is_between(&self, version: Version, addresses: &[u8]) -> bool {
        self.first.is_some_and(|first| first.layout.version == version) && version.addresses(&self.headers) == addresses
    }

    /// Nothing can follow: it is full, or the last packet says so by its flags or by being shorter.
    fn is_complete(&self) -> bool {
        let Some(first) = &self.first else { return true };
        let ends = match first.layout.protocol {
            Protocol::Tcp => self.headers[first.layout.start() + tcp::FLAGS] & (tcp::FIN | tcp::PSH) != 0,
            Protocol::Udp => false,
        };
        let short = self.length - first.headers < self.payloads.len() * first.payload;
        ends || short || self.payloads.len() == MAX_JOINED
    }

    /// Whether a segment of the same flow is the next one, as segmentation would make it.
    fn accepts(&self, segment: &Segment, packet: &[u8]) -> bool {
        let Some(first) = &self.first else { return false };
        segment.headers == first.headers
            && segment.payload <= first.payload
            && self.length + segment.payload <= MAX_LENGTH
            && self.continues_network(segment.layout.version, packet)
            && self.continues_transport(segment, packet)
    }

    fn continues_network(&self, version: Version, packet: &[u8]) -> bool {
        let same = |range: Range<usize>| self.headers[range.clone()] == packet[range];
        match version {
            Version::V4 => same(v4::VERSION_TO_TOS) && same(v4::FRAGMENT_TO_PROTOCOL) && self.continues_id(packet),
            Version::V6 => same(v6::VERSION_TO_LABEL) && same(v6::NEXT_HEADER_TO_HOPS),
        }
    }

    /// Segmentation counts on by one. A packet that cannot be a fragment may also repeat its identification, which then
    /// has no meaning (RFC 6864, 4.1).
    fn continues_id(&self, packet: &[u8]) -> bool {
        match (self.payloads.len(), self.id_distance(packet)) {
            (1, 1) => true,
            (1, 0) => word(packet, v4::FRAGMENT) & v4::DONT_FRAGMENT != 0,
            (1, _) => false,
            (count, distance) => distance == self.id_step * count as u16,
        }
    }

    fn id_distance(&self, packet: &[u8]) -> u16 {
        word(packet, v4::ID).wrapping_sub(word(&self.headers, v4::ID))
    }

    fn continues_transport(&self, segment: &Segment, packet: &[u8]) -> bool {
        let range = segment.layout.start()..segment.headers;
        let (ours, next) = (&self.headers[range.clone()], &packet[range]);
        match segment.layout.protocol {
            Protocol::Tcp => {
                let payload = (self.length - segment.headers) as u32;
                let sequence = double_word(ours, tcp::SEQUENCE).wrapping_add(payload);
                let flags = (ours[tcp::FLAGS] ^ next[tcp::FLAGS]) & !(tcp::FIN | tcp::PSH);
                double_word(next, tcp::SEQUENCE) == sequence
                    && flags == 0
                    && ours[tcp::ACKNOWLEDGEMENT_TO_OFFSET] == next[tcp::ACKNOWLEDGEMENT_TO_OFFSET]
                    && ours[tcp::WINDOW] == next[tcp::WINDOW]
                    && ours[tcp::URGENT..] == next[tcp::URGENT..]
            }
            Protocol::Udp => true,
        }
    }

    fn join(&mut self, segment: Segment, place: Place, packet: &[u8]) {
        let headers = segment.headers as u32;
        let behind = |whole: Place| Place { start: whole.start + headers, len: whole.len - headers, ..whole };
        if let [whole] = &mut self.payloads[..] {
            *whole = behind(*whole);
            self.id_step = self.id_distance(packet);
        }
        self.payloads.push(behind(place));
        self.length += segment.payload;
        if segment.layout.protocol == Protocol::Tcp {
            let flags = segment.layout.start() + tcp::FLAGS;
            self.headers[flags] |= packet[flags];
        }
    }

    /// Makes the headers those of the whole group.
    fn finish(&mut self) {
        let Some(Segment { layout, headers, .. }) = self.joined().copied() else { return };
        let (network, transport) = self.headers[..headers].split_at_mut(layout.start());
        let length = self.length - network.len();
        match layout.version {
            Version::V4 => {
                put_word(network, v4::TOTAL_LENGTH, self.length as u16);
                put_word(network, v4::CHECKSUM, 0);
                put_word(network, v4::CHECKSUM, Sum::of(network).checksum());
            }
            Version::V6 => put_word(network, v6::PAYLOAD_LENGTH, length as u16),
        }
        if layout.protocol == Protocol::Udp {
            put_word(transport, udp::LENGTH, length as u16);
        }
        put_word(transport, layout.checksum(), layout.pseudo_header(network, length).fold());
    }
}
