//! Unix sockets between the processes of one host: made with the right mode, and with the caller's credentials.
//!
//! A socket lives as long as its [`LocalListener`], which removes it from the file system at the end. Who may do what
//! over it is decided by the services, from [`PeerCredentials`].

use crate::channel::{Keepalive, over};
use crate::line::Line;
use crate::shares::{Share, Shares};
use mesh_types::limits::MAX_LOCAL_CONNECTIONS_PER_USER;
use nix::sys::stat::{Mode, fchmod};
use std::fs::{self, DirBuilder, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, FileTypeExt as _, MetadataExt as _, PermissionsExt as _, chown};
use std::path::{Path, PathBuf};
use std::time::Duration;
use thiserror::Error;
use tokio::net::{UnixListener, UnixSocket, UnixStream};
use tokio::time::timeout;
use tonic::transport::Channel;

/// Callers waiting to be accepted: a person's commands and a few scripts.
const BACKLOG: u32 = 64;
/// A live daemon accepts at once; a full backlog is as good as no answer.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// After accept itself failed, usually for want of file descriptors, trying at once would only spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// A person may stop a command that shows pings, and go on with it; longer than this it only holds memory.
const WRITE_STALL: Duration = Duration::from_secs(30);

/// Who may open a socket.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Access {
    /// The user who made it (mode 0600).
    Owner,
    /// Also members of the group with this id (mode 0660).
    Group(u32),
}

/// The process at the other end of a local connection. Found in each request by [`peer`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PeerCredentials {
    /// Its effective user.
    pub uid: u32,
    /// Its effective group.
    pub gid: u32,
    /// Its process, if the kernel tells.
    pub pid: Option<i32>,
}

/// Who made `request`; `None` if it did not come over a [`LocalListener`].
pub fn peer<T>(request: &tonic::Request<T>) -> Option<&PeerCredentials> {
    request.extensions().get::<PeerCredentials>()
}

/// Why a local socket was not made or not reached.
#[derive(Debug, Error)]
pub enum LocalError {
    /// There is no such socket.
    #[error("no socket at {path}: the daemon is not running, or uses another path (--socket)", path = .0.display())]
    NotThere(PathBuf),
    /// The socket is there, but no process behind it.
    #[error("nobody listens at {path}: the daemon has ended; start it again", path = .0.display())]
    Refused(PathBuf),
    /// The file system does not let us.
    #[error("no permission for {path}: run as root, or as a member of the socket's group", path = .0.display())]
    Permission(PathBuf),
    /// The process behind the socket does not accept.
    #[error("the daemon at {path} does not answer within {} s", CONNECT_TIMEOUT.as_secs(), path = .0.display())]
    Silent(PathBuf),
    /// Another daemon listens there.
    #[error("another daemon listens at {path}: stop it, or choose another path (--socket)", path = .0.display())]
    InUse(PathBuf),
    /// Something else lies there, which is not removed.
    #[error("{path} exists and is not a socket: remove it, or choose another path (--socket)", path = .0.display())]
    NotASocket(PathBuf),
    /// Anything else.
    #[error("socket {path}: {error}", path = .path.display())]
    Io {
        /// The socket.
        path: PathBuf,
        /// What the system said.
        error: io::Error,
    },
    /// The process behind the socket does not speak as daemons do.
    #[error("what listens at {path} is not a daemon of the mesh: {error}", path = .path.display())]
    Protocol {
        /// The socket.
        path: PathBuf,
        /// What went wrong.
        error: tonic::transport::Error,
    },
}

/// Opens a channel to the daemon at `path`. It is one connection: when it ends, connect again.
pub async fn connect(path: &Path) -> Result<Channel, LocalError> {
    let stream = open(path).await?;
    over(stream, Keepalive::Off).await.map_err(|error| LocalError::Protocol { path: path.to_owned(), error })
}

async fn open(path: &Path) -> Result<UnixStream, LocalError> {
    match timeout(CONNECT_TIMEOUT, UnixStream::connect(path)).await {
        Ok(result) => result.map_err(|error| explain(path, error)),
        Err(_) => Err(LocalError::Silent(path.to_owned())),
    }
}

fn explain(path: &Path, error: io::Error) -> LocalError {
    let path = path.to_owned();
    match error.kind() {
        io::ErrorKind::NotFound => LocalError::NotThere(path),
        io::ErrorKind::ConnectionRefused => LocalError::Refused(path),
        io::ErrorKind::PermissionDenied => LocalError::Permission(path),
        // A full backlog; connecting does not wait for room.
        io::ErrorKind::WouldBlock => LocalError::Silent(path),
        io::ErrorKind::AddrInUse => LocalError::InUse(path),
        _ => LocalError::Io { path, error },
    }
}

/// A socket with its listener.
#[derive(Debug)]
pub struct LocalListener {
    listener: UnixListener,
    path: PathBuf,
    /// Device and inode, so that the end of this listener does not remove another's socket.
    file: (u64, u64),
    of_user: Shares<u32>,
}

impl LocalListener {
    /// Listens at `path`, in the place of a socket whose process is gone; makes the directory if there is none.
    ///
    /// At no instant may others than `access` says open it. Two daemons that start at the same moment are told apart
    /// by the lock on their state directory, not here.
    pub async fn bind(path: &Path, access: Access) -> Result<Self, LocalError> {
        make_room(path).await?;
        let (listener, file) = listen(path, access).map_err(|error| explain(path, error))?;
        let of_user = Shares::of(MAX_LOCAL_CONNECTIONS_PER_USER);
        Ok(Self { listener, path: path.to_owned(), file, of_user })
    }

    /// Where it listens.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The next connection.
    pub async fn next(&mut self) -> LocalStream {
        loop {
            match self.listener.accept().await.and_then(|(stream, _)| self.admit(stream)) {
                Ok(Some(stream)) => return stream,
                Ok(None) => {}
                Err(error) => {
                    tracing::warn!(path = %self.path.display(), %error, "local connection not accepted");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }

    /// None if its user has as many connections as one may.
    fn admit(&self, stream: UnixStream) -> io::Result<Option<LocalStream>> {
        let credentials = stream.peer_cred()?;
        let peer = PeerCredentials { uid: credentials.uid(), gid: credentials.gid(), pid: credentials.pid() };
        let share = self.of_user.take(peer.uid);
        if share.is_none() {
            tracing::warn!(path = %self.path.display(), uid = peer.uid, "too many local connections of one user");
        }
        Ok(share.map(|share| LocalStream { peer, line: Line::new(stream, WRITE_STALL), share }))
    }
}

/// Makes the directory, and removes a socket that nobody listens at.
async fn make_room(path: &Path) -> Result<(), LocalError> {
    if let Some(directory) = path.parent() {
        DirBuilder::new().recursive(true).mode(0o755).create(directory).map_err(|error| explain(directory, error))?;
    }
    match fs::symlink_metadata(path) {
        Ok(found) if !found.file_type().is_socket() => return Err(LocalError::NotASocket(path.to_owned())),
        Ok(_) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(explain(path, error)),
    }
    match open(path).await {
        Err(LocalError::Refused(_)) => fs::remove_file(path).map_err(|error| explain(path, error)),
        Err(LocalError::NotThere(_)) => Ok(()),
        Ok(_) | Err(LocalError::Silent(_)) => Err(LocalError::InUse(path.to_owned())),
        Err(other) => Err(other),
    }
}

fn listen(path: &Path, access: Access) -> io::Result<(UnixListener, (u64, u64))> {
    let socket = UnixSocket::new_stream()?;
    // Linux gives the file the mode of the socket, less the umask: so it is never wider, not even for an instant.
    fchmod(&socket, Mode::from_bits_truncate(0o600))?;
    socket.bind(path)?;
    let listener = socket.listen(BACKLOG)?;
    if let Access::Group(group) = access {
        chown(path, None, Some(group))?;
        fs::set_permissions(path, Permissions::from_mode(0o660))?;
    }
    Ok((listener, file_of(path)?))
}

fn file_of(path: &Path) -> io::Result<(u64, u64)> {
    fs::symlink_metadata(path).map(|found| (found.dev(), found.ino()))
}

impl Drop for LocalListener {
    fn drop(&mut self) {
        if file_of(&self.path).is_ok_and(|file| file == self.file)
            && let Err(error) = fs::remove_file(&self.path)
        {
            tracing::debug!(path = %self.path.display(), %error, "socket not removed");
        }
    }
}

/// An accepted local connection, for [`crate::serve::serve_local`].
#[derive(Debug)]
pub struct LocalStream {
    pub(crate) peer: PeerCredentials,
    pub(crate) line: Line<UnixStream>,
    pub(crate) share: Share<u32>,
}
