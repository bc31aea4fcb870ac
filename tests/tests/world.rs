//! Random worlds from seeds: whatever happens, the contracts hold, and at rest everybody reaches everybody.

use mesh_tests::world::network::Host;
use mesh_tests::world::{World, mesh_time};
use mesh_types::{CoordinatorId, NodeState};

/// Worlds of one run; `MESH_WORLDS` asks for another number.
const WORLDS: u64 = 10;
/// Acts of one world.
const ACTS: u32 = 60;

fn worlds() -> u64 {
    std::env::var("MESH_WORLDS").ok().map_or(WORLDS, |number| number.parse().expect("MESH_WORLDS is a number"))
}

fn live(seed: u64) {
    let mut world = World::new(seed, 3);
    for _ in 0..3 {
        world.join();
    }
    world.run(1_000);
    for _ in 0..ACTS {
        world.act();
    }
    world.check_at_rest();
}

#[test]
fn every_world_comes_to_rest_with_all_contracts_kept() {
    match std::env::var("MESH_WORLD_SEED") {
        Ok(seed) => live(seed.parse().expect("MESH_WORLD_SEED is a number")),
        Err(_) => (0..worlds()).for_each(live),
    }
}

#[test]
fn one_seed_has_one_history() {
    let digest = |seed| {
        let mut world = World::new(seed, 3);
        (0..20).for_each(|_| world.act());
        (world.now(), world.cluster.truth.hash(), world.machines.iter().map(|m| m.disk.clone()).collect::<Vec<_>>())
    };
    assert_eq!(digest(5), digest(5));
    assert_ne!(digest(5), digest(6));
}

#[test]
fn a_lease_that_ended_without_coordinators_is_renewed_within_seconds_of_their_return() {
    let mut world = World::new(1, 3);
    let node = world.join().expect("a quorum");
    for id in world.cluster.ids() {
        world.network.cut(Host::Node(node), Host::Coordinator(id.0));
    }
    // The key lives four minutes; by now the node has asked in vain for a while, and waits longer each time.
    world.run(600_000);
    let lease = |world: &World| {
        let record = world.cluster.truth.node(world.machines[node].record.id).expect("a member");
        record.state(mesh_time(world.now()))
    };
    assert_eq!(lease(&world), NodeState::Expired);
    world.network.heal();
    world.run(8_000);
    assert_eq!(lease(&world), NodeState::Active);
}

#[test]
fn two_nodes_that_move_at_once_find_each_other_in_less_than_a_second() {
    let mut world = World::new(2, 3);
    let nodes: Vec<usize> = (0..2).map(|_| world.join().expect("a quorum")).collect();
    world.run(5_000);
    for node in &nodes {
        world.roam(*node);
    }
    world.run(1_000);
    let (peer, addresses) = (world.machines[nodes[1]].record.id, world.machines[nodes[1]].record.addresses);
    world.with_node(nodes[0], |node, now| {
        node.handle_ping(peer, addresses.v4.into(), now).expect("a peer");
    });
    world.run(100);
    assert_eq!(world.machines[nodes[0]].pongs.get(&peer), Some(&true));
}

/// Lets a node reach one coordinator alone.
fn confine(world: &mut World, node: usize, to: CoordinatorId) {
    for id in world.cluster.ids().into_iter().filter(|id| *id != to) {
        world.network.cut(Host::Node(node), Host::Coordinator(id.0));
    }
}

/// A mesh of three coordinators and one node, whose session is with the first.
fn settled() -> (World, usize) {
    let mut world = World::new(3, 3);
    let node = world.join().expect("a quorum");
    confine(&mut world, node, CoordinatorId(1));
    world.run(5_000);
    assert_eq!(world.machines[node].welcomed_by(world.now()), Some(CoordinatorId(1)));
    (world, node)
}

#[test]
fn a_copy_of_a_node_that_lives_with_another_coordinator_is_never_welcomed() {
    let (mut world, node) = settled();
    let session = world.machines[node].session;
    let copy = world.copy(node);
    confine(&mut world, copy, CoordinatorId(2));
    for _ in 0..200 {
        world.run(50);
        assert_eq!(world.machines[copy].welcomed_by(world.now()), None);
    }
    assert!(world.machines[copy].is_refused(world.now()));
    assert_eq!(world.machines[node].session, session, "the older one is not disturbed");
    world.machines[node].kill(false);
    world.run(8_000);
    assert_eq!(world.machines[copy].welcomed_by(world.now()), Some(CoordinatorId(2)), "it takes the other's place");
}

#[test]
fn a_copy_that_was_welcomed_while_coordinators_could_not_meet_is_closed_when_they_do() {
    let (mut world, node) = settled();
    for other in [1, 3] {
        world.network.cut(Host::Coordinator(2), Host::Coordinator(other));
    }
    // What the second coordinator knew of the first one's sessions ends.
    world.run(11_000);
    let session = world.machines[node].session;
    let copy = world.copy(node);
    confine(&mut world, copy, CoordinatorId(2));
    world.run(5_000);
    assert_eq!(world.machines[copy].welcomed_by(world.now()), Some(CoordinatorId(2)));
    world.network.heal();
    confine(&mut world, node, CoordinatorId(1));
    confine(&mut world, copy, CoordinatorId(2));
    world.run(1_000);
    assert!(world.machines[copy].is_refused(world.now()));
    assert_eq!(world.machines[copy].welcomed_by(world.now()), None);
    assert_eq!(world.machines[node].session, session, "the older one is not disturbed");
}

#[test]
fn a_node_that_restarts_out_of_reach_of_its_coordinator_gets_in_elsewhere_before_its_old_stream_is_missed() {
    for coordinator_dies in [false, true] {
        let (mut world, node) = settled();
        world.machines[node].kill(false);
        world.network.heal();
        world.network.cut(Host::Node(node), Host::Coordinator(1));
        if coordinator_dies {
            world.cluster.crash(CoordinatorId(1));
        }
        world.start(node);
        // Streams are missed after five seconds.
        world.run(4_900);
        let welcomed = world.machines[node].welcomed_by(world.now());
        assert!(welcomed.is_some_and(|by| by != CoordinatorId(1)), "{welcomed:?}");
        assert!(!world.machines[node].is_refused(world.now()));
    }
}

#[test]
fn a_node_that_moves_to_another_coordinator_is_sent_only_the_presence_that_changed_meanwhile() {
    let (mut world, node) = settled();
    let others: Vec<usize> = (0..5).map(|_| world.join().expect("a quorum")).collect();
    world.run(5_000);
    for id in world.cluster.ids() {
        world.network.cut(Host::Node(node), Host::Coordinator(id.0));
    }
    world.run(6_000);
    assert_eq!(world.machines[node].welcomed_by(world.now()), None);
    world.machines[node].records_heard = 0;
    let moved = world.roam(others[0]);
    world.run(2_000);
    world.network.heal();
    confine(&mut world, node, CoordinatorId(2));
    world.run(3_000);
    assert_eq!(world.machines[node].welcomed_by(world.now()), Some(CoordinatorId(2)));
    assert_eq!(world.machines[node].records_heard, 1);
    let key = world.machines[others[0]].record.public_key;
    let device = world.machines[node].device.read(mesh_time);
    assert_eq!(device.peers[&key].endpoint.map(|endpoint| endpoint.ip()), Some(moved));
}
