//! Settings and window updates without end, the answers to which are not read.

use super::{Attack, STAY, deaf};
use crate::frames::{Frames, setting};

pub(super) const ATTACK: Attack = Attack {
    name: "settings",
    about: "SETTINGS and WINDOW_UPDATE without end on 4 connections, reading nothing",
    waits: true,
    run: |stage| Box::pin(deaf(stage, STAY, changes)),
};

const BATCH: u32 = 100;

fn changes() -> Frames {
    (0..BATCH).fold(Frames::default(), |frames, number| {
        frames.settings(&[(setting::INITIAL_WINDOW_SIZE, number)]).window_update(0, 1)
    })
}
