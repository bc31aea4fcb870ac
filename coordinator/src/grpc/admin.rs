//! Administration over the local socket. The owner of this process and root may do everything; whoever else the
//! socket's group lets in may read.

use super::cluster::read_addresses;
use super::membership::request_id;
use super::status::{malformed, unexpected};
use crate::replica::Replica;
use crate::{backup, orders, token};
use bytes::Bytes;
use mesh_coordinator_core::command::{
    AllowNode, CreateToken, RemoveCoordinator, RemoveNode, RenameNode, RevokeToken, SetCoordinatorAddresses, SetKeyTtl,
};
use mesh_coordinator_core::{Registry, Reply};
use mesh_proto::convert::{field, text};
use mesh_proto::local::peer;
use mesh_proto::v1::admin_server::Admin;
use mesh_proto::{Wire as _, v1};
use mesh_types::{CoordinatorAddress, CoordinatorId, Fingerprint, JoinToken, MeshDuration, NodeId, NodeState, Role};
use std::pin::Pin;
use std::sync::Arc;
use tonic::{Request, Response, Status};
use zeroize::Zeroizing;

/// Bytes of a backup in one message.
const CHUNK: usize = 256 << 10;

/// The service for the operator.
pub(crate) struct AdminService(pub(crate) Arc<Replica>);

#[tonic::async_trait]
impl Admin for AdminService {
    type BackupStream = Pin<Box<dyn futures::Stream<Item = Result<v1::BackupChunk, Status>> + Send>>;

    async fn create_token(
        &self,
        request: Request<v1::CreateTokenRequest>,
    ) -> Result<Response<v1::CreateTokenReply>, Status> {
        let request = privileged(request)?;
        let role: Role = text("role", &request.role).map_err(malformed)?;
        let asked = request_id(&request.request_id)?;
        let (id, secret) = token::draw(&self.0.authority, asked);
        let command =
            CreateToken { id, secret_hash: secret.hash(), role, ttl: MeshDuration(request.ttl), uses: request.uses };
        let Reply::TokenCreated { id, expires_at } = self.0.write(command, asked).await? else {
            return Err(unexpected());
        };
        let authority = Fingerprint::of(&self.0.authority.certificate().0);
        let token = JoinToken { role, mesh: self.0.mesh, authority, id, secret, addresses: self.addresses() };
        Ok(Response::new(v1::CreateTokenReply {
            token: token.to_string(),
            id: Bytes::copy_from_slice(id.as_bytes()),
            expires_at: expires_at.0,
        }))
    }

    async fn list_tokens(
        &self,
        _request: Request<v1::ListTokensRequest>,
    ) -> Result<Response<v1::ListTokensReply>, Status> {
        let fresh = self.0.catch_up().await;
        let now = self.0.clock.now().mesh;
        let tokens = self.0.view().read(|registry| {
            let live = registry.tokens().filter(|token| token.is_live(now));
            live.map(|token| v1::TokenInfo {
                id: Bytes::copy_from_slice(token.id.as_bytes()),
                role: token.role.to_string(),
                created_at: token.created_at.0,
                expires_at: token.expires_at.0,
                uses_left: token.uses_left,
            })
            .collect()
        });
        Ok(Response::new(v1::ListTokensReply { tokens, fresh }))
    }

    async fn revoke_token(
        &self,
        request: Request<v1::RevokeTokenRequest>,
    ) -> Result<Response<v1::RevokeTokenReply>, Status> {
        let request = privileged(request)?;
        let id = field("id", &request.id).map_err(malformed)?;
        self.0.write(RevokeToken { id }, request_id(&request.request_id)?).await?;
        Ok(Response::new(v1::RevokeTokenReply {}))
    }

    async fn list_nodes(
        &self,
        _request: Request<v1::ListNodesRequest>,
    ) -> Result<Response<v1::ListNodesReply>, Status> {
        let fresh = self.0.catch_up().await;
        let now = self.0.clock.now().mesh;
        let (records, revision) = self.0.view().read(|registry| {
            let members = registry.nodes().map(|record| (record.clone(), record.state(now)));
            let removed = registry.removed().map(|removed| (removed.record.clone(), NodeState::Removed));
            (members.chain(removed).collect::<Vec<_>>(), registry.revision())
        });
        let online = self.0.sessions.who_is_online(records.iter().map(|(record, _)| record.id).collect()).await;
        let nodes = records.into_iter().zip(online).map(|((record, state), online)| v1::NodeInfo {
            record: Some(record.to_wire()),
            state: state_name(state).to_owned(),
            online: online && state != NodeState::Removed,
        });
        Ok(Response::new(v1::ListNodesReply { nodes: nodes.collect(), revision: revision.0, time: now.0, fresh }))
    }

    async fn rename_node(
        &self,
        request: Request<v1::RenameNodeRequest>,
    ) -> Result<Response<v1::RenameNodeReply>, Status> {
        let request = privileged(request)?;
        let name = text("name", &request.name).map_err(malformed)?;
        let node = self.node(&request.node).await?;
        self.0.write(RenameNode { node, name }, request_id(&request.request_id)?).await?;
        Ok(Response::new(v1::RenameNodeReply {}))
    }

    async fn remove_node(
        &self,
        request: Request<v1::RemoveNodeRequest>,
    ) -> Result<Response<v1::RemoveNodeReply>, Status> {
        let request = privileged(request)?;
        let node = match self.node(&request.node).await {
            Ok(node) => node,
            // Removing twice is no error: it is removed.
            Err(status) => match self.removed(&request.node) {
                Ok(node) => {
                    return Ok(Response::new(v1::RemoveNodeReply { id: Bytes::copy_from_slice(node.as_bytes()) }));
                }
                Err(_) => return Err(status),
            },
        };
        self.0.write(RemoveNode { node }, request_id(&request.request_id)?).await?;
        Ok(Response::new(v1::RemoveNodeReply { id: Bytes::copy_from_slice(node.as_bytes()) }))
    }

    async fn allow_node(&self, request: Request<v1::AllowNodeRequest>) -> Result<Response<v1::AllowNodeReply>, Status> {
        let request = privileged(request)?;
        self.0.catch_up().await;
        let node = match self.removed(&request.node) {
            Ok(node) => node,
            // Allowing twice is no error: it is a member.
            Err(status) => match self.node(&request.node).await {
                Ok(_) => return Ok(Response::new(v1::AllowNodeReply {})),
                Err(_) => return Err(status),
            },
        };
        self.0.write(AllowNode { node }, request_id(&request.request_id)?).await?;
        Ok(Response::new(v1::AllowNodeReply {}))
    }

    async fn list_coordinators(
        &self,
        _request: Request<v1::ListCoordinatorsRequest>,
    ) -> Result<Response<v1::ListCoordinatorsReply>, Status> {
        let fresh = self.0.catch_up().await;
        let (records, epoch, level) =
            self.0.view().read(|registry| (registry.coordinators().to_vec(), registry.epoch(), registry.level()));
        let coordinators = records.iter().map(|record| self.coordinator_info(record)).collect();
        let epoch = epoch.map(|epoch| epoch.to_wire());
        Ok(Response::new(v1::ListCoordinatorsReply { coordinators, this: self.0.id.0, fresh, epoch, level: level.0 }))
    }

    async fn remove_coordinator(
        &self,
        request: Request<v1::RemoveCoordinatorRequest>,
    ) -> Result<Response<v1::RemoveCoordinatorReply>, Status> {
        let request = privileged(request)?;
        let coordinator = match self.coordinator(&request.coordinator).await {
            Ok(coordinator) => coordinator,
            // Removing twice is no error: it is removed.
            Err(_) if !request.destroy && self.is_former(&request.coordinator) => {
                return Ok(Response::new(v1::RemoveCoordinatorReply {}));
            }
            Err(status) => return Err(status),
        };
        let command = RemoveCoordinator { coordinator, destroy: request.destroy };
        self.0.write(command, request_id(&request.request_id)?).await?;
        Ok(Response::new(v1::RemoveCoordinatorReply {}))
    }

    async fn set_coordinator_addresses(
        &self,
        request: Request<v1::SetCoordinatorAddressesRequest>,
    ) -> Result<Response<v1::SetCoordinatorAddressesReply>, Status> {
        let request = privileged(request)?;
        let coordinator =
            if request.coordinator.is_empty() { self.0.id } else { self.coordinator(&request.coordinator).await? };
        let addresses = read_addresses(&request.addresses)?;
        let command = SetCoordinatorAddresses { coordinator, addresses };
        self.0.write(command, request_id(&request.request_id)?).await?;
        Ok(Response::new(v1::SetCoordinatorAddressesReply {}))
    }

    async fn transfer_leader(
        &self,
        request: Request<v1::TransferLeaderRequest>,
    ) -> Result<Response<v1::TransferLeaderReply>, Status> {
        let request = privileged(request)?;
        let to = if request.to.is_empty() { None } else { Some(self.coordinator(&request.to).await?) };
        let leader = orders::transfer_leader(&self.0, to).await.map_err(Status::failed_precondition)?;
        Ok(Response::new(v1::TransferLeaderReply { leader: leader.0 }))
    }

    async fn backup(&self, request: Request<v1::BackupRequest>) -> Result<Response<Self::BackupStream>, Status> {
        let passphrase = Zeroizing::new(privileged(request)?.passphrase);
        if !self.0.catch_up().await {
            return Err(Status::unavailable("no quorum: a backup of this replica might miss acknowledged writes"));
        }
        let (replica, now) = (self.0.clone(), self.0.clock.now().mesh);
        // Making the key takes a large part of a second, on purpose.
        let sealed = tokio::task::spawn_blocking(move || {
            let registry = replica.view().read(Registry::clone);
            backup::seal(&registry, &replica.authority, &passphrase, now)
        });
        let sealed = sealed.await.map_err(|error| Status::internal(error.to_string()))?;
        let sealed = Bytes::from(sealed.map_err(|error| Status::invalid_argument(error.to_string()))?);
        let chunks: Vec<_> =
            sealed.chunks(CHUNK).map(|chunk| Ok(v1::BackupChunk { data: sealed.slice_ref(chunk) })).collect();
        Ok(Response::new(Box::pin(tokio_stream::iter(chunks))))
    }

    async fn set_key_ttl(
        &self,
        request: Request<v1::SetKeyTtlRequest>,
    ) -> Result<Response<v1::SetKeyTtlReply>, Status> {
        let request = privileged(request)?;
        self.0.write(SetKeyTtl { ttl: MeshDuration(request.ttl) }, request_id(&request.request_id)?).await?;
        Ok(Response::new(v1::SetKeyTtlReply {}))
    }
}

impl AdminService {
    /// Every address of every coordinator, as far as a token takes them, this one's first.
    fn addresses(&self) -> Vec<CoordinatorAddress> {
        let mut records = self.0.view().read(|registry| registry.coordinators().to_vec());
        records.sort_by_key(|record| record.id != self.0.id);
        records.into_iter().flat_map(|record| record.addresses).collect()
    }

    async fn node(&self, text: &str) -> Result<NodeId, Status> {
        self.lookup(|registry| registry.node_by_name_or_id(text).map(|record| record.id))
            .await
            .ok_or_else(|| Status::not_found(format!("node {text:?} not known: see `meshctl node list`")))
    }

    fn removed(&self, text: &str) -> Result<NodeId, Status> {
        let found =
            self.0.view().read(|registry| registry.removed_by_name_or_id(text).map(|removed| removed.record.id));
        found.map_err(|error| Status::not_found(error.to_string()))
    }

    async fn coordinator(&self, text: &str) -> Result<CoordinatorId, Status> {
        self.lookup(|registry| registry.coordinator_by_name_or_id(text).map(|record| record.id))
            .await
            .ok_or_else(|| Status::not_found(format!("coordinator {text:?} not known: see `meshctl coordinator list`")))
    }

    fn is_former(&self, text: &str) -> bool {
        self.0.view().read(|registry| registry.former_coordinator_by_name_or_id(text).is_some())
    }

    /// Looks here first, and again after catching up if nothing is found.
    async fn lookup<T>(&self, find: impl Fn(&Registry) -> Option<T>) -> Option<T> {
        if self.0.view().read(|registry| registry.config().is_none()) {
            return None;
        }
        match self.0.view().read(&find) {
            Some(found) => Some(found),
            None => {
                self.0.catch_up().await;
                self.0.view().read(&find)
            }
        }
    }

    fn coordinator_info(&self, record: &mesh_types::CoordinatorRecord) -> v1::CoordinatorInfo {
        let status = self.0.raft.status();
        let role = match record.id {
            // Without a quorum there is none, only one that was.
            id if status.leader == Some(id) && status.fresh => "leader",
            id if status.voters.contains(&id) => "follower",
            _ => "learner",
        };
        let own = record.id == self.0.id;
        let (condition, now) = (self.0.health.recent(record.id), self.0.clock.read());
        v1::CoordinatorInfo {
            record: Some(record.to_wire()),
            role: role.to_owned(),
            reachable: own || condition.is_some(),
            clock_offset: if own { Some(0) } else { condition.as_ref().map(|condition| condition.offset(now)) },
            applied: if own { Some(status.applied) } else { condition.as_ref().map(|condition| condition.applied) },
            level: if own { Some(self.0.level.0) } else { condition.as_ref().map(|condition| condition.level.0) },
            software: match condition {
                _ if own => env!("CARGO_PKG_VERSION").to_owned(),
                Some(condition) => condition.software,
                None => String::new(),
            },
        }
    }
}

/// The request, if whoever sent it may change things.
fn privileged<T>(request: Request<T>) -> Result<T, Status> {
    let peer = peer(&request).ok_or_else(|| Status::internal("the call came over no local socket"))?;
    let own = nix::unistd::geteuid().as_raw();
    if peer.uid != 0 && peer.uid != own {
        return Err(Status::permission_denied(format!("user {} may only read: run as root", peer.uid)));
    }
    Ok(request.into_inner())
}

fn state_name(state: NodeState) -> &'static str {
    match state {
        NodeState::Active => "active",
        NodeState::Expired => "expired",
        NodeState::Removed => "removed",
    }
}
