//! The control thread: handshakes, timers, and what they set off.
//!
//! Workers hand it messages that are no data, in a bounded queue, and the numbers of peers whose deadlines came closer.
//! Everything that is costly, needs chance or changes the tables happens here, beside the packets and not among them.

use super::clock;
use super::config::since_1970;
use super::indices::Indexed;
use super::outbound::{self, Outbound, way_to};
use super::shared::{Cell, CellState, PeerId, Shared};
use super::sync::atomic::Ordering;
use super::sync::{Mutex, MutexGuard, Waker};
use super::watch::{self, Changed, Underlay};
use crate::udp::{Endpoint, Outgoing};
use mesh_wireguard_core::LocalIdentity;
use mesh_wireguard_core::cookie::{CookieChecker, CookieRandom, Load, MAX_QUEUED_HANDSHAKES, Verdict};
use mesh_wireguard_core::message::{CookieReply, INITIATION_LEN, Initiation, MessageKind, Response, classify};
use mesh_wireguard_core::peer::{Action, Fresh};
use mesh_wireguard_core::tai64n::Tai64n;
use mesh_wireguard_core::wheel::Wheel;
use nix::poll::PollTimeout;
use std::collections::VecDeque;
use std::os::fd::AsFd;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant, SystemTime};
use tracing::{debug, trace, warn};

/// With more messages in a second, too, who knocks must first prove where it is: answered in full, so many take about a
/// tenth of a core, and a flood should take no more. Cookies cost a tenth of a handshake.
const BUSY: usize = 1_000;
/// Messages looked at before timers have their turn.
pub(super) const KNOCKS_AT_ONCE: usize = 64;
/// How often the interface's MTU is looked at while there is something to do.
const MTU_LOOK: Duration = Duration::from_secs(1);
/// What marks handshakes on their way: AF41, as the kernel does.
const HANDSHAKE_CLASS: u8 = 0x88;
/// Longer than any deadline, and short enough for `poll`.
const MAX_SLEEP: Duration = Duration::from_secs(86_400);

/// A message that is no data; an initiation is the longest.
#[derive(Clone, Copy)]
pub(crate) struct Knock {
    bytes: [u8; INITIATION_LEN],
    length: usize,
    kind: Option<MessageKind>,
    endpoint: Endpoint,
}

/// What others leave for the control thread.
pub(crate) struct Inbox {
    held: Mutex<Held>,
    pub(super) waker: Waker,
}

#[derive(Default)]
struct Held {
    knocks: VecDeque<Knock>,
    attention: Vec<PeerId>,
}

impl Knock {
    pub(crate) fn new(packet: &[u8], endpoint: Endpoint) -> Self {
        let mut bytes = [0; INITIATION_LEN];
        let kind = classify(packet).filter(|_| packet.len() <= INITIATION_LEN);
        if kind.is_some() {
            bytes[..packet.len()].copy_from_slice(packet);
        }
        Self { bytes, length: packet.len(), kind, endpoint }
    }
}

impl Inbox {
    pub(crate) fn new() -> nix::Result<Self> {
        Ok(Self { held: Mutex::default(), waker: Waker::new()? })
    }

    /// Leaves a message, unless too many wait.
    pub(crate) fn knock(&self, knock: Knock) {
        if knock.kind.is_none() {
            return;
        }
        let mut held = self.lock();
        let waiting = held.knocks.len();
        if waiting < MAX_QUEUED_HANDSHAKES {
            held.knocks.push_back(knock);
            drop(held);
            // It takes all that wait before it sleeps again.
            if waiting == 0 {
                self.wake();
            }
        }
    }

    /// Asks to look at a peer.
    pub(crate) fn attend(&self, peer: PeerId) {
        self.lock().attention.push(peer);
        self.wake();
    }

    pub(crate) fn wake(&self) {
        self.waker.wake();
    }

    /// Takes some of the messages, all numbers, and says how many messages there were.
    pub(super) fn take(&self, knocks: &mut VecDeque<Knock>, attention: &mut Vec<PeerId>) -> usize {
        let mut held = self.lock();
        let waiting = held.knocks.len();
        knocks.extend(held.knocks.drain(..waiting.min(KNOCKS_AT_ONCE)));
        attention.append(&mut held.attention);
        waiting
    }

    fn lock(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Who the device is; nobody, while it has no key.
#[derive(Default)]
pub(crate) struct Identity(Mutex<Option<(Arc<LocalIdentity>, CookieChecker)>>);

impl Identity {
    pub(crate) fn set(&self, local: Option<Arc<LocalIdentity>>) {
        *self.lock() = local.map(|local| (local.clone(), CookieChecker::new(&local)));
    }

    fn lock(&self) -> MutexGuard<'_, Option<(Arc<LocalIdentity>, CookieChecker)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The thread.
pub(crate) struct Control {
    shared: Arc<Shared>,
    identity: Arc<Identity>,
    wheel: Wheel<PeerId>,
    outbound: Outbound,
    /// Absent where netlink is: then an error must show that a source address is gone.
    underlay: Option<Underlay>,
    load: Load,
    /// Messages taken since the second began.
    taken: (Instant, usize),
    mtu_looked: Instant,
}

impl Control {
    pub(crate) fn new(shared: Arc<Shared>, identity: Arc<Identity>) -> Self {
        let now = clock::now();
        let underlay =
            Underlay::watch().inspect_err(|error| debug!(%error, "changes of addresses and routes are not seen")).ok();
        Self {
            shared,
            identity,
            wheel: Wheel::new(now),
            outbound: Outbound::new(),
            underlay,
            load: Load::default(),
            taken: (now, 0),
            mtu_looked: now,
        }
    }

    /// Works until the engine stops.
    pub(crate) fn run(mut self) {
        let (mut knocks, mut attention) = (VecDeque::new(), Vec::new());
        // Those that it was given before its changes were watched.
        self.look_at_addresses();
        while !self.shared.is_stopping() {
            let waiting = self.shared.inbox.take(&mut knocks, &mut attention);
            let now = clock::now();
            let loaded = self.is_loaded(waiting, knocks.len(), now);
            self.look_at_mtu(now);
            attention.drain(..).for_each(|peer| self.serve(peer, now));
            knocks.drain(..).for_each(|knock| self.answer(&knock, loaded, clock::now()));
            let mut due = Vec::new();
            self.wheel.expire(&mut |peer| due.push(peer), now);
            due.into_iter().for_each(|peer| self.serve(peer, now));
            if waiting <= KNOCKS_AT_ONCE {
                self.sleep(now);
            }
        }
    }

    /// Waits for a message, a number, a deadline or a change of the host's addresses.
    fn sleep(&mut self, now: Instant) {
        let timeout = match self.wheel.next() {
            // Rounded up, so as not to wake before the time has come.
            Some(at) => {
                let wait = at.saturating_duration_since(now) + Duration::from_micros(999);
                PollTimeout::try_from(wait.min(MAX_SLEEP)).unwrap_or(PollTimeout::ZERO)
            }
            None => PollTimeout::NONE,
        };
        let underlay = self.underlay.as_ref().map(AsFd::as_fd);
        if let Err(error) = self.shared.inbox.waker.wait(underlay, timeout) {
            warn!(%error, "the engine ends");
            self.shared.fail();
        }
        let Some(changed) = self.underlay.as_ref().and_then(Underlay::changed) else { return };
        if changed == Changed::Addresses {
            self.look_at_addresses();
        }
        self.shared.cells().iter().for_each(|cell| cell.source_lost.store(true, Ordering::Relaxed));
    }

    /// Bars the interface's own addresses, of which no peer can have one.
    fn look_at_addresses(&self) {
        self.shared.barred.set_own(watch::addresses(self.shared.tun.name()));
        self.shared.recheck_endpoints();
    }

    /// Whether handshakes must bring cookies, with so many waiting and so many taken now.
    fn is_loaded(&mut self, waiting: usize, taken: usize, now: Instant) -> bool {
        if now.saturating_duration_since(self.taken.0) >= Duration::from_secs(1) {
            self.taken = (now, 0);
        }
        self.taken.1 += taken;
        let pressing = if self.taken.1 > BUSY { MAX_QUEUED_HANDSHAKES } else { waiting };
        self.load.observe(pressing, now)
    }

    fn look_at_mtu(&mut self, now: Instant) {
        if now.saturating_duration_since(self.mtu_looked) >= MTU_LOOK {
            self.mtu_looked = now;
            self.shared.refresh_mtu();
        }
    }

    /// Does what is due for a peer, and notes when to look again.
    fn serve(&mut self, peer: PeerId, now: Instant) {
        let cell = self.shared.tables().peers.get(&peer).cloned();
        if let Some(cell) = cell {
            self.drain(&cell, now);
        }
        self.outbound.flush(self.shared.socket(0).as_deref());
    }

    fn drain(&mut self, cell: &Arc<Cell>, now: Instant) {
        loop {
            // Drawn before the peer is locked, since it looks at the tables.
            let fresh = self.fresh();
            let mut state = cell.lock();
            match state.core.poll(now) {
                Some(action) => self.act(cell, state, action, fresh, now),
                None => {
                    if let Some(deadline) = state.schedule(now) {
                        self.wheel.insert(cell.id, deadline);
                    }
                    return;
                }
            }
        }
    }

    fn act(
        &mut self,
        cell: &Arc<Cell>,
        mut state: MutexGuard<'_, CellState>,
        action: Action,
        fresh: Fresh,
        now: Instant,
    ) {
        let socket = self.shared.socket(0);
        let socket = socket.as_deref();
        match action {
            Action::Initiate => {
                let index = fresh.index;
                let Some(message) = state.core.initiate(fresh, stamp(), now) else { return };
                let endpoint = way_to(cell, &mut state);
                drop(state);
                self.index(index, Indexed { cell: cell.clone(), keys: None });
                trace!(peer = %cell.key, ?endpoint, "handshake begun");
                self.send(cell, endpoint, &message);
            }
            Action::Install(keys) => {
                drop(state);
                self.index(keys.local_index(), Indexed { cell: cell.clone(), keys: Some(keys) });
            }
            Action::Release(index) => {
                drop(state);
                self.shared.tables_mut().indices.remove(index);
            }
            Action::SendStaged => self.outbound.release_staged(cell, &mut state, &self.shared, socket, now),
            Action::SendKeepalive if state.staged.is_empty() => self.outbound.keepalive(cell, &mut state, socket, now),
            Action::SendKeepalive => self.outbound.release_staged(cell, &mut state, &self.shared, socket, now),
            Action::DropStaged => {
                debug!(peer = %cell.key, "does not answer");
                state.drop_staged();
            }
            Action::Completed => state.last_handshake = Some(SystemTime::now()),
        }
    }

    /// Looks at a message that is no data.
    fn answer(&mut self, knock: &Knock, loaded: bool, now: Instant) {
        let identity = self.identity.clone();
        let mut held = identity.lock();
        let Some((local, checker)) = held.as_mut() else { return };
        let local = local.clone();
        let message = &knock.bytes[..knock.length];
        if knock.kind != Some(MessageKind::Cookie) {
            match checker.check(message, knock.endpoint.remote, loaded, now) {
                Verdict::Valid => {}
                Verdict::NeedsCookie => {
                    let random = CookieRandom { secret: random(), nonce: random() };
                    if let Some(reply) = checker.reply(message, knock.endpoint.remote, random, now) {
                        self.send_to(knock.endpoint, &reply);
                    }
                    return;
                }
                Verdict::Invalid | Verdict::RateLimited => return,
            }
        }
        drop(held);
        match knock.kind {
            Some(MessageKind::Initiation) => self.answer_initiation(&local, message, knock.endpoint, now),
            Some(MessageKind::Response) => self.take_response(message, knock.endpoint, now),
            Some(MessageKind::Cookie) => self.take_cookie(message, now),
            Some(MessageKind::Data) | None => {}
        }
    }

    fn answer_initiation(&mut self, local: &LocalIdentity, message: &[u8], endpoint: Endpoint, now: Instant) {
        let opened = Initiation::parse(message).and_then(|message| local.open_initiation(&message));
        let Some(opened) = opened else { return };
        let cell = self.shared.tables().peer(&opened.remote()).cloned();
        let Some(cell) = cell else { return };
        let fresh = self.fresh();
        let mut state = cell.lock();
        match state.core.handle_initiation(opened, fresh, now) {
            Ok(response) => {
                let taken = state.endpoint.take(endpoint, &cell.key, &self.shared.barred);
                let endpoint = if taken { state.endpoint.get() } else { way_to(&cell, &mut state) };
                drop(state);
                // The session must be known before the peer can use it.
                self.drain(&cell, now);
                self.send(&cell, endpoint, &response);
            }
            Err(refused) => debug!(peer = %cell.key, %refused),
        }
    }

    fn take_response(&mut self, message: &[u8], endpoint: Endpoint, now: Instant) {
        let Some(response) = Response::parse(message) else { return };
        let Some(Indexed { cell, .. }) = self.shared.tables().indices.get(response.receiver).cloned() else { return };
        let mut state = cell.lock();
        match state.core.handle_response(&response, now) {
            Ok(()) => {
                state.endpoint.take(endpoint, &cell.key, &self.shared.barred);
                drop(state);
                self.drain(&cell, now);
                self.outbound.flush(self.shared.socket(0).as_deref());
            }
            Err(refused) => debug!(peer = %cell.key, %refused),
        }
    }

    fn take_cookie(&mut self, message: &[u8], now: Instant) {
        let Some(reply) = CookieReply::parse(message) else { return };
        let Some(Indexed { cell, .. }) = self.shared.tables().indices.get(reply.receiver).cloned() else { return };
        if let Err(refused) = cell.lock().core.handle_cookie(&reply, now) {
            debug!(peer = %cell.key, %refused);
        }
    }

    /// Notes what an index leads to, unless the peer was taken away meanwhile.
    fn index(&self, index: u32, indexed: Indexed) {
        let mut tables = self.shared.tables_mut();
        if tables.peers.get(&indexed.cell.id).is_some_and(|cell| Arc::ptr_eq(cell, &indexed.cell)) {
            tables.indices.insert(index, indexed);
        }
    }

    fn fresh(&self) -> Fresh {
        let tables = self.shared.tables();
        let mut index = u32::from_ne_bytes(random());
        while tables.indices.get(index).is_some() {
            index = u32::from_ne_bytes(random());
        }
        Fresh { ephemeral: random(), index }
    }

    fn send(&self, cell: &Cell, endpoint: Option<Endpoint>, message: &[u8]) {
        let (Some(endpoint), Some(socket)) = (endpoint, self.shared.socket(0)) else { return };
        outbound::send(&socket, cell, &whole(endpoint, message));
    }

    fn send_to(&self, endpoint: Endpoint, message: &[u8]) {
        let Some(socket) = self.shared.socket(0) else { return };
        if self.shared.barred.contains(endpoint.remote.ip()) {
            return;
        }
        if let Err(error) = socket.send(&whole(endpoint, message)) {
            trace!(endpoint = %endpoint.remote, %error, "not sent");
        }
    }
}

fn whole(endpoint: Endpoint, message: &[u8]) -> Outgoing<'_> {
    Outgoing { bytes: message, stride: message.len(), endpoint, class: HANDSHAKE_CLASS }
}

fn stamp() -> Tai64n {
    Tai64n::from_unix(since_1970(SystemTime::now()))
}

fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).expect("Linux gives random bytes");
    bytes
}
