//! One identity, one session: which of two daemons keeps it, also where they are with different coordinators.
//!
//! Whoever holds the older session keeps it, but only while its daemon answers: a daemon that was killed and started
//! anew finds its own stream from before in its way, which nobody has missed yet. So a newcomer with another instance
//! waits, unwelcomed and unheard, while the session in its way is pinged, here or by the coordinator that has it.
//! Without an answer in time that session is dead, and the newcomer gets in. No quorum is asked.
//!
//! Coordinators that could not reach each other may both have welcomed a daemon. When they meet they tell each other
//! their sessions; the one with the younger claim asks whether the other's daemon lives, and closes its own if so.
//! Claims are handed on as they are, so exactly one of the two is the younger.

use super::{Hub, Phase, SessionId, Wait};
use crate::clock::{Monotonic, Now};
use crate::registry::Registry;
use mesh_types::session::{Claim, CloseReason, Hello};
use mesh_types::{Answer, CoordinatorId, CoordinatorMessage, ExchangeMessage, MeshDuration, NodeId, OnlineNode};
use std::collections::BTreeSet;
use std::collections::btree_map::Entry;

/// How long a pinged session may take to answer: a round trip, and TCP repeating itself once or twice on a bad line.
const ANSWER_TIME: MeshDuration = MeshDuration::from_secs(3);
/// How long a newcomer waits for what other coordinators find. A node waits six seconds for its first answer.
const PATIENCE: MeshDuration = MeshDuration::from_secs(4);

/// The coordinators whose session stands in the way of a newcomer.
#[derive(Debug)]
pub(super) struct Rivals {
    /// Whose answer is awaited.
    left: BTreeSet<CoordinatorId>,
    /// All that were asked; no other is asked twice.
    asked: BTreeSet<CoordinatorId>,
    until: Monotonic,
}

/// A live session that was pinged.
#[derive(Debug)]
pub(super) struct Contest {
    until: Monotonic,
    /// Other coordinators that want to know.
    askers: BTreeSet<CoordinatorId>,
}

impl Hub {
    /// Lets a newcomer wait if other daemons with its identity stand in its way; gives its hello back if none does.
    pub(super) fn contend(
        &mut self,
        session: SessionId,
        node: NodeId,
        hello: Hello,
        mut asked: BTreeSet<CoordinatorId>,
        now: Now,
    ) -> Option<Hello> {
        let (me, instance) = (self.me, hello.instance);
        let mut left = self.rivals(node, instance);
        // The one here is gone when it has not answered; should there be one again, it is another.
        left.retain(|rival| *rival == me || !asked.contains(rival));
        if left.is_empty() {
            return Some(hello);
        }
        tracing::info!(%node, rivals = ?left, "another daemon has this identity: is it alive?");
        asked.extend(&left);
        let rivals = Rivals { left: left.clone(), asked, until: now.monotonic + PATIENCE };
        self.wait(session, hello, Wait::ForRivals(rivals));
        self.contenders.insert(session);
        if left.remove(&me) {
            self.ping(node, now.monotonic);
        }
        self.exchange(left.into_iter().collect(), ExchangeMessage::Ask(node));
        None
    }

    /// Since when a daemon has had sessions, wherever they are or were a moment ago.
    pub(super) fn claim(&self, node: NodeId, instance: u64, now: Now) -> Claim {
        let known = self.online.claims(node).map(|(_, claim)| claim).filter(|claim| claim.instance == instance);
        known.min().unwrap_or(Claim { since: now.mesh, instance })
    }

    /// Another coordinator has to know whether the session here is alive.
    pub(super) fn handle_ask(&mut self, from: CoordinatorId, node: NodeId, now: Monotonic) {
        if !self.live.contains_key(&node) {
            return self.exchange(vec![from], ExchangeMessage::Answer(Answer { node, alive: None }));
        }
        self.ping(node, now);
        if let Some(contest) = self.contests.get_mut(&node) {
            contest.askers.insert(from);
        }
    }

    /// A coordinator, this one or another, has found out whether its session is alive.
    pub(super) fn handle_answer(&mut self, from: CoordinatorId, answer: Answer) {
        let Answer { node, alive } = answer;
        let theirs: Vec<SessionId> = self.by_node.get(&node).into_iter().flatten().copied().collect();
        for session in theirs {
            let Some(held) = self.sessions.get_mut(&session) else { continue };
            let is_duplicate = match &mut held.phase {
                Phase::Waiting(waiting) => match &mut waiting.wait {
                    Wait::ForRivals(rivals) => {
                        rivals.left.remove(&from);
                        alive.is_some_and(|alive| alive.instance != waiting.hello.instance)
                    }
                    Wait::ForLog => false,
                },
                Phase::Live { claim, .. } => alive.is_some_and(|alive| yields(claim, &alive)),
                Phase::Opened => false,
            };
            if is_duplicate {
                tracing::warn!(%node, coordinator = %from, "second daemon with the same identity: the older one lives");
                self.close(session, CloseReason::DuplicateIdentity);
            }
        }
    }

    /// Another coordinator says whom it has: asks it about those that stand in the way of a session here.
    pub(super) fn compare_claims(&mut self, from: CoordinatorId, theirs: &[OnlineNode]) {
        for OnlineNode { id, claim } in theirs {
            let Some(own) = self.live_claim(*id) else { continue };
            if claim.is_some_and(|claim| yields(&own, &claim)) {
                self.exchange(vec![from], ExchangeMessage::Ask(*id));
            }
        }
    }

    /// The contest over a node's session here is decided, if there is one.
    pub(super) fn decide_contest(&mut self, node: NodeId, alive: Option<Claim>) {
        let Some(contest) = self.contests.remove(&node) else { return };
        let answer = Answer { node, alive };
        self.exchange(contest.askers.into_iter().collect(), ExchangeMessage::Answer(answer));
        self.handle_answer(self.me, answer);
    }

    /// Sessions that did not answer are dead.
    pub(super) fn end_contests(&mut self, now: Monotonic) {
        let silent: Vec<NodeId> =
            self.contests.iter().filter(|(_, contest)| contest.until <= now).map(|(&node, _)| node).collect();
        for session in silent.iter().filter_map(|node| self.live.get(node).copied()).collect::<Vec<_>>() {
            tracing::info!(session = session.0, "session does not answer: its place is given to another");
            self.close(session, CloseReason::GoElsewhere);
        }
    }

    /// Lets newcomers in that nothing stands in the way of any more.
    pub(super) fn admit_contenders(&mut self, registry: &Registry, now: Now) {
        let contenders: Vec<SessionId> = self.contenders.iter().copied().collect();
        for session in contenders {
            let free = |wait: &Wait| match wait {
                Wait::ForRivals(rivals) => rivals.left.is_empty() || rivals.until <= now.monotonic,
                Wait::ForLog => false,
            };
            self.resume(session, free, registry, now);
        }
    }

    pub(super) fn live_claim(&self, node: NodeId) -> Option<Claim> {
        match self.live.get(&node).and_then(|session| self.sessions.get(session))?.phase {
            Phase::Live { claim, .. } => Some(claim),
            Phase::Opened | Phase::Waiting(_) => None,
        }
    }

    /// Coordinators that have a session with another daemon of this identity and can be asked about it.
    fn rivals(&self, node: NodeId, instance: u64) -> BTreeSet<CoordinatorId> {
        let other = |claim: &Claim| claim.instance != instance;
        let here = self.live_claim(node).filter(other).map(|_| self.me);
        let claims = self.online.claims(node).filter(|(at, claim)| other(claim) && self.exchanges.contains(at));
        here.into_iter().chain(claims.map(|(at, _)| at)).collect()
    }

    fn ping(&mut self, node: NodeId, now: Monotonic) {
        let Some(&session) = self.live.get(&node) else { return };
        if let Entry::Vacant(place) = self.contests.entry(node) {
            place.insert(Contest { until: now + ANSWER_TIME, askers: BTreeSet::new() });
            self.send(vec![session], CoordinatorMessage::Ping);
        }
    }
}

impl Rivals {
    pub(super) fn into_asked(self) -> BTreeSet<CoordinatorId> {
        self.asked
    }
}

/// Whether a session has to go when a daemon with this claim lives.
fn yields(own: &Claim, other: &Claim) -> bool {
    other.instance != own.instance && other < own
}
