//! A device in memory, with WireGuard's semantics and no packets.
//!
//! For tests of what stands above a device. The [`Handle`] is the world outside: it makes handshakes, roams peers and
//! makes calls fail.

use super::cryptokey::Cryptokey;
use super::{Backend, Device, DeviceError};
use futures::FutureExt;
use futures::future::{BoxFuture, ready};
use mesh_node_core::device::{ActualDevice, ActualPeer, DeviceUpdate, NewPeer, PeerChange, PeerUpdate};
use mesh_types::{AllowedIp, MeshTime, PrivateKey, PublicKey};
use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// A device in memory.
#[derive(Debug)]
pub struct Fake {
    interface: String,
    state: Handle,
}

/// The other side of a [`Fake`]: look into it, and play the world around it.
#[derive(Clone, Debug, Default)]
pub struct Handle(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    device: ActualDevice,
    routing: Cryptokey,
    updates: Vec<DeviceUpdate>,
    failures: u32,
    removed: bool,
}

impl Fake {
    /// An empty device.
    pub fn new(interface: &str) -> (Self, Handle) {
        let state = Handle::default();
        (Self { interface: interface.to_owned(), state: state.clone() }, state)
    }

    /// A second owner of the same state, as after a restart of the daemon.
    pub fn adopt(interface: &str, state: &Handle) -> Self {
        Self { interface: interface.to_owned(), state: state.clone() }
    }

    fn call<T>(&self, run: impl FnOnce(&mut State) -> Result<T, DeviceError>) -> Result<T, DeviceError> {
        let mut state = self.state.lock();
        if state.removed {
            return Err(DeviceError::Gone { interface: self.interface.clone() });
        }
        if state.failures > 0 {
            state.failures -= 1;
            let source = std::io::Error::other("made to fail");
            return Err(DeviceError::System { doing: format!("use {}", self.interface), source });
        }
        run(&mut state)
    }
}

impl Device for Fake {
    fn backend(&self) -> Backend {
        Backend::Userspace
    }

    fn interface(&self) -> &str {
        &self.interface
    }

    fn read(&mut self) -> BoxFuture<'_, Result<ActualDevice, DeviceError>> {
        ready(self.call(|state| Ok(state.device.clone()))).boxed()
    }

    fn apply<'a>(&'a mut self, update: &'a DeviceUpdate) -> BoxFuture<'a, Result<(), DeviceError>> {
        let interface = self.interface.clone();
        ready(self.call(|state| state.apply(&interface, update))).boxed()
    }

    fn remove(self: Box<Self>) -> BoxFuture<'static, Result<(), DeviceError>> {
        ready(self.call(|state| {
            *state = State { removed: true, ..State::default() };
            Ok(())
        }))
        .boxed()
    }
}

impl Handle {
    /// What is on the device now.
    pub fn device(&self) -> ActualDevice {
        self.lock().device.clone()
    }

    /// All updates applied so far, oldest first.
    pub fn updates(&self) -> Vec<DeviceUpdate> {
        self.lock().updates.clone()
    }

    /// Whether the interface was taken away.
    pub fn is_removed(&self) -> bool {
        self.lock().removed
    }

    /// Makes the next `count` calls fail.
    pub fn fail_next(&self, count: u32) {
        self.lock().failures = count;
    }

    /// Takes the interface away behind the owner's back.
    pub fn pull(&self) {
        self.lock().removed = true;
    }

    /// Completes a handshake with `peer`, from `endpoint`. Returns whether the device knows it.
    pub fn handshake(&self, peer: &PublicKey, endpoint: SocketAddr, now: MeshTime) -> bool {
        self.change(peer, |peer| {
            peer.endpoint = Some(endpoint);
            peer.last_handshake = Some(now);
        })
    }

    /// Moves bytes to and from `peer`. Returns whether the device knows it.
    pub fn transfer(&self, peer: &PublicKey, rx_bytes: u64, tx_bytes: u64) -> bool {
        self.change(peer, |peer| {
            peer.rx_bytes += rx_bytes;
            peer.tx_bytes += tx_bytes;
        })
    }

    fn change(&self, peer: &PublicKey, change: impl FnOnce(&mut ActualPeer)) -> bool {
        self.lock().device.peers.get_mut(peer).map(change).is_some()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn apply(&mut self, interface: &str, update: &DeviceUpdate) -> Result<(), DeviceError> {
        if let Some(key) = &update.private_key {
            self.device.public_key = Some(public_key(key));
        }
        if let Some(port) = update.listen_port {
            self.device.listen_port = port;
        }
        if let Some(mark) = update.fwmark {
            self.device.fwmark = mark;
        }
        if self.device.public_key.is_none() && !update.peers.is_empty() {
            return Err(DeviceError::NoPrivateKey { interface: interface.to_owned() });
        }
        for (key, change) in &update.peers {
            self.change(*key, change);
        }
        self.updates.push(update.clone());
        Ok(())
    }

    fn change(&mut self, key: PublicKey, change: &PeerChange) {
        match change {
            PeerChange::Remove => self.remove(&key),
            PeerChange::Add(peer) => self.add(key, peer),
            PeerChange::Modify(update) => self.modify(key, update),
            PeerChange::Recreate(peer) => {
                self.remove(&key);
                self.add(key, peer);
            }
        }
    }

    fn remove(&mut self, key: &PublicKey) {
        self.routing.release(key);
        self.device.peers.remove(key);
    }

    fn add(&mut self, key: PublicKey, new: &NewPeer) {
        let peer = self.device.peers.entry(key).or_default();
        peer.preshared_key = new.preshared_key.clone();
        peer.keepalive = new.keepalive.filter(|seconds| *seconds > 0);
        peer.endpoint = new.endpoint.or(peer.endpoint);
        self.route(key, &new.allowed_ips);
    }

    fn modify(&mut self, key: PublicKey, update: &PeerUpdate) {
        let Some(peer) = self.device.peers.get_mut(&key) else { return };
        if let Some(preshared_key) = &update.preshared_key {
            peer.preshared_key = preshared_key.clone();
        }
        if let Some(keepalive) = update.keepalive {
            peer.keepalive = keepalive.filter(|seconds| *seconds > 0);
        }
        peer.endpoint = update.endpoint.or(peer.endpoint);
        if let Some(allowed_ips) = &update.allowed_ips {
            self.route(key, allowed_ips);
        }
    }

    fn route(&mut self, key: PublicKey, allowed_ips: &BTreeSet<AllowedIp>) {
        let mut changed = self.routing.assign(key, allowed_ips);
        changed.insert(key, allowed_ips.clone());
        for (key, allowed_ips) in changed {
            if let Some(peer) = self.device.peers.get_mut(&key) {
                peer.allowed_ips = allowed_ips;
            }
        }
    }
}

fn public_key(key: &PrivateKey) -> PublicKey {
    let secret = x25519_dalek::StaticSecret::from(*key.as_bytes());
    PublicKey::from_bytes(x25519_dalek::PublicKey::from(&secret).to_bytes())
}
