//! Where a host has its underlay addresses, and what interfaces have sent.

use crate::machine::Machine;
use futures::TryStreamExt as _;
use rtnetlink::packet_route::link::LinkAttribute;
use rtnetlink::{Handle, LinkUnspec, LinkVeth, RouteMessageBuilder};
use std::net::Ipv4Addr;

/// The host's end of its cable in the lab.
pub(crate) const CABLE: &str = "eth0";

/// An interface whose addresses come and go.
pub(crate) struct Holder {
    links: Handle,
    index: u32,
    prefix: u8,
}

impl Holder {
    /// The cable itself: its network's route goes with its last address.
    pub(crate) async fn cable(machine: &Machine) -> Self {
        Self::new(machine, CABLE, 24).await
    }

    /// An interface beside it, as where routing reaches to the host: routes over the cable stay when addresses go.
    pub(crate) async fn beside(machine: &Machine) -> Self {
        let links = machine.links();
        links.link().add(LinkVeth::new("beside0", "beside1").up().build()).execute().await.unwrap();
        links.link().set(LinkUnspec::new_with_name("beside1").up().build()).execute().await.unwrap();
        Self::new(machine, "beside0", 32).await
    }

    async fn new(machine: &Machine, interface: &str, prefix: u8) -> Self {
        let links = machine.links();
        let index = index_of(&links, interface).await;
        Self { links, index, prefix }
    }

    pub(crate) async fn add(&self, address: Ipv4Addr) {
        self.links.address().add(self.index, address.into(), self.prefix).execute().await.unwrap();
    }

    pub(crate) async fn delete(&self, address: Ipv4Addr) {
        let message = self.links.address().add(self.index, address.into(), self.prefix).message_mut().clone();
        self.links.address().del(message).execute().await.unwrap();
    }
}

/// Sends to `to` by cable, without a router, and from `source` where no other is asked for.
pub(crate) async fn route(machine: &Machine, to: (Ipv4Addr, u8), source: Option<Ipv4Addr>) {
    let links = machine.links();
    let route = RouteMessageBuilder::<Ipv4Addr>::new()
        .destination_prefix(to.0, to.1)
        .output_interface(index_of(&links, CABLE).await);
    let route = source.into_iter().fold(route, RouteMessageBuilder::<Ipv4Addr>::pref_source);
    links.route().add(route.build()).execute().await.unwrap();
}

/// What an interface has sent.
#[derive(Clone, Copy, Default, Debug)]
pub(crate) struct Sent {
    pub(crate) packets: u64,
    pub(crate) bytes: u64,
}

impl Sent {
    pub(crate) async fn by(machine: &Machine, interface: &str) -> Self {
        let links = machine.links();
        let found = links.link().get().match_name(interface.to_owned()).execute().try_next().await.unwrap().unwrap();
        let counted = found.attributes.into_iter().find_map(|attribute| match attribute {
            LinkAttribute::Stats64(counted) => Some(Self { packets: counted.tx_packets, bytes: counted.tx_bytes }),
            _ => None,
        });
        counted.unwrap()
    }
}

impl std::ops::Add for Sent {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self { packets: self.packets + other.packets, bytes: self.bytes + other.bytes }
    }
}

impl std::ops::Sub for Sent {
    type Output = Self;

    fn sub(self, before: Self) -> Self {
        Self { packets: self.packets - before.packets, bytes: self.bytes - before.bytes }
    }
}

pub(crate) async fn index_of(links: &Handle, interface: &str) -> u32 {
    let found = links.link().get().match_name(interface.to_owned()).execute().try_next().await;
    found.unwrap().unwrap().header.index
}
