//! The world under random events, and under counters that are nearly used up: what no run of messages comes to.

use super::world::{Event, Side, WITH_SESSIONS, WITHOUT_SESSIONS, World};
use super::*;
use crate::peer::limits::{REJECT_AFTER_MESSAGES, REKEY_AFTER_MESSAGES};
use proptest::collection::vec;
use proptest::prelude::*;

#[derive(Clone, Debug)]
enum Step {
    Event(Event),
    /// Brings the sending counter of the current session close to a limit.
    WearOut {
        side: Side,
        to: u64,
    },
}

/// A world after so many steps, checked after every one.
fn world(steps: Vec<Step>) -> World {
    let mut world = World::new();
    for step in steps {
        match step {
            Step::Event(event) => world.act(event),
            Step::WearOut { side, to } => {
                if let Some(session) = &mut world.host(side).peer.sessions.current {
                    session.next_counter = session.next_counter.max(to);
                }
            }
        }
        world.check();
    }
    world
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 100, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn whatever_the_network_does_nothing_is_repeated_forged_or_kept_beyond_its_limits(steps in vec(step(), 1..150)) {
        world(steps);
    }

    #[test]
    fn once_the_network_is_well_packets_get_through_within_the_timers(steps in vec(step(), 1..150)) {
        let mut world = world(steps);
        world.heal();
        let took = world.time_to_recover();
        prop_assert!(took <= WITH_SESSIONS, "took {took:?}");
        world.check();
    }

    #[test]
    fn without_a_session_packets_get_through_within_one_handshake_timeout(steps in vec(step(), 1..150)) {
        let mut world = world(steps);
        world.heal();
        for side in [Side::A, Side::B] {
            world.host(side).peer.end();
        }
        let took = world.time_to_recover();
        prop_assert!(took <= WITHOUT_SESSIONS, "took {took:?}");
        world.check();
    }

    #[test]
    fn keys_end_in_silence_and_packets_get_through_again_after_it(steps in vec(step(), 1..150)) {
        let mut world = world(steps);
        world.part();
        world.heal();
        let took = world.time_to_recover();
        prop_assert!(took <= WITHOUT_SESSIONS, "took {took:?}");
        world.check();
    }
}

fn step() -> impl Strategy<Value = Step> {
    let near = prop_oneof![Just(REKEY_AFTER_MESSAGES - 2), Just(REJECT_AFTER_MESSAGES - 3)];
    prop_oneof![
        55 => event().prop_map(Step::Event),
        1 => (side(), near).prop_map(|(side, to)| Step::WearOut { side, to }),
    ]
}

fn event() -> impl Strategy<Value = Event> {
    let millis = prop_oneof![4 => 0..100_u64, 3 => 0..6_000_u64, 2 => 0..30_000_u64, 1 => 0..200_000_u64];
    let flip = proptest::option::of((any::<usize>(), 0..8_u8));
    let replayed = (any::<usize>(), flip, any::<bool>());
    let forged = (side(), any::<u8>(), any::<u8>(), any::<[u8; 8]>(), any::<bool>());
    prop_oneof![
        12 => side().prop_map(Event::Send),
        20 => (any::<usize>(), prop::bool::weighted(0.1)).prop_map(|(which, again)| Event::Deliver { which, again }),
        1 => Just(Event::DeliverAll),
        3 => any::<usize>().prop_map(Event::Lose),
        4 => replayed.prop_map(|(which, flip, signed)| Event::Replay { which, flip, signed }),
        2 => forged.prop_map(|(to, kind, length, bytes, signed)| Event::Forge { to, kind, length, bytes, signed }),
        8 => millis.prop_map(|millis| Event::Wait(Duration::from_millis(millis))),
        1 => (side(), any::<u32>()).prop_map(|(side, packets)| Event::Burn(side, packets)),
        1 => side().prop_map(Event::Initiate),
        1 => any::<u8>().prop_map(Event::ChangePresharedKey),
        1 => side().prop_map(Event::ChangePrivateKey),
        1 => side().prop_map(Event::Restart),
        1 => (side(), prop_oneof![Just(0), 1..60_u16]).prop_map(|(side, seconds)| Event::SetKeepalive(side, seconds)),
        1 => (side(), any::<bool>()).prop_map(|(side, yes)| Event::UnderLoad(side, yes)),
        1 => (side(), any::<bool>(), 0..1_000_u16)
            .prop_map(|(side, back, seconds)| Event::MoveClock { side, back, seconds }),
    ]
}

fn side() -> impl Strategy<Value = Side> {
    prop_oneof![Just(Side::A), Just(Side::B)]
}
