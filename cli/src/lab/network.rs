//! The lab's network: one bridge, and a cable to every host.
//!
//! All of it is made and changed by netlink. Addresses come from the documentation ranges 192.0.2.0/24 and
//! 2001:db8::/64, so that nothing here can be mistaken for a real network.

use super::host::Host;
use super::world::World;
use anyhow::{Context as _, Result};
use futures::TryStreamExt as _;
use rtnetlink::packet_route::address::AddressMessage;
use rtnetlink::packet_route::link::{InfoData, InfoVeth};
use rtnetlink::{Handle, LinkBridge, LinkMessageBuilder, LinkUnspec, LinkVeth};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The host's end of its cable.
const INTERFACE: &str = "eth0";
const BRIDGE: &str = "lab";

/// A network of hosts, inside a [`World`].
#[derive(Debug)]
pub struct Lab {
    directory: PathBuf,
    links: Handle,
    bridge: u32,
    cables: u32,
}

impl Lab {
    /// Makes the bridge. The world is proof that this process is where it may.
    pub async fn new(world: &World) -> Result<Self> {
        let links = connect()?;
        set_up(&links, "lo").await?;
        links.link().add(LinkBridge::new(BRIDGE).build()).execute().await.context("cannot make the lab's bridge")?;
        let bridge = index_of(&links, BRIDGE).await?;
        Ok(Self { directory: world.directory().to_owned(), links, bridge, cables: 0 })
    }

    /// Where logs and state of the hosts may lie.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Adds a host with these addresses (/24 or /64) on its cable.
    pub async fn host(&mut self, name: &str, addresses: &[IpAddr]) -> Result<Arc<Host>> {
        let host = Host::new(name, &self.directory)?;
        self.cables += 1;
        let port = port_of(name);
        let far_end = LinkMessageBuilder::<LinkUnspec>::new().name(INTERFACE).setns_by_fd(host.namespace()).build();
        let cable = LinkMessageBuilder::<LinkVeth>::new(&port, INTERFACE)
            .set_info_data(InfoData::Veth(InfoVeth::Peer(far_end)))
            .controller(self.bridge)
            .up()
            .build();
        self.links.link().add(cable).execute().await.with_context(|| format!("cannot lay a cable to {name}"))?;
        let inside = host.enter(connect)?;
        set_up(&inside, "lo").await?;
        set_up(&inside, INTERFACE).await?;
        for address in addresses {
            add_address(&inside, *address).await?;
        }
        host.set_addresses(addresses.to_vec());
        Ok(Arc::new(host))
    }

    /// Moves a host to other addresses: the old ones go, the new ones come, at once.
    pub async fn readdress(&self, host: &Host, addresses: &[IpAddr]) -> Result<()> {
        let inside = host.enter(connect)?;
        for address in host.addresses() {
            remove_address(&inside, address).await?;
        }
        for address in addresses {
            add_address(&inside, *address).await?;
        }
        host.set_addresses(addresses.to_vec());
        Ok(())
    }

    /// Pulls the host's cable out; its interface loses carrier.
    pub async fn unplug(&self, host: &Host) -> Result<()> {
        let port = LinkUnspec::new_with_name(&port_of(host.name())).down().build();
        self.links.link().set(port).execute().await.with_context(|| format!("cannot unplug {}", host.name()))
    }

    /// Puts the host's cable back.
    pub async fn plug(&self, host: &Host) -> Result<()> {
        set_up(&self.links, &port_of(host.name())).await
    }
}

/// The bridge's end of a host's cable; interface names have 15 characters.
fn port_of(name: &str) -> String {
    format!("p-{}", name.chars().take(13).collect::<String>())
}

fn connect() -> Result<Handle> {
    let (connection, handle, _) = rtnetlink::new_connection().context("cannot open netlink")?;
    tokio::spawn(connection);
    Ok(handle)
}

async fn index_of(links: &Handle, name: &str) -> Result<u32> {
    let found = links.link().get().match_name(name.to_owned()).execute().try_next().await;
    let link = found.with_context(|| format!("cannot find interface {name}"))?;
    Ok(link.with_context(|| format!("there is no interface {name}"))?.header.index)
}

async fn set_up(links: &Handle, name: &str) -> Result<()> {
    let link = LinkUnspec::new_with_name(name).up().build();
    links.link().set(link).execute().await.with_context(|| format!("cannot set interface {name} up"))
}

fn prefix_of(address: IpAddr) -> u8 {
    if address.is_ipv4() { 24 } else { 64 }
}

async fn add_address(links: &Handle, address: IpAddr) -> Result<()> {
    let index = index_of(links, INTERFACE).await?;
    let mut request = links.address().add(index, address, prefix_of(address));
    if address.is_ipv6() {
        // Nobody else has it, and without this it would be of no use for a second.
        request.message_mut().header.flags |= rtnetlink::packet_route::address::AddressHeaderFlags::Nodad;
    }
    request.execute().await.with_context(|| format!("cannot add address {address}"))
}

async fn remove_address(links: &Handle, address: IpAddr) -> Result<()> {
    let index = index_of(links, INTERFACE).await?;
    let all: Vec<AddressMessage> = links.address().get().set_link_index_filter(index).execute().try_collect().await?;
    let ours = all.into_iter().find(|message| has_address(message, address));
    let message = ours.with_context(|| format!("there is no address {address}"))?;
    links.address().del(message).execute().await.with_context(|| format!("cannot remove address {address}"))
}

fn has_address(message: &AddressMessage, address: IpAddr) -> bool {
    use rtnetlink::packet_route::address::AddressAttribute;
    message.attributes.iter().any(|attribute| matches!(attribute, AddressAttribute::Address(held) if *held == address))
}
