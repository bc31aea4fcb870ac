//! Random worlds from seeds: whatever happens, the contracts hold, and at rest everybody reaches everybody.

use mesh_tests::world::World;

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
