//! What the threads of an engine share, and the order in which it is locked: tables before peers, never the reverse.
//!
//! Workers take the tables' lock for reading once a batch, and a peer's lock once for all packets of it that follow each
//! other; sealing and opening happen outside of both. Only the control thread and configuration write the tables.

use super::endpoints::PeerEndpoint;
use super::hooks::Hooks;
use super::inbox::{Identity, Inbox};
use super::indices::Indices;
use super::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use super::sync::{Mutex, MutexGuard, RwLock, RwLockReadGuard, RwLockWriteGuard, Waker};
use crate::barred::Barred;
use crate::tun::Tun;
use crate::udp::Socket;
use mesh_types::{PresharedKey, PublicKey};
use mesh_wireguard_core::allowed::AllowedIps;
use mesh_wireguard_core::newest::NewestInitiations;
use mesh_wireguard_core::peer::Peer;
use std::collections::{HashMap, VecDeque};
use std::net::IpAddr;
use std::sync::{Arc, PoisonError};
use std::time::{Instant, SystemTime};
use tracing::warn;

/// Super-packets that wait for a session with one peer, as in the kernel; the oldest goes first.
pub(crate) const MAX_STAGED: usize = 128;
/// Their bytes: a burst of a few windows, whatever their size.
pub(crate) const MAX_STAGED_BYTES: usize = 1 << 20;

/// Number of a peer in the tables; given again after its end.
pub(crate) type PeerId = u32;

/// Everything shared.
pub(crate) struct Shared {
    pub(crate) tun: Tun,
    tables: RwLock<Tables>,
    /// One for each worker; none before the device has a port.
    sockets: RwLock<Vec<Arc<Socket>>>,
    /// Counts the times that the sockets changed.
    pub(crate) generation: AtomicU64,
    pub(crate) mtu: AtomicUsize,
    pub(crate) identity: Identity,
    pub(crate) inbox: Inbox,
    pub(crate) hooks: Hooks,
    pub(crate) barred: Arc<Barred>,
    /// Datagrams of ours that came out of our interface.
    pub(crate) looped: AtomicU64,
    /// One for each worker.
    pub(crate) wakers: Vec<Waker>,
    /// For whoever waits for the end.
    pub(crate) ended: Waker,
    pub(crate) stopping: AtomicBool,
    /// The interface was taken away, or a thread could not go on.
    pub(crate) failed: AtomicBool,
}

/// Who is who.
#[derive(Default)]
pub(crate) struct Tables {
    pub(crate) allowed: AllowedIps<PeerId>,
    pub(crate) peers: HashMap<PeerId, Arc<Cell>>,
    pub(crate) by_key: HashMap<PublicKey, PeerId>,
    pub(crate) indices: Indices,
    newest: NewestInitiations,
    next: PeerId,
}

/// One peer.
pub(crate) struct Cell {
    pub(crate) id: PeerId,
    pub(crate) key: PublicKey,
    /// Our address, from which the peer was answered, is not ours any more; noticed where its lock may be held.
    pub(crate) source_lost: AtomicBool,
    state: Mutex<CellState>,
}

/// What the lock of a peer guards.
pub(crate) struct CellState {
    pub(crate) core: Peer,
    pub(crate) preshared_key: Option<PresharedKey>,
    pub(crate) keepalive: Option<u16>,
    pub(crate) endpoint: PeerEndpoint,
    /// Raw reads of the interface that wait for a session.
    pub(crate) staged: VecDeque<Box<[u8]>>,
    staged_bytes: usize,
    /// When the control thread will look at it, at the latest, if it will.
    scheduled: Option<Instant>,
    /// That moment came from a worker: nothing in the wheel stands for it.
    is_told: bool,
    pub(crate) last_handshake: Option<SystemTime>,
}

impl Shared {
    pub(crate) fn new(tun: Tun, workers: usize) -> nix::Result<Self> {
        let mtu = tun.mtu().unwrap_or(crate::tun::DEFAULT_MTU);
        Ok(Self {
            tun,
            tables: RwLock::default(),
            sockets: RwLock::default(),
            generation: AtomicU64::new(0),
            mtu: AtomicUsize::new(mtu.into()),
            identity: Identity::default(),
            inbox: Inbox::new()?,
            hooks: Hooks::default(),
            barred: Arc::default(),
            looped: AtomicU64::new(0),
            wakers: (0..workers).map(|_| Waker::new()).collect::<Result<_, _>>()?,
            ended: Waker::new()?,
            stopping: AtomicBool::new(false),
            failed: AtomicBool::new(false),
        })
    }

    pub(crate) fn tables(&self) -> RwLockReadGuard<'_, Tables> {
        self.tables.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn tables_mut(&self) -> RwLockWriteGuard<'_, Tables> {
        self.tables.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// The socket of a worker; the control thread uses the first.
    pub(crate) fn socket(&self, worker: usize) -> Option<Arc<Socket>> {
        self.sockets.read().unwrap_or_else(PoisonError::into_inner).get(worker).cloned()
    }

    pub(crate) fn sockets(&self) -> Vec<Arc<Socket>> {
        self.sockets.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Gives the workers other sockets; the old ones close as soon as each has noticed.
    pub(crate) fn set_sockets(&self, sockets: Vec<Socket>) {
        let sockets = sockets.into_iter().map(Arc::new).collect();
        *self.sockets.write().unwrap_or_else(PoisonError::into_inner) = sockets;
        self.generation.fetch_add(1, Ordering::Release);
        self.wake_all();
    }

    pub(crate) fn mtu(&self) -> usize {
        self.mtu.load(Ordering::Relaxed)
    }

    /// Looks at the interface's MTU, which its users may change.
    pub(crate) fn refresh_mtu(&self) {
        // A failure means that the interface has gone, which its reader sees as well.
        if let Ok(mtu) = self.tun.mtu() {
            self.mtu.store(mtu.into(), Ordering::Relaxed);
        }
    }

    /// All peers, as they are now.
    pub(crate) fn cells(&self) -> Vec<Arc<Cell>> {
        self.tables().peers.values().cloned().collect()
    }

    /// Has endpoints that are barred now given up.
    pub(crate) fn recheck_endpoints(&self) {
        self.cells().iter().for_each(|cell| cell.lock().endpoint.recheck(&cell.key, &self.barred));
    }

    /// Counts datagrams of ours that came out of our interface on their way to a peer, and tells so, ever more seldom.
    pub(crate) fn note_looped(&self, destination: IpAddr, datagrams: u64) {
        let before = self.looped.fetch_add(datagrams, Ordering::Relaxed);
        let count = before + datagrams;
        if before.leading_zeros() != count.leading_zeros() {
            let interface = self.tun.name();
            warn!(interface, %destination, count, "datagrams of this tunnel were routed into it and dropped");
        }
    }

    /// Has all threads look up.
    pub(crate) fn wake_all(&self) {
        self.wakers.iter().for_each(Waker::wake);
        self.inbox.wake();
    }

    /// Ends the engine because of something that it cannot mend.
    pub(crate) fn fail(&self) {
        self.failed.store(true, Ordering::Release);
        self.stopping.store(true, Ordering::Release);
        self.wake_all();
        self.ended.wake();
    }

    pub(crate) fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::Acquire)
    }
}

impl Tables {
    /// Adds a peer, whose key is not there yet.
    pub(crate) fn insert(&mut self, mut core: Peer, key: PublicKey) -> Arc<Cell> {
        core.set_newest_initiation(self.newest.take(&key));
        while self.peers.contains_key(&self.next) {
            self.next = self.next.wrapping_add(1);
        }
        let cell = Arc::new(Cell {
            id: self.next,
            key,
            source_lost: AtomicBool::new(false),
            state: Mutex::new(CellState::new(core)),
        });
        self.peers.insert(cell.id, cell.clone());
        self.by_key.insert(key, cell.id);
        self.next = self.next.wrapping_add(1);
        cell
    }

    /// Takes a peer out, with all that leads to it.
    pub(crate) fn remove(&mut self, key: &PublicKey) {
        let Some(cell) = self.by_key.remove(key).and_then(|id| self.peers.remove(&id)) else { return };
        self.allowed.remove_all(cell.id);
        let state = cell.lock();
        self.newest.keep(*key, state.core.newest_initiation());
        for index in state.core.indices() {
            self.indices.remove(index);
        }
    }

    /// Takes all peers out.
    pub(crate) fn clear(&mut self) {
        let keys: Vec<PublicKey> = self.by_key.keys().copied().collect();
        keys.iter().for_each(|key| self.remove(key));
    }

    /// Forgets what was kept of peers that are gone: with another private key nothing recorded is good any more.
    pub(crate) fn forget_initiations(&mut self) {
        self.newest = NewestInitiations::default();
    }

    pub(crate) fn peer(&self, key: &PublicKey) -> Option<&Arc<Cell>> {
        self.by_key.get(key).and_then(|id| self.peers.get(id))
    }
}

impl Cell {
    pub(crate) fn lock(&self) -> MutexGuard<'_, CellState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl CellState {
    fn new(core: Peer) -> Self {
        Self {
            core,
            preshared_key: None,
            keepalive: None,
            endpoint: PeerEndpoint::default(),
            staged: VecDeque::new(),
            staged_bytes: 0,
            scheduled: None,
            is_told: false,
            last_handshake: None,
        }
    }

    /// Keeps a packet until there is a session, in place of the oldest if there are too many.
    pub(crate) fn stage(&mut self, raw: &[u8]) {
        self.staged.push_back(raw.into());
        self.staged_bytes += raw.len();
        while self.staged.len() > MAX_STAGED || (self.staged_bytes > MAX_STAGED_BYTES && self.staged.len() > 1) {
            self.unstage();
        }
    }

    /// Puts back what was taken out.
    pub(crate) fn restage(&mut self, raw: Box<[u8]>) {
        self.staged_bytes += raw.len();
        self.staged.push_front(raw);
    }

    /// The packet that has waited longest.
    pub(crate) fn unstage(&mut self) -> Option<Box<[u8]>> {
        let raw = self.staged.pop_front()?;
        self.staged_bytes -= raw.len();
        Some(raw)
    }

    pub(crate) fn drop_staged(&mut self) {
        self.staged.clear();
        self.staged_bytes = 0;
    }

    /// Whether the control thread must be told of a deadline that is sooner than what it knows; notes that it was.
    pub(crate) fn sooner(&mut self, now: Instant) -> bool {
        let due = self.core.has_actions().then_some(now);
        let Some(deadline) = due.or_else(|| self.core.deadline()) else { return false };
        // It sleeps by a clock that stands still while the machine does, and may not have woken for what is overdue.
        let overdue = !self.is_told && self.scheduled.is_some_and(|scheduled| scheduled < now);
        let sooner = overdue || self.scheduled.is_none_or(|scheduled| deadline < scheduled);
        if sooner {
            self.scheduled = Some(deadline);
            self.is_told = true;
        }
        sooner
    }

    /// For the control thread, which has done what was due: when it has to look again, unless it will anyway. So there is
    /// one entry in its wheel that matters, and those that a sooner one has overtaken die out.
    pub(crate) fn schedule(&mut self, now: Instant) -> Option<Instant> {
        if std::mem::take(&mut self.is_told) || self.scheduled.is_some_and(|scheduled| scheduled <= now) {
            self.scheduled = None;
        }
        let deadline = self.core.deadline()?;
        let sooner = self.scheduled.is_none_or(|scheduled| deadline < scheduled);
        if sooner {
            self.scheduled = Some(deadline);
        }
        sooner.then_some(deadline)
    }
}
