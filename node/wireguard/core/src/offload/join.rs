//! Packets in, super-packets out: see the module.

use super::vnet::VnetHeader;

/// Packets in one group: what the kernel takes of UDP (`UDP_GRO_CNT_MAX`), and a `writev` with room in its 1,024 parts.
pub const MAX_JOINED: usize = 64;

/// What the TUN device accepts super-packets of.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Capabilities {
    /// TCP over IPv4 (`TUN_F_TSO4`).
    pub tcp4: bool,
    /// TCP over IPv6 (`TUN_F_TSO6`).
    pub tcp6: bool,
    /// UDP over both (`TUN_F_USO4` and `TUN_F_USO6`; Linux 6.2).
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
#[derive(Default)]
pub struct Group {
    vnet: VnetHeader,
    payloads: Vec<Place>,
}

impl Group {
    /// Goes first.
    pub fn vnet(&self) -> VnetHeader {
        self.vnet
    }

    /// The headers of a super-packet; empty for a packet that goes out alone and unchanged.
    pub fn headers(&self) -> &[u8] {
        &[]
    }

    /// The payloads of a super-packet; the whole packet if it goes out alone. At most [`MAX_JOINED`].
    pub fn payloads(&self) -> &[Place] {
        &self.payloads
    }
}

/// Joins packets that were decrypted one after the other. Keeps its storage, so that a steady state allocates nothing.
pub struct Joiner {
    groups: Vec<Group>,
    used: usize,
}

impl Joiner {
    /// With nothing in it.
    pub fn new(_capabilities: Capabilities) -> Self {
        Self { groups: Vec::new(), used: 0 }
    }

    /// Takes the next packet: `packet` are the bytes at `place`, without any padding behind them.
    pub fn push(&mut self, place: Place, _packet: &[u8]) {
        if self.used == self.groups.len() {
            self.groups.push(Group::default());
        }
        let group = &mut self.groups[self.used];
        group.vnet = VnetHeader::default();
        group.payloads.clear();
        group.payloads.push(place);
        self.used += 1;
    }

    /// Hands out everything, in the order in which each group's first packet came, and is empty.
    pub fn drain(&mut self, mut write: impl FnMut(&Group)) {
        self.groups[..self.used].iter().for_each(&mut write);
        self.used = 0;
    }
}
