//! Where one case plays: a backend, a host for it, and the keys and peers it is played with.

use crate::host::Host;
use mesh_node::device::fake::{self, Fake};
use mesh_node::device::{self, BackendChoice, Device, DeviceError};
use mesh_node_core::device::{ActualDevice, ActualPeer, DeviceUpdate, NewPeer, PeerChange};
use mesh_types::{AllowedIp, PresharedKey, PrivateKey, PublicKey};
use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};

/// The name of the interface under test.
pub(crate) const INTERFACE: &str = "mesh0";

/// A backend under test.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Kind {
    Fake,
    Userspace,
    Kernel,
}

/// One backend on one host.
#[derive(Clone)]
pub(crate) struct Stage {
    pub(crate) kind: Kind,
    world: Arc<Mutex<Option<fake::Handle>>>,
}

impl Kind {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Fake => "fake",
            Self::Userspace => "userspace",
            Self::Kernel => "kernel",
        }
    }

    /// A host that the backend can work on. The fake needs none of its own.
    pub(crate) fn host(self) -> Option<Host> {
        (self != Self::Fake).then(Host::new)
    }
}

impl Stage {
    pub(crate) fn new(kind: Kind) -> Self {
        Self { kind, world: Arc::default() }
    }

    /// Opens the device as the daemon does at its start.
    pub(crate) async fn try_open(&self, ours: Option<PublicKey>) -> Result<Box<dyn Device>, DeviceError> {
        match self.kind {
            Kind::Fake => Ok(self.open_fake()),
            Kind::Userspace => device::open(INTERFACE, BackendChoice::Userspace, ours).await,
            Kind::Kernel => device::open(INTERFACE, BackendChoice::Kernel, ours).await,
        }
    }

    pub(crate) async fn open(&self, ours: Option<PublicKey>) -> Box<dyn Device> {
        self.try_open(ours).await.unwrap_or_else(|error| panic!("cannot open {INTERFACE}: {error}"))
    }

    /// A device with a key and a port.
    pub(crate) async fn keyed(&self, port: u16) -> Box<dyn Device> {
        let mut device = self.open(None).await;
        let update =
            DeviceUpdate { private_key: Some(private_key(0)), listen_port: Some(port), ..DeviceUpdate::default() };
        device.apply(&update).await.unwrap();
        device
    }

    fn open_fake(&self) -> Box<dyn Device> {
        let mut world = self.world.lock().unwrap();
        match &*world {
            Some(handle) if !handle.is_removed() => Box::new(Fake::adopt(INTERFACE, handle)),
            _ => {
                let (device, handle) = Fake::new(INTERFACE);
                *world = Some(handle);
                Box::new(device)
            }
        }
    }
}

pub(crate) fn private_key(n: u8) -> PrivateKey {
    // Clamped, as every real key is.
    let mut bytes = [n.wrapping_add(1); 32];
    bytes[0] &= 248;
    bytes[31] = (bytes[31] & 127) | 64;
    PrivateKey::from_bytes(bytes)
}

pub(crate) fn public_key(n: u8) -> PublicKey {
    let secret = x25519_dalek::StaticSecret::from(*private_key(n).as_bytes());
    PublicKey::from_bytes(x25519_dalek::PublicKey::from(&secret).to_bytes())
}

pub(crate) fn ips(texts: &[&str]) -> BTreeSet<AllowedIp> {
    texts.iter().map(|text| text.parse().unwrap()).collect()
}

/// A peer with everything set.
pub(crate) fn peer(n: u8) -> NewPeer {
    NewPeer {
        preshared_key: Some(PresharedKey::from_bytes([n + 100; 32])),
        endpoint: Some(format!("192.0.2.{n}:51820").parse().unwrap()),
        keepalive: Some(25),
        allowed_ips: ips(&[&format!("10.9.0.{n}/32"), &format!("fd00:9::{n:x}/128")]),
    }
}

pub(crate) fn peers(changes: impl IntoIterator<Item = (PublicKey, PeerChange)>) -> DeviceUpdate {
    DeviceUpdate { peers: changes.into_iter().collect(), ..DeviceUpdate::default() }
}

/// What was set on the peer, without what the tunnel made of it.
pub(crate) fn settings(peer: &ActualPeer) -> NewPeer {
    NewPeer {
        preshared_key: peer.preshared_key.clone(),
        endpoint: peer.endpoint,
        keepalive: peer.keepalive,
        allowed_ips: peer.allowed_ips.clone(),
    }
}

pub(crate) async fn read(device: &mut Box<dyn Device>) -> ActualDevice {
    device.read().await.unwrap()
}

pub(crate) async fn read_peer(device: &mut Box<dyn Device>, n: u8) -> Option<NewPeer> {
    read(device).await.peers.get(&public_key(n)).map(settings)
}
