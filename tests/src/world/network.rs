//! The underlay: who has which address, who reaches whom, and how long a packet takes.

use super::rng::Rng;
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};

/// A machine of the world.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Host {
    /// By coordinator id.
    Coordinator(u64),
    /// By the order of joining.
    Node(usize),
}

/// Who reaches whom.
#[derive(Default)]
pub struct Network {
    addresses: BTreeMap<IpAddr, Host>,
    cut: BTreeSet<(Host, Host)>,
    next_address: u32,
}

impl Network {
    /// Gives a host a new address and takes its old ones.
    pub fn move_host(&mut self, host: Host) -> IpAddr {
        self.addresses.retain(|_, holder| *holder != host);
        self.next_address += 1;
        let address = IpAddr::V4(Ipv4Addr::from(u32::from(Ipv4Addr::new(203, 0, 0, 0)) + self.next_address));
        self.addresses.insert(address, host);
        address
    }

    /// Who has an address now.
    pub fn holder(&self, address: IpAddr) -> Option<Host> {
        self.addresses.get(&address).copied()
    }

    /// The address of a host.
    pub fn address(&self, host: Host) -> Option<IpAddr> {
        self.addresses.iter().find(|(_, holder)| **holder == host).map(|(address, _)| *address)
    }

    /// Stops all packets between two hosts.
    pub fn cut(&mut self, a: Host, b: Host) {
        self.cut.extend([(a, b), (b, a)]);
    }

    /// Undoes every cut.
    pub fn heal(&mut self) {
        self.cut.clear();
    }

    /// Whether packets go from one to the other.
    pub fn reaches(&self, from: Host, to: Host) -> bool {
        !self.cut.contains(&(from, to))
    }
}

/// Milliseconds that a datagram is under way; they may overtake each other.
pub fn datagram_delay(rng: &mut Rng) -> u64 {
    1 + rng.below(20)
}
