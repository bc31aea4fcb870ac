//! How a session begins: who may have one, and what brings its node up to date.

use super::{Hub, Phase, SessionId, Wait, Waiting};
use crate::clock::Now;
use crate::registry::Registry;
use mesh_types::epoch::EpochOrder;
use mesh_types::session::{Claim, CloseReason, Hello, Welcome};
use mesh_types::{CoordinatorId, CoordinatorMessage, NodeId, NodeMessage, Revision};
use std::collections::BTreeSet;

/// What becomes of a hello.
enum Verdict {
    /// The registry does not know the node yet.
    Wait,
    Refuse(CloseReason),
    /// It follows this history and holds this revision of it.
    Resume(Revision),
    /// It holds nothing, or an earlier history.
    Snapshot,
}

impl Hub {
    pub(super) fn handle_hello(&mut self, session: SessionId, hello: Hello, registry: &Registry, now: Now) {
        self.begin(session, hello, BTreeSet::new(), registry, now);
    }

    /// Begins a session, or lets it wait; `asked` are the coordinators that were asked about other daemons before.
    fn begin(
        &mut self,
        session: SessionId,
        hello: Hello,
        asked: BTreeSet<CoordinatorId>,
        registry: &Registry,
        now: Now,
    ) {
        // From here on all live sessions hold what the registry holds, so that this one can join them.
        self.handle_applied(registry, now);
        let Some(node) = self.sessions.get(&session).map(|held| held.node) else { return };
        let resume = match judge(node, &hello, registry) {
            Verdict::Wait => return self.wait(session, hello, Wait::ForLog),
            Verdict::Refuse(reason) => {
                tracing::info!(%node, ?reason, "session refused");
                return self.close(session, reason);
            }
            Verdict::Resume(revision) => Some(revision),
            Verdict::Snapshot => None,
        };
        if let Some(hello) = self.contend(session, node, hello, asked, now) {
            self.admit(session, node, &hello, resume, registry, now);
        }
    }

    /// Looks again at sessions whose node was not known.
    pub(super) fn admit_waiting(&mut self, registry: &Registry, now: Now) {
        let waiting: Vec<SessionId> = self
            .sessions
            .iter()
            .filter(|(_, held)| matches!(&held.phase, Phase::Waiting(waiting) if waiting.is_for_log()))
            .filter(|(_, held)| registry.node(held.node).is_some())
            .map(|(&session, _)| session)
            .collect();
        waiting.into_iter().for_each(|session| self.resume(session, |_| true, registry, now));
    }

    /// Lets a session that waits begin after all, if what it waits for is over.
    pub(super) fn resume(
        &mut self,
        session: SessionId,
        is_over: impl FnOnce(&Wait) -> bool,
        registry: &Registry,
        now: Now,
    ) {
        let Some(held) = self.sessions.get_mut(&session) else { return };
        if !matches!(&held.phase, Phase::Waiting(waiting) if is_over(&waiting.wait)) {
            return;
        }
        let Phase::Waiting(waiting) = std::mem::replace(&mut held.phase, Phase::Opened) else { return };
        let Waiting { hello, presence, wait } = *waiting;
        self.contenders.remove(&session);
        let asked = match wait {
            Wait::ForLog => BTreeSet::new(),
            Wait::ForRivals(rivals) => rivals.into_asked(),
        };
        self.begin(session, hello, asked, registry, now);
        if let Some(signed) = presence {
            self.handle_message(session, NodeMessage::Presence(signed), registry, now);
        }
    }

    pub(super) fn wait(&mut self, session: SessionId, hello: Hello, wait: Wait) {
        if let Some(held) = self.sessions.get_mut(&session) {
            held.phase = Phase::Waiting(Box::new(Waiting { hello, presence: None, wait }));
        }
    }

    fn admit(
        &mut self,
        session: SessionId,
        node: NodeId,
        hello: &Hello,
        resume: Option<Revision>,
        registry: &Registry,
        now: Now,
    ) {
        let claim = self.claim(node, hello.instance, now);
        self.take_place(node);
        let ahead = resume.filter(|&revision| revision > registry.revision());
        self.go_live(session, node, claim, ahead);
        self.welcome(session, node, registry, now);
        match resume {
            Some(_) if ahead.is_some() => {}
            Some(revision) => self.send_changes(&[session], revision, registry),
            None => self.send_snapshot(&[session], registry),
        }
        self.newcomers.insert(session, hello.presence.clone());
    }

    /// A daemon that came back takes the place of its old stream, and has shown that it lives.
    fn take_place(&mut self, node: NodeId) {
        let Some(&older) = self.live.get(&node) else { return };
        self.decide_contest(node, self.live_claim(node));
        // Nobody reads this any more; should it be read after all, it tells to come again.
        self.close(older, CloseReason::GoElsewhere);
    }

    fn go_live(&mut self, session: SessionId, node: NodeId, claim: Claim, ahead: Option<Revision>) {
        if let Some(held) = self.sessions.get_mut(&session) {
            held.phase = Phase::Live { claim, ahead };
            self.live.insert(node, session);
            self.note_online(node, Some(claim));
        }
    }

    fn welcome(&mut self, session: SessionId, node: NodeId, registry: &Registry, now: Now) {
        let Some(epoch) = registry.epoch() else { return };
        let welcome =
            Welcome { coordinator: self.me, epoch, incarnation: self.presence.incarnation(node), tick: self.tick(now) };
        self.send(vec![session], CoordinatorMessage::Welcome(welcome));
    }
}

fn judge(node: NodeId, hello: &Hello, registry: &Registry) -> Verdict {
    let (Some(config), Some(epoch)) = (registry.config(), registry.epoch()) else {
        return Verdict::Refuse(CloseReason::GoElsewhere);
    };
    if hello.mesh != config.mesh {
        return Verdict::Refuse(CloseReason::WrongHistory);
    }
    let order = hello.epoch.map(|held| epoch.compare(held));
    if matches!(order, Some(EpochOrder::Newer | EpochOrder::Split)) {
        return Verdict::Refuse(CloseReason::WrongHistory);
    }
    if registry.removed_node(node).is_some() {
        return Verdict::Refuse(CloseReason::Removed);
    }
    match (registry.node(node), order) {
        // It joined in a history that was restored away: no log entry that is still to come will make it known.
        (None, Some(EpochOrder::Older)) => Verdict::Refuse(CloseReason::WrongHistory),
        (None, _) => Verdict::Wait,
        (Some(_), Some(EpochOrder::Same)) => Verdict::Resume(hello.revision),
        (Some(_), _) => Verdict::Snapshot,
    }
}
