//! What coordinators tell each other about presence, leader or no leader: digests, records, and who is online where.

use crate::id::{CoordinatorId, NodeId};
use crate::presence::SignedPresence;
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
}

/// Which nodes have a session with a coordinator.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct OnlineNodes {
    /// Whose sessions: the sender itself, never a third.
    pub coordinator: CoordinatorId,
    /// Nodes with a session.
    pub nodes: Vec<NodeId>,
    /// How long this holds without another such message.
    pub ttl: MeshDuration,
    /// Whether `nodes` are all of the sender's sessions, so that any other is gone.
    pub complete: bool,
    /// Nodes whose session has ended.
    pub gone: Vec<NodeId>,
}
