//! The words of a session: the one bidirectional stream between a node and a coordinator.
//!
//! The node says hello with what it holds; the coordinator answers `Welcome`, then whatever brings the node up to date
//! (a delta, or a snapshot in pages), then deltas and presence as they happen, and the mesh time every few seconds.

use crate::epoch::{Epoch, Level, Revision};
use crate::id::{CoordinatorId, Incarnation, MeshId, NodeId};
use crate::netmap::{Changes, MeshConfig, NodeRecord};
use crate::presence::SignedPresence;
use crate::time::MeshTime;
use std::collections::BTreeSet;

/// What a node says.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum NodeMessage {
    /// First, and only first.
    Hello(Hello),
    /// The node's own presence, new or changed.
    Presence(SignedPresence),
    /// The answer to [`CoordinatorMessage::Ping`], at once.
    Pong,
}

/// What a node holds as it opens a session. Who it is, its certificate says.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Hello {
    /// The mesh it belongs to.
    pub mesh: MeshId,
    /// The history it follows; none before the first snapshot.
    pub epoch: Option<Epoch>,
    /// The revision it holds.
    pub revision: Revision,
    /// The highest level it understands.
    pub level: Level,
    /// Random for each start of the daemon: tells two live copies of one identity apart.
    pub instance: u64,
    /// Its software version, for people.
    pub software: String,
    /// The sums of a [`PresenceDigest`](crate::PresenceDigest) over all presence that it holds, its own included; empty
    /// if it holds none. Records of buckets that are the same are not sent again.
    pub presence: Vec<u64>,
}

/// What a coordinator says.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum CoordinatorMessage {
    /// First, and only first.
    Welcome(Welcome),
    /// One page of everything; what no page names is removed once the last has come.
    Snapshot(SnapshotPage),
    /// What changed.
    Delta(Changes),
    /// Where nodes may be reached and whether they are online.
    Presence(PresenceUpdate),
    /// The mesh time and the cluster's health, every few seconds and on change.
    Tick(Tick),
    /// Last: why the coordinator ends the session.
    Close(CloseReason),
    /// Another daemon with this identity asks for a session: whoever still lives says [`NodeMessage::Pong`].
    Ping,
}

/// The coordinator's side of hello.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Welcome {
    /// Who speaks.
    pub coordinator: CoordinatorId,
    /// The history it follows.
    pub epoch: Epoch,
    /// The highest incarnation known of this node; the node goes above it.
    pub incarnation: Incarnation,
    /// Time and health.
    pub tick: Tick,
}

/// Mesh time and health of the cluster as this coordinator sees them.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Tick {
    /// The mesh time.
    pub time: MeshTime,
    /// Whether this replica has contact to a leader, so that what it serves is fresh.
    pub fresh: bool,
    /// Who leads, if known.
    pub leader: Option<CoordinatorId>,
    /// Who votes; coordinators that do not are learners.
    pub voters: BTreeSet<CoordinatorId>,
}

/// One page of a snapshot.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SnapshotPage {
    /// The revision of the whole; the same on every page.
    pub revision: Revision,
    /// The settings, on the first page only: a page with settings starts a new snapshot.
    pub config: Option<MeshConfig>,
    /// Some of the members.
    pub nodes: Vec<NodeRecord>,
    /// Whether this page completes the snapshot.
    pub last: bool,
}

/// Presence that changed.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct PresenceUpdate {
    /// New words of nodes.
    pub records: Vec<SignedPresence>,
    /// Nodes that now have a session with some coordinator.
    pub online: Vec<NodeId>,
    /// Nodes that no longer have one.
    pub offline: Vec<NodeId>,
}

/// Which of two daemons with one identity keeps its session: the one whose claim is the less, so the field order is the
/// policy.
///
/// The time is the coordinator's that took the session, and is handed on as it is: all coordinators compare the same
/// two values and come to the same verdict. Their clocks may differ by a little, which matters only for two daemons
/// that began within that little.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Claim {
    /// Since when this start of the daemon has had sessions without a gap.
    pub since: MeshTime,
    /// [`Hello::instance`] of the daemon.
    pub instance: u64,
}

/// Why a coordinator ended a session.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum CloseReason {
    /// The node was removed from the mesh.
    Removed,
    /// Another daemon with this identity has a session that is older.
    DuplicateIdentity,
    /// The node belongs to another mesh, or follows a later or split history.
    WrongHistory,
    /// The node did not keep to the protocol.
    Protocol,
    /// The node read too slowly; it may come back at once and will be brought up to date.
    SlowReader,
    /// The coordinator stops, or lost its leader and others are fresh; go to another.
    GoElsewhere,
    /// The coordinator has as many sessions as it takes; go to another.
    Full,
}
