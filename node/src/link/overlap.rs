//! Host routes that an overlay range would hide, or be hidden by.

use super::netlink::{Link, Route};
use super::{LinkError, Links};
use ipnet::IpNet;
use mesh_types::Overlay;
use std::fmt;

/// A default route may be written in halves, or as all that is global unicast; so short a prefix is one.
const DEFAULT_V4: u8 = 1;
const DEFAULT_V6: u8 = 3;

/// A route of the host.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct HostRoute {
    /// Where it leads.
    pub destination: IpNet,
    /// The interface it goes through, the first if there are several.
    pub interface: String,
}

impl fmt::Display for HostRoute {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} through {}", self.destination, self.interface)
    }
}

impl Links {
    /// The host's routes that overlap the overlay; default routes and those through `own` interface do not count.
    pub async fn overlaps(&self, overlay: &Overlay, own: &str) -> Result<Vec<HostRoute>, LinkError> {
        let failed = |error| LinkError::system("list the host's routes", error);
        let links = self.netlink.links().await.map_err(failed)?;
        let routes = self.netlink.routes().await.map_err(failed)?;
        Ok(overlapping(overlay, own, &links, &routes))
    }
}

fn overlapping(overlay: &Overlay, own: &str, links: &[Link], routes: &[Route]) -> Vec<HostRoute> {
    let name = |index: u32| links.iter().find(|link| link.index == index).map(|link| link.name.as_str());
    routes
        .iter()
        .filter(|route| !is_default(&route.destination) && collides(overlay, &route.destination))
        .filter(|route| !route.interfaces.iter().any(|index| name(*index) == Some(own)))
        .map(|route| HostRoute {
            destination: route.destination,
            interface: route.interfaces.first().and_then(|index| name(*index)).unwrap_or("a next hop group").to_owned(),
        })
        .collect()
}

pub(super) fn is_default(destination: &IpNet) -> bool {
    match destination {
        IpNet::V4(net) => net.prefix_len() <= DEFAULT_V4,
        IpNet::V6(net) => net.prefix_len() <= DEFAULT_V6,
    }
}

fn collides(overlay: &Overlay, destination: &IpNet) -> bool {
    [IpNet::from(overlay.v4), IpNet::from(overlay.v6)]
        .iter()
        .any(|range| range.contains(destination) || destination.contains(range))
}

#[cfg(test)]
mod tests {
    use super::*;
    use rtnetlink::packet_route::route::RouteMessage;

    #[test]
    fn a_route_inside_or_around_the_overlay_overlaps() {
        let found = |destination: &str, index: u32| {
            let overlay = Overlay::new("10.9.0.0/16".parse().unwrap(), "fd00:1:2::/48".parse().unwrap()).unwrap();
            let route = Route {
                destination: destination.parse().unwrap(),
                interfaces: vec![index],
                message: RouteMessage::default(),
            };
            overlapping(&overlay, "mesh0", &[link(1, "eth0"), link(2, "mesh0")], &[route])
        };
        for overlap in ["10.9.3.0/24", "10.0.0.0/8", "10.9.0.0/16", "fd00:1:2:3::/64", "fd00::/8"] {
            assert_eq!(found(overlap, 1).len(), 1, "{overlap}");
            assert_eq!(found(overlap, 1)[0].interface, "eth0");
            assert!(found(overlap, 2).is_empty(), "{overlap} through our own interface");
        }
        for clear in ["0.0.0.0/0", "0.0.0.0/1", "128.0.0.0/1", "::/0", "2000::/3", "10.8.0.0/16", "fd00:1:3::/48"] {
            assert!(found(clear, 1).is_empty(), "{clear}");
        }
    }

    fn link(index: u32, name: &str) -> Link {
        Link {
            index,
            name: name.to_owned(),
            kind: "device".to_owned(),
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
}
