//! Files that are whole or absent: written aside, synced, renamed.

use super::StateError;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

/// Bytes taken of a small file: a membership with all coordinators and CAs has under 100 KiB.
pub(super) const MAX_FILE: u64 = 1 << 20;

/// The bytes of `path`, at most `cap`; `None` if it does not exist.
pub(super) fn read_capped(path: &Path, cap: u64) -> Result<Option<Vec<u8>>, StateError> {
    let file = match File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        result => result.map_err(StateError::io("read", path))?,
    };
    let mut bytes = Vec::new();
    file.take(cap + 1).read_to_end(&mut bytes).map_err(StateError::io("read", path))?;
    if bytes.len() as u64 > cap {
        return Err(StateError::Damaged { path: path.to_owned(), why: format!("larger than {cap} bytes") });
    }
    Ok(Some(bytes))
}

/// What a file is called until it is whole.
pub(super) fn aside(name: &str) -> String {
    format!("{name}.new")
}

/// Puts `bytes` in the place of `directory/name`, durably, with mode 0600 from the first instant.
pub(super) fn replace(directory: &Path, name: &str, bytes: &[u8]) -> Result<(), StateError> {
    let aside = directory.join(aside(name));
    let path = directory.join(name);
    // One left by a crash may have any mode; a new file has ours.
    match fs::remove_file(&aside) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(StateError::io("remove", &aside)(error)),
        _ => {}
    }
    let mut file = create_private(&aside)?;
    file.write_all(bytes).and_then(|()| file.sync_all()).map_err(StateError::io("write", &aside))?;
    fs::rename(&aside, &path).map_err(StateError::io("replace", &path))?;
    sync_directory(directory)
}

/// A new file, mode 0600, that must not exist yet.
pub(super) fn create_private(path: &Path) -> Result<File, StateError> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
        .map_err(StateError::io("create", path))
}

/// Makes renames and removals in `directory` durable.
pub(super) fn sync_directory(directory: &Path) -> Result<(), StateError> {
    File::open(directory).and_then(|file| file.sync_all()).map_err(StateError::io("sync", directory))
}
