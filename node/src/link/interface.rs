//! Our own interface: its addresses, its routes, its MTU, its being up. By difference, so that a restart changes nothing.

use super::netlink::{Address, Link};
use super::{LinkError, Links};
use ipnet::IpNet;
use mesh_types::{Overlay, OverlayAddresses};
use rtnetlink::packet_route::address::AddressScope;
use std::collections::BTreeSet;
use std::net::IpAddr;
use std::{fs, io};
use tracing::{debug, warn};

/// Metric of a route that lets every other to the same range come first.
const BEHIND_OTHERS: u32 = 1 << 20;

/// Everything our interface should be.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LinkConfig {
    /// The node's own addresses.
    pub addresses: OverlayAddresses,
    /// The ranges that are routed to it.
    pub overlay: Overlay,
    /// Bytes of the largest overlay packet.
    pub mtu: u16,
}

impl Links {
    /// Makes the interface what `config` says. Returns the number of changes made.
    ///
    /// A host without IPv6 gets the IPv4 half; the log says so.
    pub async fn configure(&self, interface: &str, config: &LinkConfig) -> Result<usize, LinkError> {
        let mut link = self.find(interface).await?;
        let mut changes = 0;
        if link.mtu != u32::from(config.mtu) {
            let set = self.netlink.set_mtu(link.index, u32::from(config.mtu)).await;
            set.map_err(|e| LinkError::system(format!("set {interface}'s MTU to {}", config.mtu), e))?;
            changes += 1;
        }
        if !link.up {
            let set = self.netlink.set_up(link.index).await;
            set.map_err(|error| match error.kind() {
                io::ErrorKind::AddrInUse => LinkError::PortTaken { interface: interface.to_owned() },
                _ => LinkError::system(format!("bring {interface} up"), error),
            })?;
            link.up = true;
            changes += 1;
        }
        changes += self.set_addresses(&link, config).await?;
        changes += self.set_routes(&link, config).await?;
        debug!(interface, changes, mtu = config.mtu, "interface configured");
        Ok(changes)
    }

    /// Takes addresses and routes off the interface again; the interface itself stays.
    pub async fn deconfigure(&self, interface: &str) -> Result<(), LinkError> {
        let link = match self.find(interface).await {
            Err(LinkError::NoInterface { .. }) => return Ok(()),
            found => found?,
        };
        self.drop_routes(&link, &BTreeSet::new()).await?;
        self.drop_addresses(&link, &BTreeSet::new()).await?;
        Ok(())
    }

    async fn find(&self, interface: &str) -> Result<Link, LinkError> {
        let found = self.netlink.link(interface).await;
        let found = found.map_err(|error| LinkError::system(format!("look at interface {interface}"), error))?;
        found.ok_or_else(|| LinkError::NoInterface { interface: interface.to_owned() })
    }

    async fn set_addresses(&self, link: &Link, config: &LinkConfig) -> Result<usize, LinkError> {
        let wanted: BTreeSet<IpAddr> = config.addresses.iter().collect();
        let (present, mut changes) = self.drop_addresses(link, &wanted).await?;
        for address in wanted.difference(&present) {
            let added = match self.netlink.add_address(link.index, *address).await {
                Err(error) if address.is_ipv6() && ipv6_is_off(&error) && enable_ipv6(&link.name) => {
                    self.netlink.add_address(link.index, *address).await
                }
                added => added,
            };
            match added {
                Ok(()) => changes += 1,
                Err(error) if address.is_ipv6() && ipv6_is_off(&error) => {
                    warn!(interface = link.name, %address, "this host has IPv6 turned off: the overlay is IPv4 only");
                }
                Err(error) => return Err(LinkError::system(format!("give {} address {address}", link.name), error)),
            }
        }
        Ok(changes)
    }

    /// Removes all but the `wanted` addresses. Returns which of them are there, and how many others were removed.
    async fn drop_addresses(
        &self,
        link: &Link,
        wanted: &BTreeSet<IpAddr>,
    ) -> Result<(BTreeSet<IpAddr>, usize), LinkError> {
        let (kept, surplus): (Vec<_>, Vec<_>) = self
            .own_addresses(link)
            .await?
            .into_iter()
            .partition(|found| wanted.contains(&found.address) && found.prefix_len == host_prefix(found.address));
        for address in &surplus {
            let removed = self.netlink.delete_address(address).await;
            let doing = || format!("take address {} off {}", address.address, link.name);
            removed.map_err(|error| LinkError::system(doing(), error))?;
        }
        Ok((kept.into_iter().map(|found| found.address).collect(), surplus.len()))
    }

    /// Link-local addresses are the kernel's to give and take.
    async fn own_addresses(&self, link: &Link) -> Result<Vec<Address>, LinkError> {
        let all = self.netlink.addresses().await.map_err(|error| LinkError::system("list addresses", error))?;
        Ok(all.into_iter().filter(|found| found.index == link.index && found.scope != AddressScope::Link).collect())
    }

    async fn set_routes(&self, link: &Link, config: &LinkConfig) -> Result<usize, LinkError> {
        // The kernel routes to the addresses themselves on its own account.
        let mut keep: BTreeSet<IpNet> = config.addresses.iter().map(IpNet::from).collect();
        let ranges = [IpNet::from(config.overlay.v4), IpNet::from(config.overlay.v6)];
        keep.extend(ranges);
        let (present, mut changes) = self.drop_routes(link, &keep).await?;
        for (range, source) in ranges.into_iter().zip(config.addresses.iter()) {
            if present.contains(&range) {
                continue;
            }
            match self.add_route(link, range, source).await {
                Ok(()) => changes += 1,
                // The address was refused before, which the log has.
                Err(error) if source.is_ipv6() && no_ipv6_source(&error) => debug!(%range, %error, "no IPv6 route"),
                Err(error) => return Err(LinkError::system(format!("route {range} to {}", link.name), error)),
            }
        }
        Ok(changes)
    }

    /// A route that the host has got to the same range since it joined is left alone, and counts before ours.
    async fn add_route(&self, link: &Link, range: IpNet, source: IpAddr) -> io::Result<()> {
        match self.netlink.add_route(link.index, range, source, None).await {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                warn!(interface = link.name, %range, "the host routes this range elsewhere: the overlay is hidden by it");
                self.netlink.add_route(link.index, range, source, Some(BEHIND_OTHERS)).await
            }
            added => added,
        }
    }

    /// Removes all but the `wanted` routes from the interface. Returns which of them are there, and how many others
    /// were removed.
    async fn drop_routes(&self, link: &Link, wanted: &BTreeSet<IpNet>) -> Result<(BTreeSet<IpNet>, usize), LinkError> {
        let routes = self.netlink.routes().await.map_err(|error| LinkError::system("list routes", error))?;
        let (mut present, mut removed) = (BTreeSet::new(), 0);
        for route in routes.iter().filter(|route| route.interfaces == [link.index] && !is_kernels(route.destination)) {
            if wanted.contains(&route.destination) {
                present.insert(route.destination);
                continue;
            }
            let result = self.netlink.delete_route(route).await;
            let doing = || format!("remove route {} from {}", route.destination, link.name);
            result.map_err(|error| LinkError::system(doing(), error))?;
            removed += 1;
        }
        Ok((present, removed))
    }
}

/// Link-local and multicast routes come and go with the interface.
fn is_kernels(destination: IpNet) -> bool {
    match destination.network() {
        IpAddr::V4(_) => false,
        IpAddr::V6(network) => network.is_unicast_link_local() || network.is_multicast(),
    }
}

/// How Linux says that an interface takes no IPv6 address.
fn ipv6_is_off(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EACCES | libc::EPERM | libc::EAFNOSUPPORT | libc::EOPNOTSUPP))
        || error.kind() == io::ErrorKind::PermissionDenied
}

/// The route's source address is not there.
fn no_ipv6_source(error: &io::Error) -> bool {
    ipv6_is_off(error) || matches!(error.raw_os_error(), Some(libc::EINVAL | libc::EADDRNOTAVAIL | libc::ENODEV))
}

/// Turns IPv6 on for our interface, where the host's default is off and we may. Containers often have it so.
fn enable_ipv6(interface: &str) -> bool {
    fs::write(format!("/proc/sys/net/ipv6/conf/{interface}/disable_ipv6"), "0").is_ok()
}

fn host_prefix(address: IpAddr) -> u8 {
    if address.is_ipv4() { 32 } else { 128 }
}
