//! The underlay: where this host can be reached, which way it sends, and how large a packet may be.

use super::netlink::{Address, Link, NextHop, Route};
use super::{LinkError, Links, carried};
use mesh_types::AllowedIp;
use rtnetlink::packet_route::address::{AddressFlags, AddressScope};
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Overlay MTU on an Ethernet underlay: 1,500 less what WireGuard adds over IPv6. Also the most that is used, as the
/// path to a peer is seldom wider than that, whatever the first link allows.
pub const DEFAULT_MTU: u16 = 1_420;

/// The least that IPv6 works with (RFC 8200, 5).
pub const MIN_MTU: u16 = 1_280;

/// IPv6 header 40, UDP 8, WireGuard's data header and tag 32.
const OVERHEAD: u32 = 80;

/// Addresses in the middle of the global unicast space. The kernel is asked which way it would send there; nothing is
/// sent.
const ANYWHERE: [IpAddr; 2] =
    [IpAddr::V4(Ipv4Addr::new(128, 0, 0, 1)), IpAddr::V6(Ipv6Addr::new(0x2000, 0, 0, 0, 0, 0, 0, 1))];

/// What of the host the mesh has to know. Equal values mean that nothing changed.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Underlay {
    /// Where other hosts may reach this one, the best first.
    pub addresses: BTreeSet<UnderlayAddress>,
    /// Which way the host sends to the world, for IPv4 and IPv6, where it can.
    pub egress: BTreeSet<Egress>,
    /// Bytes of the largest overlay packet that fits.
    pub overlay_mtu: u16,
    /// What the host reaches through our own interface, or through links that the mesh carries.
    pub carried: BTreeSet<AllowedIp>,
}

/// An address of this host. The order is by preference.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct UnderlayAddress {
    /// Not the one that the host sends to the world from.
    pub secondary: bool,
    /// The address.
    pub address: IpAddr,
}

/// The way to the world for one family.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Egress {
    /// Index of the interface.
    pub interface: u32,
    /// The router, if any.
    pub gateway: Option<IpAddr>,
    /// The address sent from.
    pub source: Option<IpAddr>,
}

impl Links {
    /// Looks at the underlay, leaving out `own` interface and every tunnel that is not the way to the world. `mark` is
    /// the one on our packets, which the host may route by.
    pub async fn underlay(&self, own: &str, mark: u32) -> Result<Underlay, LinkError> {
        let failed = |error| LinkError::system("look at the host's addresses", error);
        let links = self.netlink.links().await.map_err(failed)?;
        let addresses = self.netlink.addresses().await.map_err(failed)?;
        let mut hops = Vec::new();
        for destination in ANYWHERE {
            hops.extend(self.netlink.next_hop(destination, mark).await.map_err(failed)?);
        }
        let routes = self.netlink.routes().await.map_err(failed)?;
        Ok(assemble(own, &links, &addresses, &routes, &hops))
    }
}

fn assemble(own: &str, links: &[Link], addresses: &[Address], routes: &[Route], hops: &[NextHop]) -> Underlay {
    let ways_out: BTreeSet<u32> = hops.iter().map(|hop| hop.interface).collect();
    let carried = carried::links(own, links, addresses, routes, &ways_out);
    let ranges = carried::ranges(&carried, addresses, routes);
    let links: BTreeMap<u32, &Link> = links
        .iter()
        .filter(|link| !carried.contains(&link.index) && !link.loopback)
        .map(|link| (link.index, link))
        .collect();
    let egress: BTreeSet<Egress> = hops
        .iter()
        .filter(|hop| links.contains_key(&hop.interface))
        .map(|hop| Egress { interface: hop.interface, gateway: hop.gateway, source: hop.source })
        .collect();
    let leads_out = |index: u32| egress.iter().any(|way| way.interface == index);
    let used: Vec<&Address> = addresses
        .iter()
        .filter(|found| is_reachable(found))
        .filter(|found| {
            links.get(&found.index).is_some_and(|link| link.running && (!is_tunnel(link) || leads_out(link.index)))
        })
        .collect();
    let mut in_use: BTreeSet<u32> = egress.iter().map(|way| way.interface).collect();
    if in_use.is_empty() {
        in_use.extend(used.iter().map(|found| found.index));
    }
    let sources: BTreeSet<IpAddr> = egress.iter().filter_map(|way| way.source).collect();
    Underlay {
        addresses: used
            .iter()
            .map(|found| UnderlayAddress { secondary: !sources.contains(&found.address), address: found.address })
            .collect(),
        overlay_mtu: overlay_mtu(in_use.iter().filter_map(|index| links.get(index)).map(|link| link.mtu).min()),
        egress,
        carried: ranges,
    }
}

/// A tunnel of any mesh is no way to carry a mesh: two meshes would carry each other.
fn is_tunnel(link: &Link) -> bool {
    matches!(link.kind.as_str(), "wireguard" | "tun")
}

/// Whether others may send there: global or private unicast, and neither on its way in nor on its way out.
fn is_reachable(found: &Address) -> bool {
    let usable = match found.address {
        IpAddr::V4(ip) => !(ip.is_loopback() || ip.is_link_local() || ip.is_unspecified() || ip.is_multicast()),
        IpAddr::V6(ip) => !(ip.is_loopback() || ip.is_unicast_link_local() || ip.is_unspecified() || ip.is_multicast()),
    };
    // For IPv6 the bit means a temporary address (RFC 8981), gone in a day; the stable one beside it serves as well.
    let temporary = found.address.is_ipv6() && found.flags.contains(AddressFlags::Secondary);
    let tentative = found.flags.contains(AddressFlags::Tentative) && !found.flags.contains(AddressFlags::Optimistic);
    usable
        && !temporary
        && !tentative
        && !found.flags.intersects(AddressFlags::Deprecated | AddressFlags::Dadfailed)
        && matches!(found.scope, AddressScope::Universe | AddressScope::Site)
}

fn overlay_mtu(underlay: Option<u32>) -> u16 {
    let room = underlay.map_or(u32::from(DEFAULT_MTU), |mtu| mtu.saturating_sub(OVERHEAD));
    u16::try_from(room).unwrap_or(DEFAULT_MTU).clamp(MIN_MTU, DEFAULT_MTU)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_overlay_mtu_follows_the_narrowest_underlay_within_bounds() {
        for (underlay, overlay) in [
            (None, 1420),
            (Some(1500), 1420),
            (Some(1400), 1320),
            (Some(1280), 1280),
            (Some(9000), 1420),
            (Some(65_575), 1420),
        ] {
            assert_eq!(overlay_mtu(underlay), overlay, "{underlay:?}");
        }
    }

    #[test]
    fn only_addresses_that_others_can_reach_and_that_last_are_offered() {
        let links =
            [link(1, "lo", "device"), link(2, "eth0", "device"), link(3, "mesh0", "tun"), link(4, "wg1", "wireguard")];
        let addresses = [
            address(1, "127.0.0.1", AddressFlags::Permanent),
            address(2, "192.0.2.5", AddressFlags::Permanent),
            address(2, "192.0.2.6", AddressFlags::Secondary),
            address(2, "169.254.1.1", AddressFlags::Permanent),
            address(2, "2001:db8::5", AddressFlags::Permanent),
            address(2, "2001:db8::6", AddressFlags::Secondary),
            address(2, "2001:db8::7", AddressFlags::Deprecated),
            address(2, "2001:db8::8", AddressFlags::Tentative),
            address(2, "2001:db8::9", AddressFlags::Tentative | AddressFlags::Optimistic),
            address(2, "fe80::1", AddressFlags::Permanent),
            address(3, "10.9.0.1", AddressFlags::Permanent),
            address(4, "10.8.0.1", AddressFlags::Permanent),
        ];
        let hop = NextHop { interface: 2, gateway: None, source: Some("192.0.2.5".parse().unwrap()) };
        let underlay = assemble("mesh0", &links, &addresses, &[], &[hop]);
        let offered: Vec<String> = underlay.addresses.iter().map(|found| found.address.to_string()).collect();
        assert_eq!(offered, ["192.0.2.5", "192.0.2.6", "2001:db8::5", "2001:db8::9"]);
        assert!(!underlay.addresses.first().unwrap().secondary);
    }

    #[test]
    fn a_link_without_carrier_offers_nothing() {
        let mut eth0 = link(2, "eth0", "device");
        eth0.running = false;
        let underlay = assemble("mesh0", &[eth0], &[address(2, "192.0.2.5", AddressFlags::Permanent)], &[], &[]);
        assert!(underlay.addresses.is_empty());
    }

    #[test]
    fn a_tunnel_counts_only_as_the_way_to_the_world() {
        let links = [link(4, "vpn0", "tun")];
        let addresses = [address(4, "10.8.0.1", AddressFlags::Permanent)];
        assert!(assemble("mesh0", &links, &addresses, &[], &[]).addresses.is_empty());
        let hop = NextHop { interface: 4, gateway: None, source: None };
        assert_eq!(assemble("mesh0", &links, &addresses, &[], &[hop]).addresses.len(), 1);
    }

    fn link(index: u32, name: &str, kind: &str) -> Link {
        Link {
            index,
            name: name.to_owned(),
            kind: kind.to_owned(),
            mtu: 1500,
            up: true,
            running: true,
            loopback: name == "lo",
            group: 0,
            lower: None,
            master: None,
            ends: Vec::new(),
        }
    }

    fn address(index: u32, address: &str, flags: AddressFlags) -> Address {
        let address: IpAddr = address.parse().unwrap();
        Address { index, address, prefix_len: 24, scope: AddressScope::Universe, flags }
    }
}
