//! The route netlink socket, in the few words this program needs.
//!
//! Each call is bounded in time. The socket belongs to the network namespace it was opened in, and its task ends with
//! its last owner.

use futures::{Stream, TryStreamExt};
use ipnet::IpNet;
use rtnetlink::packet_route::address::{AddressAttribute, AddressFlags, AddressMessage, AddressScope};
use rtnetlink::packet_route::link::{AfSpecInet6, AfSpecUnspec, In6AddrGenMode};
use rtnetlink::packet_route::link::{
    InfoData, InfoGeneve, InfoGre, InfoGre6, InfoIpTunnel, InfoVti, InfoVxlan, LinkAttribute, LinkFlags, LinkInfo,
    LinkMessage,
};
use rtnetlink::packet_route::route::{RouteAddress, RouteAttribute, RouteMessage, RouteScope, RouteType};
use rtnetlink::{Handle, LinkUnspec, LinkWireguard, RouteMessageBuilder};
use std::future::Future;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;
use tokio::task::JoinHandle;

/// The kernel answers such calls in microseconds; this is for when it is stuck.
pub(crate) const TIMEOUT: Duration = Duration::from_secs(5);

/// A table of routes to the host itself; it says nothing about who else is reachable.
const LOCAL_TABLE: u32 = 255;

/// An open socket.
pub(crate) struct Netlink {
    handle: Handle,
    _task: Background,
}

/// A task that ends with its owner.
pub(crate) struct Background(JoinHandle<()>);

/// An interface.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Link {
    pub(crate) index: u32,
    pub(crate) name: String,
    /// The driver's name for it: `wireguard`, `tun`, `veth`; `device` if it has none, as hardware has.
    pub(crate) kind: String,
    pub(crate) mtu: u32,
    pub(crate) up: bool,
    /// Whether packets get through: a cable is in, a radio is associated.
    pub(crate) running: bool,
    pub(crate) loopback: bool,
    /// The number that it is grouped under; 0 unless somebody gave it one.
    pub(crate) group: u32,
    /// The link below it, in this namespace.
    pub(crate) lower: Option<u32>,
    /// The bridge, bond or other link that it is a port of.
    pub(crate) master: Option<u32>,
    /// The ends of a tunnel, as far as they are set.
    pub(crate) ends: Vec<IpAddr>,
}

/// An address on an interface.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Address {
    pub(crate) index: u32,
    pub(crate) address: IpAddr,
    pub(crate) prefix_len: u8,
    pub(crate) scope: AddressScope,
    pub(crate) flags: AddressFlags,
}

/// A unicast route of any table but the local one.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Route {
    pub(crate) destination: IpNet,
    pub(crate) interfaces: Vec<u32>,
    pub(crate) message: RouteMessage,
}

/// Where the kernel would send packets for a destination.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(crate) struct NextHop {
    pub(crate) interface: u32,
    pub(crate) gateway: Option<IpAddr>,
    pub(crate) source: Option<IpAddr>,
}

impl Background {
    pub(crate) fn spawn(task: impl Future<Output = ()> + Send + 'static) -> Self {
        Self(tokio::spawn(task))
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Netlink {
    /// Opens a socket in the thread's network namespace.
    pub(crate) fn open() -> io::Result<Self> {
        let (connection, handle, _unsolicited) = rtnetlink::new_connection()?;
        Ok(Self { handle, _task: Background::spawn(connection) })
    }

    pub(crate) async fn links(&self) -> io::Result<Vec<Link>> {
        let links = collect(self.handle.link().get().execute()).await?;
        Ok(links.iter().map(parse_link).collect())
    }

    /// The interface of that name, if there is one.
    pub(crate) async fn link(&self, name: &str) -> io::Result<Option<Link>> {
        match collect(self.handle.link().get().match_name(name).execute()).await {
            Ok(links) => Ok(links.first().map(parse_link)),
            Err(error) if error.raw_os_error() == Some(libc::ENODEV) => Ok(None),
            Err(error) => Err(error),
        }
    }

    pub(crate) async fn add_wireguard_link(&self, name: &str, group: u32) -> io::Result<()> {
        let message = LinkWireguard::new(name).append_extra_attribute(LinkAttribute::Group(group)).build();
        call(self.handle.link().add(message).execute()).await
    }

    /// Takes the interface away; it being gone already is as good. By index, so that another of its name is safe.
    pub(crate) async fn delete_link(&self, index: u32) -> io::Result<()> {
        match call(self.handle.link().del(index).execute()).await {
            Err(error) if error.raw_os_error() == Some(libc::ENODEV) => Ok(()),
            result => result,
        }
    }

    pub(crate) async fn set_mtu(&self, index: u32, mtu: u32) -> io::Result<()> {
        let message = LinkUnspec::new_with_index(index).mtu(mtu).build();
        call(self.handle.link().set(message).execute()).await
    }

    /// Brings the interface up, without the link-local address that Linux would give it: it routes by key, not by
    /// neighbour discovery.
    pub(crate) async fn set_up(&self, index: u32) -> io::Result<()> {
        let no_autoconf = AfSpecUnspec::Inet6(vec![AfSpecInet6::AddrGenMode(In6AddrGenMode::None)]);
        let message = LinkUnspec::new_with_index(index)
            .append_extra_attribute(LinkAttribute::AfSpecUnspec(vec![no_autoconf]))
            .build();
        if let Err(error) = call(self.handle.link().set(message).execute()).await {
            // Without IPv6 there is nothing to turn off.
            tracing::debug!(index, %error, "link-local addresses stay on");
        }
        call(self.handle.link().set(LinkUnspec::new_with_index(index).up().build()).execute()).await
    }

    pub(crate) async fn addresses(&self) -> io::Result<Vec<Address>> {
        let addresses = collect(self.handle.address().get().execute()).await?;
        Ok(addresses.iter().filter_map(parse_address).collect())
    }

    /// Gives the interface an address of its own, usable at once. There is no neighbour who could have it too.
    pub(crate) async fn add_address(&self, index: u32, address: IpAddr) -> io::Result<()> {
        let mut request = self.handle.address().add(index, address, host_prefix(address));
        if address.is_ipv6() {
            request.message_mut().attributes.push(AddressAttribute::Flags(AddressFlags::Nodad));
        }
        match call(request.execute()).await {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
            result => result,
        }
    }

    pub(crate) async fn delete_address(&self, address: &Address) -> io::Result<()> {
        let mut message = AddressMessage::default();
        message.header.family = family(address.address);
        message.header.prefix_len = address.prefix_len;
        message.header.index = address.index;
        message.attributes.push(AddressAttribute::Local(address.address));
        message.attributes.push(AddressAttribute::Address(address.address));
        match call(self.handle.address().del(message).execute()).await {
            Err(error) if error.kind() == io::ErrorKind::AddrNotAvailable => Ok(()),
            result => result,
        }
    }

    /// All unicast routes of both families, in all tables but the local one.
    pub(crate) async fn routes(&self) -> io::Result<Vec<Route>> {
        let mut found = Vec::new();
        for message in [RouteMessageBuilder::<Ipv4Addr>::new().build(), RouteMessageBuilder::<Ipv6Addr>::new().build()]
        {
            let routes = collect(self.handle.route().get(message).execute()).await?;
            found.extend(routes.into_iter().filter_map(parse_route));
        }
        Ok(found)
    }

    /// Routes a range straight to the interface, with `source` on what the host itself sends. Of equal routes the one
    /// with the lowest `metric` counts; `None` is the kernel's usual one.
    pub(crate) async fn add_route(
        &self,
        index: u32,
        destination: IpNet,
        source: IpAddr,
        metric: Option<u32>,
    ) -> io::Result<()> {
        let mut message = match (destination, source) {
            (IpNet::V4(net), IpAddr::V4(source)) => RouteMessageBuilder::<Ipv4Addr>::new()
                .destination_prefix(net.network(), net.prefix_len())
                .pref_source(source)
                .build(),
            (IpNet::V6(net), IpAddr::V6(source)) => RouteMessageBuilder::<Ipv6Addr>::new()
                .destination_prefix(net.network(), net.prefix_len())
                .pref_source(source)
                .build(),
            _ => return Err(io::Error::new(io::ErrorKind::InvalidInput, "route and source of different families")),
        };
        message.header.scope = RouteScope::Link;
        message.attributes.push(RouteAttribute::Oif(index));
        message.attributes.extend(metric.map(RouteAttribute::Priority));
        call(self.handle.route().add(message).execute()).await
    }

    pub(crate) async fn delete_route(&self, route: &Route) -> io::Result<()> {
        match call(self.handle.route().del(route.message.clone()).execute()).await {
            Err(error) if error.raw_os_error() == Some(libc::ESRCH) => Ok(()),
            result => result,
        }
    }

    /// Asks where packets with `mark` for `destination` would go; nothing is sent. `None` if nowhere.
    pub(crate) async fn next_hop(&self, destination: IpAddr, mark: u32) -> io::Result<Option<NextHop>> {
        let mut message = RouteMessage::default();
        message.header.address_family = family(destination);
        message.header.destination_prefix_length = host_prefix(destination);
        message.attributes.push(RouteAttribute::Destination(destination.into()));
        if mark != 0 {
            message.attributes.push(RouteAttribute::Mark(mark));
        }
        match collect(self.handle.route().get(message).execute()).await {
            Ok(routes) => Ok(routes.first().and_then(parse_next_hop)),
            // No route, in its several forms: none, unreachable, blackhole, prohibited, no such family.
            Err(error)
                if matches!(
                    error.raw_os_error(),
                    Some(libc::ENETUNREACH | libc::EHOSTUNREACH | libc::EINVAL | libc::EACCES | libc::EAFNOSUPPORT)
                ) =>
            {
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }
}

async fn call(request: impl Future<Output = Result<(), rtnetlink::Error>>) -> io::Result<()> {
    tokio::time::timeout(TIMEOUT, request).await?.map_err(to_io)
}

async fn collect<T>(replies: impl Stream<Item = Result<T, rtnetlink::Error>>) -> io::Result<Vec<T>> {
    tokio::time::timeout(TIMEOUT, replies.try_collect()).await?.map_err(to_io)
}

fn to_io(error: rtnetlink::Error) -> io::Error {
    match error {
        rtnetlink::Error::NetlinkError(message) => message.to_io(),
        error => io::Error::other(error),
    }
}

fn parse_link(message: &LinkMessage) -> Link {
    let mut link = Link {
        index: message.header.index,
        name: String::new(),
        kind: "device".to_owned(),
        mtu: 0,
        up: message.header.flags.contains(LinkFlags::Up),
        running: message.header.flags.contains(LinkFlags::Up | LinkFlags::LowerUp),
        loopback: message.header.flags.contains(LinkFlags::Loopback),
        group: 0,
        lower: None,
        master: None,
        ends: Vec::new(),
    };
    let mut elsewhere = false;
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => link.name.clone_from(name),
            LinkAttribute::Mtu(mtu) => link.mtu = *mtu,
            LinkAttribute::Group(group) => link.group = *group,
            LinkAttribute::Link(lower) => link.lower = link.lower.or(Some(*lower).filter(|lower| *lower != 0)),
            LinkAttribute::LinkNetNsId(_) => elsewhere = true,
            LinkAttribute::Controller(master) => link.master = Some(*master),
            LinkAttribute::LinkInfo(infos) => {
                for info in infos {
                    match info {
                        LinkInfo::Kind(kind) => link.kind = kind.to_string(),
                        LinkInfo::Data(data) => parse_tunnel(data, &mut link),
                        _ => {}
                    }
                }
            }
            _ => {}
        }
    }
    if elsewhere && link.ends.is_empty() {
        link.lower = None;
    }
    link
}

/// What a tunnel runs over. One that looks its ends up for each packet has none.
fn parse_tunnel(data: &InfoData, link: &mut Link) {
    let (mut lower, mut ends) = (None, Vec::new());
    match data {
        InfoData::Vxlan(infos) => {
            for info in infos {
                match info {
                    InfoVxlan::Link(index) => lower = Some(*index),
                    InfoVxlan::Group(ip) | InfoVxlan::Local(ip) => ends.push(IpAddr::V4(*ip)),
                    InfoVxlan::Group6(ip) | InfoVxlan::Local6(ip) => ends.push(IpAddr::V6(*ip)),
                    _ => {}
                }
            }
        }
        InfoData::Geneve(infos) => {
            ends.extend(infos.iter().filter_map(|info| match info {
                InfoGeneve::Remote(ip) | InfoGeneve::Local(ip) => Some(IpAddr::V4(*ip)),
                InfoGeneve::Remote6(ip) | InfoGeneve::Local6(ip) => Some(IpAddr::V6(*ip)),
                _ => None,
            }));
        }
        InfoData::GreTun(infos) | InfoData::GreTap(infos) => {
            for info in infos {
                match info {
                    InfoGre::Link(index) => lower = Some(*index),
                    InfoGre::Local(ip) | InfoGre::Remote(ip) => ends.push(IpAddr::V4(*ip)),
                    _ => {}
                }
            }
        }
        InfoData::GreTun6(infos) | InfoData::GreTap6(infos) => {
            for info in infos {
                match info {
                    InfoGre6::Link(index) => lower = Some(*index),
                    InfoGre6::Local(ip) | InfoGre6::Remote(ip) => ends.push(IpAddr::V6(*ip)),
                    _ => {}
                }
            }
        }
        InfoData::IpTunnel(infos) => {
            for info in infos {
                match info {
                    InfoIpTunnel::Link(index) => lower = Some(*index),
                    InfoIpTunnel::Local(ip) | InfoIpTunnel::Remote(ip) => ends.push(*ip),
                    _ => {}
                }
            }
        }
        InfoData::Vti(infos) => {
            for info in infos {
                match info {
                    InfoVti::Link(index) => lower = Some(*index),
                    InfoVti::Local(ip) | InfoVti::Remote(ip) => ends.push(*ip),
                    _ => {}
                }
            }
        }
        _ => {}
    }
    link.lower = lower.filter(|index| *index != 0).or(link.lower);
    link.ends.extend(ends.into_iter().filter(|ip| !ip.is_unspecified()));
}

fn parse_address(message: &AddressMessage) -> Option<Address> {
    let (mut own, mut peer) = (None, None);
    // The header has room for eight flags only.
    let mut flags = AddressFlags::from_bits_retain(u32::from(message.header.flags.bits()));
    for attribute in &message.attributes {
        match attribute {
            AddressAttribute::Local(address) => own = Some(*address),
            AddressAttribute::Address(address) => peer = Some(*address),
            AddressAttribute::Flags(all) => flags = *all,
            _ => {}
        }
    }
    Some(Address {
        index: message.header.index,
        // On a point-to-point link `Address` is the other end; IPv6 gives `Local` only then.
        address: own.or(peer)?,
        prefix_len: message.header.prefix_len,
        scope: message.header.scope,
        flags,
    })
}

fn parse_route(message: RouteMessage) -> Option<Route> {
    let mut table = u32::from(message.header.table);
    let mut address = match u8::from(message.header.address_family).into() {
        libc::AF_INET => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        libc::AF_INET6 => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
        _ => return None,
    };
    let mut interfaces = Vec::new();
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Destination(destination) => address = parse_route_address(destination)?,
            RouteAttribute::Oif(index) => interfaces.push(*index),
            RouteAttribute::MultiPath(hops) => interfaces.extend(hops.iter().map(|hop| hop.interface_index)),
            RouteAttribute::Table(wide) => table = *wide,
            _ => {}
        }
    }
    if message.header.kind != RouteType::Unicast || table == LOCAL_TABLE {
        return None;
    }
    let destination = IpNet::new(address, message.header.destination_prefix_length).ok()?;
    Some(Route { destination, interfaces, message })
}

fn parse_next_hop(message: &RouteMessage) -> Option<NextHop> {
    let (mut interface, mut gateway, mut source) = (None, None, None);
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Oif(index) => interface = Some(*index),
            RouteAttribute::Gateway(address) => gateway = parse_route_address(address),
            RouteAttribute::PrefSource(address) => source = parse_route_address(address),
            _ => {}
        }
    }
    Some(NextHop { interface: interface?, gateway, source })
}

fn parse_route_address(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(address) => Some(IpAddr::V4(*address)),
        RouteAddress::Inet6(address) => Some(IpAddr::V6(*address)),
        _ => None,
    }
}

fn family(address: IpAddr) -> rtnetlink::packet_route::AddressFamily {
    match address {
        IpAddr::V4(_) => rtnetlink::packet_route::AddressFamily::Inet,
        IpAddr::V6(_) => rtnetlink::packet_route::AddressFamily::Inet6,
    }
}

fn host_prefix(address: IpAddr) -> u8 {
    if address.is_ipv4() { 32 } else { 128 }
}
