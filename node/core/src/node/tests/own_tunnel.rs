//! No endpoint inside the mesh, whatever authenticated from there.

use super::world::{MESH, PORT, World, at, config, id, record, setup};
use super::{endpoint, is_change_of, millis, pair, path, v4};
use crate::action::Action;
use crate::device::{EndpointIntent, PeerChange};
use crate::journal::{Cache, Record};
use crate::node::Node;
use crate::status::{PathStatus, Refused};
use mesh_types::session::PresenceUpdate;
use mesh_types::{AllowedIp, Candidate, CandidateKind, CoordinatorMessage, Incarnation, Presence};
use proptest::prelude::*;
use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};

/// Lets one packet of the second node reach the first from its overlay address, as a kernel sends it that picks the wrong
/// source.
fn stray(world: &mut World) {
    world.hosts[1].source = Some(v4(1));
    world.send(1, 0);
    world.hosts[1].source = None;
    world.run(millis(2));
    assert_eq!(world.hosts[0].endpoint(1), endpoint(v4(1)), "the device takes whatever authenticates");
    world.hosts[0].log.clear();
}

#[test]
fn a_kernel_device_that_sends_into_its_own_tunnel_is_set_right_within_a_second_of_the_first_drop() {
    let mut world = pair();
    // Quiet, so that the device is looked at every three seconds only.
    world.run(millis(10_500));
    stray(&mut world);
    world.send(0, 1);
    let dropped = world.millis;
    assert_eq!(world.hosts[0].looped, [dropped]);
    world.run(millis(1_050));
    let looks = world.hosts[0].times(|a| matches!(a, Action::Read));
    let counts = world.hosts[0].times(|a| matches!(a, Action::CountDropped));
    assert!(looks.iter().any(|at| counts.contains(at) && *at <= dropped + 1_000), "{counts:?} {looks:?}");
    assert_eq!(world.hosts[0].endpoint(1), endpoint(at(2, 1)));
    world.send(0, 1);
    world.run(millis(5));
    assert_eq!(path(&world.hosts[0], &world, 1), PathStatus::Direct);
    assert_eq!(world.hosts[0].looped, [dropped], "nothing more goes there");
    assert!(world.hosts[0].times(|a| is_change_of(a, 1, |c| matches!(c, PeerChange::Recreate(_)))).is_empty());
    let status = world.hosts[0].node.status(world.now());
    assert_eq!(status.dropped, 1);
    assert_eq!(status.peers[0].refused, Some(Refused { endpoint: SocketAddr::new(v4(1), PORT), times: 1 }));
}

#[test]
fn a_busy_peer_is_set_right_at_the_next_look() {
    let mut world = pair();
    for _ in 0..30 {
        world.send(0, 1);
        world.run(millis(100));
    }
    stray(&mut world);
    let since = world.millis;
    for _ in 0..30 {
        world.send(0, 1);
        world.run(millis(100));
    }
    assert!(world.hosts[0].looped.iter().all(|at| *at <= since + 1_000), "{:?}", world.hosts[0].looped);
    assert!(!world.hosts[0].looped.is_empty());
    assert_eq!(world.hosts[0].endpoint(1), endpoint(at(2, 1)));
}

#[test]
fn a_peer_that_lists_no_place_is_made_anew_without_an_endpoint() {
    let mut world = World::new(1);
    world.join_listing(1, Vec::new());
    world.run(millis(3_000));
    assert_eq!(world.hosts[0].endpoint(1), None);
    let peer = record(1).public_key;
    world.hosts[0].device.peers.get_mut(&peer).unwrap().endpoint = endpoint(v4(1));
    world.run(millis(3_500));
    assert_eq!(world.hosts[0].endpoint(1), None);
    let anew = |c: &PeerChange| matches!(c, PeerChange::Recreate(new) if new.endpoint.is_none());
    assert_eq!(world.hosts[0].times(|a| is_change_of(a, 1, anew)).len(), 1);
}

#[test]
fn what_a_link_carried_by_the_mesh_leads_to_is_neither_sent_to_nor_offered() {
    let mut world = pair();
    let carried: BTreeSet<AllowedIp> = ["192.0.2.0/24".parse().unwrap()].into();
    let now = world.now();
    assert_eq!(world.hosts[0].node.status(now).candidates.len(), 1);
    world.hosts[0].log.clear();
    world.hosts[0].node.handle_carried(carried, now);
    world.perform(0);
    assert_eq!(world.hosts[0].endpoint(1), None, "the endpoint that it had is given up at once");
    assert!(world.hosts[0].node.status(now).candidates.is_empty());
    world.hosts[0].node.handle_carried(BTreeSet::new(), now);
    world.hosts[0].node.handle_underlay(vec![at(2, 0)], now);
    world.perform(0);
    world.run(millis(50));
    assert_eq!(path(&world.hosts[0], &world, 1), PathStatus::Direct, "and found again when it may be there");
}

#[test]
fn an_endpoint_inside_the_mesh_that_an_earlier_version_remembered_is_not_used() {
    let mut world = pair();
    let mut cache = world.hosts[0].node.cache().clone();
    cache.apply(&Record::Endpoint { node: id(1), endpoint: SocketAddr::new(v4(1), PORT) });
    let now = world.now();
    let mut node = Node::new(setup(0), Cache { mesh: MESH, ..cache }, now);
    node.handle_underlay(vec![at(2, 0)], now);
    while let Some(action) = node.poll_action() {
        if action == Action::Read {
            node.handle_device(crate::device::ActualDevice::default(), now);
        }
        if let Action::Apply(update) = action {
            let added = update.peers.iter().all(|(_, c)| matches!(c, PeerChange::Add(new) if new.endpoint.is_none()));
            assert!(added, "{update:?}");
            node.handle_applied(now);
        }
    }
    world.hosts.clear();
}

/// What may befall a node, of which half lies inside the mesh.
#[derive(Clone, Debug)]
enum Event {
    /// The second node says that it is at these addresses.
    Presence(Vec<u8>),
    /// A packet authenticates from there.
    Roams(u8),
    /// The first node's own addresses, as the host tells them.
    Addresses(Vec<u8>),
    /// What the host routes through the mesh.
    Carried(Vec<u8>),
    Restart,
    Wait(u16),
}

fn event() -> impl Strategy<Value = Event> {
    let some = || proptest::collection::vec(0u8..8, 0..4);
    prop_oneof![
        some().prop_map(Event::Presence),
        (0u8..8).prop_map(Event::Roams),
        some().prop_map(Event::Addresses),
        some().prop_map(Event::Carried),
        Just(Event::Restart),
        (0u16..5_000).prop_map(Event::Wait),
    ]
}

/// Outside, in the overlay, behind a link that may be carried, and the first node's own.
fn address(number: u8) -> IpAddr {
    match number {
        0..3 => at(2, usize::from(number) + 5),
        3 => v4(1),
        4 => v4(0),
        5 => record(1).addresses.v6.into(),
        _ => IpAddr::from([172, 20, number, 9]),
    }
}

fn range(number: u8) -> AllowedIp {
    match number {
        6..8 => format!("172.20.{number}.0/24").parse().unwrap(),
        _ => AllowedIp::host(v4(7)),
    }
}

impl World {
    fn befall(&mut self, event: &Event, carried: &mut BTreeSet<AllowedIp>, sequence: u64) {
        let now = self.now();
        match event {
            Event::Presence(numbers) => {
                let at = |number: &u8| SocketAddr::new(address(*number), PORT);
                let kind = CandidateKind::Host;
                let candidates = numbers.iter().map(|n| Candidate { kind, endpoint: at(n) }).collect();
                let word = Presence {
                    node: id(1),
                    incarnation: Incarnation(1 << 20),
                    sequence,
                    signed_at: now.wall,
                    candidates,
                };
                let records = vec![word.sign(MESH, &super::world::identity(1))];
                let update = PresenceUpdate { records, ..PresenceUpdate::default() };
                self.tell(0, CoordinatorMessage::Presence(update));
            }
            Event::Roams(number) => {
                if let Some(peer) = self.hosts[0].device.peers.get_mut(&record(1).public_key) {
                    peer.endpoint = Some(SocketAddr::new(address(*number), PORT));
                    peer.rx_bytes += 96;
                    peer.last_handshake = Some(now.wall);
                }
            }
            Event::Addresses(numbers) => self.move_to(0, numbers.iter().map(|n| address(*n)).collect()),
            Event::Carried(numbers) => {
                *carried = numbers.iter().map(|n| range(*n)).collect();
                self.hosts[0].node.handle_carried(carried.clone(), now);
                self.perform(0);
            }
            Event::Restart => {
                self.restart(0);
                let now = self.now();
                self.hosts[0].node.handle_carried(carried.clone(), now);
                self.perform(0);
            }
            Event::Wait(span) => self.run(millis((*span).into())),
        }
    }
}

/// Every endpoint that an action names.
fn named(action: &Action) -> Vec<IpAddr> {
    let of_peer = |change: &PeerChange| match change {
        PeerChange::Remove => None,
        PeerChange::Add(new) | PeerChange::Recreate(new) => new.endpoint,
        PeerChange::Modify(update) => update.endpoint,
    };
    let endpoints: Vec<SocketAddr> = match action {
        Action::Apply(update) => update.peers.iter().filter_map(|(_, change)| of_peer(change)).collect(),
        Action::Persist(Record::Endpoint { endpoint, .. }) => vec![*endpoint],
        Action::Say(mesh_types::NodeMessage::Presence(word)) => {
            word.parse_unverified().unwrap().candidates.iter().map(|candidate| candidate.endpoint).collect()
        }
        _ => Vec::new(),
    };
    endpoints.iter().map(SocketAddr::ip).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn no_endpoint_inside_the_mesh_is_ever_chosen_remembered_or_offered_and_none_stays(
        events in proptest::collection::vec(event(), 1..25),
    ) {
        let mut world = pair();
        let mut carried = BTreeSet::new();
        for (sequence, event) in (1..).zip(&events) {
            let inside = |address: IpAddr, carried: &BTreeSet<AllowedIp>| {
                config().overlay.contains(address) || carried.iter().any(|range| range.net().contains(&address))
            };
            world.hosts[0].log.clear();
            world.befall(event, &mut carried, sequence);
            for (at, action) in &world.hosts[0].log {
                for address in named(action) {
                    // A daemon that has just started is told of links before it does anything.
                    let known = if matches!(event, Event::Restart) { &BTreeSet::new() } else { &carried };
                    prop_assert!(!inside(address, known), "at {at} ms {event:?} led to {action:?}");
                }
            }
            let actual = &world.hosts[0].device;
            let desired = world.hosts[0].node.desired(actual, world.now().wall);
            for peer in desired.peers.values() {
                if let EndpointIntent::Set(endpoint) = peer.endpoint {
                    prop_assert!(!inside(endpoint.ip(), &carried), "{event:?} leads to {endpoint}");
                }
            }
            prop_assert_eq!(&desired.barred.iter().filter(|r| carried.contains(r)).count(), &carried.len());
        }
        world.run(millis(3_100));
        let endpoint = world.hosts[0].endpoint(1);
        prop_assert!(endpoint.is_none_or(|at| !config().overlay.contains(at.ip())
            && !carried.iter().any(|range| range.net().contains(&at.ip()))), "{endpoint:?} stays");
    }
}
