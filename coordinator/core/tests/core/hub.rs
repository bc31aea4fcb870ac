//! Sessions: what each node is told, and when it is told to go.

use crate::fixture::*;
use mesh_coordinator_core::clock::{Monotonic, Now};
use mesh_coordinator_core::command::*;
use mesh_coordinator_core::hub::{Health, TICK_INTERVAL};
use mesh_coordinator_core::{Hub, HubAction, Registry, SessionId};
use mesh_types::session::{CloseReason, Hello, PresenceUpdate, SnapshotPage, Tick};
use mesh_types::{
    CoordinatorId, CoordinatorMessage, Epoch, ExchangeMessage, Incarnation, Level, MeshDuration, MeshId, NodeId,
    NodeMessage, OnlineNode, OnlineNodes, Revision, Role, limits,
};
use std::collections::BTreeSet;

pub(crate) const ME: CoordinatorId = CoordinatorId(1);
pub(crate) const OTHER: CoordinatorId = CoordinatorId(2);

/// A hub, its registry and its clock.
pub(crate) struct Lab {
    pub(crate) world: World,
    pub(crate) hub: Hub,
    now: Monotonic,
    next: u64,
}

impl Lab {
    /// With nodes 1 to `nodes` as members.
    pub(crate) fn new(nodes: u8) -> Self {
        let mut world = World::with_token();
        (1..=nodes).for_each(|n| drop(world.join(n)));
        let now = Monotonic(1_000_000);
        let hub = Hub::new(ME, Now { monotonic: now, mesh: world.time });
        Self { world, hub, now, next: 0 }
    }

    pub(crate) fn now(&self) -> Now {
        Now { monotonic: self.now, mesh: self.world.time }
    }

    pub(crate) fn pass(&mut self, span: MeshDuration) {
        self.now = self.now + span;
        self.world.pass(span);
        let now = self.now();
        self.hub.handle_tick(&self.world.registry, now);
    }

    pub(crate) fn open(&mut self, n: u8) -> SessionId {
        self.next += 1;
        let session = SessionId(self.next);
        let now = self.now();
        self.hub.handle_opened(session, node(n), now);
        session
    }

    pub(crate) fn say(&mut self, session: SessionId, message: NodeMessage) {
        let now = self.now();
        self.hub.handle_message(session, message, &self.world.registry, now);
    }

    pub(crate) fn hello(&mut self, session: SessionId, hello: Hello) -> Vec<HubAction> {
        self.say(session, NodeMessage::Hello(hello));
        self.actions()
    }

    /// A session of node `n` that holds the present revision, all that it was told thrown away.
    pub(crate) fn settled(&mut self, n: u8) -> SessionId {
        let session = self.open(n);
        let revision = self.world.registry.revision();
        self.hello(session, hello(revision));
        session
    }

    pub(crate) fn applied(&mut self) -> Vec<HubAction> {
        let now = self.now();
        self.hub.handle_applied(&self.world.registry, now);
        self.actions()
    }

    pub(crate) fn exchange(&mut self, message: ExchangeMessage) -> Vec<HubAction> {
        let now = self.now();
        self.hub.handle_exchange(OTHER, message, &self.world.registry, now);
        self.actions()
    }

    pub(crate) fn actions(&mut self) -> Vec<HubAction> {
        std::iter::from_fn(|| self.hub.poll_action()).collect()
    }
}

pub(crate) fn hello(revision: Revision) -> Hello {
    Hello {
        mesh: MESH,
        epoch: (revision > Revision::NONE).then_some(EPOCH),
        revision,
        level: Level::FIRST,
        instance: 1,
        software: "test".into(),
        presence: Vec::new(),
    }
}

/// The messages for one session, in order.
pub(crate) fn to(session: SessionId, actions: &[HubAction]) -> Vec<CoordinatorMessage> {
    let message = |action: &HubAction| match action {
        HubAction::Send { sessions, message } if sessions.contains(&session) => Some(message.clone()),
        HubAction::Close { session: closed, reason } if *closed == session => Some(CoordinatorMessage::Close(*reason)),
        _ => None,
    };
    actions.iter().filter_map(message).collect()
}

pub(crate) fn exchanged(actions: &[HubAction]) -> Vec<&ExchangeMessage> {
    fn message(action: &HubAction) -> Option<&ExchangeMessage> {
        match action {
            HubAction::Exchange { to, message } if to == &[OTHER] => Some(message),
            _ => None,
        }
    }
    actions.iter().filter_map(message).collect()
}

pub(crate) fn closed(session: SessionId, reason: CloseReason) -> HubAction {
    HubAction::Close { session, reason }
}

fn online(nodes: &[u8], gone: &[u8], complete: bool) -> ExchangeMessage {
    let nodes = nodes.iter().map(|&n| OnlineNode { id: node(n), claim: None }).collect();
    let gone = gone.iter().map(|&n| node(n)).collect();
    ExchangeMessage::Online(OnlineNodes { coordinator: OTHER, nodes, ttl: MeshDuration::from_secs(10), complete, gone })
}

fn ids(online: &OnlineNodes) -> Vec<NodeId> {
    online.nodes.iter().map(|node| node.id).collect()
}

pub(crate) fn presence_update(records: &[(u8, u64)], online: &[u8], offline: &[u8]) -> CoordinatorMessage {
    CoordinatorMessage::Presence(PresenceUpdate {
        records: records.iter().map(|&(n, sequence)| presence(n, sequence)).collect(),
        online: online.iter().map(|&n| node(n)).collect(),
        offline: offline.iter().map(|&n| node(n)).collect(),
    })
}

#[test]
fn a_new_node_is_welcomed_and_gets_everything_in_pages() {
    let mut lab = Lab::new(2);
    let session = lab.open(1);
    let told = to(session, &lab.hello(session, hello(Revision::NONE)));
    let [CoordinatorMessage::Welcome(welcome), CoordinatorMessage::Snapshot(page), rest @ ..] = told.as_slice() else {
        panic!("{told:?}")
    };
    assert_eq!((welcome.coordinator, welcome.epoch, welcome.incarnation), (ME, EPOCH, Incarnation(0)));
    assert_eq!(welcome.tick.time, lab.world.time);
    assert_eq!(page.nodes.iter().map(|record| record.id).collect::<Vec<_>>(), [node(1), node(2)]);
    assert_eq!((page.config.as_ref(), page.last), (lab.world.registry.config(), true));
    assert_eq!(rest, [presence_update(&[], &[1], &[])]);
}

#[test]
fn a_node_that_comes_back_gets_only_what_changed() {
    let mut lab = Lab::new(2);
    let held = lab.world.registry.revision();
    let new = lab.world.join(3);
    let session = lab.open(1);
    let told = to(session, &lab.hello(session, hello(held)));
    let CoordinatorMessage::Delta(changes) = &told[1] else { panic!("{told:?}") };
    assert_eq!((changes.from, &changes.upserts), (held, &vec![new]));
    let session = lab.open(2);
    let told = to(session, &lab.hello(session, hello(changes.to)));
    let of_the_registry = |message: &CoordinatorMessage| {
        matches!(message, CoordinatorMessage::Delta(_) | CoordinatorMessage::Snapshot(_))
    };
    assert!(!told.iter().any(of_the_registry), "{told:?}");
}

#[test]
fn a_node_of_an_earlier_epoch_gets_a_snapshot_and_one_of_a_later_or_split_one_is_refused() {
    let mut lab = Lab::new(1);
    lab.world.apply(OpenEpoch { epoch: Epoch { counter: 5, id: 5 }, void_tokens: false, coordinator: coordinator(1) });
    let with_epoch = |counter, id| Hello { epoch: Some(Epoch { counter, id }), ..hello(Revision(2)) };
    let session = lab.open(1);
    let told = to(session, &lab.hello(session, with_epoch(1, 77)));
    assert!(matches!(told[1], CoordinatorMessage::Snapshot(_)), "{told:?}");
    for wrong in [with_epoch(5, 6), with_epoch(6, 1), Hello { mesh: MeshId::from_bytes([0; 16]), ..hello(Revision(2)) }]
    {
        let session = lab.open(1);
        assert_eq!(lab.hello(session, wrong), [closed(session, CloseReason::WrongHistory)]);
    }
}

#[test]
fn a_node_that_is_ahead_is_never_taken_back_and_joins_the_others_later() {
    let mut lab = Lab::new(1);
    let behind = lab.world.registry.clone();
    let new = lab.world.join(2);
    let ahead = lab.world.registry.revision();
    let current = std::mem::replace(&mut lab.world.registry, behind);
    let session = lab.open(1);
    let told = to(session, &lab.hello(session, hello(ahead)));
    assert!(matches!(told.as_slice(), [CoordinatorMessage::Welcome(_), CoordinatorMessage::Presence(_)]), "{told:?}");
    lab.world.registry = current;
    assert_eq!(lab.applied(), [], "it holds that already");
    lab.world.remove(2);
    let told = to(session, &lab.applied());
    let [CoordinatorMessage::Delta(changes)] = told.as_slice() else { panic!("{told:?}") };
    assert_eq!((changes.from, &changes.removals), (ahead, &vec![new.id]));
}

#[test]
fn a_change_is_one_action_for_all_sessions() {
    let mut lab = Lab::new(3);
    let sessions: Vec<_> = (1..=3).map(|n| lab.settled(n)).collect();
    lab.world.join(4);
    let actions = lab.applied();
    let [HubAction::Send { sessions: recipients, message: CoordinatorMessage::Delta(changes) }] = actions.as_slice()
    else {
        panic!("{actions:?}")
    };
    assert_eq!(recipients, &sessions);
    assert_eq!(changes.upserts.len(), 1);
    assert_eq!(lab.applied(), []);
}

#[test]
fn a_jump_over_too_many_changes_is_one_snapshot_for_all_sessions() {
    let mut lab = Lab { world: World::founded(), ..Lab::new(0) };
    lab.world.registry = Registry::new();
    lab.world.apply(Found { overlay: overlay("10.0.0.0/16"), ..found() });
    lab.world.token(1, Role::Node, u32::MAX);
    lab.world.join(1);
    lab.world.join(2);
    let sessions = [lab.settled(1), lab.settled(2)];
    lab.world.remove(2);
    for n in 0..=limits::MAX_DELTA as u32 {
        let unique = |kind: u8| {
            let mut bytes = [kind; 32];
            bytes[..4].copy_from_slice(&n.to_be_bytes());
            bytes
        };
        let join = Join {
            node: mesh_types::NodeId::try_from(&unique(0xee)[..16]).unwrap(),
            public_key: mesh_types::PublicKey::from_bytes(unique(0xee)),
            identity_key: mesh_types::IdentityKey::from_bytes(unique(0xee)),
            name: name(&format!("n{n}")),
            ..join(1, 1)
        };
        node_of(lab.world.apply(join));
    }
    let actions = lab.applied();
    assert_eq!(to(sessions[1], &actions), [CoordinatorMessage::Close(CloseReason::Removed)]);
    let pages = to(sessions[0], &actions);
    let count = |message: &CoordinatorMessage| match message {
        CoordinatorMessage::Snapshot(SnapshotPage { nodes, .. }) => nodes.len(),
        _ => 0,
    };
    assert_eq!(pages.iter().map(count).sum::<usize>(), lab.world.registry.node_count());
    assert!(pages.iter().all(|page| count(page) <= limits::SNAPSHOT_PAGE));
    let last: Vec<bool> = pages
        .iter()
        .filter_map(|message| match message {
            CoordinatorMessage::Snapshot(page) => Some(page.last),
            _ => None,
        })
        .collect();
    assert_eq!(last, [false, false, false, false, true]);
}

#[test]
fn a_removal_is_felt_at_once_by_the_removed_and_by_all_others() {
    let mut lab = Lab::new(3);
    let sessions: Vec<_> = (1..=3).map(|n| lab.settled(n)).collect();
    lab.say(sessions[1], NodeMessage::Presence(presence(2, 1)));
    lab.actions();
    lab.world.remove(2);
    let actions = lab.applied();
    assert_eq!(to(sessions[1], &actions), [CoordinatorMessage::Close(CloseReason::Removed)]);
    let told = to(sessions[0], &actions);
    let [CoordinatorMessage::Delta(changes), offline] = told.as_slice() else { panic!("{told:?}") };
    assert_eq!(changes.removals, [node(2)]);
    assert_eq!(*offline, presence_update(&[], &[], &[2]));
    assert_eq!(lab.hub.presence().records().count(), 0);
    let session = lab.open(2);
    assert_eq!(lab.hello(session, hello(Revision(2))), [closed(session, CloseReason::Removed)]);
}

#[test]
fn a_daemon_that_reconnects_takes_the_place_of_its_old_stream_and_stays_online() {
    let mut lab = Lab::new(2);
    let watcher = lab.settled(2);
    let older = lab.settled(1);
    let newer = lab.open(1);
    let actions = lab.hello(newer, hello(lab.world.registry.revision()));
    assert_eq!(to(older, &actions), [CoordinatorMessage::Close(CloseReason::GoElsewhere)]);
    assert!(matches!(to(newer, &actions)[0], CoordinatorMessage::Welcome(_)));
    assert_eq!(to(watcher, &actions), []);
    let now = lab.now();
    lab.hub.handle_closed(older, now);
    assert_eq!(lab.actions(), [], "the old stream's end changes nothing any more");
    assert!(lab.hub.is_online(node(1)));
}

#[test]
fn a_node_that_joined_elsewhere_a_moment_ago_waits_until_the_log_arrives() {
    let mut lab = Lab::new(1);
    let session = lab.open(2);
    assert_eq!(lab.hello(session, hello(Revision::NONE)), []);
    lab.say(session, NodeMessage::Presence(presence(2, 1)));
    assert_eq!(lab.actions(), []);
    lab.world.join(2);
    let told = to(session, &lab.applied());
    assert!(matches!(told[..2], [CoordinatorMessage::Welcome(_), CoordinatorMessage::Snapshot(_)]), "{told:?}");
    assert_eq!(lab.hub.presence().record(node(2)), Some(&presence(2, 1)));
}

#[test]
fn a_node_that_stays_unknown_is_sent_elsewhere() {
    let mut lab = Lab::new(1);
    let session = lab.open(2);
    assert_eq!(lab.hello(session, hello(Revision::NONE)), []);
    lab.pass(MeshDuration::from_secs(3));
    assert_eq!(lab.actions(), [closed(session, CloseReason::GoElsewhere)]);
}

#[test]
fn a_node_that_was_restored_away_is_told_so() {
    let mut lab = Lab::new(1);
    lab.world.apply(OpenEpoch { epoch: Epoch { counter: 2, id: 5 }, void_tokens: true, coordinator: coordinator(1) });
    let session = lab.open(2);
    assert_eq!(lab.hello(session, hello(Revision(9))), [closed(session, CloseReason::WrongHistory)]);
}

#[test]
fn a_replica_without_a_mesh_sends_nodes_elsewhere() {
    let mut lab = Lab::new(1);
    lab.world.registry = Registry::new();
    let session = lab.open(1);
    assert_eq!(lab.hello(session, hello(Revision(1))), [closed(session, CloseReason::GoElsewhere)]);
}

#[test]
fn who_does_not_keep_to_the_protocol_is_cut() {
    let mut lab = Lab::new(3);
    let silent = lab.open(1);
    lab.pass(MeshDuration::from_secs(10));
    assert_eq!(to(silent, &lab.actions()), [CoordinatorMessage::Close(CloseReason::Protocol)]);
    let early = lab.open(1);
    lab.say(early, NodeMessage::Presence(presence(1, 1)));
    assert_eq!(lab.actions(), [closed(early, CloseReason::Protocol)]);
    let twice = lab.settled(1);
    assert_eq!(to(twice, &lab.hello(twice, hello(Revision(1)))), [CoordinatorMessage::Close(CloseReason::Protocol)]);
    let impostor = lab.settled(2);
    lab.say(impostor, NodeMessage::Presence(presence(1, 1)));
    assert_eq!(to(impostor, &lab.actions()), [CoordinatorMessage::Close(CloseReason::Protocol)]);
    let forger = lab.settled(3);
    let forged = mesh_types::SignedPresence { signature: presence(1, 1).signature, ..presence(3, 1) };
    lab.say(forger, NodeMessage::Presence(forged));
    assert_eq!(to(forger, &lab.actions()), [CoordinatorMessage::Close(CloseReason::Protocol)]);
    assert_eq!(lab.hub.session_count(), 0);
    assert_eq!(lab.hub.presence().records().count(), 0);
}

#[test]
fn one_node_does_not_take_the_sessions_of_all() {
    let mut lab = Lab::new(1);
    let sessions: Vec<_> = (0..=limits::MAX_SESSIONS_PER_NODE).map(|_| lab.open(1)).collect();
    assert_eq!(lab.actions(), [closed(*sessions.last().unwrap(), CloseReason::Full)]);
    let now = lab.now();
    lab.hub.handle_closed(sessions[0], now);
    lab.open(1);
    assert_eq!(lab.actions(), []);
}

#[test]
fn losing_the_leader_is_told_at_once_and_the_time_every_few_seconds() {
    let mut lab = Lab::new(1);
    let session = lab.settled(1);
    let health = Health { fresh: true, leader: Some(OTHER), voters: BTreeSet::from([ME, OTHER]) };
    let now = lab.now();
    lab.hub.handle_cluster(health.clone(), now);
    let told = to(session, &lab.actions());
    let tick = Tick { time: lab.world.time, fresh: true, leader: Some(OTHER), voters: health.voters.clone() };
    assert_eq!(told, [CoordinatorMessage::Tick(tick.clone())]);
    lab.hub.handle_cluster(health.clone(), now);
    assert_eq!(lab.actions(), [], "no change, no tick");
    lab.hub.handle_cluster(Health { fresh: false, leader: None, ..health }, now);
    let stale = Tick { fresh: false, leader: None, ..tick };
    assert_eq!(to(session, &lab.actions()), [CoordinatorMessage::Tick(stale.clone())]);
    lab.pass(TICK_INTERVAL);
    let later = Tick { time: lab.world.time, ..stale };
    assert_eq!(to(session, &lab.actions()), [CoordinatorMessage::Tick(later)]);
}

#[test]
fn presence_reaches_all_sessions_in_one_message_and_newcomers_later() {
    let mut lab = Lab::new(3);
    let sessions = [lab.settled(1), lab.settled(2)];
    lab.say(sessions[0], NodeMessage::Presence(presence(1, 1)));
    lab.say(sessions[1], NodeMessage::Presence(presence(2, 1)));
    lab.say(sessions[0], NodeMessage::Presence(presence(1, 2)));
    let message = presence_update(&[(1, 2), (2, 1)], &[], &[]);
    assert_eq!(lab.actions(), [HubAction::Send { sessions: sessions.to_vec(), message }]);
    let late = lab.open(3);
    let told = to(late, &lab.hello(late, hello(lab.world.registry.revision())));
    assert_eq!(told[1..], [presence_update(&[(1, 2), (2, 1)], &[], &[]), presence_update(&[], &[1, 2, 3], &[])]);
}

#[test]
fn sessions_that_begin_together_share_one_copy_of_all_presence() {
    let mut lab = Lab::new(3);
    lab.exchange(ExchangeMessage::Records(vec![presence(1, 1), presence(2, 1)]));
    let sessions = [lab.open(1), lab.open(2)];
    for session in sessions {
        lab.say(session, NodeMessage::Hello(hello(lab.world.registry.revision())));
    }
    assert_eq!(lab.hub.backlog(), 2, "a welcome each");
    let presence_of = |action: &HubAction| match action {
        HubAction::Send { sessions, message: CoordinatorMessage::Presence(_) } => Some(sessions.clone()),
        _ => None,
    };
    let recipients: Vec<_> = lab.actions().iter().filter_map(presence_of).collect();
    assert_eq!(recipients, [sessions, sessions]);
}

#[test]
fn a_node_that_comes_from_another_coordinator_gets_only_the_presence_that_it_lacks() {
    let mut lab = Lab::new(3);
    lab.exchange(ExchangeMessage::Records(vec![presence(1, 1), presence(2, 1), presence(3, 1)]));
    let held = lab.hub.presence().digest().sums().to_vec();
    lab.exchange(ExchangeMessage::Records(vec![presence(2, 2)]));
    let revision = lab.world.registry.revision();
    let mut tell = |digest: &[u64]| {
        let session = lab.open(3);
        let told = to(session, &lab.hello(session, Hello { presence: digest.to_vec(), ..hello(revision) }));
        let records = told.iter().flat_map(|message| match message {
            CoordinatorMessage::Presence(update) => update.records.clone(),
            _ => Vec::new(),
        });
        (records.collect::<Vec<_>>(), told.last().cloned())
    };
    let online = Some(presence_update(&[], &[3], &[]));
    assert_eq!(tell(&held), (vec![presence(2, 2)], online.clone()));
    for nothing_to_go_by in [&held[..7], &[]] {
        assert_eq!(tell(nothing_to_go_by), (vec![presence(1, 1), presence(2, 2), presence(3, 1)], online.clone()));
    }
}

#[test]
fn sessions_that_begin_together_and_lack_the_same_share_one_copy_of_that() {
    let mut lab = Lab::new(3);
    lab.exchange(ExchangeMessage::Records(vec![presence(1, 1), presence(2, 1)]));
    let held = lab.hub.presence().digest().sums().to_vec();
    lab.exchange(ExchangeMessage::Records(vec![presence(2, 2)]));
    let sessions: Vec<_> = (1..=3).map(|n| lab.open(n)).collect();
    for (session, digest) in [(sessions[0], &held), (sessions[1], &held), (sessions[2], &Vec::new())] {
        let presence = digest.clone();
        let hello = Hello { presence, ..hello(lab.world.registry.revision()) };
        lab.say(session, NodeMessage::Hello(hello));
    }
    let records = |action: &HubAction| match action {
        HubAction::Send { sessions, message: CoordinatorMessage::Presence(update) } if !update.records.is_empty() => {
            Some((sessions.clone(), update.records.len()))
        }
        _ => None,
    };
    let mut sent: Vec<_> = lab.actions().iter().filter_map(records).collect();
    sent.sort();
    assert_eq!(sent, [(sessions[..2].to_vec(), 1), (sessions[2..].to_vec(), 2)]);
}

#[test]
fn the_welcome_tells_a_node_its_highest_incarnation() {
    let mut lab = Lab::new(1);
    lab.exchange(ExchangeMessage::Records(vec![presence(1, 1)]));
    let session = lab.open(1);
    let told = to(session, &lab.hello(session, hello(Revision::NONE)));
    assert!(matches!(&told[0], CoordinatorMessage::Welcome(welcome) if welcome.incarnation == Incarnation(1)));
}

#[test]
fn coming_and_going_is_told_to_nodes_and_coordinators() {
    let mut lab = Lab::new(2);
    let watcher = lab.settled(1);
    let now = lab.now();
    lab.hub.handle_exchange_opened(OTHER, now);
    let opening = lab.actions();
    let opening = exchanged(&opening);
    assert!(matches!(opening[0], ExchangeMessage::Digest(_)));
    assert!(matches!(opening[1], ExchangeMessage::Online(all) if all.complete && ids(all) == [node(1)]));
    let session = lab.open(2);
    let actions = lab.hello(session, hello(Revision::NONE));
    assert_eq!(to(watcher, &actions), [presence_update(&[], &[2], &[])]);
    assert!(matches!(exchanged(&actions)[0], ExchangeMessage::Online(new) if !new.complete && ids(new) == [node(2)]));
    lab.hub.handle_closed(session, now);
    let actions = lab.actions();
    assert_eq!(to(watcher, &actions), [presence_update(&[], &[], &[2])]);
    assert!(matches!(exchanged(&actions)[0], ExchangeMessage::Online(new) if new.gone == [node(2)]));
}

#[test]
fn only_words_of_own_sessions_are_relayed() {
    let mut lab = Lab::new(3);
    let session = lab.settled(1);
    let now = lab.now();
    lab.hub.handle_exchange_opened(OTHER, now);
    lab.actions();
    lab.say(session, NodeMessage::Presence(presence(1, 1)));
    assert_eq!(exchanged(&lab.actions()), [&ExchangeMessage::Records(vec![presence(1, 1)])]);
    let actions = lab.exchange(ExchangeMessage::Records(vec![presence(2, 1)]));
    assert_eq!(actions, [HubAction::Send { sessions: vec![session], message: presence_update(&[(2, 1)], &[], &[]) }]);
    lab.hub.handle_exchange_closed(OTHER, now);
    lab.say(session, NodeMessage::Presence(presence(1, 2)));
    assert_eq!(exchanged(&lab.actions()), Vec::<&ExchangeMessage>::new());
}

#[test]
fn a_digest_is_answered_with_what_the_other_lacks_and_nothing_else() {
    let mut lab = Lab::new(3);
    lab.exchange(ExchangeMessage::Records(vec![presence(1, 1), presence(2, 1)]));
    let mut theirs = lab.hub.presence().digest().sums().to_vec();
    assert_eq!(lab.exchange(ExchangeMessage::Digest(theirs.clone())), []);
    theirs[2] = 0;
    let actions = lab.exchange(ExchangeMessage::Digest(theirs));
    assert_eq!(exchanged(&actions), [&ExchangeMessage::Records(vec![presence(2, 1)])]);
    assert_eq!(lab.exchange(ExchangeMessage::Digest(vec![0; limits::MAX_DIGEST_BUCKETS + 1])), []);
}

#[test]
fn presence_that_overtakes_the_log_waits_for_its_node() {
    let mut lab = Lab::new(1);
    let session = lab.settled(1);
    assert_eq!(lab.exchange(ExchangeMessage::Records(vec![presence(2, 1)])), []);
    lab.world.join(2);
    let told = to(session, &lab.applied());
    assert!(matches!(told[0], CoordinatorMessage::Delta(_)), "the node first: {told:?}");
    assert_eq!(told[1..], [presence_update(&[(2, 1)], &[], &[])]);
}

#[test]
fn a_node_is_online_while_any_coordinator_says_so() {
    let mut lab = Lab::new(3);
    let watcher = lab.settled(1);
    assert_eq!(to(watcher, &lab.exchange(online(&[2, 3], &[], true))), [presence_update(&[], &[2, 3], &[])]);
    let session = lab.settled(2);
    assert_eq!(to(watcher, &lab.exchange(online(&[], &[2], false))), [], "it moved here");
    assert_eq!(to(watcher, &lab.exchange(online(&[], &[], true))), [presence_update(&[], &[], &[3])]);
    let now = lab.now();
    lab.hub.handle_closed(session, now);
    assert_eq!(to(watcher, &lab.actions()), [presence_update(&[], &[], &[2])]);
}

#[test]
fn what_a_silent_coordinator_saw_ends_with_its_time_to_live() {
    let mut lab = Lab::new(2);
    let watcher = lab.settled(1);
    lab.exchange(online(&[2], &[], true));
    lab.pass(MeshDuration::from_secs(9));
    lab.exchange(online(&[], &[], false));
    lab.pass(MeshDuration::from_secs(9));
    assert!(lab.hub.is_online(node(2)), "refreshed");
    lab.actions();
    lab.pass(MeshDuration::from_secs(1));
    assert_eq!(to(watcher, &lab.actions()), [presence_update(&[], &[], &[2])]);
}

#[test]
fn nobody_speaks_of_anothers_sessions() {
    let mut lab = Lab::new(2);
    let ExchangeMessage::Online(word) = online(&[2], &[], true) else { panic!() };
    lab.exchange(ExchangeMessage::Online(OnlineNodes { coordinator: CoordinatorId(3), ..word.clone() }));
    lab.exchange(ExchangeMessage::Online(OnlineNodes { coordinator: ME, ..word }));
    assert!(!lab.hub.is_online(node(2)));
}

#[test]
fn a_new_epoch_makes_all_nodes_compare_afresh() {
    let mut lab = Lab::new(2);
    let sessions = [lab.settled(1), lab.settled(2)];
    lab.world.apply(OpenEpoch { epoch: Epoch { counter: 2, id: 5 }, void_tokens: true, coordinator: coordinator(1) });
    let actions = lab.applied();
    assert_eq!(actions, sessions.map(|session| closed(session, CloseReason::GoElsewhere)));
}
