//! A fixed set of IP addresses, given as prefixes: for questions on the path of packets, where it never changes.
//!
//! Prefixes that overlap are merged, so that one binary search answers. An IPv4 address in IPv6's notation is
//! that IPv4 address.

use mesh_types::AllowedIp;
use std::net::IpAddr;

/// Addresses.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ranges {
    v4: Vec<Range<u32>>,
    v6: Vec<Range<u128>>,
}

/// The first and the last address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Range<K> {
    first: K,
    last: K,
}

/// Leading bits of IPv4 addresses in IPv6's notation: `::ffff:0:0/96`.
const MAPPED: u8 = 96;

impl Ranges {
    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.v4.is_empty() && self.v6.is_empty()
    }

    /// Whether an address is among them.
    pub fn contains(&self, address: IpAddr) -> bool {
        match address.to_canonical() {
            IpAddr::V4(address) => contains(&self.v4, address.to_bits()),
            IpAddr::V6(address) => contains(&self.v6, address.to_bits()),
        }
    }
}

impl FromIterator<AllowedIp> for Ranges {
    fn from_iter<I: IntoIterator<Item = AllowedIp>>(prefixes: I) -> Self {
        let (mut v4, mut v6) = (Vec::new(), Vec::new());
        for prefix in prefixes {
            match canonical(prefix) {
                (IpAddr::V4(first), length) => {
                    let first = first.to_bits();
                    v4.push(Range { first, last: first | u32::MAX.checked_shr(length.into()).unwrap_or(0) });
                }
                (IpAddr::V6(first), length) => {
                    let first = first.to_bits();
                    v6.push(Range { first, last: first | u128::MAX.checked_shr(length.into()).unwrap_or(0) });
                }
            }
        }
        Self { v4: merged(v4), v6: merged(v6) }
    }
}

/// The first address and the length of a prefix, which becomes one of IPv4 if it holds nothing else.
fn canonical(prefix: AllowedIp) -> (IpAddr, u8) {
    let (network, length) = (prefix.net().network(), prefix.net().prefix_len());
    match (network.to_canonical(), length.checked_sub(MAPPED)) {
        (IpAddr::V4(mapped), Some(length)) if network.is_ipv6() => (mapped.into(), length),
        _ => (network, length),
    }
}

fn contains<K: Ord + Copy>(ranges: &[Range<K>], address: K) -> bool {
    let behind = ranges.partition_point(|range| range.first <= address);
    behind.checked_sub(1).is_some_and(|at| address <= ranges[at].last)
}

/// In order and without overlap.
fn merged<K: Ord + Copy>(mut ranges: Vec<Range<K>>) -> Vec<Range<K>> {
    ranges.sort_unstable();
    ranges.dedup_by(|next, held| {
        let joined = next.first <= held.last;
        if joined {
            held.last = held.last.max(next.last);
        }
        joined
    });
    ranges
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::net::{Ipv4Addr, Ipv6Addr};

    fn ranges(prefixes: &[&str]) -> Ranges {
        prefixes.iter().map(|prefix| prefix.parse::<AllowedIp>().unwrap()).collect()
    }

    fn holds(ranges: &Ranges, address: &str) -> bool {
        ranges.contains(address.parse().unwrap())
    }

    #[test]
    fn a_prefix_holds_its_first_and_its_last_address_and_no_other() {
        let set = ranges(&["10.1.0.0/16", "fd00:1::/32", "192.0.2.7/32"]);
        for inside in ["10.1.0.0", "10.1.255.255", "fd00:1::", "fd00:1:ffff:ffff:ffff:ffff:ffff:ffff", "192.0.2.7"] {
            assert!(holds(&set, inside), "{inside}");
        }
        for outside in ["10.0.255.255", "10.2.0.0", "fd00:0:ffff::", "fd00:2::", "192.0.2.6", "192.0.2.8", "::"] {
            assert!(!holds(&set, outside), "{outside}");
        }
        assert!(!holds(&Ranges::default(), "0.0.0.0"));
        let all = ranges(&["0.0.0.0/0"]);
        assert!(holds(&all, "0.0.0.0") && holds(&all, "255.255.255.255") && !holds(&all, "::1"));
    }

    #[test]
    fn an_ipv4_address_is_the_same_in_either_notation() {
        for set in [ranges(&["10.1.0.0/16"]), ranges(&["::ffff:10.1.0.0/112"])] {
            assert!(holds(&set, "10.1.2.3") && holds(&set, "::ffff:10.1.2.3"));
            assert!(!holds(&set, "10.2.0.0") && !holds(&set, "::10.1.2.3"));
        }
        assert!(!holds(&ranges(&["::/0"]), "::ffff:10.1.2.3"), "all of IPv6 is nothing of IPv4");
        assert!(holds(&ranges(&["::ffff:0:0/96"]), "10.1.2.3"));
    }

    /// Few bits, so that prefixes overlap, touch and hold each other.
    fn address(v4: bool, seed: u16) -> IpAddr {
        match v4 {
            true => Ipv4Addr::from(u32::from(seed) << 16).into(),
            false => Ipv6Addr::from(u128::from(seed) << 112).into(),
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn any_set_holds_what_one_of_its_prefixes_holds(
            prefixes in proptest::collection::vec((any::<bool>(), any::<u16>(), 0_u8..17), 0..20),
            addresses in proptest::collection::vec((any::<bool>(), any::<u16>()), 50),
        ) {
            let prefixes: Vec<AllowedIp> = prefixes
                .into_iter()
                .map(|(v4, seed, length)| format!("{}/{length}", address(v4, seed)).parse().unwrap())
                .collect();
            let set: Ranges = prefixes.iter().copied().collect();
            for address in addresses.into_iter().map(|(v4, seed)| address(v4, seed)) {
                let held = prefixes.iter().any(|prefix| prefix.net().contains(&address));
                prop_assert_eq!(set.contains(address), held, "{}", address);
            }
        }
    }
}
