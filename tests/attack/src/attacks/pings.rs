//! PINGs without end, the answers to which are not read: the other side comes to wait for room to write.

use super::{Attack, STAY, deaf};
use crate::frames::Frames;

pub(super) const ATTACK: Attack = Attack {
    name: "pings",
    about: "PINGs without end on 4 connections, reading nothing",
    waits: true,
    run: |stage| Box::pin(deaf(stage, STAY, pings)),
};

const BATCH: usize = 200;

fn pings() -> Frames {
    (0..BATCH).fold(Frames::default(), |frames, _| frames.ping())
}
