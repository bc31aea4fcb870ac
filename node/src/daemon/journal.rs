//! The journal as the loop uses it: appended to and synced, compacted when grown, and mended after a failure.
//!
//! A disk that is full must not keep a removed peer on the device, so what could not be written is still acted upon;
//! status says so, and the whole cache is written as soon as the disk takes it.

use crate::state::{JournalFile, StateDir, StateError};
use mesh_node_core::Cache;
use mesh_node_core::journal::ReplayError;
use mesh_types::{MeshId, NodeId};
use thiserror::Error;
use tokio::task::block_in_place;
use tracing::{error, info};

/// A journal smaller than this is not worth compacting.
const SMALL: u64 = 256 << 10;
/// Compact when it is this many times what the last compaction left.
const GROWTH: u64 = 4;

/// Why the journal cannot be taken up.
#[derive(Debug, Error)]
pub enum JournalError {
    /// The file cannot be read or written.
    #[error(transparent)]
    State(#[from] StateError),
    /// Its content is refused.
    #[error("{path}: {source}")]
    Replay {
        /// The file.
        path: std::path::PathBuf,
        /// Why.
        source: ReplayError,
    },
}

/// The open journal of a member.
pub(crate) struct Journal {
    file: JournalFile,
    compacted: u64,
    trouble: Option<String>,
}

impl Journal {
    /// Opens the journal of `node` and replays it; a fresh member's begins anew if it is of an earlier membership.
    pub(crate) fn open(
        state: &StateDir,
        mesh: MeshId,
        node: NodeId,
        fresh: bool,
    ) -> Result<(Self, Cache), JournalError> {
        let (mut file, bytes) = JournalFile::open(state.path())?;
        let cache = match Cache::replay(&bytes, mesh, node) {
            Ok((cache, counted)) => {
                if counted < bytes.len() {
                    info!(bytes = bytes.len() - counted, "the journal ended in a torn record, which was dropped");
                }
                cache
            }
            Err(ReplayError::Foreign { .. }) if fresh => Cache::new(mesh, node),
            Err(source) => return Err(JournalError::Replay { path: state.journal_path(), source }),
        };
        let whole = cache.compact();
        file.rewrite(&whole)?;
        Ok((Self { file, compacted: whole.len() as u64, trouble: None }, cache))
    }

    /// Makes encoded records durable; `cache` is what they lead to.
    pub(crate) fn append(&mut self, records: &[u8], cache: &Cache) {
        let grown = self.file.length() > SMALL.max(self.compacted * GROWTH);
        let written = block_in_place(|| {
            if grown || self.trouble.is_some() {
                let whole = cache.compact();
                self.compacted = whole.len() as u64;
                self.file.rewrite(&whole)
            } else {
                self.file.append(records)
            }
        });
        self.trouble = match written {
            Ok(()) => None,
            Err(error) => {
                error!(%error, "the journal is not written: a restart now would forget the latest changes");
                Some(error.to_string())
            }
        };
    }

    /// Why the last write failed, if it did.
    pub(crate) fn trouble(&self) -> Option<&str> {
        self.trouble.as_deref()
    }
}
