//! How the other coordinators are: asked once a second, for their clocks, their progress and whether they answer.
//!
//! A replica whose clock is far off the others' hands leadership over and does not stand for election.

use crate::clock::Reading;
use crate::peers::PeerError;
use crate::replica::Replica;
use mesh_coordinator_core::clock::{Monotonic, differs, is_far_off};
use mesh_proto::v1;
use mesh_types::{CoordinatorId, Level, MeshDuration, MeshTime};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

const INTERVAL: Duration = Duration::from_secs(1);
const ANSWER: Duration = Duration::from_secs(2);
/// An answer older than this says nothing any more.
const RECENT: Duration = Duration::from_secs(5);

/// What one coordinator last said of itself.
#[derive(Clone, Debug)]
pub(crate) struct Condition {
    /// Its clock, and ours that only goes forward when it was read.
    clock: (MeshTime, Monotonic),
    /// One more than the index of its last applied entry.
    pub(crate) applied: u64,
    /// The highest level of the log that it understands.
    pub(crate) level: Level,
    /// Its version.
    pub(crate) software: String,
    asked: Instant,
}

impl Condition {
    /// Milliseconds that its clock is ahead of ours now: ours may have been set since it answered.
    pub(crate) fn offset(&self, now: Reading) -> i64 {
        let theirs = self.clock.0 + now.monotonic.since(self.clock.1);
        let offset = i128::from(theirs.0) - i128::from(now.wall.0);
        i64::try_from(offset).unwrap_or(if offset > 0 { i64::MAX } else { i64::MIN })
    }
}

/// The last answers; clones share them.
#[derive(Clone, Default, Debug)]
pub(crate) struct HealthTable(Arc<Mutex<BTreeMap<CoordinatorId, Condition>>>);

impl HealthTable {
    /// What a coordinator said, if that was lately.
    pub(crate) fn recent(&self, id: CoordinatorId) -> Option<Condition> {
        self.table().get(&id).filter(|condition| condition.asked.elapsed() < RECENT).cloned()
    }

    /// How far the clocks of these coordinators are ahead of ours, of those that answered lately.
    pub(crate) fn offsets(&self, of: &BTreeSet<CoordinatorId>, now: Reading) -> Vec<i64> {
        of.iter().filter_map(|id| self.recent(*id)).map(|condition| condition.offset(now)).collect()
    }

    fn table(&self) -> MutexGuard<'_, BTreeMap<CoordinatorId, Condition>> {
        self.0.lock().expect("no code panics while it holds the table")
    }
}

/// Asks all others, for ever.
pub(crate) async fn watch(replica: Arc<Replica>) {
    loop {
        let asked = replica.peers.ids().into_iter().map(|id| ask(&replica, id));
        futures::future::join_all(asked).await;
        judge_own_clock(&replica).await;
        let now = replica.clock.read();
        replica.clock.confirm(&replica.witness(now), now);
        // By the clock as it is judged now; it needs nobody else.
        if let Err(error) = replica.renew_own_certificate() {
            tracing::error!(%error, "own certificate not renewed");
        }
        tokio::time::sleep(INTERVAL).await;
    }
}

async fn ask(replica: &Replica, id: CoordinatorId) {
    let (begun, asked) = (Instant::now(), replica.clock.read().monotonic);
    let answer =
        replica.peers.call(id, ANSWER, |mut client| async move { client.health(v1::HealthRequest {}).await }).await;
    let answer = match answer {
        Ok(answer) => answer,
        Err(PeerError::Status(_, status)) if status.message() == expelled(replica.id) => {
            return replica.expelled.notify_one();
        }
        Err(_) => return,
    };
    // The other read its clock about halfway between question and answer.
    let half = MeshDuration(u64::try_from(begun.elapsed().as_millis() / 2).unwrap_or(0));
    let condition = Condition {
        clock: (MeshTime(answer.time), asked + half),
        applied: answer.applied,
        level: Level(answer.level),
        software: answer.software.chars().take(mesh_types::limits::MAX_SOFTWARE).collect(),
        asked: begun,
    };
    replica.health.table().insert(id, condition);
}

/// What a member answers to a coordinator that was removed. Ids are never used again, so it cannot be out of date.
pub(crate) fn expelled(id: CoordinatorId) -> String {
    format!("coordinator {id} was removed from the mesh")
}

async fn judge_own_clock(replica: &Replica) {
    let status = replica.raft.status();
    let offsets = replica.health.offsets(&status.voters, replica.clock.read());
    let far_off = is_far_off(&offsets);
    let votes = status.voters.contains(&replica.id);
    replica.clock.doubt(far_off || !votes && differs(&offsets));
    if replica.raft.stand_for_election(!far_off) {
        if far_off {
            tracing::error!(
                ?offsets,
                "clock far off the other coordinators': this replica does not lead until it is right"
            );
        } else {
            tracing::info!("clock agrees with the other coordinators'");
        }
    }
    if far_off
        && status.leads
        && let Err(error) = replica.raft.transfer_leader(None).await
    {
        tracing::warn!(%error, "leadership not handed over");
    }
}
