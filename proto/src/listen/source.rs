//! Where somebody calls from: an address, and the networks around it that usually have one holder.

use std::net::IpAddr;

/// How many networks are looked at around one address.
pub(super) const LEVELS: usize = 3;

/// Prefix lengths, the narrowest first, in the IPv6 notation of all addresses. An IPv4 host has one address, its holder
/// often a /24.
const IPV4: [u32; LEVELS] = [128, 120, 120];
/// An IPv6 host has a whole /64 (RFC 7421), a line of a provider's customer a /56 and a site a /48 (RFC 6177).
const IPV6: [u32; LEVELS] = [64, 56, 48];

/// What stands for one machine: an IPv4 address, or the /64 of an IPv6 address, all of which one host may use.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Source {
    bits: u128,
    prefixes: [u32; LEVELS],
}

/// One of the networks around a source.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Network(u128);

impl Network {
    /// Before which there is none in their order.
    pub(super) const FIRST: Self = Self(0);
}

impl Source {
    /// Of whoever calls from `address`.
    pub fn of(address: IpAddr) -> Self {
        let (bits, prefixes) = match address.to_canonical() {
            IpAddr::V4(ip) => (ip.to_ipv6_mapped().to_bits(), IPV4),
            IpAddr::V6(ip) => (ip.to_bits(), IPV6),
        };
        let [narrowest, ..] = prefixes;
        Self { bits: within(bits, narrowest), prefixes }
    }

    /// The networks around it, the narrowest first.
    pub fn networks(&self) -> [Network; LEVELS] {
        self.prefixes.map(|length| Network(within(self.bits, length)))
    }
}

fn within(bits: u128, length: u32) -> u128 {
    bits & u128::MAX << (128 - length)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_is_one_source_by_whatever_address_it_calls_and_shares_networks_with_its_neighbours() {
        for (one, other, shared) in [
            ("192.0.2.1", "192.0.2.1", [true, true, true]),
            ("192.0.2.1", "::ffff:192.0.2.1", [true, true, true]),
            ("192.0.2.1", "192.0.2.2", [false, true, true]),
            ("192.0.2.1", "192.0.3.1", [false, false, false]),
            ("2001:db8:0:1::1", "2001:db8:0:1:ffff::2", [true, true, true]),
            ("2001:db8:0:1::1", "2001:db8:0:2::1", [false, true, true]),
            ("2001:db8:0:1::1", "2001:db8:0:101::1", [false, false, true]),
            ("2001:db8:0:1::1", "2001:db8:1:1::1", [false, false, false]),
        ] {
            let [one_source, other_source] = [one, other].map(|ip| Source::of(ip.parse().unwrap()));
            assert_eq!(one_source == other_source, shared[0], "{one} {other}");
            let pairs = one_source.networks().into_iter().zip(other_source.networks());
            assert_eq!(pairs.map(|(one, other)| one == other).collect::<Vec<_>>(), shared, "{one} {other}");
        }
    }
}
