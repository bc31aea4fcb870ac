//! The overlay of a new mesh: the ranges asked for, or free ones, held against the routes of this host.
//!
//! Looked at once, before the mesh is made: the range stays for good, and a host whose own network it covers could
//! never join. Each node looks again when it joins.

use crate::random;
use anyhow::Context as _;
use futures::TryStreamExt as _;
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use mesh_types::Overlay;
use mesh_types::overlay::OverlayError;
use rtnetlink::RouteMessageBuilder;
use rtnetlink::packet_route::route::{RouteAddress, RouteAttribute, RouteMessage, RouteType};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;
use thiserror::Error;

/// The kernel lists its routes at once; a million of them take a few seconds.
const LIST: Duration = Duration::from_secs(10);
/// A default route may be written in halves, or as all that is global unicast; so short a prefix is one.
const DEFAULT_V4: u8 = 1;
const DEFAULT_V6: u8 = 3;
/// The routing table of the host's own addresses.
const LOCAL_TABLE: u32 = 255;

/// Why there is no overlay.
#[derive(Debug, Error, PartialEq, Eq)]
pub(crate) enum OverlayRefusal {
    /// Two ranges of one family.
    #[error("--overlay {0} is a second range of its family: give at most one IPv4 and one IPv6 range")]
    Second(IpNet),
    /// No range for nodes.
    #[error(transparent)]
    Unusable(#[from] OverlayError),
    /// What was asked for is in use.
    #[error("--overlay {range} overlaps this host's route to {route}: choose another range")]
    Overlaps {
        /// What was asked for.
        range: IpNet,
        /// What it overlaps.
        route: IpNet,
    },
    /// Nothing is left to draw from.
    #[error("this host's routes leave no {0} free to draw an overlay range from: choose one with --overlay")]
    NoneFree(&'static str),
}

/// The overlay of a new mesh: of `asked`, and what is missing by chance, clear of this host's routes.
pub(crate) async fn choose(asked: &[IpNet]) -> anyhow::Result<Result<Overlay, OverlayRefusal>> {
    let routes = routes().await.context("cannot list this host's routes, which the overlay must not overlap")?;
    Ok(choose_clear_of(&routes, asked, random::bytes()))
}

async fn routes() -> anyhow::Result<Vec<IpNet>> {
    let (connection, netlink, _) = rtnetlink::new_connection()?;
    let connection = tokio::spawn(connection);
    let mut found = Vec::new();
    for message in [RouteMessageBuilder::<Ipv4Addr>::new().build(), RouteMessageBuilder::<Ipv6Addr>::new().build()] {
        let listed: Vec<RouteMessage> =
            tokio::time::timeout(LIST, netlink.route().get(message).execute().try_collect()).await??;
        found.extend(listed.iter().filter_map(destination));
    }
    connection.abort();
    Ok(found)
}

/// Where a route leads, if it counts.
fn destination(route: &RouteMessage) -> Option<IpNet> {
    let (mut table, mut address) = (u32::from(route.header.table), None);
    for attribute in &route.attributes {
        match attribute {
            RouteAttribute::Destination(RouteAddress::Inet(ip)) => address = Some(IpAddr::V4(*ip)),
            RouteAttribute::Destination(RouteAddress::Inet6(ip)) => address = Some(IpAddr::V6(*ip)),
            RouteAttribute::Table(wide) => table = *wide,
            _ => {}
        }
    }
    let net = IpNet::new(address?, route.header.destination_prefix_length).ok()?;
    let is_default = net.prefix_len() <= if net.addr().is_ipv4() { DEFAULT_V4 } else { DEFAULT_V6 };
    (route.header.kind == RouteType::Unicast && table != LOCAL_TABLE && !is_default).then_some(net)
}

fn choose_clear_of(routes: &[IpNet], asked: &[IpNet], chance: [u8; 6]) -> Result<Overlay, OverlayRefusal> {
    let (mut v4, mut v6) = (None, None);
    for range in asked {
        let taken = match range {
            IpNet::V4(range) => v4.replace(*range).is_some(),
            IpNet::V6(range) => v6.replace(*range).is_some(),
        };
        if taken {
            return Err(OverlayRefusal::Second(*range));
        }
        if let Some(route) = overlapped(routes, *range) {
            return Err(OverlayRefusal::Overlaps { range: *range, route });
        }
    }
    let [first, rest @ ..] = chance;
    let v4 = v4.map_or_else(|| draw_v4(routes, first), Ok)?;
    let v6 = v6.map_or_else(|| draw_v6(routes, rest), Ok)?;
    Ok(Overlay::new(v4, v6)?)
}

/// A /16 of 10.0.0.0/8, the first free one from a random place on: it rarely meets another network's.
fn draw_v4(routes: &[IpNet], chance: u8) -> Result<Ipv4Net, OverlayRefusal> {
    let ranges = (0..=u8::MAX).map(|step| Ipv4Net::new_assert(Ipv4Addr::new(10, chance.wrapping_add(step), 0, 0), 16));
    let free = |range: &Ipv4Net| overlapped(routes, (*range).into()).is_none();
    ranges.into_iter().find(free).ok_or(OverlayRefusal::NoneFree("/16 of 10.0.0.0/8"))
}

/// RFC 4193, 3.1: fd, and 40 random bits. Who routes all of them has no use for another draw.
fn draw_v6(routes: &[IpNet], [a, b, c, d, e]: [u8; 5]) -> Result<Ipv6Net, OverlayRefusal> {
    let range = Ipv6Net::new_assert(Ipv6Addr::from([0xfd, a, b, c, d, e, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]), 48);
    if overlapped(routes, range.into()).is_none() {
        Ok(range)
    } else {
        Err(OverlayRefusal::NoneFree("/48 of fd00::/8"))
    }
}

fn overlapped(routes: &[IpNet], range: IpNet) -> Option<IpNet> {
    routes.iter().find(|route| range.contains(*route) || route.contains(&range)).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nets(texts: &[&str]) -> Vec<IpNet> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    #[test]
    fn what_is_drawn_is_clear_of_the_hosts_routes() {
        for (routes, chance, drawn) in [
            (&[][..], 7, "10.7.0.0/16"),
            (&["10.7.3.0/24", "10.8.0.0/15"], 7, "10.10.0.0/16"),
            (&["10.0.0.0/9"], 7, "10.128.0.0/16"),
            (&["10.128.0.0/9"], 200, "10.0.0.0/16"),
            (&["192.0.2.0/24", "fd00::/16"], 7, "10.7.0.0/16"),
        ] {
            let overlay = choose_clear_of(&nets(routes), &[], [chance, 1, 2, 3, 4, 5]).unwrap();
            assert_eq!(overlay.to_string(), format!("{drawn}, fd01:203:405::/48"), "{routes:?}");
        }
        for (routes, none_free) in [(["10.0.0.0/8"], "/16 of 10.0.0.0/8"), (["fd00::/8"], "/48 of fd00::/8")] {
            let refusal = choose_clear_of(&nets(&routes), &[], [7; 6]).unwrap_err();
            assert_eq!(refusal, OverlayRefusal::NoneFree(none_free));
        }
    }

    #[test]
    fn what_is_asked_for_is_taken_or_refused_as_it_is() {
        let routes = nets(&["192.168.1.0/24"]);
        let choose = |asked: &[&str]| choose_clear_of(&routes, &nets(asked), [7; 6]);
        assert_eq!(choose(&["10.9.0.0/16", "fd00:1::/48"]).unwrap().to_string(), "10.9.0.0/16, fd00:1::/48");
        for (asked, said) in [
            (&["192.168.0.0/16"][..], "overlaps this host's route to 192.168.1.0/24"),
            (&["192.168.1.128/25"], "overlaps"),
            (&["10.1.0.0/16", "10.2.0.0/16"], "second range"),
            (&["10.1.0.0/30"], "unusable size"),
        ] {
            let refusal = choose(asked).unwrap_err().to_string();
            assert!(refusal.contains(said), "{refusal}");
        }
    }
}
