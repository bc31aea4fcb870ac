//! How many packets a peer can draw to where it is not.

use super::world::{MESH, World, id};
use super::{is_change_of, millis, pair};
use crate::device::PeerChange;
use mesh_types::session::PresenceUpdate;
use mesh_types::{Candidate, CandidateKind, CoordinatorMessage, Incarnation, Presence};
use std::net::{IpAddr, SocketAddr};

/// Lets the second node list these places and no other.
fn claim(world: &mut World, sequence: u64, places: &[SocketAddr]) {
    let now = world.now().wall;
    let candidates = places.iter().map(|at| Candidate { kind: CandidateKind::Host, endpoint: *at }).collect();
    let (node, incarnation) = (id(1), Incarnation(1 << 20));
    let word = Presence { node, incarnation, sequence, signed_at: now, candidates };
    let records = vec![word.sign(MESH, &super::world::identity(1))];
    world.tell(0, CoordinatorMessage::Presence(PresenceUpdate { records, ..PresenceUpdate::default() }));
}

fn sent_to(world: &World, victim: IpAddr) -> usize {
    world.hosts[0].sent_to.iter().filter(|(_, at)| at.ip() == victim).count()
}

const VICTIM: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(198, 51, 100, 7));

#[test]
fn a_peer_that_changes_its_candidates_every_second_draws_few_packets_to_an_address_that_is_not_its_own() {
    let mut world = pair();
    // It has said its word and answers nothing.
    world.hosts[1].alive = false;
    for change in 1..=300 {
        claim(&mut world, change, &[SocketAddr::new(VICTIM, 1_000 + u16::try_from(change).unwrap())]);
        world.run(millis(1_000));
    }
    // Four tries at once and one a minute, each a round of four probes or an initiation that is repeated.
    let sent = sent_to(&world, VICTIM);
    assert!(sent <= 4 * (4 + 5), "{sent} packets in five minutes");
}

#[test]
fn a_peer_that_claims_another_address_each_time_draws_a_burst_and_then_one_try_in_five_seconds() {
    let mut world = pair();
    let victim = |change: u64| IpAddr::from([198, 51, 100, u8::try_from(change % 250).unwrap()]);
    let of_net = |at: &SocketAddr| matches!(at.ip(), IpAddr::V4(ip) if ip.octets()[..3] == [198, 51, 100]);
    world.hosts[1].alive = false;
    for change in 1..=300 {
        claim(&mut world, change, &[SocketAddr::new(victim(change), 1_000)]);
        world.run(millis(1_000));
    }
    let sent = world.hosts[0].sent_to.iter().filter(|(_, at)| of_net(at)).count();
    assert!(sent <= 4 * (16 + 60), "{sent} packets in five minutes");
}

#[test]
fn an_unreachable_peer_is_made_anew_twice_and_then_left_to_wireguards_own_handshakes() {
    let mut world = pair();
    world.hosts[1].alive = false;
    world.hosts[0].log.clear();
    for _ in 0..600 {
        world.send(0, 1);
        world.run(millis(500));
    }
    let anew = world.hosts[0].times(|a| is_change_of(a, 1, |c| matches!(c, PeerChange::Recreate(_))));
    assert_eq!(anew.len(), 2, "{anew:?}");
}
