//! How many paths may be tried in a short time: in a big mesh not all at once.

use crate::clock::BootTime;
use std::time::Duration;

const WINDOW: Duration = Duration::from_millis(100);
/// Tries in one window: each may be a handshake, which costs both sides some hundred microseconds.
const LIMIT: u32 = 50;

/// Counts the tries of the present window.
#[derive(Clone, Debug)]
pub(crate) struct Pace {
    window: BootTime,
    used: u32,
}

impl Pace {
    pub(crate) fn new(now: BootTime) -> Self {
        Self { window: now, used: 0 }
    }

    /// Makes room for one try, else says when there is room again.
    pub(crate) fn take(&mut self, now: BootTime) -> Result<(), BootTime> {
        if now >= self.window + WINDOW {
            *self = Self::new(now);
        }
        if self.used >= LIMIT {
            return Err(self.window + WINDOW);
        }
        self.used += 1;
        Ok(())
    }

    /// When there is room again.
    pub(crate) fn next(&self) -> BootTime {
        self.window + WINDOW
    }
}
