//! The control thread: handshakes, timers, and what they set off.
//!
//! Workers hand it messages that are no data, and the numbers of peers whose deadlines came closer (`inbox`).
//! Everything that is costly, needs chance or changes the tables happens here, beside the packets and not among them.

use super::clock;
use super::config::since_1970;
use super::inbox::{Knock, Purpose};
use super::indices::Indexed;
use super::outbound::{self, Outbound, way_to};
use super::shared::{Cell, CellState, PeerId, Shared};
use super::sync::MutexGuard;
use super::sync::atomic::Ordering;
use super::watch::{self, Changed, Underlay};
use crate::udp::{Endpoint, Outgoing};
use mesh_wireguard_core::cookie::CookieRandom;
use mesh_wireguard_core::message::{CookieReply, Initiation, Response};
use mesh_wireguard_core::peer::{Action, Fresh};
use mesh_wireguard_core::tai64n::Tai64n;
use mesh_wireguard_core::wheel::Wheel;
use nix::poll::PollTimeout;
use std::collections::VecDeque;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};
use tracing::{debug, trace, warn};

/// How often the interface's MTU is looked at while there is something to do.
const MTU_LOOK: Duration = Duration::from_secs(1);
/// What marks handshakes on their way: AF41, as the kernel does.
const HANDSHAKE_CLASS: u8 = 0x88;
/// Longer than any deadline, and short enough for `poll`.
const MAX_SLEEP: Duration = Duration::from_secs(86_400);

/// The thread.
pub(crate) struct Control {
    shared: Arc<Shared>,
    wheel: Wheel<PeerId>,
    outbound: Outbound,
    /// Absent where netlink is: then an error must show that a source address is gone.
    underlay: Option<Underlay>,
    mtu_looked: Instant,
}

impl Control {
    pub(crate) fn new(shared: Arc<Shared>) -> Self {
        let now = clock::now();
        let underlay =
            Underlay::watch().inspect_err(|error| debug!(%error, "changes of addresses and routes are not seen")).ok();
        Self { shared, wheel: Wheel::new(now), outbound: Outbound::new(), underlay, mtu_looked: now }
    }

    /// Works until the engine stops.
    pub(crate) fn run(mut self) {
        // Those that it was given before its changes were watched.
        self.look_at_addresses();
        while !self.shared.is_stopping() {
            let now = clock::now();
            if !self.turn(now) {
                self.sleep(now);
            }
        }
    }

    /// Does what there is to do, to a limit; says whether messages are left.
    pub(super) fn turn(&mut self, now: Instant) -> bool {
        let (mut knocks, mut attention) = (VecDeque::new(), Vec::new());
        let waiting = self.shared.inbox.take(&mut knocks, &mut attention);
        self.shared.identity.observe(waiting.initiations, now);
        self.look_at_mtu(now);
        attention.into_iter().for_each(|peer| self.serve(peer, now));
        knocks.iter().for_each(|knock| self.answer(knock, clock::now()));
        let mut due = Vec::new();
        self.wheel.expire(&mut |peer| due.push(peer), now);
        due.into_iter().for_each(|peer| self.serve(peer, now));
        waiting.more
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
    fn answer(&mut self, knock: &Knock, now: Instant) {
        match knock.purpose {
            Purpose::Initiation => self.answer_initiation(knock.message(), knock.endpoint, now),
            Purpose::Response => self.take_response(knock.message(), knock.endpoint, now),
            Purpose::Cookie => self.take_cookie(knock.message(), now),
            Purpose::NeedsCookie => {
                let random = CookieRandom { secret: random(), nonce: random() };
                if let Some(reply) = self.shared.identity.reply(knock, random, now) {
                    self.send_to(knock.endpoint, &reply);
                }
            }
        }
    }

    fn answer_initiation(&mut self, message: &[u8], endpoint: Endpoint, now: Instant) {
        let Some(local) = self.shared.identity.get() else { return };
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
        let Endpoint { remote, source } = endpoint;
        if self.shared.barred.contains(remote.ip()) {
            return;
        }
        let endpoint = Endpoint { remote, source: source.filter(|source| !self.shared.barred.contains(*source)) };
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
