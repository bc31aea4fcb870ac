//! Finding the daemons' programs: beside meshctl first, so that a build tree and an unpacked archive work as they are.

use crate::exit::{Exit, Failure};
use std::path::{Path, PathBuf};

/// The coordinator daemon.
pub(crate) const COORDINATOR: &str = "mesh-coordinator";
/// The node daemon.
pub(crate) const NODE: &str = "meshd";

/// Finds a program beside this one, else in `PATH`.
pub(crate) fn find(name: &str) -> Result<PathBuf, Failure> {
    let own = std::env::current_exe().ok();
    let beside = own.as_deref().and_then(Path::parent).map(Path::to_path_buf);
    let path = std::env::var_os("PATH").unwrap_or_default();
    let places = beside.into_iter().chain(std::env::split_paths(&path));
    places.map(|place| place.join(name)).find(|file| is_program(file)).ok_or_else(|| {
        let hint = if cfg!(debug_assertions) { "; in the source tree, run `cargo build` first" } else { "" };
        Failure::new(Exit::Failed, format!("{name} not found beside meshctl nor in PATH: install it there{hint}"))
    })
}

fn is_program(file: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt as _;
    file.metadata().is_ok_and(|data| data.is_file() && data.permissions().mode() & 0o111 != 0)
}
