//! All sessions of one coordinator, as a machine without I/O: for one loop that feeds it events and carries out what it
//! asks for.
//!
//! A session opens, says hello, is brought up to date (welcome, then a delta or a snapshot in pages, then the presence
//! that it lacks and who is online) and from then on gets what changes. One change is one [`HubAction::Send`] with all its
//! recipients, so that the shell encodes it once. Nothing here needs a quorum: sessions are served from the registry as
//! this replica has applied it, and the ticks say whether that is fresh.
//!
//! A node never goes back in revision: one that holds more than this replica gets presence alone until the replica has
//! caught up. A node that joined elsewhere a moment ago, and is not known here yet, waits for the log to arrive.
//!
//! Every `handle_*` may leave actions behind: drain [`Hub::poll_action`] after each, or after a few, which batches
//! presence. [`Hub::handle_tick`] is due every second or oftener.

mod exchange;
mod fanout;
mod hello;
mod rivals;

use crate::clock::{Monotonic, Now};
use crate::presence::{OnlineTable, PresenceRefusal, PresenceTable};
use crate::registry::Registry;
use mesh_types::session::{Claim, CloseReason, Hello, Tick};
use mesh_types::{
    CoordinatorId, CoordinatorMessage, Epoch, ExchangeMessage, MeshDuration, NodeId, NodeMessage, Revision,
    SignedPresence, limits,
};
use rivals::{Contest, Rivals};
use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// Between two ticks to nodes when nothing changes: they notice a silent coordinator by missing two.
pub const TICK_INTERVAL: MeshDuration = MeshDuration::from_secs(5);
/// From opening to hello; a node says it at once.
const HELLO_TIMEOUT: MeshDuration = MeshDuration::from_secs(10);
/// How long a node waits to be known here: a replica with contact to the leader lags by far less.
const KNOWN_TIMEOUT: MeshDuration = MeshDuration::from_secs(3);

/// One stream of one node, numbered by the shell, never twice.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct SessionId(pub u64);

/// What the shell must do.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum HubAction {
    /// Queue one message for several sessions; cut those whose queue is full with [`CloseReason::SlowReader`].
    Send {
        /// To whom.
        sessions: Vec<SessionId>,
        /// What.
        message: CoordinatorMessage,
    },
    /// Say why, then end the stream. The hub has forgotten the session already.
    Close {
        /// Whose.
        session: SessionId,
        /// Why.
        reason: CloseReason,
    },
    /// Queue one message for other coordinators.
    Exchange {
        /// To whom.
        to: Vec<CoordinatorId>,
        /// What.
        message: ExchangeMessage,
    },
}

/// How the cluster is, as this replica sees it.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Health {
    /// Whether there was contact to a leader within the last three seconds.
    pub fresh: bool,
    /// Who leads, if known.
    pub leader: Option<CoordinatorId>,
    /// Who votes.
    pub voters: BTreeSet<CoordinatorId>,
}

/// The sessions, presence, and the exchange with other coordinators.
#[derive(Debug)]
pub struct Hub {
    me: CoordinatorId,
    health: Health,
    sessions: BTreeMap<SessionId, Session>,
    /// All sessions of each node.
    by_node: BTreeMap<NodeId, BTreeSet<SessionId>>,
    /// The live session of each node.
    live: BTreeMap<NodeId, SessionId>,
    /// Live sessions that have to show that they live.
    contests: BTreeMap<NodeId, Contest>,
    /// Sessions that wait for such.
    contenders: BTreeSet<SessionId>,
    presence: PresenceTable,
    online: OnlineTable,
    /// Other coordinators with an open stream.
    exchanges: BTreeSet<CoordinatorId>,
    /// What all live sessions hold of the registry, but those that are ahead.
    told: (Option<Epoch>, Revision),
    /// Whom live sessions believe to be online.
    told_online: BTreeSet<NodeId>,
    pending: Pending,
    /// Sessions that are still to get the presence that they lack, with the digest of what they hold: together, so that
    /// many which begin at once share one copy.
    newcomers: BTreeMap<SessionId, Vec<u64>>,
    actions: VecDeque<HubAction>,
    last_tick: Monotonic,
    last_refresh: Monotonic,
    last_digest: Monotonic,
}

/// Presence that changed since actions were last drained.
#[derive(Debug, Default)]
struct Pending {
    records: BTreeSet<NodeId>,
    online: BTreeSet<NodeId>,
    /// Of this coordinator's own sessions: for the others.
    relay: BTreeSet<NodeId>,
    own: BTreeSet<NodeId>,
}

#[derive(Debug)]
struct Session {
    node: NodeId,
    opened: Monotonic,
    phase: Phase,
}

#[derive(Debug)]
enum Phase {
    /// Has not said hello.
    Opened,
    /// Has, and cannot be welcomed yet.
    Waiting(Box<Waiting>),
    Live {
        claim: Claim,
        /// The revision it holds, if that is ahead of the registry here.
        ahead: Option<Revision>,
    },
}

/// What a session has said that waits, and for what.
#[derive(Debug)]
struct Waiting {
    hello: Hello,
    presence: Option<SignedPresence>,
    wait: Wait,
}

/// What a session waits for.
#[derive(Debug)]
enum Wait {
    /// The registry does not know the node yet.
    ForLog,
    /// Another daemon with this identity has a session, and may be dead.
    ForRivals(Rivals),
}

impl Waiting {
    fn is_for_log(&self) -> bool {
        matches!(self.wait, Wait::ForLog)
    }
}

impl Hub {
    /// A hub without sessions, not fresh until told so.
    pub fn new(me: CoordinatorId, now: Now) -> Self {
        Self {
            me,
            health: Health::default(),
            sessions: BTreeMap::new(),
            by_node: BTreeMap::new(),
            live: BTreeMap::new(),
            contests: BTreeMap::new(),
            contenders: BTreeSet::new(),
            presence: PresenceTable::default(),
            online: OnlineTable::default(),
            exchanges: BTreeSet::new(),
            told: (None, Revision::NONE),
            told_online: BTreeSet::new(),
            pending: Pending::default(),
            newcomers: BTreeMap::new(),
            actions: VecDeque::new(),
            last_tick: now.monotonic,
            last_refresh: now.monotonic,
            last_digest: now.monotonic,
        }
    }

    /// A node opened a stream; its certificate says who it is.
    pub fn handle_opened(&mut self, session: SessionId, node: NodeId, now: Now) {
        let theirs = self.by_node.get(&node).map_or(0, BTreeSet::len);
        if self.sessions.len() >= limits::MAX_SESSIONS || theirs >= limits::MAX_SESSIONS_PER_NODE {
            self.actions.push_back(HubAction::Close { session, reason: CloseReason::Full });
            return;
        }
        self.sessions.insert(session, Session { node, opened: now.monotonic, phase: Phase::Opened });
        self.by_node.entry(node).or_default().insert(session);
    }

    /// A node said something.
    pub fn handle_message(&mut self, session: SessionId, message: NodeMessage, registry: &Registry, now: Now) {
        let Some(held) = self.sessions.get_mut(&session) else { return };
        let node = held.node;
        match (&mut held.phase, message) {
            (Phase::Opened, NodeMessage::Hello(hello)) => self.handle_hello(session, hello, registry, now),
            (Phase::Live { .. }, NodeMessage::Presence(signed)) => self.handle_presence(session, signed, registry, now),
            (Phase::Waiting(waiting), NodeMessage::Presence(signed)) => waiting.presence = Some(signed),
            (Phase::Live { claim, .. }, NodeMessage::Pong) => {
                let alive = Some(*claim);
                self.decide_contest(node, alive);
            }
            (Phase::Opened, NodeMessage::Presence(_))
            | (Phase::Opened | Phase::Waiting(_), NodeMessage::Pong)
            | (_, NodeMessage::Hello(_)) => self.close(session, CloseReason::Protocol),
        }
    }

    /// A stream ended, from whichever side.
    pub fn handle_closed(&mut self, session: SessionId, _now: Now) {
        self.forget(session);
    }

    /// The cluster's health was looked at; a change is told at once.
    pub fn handle_cluster(&mut self, health: Health, now: Now) {
        if self.health != health {
            self.health = health;
            self.send_tick(now);
        }
    }

    /// Time passed.
    pub fn handle_tick(&mut self, registry: &Registry, now: Now) {
        self.close_overdue(now.monotonic);
        self.end_contests(now.monotonic);
        self.admit_contenders(registry, now);
        let expired = self.online.expire(now.monotonic);
        self.pending.online.extend(expired);
        for node in self.presence.offer_deferred(registry, now.monotonic) {
            self.note_record(node, self.live.contains_key(&node));
        }
        self.refresh_exchanges(now.monotonic);
        if now.monotonic.since(self.last_tick) >= TICK_INTERVAL {
            self.send_tick(now);
        }
    }

    /// The next thing to do, until there is none.
    pub fn poll_action(&mut self) -> Option<HubAction> {
        if self.actions.is_empty() {
            self.flush_presence();
            self.flush_exchange();
        }
        self.actions.pop_front()
    }

    /// How many actions wait: a shell that feeds many events before it drains should drain when this grows, since a
    /// hello may leave a whole snapshot behind.
    pub fn backlog(&self) -> usize {
        self.actions.len()
    }

    /// Whether any coordinator has a session with the node, as far as is known here.
    pub fn is_online(&self, node: NodeId) -> bool {
        self.online.is_online(node)
    }

    /// The newest presence of every node.
    pub fn presence(&self) -> &PresenceTable {
        &self.presence
    }

    /// How many sessions are open.
    pub fn session_count(&self) -> usize {
        self.sessions.len()
    }

    /// The health as it was told last.
    pub fn health(&self) -> &Health {
        &self.health
    }

    /// A node speaks for itself alone. A word that is late or too frequent is dropped, a forged one ends the session.
    fn handle_presence(&mut self, session: SessionId, signed: SignedPresence, registry: &Registry, now: Now) {
        let Some(node) = self.sessions.get(&session).map(|held| held.node) else { return };
        if signed.parse_unverified().is_ok_and(|presence| presence.node != node) {
            tracing::warn!(%node, "presence of another node: session closed");
            self.close(session, CloseReason::Protocol);
            return;
        }
        match self.presence.offer(signed, registry, now.monotonic) {
            Ok(node) => self.note_record(node, true),
            Err(refusal @ PresenceRefusal::Invalid(_)) => {
                tracing::warn!(%node, %refusal, "session closed");
                self.close(session, CloseReason::Protocol);
            }
            Err(refusal) => tracing::debug!(%node, %refusal),
        }
    }

    fn note_record(&mut self, node: NodeId, from_own_session: bool) {
        self.pending.records.insert(node);
        if from_own_session {
            self.pending.relay.insert(node);
        }
    }

    fn note_online(&mut self, node: NodeId, claim: Option<Claim>) {
        self.online.observe(self.me, node, claim);
        self.pending.online.insert(node);
        self.pending.own.insert(node);
    }

    fn close_overdue(&mut self, now: Monotonic) {
        let verdict = |session: &Session| match &session.phase {
            Phase::Opened if now.since(session.opened) >= HELLO_TIMEOUT => Some(CloseReason::Protocol),
            Phase::Waiting(waiting) if now.since(session.opened) >= KNOWN_TIMEOUT && waiting.is_for_log() => {
                Some(CloseReason::GoElsewhere)
            }
            Phase::Opened | Phase::Waiting(_) | Phase::Live { .. } => None,
        };
        let overdue: Vec<_> =
            self.sessions.iter().filter_map(|(&id, session)| verdict(session).map(|reason| (id, reason))).collect();
        overdue.into_iter().for_each(|(session, reason)| self.close(session, reason));
    }

    fn close(&mut self, session: SessionId, reason: CloseReason) {
        if self.forget(session) {
            self.actions.push_back(HubAction::Close { session, reason });
        }
    }

    fn forget(&mut self, session: SessionId) -> bool {
        let Some(held) = self.sessions.remove(&session) else { return false };
        self.newcomers.remove(&session);
        self.contenders.remove(&session);
        if let Some(theirs) = self.by_node.get_mut(&held.node) {
            theirs.remove(&session);
            if theirs.is_empty() {
                self.by_node.remove(&held.node);
            }
        }
        if self.live.get(&held.node) == Some(&session) {
            self.live.remove(&held.node);
            self.note_online(held.node, None);
            self.decide_contest(held.node, None);
        }
        true
    }

    fn send(&mut self, sessions: Vec<SessionId>, message: CoordinatorMessage) {
        if !sessions.is_empty() {
            self.actions.push_back(HubAction::Send { sessions, message });
        }
    }

    fn send_tick(&mut self, now: Now) {
        self.last_tick = now.monotonic;
        let tick = self.tick(now);
        self.send(self.live.values().copied().collect(), CoordinatorMessage::Tick(tick));
    }

    fn tick(&self, now: Now) -> Tick {
        let Health { fresh, leader, voters } = self.health.clone();
        Tick { time: now.mesh, fresh, leader, voters }
    }
}
