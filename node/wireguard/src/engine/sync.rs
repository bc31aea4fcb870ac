//! What the engine's threads meet by: locks, flags, and wakers to sleep by.
//!
//! In the unit tests of this crate they are those of a model checker (shuttle), which runs the threads of a test one at a
//! time and tries many orders: the engine's own code is what is checked. So a unit test that locks anything of the engine
//! runs inside of it. Nothing else takes note: `Arc` and channels that nobody waits for are the standard library's.

use nix::poll::PollTimeout;
use nix::sys::eventfd::{EfdFlags, EventFd};
use std::os::fd::{AsFd, BorrowedFd};

#[cfg(test)]
pub(crate) use shuttle::sync::{Mutex, MutexGuard, RwLock, RwLockReadGuard, RwLockWriteGuard, atomic};
#[cfg(not(test))]
pub(crate) use std::sync::{Mutex, MutexGuard, RwLock, RwLockReadGuard, RwLockWriteGuard, atomic};

/// Wakes one thread that sleeps by it, now or the next time.
pub(crate) struct Waker {
    fd: EventFd,
    #[cfg(test)]
    model: model::Flag,
}

impl Waker {
    pub(crate) fn new() -> nix::Result<Self> {
        Ok(Self {
            fd: EventFd::from_flags(EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC)?,
            #[cfg(test)]
            model: model::Flag::default(),
        })
    }

    pub(crate) fn wake(&self) {
        // It fails only if it is woken 2^64 times over without being cleared.
        let _ = self.fd.write(1);
        #[cfg(test)]
        self.model.raise();
    }

    /// Forgets that it was woken.
    pub(crate) fn clear(&self) {
        let _ = self.fd.read();
    }

    /// Sleeps until it is woken, `also` is readable or the time is over, and clears it.
    #[cfg(not(test))]
    pub(crate) fn wait(&self, also: Option<BorrowedFd<'_>>, timeout: PollTimeout) -> nix::Result<()> {
        use nix::poll::{PollFd, PollFlags, poll};
        let mut fds = vec![PollFd::new(self.fd.as_fd(), PollFlags::POLLIN)];
        fds.extend(also.map(|fd| PollFd::new(fd, PollFlags::POLLIN)));
        let polled = poll(&mut fds, timeout);
        self.clear();
        match polled {
            Ok(_) | Err(nix::errno::Errno::EINTR) => Ok(()),
            Err(errno) => Err(errno),
        }
    }

    /// The same for the model checker, to which time stands still: who is to wake up has to be woken.
    #[cfg(test)]
    pub(crate) fn wait(&self, _: Option<BorrowedFd<'_>>, _: PollTimeout) -> nix::Result<()> {
        self.model.await_and_lower();
        self.clear();
        Ok(())
    }
}

impl AsFd for Waker {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

#[cfg(test)]
mod model {
    use super::Mutex;
    use shuttle::sync::Condvar;

    /// What the model checker sees of an event descriptor.
    #[derive(Default)]
    pub(super) struct Flag {
        raised: Mutex<bool>,
        changed: Condvar,
    }

    impl Flag {
        pub(super) fn raise(&self) {
            *self.raised.lock().unwrap() = true;
            self.changed.notify_one();
        }

        pub(super) fn await_and_lower(&self) {
            let mut raised = self.raised.lock().unwrap();
            while !std::mem::take(&mut *raised) {
                raised = self.changed.wait(raised).unwrap();
            }
        }
    }
}
