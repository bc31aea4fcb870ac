//! What applying a command answers: the outcome, or the reason why it is refused and what to do next.
//!
//! Replies are remembered with the registry for repeated requests and travel from the leader to the replica that was
//! asked, so they have a byte form.

use crate::codec::{self, DecodeError, Reader};
use mesh_types::{
    CoordinatorId, CoordinatorRecord, Epoch, Level, MeshDuration, MeshId, MeshTime, NodeId, NodeName, NodeRecord,
    Overlay, Role, TokenId, limits,
};
use serde::{Deserialize, Serialize};
use thiserror::Error;

const FORMAT: u8 = 1;

/// The answer to a command.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, Debug)]
pub enum Reply {
    /// Done, and nothing more to say: `Found`, `RevokeToken`, `SetKeyTtl`, `RaiseLevel`, `OpenEpoch`.
    Done,
    /// `CreateToken`.
    TokenCreated {
        /// Which.
        id: TokenId,
        /// When it ends.
        expires_at: MeshTime,
    },
    /// `Join`, `RenewKey`, `RenameNode` and `AllowNode`: the node as it is now.
    Node(NodeRecord),
    /// `RemoveNode`.
    NodeRemoved(NodeId),
    /// `JoinCoordinator` and `SetCoordinatorAddresses`: the coordinator as it is now.
    Coordinator(CoordinatorRecord),
    /// `RemoveCoordinator`.
    CoordinatorRemoved(CoordinatorId),
    /// Refused; nothing changed.
    Rejected(Rejection),
}

impl Reply {
    /// The byte form.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = vec![FORMAT];
        codec::put_cbor(&mut out, self);
        out
    }

    /// Reads the byte form.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let mut reader = Reader::new(bytes);
        reader.format("reply", FORMAT)?;
        codec::from_cbor("reply", reader.rest())
    }

    /// The reply, or the reason of the refusal.
    pub fn granted(self) -> Result<Self, Rejection> {
        match self {
            Self::Rejected(rejection) => Err(rejection),
            granted => Ok(granted),
        }
    }
}

impl From<Result<Reply, Rejection>> for Reply {
    fn from(result: Result<Reply, Rejection>) -> Self {
        result.unwrap_or_else(Self::Rejected)
    }
}

/// Who holds a key.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, Debug)]
pub enum KeyHolder {
    /// A node.
    Node(NodeId),
    /// A coordinator.
    Coordinator(CoordinatorId),
}

impl std::fmt::Display for KeyHolder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Node(id) => write!(f, "node {id}"),
            Self::Coordinator(id) => write!(f, "coordinator {id}"),
        }
    }
}

/// Why a command was refused.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, Debug, Error)]
pub enum Rejection {
    /// There is no mesh in the registry yet.
    #[error("this coordinator has no mesh yet: make one with `meshctl init`, or join one with a coordinator token")]
    NotFounded,
    /// `Found` on a registry that has a mesh.
    #[error("this coordinator already serves mesh {0}: use another data directory for a new mesh")]
    AlreadyFounded(MeshId),
    /// No such token, or a wrong secret: which of the two is not told.
    #[error(
        "join token not known: it was revoked, ended long ago, or belongs to another mesh; make a new one with `meshctl token create`"
    )]
    TokenUnknown,
    /// `RevokeToken` of a token that is not there.
    #[error("join token {0} not known: see `meshctl token list`")]
    TokenNotListed(TokenId),
    /// The token's time is over.
    #[error("join token expired at {expired_at}: make a new one with `meshctl token create`")]
    TokenExpired {
        /// When.
        expired_at: MeshTime,
    },
    /// The token's uses are used up.
    #[error("join token is used up: make a new one with `meshctl token create`")]
    TokenUsedUp,
    /// The token is for something else.
    #[error(
        "this join token is for a {token}, not for a {wanted}: make another with `meshctl token create --role {wanted}`"
    )]
    TokenRole {
        /// What the token is for.
        token: Role,
        /// What was asked for.
        wanted: Role,
    },
    /// A token with this id exists.
    #[error("a join token with id {0} exists: try again with another id")]
    TokenExists(TokenId),
    /// The token's time to live is out of range.
    #[error("token time to live {0} is out of range: choose from 1s to {max}", max = limits::MAX_TOKEN_TTL)]
    TokenTtl(MeshDuration),
    /// A token that nobody may use.
    #[error("a join token needs at least one use")]
    TokenUses,
    /// Too many tokens outstanding.
    #[error("{max} join tokens are outstanding: revoke some with `meshctl token revoke`", max = limits::MAX_TOKENS)]
    TooManyTokens,
    /// The WireGuard or identity key belongs to another member, or to this one with another second key.
    #[error(
        "this machine's keys are in use by {by}: a copied state directory? remove that one, or let this machine make new keys in an empty state directory"
    )]
    KeyInUse {
        /// By whom.
        by: KeyHolder,
    },
    /// The key belonged to a member that was removed.
    #[error(
        "this machine's keys belonged to {by}, which was removed: undo it with `meshctl node allow`, or let this machine make new keys in an empty state directory"
    )]
    KeyBarred {
        /// Whose it was.
        by: KeyHolder,
    },
    /// The proposed id is or was another's: the proposer draws another.
    #[error("node id {0} is taken: try again")]
    IdTaken(NodeId),
    /// No member with this id.
    #[error("node {0} not known: see `meshctl node list`")]
    NodeUnknown(NodeId),
    /// The node was removed.
    #[error("node {0} was removed from the mesh: undo it with `meshctl node allow`")]
    NodeRemoved(NodeId),
    /// Another node has the name.
    #[error("name {name} is taken by node {by}: choose another")]
    NameTaken {
        /// The name.
        name: NodeName,
        /// Whose it is.
        by: NodeId,
    },
    /// No address is free.
    #[error(
        "no overlay address is free{}: remove nodes that are not needed and wait until their addresses have rested",
        .next_free.map(|time| format!(" until {time}")).unwrap_or_default()
    )]
    AddressesExhausted {
        /// When the first resting address is free again, if any rests.
        next_free: Option<MeshTime>,
    },
    /// The mesh is full.
    #[error("the mesh has {max} nodes, as many as it takes", max = limits::MAX_NODES)]
    TooManyNodes,
    /// There are as many coordinators as a mesh may have.
    #[error("the mesh has {max} coordinators, as many as it takes: remove one with `meshctl coordinator remove`", max = limits::MAX_COORDINATORS)]
    TooManyCoordinators,
    /// No coordinator with this id.
    #[error("coordinator {0} not known: see `meshctl coordinator list`")]
    CoordinatorUnknown(CoordinatorId),
    /// The id was used before, or is ahead of the count.
    #[error("coordinator id {0} cannot be used: ids are counted up and never used again")]
    CoordinatorIdSpent(CoordinatorId),
    /// The mesh must keep one coordinator.
    #[error(
        "coordinator {0} is the last one: without it the mesh ends, nobody joins it any more, and its nodes lose each other as their keys expire; add another first, or end the mesh with --destroy"
    )]
    LastCoordinator(CoordinatorId),
    /// A mesh that has other coordinators does not end with this one.
    #[error(
        "coordinator {coordinator} is not the last one, {others} more would go on: remove those first, or this one without --destroy"
    )]
    NotLastCoordinator {
        /// Which.
        coordinator: CoordinatorId,
        /// How many others there are.
        others: usize,
    },
    /// The mesh is no more.
    #[error("mesh {0} was ended with its last coordinator: make a new one with `meshctl init`")]
    MeshEnded(MeshId),
    /// A coordinator without address, or with too many.
    #[error("a coordinator needs 1 to {max} addresses, got {0}", max = limits::MAX_COORDINATOR_ADDRESSES)]
    AddressCount(usize),
    /// The ranges cannot carry a mesh.
    #[error("overlay {0} cannot carry a mesh: choose private unicast ranges, /8 to /29 for IPv4, /16 to /64 for IPv6")]
    OverlayUnusable(Overlay),
    /// The certificate of the mesh CA is empty or too long.
    #[error("the mesh CA's certificate has {0} bytes: expected 1 to {max}", max = limits::MAX_CERTIFICATE)]
    CertificateSize(usize),
    /// Key lifetime out of range.
    #[error("key lifetime {0} is out of range: choose from {min} to {max}", min = limits::MIN_KEY_TTL, max = limits::MAX_KEY_TTL)]
    KeyTtl(MeshDuration),
    /// The log's language never goes back.
    #[error("log level {} cannot follow level {}", .wanted.0, .current.0)]
    LevelOrder {
        /// Now.
        current: Level,
        /// Asked for.
        wanted: Level,
    },
    /// A new epoch's counter must be above the present one.
    #[error("epoch {offered} does not come after {held}")]
    EpochOrder {
        /// Now.
        held: Epoch,
        /// Asked for.
        offered: Epoch,
    },
    /// A request id came again with another request.
    #[error("request id was used for another request: ask again with a new one")]
    RequestReused,
}
