//! The kernel's WireGuard, over generic netlink.
//!
//! The device outlives this program: it is left running at the end, and taken over by its key at the next start with not
//! a packet lost. Between making and keying it bears a mark instead, see [`mark`], so that what a crash leaves there is
//! known for ours. The key is read through `wireguard-control`; changes and readings go in batches of our own, as
//! that crate sends a peer whole for each change, brings a removed peer back, and does not join a peer that a dump cuts
//! in two.

use super::exchange::Family;
use super::{Backend, Device, DeviceError, kernel_message};
use crate::link::netlink::{Link, Netlink, TIMEOUT};
use futures::future::{BoxFuture, FutureExt as _, ready};
use mesh_node_core::device::{ActualDevice, DeviceUpdate};
use mesh_types::PublicKey;
use netlink_packet_core::{NLM_F_ACK, NLM_F_DUMP};
use netlink_packet_wireguard::{WireguardAttribute, WireguardCmd};
use std::io;
use tracing::info;
use wireguard_control::InterfaceName;

/// A dump that a change ran into is begun anew this often. We are the only ones to change it, as a rule.
const DUMP_ATTEMPTS: u32 = 4;

/// A kernel device.
pub struct Kernel {
    interface: String,
    index: u32,
    netlink: Netlink,
    family: Family,
}

/// What the kernel calls such an interface.
const KIND: &str = "wireguard";

/// The group of an interface that nobody has put into one.
const UNMARKED: u32 = 0;

/// Whose an interface is.
#[derive(Debug)]
enum Owner {
    Nobody,
    Us(u32),
    Other(DeviceError),
}

impl Kernel {
    /// Makes the device, or takes over the one that is ours.
    pub async fn open(interface: &str, ours: Option<PublicKey>) -> Result<Self, DeviceError> {
        let netlink = open_netlink()?;
        match owner(&netlink, interface, ours).await? {
            Owner::Other(error) => Err(error),
            Owner::Us(index) => {
                info!(interface, "taking over our running kernel device");
                Self::attach(netlink, interface, index).await
            }
            Owner::Nobody => {
                let made = netlink.add_wireguard_link(interface, ours.map_or(UNMARKED, mark)).await;
                made.map_err(|error| creation_error(interface, error))?;
                let link = netlink.link(interface).await.map_err(|e| looking_at(interface, e))?;
                let index = link.ok_or_else(|| DeviceError::Gone { interface: interface.to_owned() })?.index;
                Self::attach(netlink, interface, index).await
            }
        }
    }

    /// Takes over the device if there is one and it is ours; refuses another's.
    pub async fn adopt(interface: &str, ours: Option<PublicKey>) -> Result<Option<Self>, DeviceError> {
        let netlink = open_netlink()?;
        match owner(&netlink, interface, ours).await? {
            Owner::Nobody => Ok(None),
            Owner::Us(index) => Self::attach(netlink, interface, index).await.map(Some),
            Owner::Other(error) => Err(error),
        }
    }

    async fn attach(netlink: Netlink, interface: &str, index: u32) -> Result<Self, DeviceError> {
        let family = bounded(Family::find()).await;
        let family = family.map_err(|error| DeviceError::system("find WireGuard in the kernel", error))?;
        Ok(Self { interface: interface.to_owned(), index, netlink, family })
    }

    fn dump(&self) -> Result<ActualDevice, DeviceError> {
        let doing = format!("read the WireGuard device {}", self.interface);
        for _ in 0..DUMP_ATTEMPTS {
            if let Some(device) = self.try_dump().map_err(|error| self.error(&doing, error))? {
                return Ok(device);
            }
        }
        Err(self.error(&doing, io::Error::other("it is changed all the time by someone else")))
    }

    /// `None` if a change came in between.
    fn try_dump(&self) -> io::Result<Option<ActualDevice>> {
        let mut device = ActualDevice::default();
        let take = |attributes: &[WireguardAttribute]| kernel_message::decode(attributes, &mut device);
        let whole = self.request(WireguardCmd::GetDevice, Vec::new(), NLM_F_DUMP, take)?;
        Ok(whole.then_some(device))
    }

    fn apply_all(&self, update: &DeviceUpdate) -> Result<(), DeviceError> {
        for message in kernel_message::encode(update) {
            if let Err(error) = self.request(WireguardCmd::SetDevice, message, NLM_F_ACK, |_| {}) {
                return Err(match (error.raw_os_error(), update.listen_port) {
                    (Some(libc::EADDRINUSE), Some(port)) => DeviceError::PortTaken { port },
                    _ => self.error(&format!("change the WireGuard device {}", self.interface), error),
                });
            }
        }
        Ok(())
    }

    /// Addresses the device by index, so that another of the same name is never touched.
    fn request(
        &self,
        cmd: WireguardCmd,
        mut attributes: Vec<WireguardAttribute>,
        flags: u16,
        answer: impl FnMut(&[WireguardAttribute]),
    ) -> io::Result<bool> {
        attributes.insert(0, WireguardAttribute::IfIndex(self.index));
        self.family.request(cmd, attributes, flags, answer)
    }

    fn error(&self, doing: &str, error: io::Error) -> DeviceError {
        match error.raw_os_error() {
            Some(libc::ENODEV) => DeviceError::Gone { interface: self.interface.clone() },
            _ => DeviceError::system(doing, error),
        }
    }

    async fn take_away(self) -> Result<(), DeviceError> {
        let removed = self.netlink.delete_link(self.index).await;
        removed.map_err(|error| DeviceError::system(format!("remove interface {}", self.interface), error))
    }
}

impl Device for Kernel {
    fn backend(&self) -> Backend {
        Backend::Kernel
    }

    fn interface(&self) -> &str {
        &self.interface
    }

    fn read(&mut self) -> BoxFuture<'_, Result<ActualDevice, DeviceError>> {
        ready(self.dump()).boxed()
    }

    fn apply<'a>(&'a mut self, update: &'a DeviceUpdate) -> BoxFuture<'a, Result<(), DeviceError>> {
        ready(self.apply_all(update)).boxed()
    }

    fn remove(self: Box<Self>) -> BoxFuture<'static, Result<(), DeviceError>> {
        self.take_away().boxed()
    }
}

async fn owner(netlink: &Netlink, interface: &str, ours: Option<PublicKey>) -> Result<Owner, DeviceError> {
    let Some(link) = netlink.link(interface).await.map_err(|error| looking_at(interface, error))? else {
        return Ok(Owner::Nobody);
    };
    let key = if link.kind == KIND { public_key(interface).await? } else { None };
    Ok(judge(&link, key, ours))
}

/// A device is ours when its key is ours. One without a key is ours when it bears our mark: that is what a crash between
/// making and keying leaves behind. Any other was made by somebody who is about to use it.
fn judge(link: &Link, key: Option<PublicKey>, ours: Option<PublicKey>) -> Owner {
    let interface = link.name.clone();
    match (key, ours) {
        _ if link.kind != KIND => Owner::Other(DeviceError::NameTaken { interface, kind: link.kind.clone() }),
        (Some(key), ours) if Some(key) != ours => {
            Owner::Other(DeviceError::ForeignKey { interface, found: key.to_string() })
        }
        (None, ours) if ours.is_none_or(|ours| link.group != mark(ours)) => {
            Owner::Other(DeviceError::Keyless { interface })
        }
        _ => Owner::Us(link.index),
    }
}

/// The group that a device of this key is made in. It is the one property of a link that Linux lets its maker choose in
/// the same breath, and nobody else sets by chance.
fn mark(ours: PublicKey) -> u32 {
    let [a, b, c, d, ..] = *ours.as_bytes();
    u32::from_be_bytes([a, b, c, d]).max(UNMARKED + 1)
}

/// Asks for the key that an existing device has.
async fn public_key(interface: &str) -> Result<Option<PublicKey>, DeviceError> {
    let invalid = || DeviceError::InvalidName { interface: interface.to_owned() };
    let name: InterfaceName = interface.parse().map_err(|_| invalid())?;
    let read = tokio::task::spawn_blocking(move || {
        wireguard_control::Device::get(&name, wireguard_control::Backend::Kernel).map(|device| device.public_key)
    });
    let read = tokio::time::timeout(TIMEOUT, read).await.map_err(io::Error::from);
    let key = read.and_then(|joined| joined.map_err(io::Error::other).flatten());
    let key = key.map_err(|error| DeviceError::system(format!("read the WireGuard device {interface}"), error))?;
    Ok(key.map(|key| PublicKey::from_bytes(key.0)))
}

fn open_netlink() -> Result<Netlink, DeviceError> {
    Netlink::open().map_err(|error| DeviceError::system("open a netlink socket", error))
}

fn looking_at(interface: &str, error: io::Error) -> DeviceError {
    DeviceError::system(format!("look at interface {interface}"), error)
}

fn creation_error(interface: &str, error: io::Error) -> DeviceError {
    match error.raw_os_error() {
        // Linux knows no such kind of link, and found no module for it.
        Some(libc::EOPNOTSUPP | libc::ENODEV) => DeviceError::KernelMissing,
        _ => DeviceError::system(format!("make the WireGuard interface {interface}"), error),
    }
}

async fn bounded<T>(call: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    tokio::time::timeout(TIMEOUT, call).await?
}

#[cfg(test)]
mod tests {
    use super::*;

    const OURS: PublicKey = PublicKey::from_bytes([7; 32]);
    const OTHER: PublicKey = PublicKey::from_bytes([9; 32]);

    fn verdict(kind: &str, group: u32, key: Option<PublicKey>, ours: Option<PublicKey>) -> &'static str {
        let link = Link {
            index: 3,
            name: "mesh0".to_owned(),
            kind: kind.to_owned(),
            mtu: 1_420,
            up: false,
            running: false,
            loopback: false,
            group,
            lower: None,
            master: None,
            ends: Vec::new(),
        };
        match judge(&link, key, ours) {
            Owner::Us(3) => "ours",
            Owner::Other(DeviceError::NameTaken { .. }) => "another kind",
            Owner::Other(DeviceError::ForeignKey { .. }) => "another key",
            Owner::Other(DeviceError::Keyless { .. }) => "no key",
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_device_is_ours_by_its_key_or_before_it_has_one_by_the_mark_of_that_key() {
        for (kind, group, key, ours, expected) in [
            (KIND, mark(OURS), Some(OURS), Some(OURS), "ours"),
            (KIND, UNMARKED, Some(OURS), Some(OURS), "ours"),
            (KIND, mark(OURS), None, Some(OURS), "ours"),
            (KIND, UNMARKED, None, Some(OURS), "no key"),
            (KIND, mark(OTHER), None, Some(OURS), "no key"),
            (KIND, mark(OURS), Some(OTHER), Some(OURS), "another key"),
            (KIND, UNMARKED, None, None, "no key"),
            (KIND, UNMARKED, Some(OTHER), None, "another key"),
            ("veth", mark(OURS), None, Some(OURS), "another kind"),
        ] {
            assert_eq!(verdict(kind, group, key, ours), expected, "{kind} {group} {key:?} {ours:?}");
        }
    }

    #[test]
    fn every_key_has_a_mark() {
        assert_ne!(mark(PublicKey::from_bytes([0; 32])), UNMARKED);
    }
}
