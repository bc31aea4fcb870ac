//! One worker: a queue of the interface and a socket, both ways, in one thread.
//!
//! It takes what is there from both in turn and sleeps when neither has anything. Each flow stays with one queue and each
//! peer's address with one socket, so that nothing is reordered.

use super::clock;
use super::inbound::Inbound;
use super::outbound::Outbound;
use super::shared::Shared;
use crate::tun::{self, Queue, READ_SIZE};
use crate::udp::{MAX_TRAIN_BYTES, MAX_TRAIN_PACKETS, Socket};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use tracing::{debug, warn};

/// Reads of the interface before the network has its turn: as many packets as a train carries. When the host sends more
/// than we can take, its queue overflows; room made in one go is taken by packets that belong together, as fragments do.
const READS: usize = MAX_TRAIN_PACKETS;

/// Bytes that are read before the network has its turn, about: super-packets for a few trains.
const READ_BYTES: usize = 4 * MAX_TRAIN_BYTES;

pub(crate) struct Worker {
    pub(crate) number: usize,
    pub(crate) shared: Arc<Shared>,
    pub(crate) queue: Queue,
    socket: Option<Arc<Socket>>,
    generation: u64,
    raw: Box<[u8]>,
    outbound: Outbound,
    inbound: Inbound,
}

impl Worker {
    pub(crate) fn new(number: usize, shared: Arc<Shared>, queue: Queue) -> Self {
        let inbound = Inbound::new(&shared);
        Self {
            number,
            shared,
            queue,
            socket: None,
            generation: 0,
            raw: vec![0; READ_SIZE].into_boxed_slice(),
            outbound: Outbound::new(),
            inbound,
        }
    }

    /// Works until the engine stops.
    pub(crate) fn run(mut self) {
        if let Err(error) = self.work() {
            if tun::is_gone(&error) {
                debug!(interface = self.shared.tun.name(), "the interface has gone");
            } else {
                warn!(interface = self.shared.tun.name(), %error, "the engine ends");
            }
            self.shared.fail();
        }
    }

    fn work(&mut self) -> io::Result<()> {
        while !self.shared.is_stopping() {
            if !self.round()? {
                self.sleep()?;
            }
        }
        Ok(())
    }

    /// Takes what is there, to a limit, from both sides: the one that always has something must not keep the other
    /// waiting. Says whether there may be more.
    pub(super) fn round(&mut self) -> io::Result<bool> {
        self.follow_socket();
        let from_host = self.pump_host()?;
        let from_network = match &self.socket {
            Some(socket) => self.inbound.pump(&self.shared, socket, &self.queue)?,
            None => false,
        };
        Ok(from_host || from_network)
    }

    /// Takes packets of the host; says whether there may be more.
    fn pump_host(&mut self) -> io::Result<bool> {
        let mut started = None;
        let mut more = true;
        let (mut reads, mut bytes) = (0, 0);
        while reads < READS && bytes < READ_BYTES {
            match self.queue.read(&mut self.raw) {
                Ok(length) => {
                    reads += 1;
                    bytes += length;
                    let now = *started.get_or_insert_with(clock::now);
                    self.outbound.take(&self.raw[..length], &self.shared, self.socket.as_deref(), now);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    more = false;
                    break;
                }
                Err(error) if error.raw_os_error() == Some(libc::EIO) => {
                    more = false;
                    break;
                }
                Err(error) => return Err(error),
            }
        }
        self.outbound.flush(self.socket.as_deref());
        Ok(more)
    }

    /// Waits until the host or the network has something, or somebody wakes it.
    fn sleep(&mut self) -> io::Result<()> {
        let waker = &self.shared.wakers[self.number];
        let readable = |fd| PollFd::new(fd, PollFlags::POLLIN);
        let mut fds = [readable(waker.as_fd()), readable(self.queue.as_fd()), readable(waker.as_fd())];
        let watched = match &self.socket {
            Some(socket) => {
                fds[2] = readable(socket.as_fd());
                &mut fds[..]
            }
            None => &mut fds[..2],
        };
        match poll(watched, PollTimeout::NONE) {
            Ok(_) | Err(nix::errno::Errno::EINTR) => {}
            Err(errno) => return Err(errno.into()),
        }
        if fds[0].any().unwrap_or_default() {
            // Whatever it was for is looked at by the loop.
            waker.clear();
        }
        Ok(())
    }

    /// Takes up other sockets as soon as there are any.
    fn follow_socket(&mut self) {
        let generation = self.shared.generation.load(Ordering::Acquire);
        if generation != self.generation {
            self.generation = generation;
            self.socket = self.shared.socket(self.number);
        }
    }
}
