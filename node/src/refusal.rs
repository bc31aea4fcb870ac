//! Why a local request was not done, and the one place that turns that into a gRPC status.
//!
//! The codes are part of the local API: `meshctl` makes its exit codes of them.

use crate::ask::AskError;
use crate::host::HostError;
use crate::join::JoinError;
use crate::state::StateError;
use mesh_node_core::node::PingError;
use mesh_types::MeshId;
use thiserror::Error;
use tonic::{Code, Status};

/// Why a local request was not done, with what to do next.
#[derive(Debug, Error)]
pub(crate) enum Refusal {
    /// There is no membership to work with.
    #[error("this node is not a member of a mesh yet: use `meshctl join TOKEN`")]
    NotJoined,
    /// The membership was ended by an operator.
    #[error(
        "this node was removed from the mesh: let it back in with `meshctl node allow` on a coordinator and \
         `meshctl up` here, or forget the mesh here with `meshctl leave`"
    )]
    Removed,
    /// Another request of this kind is under way.
    #[error("this node is joining or leaving just now: wait for that to end")]
    Busy,
    /// A member joins one mesh at a time.
    #[error("this node is a member of mesh {0}: leave that first with `meshctl leave`, or run another meshd beside it")]
    OtherMesh(MeshId),
    /// Joining failed.
    #[error(transparent)]
    Join(#[from] JoinError),
    /// The host does not let us.
    #[error(transparent)]
    Host(HostError),
    /// The host does not let us, and what went wrong is told elsewhere as well.
    #[error("the interface is not up: {reason}; meshd goes on trying, see its log")]
    Interface {
        /// What the host said.
        reason: String,
        /// Whether it is for lack of rights.
        permission: bool,
    },
    /// The interface was not taken away.
    #[error("the interface is still there: {0}; meshd goes on trying, see its log")]
    StillThere(String),
    /// Joined, but nothing was heard yet.
    #[error("joined as {name}, but no session has begun yet ({reason}); meshd goes on trying, see `meshctl status`")]
    NoSession {
        /// The name given.
        name: String,
        /// What the session said last.
        reason: String,
    },
    /// There is no such peer.
    #[error("no peer {0:?} in the netmap: give a name, an overlay address or an id as `meshctl status` shows them")]
    NoPeer(String),
    /// The ping cannot be.
    #[error(transparent)]
    Ping(#[from] PingError),
    /// Nobody could be told that this node leaves.
    #[error("cannot tell the mesh: {0}; `meshctl leave --force` leaves without telling, then remove the node there")]
    Leave(AskError),
    /// The disk does not take it.
    #[error(transparent)]
    State(#[from] StateError),
}

impl Refusal {
    fn code(&self) -> Code {
        match self {
            Self::NotJoined | Self::Removed | Self::OtherMesh(_) => Code::FailedPrecondition,
            Self::Busy => Code::Aborted,
            Self::Join(error) => join_code(error),
            Self::Host(error) if error.is_permission() => Code::PermissionDenied,
            Self::Interface { permission: true, .. } => Code::PermissionDenied,
            Self::Host(error) if error.is_taken() => Code::AlreadyExists,
            Self::Host(_) | Self::Interface { .. } | Self::StillThere(_) | Self::State(_) => Code::Internal,
            Self::NoSession { .. } | Self::Leave(_) => Code::Unavailable,
            Self::NoPeer(_) | Self::Ping(PingError::UnknownPeer(_)) => Code::NotFound,
            Self::Ping(PingError::Down) => Code::FailedPrecondition,
            Self::Ping(PingError::TooMany) => Code::ResourceExhausted,
        }
    }
}

fn join_code(error: &JoinError) -> Code {
    match error {
        JoinError::Unreachable(_) | JoinError::Unavailable(_) => Code::Unavailable,
        JoinError::Role
        | JoinError::Clock(..)
        | JoinError::Authority(_)
        | JoinError::Overlap { .. }
        | JoinError::Refused(_) => Code::FailedPrecondition,
        JoinError::Link(_) | JoinError::State(_) | JoinError::Reply(_) | JoinError::Request(_) => Code::Internal,
    }
}

impl From<Refusal> for Status {
    fn from(refusal: Refusal) -> Self {
        Self::new(refusal.code(), refusal.to_string())
    }
}
