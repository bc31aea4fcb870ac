//! The daemons as units of systemd: told their settings, started and enabled, stopped and disabled.

use crate::exit::{Exit, Failure};
use crate::paths::Paths;
use crate::programs;
use anyhow::Context as _;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;

const DIRECTORIES: [&str; 4] =
    ["/etc/systemd/system", "/run/systemd/system", "/usr/local/lib/systemd/system", "/usr/lib/systemd/system"];

/// Whether systemd runs here and has a unit for this daemon.
pub(crate) fn exists(program: &str) -> bool {
    let unit = format!("{program}@.service");
    let booted = Path::new("/run/systemd/system").is_dir();
    booted && DIRECTORIES.iter().any(|directory| Path::new(directory).join(&unit).exists())
}

/// Hands the settings to the unit of this mesh, starts it, and enables it.
pub(crate) fn start(program: &str, settings: &[OsString], paths: &Paths) -> Result<(), Failure> {
    let settings = settings.iter().map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ");
    if program == programs::COORDINATOR {
        let file = Path::new("/etc/meshctl").join(&paths.mesh).join("coordinator");
        write(&file, &format!("COORDINATOR_ARGUMENTS={settings}\n"))?;
    } else if !settings.is_empty() {
        write(&drop_in(paths), &format!("[Service]\nEnvironment=\"MESHD_ARGUMENTS={settings}\"\n"))?;
        systemctl(&["daemon-reload"])?;
    }
    systemctl(&["enable", "--now", &name(program, paths)])
}

/// Enables the unit of this mesh if it is what runs.
pub(crate) fn enable_running(program: &str, paths: &Paths) -> Result<(), Failure> {
    let unit = name(program, paths);
    let runs = Command::new("systemctl").args(["is-active", "--quiet", &unit]).status();
    let runs = runs.is_ok_and(|status| status.success());
    if runs { systemctl(&["enable", "--quiet", &unit]) } else { Ok(()) }
}

/// Stops and disables the node's unit of this mesh, and takes its settings away.
pub(crate) fn retire_node(paths: &Paths) -> Result<(), Failure> {
    systemctl(&["disable", "--now", "--quiet", &name(programs::NODE, paths)])?;
    let settings = drop_in(paths);
    if !settings.exists() {
        return Ok(());
    }
    std::fs::remove_file(&settings).with_context(|| format!("cannot remove {}", settings.display()))?;
    if let Some(directory) = settings.parent() {
        // It stays if there are drop-ins of the administrator's own.
        let _ = std::fs::remove_dir(directory);
    }
    systemctl(&["daemon-reload"])
}

fn name(program: &str, paths: &Paths) -> String {
    format!("{program}@{}.service", paths.mesh)
}

/// Where the settings of one machine are for its node's unit.
fn drop_in(paths: &Paths) -> PathBuf {
    PathBuf::from(format!("/etc/systemd/system/{}.d/meshctl.conf", name(programs::NODE, paths)))
}

fn write(file: &Path, content: &str) -> Result<(), Failure> {
    if let Some(directory) = file.parent() {
        std::fs::create_dir_all(directory).with_context(|| format!("cannot make {}", directory.display()))?;
    }
    std::fs::write(file, content).with_context(|| format!("cannot write {}", file.display()))?;
    Ok(())
}

fn systemctl(arguments: &[&str]) -> Result<(), Failure> {
    let words = arguments.join(" ");
    let status = Command::new("systemctl").args(arguments).status().context("cannot run systemctl")?;
    if status.success() {
        return Ok(());
    }
    let unit = arguments.last().copied().unwrap_or_default();
    Err(Failure::new(Exit::Failed, format!("`systemctl {words}` failed: see `journalctl -u {unit}`")))
}
