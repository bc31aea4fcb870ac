//! The embedded engine (gotatun) on a TUN interface of our own.
//!
//! Lives inside this process: its sessions end with it, and a restart on the same port costs one handshake per active
//! peer. Gotatun leaves an allowed IP with its old peer when another gets it, so that the table is kept straight here.

use super::cryptokey::Cryptokey;
use super::socket::Lender;
use super::tun::{self, TunMtu, TunReader, TunWriter};
use super::{Backend, Device, DeviceError};
use crate::link::netlink::Netlink;
use futures::FutureExt;
use futures::future::BoxFuture;
use gotatun::device::configure::{DeviceWrite, PeerStats};
use gotatun::device::{self as engine, DeviceBuilder, Peer};
use gotatun::x25519;
use ipnetwork::IpNetwork;
use mesh_node_core::device::{ActualDevice, ActualPeer, DeviceUpdate, NewPeer, PeerChange, PeerUpdate};
use mesh_types::{AllowedIp, MeshTime, PresharedKey, PublicKey};
use std::collections::{BTreeMap, BTreeSet};
use std::time::SystemTime;

/// The engine tells the age of a handshake, and two readings of one handshake differ by what the two clocks drifted
/// apart in between. Below this many milliseconds it is the same handshake; two real ones are further apart.
const SAME_HANDSHAKE: u64 = 100;

type Transports = (Lender, TunWriter, TunReader);

/// WireGuard in this process.
pub struct Userspace {
    interface: String,
    index: u32,
    engine: engine::Device<Transports>,
    mtu: TunMtu,
    socket: Lender,
    routing: Cryptokey,
    handshakes: BTreeMap<PublicKey, MeshTime>,
    public_key: Option<PublicKey>,
    listen_port: u16,
    fwmark: u32,
}

impl Userspace {
    /// Makes the interface, with the engine on it, without key or peers. It takes packets once it has a private key.
    pub async fn open(interface: &str) -> Result<Self, DeviceError> {
        let netlink = Netlink::open().map_err(|error| DeviceError::system("open a netlink socket", error))?;
        if let Some(link) = netlink.link(interface).await.map_err(|e| DeviceError::system("look at links", e))? {
            return Err(DeviceError::NameTaken { interface: interface.to_owned(), kind: link.kind });
        }
        let (writer, reader, mtu) = tun::create(interface)?;
        let made = netlink.link(interface).await.map_err(|e| DeviceError::system("look at links", e))?;
        let index = made.ok_or_else(|| DeviceError::Gone { interface: interface.to_owned() })?.index;
        let socket = Lender::default();
        let engine = DeviceBuilder::new()
            .with_udp(socket.clone())
            .with_ip_pair(writer, reader)
            .build()
            .await
            .map_err(|error| engine_error("start", &error))?;
        Ok(Self {
            interface: interface.to_owned(),
            index,
            engine,
            mtu,
            socket,
            routing: Cryptokey::default(),
            handshakes: BTreeMap::new(),
            public_key: None,
            listen_port: 0,
            fwmark: 0,
        })
    }

    async fn read_all(&mut self) -> Result<ActualDevice, DeviceError> {
        self.check_alive().await?;
        self.mtu.refresh();
        let now = MeshTime::from_system(SystemTime::now());
        let peers = self.engine.peers().await;
        let peers: BTreeMap<_, _> = peers
            .into_iter()
            .map(|peer| {
                let key = PublicKey::from_bytes(peer.peer.public_key.to_bytes());
                (key, self.actual_peer(key, &peer, now))
            })
            .collect();
        self.handshakes = peers.iter().filter_map(|(key, peer)| Some((*key, peer.last_handshake?))).collect();
        Ok(ActualDevice { public_key: self.public_key, listen_port: self.socket.port(), fwmark: self.fwmark, peers })
    }

    fn actual_peer(&self, key: PublicKey, found: &PeerStats, now: MeshTime) -> ActualPeer {
        let known = self.handshakes.get(&key).copied();
        let last_handshake = found.stats.last_handshake.map(|age| {
            let at = MeshTime(now.0.saturating_sub(u64::try_from(age.as_millis()).unwrap_or(u64::MAX)));
            known.filter(|known| known.0.abs_diff(at.0) < SAME_HANDSHAKE).unwrap_or(at)
        });
        ActualPeer {
            preshared_key: found.peer.preshared_key.map(PresharedKey::from_bytes),
            endpoint: found.peer.endpoint,
            keepalive: found.peer.keepalive,
            allowed_ips: self.routing.held(&key),
            // The engine forgets with the session; that there was a handshake stays true.
            last_handshake: last_handshake.or(known),
            rx_bytes: found.stats.rx_bytes as u64,
            tx_bytes: found.stats.tx_bytes as u64,
        }
    }

    async fn apply_all(&mut self, update: &DeviceUpdate) -> Result<(), DeviceError> {
        self.check_alive().await?;
        self.mtu.refresh();
        if let Some(mark) = update.fwmark.filter(|mark| *mark != self.fwmark) {
            let doing = "set the mark on outgoing packets";
            self.engine.set_fwmark(mark).await.map_err(|error| engine_error(doing, &error))?;
            self.fwmark = mark;
        }
        self.set_identity(update).await?;
        if update.peers.is_empty() {
            return Ok(());
        }
        if self.public_key.is_none() {
            return Err(DeviceError::NoPrivateKey { interface: self.interface.clone() });
        }
        let (routing, handshakes) = (&mut self.routing, &mut self.handshakes);
        let changes = &update.peers;
        self.engine
            .write(async move |device| {
                for (key, change) in changes {
                    change_peer(device, routing, handshakes, *key, change).await;
                }
            })
            .await
            .map_err(|error| engine_error("change peers", &error))
    }

    /// Sets key and port. The engine takes up the lent socket when it sees either change.
    async fn set_identity(&mut self, update: &DeviceUpdate) -> Result<(), DeviceError> {
        let key = update.private_key.as_ref().map(|key| x25519::StaticSecret::from(*key.as_bytes()));
        let public = key.as_ref().map(|key| PublicKey::from_bytes(x25519::PublicKey::from(key).to_bytes()));
        self.listen_port = update.listen_port.unwrap_or(self.listen_port);
        if public.or(self.public_key).is_none() {
            return Ok(());
        }
        let bound = self.socket.port();
        let rebind = bound == 0 || bound != self.listen_port;
        if rebind {
            match self.socket.bind(self.listen_port, self.fwmark) {
                Ok(port) => self.listen_port = port,
                Err(error) => {
                    self.listen_port = bound;
                    return Err(error);
                }
            }
        }
        let key = key.filter(|_| public != self.public_key);
        if key.is_none() && !rebind {
            return Ok(());
        }
        let port = self.listen_port;
        self.engine
            .write(async move |device| {
                device.set_listen_port(port);
                if let Some(key) = key {
                    device.set_private_key(key).await;
                }
            })
            .await
            .map_err(|error| engine_error(&format!("listen on UDP port {port}"), &error))?;
        self.public_key = public.or(self.public_key);
        Ok(())
    }

    /// The engine ends when its interface or its socket breaks. What is left of it is cleared away then, so that the
    /// name is free at once.
    async fn check_alive(&mut self) -> Result<(), DeviceError> {
        if self.engine.wait().now_or_never().is_none() {
            return Ok(());
        }
        self.delete_link().await?;
        Err(DeviceError::Gone { interface: self.interface.clone() })
    }

    /// Closing the descriptors does it too, but some time soon, in tasks of the engine; this is now.
    async fn delete_link(&self) -> Result<(), DeviceError> {
        let failed = |error| DeviceError::system(format!("remove interface {}", self.interface), error);
        Netlink::open().map_err(failed)?.delete_link(self.index).await.map_err(failed)
    }

    async fn take_away(self) -> Result<(), DeviceError> {
        let removed = self.delete_link().await;
        self.engine.stop().await;
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

async fn change_peer(
    device: &mut DeviceWrite<'_, Transports>,
    routing: &mut Cryptokey,
    handshakes: &mut BTreeMap<PublicKey, MeshTime>,
    key: PublicKey,
    change: &PeerChange,
) {
    let engine_key = x25519::PublicKey::from(*key.as_bytes());
    match change {
        PeerChange::Remove | PeerChange::Recreate(_) => {
            device.remove_peer(&engine_key).await;
            routing.release(&key);
            handshakes.remove(&key);
        }
        PeerChange::Add(_) | PeerChange::Modify(_) => {}
    }
    match change {
        PeerChange::Remove => {}
        PeerChange::Add(new) | PeerChange::Recreate(new) => {
            dispossess(device, routing.assign(key, &new.allowed_ips)).await;
            if !device.add_peer(engine_peer(engine_key, new)) {
                modify_peer(device, &engine_key, &replacing_all(new)).await;
            }
        }
        PeerChange::Modify(update) => {
            if let Some(allowed_ips) = &update.allowed_ips
                && routing.knows(&key)
            {
                dispossess(device, routing.assign(key, allowed_ips)).await;
            }
            modify_peer(device, &engine_key, update).await;
        }
    }
}

/// Tells the engine who lost allowed IPs, before another gets them.
async fn dispossess(device: &mut DeviceWrite<'_, Transports>, losers: BTreeMap<PublicKey, BTreeSet<AllowedIp>>) {
    for (loser, left) in losers {
        let update = PeerUpdate { allowed_ips: Some(left), ..PeerUpdate::default() };
        modify_peer(device, &x25519::PublicKey::from(*loser.as_bytes()), &update).await;
    }
}

async fn modify_peer(device: &mut DeviceWrite<'_, Transports>, key: &x25519::PublicKey, update: &PeerUpdate) {
    device
        .modify_peer(key, |peer| {
            if let Some(preshared_key) = &update.preshared_key {
                peer.set_preshared_key(preshared_key.as_ref().map(|key| *key.as_bytes()));
            }
            if update.endpoint.is_some() {
                peer.set_endpoint(update.endpoint);
            }
            if let Some(keepalive) = update.keepalive {
                peer.set_keepalive(keepalive);
            }
            if let Some(allowed_ips) = &update.allowed_ips {
                peer.clear_allowed_ips();
                peer.add_allowed_ips(allowed_ips.iter().map(network));
            }
        })
        .await;
}

/// What [`PeerChange::Add`] means for a peer that is there already.
fn replacing_all(new: &NewPeer) -> PeerUpdate {
    PeerUpdate {
        preshared_key: Some(new.preshared_key.clone()),
        endpoint: new.endpoint,
        keepalive: Some(new.keepalive),
        allowed_ips: Some(new.allowed_ips.clone()),
    }
}

fn engine_peer(key: x25519::PublicKey, new: &NewPeer) -> Peer {
    let mut peer = Peer::new(key).with_allowed_ips(new.allowed_ips.iter().map(network));
    peer.endpoint = new.endpoint;
    peer.keepalive = new.keepalive.filter(|seconds| *seconds > 0);
    peer.preshared_key = new.preshared_key.as_ref().map(|key| *key.as_bytes());
    peer
}

fn network(allowed: &AllowedIp) -> IpNetwork {
    let net = allowed.net();
    IpNetwork::new(net.addr(), net.prefix_len()).expect("a parsed network has a prefix that fits its family")
}

fn engine_error(doing: &str, error: &engine::Error) -> DeviceError {
    DeviceError::Engine { doing: doing.to_owned(), reason: error.to_string() }
}
