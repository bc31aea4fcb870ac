//! The socket over which `wg(8)` and its like read and change a device: WireGuard's cross-platform userspace API.
//!
//! One thread accepts, one serves each client; a client may ask several times. The socket goes when this is dropped.

pub mod text;

use crate::engine::{Engine, EngineError};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::EventFd;
use std::fs;
use std::io::{self, BufRead, BufReader, Read as _, Write as _};
use std::os::fd::AsFd as _;
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;
use text::Request;
use tracing::{debug, warn};

/// Where `wg(8)` looks for sockets.
pub const DIRECTORY: &str = "/var/run/wireguard";
/// The largest request: far more than ten thousand peers with ten prefixes each.
const MAX_REQUEST: u64 = 64 << 20;
/// Clients served at a time; `wg(8)` asks one thing and goes.
const MAX_CLIENTS: usize = 16;
/// How long a client may take between two lines.
const PATIENCE: Duration = Duration::from_secs(5);

/// The socket, while it is served.
#[derive(Debug)]
pub struct Uapi {
    path: PathBuf,
    stop: Arc<EventFd>,
    thread: Option<JoinHandle<()>>,
}

impl Uapi {
    /// Serves an engine at the usual place. A socket that nobody serves any more is replaced.
    pub fn serve(engine: Arc<Engine>, directory: &Path) -> io::Result<Self> {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
        let path = directory.join(format!("{}.sock", engine.interface()));
        if UnixStream::connect(&path).is_ok() {
            return Err(io::Error::new(io::ErrorKind::AddrInUse, format!("{} is served already", path.display())));
        }
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let listener = UnixListener::bind(&path)?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600))?;
        listener.set_nonblocking(true)?;
        let stop = Arc::new(EventFd::new()?);
        let thread = std::thread::Builder::new().name("wg-uapi".into()).spawn({
            let stop = stop.clone();
            move || accept(&listener, &stop, &engine)
        })?;
        Ok(Self { path, stop, thread: Some(thread) })
    }
}

impl Uapi {
    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Uapi {
    fn drop(&mut self) {
        let _ = self.stop.write(1);
        // Gone already is as good.
        let _ = fs::remove_file(&self.path);
        if self.thread.take().is_some_and(|thread| thread.join().is_err()) {
            warn!("the thread of the UAPI socket panicked");
        }
    }
}

fn accept(listener: &UnixListener, stop: &EventFd, engine: &Arc<Engine>) {
    let clients = Arc::new(AtomicUsize::new(0));
    loop {
        let mut fds = [PollFd::new(listener.as_fd(), PollFlags::POLLIN), PollFd::new(stop.as_fd(), PollFlags::POLLIN)];
        match poll(&mut fds, PollTimeout::NONE) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(error) => return warn!(%error, "the UAPI socket is not served any more"),
        }
        if fds[1].any() == Some(true) {
            return;
        }
        let Ok((client, _)) = listener.accept() else { continue };
        if clients.fetch_add(1, Ordering::Relaxed) >= MAX_CLIENTS {
            clients.fetch_sub(1, Ordering::Relaxed);
            continue;
        }
        let (engine, served) = (engine.clone(), clients.clone());
        let thread = std::thread::Builder::new().name("wg-uapi-client".into()).spawn(move || {
            if let Err(error) = serve(&client, &engine) {
                debug!(%error, "UAPI client");
            }
            served.fetch_sub(1, Ordering::Relaxed);
        });
        if thread.is_err() {
            clients.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

/// Serves one client until it goes.
fn serve(client: &UnixStream, engine: &Engine) -> io::Result<()> {
    client.set_nonblocking(false)?;
    client.set_read_timeout(Some(PATIENCE))?;
    client.set_write_timeout(Some(PATIENCE))?;
    let mut reader = BufReader::new(client);
    while let Some(request) = read_request(&mut reader)? {
        let (mut answer, errno) = answer(&request, engine);
        answer.push_str(&format!("errno={errno}\n\n"));
        (&mut &*client).write_all(answer.as_bytes())?;
    }
    Ok(())
}

/// Reads up to the empty line; `None` at the end.
fn read_request(reader: &mut impl BufRead) -> io::Result<Option<String>> {
    let mut reader = reader.take(MAX_REQUEST);
    let mut request = String::new();
    loop {
        let before = request.len();
        if reader.read_line(&mut request)? == 0 {
            return if request.is_empty() { Ok(None) } else { Err(io::ErrorKind::UnexpectedEof.into()) };
        }
        if &request[before..] == "\n" {
            request.truncate(before);
            return Ok(Some(request));
        }
    }
}

/// The answer's lines and its error number: negative, as all implementations have it.
fn answer(request: &str, engine: &Engine) -> (String, i32) {
    match text::parse(request) {
        Ok(Request::Get) => (text::describe(&engine.read()), 0),
        Ok(Request::Set(changes)) => match engine.apply(&changes) {
            Ok(()) => (String::new(), 0),
            Err(error) => {
                warn!(%error, "change not made");
                (String::new(), -error.errno())
            }
        },
        Err(error) => {
            warn!(%error, "request not understood");
            (String::new(), -libc::EINVAL)
        }
    }
}

impl EngineError {
    fn errno(&self) -> i32 {
        match self {
            Self::PortTaken { .. } => libc::EADDRINUSE,
            Self::Gone { .. } => libc::ENODEV,
            Self::System { source, .. } => source.raw_os_error().unwrap_or(libc::EIO),
            Self::Tun(_) => libc::EIO,
        }
    }
}
