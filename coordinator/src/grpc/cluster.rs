//! What coordinators ask of each other.

use super::caller::{Coordinator, noted};
use super::shown;
use super::status::{malformed, rejected, unexpected};
use crate::raft::Kind;
use crate::replica::Replica;
use crate::sessions::{Event, Sessions};
use crate::{exchange, orders};
use bytes::Bytes;
use mesh_coordinator_core::command::{JoinCoordinator, SetCoordinatorAddresses};
use mesh_coordinator_core::{Proposal, Registry, Rejection, Reply};
use mesh_proto::certificate::read_request;
use mesh_proto::convert::{capped, certificate, field, text};
use mesh_proto::v1::cluster_server::Cluster;
use mesh_proto::{Caller, Member, Wire as _, v1};
use mesh_types::coordinator::distinct;
use mesh_types::limits::MAX_COORDINATOR_ADDRESSES;
use mesh_types::{CoordinatorAddress, CoordinatorRecord, Level, MeshId, NodeName, TokenId, TokenSecret};
use std::pin::Pin;
use std::sync::Arc;
use tokio_stream::StreamExt as _;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

/// The service for coordinators.
pub(crate) struct ClusterService(pub(crate) Arc<Replica>);

#[tonic::async_trait]
impl Cluster for ClusterService {
    type PresenceStream = Pin<Box<dyn futures::Stream<Item = Result<v1::PresenceExchange, Status>> + Send>>;

    async fn join_cluster(
        &self,
        request: Request<v1::JoinClusterRequest>,
    ) -> Result<Response<v1::JoinClusterReply>, Status> {
        let caller: Caller = noted(&request)?;
        let (remote, request) = (caller.remote, request.into_inner());
        self.check_mesh(&request.mesh)?;
        let level = request.level;
        let join = self.read_join(request)?;
        shown::count(&self.0, &caller, join.token, join.secret_hash)?;
        self.0.precheck(|registry| registry.judge_coordinator_join(&join)).await?;
        shown::vouch(&caller)?;
        self.check_level("the new coordinator", level).await?;
        match self.0.write(join, None).await? {
            Reply::Coordinator(record) => {
                tracing::info!(coordinator = %record.id, name = %record.name, %remote, "coordinator joined");
                self.welcome(&record).map(Response::new)
            }
            _ => Err(unexpected()),
        }
    }

    async fn raft(&self, request: Request<v1::RaftEnvelope>) -> Result<Response<v1::RaftEnvelope>, Status> {
        let Coordinator(caller) = noted(&request)?;
        let envelope = request.into_inner();
        self.check_mesh(&envelope.mesh)?;
        if envelope.from != caller.0 {
            return Err(Status::permission_denied(format!(
                "coordinator {caller} speaks for coordinator {}",
                envelope.from
            )));
        }
        let kind = Kind::from_code(envelope.kind).ok_or_else(|| {
            Status::unimplemented("raft message of a later version: run the same version on all coordinators")
        })?;
        let body = self.0.raft.handle(kind, &envelope.body).await.map_err(Status::unavailable)?;
        Ok(Response::new(self.envelope(envelope.kind, body)))
    }

    async fn propose(&self, request: Request<v1::ProposeRequest>) -> Result<Response<v1::ProposeReply>, Status> {
        let request = request.into_inner();
        self.check_mesh(&request.mesh)?;
        let proposal = Proposal::decode(&request.command).map_err(|error| Status::unimplemented(error.to_string()))?;
        let reply = self.0.take_forwarded(proposal).await?;
        Ok(Response::new(v1::ProposeReply { reply: reply.encode().into() }))
    }

    async fn enlist(&self, request: Request<v1::EnlistRequest>) -> Result<Response<v1::EnlistReply>, Status> {
        let Coordinator(coordinator) = noted(&request)?;
        let request = request.into_inner();
        if request.coordinator != coordinator.0 {
            return Err(Status::permission_denied(format!(
                "coordinator {coordinator} speaks for coordinator {}",
                request.coordinator
            )));
        }
        self.check_level(&format!("coordinator {coordinator}"), request.level).await?;
        let addresses = read_addresses(&request.addresses)?;
        // At once, so that it is reached where it is now, also while there is no quorum; and then for all.
        self.0.peers.relocate(coordinator, addresses.clone());
        self.0.write(SetCoordinatorAddresses { coordinator, addresses }, None).await?;
        Ok(Response::new(v1::EnlistReply {}))
    }

    async fn administer(&self, request: Request<v1::RaftEnvelope>) -> Result<Response<v1::RaftEnvelope>, Status> {
        let envelope = request.into_inner();
        self.check_mesh(&envelope.mesh)?;
        let order = orders::decode(&envelope.body).map_err(Status::unimplemented)?;
        let answer = orders::carry_out(&self.0, order).await;
        Ok(Response::new(self.envelope(envelope.kind, orders::encode(&answer))))
    }

    async fn presence(
        &self,
        request: Request<Streaming<v1::PresenceExchange>>,
    ) -> Result<Response<Self::PresenceStream>, Status> {
        let Coordinator(peer) = noted(&request)?;
        let stream = self.0.sessions.number();
        let (queue, messages) = Sessions::exchange_queue();
        self.0.sessions.tell(Event::ExchangeOpened { peer, stream, queue }).await;
        let (sessions, incoming) = (self.0.sessions.clone(), request.into_inner());
        tokio::spawn(async move { exchange::listen(&sessions, peer, stream, incoming).await });
        Ok(Response::new(Box::pin(ReceiverStream::new(messages).map(Ok))))
    }

    async fn health(&self, _: Request<v1::HealthRequest>) -> Result<Response<v1::HealthReply>, Status> {
        let status = self.0.raft.status();
        Ok(Response::new(v1::HealthReply {
            time: self.0.clock.read().wall.0,
            applied: status.applied,
            leader: status.leader.map(|id| id.0),
            level: self.0.level.0,
            software: env!("CARGO_PKG_VERSION").to_owned(),
        }))
    }
}

impl ClusterService {
    fn check_mesh(&self, mesh: &[u8]) -> Result<(), Status> {
        let mesh: MeshId = field("mesh", mesh).map_err(malformed)?;
        if mesh == self.0.mesh {
            return Ok(());
        }
        Err(Status::failed_precondition(format!(
            "this coordinator serves mesh {}, the call is for mesh {mesh}",
            self.0.mesh
        )))
    }

    /// Refuses who does not understand the log, before it gets any of it. Without a quorum the level known here counts.
    async fn check_level(&self, who: &str, understood: u32) -> Result<(), Status> {
        let judge = || {
            let level = self.0.view().read(Registry::level);
            if Level(understood) >= level {
                return Ok(());
            }
            Err(Status::failed_precondition(format!(
                "the mesh's log has level {}, {who} understands up to {understood}: install the version that the other \
                 coordinators run (see `meshctl coordinator list`)",
                level.0
            )))
        };
        judge()?;
        self.0.catch_up().await;
        judge()
    }

    fn read_join(&self, request: v1::JoinClusterRequest) -> Result<JoinCoordinator, Status> {
        let token: TokenId = field("token_id", &request.token_id).map_err(malformed)?;
        let secret: TokenSecret = field("token_secret", &request.token_secret).map_err(malformed)?;
        let der = certificate("certificate_request", &request.certificate_request).map_err(malformed)?;
        let identity_key = read_request(&der.0).map_err(|error| Status::invalid_argument(error.to_string()))?;
        let name: NodeName = text("name", &request.name).map_err(malformed)?;
        let addresses = read_addresses(&request.addresses)?;
        Ok(JoinCoordinator { token, secret_hash: secret.hash(), identity_key, name, addresses })
    }

    fn welcome(&self, record: &CoordinatorRecord) -> Result<v1::JoinClusterReply, Status> {
        let settings = self.0.view().read(|registry| registry.config().cloned().zip(registry.epoch()));
        let (config, epoch) = settings.ok_or_else(|| rejected(&Rejection::NotFounded))?;
        let now = self.0.clock.now().mesh;
        let issued = self.0.authority.issue(Member::Coordinator(record.id), record.identity_key, now);
        let issued = issued.map_err(|error| Status::internal(error.to_string()))?;
        Ok(v1::JoinClusterReply {
            coordinator_id: record.id.0,
            name: record.name.to_string(),
            certificate: issued.0.into(),
            authority_key: Bytes::copy_from_slice(&self.0.authority.key_der()),
            config: Some(config.to_wire()),
            epoch: Some(epoch.to_wire()),
            time: now.0,
        })
    }

    fn envelope(&self, kind: u32, body: Vec<u8>) -> v1::RaftEnvelope {
        v1::RaftEnvelope {
            mesh: Bytes::copy_from_slice(self.0.mesh.as_bytes()),
            from: self.0.id.0,
            kind,
            body: body.into(),
        }
    }
}

/// Parses where a coordinator answers.
pub(super) fn read_addresses(texts: &[String]) -> Result<Vec<CoordinatorAddress>, Status> {
    capped("addresses", texts.len(), MAX_COORDINATOR_ADDRESSES).map_err(malformed)?;
    let read = |text: &String| CoordinatorAddress::parse_advertised(text);
    let addresses: Result<Vec<_>, _> = texts.iter().map(read).collect();
    addresses.map(distinct).map_err(|error| Status::invalid_argument(error.to_string()))
}
