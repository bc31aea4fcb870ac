//! Who may do what over a coordinator's socket, as other users of its host find out.
//!
//! Needs `mesh-coordinator` beside `meshctl`, and root, to become other users: `MESHCTL_SKIP_ROOT_TESTS=1` leaves it out.

#![allow(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

/// Nobody's.
const USER: u32 = 54_321;
const PATIENCE: Duration = Duration::from_secs(40);

#[test]
fn a_member_of_the_sockets_group_reads_and_changes_nothing_and_others_do_not_even_read() {
    if std::env::var_os("MESHCTL_SKIP_ROOT_TESTS").is_some() {
        return;
    }
    assert!(nix::unistd::geteuid().is_root(), "run this as root, or set MESHCTL_SKIP_ROOT_TESTS=1 to leave it out");
    let place = Place::new();
    let pass = place.directory.path().join("pass");
    std::fs::write(&pass, "correct horse battery staple").unwrap();
    std::fs::set_permissions(&pass, Permissions::from_mode(0o644)).unwrap();

    let reads = [&["coordinator", "list"][..], &["node", "list"], &["token", "list"]];
    for verb in reads {
        assert_eq!(place.code(USER, place.group, verb), Some(0), "{verb:?} by a member");
        assert_eq!(place.code(USER, USER, verb), Some(3), "{verb:?} by a stranger");
    }
    for verb in [
        &["token", "create"][..],
        &["token", "revoke", "0011223344556677"],
        &["node", "rename", "a", "b"],
        &["node", "remove", "a"],
        &["node", "allow", "a"],
        &["coordinator", "add"],
        &["coordinator", "remove", "c1"],
        &["coordinator", "remove", "c1", "--destroy"],
        &["coordinator", "transfer-leader"],
        &["coordinator", "set-address", "192.0.2.1"],
        &["coordinator", "snapshot", "/tmp/none", "--passphrase-file", pass.to_str().unwrap()],
    ] {
        assert_eq!(place.code(USER, place.group, verb), Some(3), "{verb:?} by a member");
        assert_eq!(place.code(USER, USER, verb), Some(3), "{verb:?} by a stranger");
    }
    assert_eq!(place.code(0, 0, &["token", "create"]), Some(0), "root may");
}

/// A coordinator whose socket is open to a group.
struct Place {
    directory: tempfile::TempDir,
    group: u32,
    coordinator: Child,
}

impl Place {
    fn new() -> Self {
        let program = Path::new(env!("CARGO_BIN_EXE_meshctl"));
        let daemon = program.with_file_name("mesh-coordinator");
        assert!(daemon.exists(), "{} is missing: run `cargo build --workspace` first", daemon.display());
        let directory = tempfile::tempdir().unwrap();
        std::fs::set_permissions(directory.path(), Permissions::from_mode(0o755)).unwrap();
        // Other users may not reach into the folder that it was built in.
        std::fs::copy(program, directory.path().join("meshctl")).unwrap();
        let group = ["daemon", "nogroup", "users"].iter().find_map(|name| nix::unistd::Group::from_name(name).unwrap());
        let group = group.expect("every system has one of these");
        let coordinator = Command::new(daemon)
            .args(["--bootstrap", "--name", "c1", "--socket-group", &group.name])
            .args(["--advertise", "127.0.0.1:1", "--listen", "127.0.0.1:0"])
            .arg("--data-dir")
            .arg(directory.path().join("data"))
            .arg("--socket")
            .arg(directory.path().join("coordinator.sock"))
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let place = Self { directory, group: group.gid.as_raw(), coordinator };
        let begun = Instant::now();
        while place.code(0, 0, &["token", "create"]) != Some(0) {
            assert!(begun.elapsed() < PATIENCE, "the coordinator does not serve");
            std::thread::sleep(Duration::from_millis(50));
        }
        place
    }

    fn file(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// The exit code of `meshctl`, run by a user of one group.
    fn code(&self, user: u32, group: u32, verb: &[&str]) -> Option<i32> {
        let mut command = Command::new(self.file("meshctl"));
        command.args(verb).arg("--coordinator-socket").arg(self.file("coordinator.sock"));
        command.arg("--data-dir").arg(self.file("data")).uid(user).gid(group).stdin(Stdio::null());
        let Output { status, stderr, .. } = command.output().unwrap();
        eprintln!("{user}:{group} {verb:?}: {status}, {}", String::from_utf8_lossy(&stderr));
        status.code()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        // It may have ended by itself, which the test has seen by then.
        let _ = self.coordinator.kill();
        let _ = self.coordinator.wait();
    }
}
