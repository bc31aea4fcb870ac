//! What makes this host a member: who it is in the mesh, its certificate, and whom it may trust and ask.

use super::StateError;
use mesh_types::netmap::Certificate;
use mesh_types::{CoordinatorAddress, MeshConfig, MeshId, NodeRecord};
use serde::{Deserialize, Serialize};
use std::path::Path;

/// The layout of the file.
const FORMAT: u32 = 1;
/// Formats are counted up one by one: what claims to be beyond this is of no version, but not a membership at all.
const MAX_FORMAT: u32 = 1 << 16;

/// This host's place in a mesh. Written when a join succeeds, and again with each new certificate.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, Debug)]
pub struct Membership {
    /// This node, as told at join.
    pub record: NodeRecord,
    /// Its certificate.
    pub certificate: Certificate,
    /// The CA that issued it.
    pub authority: Certificate,
    /// The mesh's settings as told at join; the journal's are newer.
    pub config: MeshConfig,
    /// Coordinators that join tokens named, the latest first, tried beside those of the settings.
    pub named: Vec<CoordinatorAddress>,
    /// Whether the mesh still wants this node.
    pub standing: Standing,
}

/// Whether the mesh still wants a node.
#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Debug)]
#[serde(rename_all = "lowercase")]
pub enum Standing {
    /// A member.
    Member,
    /// Removed by an operator; the keys are barred until they allow it again.
    Removed,
}

impl Membership {
    /// The mesh.
    pub fn mesh(&self) -> MeshId {
        self.config.mesh
    }

    pub(super) fn encode(&self) -> Vec<u8> {
        let mut bytes = FORMAT.to_be_bytes().to_vec();
        ciborium::into_writer(self, &mut bytes).expect("writing to memory does not fail");
        bytes
    }

    pub(super) fn decode(bytes: &[u8], path: &Path) -> Result<Self, StateError> {
        let damaged = |why: String| StateError::Damaged { path: path.to_owned(), why };
        let (format, content) = bytes.split_first_chunk::<4>().ok_or_else(|| damaged("cut short".to_owned()))?;
        match u32::from_be_bytes(*format) {
            FORMAT => ciborium::from_reader(content).map_err(|error| damaged(error.to_string())),
            found if (FORMAT..MAX_FORMAT).contains(&found) => {
                Err(StateError::Newer { path: path.to_owned(), found, known: FORMAT })
            }
            _ => Err(damaged("it does not begin as a membership does".to_owned())),
        }
    }
}
