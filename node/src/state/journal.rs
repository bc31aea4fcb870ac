//! The journal as a file: appended to and synced, replaced at the start and when it has grown.
//!
//! Its content is the core's (`mesh_node_core::journal`); here are only bytes.

use super::files::{create_private, read_capped, replace};
use super::{JOURNAL, StateError};
use std::fs::{File, OpenOptions};
use std::io::{Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};

/// Bytes taken of a journal: ten times what the largest mesh needs, compacted.
const MAX_JOURNAL: u64 = 256 << 20;

/// The open journal. After a failed write it is not to be trusted: open it anew.
pub struct JournalFile {
    directory: PathBuf,
    file: File,
    length: u64,
}

impl JournalFile {
    /// Opens the journal in `directory`, making an empty one if there is none, and gives its bytes.
    pub fn open(directory: &Path) -> Result<(Self, Vec<u8>), StateError> {
        let path = directory.join(JOURNAL);
        let held = read_capped(&path, MAX_JOURNAL)?;
        let file = match held {
            Some(_) => OpenOptions::new().read(true).write(true).open(&path).map_err(StateError::io("open", &path))?,
            None => create_private(&path)?,
        };
        let bytes = held.unwrap_or_default();
        let length = bytes.len() as u64;
        Ok((Self { directory: directory.to_owned(), file, length }, bytes))
    }

    /// Bytes in it.
    pub fn length(&self) -> u64 {
        self.length
    }

    /// Appends `bytes`; durable when it returns.
    pub fn append(&mut self, bytes: &[u8]) -> Result<(), StateError> {
        let path = self.path();
        let write = |file: &mut File, at| {
            file.seek(SeekFrom::Start(at))?;
            file.write_all(bytes)?;
            file.sync_data()
        };
        write(&mut self.file, self.length).map_err(StateError::io("write", &path))?;
        self.length += bytes.len() as u64;
        Ok(())
    }

    /// Puts `bytes` in the place of everything, durably: compaction.
    pub fn rewrite(&mut self, bytes: &[u8]) -> Result<(), StateError> {
        replace(&self.directory, JOURNAL, bytes)?;
        let path = self.path();
        self.file = OpenOptions::new().read(true).write(true).open(&path).map_err(StateError::io("open", &path))?;
        self.length = bytes.len() as u64;
        Ok(())
    }

    fn path(&self) -> PathBuf {
        self.directory.join(JOURNAL)
    }
}
