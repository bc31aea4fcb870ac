//! Configuration: what is applied is what is read, in every backend alike.

use crate::host::{Host, netlink};
use crate::stage::{INTERFACE, Kind, Stage, ips, peer, peers, private_key, public_key, read, read_peer, settings};
use crate::trial;
use futures::future::BoxFuture;
use libtest_mimic::Trial;
use mesh_node::device::{self, Backend, BackendChoice, DeviceError};
use mesh_node_core::device::{DeviceUpdate, NewPeer, PeerChange, PeerUpdate};
use mesh_types::{AllowedIp, PresharedKey, PublicKey};
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};

const PORT: u16 = 51_820;

type Case = fn(Stage) -> BoxFuture<'static, ()>;

macro_rules! cases {
    ($($name:ident),* $(,)?) => {
        [$((stringify!($name), (|stage| Box::pin($name(stage))) as Case)),*]
    };
}

pub(crate) fn trials(kind: Kind) -> Vec<Trial> {
    let mut cases = cases![
        a_new_device_is_empty,
        what_is_added_is_what_is_read,
        a_modification_changes_only_what_it_names,
        secrets_and_keepalive_can_be_taken_away,
        adding_a_known_peer_replaces_all_but_its_endpoint,
        an_allowed_ip_moves_to_the_peer_it_is_given_to,
        an_old_owner_does_not_take_an_allowed_ip_back,
        two_peers_swap_allowed_ips_in_one_update,
        a_removed_peer_frees_its_allowed_ips,
        a_recreated_peer_is_what_it_is_made_anew,
        a_modification_never_brings_a_peer_back,
        removing_an_absent_peer_does_nothing,
        a_thousand_peers_are_added_and_read_back,
        the_listen_port_changes_and_the_peers_stay,
        the_private_key_changes,
        a_key_peers_and_a_port_go_in_one_update,
        a_restart_finds_or_frees_everything,
        a_removed_device_can_be_made_again,
    ]
    .to_vec();
    if kind != Kind::Fake {
        cases.extend(cases![
            a_taken_port_is_told_and_the_old_one_kept,
            another_kind_of_interface_is_refused,
            an_interface_removed_by_others_is_told,
            auto_takes_the_kernel_where_it_works,
            only_a_kernel_device_with_our_key_is_cleared_away,
        ]);
    }
    if kind == Kind::Userspace {
        // A kernel device takes its port only when it comes up.
        cases.extend(cases![a_port_that_is_taken_when_the_key_comes_is_told_at_every_try]);
    }
    if kind == Kind::Kernel {
        cases.extend(cases![
            a_device_with_another_key_is_refused,
            a_device_without_a_key_is_ours_only_if_it_was_made_for_us,
            taking_over_changes_nothing,
            the_userspace_engine_replaces_our_kernel_device,
            another_reader_sees_the_same_device,
        ]);
    }
    let mut trials: Vec<Trial> =
        cases.into_iter().map(|(name, case)| trial(kind.name(), name, move || play(kind, case))).collect();
    if kind != Kind::Fake {
        let case = move || Host::without_rights().run(a_lack_of_rights_is_told(Stage::new(kind)));
        trials.push(trial(kind.name(), "a_lack_of_rights_is_told", case));
    }
    trials
}

fn play(kind: Kind, case: Case) {
    let stage = Stage::new(kind);
    match kind.host() {
        Some(host) => host.run(async move { case(stage).await }),
        None => futures::executor::block_on(case(stage)),
    }
}

async fn a_new_device_is_empty(stage: Stage) {
    let device = read(&mut stage.open(None).await).await;
    assert_eq!((device.public_key, device.listen_port, device.fwmark), (None, 0, 0));
    assert!(device.peers.is_empty());
}

async fn what_is_added_is_what_is_read(stage: Stage) {
    let mut device = stage.keyed(PORT).await;
    let bare = NewPeer { allowed_ips: ips(&["10.9.1.0/24"]), ..NewPeer::default() };
    let added = [(1, peer(1)), (2, peer(2)), (3, bare)];
    device.apply(&peers(added.iter().map(|(n, new)| (public_key(*n), PeerChange::Add(new.clone()))))).await.unwrap();
    let found = read(&mut device).await;
    assert_eq!(found.public_key, Some(public_key(0)));
    assert_eq!(found.listen_port, PORT);
    assert_eq!(
        found.peers.iter().map(|(key, peer)| (*key, settings(peer))).collect::<BTreeMap<_, _>>(),
        added.into_iter().map(|(n, new)| (public_key(n), new)).collect::<BTreeMap<_, _>>()
    );
    assert!(found.peers.values().all(|peer| peer.last_handshake.is_none() && peer.rx_bytes == 0));
}

async fn a_modification_changes_only_what_it_names(stage: Stage) {
    let mut device = stage.keyed(PORT).await;
    device.apply(&peers([(public_key(1), PeerChange::Add(peer(1)))])).await.unwrap();
    let mut expected = peer(1);
    let endpoint = "[2001:db8::7]:7".parse().unwrap();
    modify(&mut device, PeerUpdate { endpoint: Some(endpoint), ..PeerUpdate::default() }).await;
    expected.endpoint = Some(endpoint);
    assert_eq!(read_peer(&mut device, 1).await, Some(expected.clone()));
    modify(&mut device, PeerUpdate { keepalive: Some(Some(7)), ..PeerUpdate::default() }).await;
    expected.keepalive = Some(7);
    assert_eq!(read_peer(&mut device, 1).await, Some(expected.clone()));
    let key = PresharedKey::from_bytes([77; 32]);
    modify(&mut device, PeerUpdate { preshared_key: Some(Some(key.clone())), ..PeerUpdate::default() }).await;
    expected.preshared_key = Some(key);
    assert_eq!(read_peer(&mut device, 1).await, Some(expected.clone()));
    let allowed_ips = ips(&["10.9.0.1/32", "10.9.7.0/24"]);
    modify(&mut device, PeerUpdate { allowed_ips: Some(allowed_ips.clone()), ..PeerUpdate::default() }).await;
    expected.allowed_ips = allowed_ips;
    assert_eq!(read_peer(&mut device, 1).await, Some(expected));
}

async fn secrets_and_keepalive_can_be_taken_away(stage: Stage) {
    let mut device = stage.keyed(PORT).await;
    device.apply(&peers([(public_key(1), PeerChange::Add(peer(1)))])).await.unwrap();
    let update = PeerUpdate {
        preshared_key: Some(None),
        keepalive: Some(None),
        allowed_ips: Some(ips(&[])),
        ..PeerUpdate::default()
    };
    modify(&mut device, update).await;
    let expected = NewPeer { endpoint: peer(1).endpoint, ..NewPeer::default() };
    assert_eq!(read_peer(&mut device, 1).await, Some(expected));
}

async fn adding_a_known_peer_replaces_all_but_its_endpoint(stage: Stage) {
    let mut device = stage.keyed(PORT).await;
    device.apply(&peers([(public_key(1), PeerChange::Add(peer(1)))])).await.unwrap();
    let new = NewPeer { allowed_ips: ips(&["10.9.8.0/24"]), ..NewPeer::default() };
    device.apply(&peers([(public_key(1), PeerChange::Add(new.clone()))])).await.unwrap();
    // WireGuard has no way to take an endpoint away.
    assert_eq!(read_peer(&mut device, 1).await, Some(NewPeer { endpoint: peer(1).endpoint, ..new }));
}

async fn an_allowed_ip_moves_to_the_peer_it_is_given_to(stage: Stage) {
    let mut device = stage.keyed(PORT).await;
    let both = [(public_key(1), PeerChange::Add(peer(1))), (public_key(2), PeerChange::Add(peer(2)))];
    device.apply(&peers(both)).await.unwrap();
    let taken = ips(&["10.9.0.1/32", "10.9.0.2/32"]);
    let update = PeerUpdate { allowed_ips: Some(taken.clone()), ..PeerUpdate::default() };
    device.apply(&peers([(public_key(2), PeerChange::Modify(update))])).await.unwrap();
    assert_eq!(read_peer(&mut device, 2).await.unwrap().allowed_ips, taken);
    assert_eq!(read_peer(&mut device, 1).await.unwrap().allowed_ips, ips(&["fd00:9::1/128"]));
}

async fn an_old_owner_does_not_take_an_allowed_ip_back(stage: Stage) {
    let mut device = stage.keyed(PORT).await;
    device.apply(&peers([(public_key(1), PeerChange::Add(peer(1)))])).await.unwrap();
    let thief = NewPeer { allowed_ips: ips(&["10.9.0.1/32"]), ..NewPeer::default() };
    device.apply(&peers([(public_key(2), PeerChange::Add(thief))])).await.unwrap();
    modify(&mut device, PeerUpdate { keepalive: Some(Some(1)), ..PeerUpdate::default() }).await;
    assert_eq!(read_peer(&mut device, 1).await.unwrap().allowed_ips, ips(&["fd00:9::1/128"]));
    assert_eq!(read_peer(&mut device, 2).await.unwrap().allowed_ips, ips(&["10.9.0.1/32"]));
}

async fn two_peers_swap_allowed_ips_in_one_update(stage: Stage) {
    let mut device = stage.keyed(PORT).await;
    let both = [(public_key(1), PeerChange::Add(peer(1))), (public_key(2), PeerChange::Add(peer(2)))];
    device.apply(&peers(both)).await.unwrap();
    let to = |n| PeerUpdate { allowed_ips: Some(peer(n).allowed_ips), ..PeerUpdate::default() };
    let swap = [(public_key(1), PeerChange::Modify(to(2))), (public_key(2), PeerChange::Modify(to(1)))];
    device.apply(&peers(swap)).await.unwrap();
    assert_eq!(read_peer(&mut device, 1).await.unwrap().allowed_ips, peer(2).allowed_ips);
    assert_eq!(read_peer(&mut device, 2).await.unwrap().allowed_ips, peer(1).allowed_ips);
}

async fn a_removed_peer_frees_its_allowed_ips(stage: Stage) {
    let mut device = stage.keyed(PORT).await;
    device.apply(&peers([(public_key(1), PeerChange::Add(peer(1)))])).await.unwrap();
    let heir = NewPeer { allowed_ips: peer(1).allowed_ips, ..NewPeer::default() };
    let update = [(public_key(1), PeerChange::Remove), (public_key(2), PeerChange::Add(heir.clone()))];
    device.apply(&peers(update)).await.unwrap();
    let found = read(&mut device).await;
    assert_eq!(found.peers.keys().collect::<Vec<_>>(), [&public_key(2)]);
    assert_eq!(settings(&found.peers[&public_key(2)]), heir);
}

async fn a_recreated_peer_is_what_it_is_made_anew(stage: Stage) {
    let mut device = stage.keyed(PORT).await;
    device.apply(&peers([(public_key(1), PeerChange::Add(peer(1)))])).await.unwrap();
    let anew = NewPeer { allowed_ips: peer(1).allowed_ips, ..NewPeer::default() };
    device.apply(&peers([(public_key(1), PeerChange::Recreate(anew.clone()))])).await.unwrap();
    // Unlike an addition, nothing of the former peer is left.
    assert_eq!(read_peer(&mut device, 1).await, Some(anew));
    device.apply(&peers([(public_key(2), PeerChange::Recreate(peer(2)))])).await.unwrap();
    assert_eq!(read_peer(&mut device, 2).await, Some(peer(2)));
}

async fn a_modification_never_brings_a_peer_back(stage: Stage) {
    let mut device = stage.keyed(PORT).await;
    device.apply(&peers([(public_key(1), PeerChange::Add(peer(1)))])).await.unwrap();
    device.apply(&peers([(public_key(1), PeerChange::Remove)])).await.unwrap();
    let update =
        PeerUpdate { endpoint: peer(1).endpoint, allowed_ips: Some(peer(2).allowed_ips), ..Default::default() };
    let late = [(public_key(2), PeerChange::Add(peer(2))), (public_key(1), PeerChange::Modify(update))];
    device.apply(&peers(late)).await.unwrap();
    assert_eq!(read_peer(&mut device, 1).await, None);
    // Nor does it take allowed IPs on its way.
    assert_eq!(read_peer(&mut device, 2).await, Some(peer(2)));
}

async fn removing_an_absent_peer_does_nothing(stage: Stage) {
    let mut device = stage.keyed(PORT).await;
    device.apply(&peers([(public_key(1), PeerChange::Remove)])).await.unwrap();
    assert!(read(&mut device).await.peers.is_empty());
}

async fn a_thousand_peers_are_added_and_read_back(stage: Stage) {
    let mut device = stage.keyed(PORT).await;
    let many: BTreeMap<PublicKey, NewPeer> = (0..1_000u32).map(numbered).collect();
    device.apply(&peers(many.iter().map(|(key, new)| (*key, PeerChange::Add(new.clone()))))).await.unwrap();
    let found: BTreeMap<_, _> =
        read(&mut device).await.peers.iter().map(|(key, peer)| (*key, settings(peer))).collect();
    assert_eq!(found.len(), 1_000);
    assert!(found == many, "what is read is not what was added");
    let half = many.keys().step_by(2).map(|key| (*key, PeerChange::Remove));
    device.apply(&peers(half)).await.unwrap();
    assert_eq!(read(&mut device).await.peers.len(), 500);
}

/// A peer with so many allowed IPs that a kernel's dump is cut within some.
fn numbered(n: u32) -> (PublicKey, NewPeer) {
    let mut bytes = [7; 32];
    bytes[..4].copy_from_slice(&n.to_be_bytes());
    let ip = |k: u32| AllowedIp::host(IpAddr::V4(Ipv4Addr::from(0x0a00_0000 + n * 16 + k)));
    let new = NewPeer {
        preshared_key: Some(PresharedKey::from_bytes([9; 32])),
        endpoint: Some(format!("192.0.2.1:{}", 1_000 + n).parse().unwrap()),
        keepalive: None,
        allowed_ips: (0..10).map(ip).collect(),
    };
    (PublicKey::from_bytes(bytes), new)
}

async fn the_listen_port_changes_and_the_peers_stay(stage: Stage) {
    let mut device = stage.keyed(PORT).await;
    device.apply(&peers([(public_key(1), PeerChange::Add(peer(1)))])).await.unwrap();
    device.apply(&DeviceUpdate { listen_port: Some(PORT + 1), ..DeviceUpdate::default() }).await.unwrap();
    assert_eq!(read(&mut device).await.listen_port, PORT + 1);
    assert_eq!(read_peer(&mut device, 1).await, Some(peer(1)));
}

async fn the_private_key_changes(stage: Stage) {
    let mut device = stage.keyed(PORT).await;
    device.apply(&peers([(public_key(1), PeerChange::Add(peer(1)))])).await.unwrap();
    device.apply(&DeviceUpdate { private_key: Some(private_key(9)), ..DeviceUpdate::default() }).await.unwrap();
    let found = read(&mut device).await;
    assert_eq!((found.public_key, found.listen_port), (Some(public_key(9)), PORT));
    assert!(found.peers.contains_key(&public_key(1)));
}

async fn a_key_peers_and_a_port_go_in_one_update(stage: Stage) {
    let mut device = stage.open(None).await;
    let update = DeviceUpdate {
        private_key: Some(private_key(0)),
        listen_port: Some(PORT),
        fwmark: Some(0x6d65),
        barred: None,
        peers: vec![(public_key(1), PeerChange::Add(peer(1)))],
    };
    device.apply(&update).await.unwrap();
    let found = read(&mut device).await;
    assert_eq!((found.public_key, found.listen_port, found.fwmark), (Some(public_key(0)), PORT, 0x6d65));
    assert_eq!(settings(&found.peers[&public_key(1)]), peer(1));
}

async fn a_restart_finds_or_frees_everything(stage: Stage) {
    let mut device = stage.keyed(PORT).await;
    device.apply(&peers([(public_key(1), PeerChange::Add(peer(1)))])).await.unwrap();
    let before = read(&mut device).await;
    if stage.kind == Kind::Userspace {
        // Its life is that of the process, which this stands for; the port must be free again.
        device.remove().await.unwrap();
        assert_eq!(read(&mut stage.keyed(PORT).await).await.listen_port, PORT);
    } else {
        drop(device);
        let after = read(&mut stage.open(Some(public_key(0))).await).await;
        assert_eq!(after, before);
    }
}

async fn a_removed_device_can_be_made_again(stage: Stage) {
    let device = stage.keyed(PORT).await;
    device.remove().await.unwrap();
    let mut device = stage.keyed(PORT).await;
    assert_eq!(read(&mut device).await.listen_port, PORT);
    device.remove().await.unwrap();
}

async fn a_taken_port_is_told_and_the_old_one_kept(stage: Stage) {
    let mut device = stage.keyed(PORT).await;
    let taken = std::net::UdpSocket::bind(("0.0.0.0", 0)).unwrap();
    let port = taken.local_addr().unwrap().port();
    let update = DeviceUpdate { listen_port: Some(port), ..DeviceUpdate::default() };
    up(INTERFACE).await;
    match device.apply(&update).await {
        Err(DeviceError::PortTaken { port: told }) => assert_eq!(told, port),
        other => panic!("expected the port to be taken, got {other:?}"),
    }
    assert_eq!(read(&mut device).await.listen_port, PORT);
    drop(taken);
    device.apply(&update).await.unwrap();
    assert_eq!(read(&mut device).await.listen_port, port);
}

async fn a_port_that_is_taken_when_the_key_comes_is_told_at_every_try(stage: Stage) {
    let mut device = stage.open(None).await;
    let taken = std::net::UdpSocket::bind(("0.0.0.0", 0)).unwrap();
    let port = taken.local_addr().unwrap().port();
    let mut update =
        DeviceUpdate { private_key: Some(private_key(0)), listen_port: Some(port), ..DeviceUpdate::default() };
    for _ in 0..3 {
        match device.apply(&update).await {
            Err(DeviceError::PortTaken { port: told }) => assert_eq!(told, port),
            other => panic!("expected the port to be taken, got {other:?}"),
        }
        // What is left to do is told by the difference, in which the key is no more.
        assert_eq!(read(&mut device).await.listen_port, 0);
        update.private_key = None;
    }
    drop(taken);
    device.apply(&update).await.unwrap();
    assert_eq!(read(&mut device).await.listen_port, port);
}

async fn another_kind_of_interface_is_refused(stage: Stage) {
    netlink().link().add(rtnetlink::LinkVeth::new(INTERFACE, "other").build()).execute().await.unwrap();
    match stage.try_open(Some(public_key(0))).await.map(drop) {
        Err(error @ DeviceError::NameTaken { .. }) => assert!(error.to_string().contains("veth"), "{error}"),
        other => panic!("expected a refusal, got {other:?}"),
    }
}

async fn an_interface_removed_by_others_is_told(stage: Stage) {
    let mut device = stage.keyed(PORT).await;
    let handle = netlink();
    let at = crate::host::index(&handle, INTERFACE).await;
    handle.link().del(at).execute().await.unwrap();
    // The engine learns of it when its reader is woken, the kernel's answer is at once.
    for _ in 0..100 {
        match device.read().await {
            Err(DeviceError::Gone { .. }) => {
                drop(device);
                stage.keyed(PORT).await;
                return;
            }
            _ => tokio::time::sleep(std::time::Duration::from_millis(20)).await,
        }
    }
    panic!("a device without interface goes on as if nothing were");
}

async fn auto_takes_the_kernel_where_it_works(stage: Stage) {
    let expected = match device::open(INTERFACE, BackendChoice::Kernel, None).await {
        Ok(device) => {
            device.remove().await.unwrap();
            Backend::Kernel
        }
        Err(DeviceError::KernelMissing) => Backend::Userspace,
        Err(error) => panic!("{error}"),
    };
    assert!(stage.kind != Kind::Kernel || expected == Backend::Kernel);
    let device = device::open(INTERFACE, BackendChoice::Auto, None).await.unwrap();
    assert_eq!(device.backend(), expected);
}

async fn only_a_kernel_device_with_our_key_is_cleared_away(stage: Stage) {
    let clear = async |key| device::clear(INTERFACE, public_key(key)).await.unwrap();
    assert!(!clear(0).await, "there is none");
    let _device = stage.keyed(PORT).await;
    for (key, expected) in [(5, false), (0, stage.kind == Kind::Kernel), (0, false)] {
        assert_eq!(clear(key).await, expected);
    }
}

async fn a_lack_of_rights_is_told(stage: Stage) {
    match stage.try_open(None).await.map(drop) {
        Err(error @ DeviceError::Privilege { .. }) => assert!(error.to_string().contains("run as root"), "{error}"),
        other => panic!("expected a refusal, got {other:?}"),
    }
}

async fn a_device_with_another_key_is_refused(stage: Stage) {
    drop(stage.keyed(PORT).await);
    for ours in [None, Some(public_key(5))] {
        match stage.try_open(ours).await.map(drop) {
            Err(DeviceError::ForeignKey { found, .. }) => assert_eq!(found, public_key(0).to_string()),
            other => panic!("expected a refusal, got {other:?}"),
        }
    }
}

async fn a_device_without_a_key_is_ours_only_if_it_was_made_for_us(stage: Stage) {
    // Cut off before it was given its key.
    drop(stage.open(Some(public_key(0))).await);
    for ours in [None, Some(public_key(5))] {
        match stage.try_open(ours).await.map(drop) {
            Err(DeviceError::Keyless { .. }) => {}
            other => panic!("expected a refusal, got {other:?}"),
        }
    }
    assert!(!device::clear(INTERFACE, public_key(5)).await.unwrap());
    drop(stage.open(Some(public_key(0))).await);
    assert!(device::clear(INTERFACE, public_key(0)).await.unwrap());

    netlink().link().add(rtnetlink::LinkWireguard::new(INTERFACE).build()).execute().await.unwrap();
    match stage.try_open(Some(public_key(0))).await.map(drop) {
        Err(DeviceError::Keyless { .. }) => {}
        other => panic!("expected a refusal, got {other:?}"),
    }
}

async fn taking_over_changes_nothing(stage: Stage) {
    let mut device = stage.keyed(PORT).await;
    device.apply(&peers([(public_key(1), PeerChange::Add(peer(1)))])).await.unwrap();
    let handle = netlink();
    let at = crate::host::index(&handle, INTERFACE).await;
    drop(device);
    drop(stage.open(Some(public_key(0))).await);
    assert_eq!(crate::host::index(&handle, INTERFACE).await, at);
}

async fn the_userspace_engine_replaces_our_kernel_device(stage: Stage) {
    drop(stage.keyed(PORT).await);
    let userspace = Stage::new(Kind::Userspace);
    match userspace.try_open(Some(public_key(5))).await.map(drop) {
        Err(DeviceError::ForeignKey { .. }) => {}
        other => panic!("expected a refusal, got {other:?}"),
    }
    let device = userspace.open(Some(public_key(0))).await;
    assert_eq!(device.backend(), Backend::Userspace);
}

async fn another_reader_sees_the_same_device(stage: Stage) {
    let mut device = stage.keyed(PORT).await;
    device.apply(&peers([(public_key(1), PeerChange::Add(peer(1)))])).await.unwrap();
    let name = INTERFACE.parse().unwrap();
    let seen = wireguard_control::Device::get(&name, wireguard_control::Backend::Kernel).unwrap();
    assert_eq!(seen.listen_port, Some(PORT));
    assert_eq!(seen.peers.len(), 1);
    let config = &seen.peers[0].config;
    assert_eq!(config.public_key.0, *public_key(1).as_bytes());
    assert_eq!(config.endpoint, peer(1).endpoint);
    assert_eq!(config.persistent_keepalive_interval, peer(1).keepalive);
    assert_eq!(config.allowed_ips.len(), 2);
}

async fn modify(device: &mut Box<dyn device::Device>, update: PeerUpdate) {
    device.apply(&peers([(public_key(1), PeerChange::Modify(update))])).await.unwrap();
}

/// A kernel device takes its port when it comes up.
async fn up(interface: &str) {
    let handle = netlink();
    let at = crate::host::index(&handle, interface).await;
    handle.link().set(rtnetlink::LinkUnspec::new_with_index(at).up().build()).execute().await.unwrap();
}
