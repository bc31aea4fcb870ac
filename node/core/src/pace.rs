//! How many paths may be tried in a short time: in a big mesh not all at once.

use crate::clock::BootTime;
use std::time::Duration;

const WINDOW: Duration = Duration::from_millis(100);
/// Tries in one window: each may be a handshake, which costs both sides some hundred microseconds.
const LIMIT: u32 = 50;
/// The same with those that are urgent, because a peer or this host has moved. No more than that go out in all.
const LIMIT_URGENT: u32 = 100;

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
    pub(crate) fn take(&mut self, urgent: bool, now: BootTime) -> Result<(), BootTime> {
        if now >= self.window + WINDOW {
            *self = Self::new(now);
        }
        if self.used >= if urgent { LIMIT_URGENT } else { LIMIT } {
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

#[cfg(test)]
mod tests {
    use super::*;

    fn taken(pace: &mut Pace, urgent: bool, millis: u64) -> usize {
        (0..1_000).take_while(|_| pace.take(urgent, BootTime::from_millis(millis)).is_ok()).count()
    }

    #[test]
    fn what_is_urgent_goes_before_the_rest_and_not_without_end() {
        let mut pace = Pace::new(BootTime::from_millis(0));
        assert_eq!(taken(&mut pace, false, 0), 50);
        assert_eq!(taken(&mut pace, true, 0), 50);
        assert_eq!(pace.take(true, BootTime::from_millis(99)), Err(BootTime::from_millis(100)));
        assert_eq!(taken(&mut pace, true, 100), 100);
    }
}
