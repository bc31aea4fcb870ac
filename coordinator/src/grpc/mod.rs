//! The services, and who may call them.

mod admin;
mod cluster;
mod membership;
mod session;
mod status;

pub(crate) use admin::AdminService;
pub(crate) use cluster::ClusterService;
pub(crate) use membership::MembershipService;

use crate::health::expelled;
use crate::replica::Replica;
use mesh_proto::listen::{Caller, caller};
use mesh_proto::{Identity, Member};
use mesh_types::{CoordinatorId, NodeId};
use tonic::{Request, Status};

fn connection<T>(request: &Request<T>) -> Result<&Caller, Status> {
    caller(request).ok_or_else(|| Status::internal("the call came over no connection"))
}

fn identity<T>(request: &Request<T>) -> Result<Identity, Status> {
    connection(request)?
        .identity
        .ok_or_else(|| Status::unauthenticated("this call needs a certificate of the mesh: join first"))
}

/// The node that calls: its certificate is verified, and it was not removed as far as is known here.
fn calling_node<T>(replica: &Replica, request: &Request<T>) -> Result<(NodeId, Identity), Status> {
    let identity = identity(request)?;
    let Member::Node(node) = identity.member else {
        return Err(Status::permission_denied("this call is for nodes"));
    };
    replica.view().read(|registry| {
        if registry.removed_node(node).is_some() {
            return Err(Status::permission_denied(format!(
                "node {node} was removed from the mesh: undo it with `meshctl node allow`"
            )));
        }
        match registry.node(node) {
            Some(record) if record.identity_key != identity.identity_key => {
                Err(Status::permission_denied(format!("this certificate is not that of node {node} any more")))
            }
            // A node that joined elsewhere a moment ago is not known here yet.
            _ => Ok((node, identity)),
        }
    })
}

/// The coordinator that calls, if it is a member, or one too new to be known here. Ids are counted up and never used
/// again, so one below the next that is not present was removed.
fn calling_coordinator<T>(replica: &Replica, request: &Request<T>) -> Result<CoordinatorId, Status> {
    let identity = identity(request)?;
    let Member::Coordinator(id) = identity.member else {
        return Err(Status::permission_denied("this call is for coordinators"));
    };
    replica.view().read(|registry| match (registry.coordinator(id), registry.next_coordinator_id()) {
        (Some(record), _) if record.identity_key == identity.identity_key => Ok(id),
        (Some(_), _) => Err(Status::permission_denied(format!("this certificate is not that of coordinator {id}"))),
        (None, Some(next)) if id < next => Err(Status::permission_denied(expelled(id))),
        (None, _) => Ok(id),
    })
}

/// A replica that speaks Raft: also one that was removed from the registry while Raft still counts on it, because the
/// very change that takes it out may need its vote, or come from it.
fn calling_replica<T>(replica: &Replica, request: &Request<T>) -> Result<CoordinatorId, Status> {
    let refused = match calling_coordinator(replica, request) {
        Ok(id) => return Ok(id),
        Err(refused) => refused,
    };
    let Ok(Identity { member: Member::Coordinator(id), identity_key, .. }) = identity(request) else {
        return Err(refused);
    };
    let is_former = replica
        .view()
        .read(|registry| registry.former_coordinator(id).is_some_and(|record| record.identity_key == identity_key));
    if is_former && replica.raft.status().is_member(id) { Ok(id) } else { Err(refused) }
}
