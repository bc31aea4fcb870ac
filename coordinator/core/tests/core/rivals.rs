//! Two daemons with one identity, with one coordinator or with two, and daemons that only came back.

use crate::fixture::*;
use crate::hub::*;
use mesh_coordinator_core::{HubAction, SessionId};
use mesh_types::session::{Claim, CloseReason, Hello};
use mesh_types::{Answer, CoordinatorMessage, ExchangeMessage, MeshDuration, NodeMessage, OnlineNode, OnlineNodes};

/// A daemon's start: [`hello`] says that it is the first.
const FIRST: u64 = 1;
const SECOND: u64 = 2;

impl Lab {
    /// A hello of node 1 by another start of the daemon.
    fn rival(&mut self, instance: u64) -> (SessionId, Vec<HubAction>) {
        let session = self.open(1);
        let revision = self.world.registry.revision();
        let told = self.hello(session, Hello { instance, ..hello(revision) });
        (session, told)
    }

    /// With a stream to the other coordinator.
    fn connected(nodes: u8) -> Self {
        let mut lab = Self::new(nodes);
        let now = lab.now();
        lab.hub.handle_exchange_opened(OTHER, now);
        lab.actions();
        lab
    }

    fn pong(&mut self, session: SessionId) -> Vec<HubAction> {
        self.say(session, NodeMessage::Pong);
        self.actions()
    }

    /// A claim that is older by so many seconds than one made now, or younger.
    fn claim(&self, older_by: i64, instance: u64) -> Claim {
        Claim { since: mesh_types::MeshTime(self.world.time.0.saturating_add_signed(-1_000 * older_by)), instance }
    }

    /// The other coordinator says that a daemon of node 1 is with it.
    fn elsewhere(&mut self, claim: Claim) -> Vec<HubAction> {
        let nodes = vec![OnlineNode { id: node(1), claim: Some(claim) }];
        let ttl = MeshDuration::from_secs(10);
        self.exchange(ExchangeMessage::Online(OnlineNodes {
            coordinator: OTHER,
            nodes,
            ttl,
            complete: false,
            gone: Vec::new(),
        }))
    }

    fn answered(&mut self, alive: Option<Claim>) -> Vec<HubAction> {
        self.exchange(ExchangeMessage::Answer(Answer { node: node(1), alive }))
    }
}

fn is_welcomed(session: SessionId, actions: &[HubAction]) -> bool {
    matches!(to(session, actions).first(), Some(CoordinatorMessage::Welcome(_)))
}

fn asks(actions: &[HubAction]) -> bool {
    exchanged(actions) == [&ExchangeMessage::Ask(node(1))]
}

#[test]
fn of_two_daemons_with_one_identity_the_older_stays_if_it_answers() {
    let mut lab = Lab::new(1);
    let older = lab.settled(1);
    let (newer, told) = lab.rival(SECOND);
    assert_eq!(told, [HubAction::Send { sessions: vec![older], message: CoordinatorMessage::Ping }]);
    assert_eq!(lab.pong(older), [closed(newer, CloseReason::DuplicateIdentity)]);
    lab.world.join(2);
    assert_eq!(to(older, &lab.applied()).len(), 1, "it goes on as before");
    assert_eq!(lab.pong(older), [], "nobody asked");
}

#[test]
fn a_daemon_that_was_killed_gets_in_once_its_old_stream_has_not_answered() {
    let mut lab = Lab::new(1);
    let older = lab.settled(1);
    let (newer, _) = lab.rival(SECOND);
    lab.pass(MeshDuration::from_secs(2));
    assert_eq!(lab.actions(), []);
    lab.pass(MeshDuration::from_secs(1));
    let told = lab.actions();
    assert_eq!(to(older, &told), [CoordinatorMessage::Close(CloseReason::GoElsewhere)]);
    assert!(is_welcomed(newer, &told), "{told:?}");
}

#[test]
fn a_daemon_that_was_killed_gets_in_when_the_end_of_its_old_stream_is_noticed() {
    let mut lab = Lab::new(1);
    let older = lab.settled(1);
    let (newer, _) = lab.rival(SECOND);
    let now = lab.now();
    lab.hub.handle_closed(older, now);
    lab.pass(MeshDuration(250));
    assert!(is_welcomed(newer, &lab.actions()));
}

#[test]
fn a_second_daemon_is_not_heard_while_the_first_is_asked_and_is_heard_when_that_is_dead() {
    let mut lab = Lab::new(1);
    lab.settled(1);
    let (newer, _) = lab.rival(SECOND);
    lab.say(newer, NodeMessage::Presence(presence(1, 9)));
    assert_eq!(lab.actions(), []);
    assert_eq!(lab.hub.presence().record(node(1)), None);
    lab.pass(MeshDuration::from_secs(3));
    lab.actions();
    assert_eq!(lab.hub.presence().record(node(1)), Some(&presence(1, 9)));
}

#[test]
fn of_three_daemons_two_wait_and_one_gets_in() {
    let mut lab = Lab::new(1);
    let oldest = lab.settled(1);
    let (second, _) = lab.rival(SECOND);
    let (third, told) = lab.rival(3);
    assert_eq!(told, [], "the oldest is asked once for all");
    lab.pass(MeshDuration::from_secs(3));
    let told = lab.actions();
    assert_eq!(to(oldest, &told), [CoordinatorMessage::Close(CloseReason::GoElsewhere)]);
    assert!(is_welcomed(second, &told) && to(third, &told).is_empty(), "{told:?}");
    assert_eq!(lab.pong(second), [closed(third, CloseReason::DuplicateIdentity)]);
}

#[test]
fn a_daemon_that_comes_back_while_it_is_asked_has_answered() {
    let mut lab = Lab::new(1);
    let older = lab.settled(1);
    let (newer, _) = lab.rival(SECOND);
    let (again, told) = lab.rival(FIRST);
    assert!(told.contains(&closed(newer, CloseReason::DuplicateIdentity)), "{told:?}");
    assert!(told.contains(&closed(older, CloseReason::GoElsewhere)) && is_welcomed(again, &told), "{told:?}");
}

#[test]
fn a_second_daemon_is_refused_when_the_first_lives_with_another_coordinator() {
    let mut lab = Lab::connected(1);
    let first = lab.claim(60, FIRST);
    lab.elsewhere(first);
    let (newer, told) = lab.rival(SECOND);
    assert!(asks(&told) && to(newer, &told).is_empty(), "{told:?}");
    assert_eq!(lab.answered(Some(first)), [closed(newer, CloseReason::DuplicateIdentity)]);
}

#[test]
fn a_daemon_that_starts_anew_elsewhere_gets_in_when_its_old_stream_is_dead_or_nobody_can_tell() {
    type Settle = fn(&mut Lab) -> Vec<HubAction>;
    let settle: [(&str, Settle); 3] = [
        ("it is dead", |lab| lab.answered(None)),
        ("its coordinator is silent", |lab| {
            lab.pass(MeshDuration::from_secs(4));
            lab.actions()
        }),
        ("it has moved here before", |lab| {
            let claim = lab.claim(60, SECOND);
            lab.answered(Some(claim))
        }),
    ];
    for (why, settle) in settle {
        let mut lab = Lab::connected(1);
        let first = lab.claim(60, FIRST);
        lab.elsewhere(first);
        let (newer, _) = lab.rival(SECOND);
        let told = settle(&mut lab);
        assert!(is_welcomed(newer, &told), "{why}: {told:?}");
    }
    let mut lab = Lab::connected(1);
    let first = lab.claim(60, FIRST);
    lab.elsewhere(first);
    let now = lab.now();
    lab.hub.handle_exchange_closed(OTHER, now);
    let (newer, told) = lab.rival(SECOND);
    assert!(is_welcomed(newer, &told), "its coordinator cannot be asked: {told:?}");
}

#[test]
fn a_daemon_that_moves_between_coordinators_is_no_second_one() {
    let mut lab = Lab::connected(1);
    let claim = lab.claim(60, FIRST);
    lab.elsewhere(claim);
    let (session, told) = lab.rival(FIRST);
    assert!(is_welcomed(session, &told), "{told:?}");
    let online = exchanged(&told);
    assert!(
        matches!(online[..], [ExchangeMessage::Online(new)] if new.nodes == [OnlineNode { id: node(1), claim: Some(claim) }]),
        "and its claim is as old as before: {online:?}"
    );
}

#[test]
fn another_coordinator_is_told_whether_the_session_here_lives() {
    let mut lab = Lab::connected(1);
    let answer = |alive| ExchangeMessage::Answer(Answer { node: node(1), alive });
    assert_eq!(exchanged(&lab.exchange(ExchangeMessage::Ask(node(1)))), [&answer(None)], "there is none");
    let claim = lab.claim(0, FIRST);
    let session = lab.settled(1);
    let told = lab.exchange(ExchangeMessage::Ask(node(1)));
    assert_eq!(told, [HubAction::Send { sessions: vec![session], message: CoordinatorMessage::Ping }]);
    assert_eq!(exchanged(&lab.pong(session)), [&answer(Some(claim))]);
    lab.exchange(ExchangeMessage::Ask(node(1)));
    lab.pass(MeshDuration::from_secs(3));
    let told = lab.actions();
    assert_eq!(to(session, &told), [CoordinatorMessage::Close(CloseReason::GoElsewhere)]);
    assert!(exchanged(&told).contains(&&answer(None)), "{told:?}");
}

#[test]
fn of_two_daemons_that_were_both_welcomed_the_younger_is_closed_and_only_when_the_older_lives() {
    for (older_by, instance, younger) in [(1, SECOND, true), (-1, SECOND, false), (0, 0, true), (0, SECOND, false)] {
        let mut lab = Lab::connected(1);
        let theirs = lab.claim(older_by, instance);
        let session = lab.settled(1);
        assert_eq!(asks(&lab.elsewhere(theirs)), younger, "{theirs:?}");
        assert_eq!(lab.answered(None), [], "theirs is dead");
        let verdict = lab.answered(Some(theirs));
        let refused = verdict.contains(&closed(session, CloseReason::DuplicateIdentity));
        assert_eq!(refused, younger, "{theirs:?}: {verdict:?}");
    }
}

#[test]
fn an_answer_to_a_ping_that_no_session_can_have_had_breaks_the_protocol() {
    let mut lab = Lab::new(1);
    let session = lab.open(1);
    assert_eq!(lab.pong(session), [closed(session, CloseReason::Protocol)]);
}
