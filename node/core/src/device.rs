//! WireGuard's state on an interface: what we want, what is there, and the difference.
//!
//! The vocabulary that the core and every backend share. Backends read an [`ActualDevice`] and apply a
//! [`DeviceUpdate`]; they decide nothing.

use mesh_types::{AllowedIp, MeshTime, PresharedKey, PrivateKey, PublicKey};
use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

/// Everything the device should be.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DesiredDevice {
    /// The node's own key.
    pub private_key: PrivateKey,
    /// UDP port.
    pub listen_port: u16,
    /// Mark on outgoing packets; 0 is none.
    pub fwmark: u32,
    /// Ranges that are reached through the mesh: no endpoint may be inside.
    pub barred: BTreeSet<AllowedIp>,
    /// All peers; any other is removed.
    pub peers: BTreeMap<PublicKey, DesiredPeer>,
}

/// Everything a peer on the device should be.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DesiredPeer {
    /// Mixed into the handshake, if any.
    pub preshared_key: Option<PresharedKey>,
    /// What to do about the endpoint.
    pub endpoint: EndpointIntent,
    /// Seconds between keepalives; `None` is off.
    pub keepalive: Option<u16>,
    /// What the peer may send from, and what is routed to it.
    pub allowed_ips: BTreeSet<AllowedIp>,
}

/// An endpoint is WireGuard's to change as it roams; we only sometimes have a say.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum EndpointIntent {
    /// Whatever the device has.
    Keep,
    /// Send here from now on.
    Set(SocketAddr),
}

/// What a device is found to be.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct ActualDevice {
    /// Public half of its private key; `None` if it has none yet.
    pub public_key: Option<PublicKey>,
    /// UDP port; 0 if not bound.
    pub listen_port: u16,
    /// Mark on outgoing packets; 0 is none.
    pub fwmark: u32,
    /// Ranges in which it takes no endpoint; `None` if it takes whatever authenticated, as the kernel's does.
    pub barred: Option<BTreeSet<AllowedIp>>,
    /// Datagrams of its own that came back out of its own interface, and that it dropped.
    pub looped: u64,
    /// All peers on it.
    pub peers: BTreeMap<PublicKey, ActualPeer>,
}

/// What a peer on a device is found to be.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct ActualPeer {
    /// Mixed into the handshake, if any.
    pub preshared_key: Option<PresharedKey>,
    /// Where the device sends now.
    pub endpoint: Option<SocketAddr>,
    /// Endpoints that the device refused, counted since the peer was made.
    pub refused: u64,
    /// The last of them.
    pub last_refused: Option<SocketAddr>,
    /// Seconds between keepalives; `None` is off.
    pub keepalive: Option<u16>,
    /// What the peer may send from.
    pub allowed_ips: BTreeSet<AllowedIp>,
    /// The last completed handshake, by this host's clock.
    pub last_handshake: Option<MeshTime>,
    /// Bytes received from it, authenticated.
    pub rx_bytes: u64,
    /// Bytes sent to it.
    pub tx_bytes: u64,
}

/// What must change on a device; empty fields stay as they are.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct DeviceUpdate {
    /// New private key.
    pub private_key: Option<PrivateKey>,
    /// New UDP port.
    pub listen_port: Option<u16>,
    /// New mark.
    pub fwmark: Option<u32>,
    /// New ranges in which no endpoint is taken; only for a device that has such. They count for the peers that follow.
    pub barred: Option<BTreeSet<AllowedIp>>,
    /// Peers to change; a key appears once. Removals come first, so that allowed IPs are free for who gets them.
    pub peers: Vec<(PublicKey, PeerChange)>,
}

/// What must change about one peer.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum PeerChange {
    /// Take it away.
    Remove,
    /// Make it, whole. If it exists, all is replaced but session and counters.
    Add(NewPeer),
    /// Change what is given, but only if the peer exists (`WGPEER_F_UPDATE_ONLY`): it never brings one back.
    Modify(PeerUpdate),
    /// Take it away and make it anew in one step, to start a handshake at once (WireGuard begins at most one in five
    /// seconds with a peer that it knows).
    Recreate(NewPeer),
}

/// A peer as it is first put on a device.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct NewPeer {
    /// Mixed into the handshake, if any.
    pub preshared_key: Option<PresharedKey>,
    /// Where to send first, if known.
    pub endpoint: Option<SocketAddr>,
    /// Seconds between keepalives; `None` is off.
    pub keepalive: Option<u16>,
    /// What the peer may send from.
    pub allowed_ips: BTreeSet<AllowedIp>,
}

/// Changes to an existing peer; empty fields stay as they are.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct PeerUpdate {
    /// New preshared key; `Some(None)` takes it away.
    pub preshared_key: Option<Option<PresharedKey>>,
    /// New endpoint.
    pub endpoint: Option<SocketAddr>,
    /// New keepalive; `Some(None)` turns it off.
    pub keepalive: Option<Option<u16>>,
    /// All allowed IPs, replaced.
    pub allowed_ips: Option<BTreeSet<AllowedIp>>,
}

impl DeviceUpdate {
    /// Whether there is nothing to do.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}
