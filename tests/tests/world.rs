//! Random worlds from seeds: whatever happens, the contracts hold, and at rest everybody reaches everybody.

use mesh_tests::world::network::Host;
use mesh_tests::world::{World, mesh_time};
use mesh_types::NodeState;

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
