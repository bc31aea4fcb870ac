//! Files that hold a secret or name a process: whole or not at all, and the owner's alone.

use crate::exit::{Exit, Failure};
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

/// Writes a line that nobody else may read at any moment, and that a reader sees whole or not at all. What was there is
/// replaced, a symbolic link too.
pub(crate) fn write_private(file: &Path, line: &str) -> Result<(), Failure> {
    let mut name = file.as_os_str().to_owned();
    name.push(format!(".{}", std::process::id()));
    let written = (|| {
        let mut options = std::fs::OpenOptions::new();
        let mut temporary = options.write(true).create_new(true).mode(0o600).open(&name)?;
        writeln!(temporary, "{line}")?;
        temporary.sync_all()?;
        std::fs::rename(&name, file)
    })();
    written.map_err(|error| {
        // What is left of it is of no use to anybody.
        let _ = std::fs::remove_file(&name);
        Failure::new(Exit::Failed, format!("cannot write {}: {error}", file.display()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    #[test]
    fn a_private_file_is_its_owners_alone_and_replaces_what_was_there() {
        let directory = tempfile::tempdir().unwrap();
        let (file, other) = (directory.path().join("token"), directory.path().join("other"));
        std::fs::write(&other, "precious").unwrap();
        std::os::unix::fs::symlink(&other, &file).unwrap();
        write_private(&file, "mesh1x").unwrap();
        assert_eq!(std::fs::read_to_string(&file).unwrap(), "mesh1x\n");
        assert_eq!(std::fs::read_to_string(&other).unwrap(), "precious", "no link is followed");
        assert_eq!(file.symlink_metadata().unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 2);
    }
}
