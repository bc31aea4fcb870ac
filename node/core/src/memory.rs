//! What a node remembers over restarts, and the records by which that changes. How it lies on disk is
//! [`crate::journal`]'s.

use crate::clock::StoredClock;
use crate::netmap::{Delta, Netmap};
use mesh_types::{Incarnation, MeshId, NodeId};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::net::SocketAddr;

/// Whether the interface shall be there.
#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Debug, Default)]
pub enum Intent {
    /// As long as the node is a member.
    #[default]
    Up,
    /// Taken down by hand; the membership stays.
    Down,
}

/// One change of what a node remembers.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, Debug)]
pub enum Record {
    /// All of the netmap.
    Netmap(Box<Netmap>),
    /// What changed in the netmap.
    Delta(Delta),
    /// Where a peer last answered from.
    Endpoint {
        /// The peer.
        node: NodeId,
        /// The place.
        endpoint: SocketAddr,
    },
    /// Mesh time.
    Clock(StoredClock),
    /// Up or down.
    Intent(Intent),
    /// The highest incarnation that this node's presence has used.
    Incarnation(Incarnation),
}

/// All that a node remembers.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Cache {
    /// The mesh that it is of.
    pub mesh: MeshId,
    /// The node that it is of.
    pub node: NodeId,
    /// The netmap, once there is one.
    pub netmap: Option<Netmap>,
    /// Where each peer last answered from.
    pub endpoints: BTreeMap<NodeId, SocketAddr>,
    /// Mesh time, once heard.
    pub clock: Option<StoredClock>,
    /// Up or down.
    pub intent: Intent,
    /// The highest incarnation used.
    pub incarnation: Incarnation,
}

impl Cache {
    /// Remembers nothing yet.
    pub fn new(mesh: MeshId, node: NodeId) -> Self {
        Self {
            mesh,
            node,
            netmap: None,
            endpoints: BTreeMap::new(),
            clock: None,
            intent: Intent::Up,
            incarnation: Incarnation(0),
        }
    }

    /// Takes one change. A removed peer's endpoint goes with it.
    pub fn apply(&mut self, record: &Record) {
        match record {
            Record::Netmap(netmap) => {
                self.endpoints.retain(|id, _| netmap.nodes.contains_key(id));
                self.netmap = Some((**netmap).clone());
            }
            Record::Delta(delta) => {
                if let Some(netmap) = &mut self.netmap {
                    netmap.apply(delta);
                    self.endpoints.retain(|id, _| netmap.nodes.contains_key(id));
                }
            }
            Record::Endpoint { node, endpoint } => {
                if self.netmap.as_ref().is_some_and(|n| n.nodes.contains_key(node)) {
                    self.endpoints.insert(*node, *endpoint);
                }
            }
            Record::Clock(clock) => self.clock = Some(*clock),
            Record::Intent(intent) => self.intent = *intent,
            Record::Incarnation(incarnation) => self.incarnation = *incarnation,
        }
    }
}
