//! Who makes a call, as far as its certificate and the registry tell.

use crate::health::expelled;
use crate::replica::Replica;
use mesh_proto::{Caller, Identity, Member};
use mesh_types::{CoordinatorId, NodeId};
use tonic::{Request, Status};

/// A node that calls.
#[derive(Clone, Copy, Debug)]
pub(super) struct Node {
    pub(super) id: NodeId,
    pub(super) identity: Identity,
}

/// A coordinator that calls.
#[derive(Clone, Copy, Debug)]
pub(super) struct Coordinator(pub(super) CoordinatorId);

/// The node that calls was removed, and is to be told so.
#[derive(Clone, Copy, Debug)]
pub(super) struct Farewell;

/// What the gate noted in a request.
pub(super) fn noted<N: Clone + Send + Sync + 'static, T>(request: &Request<T>) -> Result<N, Status> {
    request.extensions().get().cloned().ok_or_else(|| Status::internal("the call came by no gate"))
}

/// A node whose certificate is verified, that the registry holds with the certificate's key.
pub(super) fn node(replica: &Replica, caller: &Caller) -> Result<Node, Status> {
    let node = new_node(replica, caller)?;
    if replica.view().read(|registry| registry.node(node.id).is_none()) {
        let id = node.id;
        return Err(Status::unavailable(format!("node {id} is not known here, or not yet: ask another coordinator")));
    }
    Ok(node)
}

/// A node whose certificate is verified, and that was not removed as far as is known here. One that joined elsewhere a
/// moment ago is not known here yet.
pub(super) fn new_node(replica: &Replica, caller: &Caller) -> Result<Node, Status> {
    let node = certified_node(caller)?;
    replica.view().read(|registry| {
        if registry.removed_node(node.id).is_some() {
            return Err(Status::permission_denied(format!(
                "node {} was removed from the mesh: undo it with `meshctl node allow`",
                node.id
            )));
        }
        match registry.node(node.id) {
            Some(record) if record.identity_key != node.identity.identity_key => {
                Err(Status::permission_denied(format!("this certificate is not that of node {} any more", node.id)))
            }
            _ => Ok(node),
        }
    })
}

/// A node that was removed.
pub(super) fn removed_node(replica: &Replica, caller: &Caller) -> Option<Node> {
    let node = certified_node(caller).ok()?;
    replica.view().read(|registry| registry.removed_node(node.id).map(|_| node))
}

/// A coordinator that is a member, or one too new to be known here. Ids are counted up and never used again, so one below
/// the next that is not present was removed.
pub(super) fn coordinator(replica: &Replica, caller: &Caller) -> Result<Coordinator, Status> {
    let identity = identity(caller)?;
    let Member::Coordinator(id) = identity.member else {
        return Err(Status::permission_denied("this call is for coordinators"));
    };
    replica.view().read(|registry| match (registry.coordinator(id), registry.next_coordinator_id()) {
        (Some(record), _) if record.identity_key == identity.identity_key => Ok(Coordinator(id)),
        (Some(_), _) => Err(Status::permission_denied(format!("this certificate is not that of coordinator {id}"))),
        (None, Some(next)) if id < next => Err(Status::permission_denied(expelled(id))),
        (None, _) => Ok(Coordinator(id)),
    })
}

/// A replica that speaks Raft: also one that was removed from the registry while Raft still counts on it, because the
/// very change that takes it out may need its vote, or come from it.
pub(super) fn replica(replica: &Replica, caller: &Caller) -> Result<Coordinator, Status> {
    let refused = match coordinator(replica, caller) {
        Ok(coordinator) => return Ok(coordinator),
        Err(refused) => refused,
    };
    let Some(Identity { member: Member::Coordinator(id), identity_key, .. }) = caller.identity else {
        return Err(refused);
    };
    let is_former = replica
        .view()
        .read(|registry| registry.former_coordinator(id).is_some_and(|record| record.identity_key == identity_key));
    if is_former && replica.raft.status().is_member(id) { Ok(Coordinator(id)) } else { Err(refused) }
}

fn certified_node(caller: &Caller) -> Result<Node, Status> {
    let identity = identity(caller)?;
    match identity.member {
        Member::Node(id) => Ok(Node { id, identity }),
        Member::Coordinator(_) => Err(Status::permission_denied("this call is for nodes")),
    }
}

fn identity(caller: &Caller) -> Result<Identity, Status> {
    caller.identity.ok_or_else(|| Status::unauthenticated("this call needs a certificate of the mesh: join first"))
}
