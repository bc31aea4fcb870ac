//! Which addresses are reached through the mesh itself. A tunnel whose endpoint lies there carries itself: each packet is
//! wrapped again and again.
//!
//! The one predicate for it. Whatever chooses, remembers or sends to an endpoint or a candidate asks here.

use mesh_types::{AllowedIp, Overlay, OverlayAddresses};
use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};

/// Ranges in which no peer's endpoint may be.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Barred(BTreeSet<AllowedIp>);

impl Barred {
    /// The overlay, this node's own addresses in it, and what the host routes into links that the mesh carries.
    pub(crate) fn new(overlay: &Overlay, own: &OverlayAddresses, carried: &BTreeSet<AllowedIp>) -> Self {
        let overlay =
            [AllowedIp::from(ipnet::IpNet::from(overlay.v4)), AllowedIp::from(ipnet::IpNet::from(overlay.v6))];
        Self(overlay.into_iter().chain(own.allowed_ips()).chain(carried.iter().copied()).collect())
    }

    /// Whether packets to that address would go through the mesh.
    pub(crate) fn contains(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        self.0.iter().any(|range| range.net().contains(&address))
    }

    /// Whether a peer may be sent to there.
    pub(crate) fn permits(&self, endpoint: SocketAddr) -> bool {
        !self.contains(endpoint.ip())
    }

    /// All of them, for a device that refuses endpoints by itself.
    pub(crate) fn ranges(&self) -> &BTreeSet<AllowedIp> {
        &self.0
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn barred(carried: &[&str]) -> Barred {
        let overlay = Overlay::new("10.99.0.0/16".parse().unwrap(), "fd00:99::/48".parse().unwrap()).unwrap();
        let own = overlay.addresses(1).unwrap();
        Barred::new(&overlay, &own, &carried.iter().map(|range| range.parse().unwrap()).collect())
    }

    #[test]
    fn what_lies_in_the_overlay_or_behind_a_carried_link_is_barred_however_it_is_written() {
        let barred = barred(&["172.16.5.0/24", "2001:db8:7::/64"]);
        for inside in ["10.99.200.1", "::ffff:10.99.0.1", "fd00:99::77", "172.16.5.9", "2001:db8:7::1"] {
            assert!(barred.contains(inside.parse().unwrap()), "{inside}");
        }
        for outside in ["10.98.0.1", "192.0.2.1", "172.16.6.1", "2001:db8:8::1", "::ffff:192.0.2.1"] {
            assert!(!barred.contains(outside.parse().unwrap()), "{outside}");
        }
    }

    #[test]
    fn own_addresses_outside_the_overlay_are_barred_too() {
        let overlay = Overlay::new("10.99.0.0/16".parse().unwrap(), "fd00:99::/48".parse().unwrap()).unwrap();
        let own = OverlayAddresses { v4: "10.7.0.1".parse().unwrap(), v6: "fd07::1".parse().unwrap() };
        let barred = Barred::new(&overlay, &own, &BTreeSet::new());
        assert!(barred.contains(own.v4.into()) && barred.contains(own.v6.into()));
        assert!(!barred.contains("10.7.0.2".parse().unwrap()));
    }
}
