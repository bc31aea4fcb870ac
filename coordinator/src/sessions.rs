//! The loop that owns the hub: takes events of streams, of the registry and of time, and carries out what the hub asks.
//!
//! Every stream has a bounded queue of encoded messages. A message for many is encoded once and its bytes are shared. A
//! stream whose queue is full is cut: the queue is freed, and its node comes back and is brought up to date. The loop
//! never waits for a stream, and no connection outlives its session for long.

use crate::clock::Clock;
use crate::queue::Queue;
use crate::raft::{Raft, View};
use mesh_coordinator_core::hub::Health;
use mesh_coordinator_core::{Hub, HubAction, Registry, SessionId};
use mesh_proto::listen::Hangup;
use mesh_proto::{Wire as _, v1};
use mesh_types::session::CloseReason;
use mesh_types::{CoordinatorId, CoordinatorMessage, ExchangeMessage, NodeId, NodeMessage};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};
use tokio::task::AbortHandle;

/// Events waiting for the loop; streams wait when it is full.
const EVENTS: usize = 4_096;
/// Events taken before the hub's actions are carried out, so that presence which comes together goes out together.
const BATCH: usize = 256;
/// Actions that may wait meanwhile: a hello can leave a whole snapshot behind.
const BACKLOG: usize = 128;
/// How often health is looked at; losing the leader shows within this of three seconds.
const LOOK: Duration = Duration::from_millis(250);
/// Messages waiting for another coordinator before its stream is cut and begun anew, with digests.
const EXCHANGE_QUEUE: usize = 1_024;

/// How long a node has to take its farewell before its connection is ended: one that reads nothing, and answers pings,
/// would keep it for ever.
const FAREWELL: Duration = Duration::from_secs(5);

/// What happens to streams.
pub(crate) enum Event {
    /// A node opened one.
    Opened { session: SessionId, node: NodeId, stream: Stream },
    /// It said something.
    Said { session: SessionId, message: NodeMessage },
    /// It ended.
    Closed { session: SessionId },
    /// Another coordinator opened one, or was reached.
    ExchangeOpened { peer: CoordinatorId, stream: u64, queue: mpsc::Sender<v1::PresenceExchange> },
    /// It said something.
    ExchangeSaid { peer: CoordinatorId, message: ExchangeMessage },
    /// It ended.
    ExchangeClosed { peer: CoordinatorId, stream: u64 },
    /// Someone wants to know who is online.
    WhoIsOnline { nodes: Vec<NodeId>, answer: oneshot::Sender<Vec<bool>> },
    /// The process stops: nodes are sent elsewhere.
    Stop { done: oneshot::Sender<()> },
}

/// The way to the loop; clones share it.
#[derive(Clone)]
pub(crate) struct Sessions {
    events: mpsc::Sender<Event>,
    numbers: Arc<AtomicU64>,
}

impl Sessions {
    /// The handle, and the events for [`run`].
    pub(crate) fn new() -> (Self, mpsc::Receiver<Event>) {
        let (events, receiver) = mpsc::channel(EVENTS);
        (Self { events, numbers: Arc::default() }, receiver)
    }

    /// A number that no stream had before.
    pub(crate) fn number(&self) -> u64 {
        self.numbers.fetch_add(1, Ordering::Relaxed)
    }

    /// The queue of a new exchange.
    pub(crate) fn exchange_queue() -> (mpsc::Sender<v1::PresenceExchange>, mpsc::Receiver<v1::PresenceExchange>) {
        mpsc::channel(EXCHANGE_QUEUE)
    }

    /// Tells the loop; waits while it is busy.
    pub(crate) async fn tell(&self, event: Event) {
        // The loop ends only with the process.
        let _ = self.events.send(event).await;
    }

    /// Whether each of these nodes has a session with any coordinator, in order.
    pub(crate) async fn who_is_online(&self, nodes: Vec<NodeId>) -> Vec<bool> {
        let (answer, receiver) = oneshot::channel();
        let count = nodes.len();
        self.tell(Event::WhoIsOnline { nodes, answer }).await;
        receiver.await.unwrap_or_else(|_| vec![false; count])
    }

    /// Sends all nodes elsewhere.
    pub(crate) async fn stop(&self) {
        let (done, receiver) = oneshot::channel();
        self.tell(Event::Stop { done }).await;
        let _ = receiver.await;
    }
}

/// Runs until the process ends.
pub(crate) async fn run(me: CoordinatorId, raft: Raft, clock: Clock, mut events: mpsc::Receiver<Event>) {
    let mut hub = HubLoop {
        hub: Hub::new(me, clock.told()),
        view: raft.view().clone(),
        clock,
        sessions: BTreeMap::new(),
        exchanges: BTreeMap::new(),
        stopping: false,
    };
    let mut applied = raft.view().applied();
    let mut changes = raft.changes();
    let mut look = tokio::time::interval(LOOK);
    look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            event = events.recv() => {
                let Some(event) = event else { return };
                hub.handle(event);
                for _ in 1..BATCH {
                    if hub.hub.backlog() >= BACKLOG {
                        break;
                    }
                    let Ok(event) = events.try_recv() else { break };
                    hub.handle(event);
                }
            }
            changed = applied.changed() => {
                if changed.is_err() {
                    return;
                }
                applied.mark_unchanged();
                hub.with_registry(|hub, registry, now| hub.handle_applied(registry, now));
                hub.part_with_former();
            }
            () = changes.next() => hub.look(&raft),
            _ = look.tick() => {
                hub.look(&raft);
                hub.with_registry(|hub, registry, now| hub.handle_tick(registry, now));
            }
        }
        hub.drain();
    }
}

struct HubLoop {
    hub: Hub,
    view: View,
    clock: Clock,
    sessions: BTreeMap<SessionId, Stream>,
    exchanges: BTreeMap<CoordinatorId, (u64, mpsc::Sender<v1::PresenceExchange>)>,
    /// Nodes are sent elsewhere at once.
    stopping: bool,
}

/// One session's stream.
pub(crate) struct Stream {
    /// For what the node shall hear.
    pub(crate) queue: Queue<v1::CoordinatorMessage>,
    /// The task that takes what the node says.
    pub(crate) reader: AbortHandle,
    /// Ends the connection.
    pub(crate) hangup: Hangup,
}

impl Stream {
    /// Says why, and ends what is left of it when the node has had time to read that.
    fn end(self, reason: CloseReason) {
        let farewell = CoordinatorMessage::Close(reason).to_wire();
        match reason {
            CloseReason::SlowReader | CloseReason::Protocol => self.queue.cut(farewell),
            CloseReason::Removed
            | CloseReason::DuplicateIdentity
            | CloseReason::WrongHistory
            | CloseReason::GoElsewhere
            | CloseReason::Full => self.queue.end(farewell),
        }
        self.reader.abort();
        tokio::spawn(async move {
            tokio::time::sleep(FAREWELL).await;
            self.hangup.now();
        });
    }
}

impl HubLoop {
    fn with_registry(&mut self, act: impl FnOnce(&mut Hub, &Registry, mesh_coordinator_core::clock::Now)) {
        let (hub, clock) = (&mut self.hub, &self.clock);
        self.view.read(|registry| {
            clock.observe(registry.time());
            act(hub, registry, clock.told());
        });
    }

    fn look(&mut self, raft: &Raft) {
        let status = raft.status();
        let health = Health { fresh: status.fresh, leader: status.leader, voters: status.voters };
        self.hub.handle_cluster(health, self.clock.told());
    }

    fn handle(&mut self, event: Event) {
        let now = self.clock.told();
        match event {
            Event::Opened { stream, .. } if self.stopping => stream.end(CloseReason::GoElsewhere),
            Event::Opened { session, node, stream } => {
                self.sessions.insert(session, stream);
                self.hub.handle_opened(session, node, now);
            }
            Event::Said { session, message } => {
                self.with_registry(|hub, registry, now| hub.handle_message(session, message, registry, now));
            }
            Event::Closed { session } => {
                if let Some(stream) = self.sessions.remove(&session) {
                    self.hub.handle_closed(session, now);
                    // Mostly the connection is gone; a node that only stopped speaking is not spoken to either.
                    stream.end(CloseReason::Protocol);
                }
            }
            Event::ExchangeOpened { peer, .. } if self.is_former(peer) => {}
            Event::ExchangeOpened { peer, stream, queue } => {
                // A newer stream takes the place of an older one, whose end was not noticed yet.
                if self.exchanges.insert(peer, (stream, queue)).is_some() {
                    self.hub.handle_exchange_closed(peer, now);
                }
                self.hub.handle_exchange_opened(peer, now);
            }
            // A stream that was ended here goes on until the other notices.
            Event::ExchangeSaid { peer, .. } if !self.exchanges.contains_key(&peer) => {}
            Event::ExchangeSaid { peer, message } => {
                self.with_registry(|hub, registry, now| hub.handle_exchange(peer, message, registry, now));
            }
            Event::ExchangeClosed { peer, stream } => self.end_exchange(peer, |held| held == stream),
            Event::WhoIsOnline { nodes, answer } => {
                // Whoever asked may have given up.
                let _ = answer.send(nodes.into_iter().map(|node| self.hub.is_online(node)).collect());
            }
            Event::Stop { done } => {
                self.stopping = true;
                let all = std::mem::take(&mut self.sessions);
                all.into_values().for_each(|stream| stream.end(CloseReason::GoElsewhere));
                let _ = done.send(());
            }
        }
    }

    /// Ends the streams of coordinators that were removed: they were members when they opened them.
    fn part_with_former(&mut self) {
        let former: Vec<_> = self.exchanges.keys().copied().filter(|peer| self.is_former(*peer)).collect();
        former.into_iter().for_each(|peer| self.end_exchange(peer, |_| true));
    }

    fn is_former(&self, peer: CoordinatorId) -> bool {
        self.view.read(|registry| registry.former_coordinator(peer).is_some())
    }

    fn drain(&mut self) {
        while let Some(action) = self.hub.poll_action() {
            match action {
                HubAction::Send { sessions, message } => self.send(&sessions, &message),
                HubAction::Close { session, reason } => self.close(session, reason),
                HubAction::Exchange { to, message } => {
                    let message = message.to_wire();
                    for peer in to {
                        self.exchange(peer, message.clone());
                    }
                }
            }
        }
    }

    fn send(&mut self, sessions: &[SessionId], message: &CoordinatorMessage) {
        // Encoded here; the clones share the bytes.
        let message = message.to_wire();
        for session in sessions {
            let Some(stream) = self.sessions.get(session) else { continue };
            if stream.queue.send(message.clone()) {
                continue;
            }
            let now = self.clock.told();
            tracing::info!(session = session.0, "session reads too slowly");
            self.hub.handle_closed(*session, now);
            self.close(*session, CloseReason::SlowReader);
        }
    }

    fn close(&mut self, session: SessionId, reason: CloseReason) {
        let Some(stream) = self.sessions.remove(&session) else { return };
        tracing::debug!(session = session.0, ?reason, "session closed");
        stream.end(reason);
    }

    fn exchange(&mut self, peer: CoordinatorId, message: v1::PresenceExchange) {
        let sent = self.exchanges.get(&peer).is_some_and(|(_, queue)| queue.try_send(message).is_ok());
        if !sent {
            self.end_exchange(peer, |_| true);
        }
    }

    fn end_exchange(&mut self, peer: CoordinatorId, is_meant: impl FnOnce(u64) -> bool) {
        if self.exchanges.get(&peer).is_some_and(|(stream, _)| is_meant(*stream)) {
            self.exchanges.remove(&peer);
            self.hub.handle_exchange_closed(peer, self.clock.told());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::queue::queue;
    use crate::raft::{CallError, Disk, Kind, Timing, Transport};
    use bytes::Bytes;
    use futures::StreamExt as _;
    use mesh_coordinator_core::command::{Command, CreateToken, Found, JoinCoordinator, RemoveCoordinator};
    use mesh_coordinator_core::{Entry, Reply};
    use mesh_types::netmap::Certificate;
    use mesh_types::{
        CoordinatorRecord, Epoch, Fingerprint, IdentityKey, Level, MeshDuration, MeshId, MeshTime, OnlineNode,
        OnlineNodes, Overlay, Role, TokenId,
    };

    /// Reaches nobody.
    #[derive(Clone)]
    struct Alone;

    impl Transport for Alone {
        async fn call(&self, _to: u64, _kind: Kind, _body: Vec<u8>, _timeout: Duration) -> Result<Bytes, CallError> {
            Err(CallError::Unreachable("alone".into()))
        }
    }

    fn coordinator(id: u64) -> CoordinatorRecord {
        CoordinatorRecord {
            id: CoordinatorId(id),
            name: format!("c{id}").parse().unwrap(),
            identity_key: IdentityKey::from_bytes([id as u8; 32]),
            addresses: vec![format!("192.0.2.{id}").parse().unwrap()],
        }
    }

    async fn write(raft: &Raft, command: impl Into<Command>) -> Reply {
        let entry = Entry { level: Level::FIRST, time: MeshTime(1_000), request: None, command: command.into() };
        loop {
            match raft.propose(&entry).await {
                Ok(reply) => return reply.granted().unwrap(),
                Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
            }
        }
    }

    async fn founded(disk: Disk) -> Raft {
        let raft =
            Raft::start(CoordinatorId(1), Timing::default(), mesh_types::Level::SUPPORTED, disk, Alone).await.unwrap();
        raft.initialize().await.unwrap();
        let (token, secret_hash) = (TokenId::from_bytes([1; 8]), Fingerprint::of(b"1"));
        let (ttl, uses) = (MeshDuration::from_secs(3_600), 9);
        let overlay = Overlay::new("10.7.0.0/16".parse().unwrap(), "fd00::/48".parse().unwrap()).unwrap();
        let found = Found {
            mesh: MeshId::from_bytes([1; 16]),
            overlay,
            authority: Certificate(vec![1]),
            epoch: Epoch { counter: 1, id: 7 },
            key_ttl: MeshDuration::from_secs(86_400),
            coordinator: coordinator(1),
        };
        write(&raft, found).await;
        write(&raft, CreateToken { id: token, secret_hash, role: Role::Coordinator, ttl, uses }).await;
        let CoordinatorRecord { identity_key, name, addresses, .. } = coordinator(2);
        write(&raft, JoinCoordinator { token, secret_hash, identity_key, name, addresses }).await;
        raft
    }

    #[tokio::test]
    async fn a_coordinator_that_is_removed_is_heard_no_more_on_the_stream_that_it_has() {
        let root = tempfile::tempdir().unwrap();
        let raft = founded(Disk::open(&root.path().join("raft.redb")).unwrap()).await;
        let (sessions, events) = Sessions::new();
        let running = tokio::spawn(run(CoordinatorId(1), raft.clone(), Clock::new(true), events));
        let (peer, node) = (CoordinatorId(2), NodeId::from_bytes([5; 16]));
        let (queue, mut heard) = Sessions::exchange_queue();
        sessions.tell(Event::ExchangeOpened { peer, stream: 1, queue }).await;
        let says = |gone: bool| {
            let here = vec![OnlineNode { id: node, claim: None }];
            let (nodes, gone) = if gone { (Vec::new(), vec![node]) } else { (here, Vec::new()) };
            let ttl = MeshDuration::from_secs(10);
            let online = OnlineNodes { coordinator: peer, nodes, ttl, complete: false, gone };
            Event::ExchangeSaid { peer, message: ExchangeMessage::Online(online) }
        };
        sessions.tell(says(false)).await;
        assert_eq!(sessions.who_is_online(vec![node]).await, [true]);

        write(&raft, RemoveCoordinator { coordinator: peer, destroy: false }).await;
        let ended = async { while heard.recv().await.is_some() {} };
        tokio::time::timeout(Duration::from_secs(20), ended).await.expect("its stream stays open");
        sessions.tell(says(true)).await;
        assert_eq!(sessions.who_is_online(vec![node]).await, [true], "what it said before holds for its time");
        let (queue, mut heard) = Sessions::exchange_queue();
        sessions.tell(Event::ExchangeOpened { peer, stream: 2, queue }).await;
        assert!(heard.recv().await.is_none(), "nor on a new one");
        running.abort();
        raft.shutdown().await;
    }

    #[tokio::test]
    async fn who_comes_while_the_process_stops_is_sent_elsewhere() {
        let root = tempfile::tempdir().unwrap();
        let raft = founded(Disk::open(&root.path().join("raft.redb")).unwrap()).await;
        let (sessions, events) = Sessions::new();
        let running = tokio::spawn(run(CoordinatorId(1), raft.clone(), Clock::new(true), events));
        sessions.stop().await;
        let (queue, mut heard) = queue();
        let reader = tokio::spawn(std::future::pending::<()>()).abort_handle();
        let (session, node) = (SessionId(1), NodeId::from_bytes([5; 16]));
        let stream = Stream { queue, reader, hangup: Hangup::new().0 };
        sessions.tell(Event::Opened { session, node, stream }).await;
        let farewell = CoordinatorMessage::from_wire(heard.next().await.unwrap()).unwrap();
        assert_eq!(farewell, CoordinatorMessage::Close(CloseReason::GoElsewhere));
        assert!(heard.next().await.is_none());
        running.abort();
        raft.shutdown().await;
    }
}
