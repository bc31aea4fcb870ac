//! What coordinators tell each other about presence, leader or no leader: digests, records, and who is online where.

use crate::id::{CoordinatorId, NodeId};
use crate::presence::SignedPresence;
use crate::session::Claim;
use crate::time::MeshDuration;

/// One message between two coordinators.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum ExchangeMessage {
    /// A hash over each bucket of the sender's records; what differs is answered with [`ExchangeMessage::Records`].
    Digest(Vec<u64>),
    /// Words of nodes, new or missed.
    Records(Vec<SignedPresence>),
    /// Who has a session with the sender.
    Online(OnlineNodes),
    /// Another daemon with this node's identity is with the sender: does the one that is with the receiver live?
    Ask(NodeId),
    /// The answer.
    Answer(Answer),
}

/// What a coordinator found when it was asked whether a node's session is alive.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Answer {
    /// Whose session.
    pub node: NodeId,
    /// The claim of the daemon that answered just now; none if there is no session, or it did not answer.
    pub alive: Option<Claim>,
}

/// A node with a session.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct OnlineNode {
    /// Which.
    pub id: NodeId,
    /// Its daemon's claim; none from a coordinator that does not tell.
    pub claim: Option<Claim>,
}

/// Which nodes have a session with a coordinator.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct OnlineNodes {
    /// Whose sessions: the sender itself, never a third.
    pub coordinator: CoordinatorId,
    /// Nodes with a session.
    pub nodes: Vec<OnlineNode>,
    /// How long this holds without another such message.
    pub ttl: MeshDuration,
    /// Whether `nodes` are all of the sender's sessions, so that any other is gone.
    pub complete: bool,
    /// Nodes whose session has ended.
    pub gone: Vec<NodeId>,
}
