//! Allowed IPs: which peer an address belongs to, by the longest prefix.

use mesh_types::AllowedIp;
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// WireGuard's cryptokey routing table. Every prefix has one owner; the longest that covers an address wins.
#[derive(Default)]
pub struct AllowedIps<V> {
    prefixes: BTreeMap<AllowedIp, V>,
}

impl<V: Copy + Ord> AllowedIps<V> {
    /// Empty.
    pub fn new() -> Self {
        Self { prefixes: BTreeMap::new() }
    }

    /// Gives a prefix to an owner; returns the former one.
    pub fn insert(&mut self, prefix: AllowedIp, owner: V) -> Option<V> {
        self.prefixes.insert(prefix, owner)
    }

    /// Takes a prefix out; returns its owner.
    pub fn remove(&mut self, prefix: &AllowedIp) -> Option<V> {
        self.prefixes.remove(prefix)
    }

    /// Takes out whatever belongs to an owner.
    pub fn remove_all(&mut self, owner: V) {
        self.prefixes.retain(|_, v| *v != owner);
    }

    /// Whose an address is.
    pub fn lookup(&self, address: IpAddr) -> Option<V> {
        let covering = self.prefixes.iter().filter(|(prefix, _)| prefix.net().contains(&address));
        covering.max_by_key(|(prefix, _)| prefix.net().prefix_len()).map(|(_, v)| *v)
    }

    /// Whose an IPv4 address is, as a number in host order.
    pub fn lookup_v4(&self, address: u32) -> Option<V> {
        self.lookup(Ipv4Addr::from(address).into())
    }

    /// Whose an IPv6 address is, as a number in host order.
    pub fn lookup_v6(&self, address: u128) -> Option<V> {
        self.lookup(Ipv6Addr::from(address).into())
    }

    /// What belongs to an owner, in order.
    pub fn of(&self, owner: V) -> impl Iterator<Item = AllowedIp> + '_ {
        self.prefixes.iter().filter(move |(_, v)| **v == owner).map(|(prefix, _)| *prefix)
    }
}
