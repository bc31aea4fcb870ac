//! Places with an owner: they are free again when it is dropped, and it is told to go when it has to give way.

use super::places::{Bounds, NoPlace, Places};
use super::source::{LEVELS, Source};
use super::{Hangup, JOINER_STAY, STRANGER_STAY};
use mesh_types::limits::MAX_STRANGER_CALLS;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;
use thiserror::Error;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::time::Instant;

impl Bounds {
    /// Each network has one of so many parts, the narrowest first, so that the others always have the rest.
    pub(super) fn shared(most: usize, parts: [usize; LEVELS], patience: Duration) -> Self {
        Self { most, of_network: parts.map(|part| most.div_ceil(part)), patience }
    }
}

/// The places of one kind; clones share them.
#[derive(Clone, Debug)]
pub(super) struct Lobby(Arc<Mutex<Places<Hangup>>>);

impl Lobby {
    pub(super) fn new(bounds: Bounds) -> Self {
        Self(Arc::new(Mutex::new(Places::new(bounds))))
    }

    /// A place until it is dropped, or until `hangup` is used because another needs it more.
    pub(super) fn take(&self, source: Source, hangup: Hangup) -> Result<Seat, NoPlace> {
        let given = self.places().take(source, hangup, Instant::now())?;
        if let Some(gave_way) = given.gave_way {
            gave_way.now();
        }
        Ok(Seat { lobby: self.clone(), place: given.place })
    }

    fn places(&self) -> MutexGuard<'_, Places<Hangup>> {
        self.0.lock().expect("no code panics while it holds the places")
    }
}

/// A place that was taken.
#[derive(Debug)]
pub(super) struct Seat {
    lobby: Lobby,
    place: u64,
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.lobby.places().leave(self.place);
    }
}

/// The stay of a caller without a certificate; clones are of the same one.
#[derive(Clone, Debug)]
pub struct Visit(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    joiners: Arc<Semaphore>,
    standing: Mutex<Standing>,
    ends: watch::Sender<Instant>,
    calls: AtomicUsize,
}

/// Among whom a caller is counted.
#[derive(Debug)]
enum Standing {
    Stranger { _seat: Seat },
    Joiner { _place: OwnedSemaphorePermit },
}

/// Too many callers who showed a valid token are connected.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
#[error("too many machines join at once")]
pub struct NoRoom;

impl Visit {
    pub(super) fn new(seat: Seat, joiners: Arc<Semaphore>) -> Self {
        let (ends, _) = watch::channel(Instant::now() + STRANGER_STAY);
        let standing = Mutex::new(Standing::Stranger { _seat: seat });
        Self(Arc::new(Inner { joiners, standing, ends, calls: AtomicUsize::new(0) }))
    }

    /// Of the only stranger that there is.
    #[cfg(test)]
    pub(crate) fn alone(hangup: Hangup) -> Self {
        let lobby = Lobby::new(Bounds::shared(1, [1; LEVELS], STRANGER_STAY));
        let seat = lobby.take(Source::of(std::net::Ipv4Addr::LOCALHOST.into()), hangup).expect("there is one place");
        Self::new(seat, Arc::new(Semaphore::new(1)))
    }

    /// Counts the caller among those who showed a valid token from now on: it takes no stranger's place any more, and
    /// gives way to none.
    pub fn vouch(&self) -> Result<(), NoRoom> {
        let mut standing = self.0.standing.lock().expect("no code panics while it holds the standing");
        if let Standing::Stranger { .. } = *standing {
            let place = self.0.joiners.clone().try_acquire_owned().map_err(|_| NoRoom)?;
            *standing = Standing::Joiner { _place: place };
            self.0.ends.send_replace(Instant::now() + JOINER_STAY);
        }
        Ok(())
    }

    /// Counts a call; false if there were too many for anyone who joins.
    pub(crate) fn may_call(&self) -> bool {
        self.0.calls.fetch_add(1, Ordering::Relaxed) < MAX_STRANGER_CALLS
    }

    /// Waits until the visit has lasted long enough.
    pub(crate) async fn is_over(&self) {
        let mut ends = self.0.ends.subscribe();
        loop {
            let deadline = *ends.borrow_and_update();
            // The sender lives as long as this visit, so that only a new deadline ends the wait early.
            if tokio::time::timeout_at(deadline, ends.changed()).await.is_err() {
                return;
            }
        }
    }
}
