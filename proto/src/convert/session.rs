//! What flows over a session, both ways.

use super::{Wire, WireError, all_from_wire, all_to_wire, capped, field, invalid, nested};
use crate::v1;
use bytes::Bytes;
use mesh_types::limits::{
    MAX_COORDINATORS, MAX_DIGEST_BUCKETS, MAX_NODES, MAX_SOFTWARE, PRESENCE_BATCH, SNAPSHOT_PAGE,
};
use mesh_types::session::{CloseReason, Hello, PresenceUpdate, SnapshotPage, Tick, Welcome};
use mesh_types::{
    Changes, CoordinatorId, CoordinatorMessage, Incarnation, Level, MeshConfig, MeshTime, NodeId, NodeMessage,
    Revision, SignedPresence,
};
use prost::Message as _;

impl Wire for NodeMessage {
    type Message = v1::NodeMessage;

    fn to_wire(&self) -> v1::NodeMessage {
        use v1::node_message::Message;
        let message = match self {
            Self::Hello(hello) => Message::Hello(hello.to_wire()),
            Self::Presence(presence) => Message::Presence(presence.to_wire()),
            Self::Pong => Message::Pong(v1::Pong {}),
        };
        v1::NodeMessage { message: Some(message) }
    }

    fn from_wire(message: v1::NodeMessage) -> Result<Self, WireError> {
        use v1::node_message::Message;
        Ok(match message.message.ok_or(WireError::Unknown { message: "NodeMessage" })? {
            Message::Hello(hello) => Self::Hello(Hello::from_wire(hello)?),
            Message::Presence(presence) => Self::Presence(SignedPresence::from_wire(presence)?),
            Message::Pong(v1::Pong {}) => Self::Pong,
        })
    }
}

impl Wire for Hello {
    type Message = v1::Hello;

    fn to_wire(&self) -> v1::Hello {
        v1::Hello {
            mesh: Bytes::copy_from_slice(self.mesh.as_bytes()),
            epoch: self.epoch.map(|epoch| epoch.to_wire()),
            revision: self.revision.0,
            level: self.level.0,
            instance: self.instance,
            software: self.software.clone(),
            presence: self.presence.clone(),
        }
    }

    fn from_wire(message: v1::Hello) -> Result<Self, WireError> {
        capped("Hello.presence", message.presence.len(), MAX_DIGEST_BUCKETS)?;
        Ok(Self {
            mesh: field("Hello.mesh", &message.mesh)?,
            epoch: message.epoch.map(Wire::from_wire).transpose()?,
            revision: Revision(message.revision),
            level: Level(message.level),
            instance: message.instance,
            software: readable(&message.software),
            presence: message.presence,
        })
    }
}

/// Text for people is cut and cleaned, not refused: it decides nothing.
fn readable(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(MAX_SOFTWARE).collect()
}

/// A clone of the message shares its bytes: what goes to many sessions is made once and cloned for each.
impl Wire for CoordinatorMessage {
    type Message = v1::CoordinatorMessage;

    fn to_wire(&self) -> v1::CoordinatorMessage {
        use v1::coordinator_message::Message;
        let message = match self {
            Self::Welcome(welcome) => Message::Welcome(encoded(welcome)),
            Self::Snapshot(page) => Message::Snapshot(encoded(page)),
            Self::Delta(changes) => Message::Delta(encoded(changes)),
            Self::Presence(update) => Message::Presence(encoded(update)),
            Self::Tick(tick) => Message::Tick(encoded(tick)),
            Self::Close(reason) => Message::Close(encoded(reason)),
            Self::Ping => Message::Ping(v1::Ping {}.encode_to_vec().into()),
        };
        v1::CoordinatorMessage { message: Some(message) }
    }

    fn from_wire(message: v1::CoordinatorMessage) -> Result<Self, WireError> {
        use v1::coordinator_message::Message;
        Ok(match message.message.ok_or(WireError::Unknown { message: "CoordinatorMessage" })? {
            Message::Welcome(bytes) => Self::Welcome(decoded("CoordinatorMessage.welcome", bytes)?),
            Message::Snapshot(bytes) => Self::Snapshot(decoded("CoordinatorMessage.snapshot", bytes)?),
            Message::Delta(bytes) => Self::Delta(decoded("CoordinatorMessage.delta", bytes)?),
            Message::Presence(bytes) => Self::Presence(decoded("CoordinatorMessage.presence", bytes)?),
            Message::Tick(bytes) => Self::Tick(decoded("CoordinatorMessage.tick", bytes)?),
            Message::Close(bytes) => Self::Close(decoded("CoordinatorMessage.close", bytes)?),
            // Its fields are for later versions.
            Message::Ping(_) => Self::Ping,
        })
    }
}

fn encoded<T: Wire<Message: prost::Message>>(value: &T) -> Bytes {
    value.to_wire().encode_to_vec().into()
}

fn decoded<T: Wire<Message: prost::Message + Default>>(field: &'static str, bytes: Bytes) -> Result<T, WireError> {
    T::from_wire(T::Message::decode(bytes).map_err(|error| invalid(field, error))?)
}

impl Wire for Welcome {
    type Message = v1::Welcome;

    fn to_wire(&self) -> v1::Welcome {
        v1::Welcome {
            coordinator: self.coordinator.0,
            epoch: Some(self.epoch.to_wire()),
            incarnation: self.incarnation.0,
            tick: Some(self.tick.to_wire()),
        }
    }

    fn from_wire(message: v1::Welcome) -> Result<Self, WireError> {
        Ok(Self {
            coordinator: CoordinatorId(message.coordinator),
            epoch: nested("Welcome.epoch", message.epoch)?,
            incarnation: Incarnation(message.incarnation),
            tick: nested("Welcome.tick", message.tick)?,
        })
    }
}

impl Wire for Tick {
    type Message = v1::Tick;

    fn to_wire(&self) -> v1::Tick {
        v1::Tick {
            time: self.time.0,
            fresh: self.fresh,
            leader: self.leader.map(|leader| leader.0),
            voters: self.voters.iter().map(|voter| voter.0).collect(),
        }
    }

    fn from_wire(message: v1::Tick) -> Result<Self, WireError> {
        // While Raft passes from one set of voters to the next, both are voters.
        capped("Tick.voters", message.voters.len(), 2 * MAX_COORDINATORS)?;
        Ok(Self {
            time: MeshTime(message.time),
            fresh: message.fresh,
            leader: message.leader.map(CoordinatorId),
            voters: message.voters.into_iter().map(CoordinatorId).collect(),
        })
    }
}

impl Wire for SnapshotPage {
    type Message = v1::SnapshotPage;

    fn to_wire(&self) -> v1::SnapshotPage {
        v1::SnapshotPage {
            revision: self.revision.0,
            config: self.config.as_ref().map(Wire::to_wire),
            nodes: all_to_wire(&self.nodes),
            last: self.last,
        }
    }

    fn from_wire(message: v1::SnapshotPage) -> Result<Self, WireError> {
        capped("SnapshotPage.nodes", message.nodes.len(), SNAPSHOT_PAGE)?;
        Ok(Self {
            revision: Revision(message.revision),
            config: message.config.map(MeshConfig::from_wire).transpose()?,
            nodes: all_from_wire(message.nodes)?,
            last: message.last,
        })
    }
}

impl Wire for Changes {
    type Message = v1::Delta;

    fn to_wire(&self) -> v1::Delta {
        v1::Delta {
            from: self.from.0,
            to: self.to.0,
            upserts: all_to_wire(&self.upserts),
            removals: ids_to_wire(&self.removals),
            config: self.config.as_ref().map(Wire::to_wire),
        }
    }

    fn from_wire(message: v1::Delta) -> Result<Self, WireError> {
        capped("Delta.upserts", message.upserts.len(), MAX_NODES)?;
        if message.to < message.from {
            return Err(invalid("Delta.to", format!("revision {} lies before {}", message.to, message.from)));
        }
        Ok(Self {
            from: Revision(message.from),
            to: Revision(message.to),
            upserts: all_from_wire(message.upserts)?,
            removals: ids_from_wire("Delta.removals", &message.removals)?,
            config: message.config.map(MeshConfig::from_wire).transpose()?,
        })
    }
}

impl Wire for PresenceUpdate {
    type Message = v1::PresenceUpdate;

    fn to_wire(&self) -> v1::PresenceUpdate {
        v1::PresenceUpdate {
            records: all_to_wire(&self.records),
            online: ids_to_wire(&self.online),
            offline: ids_to_wire(&self.offline),
        }
    }

    /// A record that is not understood is left out: it is one node's word and must not silence the others.
    fn from_wire(message: v1::PresenceUpdate) -> Result<Self, WireError> {
        capped("PresenceUpdate.records", message.records.len(), PRESENCE_BATCH)?;
        Ok(Self {
            records: message.records.into_iter().filter_map(|record| SignedPresence::from_wire(record).ok()).collect(),
            online: ids_from_wire("PresenceUpdate.online", &message.online)?,
            offline: ids_from_wire("PresenceUpdate.offline", &message.offline)?,
        })
    }
}

impl Wire for CloseReason {
    type Message = v1::Close;

    fn to_wire(&self) -> v1::Close {
        use v1::close::Reason;
        let reason = match self {
            Self::Removed => Reason::Removed,
            Self::DuplicateIdentity => Reason::DuplicateIdentity,
            Self::WrongHistory => Reason::WrongHistory,
            Self::Protocol => Reason::Protocol,
            Self::SlowReader => Reason::SlowReader,
            Self::GoElsewhere => Reason::GoElsewhere,
            Self::Full => Reason::Full,
        };
        v1::Close { reason: reason.into() }
    }

    fn from_wire(message: v1::Close) -> Result<Self, WireError> {
        use v1::close::Reason;
        Ok(match Reason::try_from(message.reason) {
            Ok(Reason::Removed) => Self::Removed,
            Ok(Reason::DuplicateIdentity) => Self::DuplicateIdentity,
            Ok(Reason::WrongHistory) => Self::WrongHistory,
            Ok(Reason::Protocol) => Self::Protocol,
            Ok(Reason::SlowReader) => Self::SlowReader,
            Ok(Reason::GoElsewhere) => Self::GoElsewhere,
            Ok(Reason::Full) => Self::Full,
            Ok(Reason::Unspecified) | Err(_) => return Err(WireError::Unknown { message: "Close" }),
        })
    }
}

/// Makes byte strings of node ids.
pub fn ids_to_wire(ids: &[NodeId]) -> Vec<Bytes> {
    ids.iter().map(|id| Bytes::copy_from_slice(id.as_bytes())).collect()
}

/// Parses node ids, at most as many as a mesh has nodes.
pub fn ids_from_wire(name: &'static str, ids: &[Bytes]) -> Result<Vec<NodeId>, WireError> {
    capped(name, ids.len(), MAX_NODES)?;
    ids.iter().map(|id| field(name, id)).collect()
}
