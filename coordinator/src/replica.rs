//! What all services of this process share, and the way a write takes from any replica to the leader and back.

use crate::clock::{Clock, Reading};
use crate::health::HealthTable;
use crate::peers::{PeerError, Peers};
use crate::raft::{ProposeError, Raft, View};
use crate::rates::{Act, Rates};
use crate::sessions::Sessions;
use bytes::Bytes;
use ed25519_dalek::SigningKey;
use mesh_coordinator_core::clock::{ClockRefusal, Witness};
use mesh_coordinator_core::{Command, Proposal, Registry, Rejection, Reply};
use mesh_proto::certificate::CertificateError;
use mesh_proto::join_proof::Challenger;
use mesh_proto::tls::{Credentials, Trust};
use mesh_proto::{Authority, Member, v1};
use mesh_types::{CoordinatorId, Level, MeshId, RequestId};
use std::time::Duration;
use tokio::sync::Notify;
use tokio::time::Instant;
use tonic::Code;

/// How long a write may take: an election, twice, and the write itself. Whoever asks waits a little longer.
pub(crate) const WRITE: Duration = Duration::from_secs(6);
/// How long a leader may take with a forwarded write before another is looked for. Asking it again does it once.
const FORWARD: Duration = Duration::from_secs(2);
/// How long a consistent read waits before it is answered with what is there.
const READ: Duration = Duration::from_secs(2);
/// Pause before a write that met no leader is tried again.
const PAUSE: Duration = Duration::from_millis(50);
/// What a replica that does not lead answers to a forwarded write.
pub(crate) const NOT_LEADER: &str = "this replica does not lead";

/// This replica.
pub(crate) struct Replica {
    pub(crate) mesh: MeshId,
    pub(crate) id: CoordinatorId,
    /// The highest level of the log that it understands.
    pub(crate) level: Level,
    pub(crate) raft: Raft,
    pub(crate) peers: Peers,
    pub(crate) health: HealthTable,
    pub(crate) sessions: Sessions,
    pub(crate) clock: Clock,
    pub(crate) authority: Authority,
    pub(crate) key: SigningKey,
    pub(crate) credentials: Credentials,
    pub(crate) trust: Trust,
    pub(crate) challenger: Challenger,
    pub(crate) rates: Rates,
    /// Told when a member says that this replica was removed.
    pub(crate) expelled: Notify,
}

/// Why a write was not done.
#[derive(Debug, thiserror::Error)]
pub(crate) enum WriteError {
    /// The registry refuses it.
    #[error("{0}")]
    Rejected(Rejection),
    /// No leader took it in time. It may still come about.
    #[error(
        "no quorum: the write was not acknowledged within {} s because {reason}; reads and tunnels go on. Bring \
         coordinators back (see `meshctl coordinator list`) and try again: repeating is safe",
        WRITE.as_secs()
    )]
    NoQuorum {
        /// What stood in the way last.
        reason: String,
    },
    /// The leader does not trust its clock.
    #[error("{0}")]
    Clock(ClockRefusal),
    /// The leader refused it for another reason.
    #[error("{}", .0.message())]
    Refused(tonic::Status),
    /// Raft has stopped; the process is about to exit.
    #[error("this coordinator is stopping: {0}")]
    Stopped(String),
}

impl Replica {
    /// The registry as applied here.
    pub(crate) fn view(&self) -> &View {
        self.raft.view()
    }

    /// Refuses what somebody does too often.
    pub(crate) fn ration(&self, act: Act) -> Result<(), tonic::Status> {
        self.rates.take(act, self.clock.now().monotonic)
    }

    /// Writes a command, wherever the leader is, and gives the registry's reply. Safe to repeat with the same request id.
    pub(crate) async fn write(
        &self,
        command: impl Into<Command>,
        request: Option<RequestId>,
    ) -> Result<Reply, WriteError> {
        // Every proposal has an id, so that the retries below, after an uncertain outcome, do it once.
        let request = request.unwrap_or_else(|| RequestId::from_bytes(crate::random::bytes()));
        let proposal = Proposal { request: Some(request), command: command.into() };
        let deadline = Instant::now() + WRITE;
        let mut reason = "no leader is known".to_owned();
        loop {
            let attempt = tokio::time::timeout_at(deadline, self.write_once(&proposal)).await;
            match attempt {
                Ok(Ok(reply)) => return reply.granted().map_err(WriteError::Rejected),
                Ok(Err(Attempt::Final(error))) => return Err(error),
                // It is the leader, or was the last: nobody took its place.
                _ if self.raft.status().leader == Some(self.id) => {
                    reason = "too few coordinators confirm it".to_owned();
                }
                Ok(Err(Attempt::Again(why))) => reason = why,
                Err(_) => {}
            }
            if Instant::now() + PAUSE >= deadline {
                return Err(WriteError::NoQuorum { reason });
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    async fn write_once(&self, proposal: &Proposal) -> Result<Reply, Attempt> {
        let status = self.raft.status();
        match status.leader {
            Some(leader) if leader == self.id => self.write_here(proposal.clone()).await,
            Some(leader) => self.forward(leader, proposal).await,
            None => Err(Attempt::Again("no leader is known".into())),
        }
    }

    /// Refuses what the registry would refuse, without an entry of the log: whoever holds no token must not be able to
    /// fill it. What is judged wrongly, for want of a quorum, the write itself decides.
    pub(crate) async fn precheck(&self, judge: impl Fn(&Registry) -> Result<(), Rejection>) -> Result<(), WriteError> {
        if self.view().read(&judge).is_ok() || !self.catch_up().await {
            return Ok(());
        }
        self.view().read(&judge).map_err(WriteError::Rejected)
    }

    /// On the leader: stamps and writes.
    async fn write_here(&self, proposal: Proposal) -> Result<Reply, Attempt> {
        // Before its clock is asked: that of another is no reason to refuse.
        if !self.raft.status().leads {
            return Err(Attempt::Again(NOT_LEADER.to_owned()));
        }
        self.clock.observe(self.view().read(Registry::time));
        let now = self.clock.read();
        let time =
            self.clock.stamp(&self.witness(now), now).map_err(|refusal| Attempt::Final(WriteError::Clock(refusal)))?;
        let entry = proposal.stamp(self.view().read(Registry::level), time);
        self.raft.propose(&entry).await.map_err(|error| match error {
            ProposeError::NotLeader(_) | ProposeError::Uncertain => Attempt::Again(error.to_string()),
            ProposeError::Stopped(reason) => Attempt::Final(WriteError::Stopped(reason)),
        })
    }

    async fn forward(&self, leader: CoordinatorId, proposal: &Proposal) -> Result<Reply, Attempt> {
        let request = v1::ProposeRequest {
            mesh: Bytes::copy_from_slice(self.mesh.as_bytes()),
            command: proposal.encode().into(),
        };
        let answer = self.peers.call(leader, FORWARD, |mut client| async move { client.propose(request).await }).await;
        match answer {
            Ok(answer) => Reply::decode(&answer.reply).map_err(|error| {
                Attempt::Final(WriteError::Refused(tonic::Status::internal(format!(
                    "reply of coordinator {leader}: {error}"
                ))))
            }),
            Err(PeerError::Status(_, status)) if is_passing(&status) => {
                Err(Attempt::Again(status.message().to_owned()))
            }
            Err(PeerError::Status(_, status)) => Err(Attempt::Final(WriteError::Refused(status))),
            Err(error) => Err(Attempt::Again(error.to_string())),
        }
    }

    /// Takes a forwarded write: writes it if this replica leads, never forwards it on.
    pub(crate) async fn take_forwarded(&self, proposal: Proposal) -> Result<Reply, tonic::Status> {
        let written = tokio::time::timeout(WRITE, self.write_here(proposal)).await;
        match written {
            Ok(Ok(reply)) => Ok(reply),
            Ok(Err(Attempt::Again(_))) => Err(tonic::Status::aborted(NOT_LEADER)),
            Ok(Err(Attempt::Final(error))) => Err(error.into()),
            Err(_) => Err(tonic::Status::unavailable("too few coordinators confirm the write")),
        }
    }

    /// Who can vouch for this replica's clock, as it was read.
    pub(crate) fn witness(&self, now: Reading) -> Witness {
        let voters = self.raft.status().voters;
        if voters.len() <= 1 {
            return Witness::Alone { confirmed: self.clock.is_confirmed() };
        }
        Witness::Voters { offsets: self.health.offsets(&voters, now), voters: voters.len() }
    }

    /// Catches up with everything acknowledged so far, if that is possible soon. False: what is here may be stale.
    pub(crate) async fn catch_up(&self) -> bool {
        let attempt = async {
            let point = match self.raft.status().leader {
                Some(leader) if leader == self.id => self.raft.read_point().await.ok()?,
                Some(leader) => crate::orders::read_point(self, leader).await?,
                None => return None,
            };
            self.raft.wait_applied(point).await;
            Some(())
        };
        matches!(tokio::time::timeout(READ, attempt).await, Ok(Some(())))
    }

    /// Shows a new certificate from now on, if the present one is of another day: whoever looks at it must not suffer
    /// from what the clock said at the start.
    pub(crate) fn renew_own_certificate(&self) -> Result<(), CertificateError> {
        let now = self.clock.told().mesh;
        if !self.credentials.leaf().is_of_another_day(now) {
            return Ok(());
        }
        let key = mesh_proto::certificate::identity_key(&self.key);
        let certificate = self.authority.issue(Member::Coordinator(self.id), key, now)?;
        if let Err(error) = self.credentials.replace(&certificate, self.authority.certificate(), &self.key) {
            tracing::error!(%error, "own certificate not renewed");
        }
        Ok(())
    }
}

enum Attempt {
    Again(String),
    Final(WriteError),
}

/// Whether the answer of a supposed leader only means that there is none yet.
fn is_passing(status: &tonic::Status) -> bool {
    matches!(status.code(), Code::Aborted | Code::Unavailable | Code::Cancelled | Code::DeadlineExceeded)
}
