//! Two peers and a hostile network: what must hold in the world of both, and of the hosts in it, whatever happens. Once the
//! network is well again, packets get through within the time that the timers allow, and sooner after a silence that has
//! ended all sessions.

#![no_main]

#[path = "../../../node/wireguard/core/tests/world/mod.rs"]
mod world;

use arbitrary::{Arbitrary, Result, Unstructured};
use libfuzzer_sys::fuzz_target;
use std::time::Duration;
use world::{Event, Side, WITH_SESSIONS, WITHOUT_SESSIONS, World};

/// More take too long for what they show.
const MAX_EVENTS: usize = 150;
/// Of 256: many minutes of virtual time take as long as all events.
const SILENCE: u8 = 32;

#[derive(Debug, Arbitrary)]
struct Input {
    /// Below `SILENCE` there is one before the end.
    silence: u8,
    events: Vec<Event>,
}

fuzz_target!(|input: Input| {
    let mut world = World::new();
    for event in input.events.into_iter().take(MAX_EVENTS) {
        world.act(event);
        world.check();
    }
    let silence = input.silence < SILENCE;
    if silence {
        world.part();
    }
    world.heal();
    let took = world.time_to_recover();
    let bound = if silence { WITHOUT_SESSIONS } else { WITH_SESSIONS };
    assert!(took <= bound, "recovery took {took:?}");
    world.check();
});

/// Mostly what makes sessions and uses them: of all alike, few sessions would live to see much.
impl<'a> Arbitrary<'a> for Event {
    fn arbitrary(u: &mut Unstructured<'a>) -> Result<Self> {
        Ok(match u.int_in_range(0..=31)? {
            0..=4 => Self::Send(u.arbitrary()?),
            5..=8 => Self::Deliver { which: u.arbitrary::<u8>()?.into(), again: u.arbitrary()? },
            9..=13 => Self::DeliverAll,
            14 => Self::Lose(u.arbitrary::<u8>()?.into()),
            15..=16 => Self::Replay { which: u.arbitrary::<u16>()?.into(), flip: flip(u)?, signed: u.arbitrary()? },
            17 => Self::Forge {
                to: u.arbitrary()?,
                kind: u.arbitrary()?,
                length: u.arbitrary()?,
                bytes: u.arbitrary()?,
                signed: u.arbitrary()?,
            },
            18..=20 => Self::Wait(Duration::from_millis(u.arbitrary::<u8>()?.into())),
            21..=22 => Self::Wait(Duration::from_secs(u.int_in_range(0..=15)?)),
            23 => Self::Wait(Duration::from_secs(u.int_in_range(0..=255)?)),
            24 => Self::Burn(u.arbitrary()?, u.arbitrary()?),
            25 => Self::Initiate(u.arbitrary()?),
            26 => Self::ChangePresharedKey(u.arbitrary()?),
            27 => Self::ChangePrivateKey(u.arbitrary()?),
            28 => Self::Restart(u.arbitrary()?),
            29 => Self::SetKeepalive(u.arbitrary()?, u.arbitrary()?),
            30 => Self::UnderLoad(u.arbitrary()?, u.arbitrary()?),
            _ => Self::MoveClock { side: u.arbitrary()?, back: u.arbitrary()?, seconds: u.arbitrary()? },
        })
    }
}

fn flip(u: &mut Unstructured<'_>) -> Result<Option<(usize, u8)>> {
    let flip: Option<(u8, u8)> = u.arbitrary()?;
    Ok(flip.map(|(byte, bit)| (byte.into(), bit)))
}

impl<'a> Arbitrary<'a> for Side {
    fn arbitrary(u: &mut Unstructured<'a>) -> Result<Self> {
        Ok(if u.arbitrary()? { Self::A } else { Self::B })
    }
}
