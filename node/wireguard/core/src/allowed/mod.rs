//! Allowed IPs: which peer an address belongs to, by the longest prefix.

mod trie;

use mesh_types::AllowedIp;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use trie::Trie;

/// WireGuard's cryptokey routing table. Every prefix has one owner; the longest that covers an address wins.
pub struct AllowedIps<V> {
    v4: Trie<u32, V>,
    v6: Trie<u128, V>,
    /// The same, the other way round: for what is asked about an owner, off the path of packets.
    owners: BTreeMap<V, BTreeSet<AllowedIp>>,
}

impl<V: Copy + Ord> Default for AllowedIps<V> {
    fn default() -> Self {
        Self::new()
    }
}

impl<V: Copy + Ord> AllowedIps<V> {
    /// Empty.
    pub fn new() -> Self {
        Self { v4: Trie::new(), v6: Trie::new(), owners: BTreeMap::new() }
    }

    /// Gives a prefix to an owner; returns the former one.
    pub fn insert(&mut self, prefix: AllowedIp, owner: V) -> Option<V> {
        let length = prefix.net().prefix_len();
        let former = match prefix.net().network() {
            IpAddr::V4(network) => self.v4.insert(network.to_bits(), length, owner),
            IpAddr::V6(network) => self.v6.insert(network.to_bits(), length, owner),
        };
        if let Some(former) = former {
            self.disown(&prefix, former);
        }
        self.owners.entry(owner).or_default().insert(prefix);
        former
    }

    /// Takes a prefix out; returns its owner.
    pub fn remove(&mut self, prefix: &AllowedIp) -> Option<V> {
        let owner = self.take(prefix)?;
        self.disown(prefix, owner);
        Some(owner)
    }

    /// Takes out whatever belongs to an owner.
    pub fn remove_all(&mut self, owner: V) {
        for prefix in self.owners.remove(&owner).unwrap_or_default() {
            self.take(&prefix);
        }
    }

    /// Whose an address is.
    pub fn lookup(&self, address: IpAddr) -> Option<V> {
        match address {
            IpAddr::V4(address) => self.lookup_v4(address.to_bits()),
            IpAddr::V6(address) => self.lookup_v6(address.to_bits()),
        }
    }

    /// Whose an IPv4 address is, as a number in host order.
    pub fn lookup_v4(&self, address: u32) -> Option<V> {
        self.v4.lookup(address)
    }

    /// Whose an IPv6 address is, as a number in host order.
    pub fn lookup_v6(&self, address: u128) -> Option<V> {
        self.v6.lookup(address)
    }

    /// What belongs to an owner, in order.
    pub fn of(&self, owner: V) -> impl Iterator<Item = AllowedIp> + '_ {
        self.owners.get(&owner).into_iter().flatten().copied()
    }

    fn take(&mut self, prefix: &AllowedIp) -> Option<V> {
        let length = prefix.net().prefix_len();
        match prefix.net().network() {
            IpAddr::V4(network) => self.v4.remove(network.to_bits(), length),
            IpAddr::V6(network) => self.v6.remove(network.to_bits(), length),
        }
    }

    fn disown(&mut self, prefix: &AllowedIp, owner: V) {
        if let Some(prefixes) = self.owners.get_mut(&owner) {
            prefixes.remove(prefix);
            if prefixes.is_empty() {
                self.owners.remove(&owner);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::net::{Ipv4Addr, Ipv6Addr};

    fn prefix(text: &str) -> AllowedIp {
        text.parse().unwrap()
    }

    fn owner_of(allowed: &AllowedIps<u32>, address: &str) -> Option<u32> {
        allowed.lookup(address.parse().unwrap())
    }

    /// The same by version, length and leading bits, where an address is looked for length by length.
    #[derive(Default)]
    struct Model(BTreeMap<(bool, u8, u128), (AllowedIp, u32)>);

    impl Model {
        fn insert(&mut self, prefix: AllowedIp, owner: u32) -> Option<u32> {
            self.0
                .insert(Self::key(prefix.net().network(), prefix.net().prefix_len()), (prefix, owner))
                .map(|(_, of)| of)
        }

        fn remove(&mut self, prefix: &AllowedIp) -> Option<u32> {
            self.0.remove(&Self::key(prefix.net().network(), prefix.net().prefix_len())).map(|(_, of)| of)
        }

        fn remove_all(&mut self, owner: u32) {
            self.0.retain(|_, (_, of)| *of != owner);
        }

        fn lookup(&self, address: IpAddr) -> Option<u32> {
            (0..=128).rev().find_map(|length| self.0.get(&Self::key(address, length))).map(|(_, of)| *of)
        }

        fn of(&self, owner: u32) -> Vec<AllowedIp> {
            let mut all: Vec<_> = self.0.values().filter(|(_, of)| *of == owner).map(|(prefix, _)| *prefix).collect();
            all.sort();
            all
        }

        fn key(address: IpAddr, length: u8) -> (bool, u8, u128) {
            let bits = match address {
                IpAddr::V4(address) => u128::from(address.to_bits()) << 96,
                IpAddr::V6(address) => address.to_bits(),
            };
            let behind = 128 - u32::from(length);
            (address.is_ipv4(), length, bits.checked_shr(behind).map_or(0, |bits| bits << behind))
        }
    }

    fn at(address: IpAddr, length: u8) -> AllowedIp {
        prefix(&format!("{address}/{length}"))
    }

    /// Few different bits, far apart, so that prefixes lie in each other and part at all depths.
    fn address(v4: bool, seed: u32) -> IpAddr {
        let spread = (0..8).map(|i| u128::from(seed >> i & 1) << (i * 16 + seed % 3)).sum::<u128>();
        let scattered = u128::from(seed.wrapping_mul(0x9e37_79b9) >> 30) << 40;
        let bits = spread ^ scattered;
        if v4 { Ipv4Addr::from((bits >> 48) as u32 ^ bits as u32).into() } else { Ipv6Addr::from(bits).into() }
    }

    #[test]
    fn the_longest_prefix_wins_and_default_routes_take_the_rest() {
        let mut allowed = AllowedIps::new();
        let prefixes = ["0.0.0.0/0", "10.0.0.0/8", "10.1.0.0/16", "10.1.2.0/24", "10.1.2.3/32", "::/0", "fd00::/64"];
        for (owner, text) in prefixes.iter().enumerate() {
            assert_eq!(allowed.insert(prefix(text), owner as u32), None);
        }
        let addresses = ["192.0.2.1", "10.2.0.0", "10.1.3.0", "10.1.2.4", "10.1.2.3", "2001:db8::", "fd00::1"];
        for (owner, address) in addresses.iter().enumerate() {
            assert_eq!(owner_of(&allowed, address), Some(owner as u32), "{address}");
        }
        for (owner, text) in prefixes.iter().enumerate().rev() {
            assert_eq!(allowed.remove(&prefix(text)), Some(owner as u32));
            assert_eq!(allowed.remove(&prefix(text)), None, "{text} twice");
        }
        assert!(addresses.iter().all(|address| owner_of(&allowed, address).is_none()));
    }

    #[test]
    fn a_prefix_moves_to_whoever_got_it_last() {
        let mut allowed = AllowedIps::new();
        assert_eq!(allowed.insert(prefix("10.0.0.1/32"), 1), None);
        assert_eq!(allowed.insert(prefix("10.0.0.1/32"), 1), Some(1));
        assert_eq!(allowed.of(1).collect::<Vec<_>>(), [prefix("10.0.0.1/32")]);
        assert_eq!(allowed.insert(prefix("10.0.0.1/32"), 2), Some(1));
        assert_eq!(owner_of(&allowed, "10.0.0.1"), Some(2));
        assert_eq!(allowed.of(1).count(), 0);
        allowed.remove_all(1);
        assert_eq!(owner_of(&allowed, "10.0.0.1"), Some(2));
        allowed.remove_all(2);
        assert_eq!(owner_of(&allowed, "10.0.0.1"), None);
    }

    #[test]
    fn tens_of_thousands_of_prefixes_are_found_moved_and_removed() {
        let (mut allowed, mut model) = (AllowedIps::new(), Model::default());
        let mut state = 1_u64;
        let mut random = |below: u64| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            ((state >> 33) % below) as u32
        };
        let somewhere = |random: &mut dyn FnMut(u64) -> u32| match random(2) {
            0 => (IpAddr::from(Ipv4Addr::from(10 << 24 | random(1 << 20))), 20 + random(13) as u8),
            _ => (IpAddr::from(Ipv6Addr::from(0xfd << 120 | u128::from(random(1 << 20)))), 108 + random(21) as u8),
        };
        for (address, length) in [(IpAddr::from([0, 0, 0, 0]), 0), (IpAddr::from([0_u16; 8]), 0)] {
            allowed.insert(at(address, length), 0);
            model.insert(at(address, length), 0);
        }
        for round in 0..60_000 {
            let (address, length) = somewhere(&mut random);
            let (prefix, owner) = (at(address, length), random(200));
            match random(6) {
                0 => assert_eq!(allowed.remove(&prefix), model.remove(&prefix)),
                _ => assert_eq!(allowed.insert(prefix, owner), model.insert(prefix, owner)),
            }
            if round % 4_000 == 0 {
                assert_eq!(allowed.of(owner).collect::<Vec<_>>(), model.of(owner));
                allowed.remove_all(owner);
                model.remove_all(owner);
            }
        }
        assert!(model.0.len() > 20_000, "{}", model.0.len());
        for _ in 0..20_000 {
            let (address, _) = somewhere(&mut random);
            assert_eq!(allowed.lookup(address), model.lookup(address), "{address}");
        }
        for owner in 0..200 {
            assert_eq!(allowed.of(owner).collect::<Vec<_>>(), model.of(owner));
            allowed.remove_all(owner);
        }
        assert_eq!((allowed.v4.size(), allowed.v6.size()), (1, 1), "only the roots are left");
    }

    proptest! {
        #[test]
        fn any_history_answers_as_a_list_would(
            history in proptest::collection::vec((0_u8..8, any::<bool>(), 0_u32..256, any::<prop::sample::Index>(), 0_u32..4), 1..200),
        ) {
            let (mut allowed, mut model) = (AllowedIps::new(), Model::default());
            for (what, v4, seed, length, owner) in history {
                let address = address(v4, seed);
                let prefix = at(address, length.index(if v4 { 33 } else { 129 }) as u8);
                match what {
                    0..=4 => prop_assert_eq!(allowed.insert(prefix, owner), model.insert(prefix, owner)),
                    5..=6 => prop_assert_eq!(allowed.remove(&prefix), model.remove(&prefix)),
                    _ => {
                        allowed.remove_all(owner);
                        model.remove_all(owner);
                    }
                }
                prop_assert_eq!(allowed.lookup(address), model.lookup(address));
                prop_assert!(allowed.v4.size() + allowed.v6.size() <= 2 * model.0.len() + 2);
            }
            for seed in (0..256).step_by(7) {
                for v4 in [true, false] {
                    prop_assert_eq!(allowed.lookup(address(v4, seed)), model.lookup(address(v4, seed)));
                }
            }
            for owner in 0..4 {
                prop_assert_eq!(allowed.of(owner).collect::<Vec<_>>(), model.of(owner));
            }
        }
    }
}
