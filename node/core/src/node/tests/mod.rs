//! What nodes do together, seen from outside: their actions and their devices.

mod own_tunnel;
mod tries;
mod world;

use super::{Node, SessionEvent, Validity};
use crate::action::{Action, DesiredLink, EndReason, Warning};
use crate::clock::Now;
use crate::device::PeerChange;
use crate::journal::{Cache, Intent, Record};
use crate::probe::{Probe, ProbeKind};
use crate::status::{PathStatus, Phase};
use mesh_types::limits::PROBE_ANSWERS;
use mesh_types::session::{CloseReason, PresenceUpdate, Welcome};
use mesh_types::{
    CoordinatorId, CoordinatorMessage, Epoch, Incarnation, MeshDuration, MeshTime, NodeMessage, NodeRecord,
};
use proptest::prelude::*;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;
use world::{Host, MESH, PORT, World, at, id, record, setup};

fn millis(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

fn v4(peer: usize) -> IpAddr {
    record(peer).addresses.v4.into()
}

fn endpoint(address: IpAddr) -> Option<SocketAddr> {
    Some(SocketAddr::new(address, PORT))
}

fn is_request_to(action: &Action, peer: usize) -> bool {
    matches!(action, Action::SendProbe { to, bytes } if *to == IpAddr::V4(record(peer).addresses.v4)
        && Probe::parse(bytes).is_some_and(|p| p.kind == ProbeKind::Request))
}

fn is_change_of(action: &Action, peer: usize, wanted: impl Fn(&PeerChange) -> bool) -> bool {
    matches!(action, Action::Apply(update) if update.peers.iter().any(|(k, c)| *k == record(peer).public_key && wanted(c)))
}

fn path(host: &Host, world: &World, peer: usize) -> PathStatus {
    let status = host.node.status(world.now());
    status.peers.iter().find(|p| p.node.id == id(peer)).map_or(PathStatus::None, |p| p.path)
}

/// Two nodes that know each other well.
fn pair() -> World {
    let mut world = World::new(2);
    world.run(millis(3_000));
    assert_eq!(path(&world.hosts[0], &world, 1), PathStatus::Direct);
    world
}

#[test]
fn a_node_that_joins_reaches_every_other_within_a_few_round_trips() {
    let mut world = World::new(4);
    world.run(millis(3_000));
    world.join(4);
    world.run(millis(10));
    for other in 0..4 {
        assert_eq!(path(&world.hosts[4], &world, other), PathStatus::Direct, "to {other}");
        assert_eq!(path(&world.hosts[other], &world, 4), PathStatus::Direct, "from {other}");
        assert!(world.hosts[4].node.status(world.now()).peers[other].latency.is_some());
    }
}

#[test]
fn an_idle_mesh_falls_silent() {
    let mut world = World::new(5);
    world.run(millis(20_000));
    for host in &mut world.hosts {
        host.log.clear();
    }
    world.run(millis(60_000));
    for host in &world.hosts {
        assert_eq!(host.times(|a| matches!(a, Action::SendProbe { .. } | Action::Apply(_) | Action::Say(_))), [0; 0]);
        assert!(host.times(|a| matches!(a, Action::Read)).len() <= 21, "a look every three seconds");
    }
}

#[test]
fn whatever_the_device_shows_is_on_disk_before() {
    let mut world = World::new(2);
    world.run(millis(100));
    let log = &world.hosts[0].log;
    let persisted = log.iter().position(|(_, a)| matches!(a, Action::Persist(Record::Netmap(n)) if n.nodes.len() == 1));
    let delta = log.iter().position(|(_, a)| matches!(a, Action::Persist(Record::Delta(_))));
    let added = log.iter().position(|(_, a)| is_change_of(a, 1, |c| matches!(c, PeerChange::Add(_))));
    assert!(persisted.unwrap() < delta.unwrap() && delta.unwrap() < added.unwrap());
}

#[test]
fn a_peer_that_moves_is_followed_in_the_same_moment() {
    let mut world = pair();
    world.hosts[0].log.clear();
    world.move_to(1, vec![at(3, 1)]);
    assert_eq!(world.hosts[0].endpoint(1), endpoint(at(3, 1)), "by presence alone, before any packet arrives");
    world.run(millis(5));
    assert_eq!(path(&world.hosts[0], &world, 1), PathStatus::Direct);
    assert!(world.hosts[0].times(|a| is_change_of(a, 1, |c| matches!(c, PeerChange::Recreate(_)))).is_empty());
}

#[test]
fn a_peer_that_moves_without_any_coordinator_is_followed_by_its_probes() {
    let mut world = pair();
    world.lose_coordinators();
    world.run(millis(1_000));
    world.move_to(1, vec![at(3, 1)]);
    world.run(millis(3));
    assert_eq!(world.hosts[0].endpoint(1), endpoint(at(3, 1)));
    assert_eq!(path(&world.hosts[1], &world, 0), PathStatus::Direct);
}

#[test]
fn two_peers_that_move_at_once_find_each_other_in_milliseconds() {
    let mut world = pair();
    let start = world.millis;
    world.move_to(0, vec![at(3, 0)]);
    world.move_to(1, vec![at(4, 1)]);
    for _ in 0..50 {
        world.send(0, 1);
        world.send(1, 0);
        world.run(millis(1));
    }
    for host in &world.hosts {
        let gap = host.delivered.iter().find(|&&at| at > start).expect("something arrives") - start;
        assert!(gap <= 10, "first packet after {gap} ms");
    }
    world.run(millis(1_500));
    assert_eq!(path(&world.hosts[0], &world, 1), PathStatus::Direct);
}

#[test]
fn after_its_own_move_a_node_asks_its_active_peers_until_they_answer() {
    let mut world = pair();
    world.hosts[1].alive = false;
    world.hosts[0].log.clear();
    let start = world.millis;
    world.move_to(0, vec![at(3, 0)]);
    world.run(millis(500));
    let asked: Vec<u64> = world.hosts[0].times(|a| is_request_to(a, 1)).iter().map(|at| at - start).collect();
    assert_eq!(asked, [0, 50, 150, 400]);

    let mut world = pair();
    world.hosts[0].log.clear();
    world.move_to(0, vec![at(3, 0)]);
    world.run(millis(500));
    assert_eq!(world.hosts[0].times(|a| is_request_to(a, 1)).len(), 1, "answered at once");
}

#[test]
fn a_node_that_moves_to_a_network_of_the_other_family_goes_to_where_its_peer_has_one_too() {
    let six = |last: u16| IpAddr::from([0x2001, 0xdb8, 0, 0, 0, 0, 0, last]);
    let mut world = World::new(1);
    world.join_listing(1, vec![at(2, 1), six(1)]);
    world.run(millis(3_000));
    assert_eq!(world.hosts[0].endpoint(1), endpoint(at(2, 1)));
    world.move_to(0, vec![six(7)]);
    world.run(millis(5));
    assert_eq!(world.hosts[0].endpoint(1), endpoint(six(1)));
    assert_eq!(path(&world.hosts[0], &world, 1), PathStatus::Direct);
}

#[test]
fn an_endpoint_that_wireguard_roamed_to_is_left_alone() {
    let mut world = pair();
    // A translator stands in between: the peer's packets come from an address that it does not list.
    let nat = at(9, 1);
    world.hosts[1].addresses.insert(0, nat);
    world.send(1, 0);
    world.run(millis(6_000));
    assert_eq!(world.hosts[0].endpoint(1), endpoint(nat));
    // It lists another address, and still comes through the translator.
    let now = world.now();
    world.hosts[1].node.handle_underlay(vec![at(2, 1), at(5, 1)], now);
    world.perform(1);
    world.run(millis(6_000));
    assert_eq!(world.hosts[0].endpoint(1), endpoint(nat));
    assert_eq!(path(&world.hosts[0], &world, 1), PathStatus::Direct);
}

#[test]
fn places_are_tried_in_turn_until_one_answers() {
    let mut world = World::new(1);
    world.run(millis(3_000));
    // The first two that it lists lead nowhere.
    world.join_listing(1, vec![at(7, 1), at(8, 1), at(5, 1)]);
    world.hosts[1].addresses = vec![at(5, 1)];
    world.run(millis(1_500));
    assert_eq!(world.hosts[0].endpoint(1), endpoint(at(5, 1)));
    assert_eq!(path(&world.hosts[0], &world, 1), PathStatus::Direct);
}

#[test]
fn a_silent_peer_with_traffic_is_doubted_within_seconds_and_its_session_made_anew() {
    let mut world = pair();
    world.hosts[0].log.clear();
    // The peer forgets its sessions, as after a restart of a userspace device: data to it leads nowhere.
    world.hosts[1].forget_sessions();
    let start = world.millis;
    for _ in 0..60 {
        world.send(0, 1);
        world.run(millis(100));
    }
    let back = world.hosts[1].delivered.iter().find(|&&at| at > start).expect("it comes back") - start;
    assert!(back <= 5_000, "after {back} ms, WireGuard alone takes fifteen seconds");
    let made = world.hosts[0].times(|a| is_change_of(a, 1, |c| matches!(c, PeerChange::Recreate(_))));
    assert_eq!(made.len(), 1);
}

#[test]
fn a_peer_that_lets_no_probes_in_is_not_disturbed_by_a_flow_in_one_direction() {
    let mut world = World::new(2);
    world.hosts[1].firewall = true;
    world.run(millis(3_000));
    assert_eq!(path(&world.hosts[0], &world, 1), PathStatus::Direct, "its handshake is proof enough");
    world.hosts[0].log.clear();
    let sent = 300;
    for _ in 0..sent {
        world.send(0, 1);
        world.run(millis(100));
    }
    assert_eq!(world.hosts[0].times(|a| is_change_of(a, 1, |_| true)), [0; 0]);
    assert_eq!(world.hosts[1].delivered.len(), sent);
}

#[test]
fn an_unreachable_peer_is_tried_ever_less_and_then_left_until_there_is_news() {
    let mut world = pair();
    world.hosts[1].alive = false;
    world.hosts[0].log.clear();
    let offline = PresenceUpdate { offline: vec![id(1)], ..PresenceUpdate::default() };
    world.tell(0, CoordinatorMessage::Presence(offline));
    world.send(0, 1);
    world.run(millis(60_000));
    let tries = world.hosts[0].times(|a| is_request_to(a, 1)).len();
    assert!((1..40).contains(&tries), "{tries} requests");
    world.hosts[0].log.clear();
    world.run(millis(60_000));
    assert_eq!(world.hosts[0].times(|a| is_request_to(a, 1)), [0; 0]);
    world.hosts[1].alive = true;
    let online = PresenceUpdate { online: vec![id(1)], ..PresenceUpdate::default() };
    world.tell(0, CoordinatorMessage::Presence(online));
    world.run(millis(1_500));
    assert_eq!(path(&world.hosts[0], &world, 1), PathStatus::Direct);
}

#[test]
fn a_device_that_fails_is_asked_once_a_second_however_much_is_to_be_done() {
    let mut world = World::new(4);
    world.run(millis(3_000));
    // Peers that are looked for: each wants to see the device before its next try.
    (1..4).for_each(|peer| world.hosts[peer].alive = false);
    for _ in 0..50 {
        (1..4).for_each(|peer| world.send(0, peer));
        world.run(millis(100));
    }
    world.hosts[0].broken = true;
    world.hosts[0].log.clear();
    world.remove(3);
    world.run(millis(10_000));
    let asked = world.hosts[0].times(|a| matches!(a, Action::Read | Action::Apply(_))).len();
    assert!((5..=12).contains(&asked), "{asked} times in ten seconds");
    world.hosts[0].broken = false;
    world.run(millis(1_500));
    assert!(!world.hosts[0].device.peers.contains_key(&record(3).public_key), "and then it is put right");
}

#[test]
fn a_removed_peer_leaves_the_device_at_once_and_the_removed_node_takes_its_own_down() {
    let mut world = World::new(3);
    world.run(millis(1_000));
    world.remove(2);
    assert!(!world.hosts[0].device.peers.contains_key(&record(2).public_key));
    assert!(!world.hosts[1].device.peers.contains_key(&record(2).public_key));
    assert_eq!(world.hosts[2].node.status(world.now()).phase, Phase::Removed);
    assert!(world.hosts[2].device.peers.is_empty());
    let down = world.hosts[2].times(|a| *a == Action::Link(DesiredLink::Down));
    assert_eq!(down, world.hosts[2].times(|a| *a == Action::Removed));
    assert_eq!(down.len(), 1);
    // It is allowed back in.
    world.upsert(record(2));
    world.run(millis(2_000));
    assert_eq!(world.hosts[2].node.status(world.now()).phase, Phase::Up);
    assert_eq!(path(&world.hosts[2], &world, 0), PathStatus::Direct);
}

#[test]
fn losing_every_coordinator_removes_nobody() {
    let mut world = World::new(3);
    world.run(millis(1_000));
    world.lose_coordinators();
    world.run(millis(60_000));
    assert_eq!(world.hosts[0].device.peers.len(), 2);
    assert_eq!(path(&world.hosts[0], &world, 1), PathStatus::Direct);
}

#[test]
fn a_peer_leaves_the_device_at_its_deadline_with_no_coordinator_up() {
    let mut world = World::new(2);
    let deadline = world.now().wall + MeshDuration::from_secs(30);
    world.upsert(mesh_types::NodeRecord { expires_at: deadline, ..record(1) });
    world.run(millis(1_000));
    world.lose_coordinators();
    world.run(millis(28_999));
    assert_eq!(world.hosts[0].device.peers.len(), 1);
    world.run(millis(1));
    assert_eq!(world.hosts[0].device.peers.len(), 0, "the moment that the deadline comes");
    assert!(world.hosts[1].device.peers.is_empty(), "with a lease that ended a node talks to nobody");
    assert!(world.hosts[1].node.status(world.now()).warnings.contains(&Warning::Expired(deadline)));
    assert_eq!(world.hosts[1].node.status(world.now()).phase, Phase::Up, "it is still a member");
}

#[test]
fn a_node_restarted_with_every_coordinator_dead_reaches_its_peers_from_memory() {
    let mut world = World::new(3);
    world.run(millis(5_000));
    world.lose_coordinators();
    world.restart(1);
    world.run(millis(20));
    for peer in [0, 2] {
        assert_eq!(path(&world.hosts[1], &world, peer), PathStatus::Direct, "to {peer}");
    }
}

#[test]
fn a_restarted_daemon_takes_over_a_device_without_changing_it() {
    let world = pair();
    let (cache, _) = Cache::replay(&world.hosts[0].journal, MESH, id(0)).unwrap();
    let mut node = Node::new(setup(0), cache, world.now());
    node.handle_underlay(world.hosts[0].addresses.clone(), world.now());
    node.handle_device(world.hosts[0].device.clone(), world.now());
    while let Some(action) = node.poll_action() {
        assert!(!matches!(action, Action::Apply(_)), "{action:?}");
    }
    assert_eq!(node.status(world.now()).peers[0].path, PathStatus::Direct);
}

#[test]
fn a_renewal_is_asked_for_at_half_of_the_lease_and_again_until_it_is_seen() {
    let mut world = World::new(1);
    let lease = |world: &World| world.now().wall + MeshDuration(world::TTL.0 / 2) + MeshDuration::from_secs(10);
    let first = lease(&world);
    world.upsert(mesh_types::NodeRecord { expires_at: first, ..record(0) });
    world.run(millis(9_000));
    assert_eq!(world.hosts[0].times(|a| *a == Action::RenewKey), [0; 0]);
    world.run(millis(10_000));
    let asked = world.hosts[0].times(|a| *a == Action::RenewKey);
    assert!((2..6).contains(&asked.len()), "{asked:?}");
    let renewed = world.now().wall + world::TTL;
    world.upsert(mesh_types::NodeRecord { expires_at: renewed, ..record(0) });
    world.hosts[0].log.clear();
    world.run(millis(60_000));
    assert_eq!(world.hosts[0].times(|a| *a == Action::RenewKey), [0; 0]);
}

#[test]
fn a_new_certificate_is_asked_for_at_the_middle_of_its_life() {
    let mut world = World::new(1);
    let now = world.now();
    let validity =
        |from: MeshTime, secs: u64| Validity { not_before: from, not_after: from + MeshDuration::from_secs(secs) };
    world.hosts[0].node.handle_certificate(validity(now.wall, 20), now);
    world.run(millis(9_999));
    assert_eq!(world.hosts[0].times(|a| *a == Action::RenewCertificate), [0; 0]);
    world.run(millis(2));
    assert_eq!(world.hosts[0].times(|a| *a == Action::RenewCertificate).len(), 1);
    let now = world.now();
    world.hosts[0].node.handle_certificate(validity(now.wall, 3_600), now);
    world.hosts[0].log.clear();
    world.run(millis(60_000));
    assert_eq!(world.hosts[0].times(|a| *a == Action::RenewCertificate), [0; 0]);
}

#[test]
fn a_coordinator_with_an_earlier_or_split_history_is_left() {
    for epoch in [Epoch { counter: 0, id: 5 }, Epoch { counter: 1, id: 6 }] {
        let mut world = World::new(2);
        world.run(millis(100));
        let before = world.hosts[0].device.clone();
        let now = world.now();
        world.hosts[0].node.handle_session(SessionEvent::Opened, now);
        let tick = world.tick();
        let welcome = Welcome { coordinator: CoordinatorId(9), epoch, incarnation: Incarnation(0), tick };
        world.tell(0, CoordinatorMessage::Welcome(welcome));
        let ends = world.hosts[0].times(|a| *a == Action::EndSession(EndReason::WrongHistory));
        assert_eq!(ends.len(), 1);
        assert_eq!(world.hosts[0].device, before);
    }
}

#[test]
fn a_snapshot_from_a_coordinator_that_has_not_heard_of_the_join_is_no_removal() {
    let mut world = World::new(1);
    let now = world.now();
    let mut node = Node::new(setup(7), Cache::new(MESH, id(7)), now);
    node.handle_session(SessionEvent::Opened, now);
    let (epoch, tick) = (world.registry.epoch, world.tick());
    let welcome = Welcome { coordinator: CoordinatorId(1), epoch, incarnation: Incarnation(0), tick };
    node.handle_message(CoordinatorMessage::Welcome(welcome), now);
    node.handle_message(CoordinatorMessage::Snapshot(world.snapshot()), now);
    let actions: Vec<_> = std::iter::from_fn(|| node.poll_action()).collect();
    assert!(actions.contains(&Action::EndSession(EndReason::Behind)));
    assert!(!actions.contains(&Action::Removed));
    world.run(millis(1));
}

#[test]
fn a_stale_coordinator_is_kept_while_a_fresh_one_is_looked_for() {
    let mut world = World::new(1);
    world.run(millis(2_000));
    world.registry.fresh = false;
    world.run(millis(9_000));
    let looked = world.hosts[0].times(|a| *a == Action::LookElsewhere);
    assert!((2..=3).contains(&looked.len()), "{looked:?}");
    assert!(world.hosts[0].connected);
    world.registry.fresh = true;
    world.run(millis(2_000));
    assert!(world.hosts[0].node.status(world.now()).warnings.is_empty());
}

#[test]
fn while_no_coordinator_is_fresh_the_search_becomes_seldom_and_is_prompt_again_in_the_next_outage() {
    let mut world = World::new(1);
    world.run(millis(2_000));
    let searches = |world: &mut World, span: u64| {
        world.hosts[0].log.clear();
        world.run(millis(span));
        world.hosts[0].times(|a| *a == Action::LookElsewhere)
    };
    world.registry.fresh = false;
    let looked = searches(&mut world, 600_000);
    let gaps: Vec<u64> = looked.windows(2).map(|pair| pair[1] - pair[0]).collect();
    for (gap, least) in gaps.iter().zip([5_000, 10_000, 20_000, 40_000].into_iter().chain(std::iter::repeat(60_000))) {
        assert!((least..=least + least / 4).contains(gap), "{gaps:?}");
    }
    assert!(gaps.len() >= 10, "it goes on: {gaps:?}");
    // Another session, with a coordinator that has no leader either, is no news.
    world.hosts[0].log.clear();
    world.lose_coordinators();
    world.restore_coordinators();
    world.run(millis(1_000));
    assert_eq!(world.hosts[0].times(|a| *a == Action::LookElsewhere), [0; 0]);
    world.registry.fresh = true;
    assert_eq!(searches(&mut world, 10_000), [0; 0]);
    world.registry.fresh = false;
    let outage = world.millis;
    let looked = searches(&mut world, 20_000);
    let tick = 5_000;
    assert!(looked[0] <= outage + tick, "with the tick that says so: {looked:?}");
    assert!((5_000..=6_250).contains(&(looked[1] - looked[0])), "{looked:?}");
}

#[test]
fn a_node_told_that_it_is_removed_takes_its_device_down_until_it_is_welcome_again() {
    let mut world = pair();
    world.tell(0, CoordinatorMessage::Close(CloseReason::Removed));
    assert_eq!(world.hosts[0].node.status(world.now()).phase, Phase::Removed);
    assert!(world.hosts[0].device.peers.is_empty());
    world.connect(0);
    world.run(millis(2_000));
    assert_eq!(path(&world.hosts[0], &world, 1), PathStatus::Direct);
}

#[test]
fn down_and_up_are_remembered_and_said_to_all() {
    let mut world = pair();
    let now = world.now();
    world.hosts[0].node.handle_intent(Intent::Down, now);
    world.perform(0);
    assert!(world.hosts[0].device.peers.is_empty());
    assert_eq!(world.hosts[0].node.status(world.now()).candidates, []);
    world.restart(0);
    assert_eq!(world.hosts[0].node.status(world.now()).phase, Phase::Down);
    let now = world.now();
    assert!(world.hosts[0].node.handle_ping(id(1), v4(1), now).is_err());
    let now = world.now();
    world.hosts[0].node.handle_intent(Intent::Up, now);
    world.perform(0);
    world.run(millis(2_000));
    assert_eq!(path(&world.hosts[0], &world, 1), PathStatus::Direct);
}

#[test]
fn what_waits_to_be_said_wakes_nobody_before_the_welcome() {
    let mut world = pair();
    for net in 0..12 {
        world.move_to(0, vec![at(net, 0)]);
    }
    world.lose_coordinators();
    world.move_to(0, vec![at(77, 0)]);
    world.run(millis(10_000));
    let now = world.now();
    world.hosts[0].node.handle_session(SessionEvent::Opened, now);
    world.hosts[0].node.handle_timeout(now);
    assert!(world.hosts[0].node.poll_timeout().is_none_or(|at| at > now.boot));
}

#[test]
fn a_ping_tells_its_latency_or_that_it_was_lost() {
    let mut world = pair();
    let now = world.now();
    let token = world.hosts[0].node.handle_ping(id(1), v4(1), now).unwrap();
    world.perform(0);
    world.run(millis(10));
    world.hosts[1].alive = false;
    let now = world.now();
    let lost = world.hosts[0].node.handle_ping(id(1), v4(1), now).unwrap();
    world.perform(0);
    world.run(millis(2_500));
    let pongs: Vec<_> =
        world.hosts[0].log.iter().filter_map(|(_, a)| if let Action::Pong(p) = a { Some(*p) } else { None }).collect();
    assert_eq!(
        pongs.iter().map(|p| (p.token, p.latency)).collect::<Vec<_>>(),
        [(token, Some(millis(2))), (lost, None)]
    );
    assert!(world.hosts[0].node.handle_ping(id(9), v4(9), now).is_err());
}

#[test]
fn a_ping_goes_to_the_address_that_was_asked_for() {
    let mut world = pair();
    let now = world.now();
    for address in record(1).addresses.iter() {
        world.hosts[0].log.clear();
        world.hosts[0].node.handle_ping(id(1), address, now).unwrap();
        world.perform(0);
        assert_eq!(world.hosts[0].times(|a| matches!(a, Action::SendProbe { to, .. } if *to == address)).len(), 1);
        world.run(millis(10));
        assert_eq!(world.hosts[0].times(|a| matches!(a, Action::Pong(pong) if pong.latency.is_some())).len(), 1);
    }
    assert!(world.hosts[0].node.handle_ping(id(1), v4(0), now).is_err(), "it is another's");
}

#[test]
fn a_node_that_a_restored_registry_does_not_know_says_so_and_keeps_its_peers_until_one_knows_it() {
    let mut world = pair();
    world.tell(0, CoordinatorMessage::Close(CloseReason::WrongHistory));
    assert!(world.hosts[0].node.is_forgotten());
    assert_eq!(world.hosts[0].node.status(world.now()).warnings, [Warning::Forgotten]);
    assert_eq!(world.hosts[0].device.peers.len(), 1);
    world.connect(0);
    assert!(!world.hosts[0].node.is_forgotten());
}

#[test]
fn a_clock_that_is_set_right_while_the_node_runs_is_right_after_a_restart() {
    let world = World::new(1);
    let start = world.now();
    let after =
        |secs| Now { boot: start.boot + Duration::from_secs(secs), wall: start.wall + MeshDuration::from_secs(secs) };
    let wrong = Now { wall: MeshTime(5_000), ..start };
    let mut node = Node::new(setup(0), Cache::new(MESH, id(0)), wrong);
    node.handle_session(SessionEvent::Opened, wrong);
    let (epoch, tick) = (world.registry.epoch, world.tick());
    let welcome = Welcome { coordinator: CoordinatorId(1), epoch, incarnation: Incarnation(0), tick };
    node.handle_message(CoordinatorMessage::Welcome(welcome), wrong);
    let killed = node.cache().clone();
    node.handle_timeout(after(5));
    assert_eq!(node.cache().clock.unwrap().offset, 0, "it is noticed at once");
    node.handle_stop(after(9));
    assert_eq!(node.cache().clock.unwrap().highest, after(9).wall);
    for cache in [killed, node.cache().clone()] {
        let again = Node::new(setup(0), cache, after(20));
        assert_eq!(again.mesh_time(after(20)), after(20).wall);
    }
}

#[test]
fn a_peer_whose_lease_ended_stays_out_after_a_restart_whatever_the_clock_says() {
    let mut world = World::new(2);
    let deadline = world.now().wall + MeshDuration::from_secs(30);
    world.upsert(NodeRecord { expires_at: deadline, ..record(1) });
    world.run(millis(30_000));
    let log = &world.hosts[0].log;
    let removed = log.iter().position(|(_, a)| is_change_of(a, 1, |c| *c == PeerChange::Remove)).unwrap();
    let stored = |a: &Action| matches!(a, Action::Persist(Record::Clock(clock)) if clock.highest >= deadline);
    assert!(log[..removed].iter().any(|(_, a)| stored(a)), "before the device shows it");
}

#[test]
fn a_flood_of_probes_from_one_peer_is_answered_so_far_and_takes_nothing_from_another() {
    let mut world = World::new(3);
    world.run(millis(2_000));
    let (flooding, other) = (record(1).addresses.v4.into(), record(2).addresses.v4.into());
    let answered = |world: &mut World, from: IpAddr, requests: u64| {
        let now = world.now();
        let node = &mut world.hosts[0].node;
        for token in 0..requests {
            let probe = Probe { kind: ProbeKind::Request, token, sent: now.boot };
            node.handle_probe(from, &probe.encode(), now);
        }
        let actions = std::iter::from_fn(|| node.poll_action());
        actions.filter(|action| matches!(action, Action::SendProbe { to, .. } if *to == from)).count() as u64
    };
    assert_eq!(answered(&mut world, flooding, 10_000), u64::from(PROBE_ANSWERS.burst));
    assert_eq!(answered(&mut world, other, 1), 1);
    assert_eq!(answered(&mut world, flooding, 1), 0);
    world.run(millis(1_000));
    assert_eq!(answered(&mut world, flooding, 1), 1);
}

#[test]
fn a_probe_makes_a_node_look_at_nobody_but_its_sender() {
    let mut world = World::new(3);
    world.run(millis(2_000));
    let node = &mut world.hosts[0].node;
    let later = Now { boot: node.poll_timeout().unwrap() + Duration::from_secs(60), ..world.now() };
    let node = &mut world.hosts[0].node;
    let probe = Probe { kind: ProbeKind::Request, token: 7, sent: later.boot };
    node.handle_probe(record(1).addresses.v4.into(), &probe.encode(), later);
    let actions: Vec<Action> = std::iter::from_fn(|| node.poll_action()).collect();
    assert!(matches!(actions[..], [Action::SendProbe { .. }]), "{actions:?}");
    // What was due before is due still.
    assert!(node.poll_timeout().unwrap() < later.boot);
    node.handle_timeout(later);
    assert!(node.poll_action().is_some());
}

#[test]
fn a_lease_that_cannot_be_renewed_is_warned_of_before_it_ends_and_until_it_is_renewed() {
    let mut world = pair();
    let warned = |world: &World| world.hosts[0].node.status(world.now()).warnings;
    let lend = |world: &mut World, lease: MeshDuration| {
        let expires_at = world.now().wall + lease;
        world.upsert(NodeRecord { expires_at, ..record(0) });
        world.run(millis(1));
        expires_at
    };
    let near = MeshDuration(world::TTL.0 / 4 + 5_000);
    let deadline = lend(&mut world, near);
    world.run(millis(4_900));
    assert_eq!(warned(&world), []);
    world.run(millis(200));
    assert_eq!(warned(&world), [Warning::ExpiresSoon(deadline)]);

    let deadline = lend(&mut world, MeshDuration::from_secs(10));
    assert_eq!(warned(&world), [Warning::ExpiresSoon(deadline)]);
    world.lose_coordinators();
    world.run(millis(9_900));
    assert_eq!(warned(&world), [Warning::ExpiresSoon(deadline)]);
    world.run(millis(200));
    assert_eq!(warned(&world), [Warning::Expired(deadline)]);
    let said = |warning: &Warning| matches!(warning, Warning::ExpiresSoon(_) | Warning::Expired(_));
    let said = world.hosts[0].times(|action| matches!(action, Action::Warn(warning) if said(warning)));
    assert_eq!(said.len(), 3, "each is said once");

    world.restore_coordinators();
    lend(&mut world, world::TTL);
    assert_eq!(warned(&world), []);
}

#[test]
fn a_restarted_node_speaks_above_every_word_that_is_known_of_it() {
    let mut world = pair();
    let said = |host: &Host| {
        let mut words = host.log.iter().filter_map(|(_, action)| match action {
            Action::Say(NodeMessage::Presence(signed)) => Some(signed.parse_unverified().unwrap().incarnation),
            _ => None,
        });
        words.next_back().unwrap()
    };
    assert_eq!(said(&world.hosts[0]), Incarnation(1));
    world.restart(0);
    world.run(millis(10));
    assert_eq!(said(&world.hosts[0]), Incarnation(2));
    let now = world.now();
    world.hosts[0].node.handle_session(SessionEvent::Opened, now);
    let (epoch, tick) = (world.registry.epoch, world.tick());
    let welcome = Welcome { coordinator: CoordinatorId(2), epoch, incarnation: Incarnation(40), tick };
    world.tell(0, CoordinatorMessage::Welcome(welcome));
    assert_eq!(said(&world.hosts[0]), Incarnation(41));
    assert!(world.hosts[0].records().any(|r| *r == Record::Incarnation(Incarnation(41))));
}

#[test]
fn a_node_shows_on_a_new_session_which_words_it_holds_and_drops_those_of_the_removed() {
    let mut world = World::new(4);
    world.run(millis(3_000));
    let shown = |world: &World| world.hosts[0].node.hello().presence;
    assert_eq!(shown(&world), world.digest().sums());
    world.lose_coordinators();
    world.sent = 0;
    world.restore_coordinators();
    assert_eq!(world.sent, 0, "everyone holds everything");
    world.remove(3);
    world.move_to(1, vec![at(3, 1)]);
    assert_eq!(shown(&world), world.digest().sums());
    // A daemon that starts anew remembers no words.
    world.sent = 0;
    world.restart(0);
    assert_eq!(world.sent, 3);
    assert_eq!(shown(&world), world.digest().sums());
}

#[test]
fn a_big_mesh_is_not_asked_all_at_once() {
    let mut world = World::new(1);
    for peer in 1..200 {
        world.upsert(record(peer));
    }
    world.run(millis(3_000));
    world.hosts[0].log.clear();
    world.tell_of(1..200);
    world.run(millis(1_000));
    let asked = world.hosts[0].times(|a| matches!(a, Action::SendProbe { .. }));
    let first = asked[0];
    assert!(asked.iter().filter(|&&at| at < first + 50).count() <= 50);
    assert!(asked.len() >= 199, "{}", asked.len());
    let updates = world.hosts[0].times(|a| matches!(a, Action::Apply(u) if u.peers.len() == 199));
    assert_eq!(updates.len(), 1, "all endpoints are set in one update");
}

#[derive(Clone, Debug)]
enum Trouble {
    Move(usize, u8),
    LoseCoordinators,
    RestoreCoordinators,
    Restart(usize),
    ForgetSessions(usize),
    Send(usize, usize),
    Wait(u64),
}

fn trouble() -> impl Strategy<Value = Trouble> {
    prop_oneof![
        3 => (0usize..3, 3u8..9).prop_map(|(host, net)| Trouble::Move(host, net)),
        1 => Just(Trouble::LoseCoordinators),
        2 => Just(Trouble::RestoreCoordinators),
        1 => (0usize..3).prop_map(Trouble::Restart),
        1 => (0usize..3).prop_map(Trouble::ForgetSessions),
        3 => (0usize..3, 0usize..3).prop_map(|(from, to)| Trouble::Send(from, to)),
        4 => (1u64..3_000).prop_map(Trouble::Wait),
    ]
}

impl World {
    fn suffer(&mut self, trouble: &Trouble) {
        match *trouble {
            Trouble::Move(host, net) => self.move_to(host, vec![at(net, host)]),
            Trouble::LoseCoordinators => self.lose_coordinators(),
            Trouble::RestoreCoordinators => self.restore_coordinators(),
            Trouble::Restart(host) => self.restart(host),
            Trouble::ForgetSessions(host) => self.hosts[host].forget_sessions(),
            Trouble::Send(from, to) => self.send(from, to),
            Trouble::Wait(span) => self.run(millis(span)),
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]

    #[test]
    fn whatever_happened_with_a_coordinator_back_everyone_reaches_everyone(
        troubles in proptest::collection::vec(trouble(), 1..30),
    ) {
        let mut world = World::new(3);
        world.run(millis(2_000));
        troubles.iter().for_each(|trouble| world.suffer(trouble));
        world.restore_coordinators();
        for _ in 0..12 {
            for (from, to) in [(0, 1), (0, 2), (1, 0), (1, 2), (2, 0), (2, 1)] {
                world.send(from, to);
            }
            world.run(millis(1_000));
        }
        for host in 0..3 {
            let held = world.digest();
            prop_assert_eq!(world.hosts[host].node.hello().presence, held.sums());
            for other in (0..3).filter(|other| *other != host) {
                prop_assert_eq!(path(&world.hosts[host], &world, other), PathStatus::Direct, "{} to {}", host, other);
            }
            let before = world.hosts[host].delivered.len();
            (0..3).filter(|other| *other != host).for_each(|other| world.send(other, host));
            world.run(millis(5));
            prop_assert_eq!(world.hosts[host].delivered.len(), before + 2, "to {}", host);
        }
    }
}
