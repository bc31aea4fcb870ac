//! Where a host has its underlay addresses, and what interfaces have sent.

use crate::machine::Machine;
use futures::TryStreamExt as _;
use rtnetlink::packet_route::link::LinkAttribute;
use rtnetlink::packet_route::neighbour::NeighbourState;
use rtnetlink::{Handle, LinkUnspec, LinkVeth, RouteMessageBuilder};
use std::net::Ipv4Addr;

/// The host's end of its cable in the lab.
pub(crate) const CABLE: &str = "eth0";
/// A link-layer address that no host has.
const NOBODY: [u8; 6] = [2, 0, 0, 0, 0, 99];

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

/// Sends to everywhere by cable: the lab's network has no router.
pub(crate) async fn route_all(machine: &Machine) {
    let links = machine.links();
    let route = RouteMessageBuilder::<Ipv4Addr>::new().output_interface(index_of(&links, CABLE).await);
    links.route().add(route.build()).execute().await.unwrap();
}

/// Has the cable's packets to an address go to an interface that nobody has.
pub(crate) async fn block(machine: &Machine, address: Ipv4Addr) {
    let links = machine.links();
    let neighbours = links.neighbours().add(index_of(&links, CABLE).await, address.into());
    let nobody = neighbours.link_layer_address(&NOBODY).state(NeighbourState::Permanent).replace();
    nobody.execute().await.unwrap();
}

pub(crate) async fn unblock(machine: &Machine, address: Ipv4Addr) {
    let links = machine.links();
    let message = links.neighbours().add(index_of(&links, CABLE).await, address.into()).message_mut().clone();
    links.neighbours().del(message).execute().await.unwrap();
}

/// The link-layer address of the host's end of its cable.
pub(crate) async fn link_layer_address(machine: &Machine) -> [u8; 6] {
    let links = machine.links();
    let found = links.link().get().match_name(CABLE.to_owned()).execute().try_next().await.unwrap().unwrap();
    let address = found.attributes.into_iter().find_map(|attribute| match attribute {
        LinkAttribute::Address(address) => address.try_into().ok(),
        _ => None,
    });
    address.unwrap()
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
