//! What is told to an engine, and what it tells of itself: the words of WireGuard's cross-platform userspace API, typed.

use mesh_types::{AllowedIp, PresharedKey, PrivateKey, PublicKey};
use std::net::SocketAddr;
use std::time::{Duration, Instant, SystemTime};

/// One change to a device.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Change {
    /// A new key, or none: then the device is silent.
    PrivateKey(Option<PrivateKey>),
    /// Another UDP port; 0 lets the system choose.
    ListenPort(u16),
    /// Another mark on outgoing packets; 0 is none.
    FwMark(u32),
    /// Takes all peers away.
    RemoveAllPeers,
    /// Changes one peer.
    Peer(PeerChange),
}

/// A change to one peer.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PeerChange {
    /// Which.
    pub key: PublicKey,
    /// What becomes of it.
    pub kind: PeerChangeKind,
    /// A new preshared key; `Some(None)` takes it away.
    pub preshared_key: Option<Option<PresharedKey>>,
    /// Where to send from now on.
    pub endpoint: Option<SocketAddr>,
    /// Seconds between keepalives; `Some(None)` turns them off.
    pub keepalive: Option<Option<u16>>,
    /// Whether the allowed IPs that it has are taken away first.
    pub replace_allowed_ips: bool,
    /// Allowed IPs to give to it, taken from whoever has them.
    pub allowed_ips: Vec<AllowedIp>,
}

/// What becomes of a peer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PeerChangeKind {
    /// It is made if it is not there.
    Set,
    /// It is changed only if it is there.
    Update,
    /// It is made anew, without session and counters.
    Recreate,
    /// It is taken away.
    Remove,
}

impl PeerChange {
    /// A change that only names the peer.
    pub fn new(key: PublicKey, kind: PeerChangeKind) -> Self {
        Self {
            key,
            kind,
            preshared_key: None,
            endpoint: None,
            keepalive: None,
            replace_allowed_ips: false,
            allowed_ips: Vec::new(),
        }
    }
}

/// A device as it is.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct DeviceState {
    /// Its key.
    pub private_key: Option<PrivateKey>,
    /// The public half of it.
    pub public_key: Option<PublicKey>,
    /// Its UDP port; 0 if it has no socket.
    pub listen_port: u16,
    /// The mark on its packets.
    pub fwmark: u32,
    /// Datagrams of its own that came out of its own interface, to be carried by themselves; they were dropped.
    pub looped_datagrams: u64,
    /// Its peers, by public key.
    pub peers: Vec<PeerState>,
}

/// A peer as it is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PeerState {
    /// Who it is.
    pub key: PublicKey,
    /// Mixed into the handshake, if any.
    pub preshared_key: Option<PresharedKey>,
    /// Where the engine sends.
    pub endpoint: Option<SocketAddr>,
    /// How many endpoints were refused, or given up, because they are barred (`Engine::bar`).
    pub refused_endpoints: u64,
    /// The last of them.
    pub last_refused_endpoint: Option<SocketAddr>,
    /// Seconds between keepalives, if any.
    pub keepalive: Option<u16>,
    /// What it may send from, in order.
    pub allowed_ips: Vec<AllowedIp>,
    /// The last completed handshake, by the host's clock at that moment.
    pub last_handshake: Option<SystemTime>,
    /// When something authentic came from it last.
    pub last_received: Option<Instant>,
    /// Bytes received from it, authenticated, with WireGuard's own.
    pub rx_bytes: u64,
    /// Bytes sent to it, with WireGuard's own.
    pub tx_bytes: u64,
}

/// A point in time as WireGuard writes it: since 1970.
pub(crate) fn since_1970(time: SystemTime) -> Duration {
    time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default()
}
