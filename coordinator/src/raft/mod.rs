//! Raft, hidden behind one facade: start, propose, read at a known point, change who is a member.
//!
//! Nothing outside this module names openraft. A [`Raft`] lives as long as the process; when its store fails it stops
//! for good, and [`Raft::failed`] says why, so that the process exits and is restarted.

mod disk;
mod incoming;
mod log;
mod machine;
mod membership;
mod network;
mod offline;
mod plan;
mod record;
mod types;

pub(crate) use disk::Disk;
pub(crate) use machine::View;
pub(crate) use network::{CallError, Kind, Transport};

use bytes::Bytes;
use incoming::Incoming;
use log::LogStore;
use machine::Machine;
#[cfg(test)]
use mesh_coordinator_core::Registry;
use mesh_coordinator_core::{Entry, Reply};
use mesh_types::{CoordinatorId, Level, MeshId};
use network::{Append, ChunkReply, Network, QuorumWatch, SnapshotChunk};
use openraft::async_runtime::watch::WatchReceiver as _;
use openraft::errors::{ClientWriteError, RaftError};
use openraft::metrics::RaftServerMetrics;
use openraft::raft::SnapshotResponse;
use openraft::type_config::alias::WatchReceiverOf;
use openraft::{Config, EmptyNode, Instant as _, ReadPolicy, ServerState, SnapshotPolicy};
use record::{decode, encode};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use types::{EntryBytes, Snapshot, Types};

/// Without word from a leader for this long a replica is stale.
const CONTACT: Duration = Duration::from_secs(3);
/// Entries after which the log is compacted into a snapshot, and entries kept behind it for replicas a little behind.
const SNAPSHOT_EVERY: u64 = 4_096;
const KEEP: u64 = 1_024;

/// What changed since it was last asked; keep one, since a new one has seen nothing yet and answers at once.
pub(crate) struct Changes(WatchReceiverOf<Types, RaftServerMetrics<Types>>);

impl Changes {
    /// Waits for the next change. Can be dropped and asked again without losing one.
    pub(crate) async fn next(&mut self) {
        if self.0.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

/// How fast Raft reacts.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Timing {
    /// The shortest time without a leader after which a replica stands for election; the longest is twice that.
    pub election: Duration,
    /// How often a leader says that it is there.
    pub heartbeat: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        Self { election: Duration::from_millis(500), heartbeat: Duration::from_millis(100) }
    }
}

/// Why a proposal has no reply.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ProposeError {
    /// Another replica leads, or none.
    #[error("this replica does not lead")]
    NotLeader(Option<CoordinatorId>),
    /// The leader changed meanwhile: the entry may or may not be in the log. Ask again with the same request id.
    #[error("the leader changed while the entry was being written")]
    Uncertain,
    /// Raft has stopped.
    #[error("raft has stopped: {0}")]
    Stopped(String),
}

/// Who leads and who is a member, as this replica knows it.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct Status {
    /// Whether this replica leads.
    pub(crate) leads: bool,
    /// Who leads.
    pub(crate) leader: Option<CoordinatorId>,
    /// Who votes.
    pub(crate) voters: BTreeSet<CoordinatorId>,
    /// Who is a member and does not vote.
    pub(crate) learners: BTreeSet<CoordinatorId>,
    /// Whether there was word from a leader, or a quorum, within the last seconds.
    pub(crate) fresh: bool,
    /// One more than the index of the last applied entry.
    pub(crate) applied: u64,
}

impl Status {
    /// Whether Raft counts on a replica, as a voter or a learner.
    pub(crate) fn is_member(&self, id: CoordinatorId) -> bool {
        self.voters.contains(&id) || self.learners.contains(&id)
    }
}

/// The running Raft; clones share it.
#[derive(Clone)]
pub(crate) struct Raft {
    id: u64,
    inner: openraft::Raft<Types, Machine>,
    view: View,
    heard: Arc<Mutex<Option<Instant>>>,
    incoming: Arc<Mutex<Incoming>>,
    stands: Arc<AtomicBool>,
}

/// Whose store it is: a store of another mesh or replica is never mixed in.
#[derive(Serialize, Deserialize, PartialEq, Eq, Debug, Clone, Copy)]
pub(crate) struct Owner {
    /// The mesh.
    pub(crate) mesh: MeshId,
    /// The replica.
    pub(crate) coordinator: CoordinatorId,
}

impl Disk {
    /// Whose store this is; none if it is new.
    pub(crate) fn owner(&self) -> io::Result<Option<Owner>> {
        self.read(disk::key::OWNER)?.map(|bytes| decode("owner of the Raft store", &bytes)).transpose()
    }

    /// Whether Raft never ran on this store, so that nothing is lost with it.
    pub(crate) fn is_unused(&self) -> io::Result<bool> {
        Ok(self.read(disk::key::VOTE)?.is_none()
            && self.read(disk::key::SNAPSHOT)?.is_none()
            && self.read_log()?.is_empty())
    }

    /// Marks a new store.
    pub(crate) async fn set_owner(&self, owner: Owner) -> io::Result<()> {
        self.write_durably(disk::Write::Owner(encode(&owner))).await
    }
}

impl Raft {
    /// Starts Raft on `disk` as replica `id`, which understands the log up to a level. It takes part from now on, but knows no other replica before it was
    /// [initialised](Self::initialize) or a leader calls.
    pub(crate) async fn start<T: Transport>(
        id: CoordinatorId,
        timing: Timing,
        understood: Level,
        disk: Disk,
        transport: T,
    ) -> anyhow::Result<Self> {
        let millis = |span: Duration| u64::try_from(span.as_millis()).unwrap_or(u64::MAX);
        let config = Config {
            cluster_name: "mesh".into(),
            election_timeout_min: millis(timing.election),
            election_timeout_max: millis(timing.election).saturating_mul(2),
            heartbeat_interval: millis(timing.heartbeat),
            enable_pre_vote: Some(true),
            // The commit index is written lazily: a leader that came back as one would answer reads from before it.
            enable_leader_restore: Some(false),
            // A leader that has lost its quorum falls silent in turns, so that who hears it alone is free to elect
            // another: no shorter than its lease and an election.
            quorum_loss_probe_interval: Some(millis(timing.election).saturating_mul(4)),
            snapshot_policy: SnapshotPolicy::LogsSinceLast(SNAPSHOT_EVERY),
            max_in_snapshot_log_to_keep: KEEP,
            purge_batch_size: 256,
            ..Config::default()
        };
        let config = Arc::new(config.validate()?);
        let log = LogStore::load(disk.clone())?;
        let (machine, view) = Machine::new(disk, understood);
        let quorum = QuorumWatch::default();
        let network = Network { id: id.0, transport, quorum: quorum.clone() };
        let inner = openraft::Raft::new(id.0, config, network, log, machine).await?;
        // Nobody else sets it.
        let _ = quorum.0.set(inner.metrics());
        if inner.metrics().borrow_watched().membership_config.voter_ids().eq([id.0]) {
            // There is nobody whose election it could disturb.
            inner.trigger().elect(false).await?;
        }
        Ok(Self {
            id: id.0,
            inner,
            view,
            heard: Arc::default(),
            incoming: Arc::default(),
            stands: Arc::new(AtomicBool::new(true)),
        })
    }

    /// Makes this replica the only voter of a new cluster. Does nothing if the log is not empty.
    pub(crate) async fn initialize(&self) -> anyhow::Result<()> {
        if !self.inner.is_initialized().await? {
            self.inner.initialize(BTreeMap::from([(self.id, EmptyNode {})])).await?;
        }
        Ok(())
    }

    /// The registry as applied here.
    pub(crate) fn view(&self) -> &View {
        &self.view
    }

    /// Writes an entry and waits until it is committed and applied. Unbounded in time without a quorum.
    pub(crate) async fn propose(&self, entry: &Entry) -> Result<Reply, ProposeError> {
        let written = self.inner.client_write(EntryBytes(Bytes::from(entry.encode()))).await;
        match written {
            Ok(response) => response.data.ok_or(ProposeError::Uncertain),
            Err(RaftError::APIError(ClientWriteError::ForwardToLeader(to))) => {
                Err(ProposeError::NotLeader(to.leader_id.map(CoordinatorId)))
            }
            Err(RaftError::APIError(_)) => Err(ProposeError::Uncertain),
            Err(RaftError::Fatal(fatal)) => Err(ProposeError::Stopped(fatal.to_string())),
        }
    }

    /// On the leader: the point in the log that includes every write acknowledged so far, confirmed by a quorum.
    pub(crate) async fn read_point(&self) -> Result<u64, ProposeError> {
        match self.inner.get_read_log_id(ReadPolicy::ReadIndex).await {
            Ok((point, _)) => Ok(point.log_id().index() + 1),
            Err(RaftError::APIError(_)) => Err(ProposeError::NotLeader(self.status().leader)),
            Err(RaftError::Fatal(fatal)) => Err(ProposeError::Stopped(fatal.to_string())),
        }
    }

    /// Waits until everything before `point` is applied here. Unbounded in time.
    pub(crate) async fn wait_applied(&self, point: u64) {
        // The sender lives in Raft; when Raft stops, the process does.
        let _ = self.view.applied().wait_for(|applied| *applied >= point).await;
    }

    /// Who leads and who is a member.
    pub(crate) fn status(&self) -> Status {
        let metrics = self.inner.metrics();
        let metrics = metrics.borrow_watched();
        let membership = metrics.membership_config.membership();
        let leads = metrics.state == ServerState::Leader;
        let voters: BTreeSet<_> = membership.voter_ids().map(CoordinatorId).collect();
        let fresh = if leads {
            quorum_age(&metrics).is_some_and(|age| age < CONTACT)
        } else {
            let heard = self.heard.lock().expect("no code panics while it holds the lock");
            heard.is_some_and(|at| at.elapsed() < CONTACT)
        };
        Status {
            leads,
            leader: metrics.current_leader.map(CoordinatorId),
            voters,
            learners: membership.learner_ids().map(CoordinatorId).collect(),
            fresh,
            // Raft's own figure comes later than the answer to a write.
            applied: self.view.position(),
        }
    }

    /// Tells of changes of what [`status`](Self::status) shows, other than the passing of time.
    pub(crate) fn changes(&self) -> Changes {
        Changes(self.inner.server_metrics())
    }

    /// Waits until Raft has failed, and says why.
    pub(crate) async fn failed(&self) -> String {
        let mut metrics = self.inner.metrics();
        loop {
            if let Err(fatal) = &metrics.borrow_and_update().running_state {
                return fatal.to_string();
            }
            if metrics.changed().await.is_err() {
                return "raft has stopped".into();
            }
        }
    }

    /// Takes one message of another replica and gives its answer.
    pub(crate) async fn handle(&self, kind: Kind, body: &[u8]) -> Result<Vec<u8>, String> {
        let bad = |error: io::Error| error.to_string();
        match kind {
            Kind::Append => {
                let Append { request, quorum_age } = decode("entries", body).map_err(bad)?;
                let answer = self.inner.append_entries(request).await.map_err(|error| error.to_string())?;
                if !matches!(answer, openraft::raft::AppendEntriesResponse::HigherVote(_)) {
                    self.hear(quorum_age);
                }
                Ok(encode(&answer))
            }
            Kind::Vote => {
                let answer = self.inner.vote(decode("vote request", body).map_err(bad)?).await;
                answer.map(|answer| encode(&answer)).map_err(|error| error.to_string())
            }
            Kind::PreVote => {
                let answer = self.inner.pre_vote(decode("vote request", body).map_err(bad)?).await;
                answer.map(|answer| encode(&answer)).map_err(|error| error.to_string())
            }
            Kind::TransferLeader => {
                let request = decode("leadership transfer", body).map_err(bad)?;
                let answer = self.inner.handle_transfer_leader(request).await;
                answer.map(|answer| encode(&answer)).map_err(|error| error.to_string())
            }
            Kind::SnapshotChunk => self.handle_chunk(decode("snapshot chunk", body).map_err(bad)?).await,
        }
    }

    /// Notes word from a leader that a quorum answered so many milliseconds ago.
    fn hear(&self, quorum_age: Option<u64>) {
        let at = quorum_age.and_then(|age| Instant::now().checked_sub(Duration::from_millis(age)));
        let mut heard = self.heard.lock().expect("no code panics while it holds the lock");
        *heard = (*heard).max(at);
    }

    async fn handle_chunk(&self, chunk: SnapshotChunk) -> Result<Vec<u8>, String> {
        let content = {
            let mut incoming = self.incoming.lock().expect("no code panics while it holds the lock");
            if !incoming.take(&chunk) {
                return Ok(encode(&ChunkReply::Restart));
            }
            if !chunk.last {
                return Ok(encode(&ChunkReply::More));
            }
            std::mem::take(&mut *incoming).content
        };
        let snapshot = Snapshot { meta: chunk.meta, snapshot: Bytes::from(content) };
        let response: SnapshotResponse<Types> =
            self.inner.install_full_snapshot(chunk.vote, snapshot).await.map_err(|error| error.to_string())?;
        Ok(encode(&ChunkReply::Done(response)))
    }

    /// Writes a snapshot now and waits until it is durable.
    #[cfg(test)]
    pub(crate) async fn snapshot(&self) {
        let applied = self.inner.metrics().borrow_watched().last_applied;
        self.inner.trigger().snapshot().await.unwrap();
        let wait = self.inner.wait(Some(CONTACT));
        wait.metrics(|metrics| metrics.snapshot >= applied, "snapshot is built").await.unwrap();
    }

    /// Stops Raft; what is acknowledged is on disk already.
    pub(crate) async fn shutdown(&self) {
        if let Err(error) = self.inner.shutdown().await {
            tracing::warn!(%error, "raft did not stop cleanly");
        }
    }
}

/// How long ago a quorum last answered this leader; none if it does not lead, or has had no answer yet.
fn quorum_age(metrics: &openraft::RaftMetrics<Types>) -> Option<Duration> {
    if metrics.state != ServerState::Leader {
        return None;
    }
    if metrics.membership_config.voter_ids().eq([metrics.id]) {
        return Some(Duration::ZERO);
    }
    metrics.last_quorum_acked.as_ref().map(|at| at.elapsed())
}

#[cfg(test)]
mod tests;
