//! The post of the guard: held by one process at a time, and the next to come relieves it.

use super::{GUARD, StateError};
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::fs::{File, OpenOptions};
use std::io::{self, Read as _, Seek as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::time::Duration;
use tokio::time::sleep;

const LOOK_AGAIN: Duration = Duration::from_millis(10);
/// A guard that is told to end does so at once: it has nothing to put in order.
const LOOKS: u32 = 200;

/// The guard's post over one state directory, held for as long as this lives. The file has the holder's process id.
pub struct Post {
    _held: Flock<File>,
}

impl Post {
    /// Takes the post, from who holds it now if there is one.
    pub async fn take(state_dir: &Path) -> Result<Self, StateError> {
        let path = state_dir.join(GUARD);
        let mut options = OpenOptions::new();
        let file = options.read(true).write(true).create(true).truncate(false).mode(0o600).open(&path);
        let mut file = file.map_err(StateError::io("open", &path))?;
        for _ in 0..LOOKS {
            file = match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
                Ok(mut held) => {
                    sign(&mut held).map_err(StateError::io("write", &path))?;
                    return Ok(Self { _held: held });
                }
                Err((mut file, Errno::EWOULDBLOCK)) => {
                    relieve(&mut file);
                    file
                }
                Err((_, errno)) => return Err(StateError::io("lock", &path)(errno.into())),
            };
            sleep(LOOK_AGAIN).await;
        }
        Err(StateError::io("lock", &path)(io::ErrorKind::TimedOut.into()))
    }
}

fn sign(file: &mut File) -> io::Result<()> {
    file.set_len(0)?;
    file.rewind()?;
    writeln!(file, "{}", std::process::id())
}

/// Ends who holds the file. That the lock is held says that the process lives, and its id is nobody else's.
fn relieve(file: &mut File) {
    let mut text = String::new();
    let read = file.rewind().and_then(|()| file.read_to_string(&mut text));
    let holder = read.ok().and_then(|_| text.trim().parse().ok()).filter(|&holder: &i32| holder > 1);
    if let Some(holder) = holder {
        // It may have ended by itself in this moment.
        let _ = kill(Pid::from_raw(holder), Signal::SIGTERM);
    }
}
