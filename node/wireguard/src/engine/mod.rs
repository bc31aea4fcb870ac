//! The engine: WireGuard on a TUN interface, carried by threads of its own.
//!
//! [`Engine::start`] makes the interface, [`Engine::apply`] configures it while traffic goes on, and dropping it takes the
//! interface away. Packets never wait for configuration longer than a table is locked. Nothing here decides who is a
//! peer.

#[cfg(test)]
mod attack_tests;
mod clock;
mod config;
mod control;
mod endpoints;
mod hooks;
mod inbound;
mod inbox;
mod indices;
mod outbound;
mod shared;
mod sync;
#[cfg(test)]
mod tests;
mod watch;
mod worker;

pub(crate) use config::since_1970;
pub use config::{Change, DeviceState, PeerChange, PeerChangeKind, PeerState};
pub use hooks::{Direction, FRAME_MAGIC, Frame, PacketFilter};

use crate::tun::{Tun, TunError};
use crate::udp::{Endpoint, Outgoing, Socket};
use control::Control;
use mesh_types::{AllowedIp, PrivateKey, PublicKey};
use mesh_wireguard_core::{LocalIdentity, Peer};
use shared::{Cell, Shared};
use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd as _, BorrowedFd};
use std::sync::atomic::Ordering;
use std::sync::mpsc::Receiver;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use thiserror::Error;
use tracing::warn;
use worker::Worker;

/// Workers at the most: eight cores carry more than the networks that userspace WireGuard is used on.
const MAX_WORKERS: usize = 8;
/// How long old sockets may take to close after the workers were given new ones.
const SOCKETS_CLOSE: Duration = Duration::from_secs(1);

/// A running engine.
pub struct Engine {
    shared: Arc<Shared>,
    settings: Mutex<Settings>,
    threads: Vec<JoinHandle<()>>,
}

/// What was set, as far as the threads need not know it.
#[derive(Default)]
struct Settings {
    key: Option<(PrivateKey, Arc<LocalIdentity>)>,
    listen_port: u16,
    fwmark: u32,
}

/// Why an engine did not start, or did not do what it was told.
#[derive(Debug, Error)]
pub enum EngineError {
    /// There is no interface.
    #[error(transparent)]
    Tun(#[from] TunError),
    /// Another program has the UDP port.
    #[error("UDP port {port} is taken by another program")]
    PortTaken {
        /// The port.
        port: u16,
    },
    /// The interface was taken away.
    #[error("interface {interface} has gone: it was removed by someone else")]
    Gone {
        /// The interface.
        interface: String,
    },
    /// The system refused.
    #[error("{doing}: {source}")]
    System {
        /// What was tried.
        doing: String,
        /// What the system said.
        source: io::Error,
    },
}

impl Engine {
    /// Makes the interface and starts the threads. The device is silent before it has a private key.
    pub fn start(interface: &str, workers: Option<usize>) -> Result<Self, EngineError> {
        // Half of the cores are for those whose packets are carried, and for the kernel's part in it: with two cores one
        // worker was measured to be faster than two.
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let workers = workers.unwrap_or(cores / 2).clamp(1, MAX_WORKERS);
        let (tun, queues) = Tun::create(interface, workers)?;
        let failed = |source: io::Error| EngineError::System { doing: format!("start {interface}"), source };
        let shared = Shared::new(tun, workers).map_err(|errno| failed(errno.into()))?;
        let shared = Arc::new(shared);
        let mut engine = Self { shared: shared.clone(), settings: Mutex::default(), threads: Vec::new() };
        for (number, queue) in queues.into_iter().enumerate() {
            let worker = Worker::new(number, shared.clone(), queue);
            engine.spawn(format!("wg-{interface}-{number}"), || worker.run()).map_err(failed)?;
        }
        let control = Control::new(shared);
        engine.spawn(format!("wg-{interface}"), || control.run()).map_err(failed)?;
        Ok(engine)
    }

    fn spawn(&mut self, name: String, run: impl FnOnce() + Send + 'static) -> io::Result<()> {
        // If a thread panics, the engine ends as a whole and tells so.
        let shared = self.shared.clone();
        let guarded = move || {
            let _end = FailOnPanic(shared);
            run();
        };
        self.threads.push(std::thread::Builder::new().name(name).spawn(guarded)?);
        Ok(())
    }

    /// The name of its interface.
    pub fn interface(&self) -> &str {
        self.shared.tun.name()
    }

    /// Whether it works; it ends by itself when its interface is taken away.
    pub fn is_alive(&self) -> bool {
        !self.shared.failed.load(Ordering::Acquire)
    }

    /// Whether it ended because its interface was taken away.
    pub fn lost_interface(&self) -> bool {
        !self.is_alive() && self.shared.tun.mtu().is_err()
    }

    /// Becomes readable when the engine ends by itself.
    pub fn ended(&self) -> BorrowedFd<'_> {
        self.shared.ended.as_fd()
    }

    /// Makes the changes, in their order. On an error those before it have been made.
    pub fn apply(&self, changes: &[Change]) -> Result<(), EngineError> {
        self.check_alive()?;
        self.shared.refresh_mtu();
        let mut settings = self.lock();
        for change in changes {
            match change {
                Change::PrivateKey(key) => self.set_key(&mut settings, key.as_ref())?,
                Change::ListenPort(port) => self.set_port(&mut settings, *port)?,
                Change::FwMark(mark) => self.set_mark(&mut settings, *mark)?,
                Change::RemoveAllPeers => self.shared.tables_mut().clear(),
                Change::Peer(change) => self.change_peer(&settings, change),
            }
        }
        Ok(())
    }

    /// Tells all.
    pub fn read(&self) -> DeviceState {
        let settings = self.lock();
        let tables = self.shared.tables();
        let mut peers: Vec<PeerState> =
            tables.peers.values().map(|cell| describe(cell, tables.allowed.of(cell.id).collect())).collect();
        peers.sort_unstable_by_key(|peer| peer.key);
        let socket = self.shared.socket(0);
        DeviceState {
            private_key: settings.key.as_ref().map(|(key, _)| key.clone()),
            public_key: settings.key.as_ref().map(|(_, local)| local.public_key()),
            listen_port: socket.and_then(|socket| socket.port().ok()).unwrap_or_default(),
            fwmark: settings.fwmark,
            looped_datagrams: self.shared.looped.load(Ordering::Relaxed),
            peers,
        }
    }

    /// Tells of one peer, at the same cost however many there are.
    pub fn peer(&self, key: &PublicKey) -> Option<PeerState> {
        let tables = self.shared.tables();
        let cell = tables.peer(key)?;
        Some(describe(cell, tables.allowed.of(cell.id).collect()))
    }

    /// Bars ranges to endpoints, in place of those before: the addresses that are reached through this engine's interface
    /// or any other tunnel of this host. At once, endpoints inside are given up and none is taken any more, whoever
    /// authenticates from there or asks for it with a change, and nothing is sent from such an address of this host. What
    /// authenticated from there is still delivered. The interface's own addresses are always barred.
    pub fn bar(&self, ranges: Vec<AllowedIp>) {
        self.shared.barred.set_ranges(ranges);
        self.shared.recheck_endpoints();
    }

    /// Lets a filter decide from now on which packets pass; without one all do.
    pub fn set_filter(&self, filter: Option<Arc<dyn PacketFilter>>) {
        self.shared.hooks.set_filter(filter);
    }

    /// Hears the frames that come to the device's port from now on.
    pub fn frames(&self) -> Receiver<Frame> {
        self.shared.hooks.listen()
    }

    /// Sends a frame from the device's port. It must begin with [`FRAME_MAGIC`], or other engines will not hear it.
    /// None goes to a barred address.
    pub fn send_frame(&self, to: SocketAddr, bytes: &[u8]) -> io::Result<()> {
        if self.shared.barred.contains(to.ip()) {
            return Err(io::Error::new(io::ErrorKind::AddrNotAvailable, format!("{to} is reached through a tunnel")));
        }
        let socket = self.shared.socket(0).ok_or(io::ErrorKind::NotConnected)?;
        let endpoint = Endpoint { remote: to, source: None };
        socket.send(&Outgoing { bytes, stride: bytes.len(), endpoint, class: 0 }).map(drop)
    }

    /// The public half of its key, if it has one.
    pub fn public_key(&self) -> Option<PublicKey> {
        self.lock().key.as_ref().map(|(_, local)| local.public_key())
    }

    fn set_key(&self, settings: &mut Settings, key: Option<&PrivateKey>) -> Result<(), EngineError> {
        if settings.key.as_ref().map(|(held, _)| held) == key {
            return Ok(());
        }
        let Some(key) = key else {
            settings.key = None;
            self.shared.identity.set(None);
            self.close_sockets();
            return Ok(());
        };
        let local = Arc::new(LocalIdentity::new(key));
        // A peer with our own key would be ourselves.
        let mut tables = self.shared.tables_mut();
        tables.remove(&local.public_key());
        tables.forget_initiations();
        drop(tables);
        for cell in self.shared.cells() {
            let mut state = cell.lock();
            state.core.set_identity(&local);
            self.attend(&cell, &mut state);
        }
        settings.key = Some((key.clone(), local.clone()));
        self.shared.identity.set(Some(local));
        if self.shared.socket(0).is_none() {
            self.bind(settings, settings.listen_port)?;
        }
        Ok(())
    }

    /// Without a key there is nothing to listen for yet. With one, a port that was taken is tried again.
    fn set_port(&self, settings: &mut Settings, port: u16) -> Result<(), EngineError> {
        let bound = self.shared.socket(0).and_then(|socket| socket.port().ok());
        if settings.key.is_some() && bound != Some(port) {
            self.bind(settings, port)?;
        }
        settings.listen_port = port;
        Ok(())
    }

    /// Binds the new sockets first: if that fails, the old ones are as they were.
    fn bind(&self, settings: &Settings, port: u16) -> Result<(), EngineError> {
        let group = Socket::bind_group(self.shared.wakers.len(), port, settings.fwmark, &self.shared.barred);
        let group = group.map_err(|error| match error.kind() {
            io::ErrorKind::AddrInUse => EngineError::PortTaken { port },
            _ => EngineError::System { doing: format!("listen on UDP port {port}"), source: error },
        })?;
        self.replace_sockets(group);
        Ok(())
    }

    fn close_sockets(&self) {
        self.replace_sockets(Vec::new());
    }

    /// Waits until the old ones are closed, so that their port is free when this is told.
    fn replace_sockets(&self, sockets: Vec<Socket>) {
        let old = self.shared.sockets();
        self.shared.set_sockets(sockets);
        let since = Instant::now();
        while old.iter().any(|socket| Arc::strong_count(socket) > 1) && since.elapsed() < SOCKETS_CLOSE {
            std::thread::sleep(Duration::from_micros(200));
        }
    }

    fn set_mark(&self, settings: &mut Settings, mark: u32) -> Result<(), EngineError> {
        for socket in self.shared.sockets() {
            let failed = |errno: nix::Error| EngineError::System {
                doing: format!("set mark {mark:#x} on outgoing packets"),
                source: errno.into(),
            };
            socket.set_mark(mark).map_err(failed)?;
        }
        settings.fwmark = mark;
        Ok(())
    }

    fn change_peer(&self, settings: &Settings, change: &PeerChange) {
        let known = self.shared.tables().peer(&change.key).cloned();
        let cell = match (change.kind, known) {
            (PeerChangeKind::Remove, _) => return self.shared.tables_mut().remove(&change.key),
            (PeerChangeKind::Update, None) => return,
            (PeerChangeKind::Set | PeerChangeKind::Update, Some(cell)) => cell,
            (PeerChangeKind::Set | PeerChangeKind::Recreate, _) => match self.make_peer(settings, change.key) {
                Some(cell) => cell,
                None => return,
            },
        };
        if change.replace_allowed_ips || !change.allowed_ips.is_empty() {
            let mut tables = self.shared.tables_mut();
            if change.replace_allowed_ips {
                tables.allowed.remove_all(cell.id);
            }
            for &allowed in &change.allowed_ips {
                tables.allowed.insert(allowed, cell.id);
            }
        }
        let mut state = cell.lock();
        if let Some(key) = &change.preshared_key {
            state.core.set_preshared_key(key.clone());
            state.preshared_key = key.clone();
        }
        if let Some(remote) = change.endpoint {
            state.endpoint.take(Endpoint { remote: canonical(remote), source: None }, &cell.key, &self.shared.barred);
        }
        if let Some(keepalive) = change.keepalive {
            state.core.set_keepalive(keepalive);
            state.keepalive = keepalive;
        }
        self.attend(&cell, &mut state);
    }

    /// Makes a peer, in place of one with that key; `None` if the key is our own.
    fn make_peer(&self, settings: &Settings, key: PublicKey) -> Option<Arc<Cell>> {
        // Without a key of ours there is no socket either: nothing is ever said with this one.
        let nobody = || Arc::new(LocalIdentity::new(&PrivateKey::from_bytes([0; 32])));
        let local = settings.key.as_ref().map_or_else(nobody, |(_, local)| local.clone());
        if settings.key.is_some() && local.public_key() == key {
            warn!(peer = %key, "this is the interface's own key: left out");
            return None;
        }
        // The costly part, before the tables are locked.
        let core = Peer::new(&local, key, None, None);
        let mut tables = self.shared.tables_mut();
        tables.remove(&key);
        Some(tables.insert(core, key))
    }

    fn attend(&self, cell: &Cell, state: &mut shared::CellState) {
        if state.sooner(clock::now()) {
            self.shared.inbox.attend(cell.id);
        }
    }

    fn check_alive(&self) -> Result<(), EngineError> {
        if self.is_alive() { Ok(()) } else { Err(EngineError::Gone { interface: self.interface().to_owned() }) }
    }

    fn lock(&self) -> MutexGuard<'_, Settings> {
        self.settings.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.shared.stopping.store(true, Ordering::Release);
        self.shared.wake_all();
        for thread in self.threads.drain(..) {
            let name = thread.thread().name().unwrap_or_default().to_owned();
            if thread.join().is_err() {
                warn!(thread = name, "panicked");
            }
        }
    }
}

impl fmt::Debug for Engine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Engine").field("interface", &self.interface()).finish_non_exhaustive()
    }
}

/// Ends the engine when the thread that holds it panics.
struct FailOnPanic(Arc<Shared>);

impl Drop for FailOnPanic {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.fail();
        }
    }
}

/// As the sockets tell it: IPv4 in its own notation.
fn canonical(remote: SocketAddr) -> SocketAddr {
    match remote.ip().to_canonical() {
        IpAddr::V4(ip) => SocketAddr::new(ip.into(), remote.port()),
        IpAddr::V6(_) => remote,
    }
}

fn describe(cell: &Cell, allowed_ips: Vec<AllowedIp>) -> PeerState {
    let state = cell.lock();
    let stats = state.core.stats();
    let (refused_endpoints, last_refused_endpoint) = state.endpoint.refused();
    PeerState {
        key: cell.key,
        preshared_key: state.preshared_key.clone(),
        endpoint: state.endpoint.get().map(|endpoint| endpoint.remote),
        refused_endpoints,
        last_refused_endpoint,
        keepalive: state.keepalive,
        allowed_ips,
        last_handshake: state.last_handshake,
        last_received: stats.last_received,
        rx_bytes: stats.rx_bytes,
        tx_bytes: stats.tx_bytes,
    }
}
