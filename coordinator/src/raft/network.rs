//! Raft's messages between replicas: how they are encoded, sent and received.
//!
//! A message is one format byte and the CBOR of openraft's own type; its kind travels beside it. A snapshot goes in
//! chunks, well under gRPC's message limit. How bytes reach the other replica is a [`Transport`]'s business.

use super::record::{decode, encode};
use super::types::{Snapshot, SnapshotMeta, Types, Vote};
use bytes::Bytes;
use openraft::async_runtime::watch::WatchReceiver as _;
use openraft::errors::{NetworkError, RPCError, ReplicationClosed, StreamingError, Timeout, Unreachable};
use openraft::network::RPCOption;
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, TransferLeaderRequest, TransferLeaderResponse,
    VoteRequest, VoteResponse,
};
use openraft::type_config::alias::WatchReceiverOf;
use openraft::{OptionalSend, RPCTypes, RaftMetrics, RaftNetworkFactory, RaftNetworkV2};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::future::Future;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

/// What a Raft message is; the numbers are on the wire.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Kind {
    Append = 1,
    Vote = 2,
    PreVote = 3,
    SnapshotChunk = 4,
    TransferLeader = 5,
}

impl Kind {
    /// The kind of a wire number.
    pub(crate) fn from_code(code: u32) -> Option<Self> {
        [Self::Append, Self::Vote, Self::PreVote, Self::SnapshotChunk, Self::TransferLeader]
            .into_iter()
            .find(|kind| *kind as u32 == code)
    }
}

/// Why a call to another replica gave no answer.
#[derive(Debug, Clone, thiserror::Error)]
pub(crate) enum CallError {
    /// No way there now.
    #[error("unreachable: {0}")]
    Unreachable(String),
    /// No answer in time.
    #[error("no answer in time")]
    Timeout,
    /// It answered, but not with what was asked for.
    #[error("{0}")]
    Refused(String),
}

/// Carries one message to a replica and its answer back.
pub(crate) trait Transport: Clone + Send + Sync + 'static {
    /// Sends `body` to replica `to` and waits at most `timeout` for the answer.
    fn call(
        &self,
        to: u64,
        kind: Kind,
        body: Vec<u8>,
        timeout: Duration,
    ) -> impl Future<Output = Result<Bytes, CallError>> + Send;
}

/// Longest wait for an answer to entries or votes. Longer than a heartbeat interval, since the answer comes after a
/// flush of the other's disk; a replica that hangs longer is as good as gone.
const ANSWER: Duration = Duration::from_millis(1_500);
/// Longest wait for an answer to one chunk, the last of which is answered when the snapshot is durable.
const CHUNK_ANSWER: Duration = Duration::from_secs(20);
/// Bytes of one chunk: a quarter of gRPC's default limit.
const CHUNK: usize = 1 << 20;

/// Entries, and how long ago a quorum answered who sends them: a leader that is cut off with a minority goes on calling,
/// and its word says nothing of what the others have decided since.
#[derive(Serialize, Deserialize)]
pub(super) struct Append {
    pub(super) request: AppendEntriesRequest<Types>,
    /// Milliseconds; none before a quorum has answered once.
    pub(super) quorum_age: Option<u64>,
}

/// Tells how long ago a quorum answered this replica as the leader; set once Raft runs.
#[derive(Clone, Default)]
pub(super) struct QuorumWatch(pub(super) Arc<OnceLock<WatchReceiverOf<Types, RaftMetrics<Types>>>>);

impl QuorumWatch {
    fn age(&self) -> Option<u64> {
        let age = super::quorum_age(&self.0.get()?.borrow_watched())?;
        u64::try_from(age.as_millis()).ok()
    }
}

/// One piece of a snapshot.
#[derive(Serialize, Deserialize)]
pub(super) struct SnapshotChunk {
    pub(super) vote: Vote,
    pub(super) meta: SnapshotMeta,
    pub(super) offset: u64,
    pub(super) last: bool,
    #[serde(with = "serde_bytes")]
    pub(super) data: Vec<u8>,
}

/// The answer to a chunk.
#[derive(Serialize, Deserialize)]
pub(super) enum ChunkReply {
    /// Go on.
    More,
    /// The snapshot is installed, or refused for a higher vote.
    Done(SnapshotResponse<Types>),
    /// Chunks came out of order: start again.
    Restart,
}

/// Makes a [`Peer`] for every other replica.
pub(super) struct Network<T> {
    pub(super) id: u64,
    pub(super) transport: T,
    pub(super) quorum: QuorumWatch,
}

impl<T: Transport> RaftNetworkFactory<Types> for Network<T> {
    type Network = Peer<T>;

    async fn new_client(&mut self, target: u64, _node: &openraft::EmptyNode) -> Peer<T> {
        Peer { id: self.id, target, transport: self.transport.clone(), quorum: self.quorum.clone() }
    }
}

/// Another replica, seen from Raft.
pub(super) struct Peer<T> {
    id: u64,
    target: u64,
    transport: T,
    quorum: QuorumWatch,
}

impl<T: Transport> Peer<T> {
    async fn ask<Q: Serialize, A: DeserializeOwned>(
        &self,
        kind: Kind,
        question: &Q,
        timeout: Duration,
    ) -> Result<A, RPCError<Types>> {
        let answer =
            self.transport.call(self.target, kind, encode(question), timeout).await.map_err(|error| match error {
                CallError::Unreachable(reason) => RPCError::Unreachable(Unreachable::from_string(reason)),
                CallError::Refused(reason) => RPCError::Network(NetworkError::from_string(reason)),
                CallError::Timeout => {
                    let action = match kind {
                        Kind::Append => RPCTypes::AppendEntries,
                        Kind::Vote | Kind::PreVote => RPCTypes::Vote,
                        Kind::SnapshotChunk => RPCTypes::InstallSnapshot,
                        Kind::TransferLeader => RPCTypes::TransferLeader,
                    };
                    RPCError::Timeout(Timeout { action, id: self.id, target: self.target, timeout })
                }
            })?;
        decode("answer of another replica", &answer).map_err(|error| RPCError::Network(NetworkError::new(&error)))
    }

    async fn send_snapshot(
        &self,
        vote: Vote,
        snapshot: Snapshot,
    ) -> Result<SnapshotResponse<Types>, StreamingError<Types>> {
        let content = snapshot.snapshot;
        let mut offset = 0;
        loop {
            let end = content.len().min(offset + CHUNK);
            let chunk = SnapshotChunk {
                vote,
                meta: snapshot.meta.clone(),
                offset: offset as u64,
                last: end == content.len(),
                data: content[offset..end].to_vec(),
            };
            match self.ask(Kind::SnapshotChunk, &chunk, CHUNK_ANSWER).await? {
                ChunkReply::More if !chunk.last => offset = end,
                ChunkReply::Done(response) => return Ok(response),
                ChunkReply::More | ChunkReply::Restart => {
                    return Err(StreamingError::Network(NetworkError::from_string(
                        "the snapshot has to be sent again",
                    )));
                }
            }
        }
    }
}

impl<T: Transport> RaftNetworkV2<Types> for Peer<T> {
    type SnapshotData = Bytes;

    async fn append_entries(
        &mut self,
        request: AppendEntriesRequest<Types>,
        _option: RPCOption,
    ) -> Result<AppendEntriesResponse<Types>, RPCError<Types>> {
        self.ask(Kind::Append, &Append { request, quorum_age: self.quorum.age() }, ANSWER).await
    }

    async fn vote(
        &mut self,
        request: VoteRequest<Types>,
        option: RPCOption,
    ) -> Result<VoteResponse<Types>, RPCError<Types>> {
        self.ask(Kind::Vote, &request, option.soft_ttl()).await
    }

    async fn pre_vote(
        &mut self,
        request: VoteRequest<Types>,
        option: RPCOption,
    ) -> Result<VoteResponse<Types>, RPCError<Types>> {
        self.ask(Kind::PreVote, &request, option.soft_ttl()).await
    }

    async fn full_snapshot(
        &mut self,
        vote: Vote,
        snapshot: Snapshot,
        cancel: impl Future<Output = ReplicationClosed> + OptionalSend + 'static,
        _option: RPCOption,
    ) -> Result<SnapshotResponse<Types>, StreamingError<Types>> {
        tokio::select! {
            closed = cancel => Err(StreamingError::Closed(closed)),
            sent = self.send_snapshot(vote, snapshot) => sent,
        }
    }

    async fn transfer_leader(
        &mut self,
        request: TransferLeaderRequest<Types>,
        option: RPCOption,
    ) -> Result<TransferLeaderResponse<Types>, RPCError<Types>> {
        self.ask(Kind::TransferLeader, &request, option.soft_ttl()).await
    }
}
