//! Packets: two hosts, a cable, a tunnel, and what happens to it.

use crate::host::Host;
use crate::stage::{INTERFACE, Kind, Stage, private_key, public_key};
use crate::trial;
use libtest_mimic::Trial;
use mesh_node::device::Device;
use mesh_node::link::{LinkConfig, Links};
use mesh_node_core::device::{ActualDevice, DeviceUpdate, NewPeer, PeerChange, PeerUpdate};
use mesh_types::{Overlay, OverlayAddresses, PresharedKey};
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;
use tokio::net::UdpSocket;
use tokio::sync::Mutex;

const PORT: u16 = 51_820;
const ECHO_PORT: u16 = 7_000;

/// How long a reply is waited for before the next try.
const BETWEEN_TRIES: Duration = Duration::from_millis(100);

type Case = fn(Kind);

pub(crate) fn trials(kind: Kind) -> Vec<Trial> {
    let cases: [(&str, Case); 10] = [
        ("packets_pass_both_ways_in_both_families", packets_pass_both_ways_in_both_families),
        ("an_ipv6_underlay_carries_the_tunnel", an_ipv6_underlay_carries_the_tunnel),
        ("a_peer_that_moves_is_followed", a_peer_that_moves_is_followed),
        ("a_new_endpoint_is_used_at_once", a_new_endpoint_is_used_at_once),
        ("a_recreated_peer_gets_through", a_recreated_peer_gets_through),
        ("a_removed_peer_is_not_heard", a_removed_peer_is_not_heard),
        ("a_wrong_preshared_key_lets_nothing_through", a_wrong_preshared_key_lets_nothing_through),
        ("a_source_that_is_not_allowed_is_not_heard", a_source_that_is_not_allowed_is_not_heard),
        ("other_changes_leave_the_session_alone", other_changes_leave_the_session_alone),
        ("a_restart_keeps_the_tunnel", a_restart_keeps_the_tunnel),
    ];
    cases.into_iter().map(|(name, case)| trial(kind.name(), name, move || case(kind))).collect()
}

fn packets_pass_both_ways_in_both_families(kind: Kind) {
    let (a, b) = pair(kind);
    for address in addresses(2).iter() {
        assert!(a.reaches(address), "{address} does not answer");
    }
    for address in addresses(1).iter() {
        assert!(b.reaches(address), "{address} does not answer");
    }
    let (seen, other) = (a.read(), b.read());
    let peer = &seen.peers[&public_key(2)];
    assert_eq!(peer.endpoint, Some(underlay(2, PORT)));
    assert!(peer.rx_bytes > 0 && peer.tx_bytes > 0);
    assert!(peer.last_handshake.is_some() && other.peers[&public_key(1)].last_handshake.is_some());
    // A second look at the same handshake finds the same time.
    assert_eq!(a.read().peers[&public_key(2)].last_handshake, peer.last_handshake);
}

fn an_ipv6_underlay_carries_the_tunnel(kind: Kind) {
    let (a, b) = pair(kind);
    let endpoint = "[2001:db8::2]:51820".parse().unwrap();
    a.modify(2, PeerUpdate { endpoint: Some(endpoint), ..PeerUpdate::default() });
    assert!(a.reaches(addresses(2).v4.into()));
    assert_eq!(a.read().peers[&public_key(2)].endpoint, Some(endpoint));
    assert_eq!(b.read().peers[&public_key(1)].endpoint.map(|endpoint| endpoint.is_ipv6()), Some(true));
}

fn a_peer_that_moves_is_followed(kind: Kind) {
    let (a, b) = pair(kind);
    assert!(a.reaches(addresses(2).v4.into()));
    b.apply(DeviceUpdate { listen_port: Some(PORT + 1), ..DeviceUpdate::default() });
    assert!(b.reaches(addresses(1).v4.into()), "the peer that moved has lost its way");
    assert_eq!(a.read().peers[&public_key(2)].endpoint, Some(underlay(2, PORT + 1)));
    assert!(a.reaches(addresses(2).v4.into()));
}

fn a_new_endpoint_is_used_at_once(kind: Kind) {
    let (a, b) = pair(kind);
    assert!(a.reaches(addresses(2).v4.into()));
    b.apply(DeviceUpdate { listen_port: Some(PORT + 7), ..DeviceUpdate::default() });
    assert!(!a.reaches_within(addresses(2).v4.into(), 3), "the old port still answers");
    a.modify(2, PeerUpdate { endpoint: Some(underlay(2, PORT + 7)), ..PeerUpdate::default() });
    assert!(a.reaches(addresses(2).v4.into()));
}

fn a_recreated_peer_gets_through(kind: Kind) {
    let (a, _b) = pair(kind);
    a.modify(2, PeerUpdate { endpoint: Some(underlay(99, PORT)), ..PeerUpdate::default() });
    // A first initiation goes nowhere, and WireGuard holds back the next for five seconds.
    assert!(!a.reaches_within(addresses(2).v4.into(), 2));
    a.apply(DeviceUpdate { peers: vec![(public_key(2), PeerChange::Recreate(as_peer(2)))], ..DeviceUpdate::default() });
    // Half of what waiting it out would take.
    assert!(a.reaches_within(addresses(2).v4.into(), 25), "a recreated peer waits for the former one's timer");
}

fn a_removed_peer_is_not_heard(kind: Kind) {
    let (a, b) = pair(kind);
    assert!(a.reaches(addresses(2).v4.into()));
    assert!(b.reaches(addresses(1).v4.into()));
    a.apply(DeviceUpdate { peers: vec![(public_key(2), PeerChange::Remove)], ..DeviceUpdate::default() });
    assert!(!b.reaches_within(addresses(1).v4.into(), 3));
    a.apply(DeviceUpdate { peers: vec![(public_key(2), PeerChange::Add(as_peer(2)))], ..DeviceUpdate::default() });
    assert!(a.reaches(addresses(2).v4.into()));
}

fn a_wrong_preshared_key_lets_nothing_through(kind: Kind) {
    let (a, b) = pair(kind);
    let keyed = |key: u8| PeerUpdate {
        preshared_key: Some(Some(PresharedKey::from_bytes([key; 32]))),
        ..PeerUpdate::default()
    };
    a.modify(2, keyed(1));
    b.modify(1, keyed(2));
    assert!(!a.reaches_within(addresses(2).v4.into(), 5));
    b.modify(1, keyed(1));
    assert!(a.reaches(addresses(2).v4.into()));
}

fn a_source_that_is_not_allowed_is_not_heard(kind: Kind) {
    let (a, b) = pair(kind);
    assert!(a.reaches(addresses(2).v4.into()));
    let foreign: IpAddr = overlay().addresses(77).unwrap().v4.into();
    b.host.address(INTERFACE, &["10.9.0.77/32"]);
    let to = SocketAddr::new(addresses(1).v4.into(), ECHO_PORT);
    assert!(!b.host.run(async move { ping(SocketAddr::new(foreign, 0), to, 3).await }));
    assert!(b.reaches(addresses(1).v4.into()));
}

fn other_changes_leave_the_session_alone(kind: Kind) {
    let (a, _b) = pair(kind);
    assert!(a.reaches(addresses(2).v4.into()));
    let before = a.read().peers[&public_key(2)].last_handshake;
    let others = (10..30).map(|n| (public_key(n), PeerChange::Add(as_peer(n)))).collect();
    a.apply(DeviceUpdate { peers: others, ..DeviceUpdate::default() });
    a.modify(2, PeerUpdate { keepalive: Some(Some(25)), ..PeerUpdate::default() });
    a.apply(DeviceUpdate { peers: vec![(public_key(2), PeerChange::Add(as_peer(2)))], ..DeviceUpdate::default() });
    assert!(a.reaches(addresses(2).v4.into()));
    assert_eq!(a.read().peers[&public_key(2)].last_handshake, before);
}

fn a_restart_keeps_the_tunnel(kind: Kind) {
    let (a, _b) = pair(kind);
    assert!(a.reaches(addresses(2).v4.into()));
    let before = a.read().peers[&public_key(2)].last_handshake;
    if kind == Kind::Kernel {
        // The daemon goes while packets flow, and the next takes over: each single packet gets its answer.
        a.close();
        assert!(a.every_packet_is_answered(addresses(2).v4.into()), "a packet was lost while no daemon ran");
        a.open(Some(1));
        assert!(a.every_packet_is_answered(addresses(2).v4.into()), "a packet was lost after taking over");
        assert_eq!(a.read().peers[&public_key(2)].last_handshake, before);
    } else {
        // The sessions go with the process; one handshake from the same port brings them back.
        a.remove();
        a.open(None);
        a.configure(vec![(public_key(2), PeerChange::Add(as_peer(2)))]);
        assert!(a.reaches(addresses(2).v4.into()));
    }
}

/// A host with a device on it.
struct Node {
    host: Host,
    stage: Stage,
    index: u8,
    device: Arc<Mutex<Option<Box<dyn Device>>>>,
}

/// Two hosts on one cable that know each other; only the first knows where the second is.
fn pair(kind: Kind) -> (Node, Node) {
    let (a, b) = (Node::new(kind, 1), Node::new(kind, 2));
    a.host.connect("eth0", &["192.0.2.1/24", "2001:db8::1/64"], &b.host, &["192.0.2.2/24", "2001:db8::2/64"]);
    a.open(None);
    b.open(None);
    a.configure(vec![(public_key(2), PeerChange::Add(as_peer(2)))]);
    b.configure(vec![(public_key(1), PeerChange::Add(NewPeer { endpoint: None, ..as_peer(1) }))]);
    (a, b)
}

impl Node {
    fn new(kind: Kind, index: u8) -> Self {
        let host = Host::new();
        host.start(echo());
        Self { host, stage: Stage::new(kind), index, device: Arc::default() }
    }

    fn open(&self, ours: Option<u8>) {
        let (stage, slot) = (self.stage.clone(), self.device.clone());
        self.host.run(async move { *slot.lock().await = Some(stage.open(ours.map(public_key)).await) });
    }

    fn close(&self) {
        let slot = self.device.clone();
        self.host.run(async move { drop(slot.lock().await.take()) });
    }

    fn remove(&self) {
        let slot = self.device.clone();
        self.host.run(async move { slot.lock().await.take().unwrap().remove().await.unwrap() });
    }

    /// Everything that a daemon sets at its start.
    fn configure(&self, peers: Vec<(mesh_types::PublicKey, PeerChange)>) {
        self.apply(DeviceUpdate {
            private_key: Some(private_key(self.index)),
            listen_port: Some(PORT),
            fwmark: None,
            barred: None,
            peers,
        });
        let config = LinkConfig { addresses: addresses(self.index), overlay: overlay(), mtu: 1_420 };
        self.host.run(async move { Links::open().unwrap().configure(INTERFACE, &config).await.unwrap() });
    }

    fn apply(&self, update: DeviceUpdate) {
        let slot = self.device.clone();
        self.host.run(async move { slot.lock().await.as_mut().unwrap().apply(&update).await.unwrap() });
    }

    fn modify(&self, peer: u8, update: PeerUpdate) {
        let peers = vec![(public_key(peer), PeerChange::Modify(update))];
        self.apply(DeviceUpdate { peers, ..DeviceUpdate::default() });
    }

    fn read(&self) -> ActualDevice {
        let slot = self.device.clone();
        self.host.run(async move { slot.lock().await.as_mut().unwrap().read().await.unwrap() })
    }

    fn reaches(&self, address: IpAddr) -> bool {
        self.reaches_within(address, 100)
    }

    fn reaches_within(&self, address: IpAddr, tries: u32) -> bool {
        self.host.run(async move { ping(any(address), SocketAddr::new(address, ECHO_PORT), tries).await })
    }

    fn every_packet_is_answered(&self, address: IpAddr) -> bool {
        self.host.run(async move {
            for _ in 0..50 {
                if !ping(any(address), SocketAddr::new(address, ECHO_PORT), 1).await {
                    return false;
                }
            }
            true
        })
    }
}

fn as_peer(n: u8) -> NewPeer {
    NewPeer {
        preshared_key: None,
        endpoint: Some(underlay(n, PORT)),
        keepalive: None,
        allowed_ips: addresses(n).allowed_ips().collect(),
    }
}

fn overlay() -> Overlay {
    Overlay::new("10.9.0.0/16".parse().unwrap(), "fd00:9::/48".parse().unwrap()).unwrap()
}

fn addresses(n: u8) -> OverlayAddresses {
    overlay().addresses(n.into()).unwrap()
}

fn underlay(n: u8, port: u16) -> SocketAddr {
    SocketAddr::from(([192, 0, 2, n], port))
}

fn any(like: IpAddr) -> SocketAddr {
    match like {
        IpAddr::V4(_) => SocketAddr::from(([0; 4], 0)),
        IpAddr::V6(_) => SocketAddr::from(([0; 16], 0)),
    }
}

/// Sends what comes back to where it came from.
async fn echo() {
    let socket = UdpSocket::bind((Ipv6Addr::UNSPECIFIED, ECHO_PORT)).await.unwrap();
    let mut buffer = [0; 2048];
    while let Ok((length, from)) = socket.recv_from(&mut buffer).await {
        let _ = socket.send_to(&buffer[..length], from).await;
    }
}

/// Sends up to `tries` packets, one after the other, until one comes back.
async fn ping(from: SocketAddr, to: SocketAddr, tries: u32) -> bool {
    let socket = UdpSocket::bind(from).await.unwrap();
    socket.connect(to).await.unwrap();
    // A packet near the MTU, so that padding and fragments would show.
    let (packet, mut buffer) = ([0x6d; 1_300], [0; 2048]);
    for _ in 0..tries {
        let _ = socket.send(&packet).await;
        if let Ok(Ok(length)) = tokio::time::timeout(BETWEEN_TRIES, socket.recv(&mut buffer)).await {
            assert_eq!(&buffer[..length], &packet);
            return true;
        }
    }
    false
}
