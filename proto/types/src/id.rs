//! Identifiers: who is meant. All but the coordinator's are random and never reused.

use crate::bytes::{byte_display, byte_newtype, from_hex, to_hex};
use serde::{Deserialize, Serialize};

/// One mesh, made at `init`. Everything signed covers it, so that nothing of one mesh works in another.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MeshId([u8; 16]);
byte_newtype!(MeshId, 16, to_hex, from_hex, "mesh id");
byte_display!(MeshId, to_hex);

/// One node, random, never reused, also not after removal. Addresses belong to it, keys may change under it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeId([u8; 16]);
byte_newtype!(NodeId, 16, to_hex, from_hex, "node id");
byte_display!(NodeId, to_hex);

/// One join token; public, unlike its secret.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TokenId([u8; 8]);
byte_newtype!(TokenId, 8, to_hex, from_hex, "token id");
byte_display!(TokenId, to_hex);

/// One write request, chosen by whoever asks, so that asking twice does it once.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RequestId([u8; 16]);
byte_newtype!(RequestId, 16, to_hex, from_hex, "request id");
byte_display!(RequestId, to_hex);

/// One coordinator replica: its Raft node id, counted up by the registry, never reused.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, Debug)]
#[serde(transparent)]
pub struct CoordinatorId(pub u64);

impl std::fmt::Display for CoordinatorId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

/// Counts a node's starts as its presence sees them: a restarted node goes above the highest that is known of it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, Debug, Default)]
#[serde(transparent)]
pub struct Incarnation(pub u64);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_survive_their_text_form_and_json() {
        let id = NodeId::from_bytes([7; 16]);
        assert_eq!(id.to_string().parse::<NodeId>().unwrap(), id);
        let json = serde_json::to_string(&id).unwrap();
        assert_eq!(json, format!("\"{id}\""));
        assert_eq!(serde_json::from_str::<NodeId>(&json).unwrap(), id);
    }

    #[test]
    fn an_id_of_the_wrong_length_is_refused_with_both_lengths() {
        let error = "aabb".parse::<MeshId>().unwrap_err().to_string();
        assert_eq!(error, "mesh id: expected 16 bytes, got 2");
    }
}
