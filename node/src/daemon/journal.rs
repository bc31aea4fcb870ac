//! The journal as the loop uses it: appended to and synced, compacted when grown, and mended after a failure.
//!
//! A disk that is full must not keep a removed peer on the device, so what could not be written is still acted upon;
//! status says so, and the whole cache is written as soon as the disk takes it.

use crate::state::{JournalFile, StateDir, StateError};
use mesh_node_core::Cache;
use mesh_node_core::journal::{Record, ReplayError, encode_all};
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
    /// Opens the journal of `node` and replays it.
    pub(crate) fn open(state: &StateDir, mesh: MeshId, node: NodeId) -> Result<(Self, Cache), JournalError> {
        let (file, bytes) = JournalFile::open(state.path())?;
        let cache = match Cache::replay(&bytes, mesh, node) {
            Ok((cache, counted)) => {
                if counted < bytes.len() {
                    info!(bytes = bytes.len() - counted, "the journal ended in a torn record, which was dropped");
                }
                cache
            }
            Err(source) => return Err(JournalError::Replay { path: state.journal_path(), source }),
        };
        let whole = cache.compact();
        let mut journal = Self { file, compacted: whole.len() as u64, trouble: None };
        // A disk that takes nothing must not keep a node from its peers: it starts from what it has read.
        let rewritten = journal.file.rewrite(&whole);
        journal.note(rewritten);
        Ok((journal, cache))
    }

    /// Makes records durable, all or none; `cache` is what they lead to.
    pub(crate) fn append(&mut self, records: &[Record], cache: &Cache) {
        let grown = self.file.length() > SMALL.max(self.compacted * GROWTH);
        let written = block_in_place(|| {
            if grown || self.trouble.is_some() {
                let whole = cache.compact();
                self.compacted = whole.len() as u64;
                self.file.rewrite(&whole)
            } else {
                self.file.append(&encode_all(records))
            }
        });
        self.note(written);
    }

    fn note(&mut self, written: Result<(), StateError>) {
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

#[cfg(test)]
mod tests {
    use super::*;
    use mesh_node_core::Intent;
    use mesh_types::Incarnation;

    const MESH: MeshId = MeshId::from_bytes([1; 16]);
    const NODE: NodeId = NodeId::from_bytes([2; 16]);

    #[test]
    fn a_disk_that_takes_nothing_keeps_no_node_from_starting_on_what_it_remembers() {
        let home = tempfile::tempdir().unwrap();
        let state = StateDir::open(home.path()).unwrap();
        let (mut journal, mut cache) = Journal::open(&state, MESH, NODE).unwrap();
        let remember = |journal: &mut Journal, cache: &mut Cache, record: Record| {
            cache.apply(&record);
            journal.append(&[record], cache);
        };
        remember(&mut journal, &mut cache, Record::Intent(Intent::Down));
        drop(journal);
        // Where a new file would be written there is no room for one.
        let no_room = home.path().join("journal.new");
        std::fs::create_dir(&no_room).unwrap();
        let (mut journal, mut cache) = Journal::open(&state, MESH, NODE).unwrap();
        assert_eq!(cache.intent, Intent::Down);
        assert!(journal.trouble().is_some());
        std::fs::remove_dir(&no_room).unwrap();
        remember(&mut journal, &mut cache, Record::Incarnation(Incarnation(7)));
        assert_eq!(journal.trouble(), None);
        drop(journal);
        assert_eq!(Journal::open(&state, MESH, NODE).unwrap().1, cache);
    }
}
