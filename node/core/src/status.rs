//! What a node shows of itself: a picture for people and for the local API, made anew each time it is asked for.

use crate::action::Warning;
use crate::clock::Trust;
use mesh_types::{Candidate, CoordinatorId, CoordinatorRecord, Epoch, MeshTime, NodeRecord, Revision};
use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::Duration;

/// A node's state at one moment.
#[derive(Clone, PartialEq, Debug)]
pub struct Status {
    /// Where in its life.
    pub phase: Phase,
    /// The node's own record, as last seen in the netmap or, before the first netmap, as told at join.
    pub node: NodeRecord,
    /// The history held; none before the first netmap.
    pub epoch: Option<Epoch>,
    /// The revision held.
    pub revision: Revision,
    /// The session, if there is one.
    pub session: Option<SessionStatus>,
    /// All coordinators of the mesh.
    pub coordinators: Vec<CoordinatorRecord>,
    /// Mesh time.
    pub time: MeshTime,
    /// How far to rely on it.
    pub trust: Trust,
    /// Where this node says it may be reached.
    pub candidates: Vec<Candidate>,
    /// Own datagrams that were kept from going through the own tunnel.
    pub dropped: u64,
    /// All other members, by name.
    pub peers: Vec<PeerStatus>,
    /// What a person should know now.
    pub warnings: Vec<Warning>,
}

/// Where a node is in its life.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Phase {
    /// A member, its interface up.
    Up,
    /// A member, its interface taken down by hand.
    Down,
    /// No longer a member.
    Removed,
}

/// The session and what its coordinator last said of the cluster.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SessionStatus {
    /// Who is at the other end.
    pub coordinator: CoordinatorId,
    /// Whether it has contact to a leader.
    pub fresh: bool,
    /// Who leads, if known.
    pub leader: Option<CoordinatorId>,
    /// Who votes.
    pub voters: BTreeSet<CoordinatorId>,
}

/// One peer.
#[derive(Clone, PartialEq, Debug)]
pub struct PeerStatus {
    /// Its record.
    pub node: NodeRecord,
    /// Where the device sends now.
    pub endpoint: Option<SocketAddr>,
    /// Endpoints that were refused because they are reached through the mesh.
    pub refused: Option<Refused>,
    /// What is known of the way there.
    pub path: PathStatus,
    /// Whether a coordinator has a session with it, or it was heard from in the last minutes.
    pub online: bool,
    /// The last completed handshake, by this host's clock.
    pub last_handshake: Option<MeshTime>,
    /// From the last probe to its reply.
    pub latency: Option<Duration>,
    /// Bytes received from it.
    pub rx_bytes: u64,
    /// Bytes sent to it.
    pub tx_bytes: u64,
}

/// Endpoints of a peer that were refused, or replaced, because they are reached through the mesh.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Refused {
    /// The last of them.
    pub endpoint: SocketAddr,
    /// How often that was.
    pub times: u64,
}

/// What is known of the way to a peer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PathStatus {
    /// Nothing has come from it yet, or it fell silent.
    None,
    /// It answered, and nothing says that it would not now.
    Direct,
}

impl PathStatus {
    /// The word for it in the local API.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Direct => "direct",
        }
    }
}
