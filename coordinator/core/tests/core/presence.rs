//! Which words of nodes are taken, and how two tables find out what differs.

use crate::fixture::*;
use mesh_coordinator_core::clock::Monotonic;
use mesh_coordinator_core::presence::{PresenceRefusal, PresenceTable};
use mesh_types::limits::PRESENCE_CHANGES;
use mesh_types::presence::PresenceError;
use mesh_types::{Incarnation, SignedPresence};
use proptest::prelude::*;

const NOW: Monotonic = Monotonic(1_000_000);

fn world(nodes: u8) -> World {
    let mut world = World::with_token();
    (1..=nodes).for_each(|n| drop(world.join(n)));
    world
}

fn offer(table: &mut PresenceTable, world: &World, signed: &SignedPresence) -> Result<(), PresenceRefusal> {
    table.offer(signed.clone(), &world.registry, NOW).map(|node| assert_eq!(table.record(node), Some(signed)))
}

#[test]
fn the_newest_word_of_a_member_is_held_whatever_the_order() {
    let (world, mut table) = (world(1), PresenceTable::default());
    assert_eq!(offer(&mut table, &world, &presence(1, 5)), Ok(()));
    for late in [4, 5] {
        assert_eq!(offer(&mut table, &world, &presence(1, late)), Err(PresenceRefusal::NotNewer(node(1))));
    }
    assert_eq!(offer(&mut table, &world, &presence(1, 6)), Ok(()));
    assert_eq!(table.incarnation(node(1)), Incarnation(1));
    assert_eq!(table.incarnation(node(9)), Incarnation(0));
}

#[test]
fn strangers_and_forgers_are_refused() {
    let (world, mut table) = (world(2), PresenceTable::default());
    assert_eq!(offer(&mut table, &world, &presence(3, 1)), Err(PresenceRefusal::NotMember(node(3))));
    let forged = SignedPresence { signature: presence(2, 1).signature, ..presence(1, 1) };
    assert_eq!(offer(&mut table, &world, &forged), Err(PresenceRefusal::Invalid(PresenceError::Signature)));
    assert_eq!(table.records().count(), 0);
}

#[test]
fn candidates_inside_the_overlay_or_out_of_reach_spoil_the_record() {
    let (world, mut table) = (world(1), PresenceTable::default());
    let bad = [
        "10.9.0.7:51820",
        "[fd00:1:2::9]:51820",
        "[::ffff:10.9.0.7]:1",
        "127.0.0.1:51820",
        "224.0.0.1:51820",
        "198.51.100.1:0",
    ];
    for (sequence, endpoint) in bad.iter().enumerate() {
        let signed = presence_at(1, sequence as u64, &["198.51.100.1:51820", endpoint]);
        let refusal = offer(&mut table, &world, &signed).unwrap_err();
        assert!(
            matches!(refusal, PresenceRefusal::Candidate { candidate, .. } if candidate.endpoint == endpoint.parse().unwrap()),
            "{endpoint}"
        );
    }
}

#[test]
fn who_changes_too_often_is_put_off_and_the_newest_word_comes_through_later() {
    let (world, mut table) = (world(1), PresenceTable::default());
    let limit = u64::from(PRESENCE_CHANGES.burst);
    for sequence in 1..=limit {
        assert_eq!(offer(&mut table, &world, &presence(1, sequence)), Ok(()));
    }
    for sequence in [limit + 1, limit + 3, limit + 2] {
        assert_eq!(offer(&mut table, &world, &presence(1, sequence)), Err(PresenceRefusal::TooOften(node(1))));
    }
    assert_eq!(table.offer_deferred(&world.registry, NOW), []);
    assert_eq!(table.offer_deferred(&world.registry, Monotonic(NOW.0 + 1000)), [node(1)]);
    assert_eq!(table.record(node(1)), Some(&presence(1, limit + 3)));
    assert_eq!(table.offer_deferred(&world.registry, Monotonic(NOW.0 + 9000)), [], "and only once");
}

#[test]
fn two_words_with_the_same_number_settle_on_the_same_one_everywhere() {
    let world = world(1);
    let words = [presence_at(1, 1, &["198.51.100.1:1"]), presence_at(1, 1, &["198.51.100.2:2"])];
    let settle = |order: [usize; 2]| {
        let mut table = PresenceTable::default();
        order.iter().for_each(|&n| drop(offer(&mut table, &world, &words[n])));
        (table.record(node(1)).cloned(), table.digest().clone())
    };
    assert_eq!(settle([0, 1]), settle([1, 0]));
}

#[test]
fn a_removed_node_leaves_nothing_behind() {
    let (mut world, mut table) = (world(2), PresenceTable::default());
    let empty = table.digest().clone();
    offer(&mut table, &world, &presence(1, 1)).unwrap();
    table.forget(node(1));
    assert_eq!((table.digest(), table.records().count()), (&empty, 0));
    offer(&mut table, &world, &presence(1, 2)).unwrap();
    offer(&mut table, &world, &presence(2, 1)).unwrap();
    world.remove(1);
    table.retain_members(&world.registry);
    assert_eq!(table.records().collect::<Vec<_>>(), [&presence(2, 1)]);
}

#[test]
fn a_digest_that_is_divided_otherwise_differs_everywhere() {
    let (world, mut table) = (world(2), PresenceTable::default());
    (1..=2).for_each(|n| offer(&mut table, &world, &presence(n, 1)).unwrap());
    assert_eq!(table.differing(&[0; 7]).len(), 2);
    let own = table.digest().sums();
    assert_eq!(table.differing(own).len(), 0);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]
    #[test]
    fn one_exchange_of_differences_makes_two_tables_equal(words in proptest::collection::vec((1u8..6, 1u64..5, any::<[bool; 2]>()), 0..30)) {
        let world = world(5);
        let mut tables = [PresenceTable::default(), PresenceTable::default()];
        for (n, sequence, heard) in words {
            for (table, heard) in tables.iter_mut().zip(heard) {
                if heard {
                    let _ = offer(table, &world, &presence(n, sequence));
                }
            }
        }
        let [a, b] = &mut tables;
        let (from_a, from_b): (Vec<_>, Vec<_>) = (
            a.differing(b.digest().sums()),
            b.differing(a.digest().sums()),
        );
        from_b.iter().for_each(|signed| drop(offer(a, &world, signed)));
        from_a.iter().for_each(|signed| drop(offer(b, &world, signed)));
        prop_assert_eq!(a.records().collect::<Vec<_>>(), b.records().collect::<Vec<_>>());
        prop_assert_eq!(a.digest(), b.digest());
    }
}
