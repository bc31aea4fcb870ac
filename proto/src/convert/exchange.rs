//! What coordinators tell each other about presence.

use super::{Wire, WireError, capped, ids_from_wire, ids_to_wire};
use crate::v1;
use mesh_types::limits::{MAX_DIGEST_BUCKETS, PRESENCE_BATCH};
use mesh_types::{CoordinatorId, ExchangeMessage, MeshDuration, OnlineNodes, SignedPresence};

impl Wire for ExchangeMessage {
    type Message = v1::PresenceExchange;

    fn to_wire(&self) -> v1::PresenceExchange {
        use v1::presence_exchange::Message;
        let message = match self {
            Self::Digest(buckets) => Message::Digest(v1::PresenceDigest { buckets: buckets.clone() }),
            Self::Records(records) => {
                Message::Records(v1::PresenceRecords { records: records.iter().map(Wire::to_wire).collect() })
            }
            Self::Online(online) => Message::Online(online.to_wire()),
        };
        v1::PresenceExchange { message: Some(message) }
    }

    /// A record that is not understood is left out: it is one node's word and must not silence the others.
    fn from_wire(message: v1::PresenceExchange) -> Result<Self, WireError> {
        use v1::presence_exchange::Message;
        Ok(match message.message.ok_or(WireError::Unknown { message: "PresenceExchange" })? {
            Message::Digest(digest) => {
                capped("PresenceDigest.buckets", digest.buckets.len(), MAX_DIGEST_BUCKETS)?;
                Self::Digest(digest.buckets)
            }
            Message::Records(records) => {
                capped("PresenceRecords.records", records.records.len(), PRESENCE_BATCH)?;
                let records = records.records.into_iter().filter_map(|record| SignedPresence::from_wire(record).ok());
                Self::Records(records.collect())
            }
            Message::Online(online) => Self::Online(OnlineNodes::from_wire(online)?),
        })
    }
}

impl Wire for OnlineNodes {
    type Message = v1::OnlineNodes;

    fn to_wire(&self) -> v1::OnlineNodes {
        v1::OnlineNodes {
            coordinator: self.coordinator.0,
            nodes: ids_to_wire(&self.nodes),
            ttl: self.ttl.0,
            complete: self.complete,
            gone: ids_to_wire(&self.gone),
        }
    }

    fn from_wire(message: v1::OnlineNodes) -> Result<Self, WireError> {
        Ok(Self {
            coordinator: CoordinatorId(message.coordinator),
            nodes: ids_from_wire("OnlineNodes.nodes", &message.nodes)?,
            ttl: MeshDuration(message.ttl),
            complete: message.complete,
            gone: ids_from_wire("OnlineNodes.gone", &message.gone)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use mesh_types::{NodeId, Signature};

    #[test]
    fn what_coordinators_exchange_is_understood_again() {
        let record = SignedPresence { payload: vec![1; 40], signature: Signature::from_bytes([2; 64]) };
        let online = OnlineNodes {
            coordinator: CoordinatorId(3),
            nodes: vec![NodeId::from_bytes([4; 16])],
            ttl: MeshDuration(10_000),
            complete: true,
            gone: vec![NodeId::from_bytes([5; 16])],
        };
        for message in [
            ExchangeMessage::Digest(vec![1, u64::MAX]),
            ExchangeMessage::Records(vec![record]),
            ExchangeMessage::Online(online),
        ] {
            assert_eq!(ExchangeMessage::from_wire(message.to_wire()).unwrap(), message);
        }
    }

    #[test]
    fn more_than_any_honest_coordinator_sends_is_refused() {
        let digest = ExchangeMessage::Digest(vec![0; MAX_DIGEST_BUCKETS + 1]).to_wire();
        assert!(matches!(ExchangeMessage::from_wire(digest), Err(WireError::TooMany { .. })));
    }
}
