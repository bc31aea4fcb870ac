//! What nodes ask: to join, to renew, to leave. Their sessions are served in [`super::session`].

use super::caller::{Node, noted};
use super::status::{malformed, unexpected};
use super::{session, shown};
use crate::rates::Act;
use crate::replica::{Replica, WriteError};
use bytes::Bytes;
use mesh_coordinator_core::command::{Join, RemoveNode, RenewKey};
use mesh_coordinator_core::{Rejection, Reply};
use mesh_proto::certificate::read_request;
use mesh_proto::convert::{certificate, field, text};
use mesh_proto::join_proof::Statement;
use mesh_proto::v1::membership_server::Membership;
use mesh_proto::{Caller, Member, Wire as _, v1};
use mesh_types::{MeshId, NodeId, NodeName, NodeRecord, PublicKey, RequestId, TokenId, TokenSecret};
use std::sync::Arc;
use tonic::{Request, Response, Status, Streaming};

/// Times that another random node id is drawn after one was taken; a second time is one in 2^128.
const DRAWS: usize = 3;

/// The service for nodes.
pub(crate) struct MembershipService(pub(crate) Arc<Replica>);

#[tonic::async_trait]
impl Membership for MembershipService {
    type SessionStream = session::Outgoing;

    async fn challenge(&self, request: Request<v1::ChallengeRequest>) -> Result<Response<v1::ChallengeReply>, Status> {
        let caller: Caller = noted(&request)?;
        let challenge = self.0.challenger.challenge(&caller.exporter);
        Ok(Response::new(v1::ChallengeReply {
            public_key: Bytes::copy_from_slice(challenge.as_bytes()),
            time: self.0.clock.now().mesh.0,
            overlay: self.0.view().read(|registry| registry.config().map(|config| config.overlay.to_wire())),
        }))
    }

    async fn join(&self, request: Request<v1::JoinRequest>) -> Result<Response<v1::JoinReply>, Status> {
        let caller: Caller = noted(&request)?;
        let join = self.prove(&caller, request.into_inner())?;
        self.0.precheck(|registry| registry.judge_join(&join)).await?;
        shown::vouch(&caller)?;
        let identity_key = join.identity_key;
        self.0.ration(Act::Join(identity_key))?;
        let record = self.admit(join).await?;
        tracing::info!(node = %record.id, name = %record.name, "joined");
        self.welcome(record, identity_key).map(Response::new)
    }

    async fn session(
        &self,
        request: Request<Streaming<v1::NodeMessage>>,
    ) -> Result<Response<Self::SessionStream>, Status> {
        session::open(&self.0, request).await.map(Response::new)
    }

    async fn renew_key(&self, request: Request<v1::RenewKeyRequest>) -> Result<Response<v1::RenewKeyReply>, Status> {
        let Node { id: node, .. } = noted(&request)?;
        let id = request_id(&request.into_inner().request_id)?;
        match self.0.write(RenewKey { node }, id).await? {
            Reply::Node(record) => Ok(Response::new(v1::RenewKeyReply { expires_at: record.expires_at.0 })),
            _ => Err(unexpected()),
        }
    }

    async fn renew_certificate(
        &self,
        request: Request<v1::RenewCertificateRequest>,
    ) -> Result<Response<v1::RenewCertificateReply>, Status> {
        let Node { id: node, identity } = noted(&request)?;
        let der = certificate("certificate_request", &request.into_inner().certificate_request).map_err(malformed)?;
        let key = read_request(&der.0).map_err(|error| Status::invalid_argument(error.to_string()))?;
        if key != identity.identity_key {
            return Err(Status::permission_denied(
                "the certificate request is for another key than the certificate shown",
            ));
        }
        Ok(Response::new(v1::RenewCertificateReply { certificate: self.issue(Member::Node(node), key)? }))
    }

    async fn leave(&self, request: Request<v1::LeaveRequest>) -> Result<Response<v1::LeaveReply>, Status> {
        let Node { id: node, .. } = noted(&request)?;
        let id = request_id(&request.into_inner().request_id)?;
        match self.0.write(RemoveNode { node }, id).await {
            // A repeat after a lost reply meets its own removal.
            Ok(_) | Err(WriteError::Rejected(Rejection::NodeRemoved(_) | Rejection::NodeUnknown(_))) => {
                tracing::info!(%node, "left");
                Ok(Response::new(v1::LeaveReply {}))
            }
            Err(error) => Err(error.into()),
        }
    }
}

impl MembershipService {
    /// Checks everything that can be checked without the registry, after a look at the token.
    fn prove(&self, caller: &Caller, request: v1::JoinRequest) -> Result<Join, Status> {
        let mesh: MeshId = field("mesh", &request.mesh).map_err(malformed)?;
        if mesh != self.0.mesh {
            return Err(Status::failed_precondition(format!(
                "this coordinator serves mesh {}, the join token is for mesh {mesh}",
                self.0.mesh
            )));
        }
        let token: TokenId = field("token_id", &request.token_id).map_err(malformed)?;
        let secret: TokenSecret = field("token_secret", &request.token_secret).map_err(malformed)?;
        let secret_hash = secret.hash();
        shown::count(&self.0, caller, token, secret_hash)?;
        let public_key: PublicKey = field("public_key", &request.public_key).map_err(malformed)?;
        let der = certificate("certificate_request", &request.certificate_request).map_err(malformed)?;
        let name: NodeName = text("name", &request.name).map_err(malformed)?;
        let identity_key = read_request(&der.0).map_err(|error| Status::invalid_argument(error.to_string()))?;
        let certificate_request = &der.0;
        let exporter = &caller.exporter;
        let statement = Statement { exporter, mesh, token, public_key, identity_key, certificate_request };
        let proven = self.0.challenger.verify(&statement, &request.proof);
        proven.map_err(|error| Status::permission_denied(error.to_string()))?;
        let node = NodeId::from_bytes(crate::random::bytes());
        Ok(Join { token, secret_hash, node, public_key, identity_key, name })
    }

    async fn admit(&self, mut join: Join) -> Result<NodeRecord, Status> {
        for _ in 0..DRAWS {
            match self.0.write(join.clone(), None).await {
                Ok(Reply::Node(record)) => return Ok(record),
                Ok(_) => return Err(unexpected()),
                Err(WriteError::Rejected(Rejection::IdTaken(_))) => {
                    join.node = NodeId::from_bytes(crate::random::bytes())
                }
                Err(error) => return Err(error.into()),
            }
        }
        Err(Status::internal("no free node id was drawn: is the system's random generator broken?"))
    }

    fn welcome(&self, record: NodeRecord, identity_key: mesh_types::IdentityKey) -> Result<v1::JoinReply, Status> {
        let settings = self.0.view().read(|registry| registry.config().cloned().zip(registry.epoch()));
        let (config, epoch) =
            settings.ok_or_else(|| Status::unavailable("this coordinator has no registry yet: ask another"))?;
        Ok(v1::JoinReply {
            node_id: Bytes::copy_from_slice(record.id.as_bytes()),
            name: record.name.to_string(),
            address_v4: Bytes::copy_from_slice(&record.addresses.v4.octets()),
            address_v6: Bytes::copy_from_slice(&record.addresses.v6.octets()),
            expires_at: record.expires_at.0,
            certificate: self.issue(Member::Node(record.id), identity_key)?,
            config: Some(config.to_wire()),
            epoch: Some(epoch.to_wire()),
            time: self.0.clock.now().mesh.0,
        })
    }

    fn issue(&self, member: Member, key: mesh_types::IdentityKey) -> Result<Bytes, Status> {
        let issued = self.0.authority.issue(member, key, self.0.clock.now().mesh);
        issued.map(|certificate| Bytes::from(certificate.0)).map_err(|error| Status::internal(error.to_string()))
    }
}

/// A request id: none if the caller does not care to repeat.
pub(super) fn request_id(bytes: &[u8]) -> Result<Option<RequestId>, Status> {
    if bytes.is_empty() { Ok(None) } else { field("request_id", bytes).map(Some).map_err(malformed) }
}
