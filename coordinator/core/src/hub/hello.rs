//! How a session begins: who may have one, and what brings its node up to date.

use super::{Hub, Phase, SessionId};
use crate::clock::Now;
use crate::registry::Registry;
use mesh_types::epoch::EpochOrder;
use mesh_types::session::{CloseReason, Hello, Welcome};
use mesh_types::{CoordinatorMessage, NodeId, Revision};

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
        // From here on all live sessions hold what the registry holds, so that this one can join them.
        self.handle_applied(registry, now);
        let Some(node) = self.sessions.get(&session).map(|held| held.node) else { return };
        match judge(node, &hello, registry) {
            Verdict::Wait => self.wait(session, hello),
            Verdict::Refuse(reason) => {
                tracing::info!(%node, ?reason, "session refused");
                self.close(session, reason);
            }
            Verdict::Resume(revision) => self.admit(session, node, &hello, Some(revision), registry, now),
            Verdict::Snapshot => self.admit(session, node, &hello, None, registry, now),
        }
    }

    /// Looks again at sessions whose node was not known.
    pub(super) fn admit_waiting(&mut self, registry: &Registry, now: Now) {
        let waiting: Vec<SessionId> = self
            .sessions
            .iter()
            .filter(|(_, held)| matches!(held.phase, Phase::Waiting { .. }) && registry.node(held.node).is_some())
            .map(|(&session, _)| session)
            .collect();
        for session in waiting {
            let Some(held) = self.sessions.get_mut(&session) else { continue };
            if let Phase::Waiting { hello, presence } = std::mem::replace(&mut held.phase, Phase::Opened) {
                self.handle_hello(session, hello, registry, now);
                if let Some(signed) = presence {
                    self.handle_message(session, mesh_types::NodeMessage::Presence(signed), registry, now);
                }
            }
        }
    }

    fn wait(&mut self, session: SessionId, hello: Hello) {
        if let Some(held) = self.sessions.get_mut(&session) {
            held.phase = Phase::Waiting { hello, presence: None };
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
        if !self.yield_to(session, node, hello.instance) {
            return;
        }
        let ahead = resume.filter(|&revision| revision > registry.revision());
        self.go_live(session, node, hello.instance, ahead);
        self.welcome(session, node, registry, now);
        match resume {
            Some(_) if ahead.is_some() => {}
            Some(revision) => self.send_changes(&[session], revision, registry),
            None => self.send_snapshot(&[session], registry),
        }
        self.newcomers.insert(session);
    }

    /// One identity, one session: a daemon that came back takes the place of its old stream, a second daemon with a
    /// copy of the identity does not. Says whether the new session may go on.
    fn yield_to(&mut self, session: SessionId, node: NodeId, instance: u64) -> bool {
        let Some(&older) = self.live.get(&node) else { return true };
        let same = matches!(self.sessions.get(&older), Some(held) if held.is_instance(instance));
        if !same {
            tracing::warn!(%node, "second daemon with the same identity refused");
            self.close(session, CloseReason::DuplicateIdentity);
            return false;
        }
        // Nobody reads this any more; should it be read after all, it tells to come again.
        self.close(older, CloseReason::GoElsewhere);
        true
    }

    fn go_live(&mut self, session: SessionId, node: NodeId, instance: u64, ahead: Option<Revision>) {
        if let Some(held) = self.sessions.get_mut(&session) {
            held.phase = Phase::Live { instance, ahead };
            self.live.insert(node, session);
            self.note_online(node, true);
        }
    }

    fn welcome(&mut self, session: SessionId, node: NodeId, registry: &Registry, now: Now) {
        let Some(epoch) = registry.epoch() else { return };
        let welcome =
            Welcome { coordinator: self.me, epoch, incarnation: self.presence.incarnation(node), tick: self.tick(now) };
        self.send(vec![session], CoordinatorMessage::Welcome(welcome));
    }
}

impl super::Session {
    fn is_instance(&self, other: u64) -> bool {
        matches!(self.phase, Phase::Live { instance, .. } if instance == other)
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
