//! Secrets that a user hands in: from a file, standard input or the environment, never from the command line alone.

use crate::args::Passphrase;
use crate::exit::{Exit, Failure};
use std::io::Read as _;
use std::path::Path;
use zeroize::Zeroizing;

/// More than any secret has; a wrong file is not read to its end.
const LONGEST: u64 = 64 * 1024;

/// The variable that holds the passphrase of a snapshot.
pub(super) const VARIABLE: &str = "MESH_BACKUP_PASSPHRASE";

/// Reads a token from a file, or from standard input if the file is `-`; white space around it is not part of it.
pub(super) fn read_token(file: &Path) -> Result<String, Failure> {
    Ok(read_secret(file)?.trim().to_owned())
}

fn read_secret(file: &Path) -> Result<Zeroizing<String>, Failure> {
    let mut text = Zeroizing::new(String::new());
    let read = if file == Path::new("-") {
        std::io::stdin().lock().take(LONGEST).read_to_string(&mut text)
    } else {
        std::fs::File::open(file).and_then(|file| file.take(LONGEST).read_to_string(&mut text))
    };
    read.map_err(|error| Failure::new(Exit::Failed, format!("cannot read {}: {error}", file.display())))?;
    Ok(text)
}

/// The passphrase of a snapshot, without the line's end. Spaces are part of it: `mesh-coordinator restore` reads it so.
pub(super) fn read(from: &Passphrase) -> Result<Zeroizing<String>, Failure> {
    let passphrase = match &from.passphrase_file {
        Some(file) => read_secret(file)?,
        None => Zeroizing::new(std::env::var(VARIABLE).unwrap_or_default()),
    };
    let passphrase = Zeroizing::new(passphrase.trim_end_matches(['\r', '\n']).to_owned());
    if passphrase.is_empty() {
        return Err(Failure::usage(format!(
            "no passphrase: the snapshot holds the mesh CA's key; give one with --passphrase-file FILE or {VARIABLE}"
        )));
    }
    Ok(passphrase)
}
