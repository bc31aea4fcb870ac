//! Who votes and who leads, as far as the leader can change it: one step at a time towards what the registry asks for.

use super::plan::{self, Situation, Step};
use super::types::Types;
use super::{CONTACT, Raft};
use mesh_types::CoordinatorId;
use openraft::async_runtime::watch::WatchReceiver as _;
use openraft::{ChangeMembers, EmptyNode, Instant as _, ServerState};
use std::collections::BTreeSet;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// Entries a learner may be behind and still be promoted.
const CAUGHT_UP: u64 = 64;

impl Raft {
    /// On the leader: takes one step towards the membership that the registry asks for. False if there is none to take.
    pub(crate) async fn step_membership(&self) -> anyhow::Result<bool> {
        let Some(situation) = self.situation() else { return Ok(false) };
        let Some(step) = plan::next_step(&situation) else { return Ok(false) };
        tracing::info!(?step, voters = ?situation.voters, learners = ?situation.learners, "membership");
        match step {
            Step::HandOver(to) => {
                self.transfer_leader(Some(CoordinatorId(to))).await.map_err(anyhow::Error::msg)?;
            }
            Step::AddLearner(id) => drop(self.inner.add_learner(id, EmptyNode {}, false).await?),
            Step::SetVoters(voters) => {
                if !self.answer_now(voters.difference(&situation.voters).copied().collect()).await {
                    return Ok(false);
                }
                drop(self.inner.change_membership(ChangeMembers::ReplaceAllVoters(voters), true).await?);
            }
            Step::RemoveLearners(ids) => {
                drop(self.inner.change_membership(ChangeMembers::RemoveNodes(ids), true).await?);
            }
        }
        Ok(true)
    }

    /// Whether each of these answers a heartbeat sent only now. Who died a moment ago must not be given a vote: the
    /// change might then never be committed, and takes away the quorum that there was.
    async fn answer_now(&self, promoted: BTreeSet<u64>) -> bool {
        let asked = Instant::now();
        if self.inner.trigger().heartbeat().await.is_err() {
            return false;
        }
        let answered = |metrics: &openraft::RaftMetrics<Types>| {
            promoted.iter().all(|id| silence(metrics, *id).is_some_and(|silence| silence < asked.elapsed()))
        };
        self.inner.wait(Some(CONTACT)).metrics(answered, "learners answer").await.is_ok()
    }

    pub(super) fn situation(&self) -> Option<Situation> {
        let metrics = self.inner.metrics();
        let metrics = metrics.borrow_watched();
        let settled = metrics.membership_config.log_id() == metrics.committed_membership_config.log_id();
        if metrics.state != ServerState::Leader || !settled {
            return None;
        }
        let registered: BTreeSet<u64> =
            self.view.read(|registry| registry.coordinators().iter().map(|record| record.id.0).collect());
        let membership = metrics.membership_config.membership();
        let learners: BTreeSet<u64> = membership.learner_ids().collect();
        let last = metrics.last_log_index.map_or(0, |index| index + 1);
        let matched = |id: &u64| {
            let at = metrics.replication.as_ref().and_then(|peers| peers.get(id)).and_then(|at| at.as_ref());
            at.is_some_and(|at| at.index() + 1 + CAUGHT_UP >= last)
        };
        let answering: BTreeSet<u64> =
            membership.nodes().map(|(id, _)| *id).filter(|id| answers(&metrics, *id)).collect();
        let caught_up = learners.iter().filter(|id| matched(id) && answering.contains(id)).copied().collect();
        // An unfounded registry names nobody: the first command is still on its way.
        (!registered.is_empty()).then(|| Situation {
            leader: self.id,
            registered,
            voters: membership.voter_ids().collect(),
            learners,
            caught_up,
            answering,
        })
    }

    /// Whether this replica may stand for election. True if that changes anything.
    pub(crate) fn stand_for_election(&self, may: bool) -> bool {
        let changed = self.stands.swap(may, Ordering::Relaxed) != may;
        if changed {
            self.inner.runtime_config().elect(may);
        }
        changed
    }

    /// On the leader: hands leadership to `to`, or to any other voter that is up to date. Gives the new leader.
    pub(crate) async fn transfer_leader(&self, to: Option<CoordinatorId>) -> Result<CoordinatorId, String> {
        let heir = {
            let metrics = self.inner.metrics();
            let metrics = metrics.borrow_watched();
            let progress = |id: &u64| metrics.replication.as_ref().and_then(|peers| peers.get(id).cloned()).flatten();
            let others = metrics.membership_config.voter_ids().filter(|id| *id != self.id);
            // From the moment it hands over, a leader takes no writes: an heir that is gone would cost an election.
            let others = others.filter(|id| to.is_none_or(|to| to.0 == *id) && answers(&metrics, *id));
            others.max_by_key(|id| progress(id))
        };
        let heir = heir.ok_or_else(|| match to {
            Some(to) if to.0 == self.id => format!("coordinator {to} leads already"),
            Some(to) if !self.status().voters.contains(&to) => {
                format!("coordinator {to} is not a voter: only voters lead")
            }
            Some(to) => format!("coordinator {to} does not answer: it cannot take over"),
            None => "there is no other voter that answers: add coordinators, or bring them back, first".to_owned(),
        })?;
        self.inner.trigger().transfer_leader(heir).await.map_err(|error| error.to_string())?;
        let moved =
            |metrics: &openraft::RaftMetrics<Types>| metrics.current_leader.is_some_and(|leader| leader != self.id);
        let wait = self.inner.wait(Some(CONTACT));
        let metrics = wait
            .metrics(moved, "leadership moves")
            .await
            .map_err(|_| format!("coordinator {heir} did not take over within {CONTACT:?}"))?;
        Ok(CoordinatorId(metrics.current_leader.unwrap_or(heir)))
    }
}

/// Whether a replica answered this leader lately.
pub(super) fn answers(metrics: &openraft::RaftMetrics<Types>, id: u64) -> bool {
    silence(metrics, id).is_some_and(|silence| silence < CONTACT)
}

/// The time since the last message was sent to a replica that it answered.
fn silence(metrics: &openraft::RaftMetrics<Types>, id: u64) -> Option<Duration> {
    let acked = metrics.heartbeat.as_ref().and_then(|peers| peers.get(&id)).and_then(|at| at.as_ref());
    acked.map(|at| at.elapsed())
}
