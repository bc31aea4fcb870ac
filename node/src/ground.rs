//! What a host stands on: where devices, addresses, routes and sockets come from.
//!
//! [`RealGround`] is the machine. Tests have their own, so that a whole daemon runs where nothing may be changed.

use crate::device::{self, BackendChoice, Device, DeviceError};
use crate::drop_rule::{self, DropRule};
use crate::guard::child::GuardChild;
use crate::link::{HostRoute, LinkConfig, LinkError, Links};
use crate::mark::Mark;
use crate::probe::ProbeSockets;
use futures::future::BoxFuture;
use mesh_node_core::Link;
use mesh_types::{Overlay, PublicKey};
use std::path::PathBuf;

/// How devices and links come about: the real thing, or in a test a pretence.
pub trait Ground: Send + Sync {
    /// Makes or takes over the interface.
    fn open(&self, ours: PublicKey) -> BoxFuture<'_, Result<Box<dyn Device>, DeviceError>>;

    /// Takes away a device with the key `ours` that an earlier run left; whether there was one.
    fn clear(&self, ours: PublicKey) -> BoxFuture<'_, Result<bool, DeviceError>>;

    /// Gives the interface its addresses, routes and MTU, and brings it up.
    fn configure(&self, config: LinkConfig) -> BoxFuture<'_, Result<(), LinkError>>;

    /// The host's routes that the overlay would hide.
    fn overlaps(&self, overlay: Overlay) -> BoxFuture<'_, Result<Vec<HostRoute>, LinkError>>;

    /// Opens the sockets for probes on the interface; `None` where there are no packets.
    fn probes(&self, link: &Link) -> std::io::Result<Option<ProbeSockets>>;

    /// Keeps our own datagrams out of our own interface from now on; false if they cannot be told, as they are not marked.
    fn make_drop_rule(&self) -> std::io::Result<bool>;

    /// How many it kept out; `NotFound` if somebody has removed the rule.
    fn count_dropped(&self) -> std::io::Result<u64>;

    /// Undoes [`Ground::make_drop_rule`]. Harmless if there is no rule.
    fn remove_drop_rule(&self) -> std::io::Result<()>;

    /// Starts the guard over a device that outlives this process; `None` where somebody else does.
    fn guard(&self) -> std::io::Result<Option<GuardChild>>;
}

/// The host's real interfaces.
pub struct RealGround {
    /// The interface.
    pub interface: String,
    /// Which WireGuard.
    pub backend: BackendChoice,
    /// On all of our own datagrams.
    pub mark: Mark,
    /// The state directory by which a guard of our own knows whose the device is; `None` if a supervisor starts one.
    pub guarded_by: Option<PathBuf>,
}

impl Ground for RealGround {
    fn open(&self, ours: PublicKey) -> BoxFuture<'_, Result<Box<dyn Device>, DeviceError>> {
        Box::pin(device::open(&self.interface, self.backend, Some(ours)))
    }

    fn clear(&self, ours: PublicKey) -> BoxFuture<'_, Result<bool, DeviceError>> {
        Box::pin(device::clear(&self.interface, ours))
    }

    fn configure(&self, config: LinkConfig) -> BoxFuture<'_, Result<(), LinkError>> {
        Box::pin(async move { Links::open()?.configure(&self.interface, &config).await.map(|_| ()) })
    }

    fn overlaps(&self, overlay: Overlay) -> BoxFuture<'_, Result<Vec<HostRoute>, LinkError>> {
        Box::pin(async move { Links::open()?.overlaps(&overlay, &self.interface).await })
    }

    fn probes(&self, link: &Link) -> std::io::Result<Option<ProbeSockets>> {
        ProbeSockets::open(&self.interface, link.addresses).map(Some)
    }

    fn make_drop_rule(&self) -> std::io::Result<bool> {
        if self.mark.value == 0 {
            return Ok(false);
        }
        DropRule::new(&self.interface, self.mark).make().map(|()| true)
    }

    fn count_dropped(&self) -> std::io::Result<u64> {
        DropRule::new(&self.interface, self.mark).count()
    }

    fn remove_drop_rule(&self) -> std::io::Result<()> {
        drop_rule::remove(&self.interface)
    }

    fn guard(&self) -> std::io::Result<Option<GuardChild>> {
        self.guarded_by.as_deref().map(|state_dir| GuardChild::start(state_dir, &self.interface)).transpose()
    }
}
