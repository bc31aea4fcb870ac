//! What coordinators tell each other about presence.

use super::{Wire, WireError, capped, field, ids_from_wire, ids_to_wire, invalid};
use crate::v1;
use bytes::Bytes;
use mesh_types::limits::{MAX_DIGEST_BUCKETS, PRESENCE_BATCH};
use mesh_types::{
    Answer, Claim, CoordinatorId, ExchangeMessage, MeshDuration, MeshTime, NodeId, OnlineNode, OnlineNodes,
    SignedPresence,
};

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
            Self::Ask(node) => Message::Ask(v1::SessionAsk { node: Bytes::copy_from_slice(node.as_bytes()) }),
            Self::Answer(answer) => Message::Answer(answer.to_wire()),
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
            Message::Ask(ask) => Self::Ask(field("SessionAsk.node", &ask.node)?),
            Message::Answer(answer) => Self::Answer(Answer::from_wire(answer)?),
        })
    }
}

impl Wire for OnlineNodes {
    type Message = v1::OnlineNodes;

    fn to_wire(&self) -> v1::OnlineNodes {
        let ids: Vec<NodeId> = self.nodes.iter().map(|node| node.id).collect();
        // All or none: they are told apart by their place.
        let claims: Option<Vec<Claim>> = self.nodes.iter().map(|node| node.claim).collect();
        let claims = claims.unwrap_or_default();
        v1::OnlineNodes {
            coordinator: self.coordinator.0,
            nodes: ids_to_wire(&ids),
            ttl: self.ttl.0,
            complete: self.complete,
            gone: ids_to_wire(&self.gone),
            instances: claims.iter().map(|claim| claim.instance).collect(),
            since: claims.iter().map(|claim| claim.since.0).collect(),
        }
    }

    fn from_wire(message: v1::OnlineNodes) -> Result<Self, WireError> {
        let ids = ids_from_wire("OnlineNodes.nodes", &message.nodes)?;
        let claims: Vec<Option<Claim>> = match (message.instances.len(), message.since.len()) {
            (0, 0) => vec![None; ids.len()],
            (instances, since) if instances == ids.len() && since == ids.len() => {
                let all = message.since.into_iter().zip(message.instances);
                all.map(|(since, instance)| Some(Claim { since: MeshTime(since), instance })).collect()
            }
            (instances, since) => {
                let reason = format!("{instances} instances and {since} times for {} nodes", ids.len());
                return Err(invalid("OnlineNodes.instances", reason));
            }
        };
        Ok(Self {
            coordinator: CoordinatorId(message.coordinator),
            nodes: ids.into_iter().zip(claims).map(|(id, claim)| OnlineNode { id, claim }).collect(),
            ttl: MeshDuration(message.ttl),
            complete: message.complete,
            gone: ids_from_wire("OnlineNodes.gone", &message.gone)?,
        })
    }
}

impl Wire for Answer {
    type Message = v1::SessionAnswer;

    fn to_wire(&self) -> v1::SessionAnswer {
        v1::SessionAnswer {
            node: Bytes::copy_from_slice(self.node.as_bytes()),
            alive: self.alive.is_some(),
            instance: self.alive.map_or(0, |claim| claim.instance),
            since: self.alive.map_or(0, |claim| claim.since.0),
        }
    }

    fn from_wire(message: v1::SessionAnswer) -> Result<Self, WireError> {
        let claim = Claim { since: MeshTime(message.since), instance: message.instance };
        Ok(Self { node: field("SessionAnswer.node", &message.node)?, alive: message.alive.then_some(claim) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use mesh_types::Signature;

    #[test]
    fn what_coordinators_exchange_is_understood_again() {
        let record = SignedPresence { payload: vec![1; 40], signature: Signature::from_bytes([2; 64]) };
        let claim = Claim { since: MeshTime(6), instance: 7 };
        let node = NodeId::from_bytes([4; 16]);
        let online = |claim| OnlineNodes {
            coordinator: CoordinatorId(3),
            nodes: vec![OnlineNode { id: node, claim }],
            ttl: MeshDuration(10_000),
            complete: true,
            gone: vec![NodeId::from_bytes([5; 16])],
        };
        for message in [
            ExchangeMessage::Digest(vec![1, u64::MAX]),
            ExchangeMessage::Records(vec![record]),
            ExchangeMessage::Online(online(Some(claim))),
            ExchangeMessage::Online(online(None)),
            ExchangeMessage::Ask(node),
            ExchangeMessage::Answer(Answer { node, alive: Some(claim) }),
            ExchangeMessage::Answer(Answer { node, alive: None }),
        ] {
            assert_eq!(ExchangeMessage::from_wire(message.to_wire()).unwrap(), message);
        }
    }

    #[test]
    fn more_than_any_honest_coordinator_sends_is_refused() {
        let digest = ExchangeMessage::Digest(vec![0; MAX_DIGEST_BUCKETS + 1]).to_wire();
        assert!(matches!(ExchangeMessage::from_wire(digest), Err(WireError::TooMany { .. })));
    }

    #[test]
    fn a_claim_that_belongs_to_no_node_is_refused() {
        let message = v1::OnlineNodes { instances: vec![1], ..v1::OnlineNodes::default() };
        assert!(matches!(OnlineNodes::from_wire(message), Err(WireError::Invalid { .. })));
    }
}
