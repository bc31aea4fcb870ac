//! The embedded engine as a device.
//!
//! Lives inside this process: its sessions end with it, and a restart on the same port costs one handshake per active
//! peer. `wg(8)` sees it over the usual socket, unless an engine of the same name, in another network namespace, has that.

use super::{Backend, Device, DeviceError};
use crate::link::netlink::Netlink;
use futures::FutureExt as _;
use futures::future::BoxFuture;
use mesh_node_core::device::{ActualDevice, ActualPeer, DeviceUpdate, NewPeer, PeerChange, PeerUpdate};
use mesh_types::{AllowedIp, MeshTime, PublicKey};
use mesh_wireguard::TunError;
use mesh_wireguard::engine::{self, Change, Engine, EngineError, PeerChangeKind};
use mesh_wireguard::uapi::{self, Uapi};
use std::collections::BTreeSet;
use std::io;
use std::path::Path;
use std::sync::Arc;
use tokio::task::spawn_blocking;
use tracing::debug;

/// WireGuard in this process.
pub struct Userspace {
    interface: String,
    index: u32,
    // Before the engine, so that nobody asks for what is going.
    _uapi: Option<Uapi>,
    engine: Arc<Engine>,
    /// Ranges in which the engine takes no endpoint.
    barred: BTreeSet<AllowedIp>,
}

impl Userspace {
    /// Makes the interface, with the engine on it, without key or peers. It takes packets once it has a private key.
    pub async fn open(interface: &str) -> Result<Self, DeviceError> {
        let netlink = Netlink::open().map_err(|error| DeviceError::system("open a netlink socket", error))?;
        if let Some(link) = netlink.link(interface).await.map_err(|e| DeviceError::system("look at links", e))? {
            return Err(DeviceError::NameTaken { interface: interface.to_owned(), kind: link.kind });
        }
        let engine = Arc::new(Engine::start(interface, None)?);
        let made = netlink.link(interface).await.map_err(|e| DeviceError::system("look at links", e))?;
        let index = made.ok_or_else(|| DeviceError::Gone { interface: interface.to_owned() })?.index;
        let uapi = Uapi::serve(engine.clone(), Path::new(uapi::DIRECTORY))
            .inspect_err(|error| debug!(%error, interface, "wg(8) does not see this interface"))
            .ok();
        Ok(Self { interface: interface.to_owned(), index, _uapi: uapi, engine, barred: BTreeSet::new() })
    }

    async fn read_all(&mut self) -> Result<ActualDevice, DeviceError> {
        self.check_alive().await?;
        let state = self.engine.read();
        Ok(ActualDevice {
            public_key: state.public_key,
            listen_port: state.listen_port,
            fwmark: state.fwmark,
            barred: Some(self.barred.clone()),
            looped: state.looped_datagrams,
            peers: state.peers.into_iter().map(|peer| (peer.key, actual_peer(peer))).collect(),
        })
    }

    async fn apply_all(&mut self, update: &DeviceUpdate) -> Result<(), DeviceError> {
        self.check_alive().await?;
        if !update.peers.is_empty() && update.private_key.is_none() && self.engine.public_key().is_none() {
            return Err(DeviceError::NoPrivateKey { interface: self.interface.clone() });
        }
        if let Some(barred) = &update.barred {
            self.engine.bar(barred.iter().copied().collect());
            self.barred.clone_from(barred);
        }
        let changes = changes(update);
        let engine = self.engine.clone();
        // Waits for threads of the engine, and makes a Diffie-Hellman for each new peer.
        spawn_blocking(move || engine.apply(&changes)).await.map_err(ended)??;
        Ok(())
    }

    /// The engine ends when its interface is taken away. What is left of it is cleared away then, so that the name is
    /// free at once.
    async fn check_alive(&mut self) -> Result<(), DeviceError> {
        if self.engine.is_alive() {
            return Ok(());
        }
        self.delete_link().await?;
        Err(DeviceError::Gone { interface: self.interface.clone() })
    }

    /// Closing the descriptors does it too, but only when the last thread is through; this is now.
    async fn delete_link(&self) -> Result<(), DeviceError> {
        let failed = |error| DeviceError::system(format!("remove interface {}", self.interface), error);
        Netlink::open().map_err(failed)?.delete_link(self.index).await.map_err(failed)
    }

    async fn take_away(self) -> Result<(), DeviceError> {
        let removed = self.delete_link().await;
        spawn_blocking(move || drop(self)).await.map_err(ended)?;
        removed
    }
}

impl Device for Userspace {
    fn backend(&self) -> Backend {
        Backend::Userspace
    }

    fn interface(&self) -> &str {
        &self.interface
    }

    fn read(&mut self) -> BoxFuture<'_, Result<ActualDevice, DeviceError>> {
        self.read_all().boxed()
    }

    fn apply<'a>(&'a mut self, update: &'a DeviceUpdate) -> BoxFuture<'a, Result<(), DeviceError>> {
        self.apply_all(update).boxed()
    }

    fn remove(self: Box<Self>) -> BoxFuture<'static, Result<(), DeviceError>> {
        self.take_away().boxed()
    }
}

fn actual_peer(peer: engine::PeerState) -> ActualPeer {
    ActualPeer {
        preshared_key: peer.preshared_key,
        endpoint: peer.endpoint,
        refused: peer.refused_endpoints,
        last_refused: peer.last_refused_endpoint,
        keepalive: peer.keepalive,
        allowed_ips: peer.allowed_ips.into_iter().collect(),
        last_handshake: peer.last_handshake.map(MeshTime::from_system),
        rx_bytes: peer.rx_bytes,
        tx_bytes: peer.tx_bytes,
    }
}

fn changes(update: &DeviceUpdate) -> Vec<Change> {
    let mut changes = Vec::with_capacity(update.peers.len() + 3);
    // The mark and the port come before the key, with which the engine begins to listen.
    changes.extend(update.fwmark.map(Change::FwMark));
    changes.extend(update.listen_port.map(Change::ListenPort));
    changes.extend(update.private_key.clone().map(|key| Change::PrivateKey(Some(key))));
    changes.extend(update.peers.iter().map(|(key, change)| Change::Peer(peer_change(*key, change))));
    changes
}

fn peer_change(key: PublicKey, change: &PeerChange) -> engine::PeerChange {
    match change {
        PeerChange::Remove => engine::PeerChange::new(key, PeerChangeKind::Remove),
        PeerChange::Add(new) => whole(key, PeerChangeKind::Set, new),
        PeerChange::Recreate(new) => whole(key, PeerChangeKind::Recreate, new),
        PeerChange::Modify(PeerUpdate { preshared_key, endpoint, keepalive, allowed_ips }) => engine::PeerChange {
            preshared_key: preshared_key.clone(),
            endpoint: *endpoint,
            keepalive: *keepalive,
            replace_allowed_ips: allowed_ips.is_some(),
            allowed_ips: allowed_ips.iter().flatten().copied().collect(),
            ..engine::PeerChange::new(key, PeerChangeKind::Update)
        },
    }
}

fn whole(key: PublicKey, kind: PeerChangeKind, new: &NewPeer) -> engine::PeerChange {
    engine::PeerChange {
        preshared_key: Some(new.preshared_key.clone()),
        endpoint: new.endpoint,
        keepalive: Some(new.keepalive.filter(|seconds| *seconds > 0)),
        replace_allowed_ips: true,
        allowed_ips: new.allowed_ips.iter().copied().collect(),
        ..engine::PeerChange::new(key, kind)
    }
}

impl From<EngineError> for DeviceError {
    fn from(error: EngineError) -> Self {
        match error {
            EngineError::Tun(error) => error.into(),
            EngineError::PortTaken { port } => Self::PortTaken { port },
            EngineError::Gone { interface } => Self::Gone { interface },
            EngineError::System { doing, source } => Self::system(doing, source),
        }
    }
}

impl From<TunError> for DeviceError {
    fn from(error: TunError) -> Self {
        match error {
            TunError::Open(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                Self::Privilege { doing: "open /dev/net/tun".to_owned() }
            }
            TunError::Open(source) => Self::NoTun { source },
            TunError::Exists(interface) => Self::Exists { interface },
            TunError::System { doing, source } => Self::system(doing, source),
        }
    }
}

fn ended(error: tokio::task::JoinError) -> DeviceError {
    DeviceError::system("let the userspace engine work", io::Error::other(error))
}
