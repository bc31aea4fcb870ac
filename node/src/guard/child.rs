//! The guard as a child of its daemon: for hosts where no supervisor starts one.
//!
//! It is made with a kernel device and dismissed with it. Between the two lies a pipe, the guard's standard input, which
//! the daemon holds open. A word on it dismisses the guard; its end says that the daemon is gone, however it went, and
//! only then the guard begins to count. It is out of the daemon's process group, so that a Ctrl-C is not for it.

use super::{GuardError, Outcome, run};
use crate::state::Post;
use std::ffi::OsStr;
use std::io::{self, Read as _};
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;
use tokio::io::AsyncWriteExt as _;
use tokio::process::{Child, ChildStdin, Command};
use tokio::time::{sleep, timeout};
use tracing::{debug, warn};

/// This very program, also when its file was replaced by a later version.
const OWN_PROGRAM: &str = "/proc/self/exe";
/// A guard ends within milliseconds when it is dismissed.
const FAREWELL: Duration = Duration::from_secs(2);
/// Between two attempts of a guard that could not do its work.
const RETRY: Duration = Duration::from_secs(10);

/// A guard process, as its daemon holds it. Dropped with the daemon, it begins its work.
pub struct GuardChild {
    process: Child,
    pipe: ChildStdin,
}

impl GuardChild {
    /// Starts a guard over `interface` that knows by `state_dir` whose it is.
    pub fn start(state_dir: &Path, interface: &str) -> io::Result<Self> {
        Self::start_as(OWN_PROGRAM.as_ref(), state_dir, interface)
    }

    /// The same with the `meshd` at hand.
    pub fn start_as(program: &OsStr, state_dir: &Path, interface: &str) -> io::Result<Self> {
        let mut command = Command::new(program);
        command.arg0("meshd").args(["--guard", "--after-daemon", "--interface", interface, "--state-dir"]);
        command.arg(state_dir).stdin(Stdio::piped()).stdout(Stdio::null()).process_group(0);
        // What the supervisor or a caller has for the daemon alone.
        command.env_remove("NOTIFY_SOCKET").env_remove("MESH_JOIN_TOKEN");
        let mut process = command.spawn()?;
        let pipe = process.stdin.take().ok_or(io::ErrorKind::BrokenPipe)?;
        Ok(Self { process, pipe })
    }

    /// Its process.
    pub fn id(&self) -> Option<u32> {
        self.process.id()
    }

    /// Whether it is at its post.
    pub fn stands(&mut self) -> bool {
        matches!(self.process.try_wait(), Ok(None))
    }

    /// Sends it away: there is nothing left to guard.
    pub async fn dismiss(mut self) {
        let told = self.pipe.write_all(b"\n").await;
        match timeout(FAREWELL, self.process.wait()).await {
            Ok(Ok(status)) => debug!(%status, "the guard is dismissed"),
            // It has ended by itself, or will when it looks.
            Ok(Err(error)) => debug!(%error, ?told, "the guard was not seen to end"),
            Err(_) => warn!("the guard does not end; it does when it sees that the device is gone"),
        }
    }
}

/// Waits until the daemon at the other end of standard input is gone, and guards its device from then on.
pub(crate) async fn run_after_daemon(state_dir: &Path, interface: &str) -> Result<Outcome, GuardError> {
    // One is enough: a daemon that comes and goes must not gather guards.
    let _post = if state_dir.is_dir() { Some(Post::take(state_dir).await?) } else { None };
    if word_of_daemon().await {
        return Ok(Outcome::Dismissed);
    }
    loop {
        match run(state_dir, interface).await {
            // There is no supervisor to start another.
            Err(error @ GuardError::Device(_)) => warn!(%error, "cannot guard the device, trying again"),
            outcome => return outcome,
        }
        sleep(RETRY).await;
    }
}

/// Whether the daemon said something before it was gone.
async fn word_of_daemon() -> bool {
    let heard = tokio::task::spawn_blocking(|| io::stdin().lock().read(&mut [0]));
    matches!(heard.await, Ok(Ok(1..)))
}
