//! Which links of the host are carried by the mesh, and what is reached through them. Pure: links, addresses and routes
//! in, verdict out.
//!
//! Our own interface is; so is what is stacked on a carried link, a tunnel whose ends lie behind one, and a bridge or bond
//! with a carried port. An address there is reached through our own tunnel, so that a peer's endpoint must never be one.

use super::netlink::{Address, Link, Route};
use super::overlap::is_default;
use ipnet::IpNet;
use mesh_types::AllowedIp;
use mesh_types::limits::MAX_CARRIED_RANGES;
use std::collections::BTreeSet;

/// The indexes of all links that are carried by the interface `own`. `ways_out` are those that the host sends to the
/// world by.
pub(super) fn links(
    own: &str,
    links: &[Link],
    addresses: &[Address],
    routes: &[Route],
    ways_out: &BTreeSet<u32>,
) -> BTreeSet<u32> {
    let mut carried: BTreeSet<u32> = links.iter().filter(|link| link.name == own).map(|link| link.index).collect();
    // Each turn adds one at least, or is the last.
    loop {
        let ranges = ranges(&carried, addresses, routes);
        let inside = |link: &Link| link.ends.iter().any(|end| ranges.iter().any(|range| range.net().contains(end)));
        let more: Vec<u32> = links
            .iter()
            .filter(|link| !carried.contains(&link.index))
            .filter(|link| {
                link.lower.is_some_and(|lower| carried.contains(&lower))
                    || inside(link)
                    || is_open_tunnel(link)
                    || is_on_carried_bridge(link, links, &carried)
                    || has_carried_port(link, links, &carried, ways_out)
            })
            .map(|link| link.index)
            .collect();
        if more.is_empty() || carried.is_empty() {
            return carried;
        }
        carried.extend(more);
    }
}

/// What is reached through these links: their networks, and what is routed into them but for default routes.
pub(super) fn ranges(carried: &BTreeSet<u32>, addresses: &[Address], routes: &[Route]) -> BTreeSet<AllowedIp> {
    let networks = addresses.iter().filter(|found| carried.contains(&found.index));
    let networks = networks.filter_map(|found| IpNet::new(found.address, found.prefix_len).ok());
    let routed = routes.iter().filter(|route| route.interfaces.iter().any(|index| carried.contains(index)));
    let all = networks.chain(routed.map(|route| route.destination)).map(|net| net.trunc());
    let all: Vec<IpNet> = all.filter(|net| !is_default(net) && !is_kernels(net)).collect();
    let mut all = IpNet::aggregate(&all);
    while all.len() > MAX_CARRIED_RANGES {
        all = IpNet::aggregate(&wider(&all));
    }
    all.into_iter().map(AllowedIp::from).collect()
}

/// The same with the narrowest of the family that has most made wider by a bit: they are the many, and the host's own
/// network is sooner hit by widening a wide one.
fn wider(ranges: &[IpNet]) -> Vec<IpNet> {
    let v6 = 2 * ranges.iter().filter(|net| net.addr().is_ipv6()).count() > ranges.len();
    let is_of_most = |net: &IpNet| net.addr().is_ipv6() == v6;
    let narrowest = ranges.iter().filter(|net| is_of_most(net)).map(IpNet::prefix_len).max();
    let widen = |net: &IpNet| match net.supernet() {
        Some(wider) if is_of_most(net) && Some(net.prefix_len()) == narrowest => wider,
        _ => *net,
    };
    ranges.iter().map(widen).collect()
}

/// Every link has link-local and multicast ranges; they say nothing about where one leads.
fn is_kernels(net: &IpNet) -> bool {
    match net {
        IpNet::V4(net) => net.network().is_link_local() || net.network().is_multicast(),
        IpNet::V6(net) => net.network().is_unicast_link_local() || net.network().is_multicast(),
    }
}

/// One that says for each packet where it goes, over whatever link: perhaps the mesh.
fn is_open_tunnel(link: &Link) -> bool {
    matches!(link.kind.as_str(), "vxlan" | "geneve") && link.ends.is_empty() && link.lower.is_none()
}

/// The near end of a pair whose far end is a port of a carried bridge, or a link stacked on such a port.
fn is_on_carried_bridge(link: &Link, links: &[Link], carried: &BTreeSet<u32>) -> bool {
    let lower = link.lower.and_then(|lower| links.iter().find(|other| other.index == lower));
    let bridge = lower.filter(|port| has_ports(port.master, links)).and_then(|port| port.master);
    bridge.is_some_and(|bridge| carried.contains(&bridge))
}

/// A bridge that is the host's way to the world by hardware of its own is not carried, whatever else is plugged in:
/// without it the host had no address at all.
fn has_carried_port(link: &Link, links: &[Link], carried: &BTreeSet<u32>, ways_out: &BTreeSet<u32>) -> bool {
    let mut ports = links.iter().filter(|port| port.master == Some(link.index) && has_ports(port.master, links));
    let by_hardware = || {
        let mut ports = links.iter().filter(|port| port.master == Some(link.index));
        ways_out.contains(&link.index) && ports.any(|port| port.kind == "device" && !carried.contains(&port.index))
    };
    ports.any(|port| carried.contains(&port.index)) && !by_hardware()
}

/// Whether that link passes packets between its ports; a VRF only groups them.
fn has_ports(master: Option<u32>, links: &[Link]) -> bool {
    links.iter().any(|link| Some(link.index) == master && link.kind != "vrf")
}

#[cfg(test)]
mod tests {
    use super::*;
    use rtnetlink::packet_route::address::{AddressFlags, AddressScope};
    use rtnetlink::packet_route::route::RouteMessage;

    fn link(index: u32, name: &str, kind: &str) -> Link {
        Link {
            index,
            name: name.to_owned(),
            kind: kind.to_owned(),
            mtu: 1500,
            up: true,
            running: true,
            loopback: false,
            group: 0,
            lower: None,
            master: None,
            ends: Vec::new(),
        }
    }

    fn on(lower: u32, link: Link) -> Link {
        Link { lower: Some(lower), ..link }
    }

    fn port_of(master: u32, link: Link) -> Link {
        Link { master: Some(master), ..link }
    }

    fn to(ends: &[&str], link: Link) -> Link {
        Link { ends: ends.iter().map(|end| end.parse().unwrap()).collect(), ..link }
    }

    fn address(index: u32, net: &str) -> Address {
        let net: IpNet = net.parse().unwrap();
        let (scope, flags) = (AddressScope::Universe, AddressFlags::Permanent);
        Address { index, address: net.addr(), prefix_len: net.prefix_len(), scope, flags }
    }

    fn route(index: u32, destination: &str) -> Route {
        let message = RouteMessage::default();
        Route { destination: destination.parse().unwrap(), interfaces: vec![index], message }
    }

    /// The mesh as 1, the host's network as 2, and `more`; which of those are carried.
    fn carried(more: &[Link]) -> Vec<u32> {
        let mut all = vec![link(1, "mesh0", "wireguard"), link(2, "eth0", "device")];
        all.extend(more.iter().cloned());
        let addresses = [address(1, "10.99.0.1/32"), address(2, "192.0.2.1/24")];
        let routes = [route(1, "10.99.0.0/16"), route(2, "0.0.0.0/0")];
        links("mesh0", &all, &addresses, &routes, &[2].into()).into_iter().filter(|index| *index != 1).collect()
    }

    #[test]
    fn what_stands_on_the_mesh_is_carried_and_what_stands_beside_it_is_not() {
        for (why, more, expected) in [
            ("nothing else", vec![], &[][..]),
            ("a vlan on the mesh", vec![on(1, link(3, "mesh0.7", "vlan"))], &[3]),
            ("a vlan on the host's network", vec![on(2, link(3, "eth0.7", "vlan"))], &[]),
            ("a macvlan on that vlan", vec![on(1, link(3, "a", "vlan")), on(3, link(4, "b", "macvlan"))], &[3, 4]),
            ("a vxlan over the mesh's link", vec![on(1, link(3, "vxlan0", "vxlan"))], &[3]),
            ("a vxlan from an overlay address", vec![to(&["10.99.0.1"], link(3, "vxlan0", "vxlan"))], &[3]),
            ("a vxlan to an overlay address", vec![to(&["10.99.7.7"], link(3, "vxlan0", "vxlan"))], &[3]),
            ("a vxlan on the host's network", vec![on(2, to(&["192.0.2.9"], link(3, "vxlan0", "vxlan")))], &[]),
            ("a vxlan that says nothing", vec![link(3, "vxlan0", "vxlan")], &[3]),
            ("a geneve that says nothing", vec![link(3, "geneve0", "geneve")], &[3]),
            ("a geneve elsewhere", vec![to(&["192.0.2.9"], link(3, "geneve0", "geneve"))], &[]),
            ("gre over the mesh", vec![to(&["10.99.0.9"], link(3, "gre1", "gre"))], &[3]),
            ("the fallback gre of every namespace", vec![link(3, "gre0", "gre")], &[]),
            ("sit elsewhere", vec![to(&["192.0.2.9"], link(3, "sit1", "sit"))], &[]),
            (
                "a bridge with such a port, and what is plugged into it from this host",
                vec![
                    port_of(4, on(1, link(3, "vxlan0", "vxlan"))),
                    link(4, "br0", "bridge"),
                    port_of(4, on(6, link(5, "veth0", "veth"))),
                    on(5, link(6, "veth1", "veth")),
                    on(4, link(7, "br0.5", "vlan")),
                ],
                &[3, 4, 5, 6, 7],
            ),
            ("a bridge with others only", vec![link(4, "br0", "bridge"), port_of(4, link(5, "eth1", "device"))], &[]),
            (
                "a vrf with the mesh's link in it",
                vec![link(4, "red", "vrf"), port_of(4, link(5, "eth1", "device"))],
                &[],
            ),
        ] {
            assert_eq!(carried(&more), expected, "{why}");
        }
    }

    #[test]
    fn the_bridge_by_which_a_host_is_on_its_network_is_no_part_of_the_mesh() {
        let all = [
            link(1, "mesh0", "wireguard"),
            port_of(3, link(2, "eth0", "device")),
            link(3, "br0", "bridge"),
            port_of(3, on(1, link(4, "vxlan0", "vxlan"))),
        ];
        let found = |ways_out: &[u32]| links("mesh0", &all, &[], &[], &ways_out.iter().copied().collect());
        assert_eq!(found(&[3]), [1, 4].into());
        assert_eq!(found(&[]), [1, 3, 4].into());
    }

    #[test]
    fn networks_and_routes_of_carried_links_are_reached_through_the_mesh_and_default_routes_are_not() {
        let addresses = [address(1, "10.99.0.1/32"), address(3, "172.20.0.5/24"), address(3, "fe80::1/64")];
        let routes = [
            route(1, "10.99.0.0/16"),
            route(1, "0.0.0.0/0"),
            route(1, "0.0.0.0/1"),
            route(3, "172.21.0.0/16"),
            route(2, "198.51.100.0/24"),
        ];
        let found = ranges(&[1, 3].into(), &addresses, &routes);
        let expected = ["10.99.0.0/16", "172.20.0.0/24", "172.21.0.0/16"];
        assert_eq!(found.iter().map(ToString::to_string).collect::<Vec<_>>(), expected);
    }

    #[test]
    fn more_ranges_than_are_kept_become_wider_ones() {
        let many = (0..1_024).map(|n| route(1, &format!("10.{}.{}.0/28", n / 256, n % 256)));
        let routes: Vec<Route> = many.chain([route(1, "172.20.0.0/16"), route(1, "fd00:99::/48")]).collect();
        let found = ranges(&[1].into(), &[], &routes);
        assert!(found.len() <= MAX_CARRIED_RANGES);
        assert!(routes.iter().all(|route| found.iter().any(|range| range.net().contains(&route.destination))));
        for wide in ["172.20.0.0/16", "fd00:99::/48"] {
            assert!(found.contains(&wide.parse().unwrap()), "{wide} stays as it is: {found:?}");
        }
    }
}
