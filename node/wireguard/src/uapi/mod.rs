//! The socket over which `wg(8)` and its like read and change a device: WireGuard's cross-platform userspace API.
//!
//! One thread accepts, one serves each client; a client may ask several times. The socket goes when this is dropped.

pub mod text;
mod wiped;

use crate::engine::{Engine, EngineError};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::EventFd;
use nix::sys::socket::{self, AddressFamily, Backlog, SockFlag, SockType, UnixAddr};
use nix::sys::stat::{Mode, fchmod};
use std::fs;
use std::io::{self, Read, Write as _};
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::os::unix::fs::DirBuilderExt as _;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;
use text::Request;
use tracing::{debug, warn};
use wiped::Wiped;
use zeroize::Zeroizing;

/// Where `wg(8)` looks for sockets.
pub const DIRECTORY: &str = "/var/run/wireguard";
/// The largest request: far more than ten thousand peers with ten prefixes each.
const MAX_REQUEST: usize = 64 << 20;
/// Bytes that are read at a time.
const CHUNK: usize = 4_096;
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
        let listener = listen(&path)?;
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

/// Binds the socket. Linux gives the file the mode of the socket, less the umask: so nobody else can connect, not even for
/// an instant.
fn listen(path: &Path) -> io::Result<UnixListener> {
    let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
    let socket = socket::socket(AddressFamily::Unix, SockType::Stream, flags, None)?;
    fchmod(&socket, Mode::S_IRUSR | Mode::S_IWUSR)?;
    socket::bind(socket.as_raw_fd(), &UnixAddr::new(path)?)?;
    socket::listen(&socket, Backlog::new(MAX_CLIENTS as i32)?)?;
    Ok(socket.into())
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
    let mut received = Wiped::default();
    while let Some(request) = read_request(&mut &*client, &mut received)? {
        (&mut &*client).write_all(answer(&request, engine).as_bytes())?;
    }
    Ok(())
}

/// Reads up to the empty line, which is left out; `None` at the end. What came behind it stays in `received`.
fn read_request(reader: &mut impl Read, received: &mut Wiped) -> io::Result<Option<Wiped>> {
    let mut chunk = Zeroizing::new([0; CHUNK]);
    let mut looked_at = 0;
    loop {
        if let Some(end) = empty_line(received.as_bytes(), looked_at) {
            let request = received.split_to(end);
            received.split_to(1);
            return Ok(Some(request));
        }
        looked_at = received.as_bytes().len();
        match reader.read(&mut *chunk)? {
            0 if looked_at == 0 => return Ok(None),
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            count if looked_at + count > MAX_REQUEST => return Err(io::ErrorKind::FileTooLarge.into()),
            count => received.push(&chunk[..count]),
        }
    }
}

/// Where the first line without anything in it begins, if it is not before `from`.
fn empty_line(text: &[u8], from: usize) -> Option<usize> {
    (from..text.len()).find(|&at| text[at] == b'\n' && (at == 0 || text[at - 1] == b'\n'))
}

/// The answer, with its error number: negative, as all implementations have it.
fn answer(request: &Wiped, engine: &Engine) -> Wiped {
    let mut out = Wiped::default();
    let parsed = std::str::from_utf8(request.as_bytes()).map(text::parse);
    let errno = match parsed {
        Ok(Ok(Request::Get)) => {
            text::describe(&engine.read(), &mut out);
            0
        }
        Ok(Ok(Request::Set(changes))) => match engine.apply(&changes) {
            Ok(()) => 0,
            Err(error) => {
                warn!(%error, "change not made");
                -error.errno()
            }
        },
        Ok(Err(error)) => {
            warn!(%error, "request not understood");
            -libc::EINVAL
        }
        Err(_) => {
            warn!("request not understood: it is no UTF-8");
            -libc::EINVAL
        }
    };
    out.push(format!("errno={errno}\n\n").as_bytes());
    out
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_end_with_an_empty_line_however_they_are_cut() {
        let text = b"get=1\n\nset=1\nlisten_port=7\n\n\nget=1\n\n";
        for size in 1..text.len() {
            let mut chunks: Box<dyn Read> = Box::new(io::empty());
            for chunk in text.chunks(size) {
                chunks = Box::new(chunks.chain(chunk));
            }
            let mut received = Wiped::default();
            let mut requests = Vec::new();
            while let Some(request) = read_request(&mut chunks, &mut received).unwrap() {
                requests.push(String::from_utf8(request.as_bytes().to_vec()).unwrap());
            }
            assert_eq!(requests, ["get=1\n", "set=1\nlisten_port=7\n", "", "get=1\n"], "{size} at a time");
        }
        let cut = read_request(&mut &b"get=1\n"[..], &mut Wiped::default());
        assert_eq!(cut.map(drop).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    }

    #[test]
    fn the_socket_is_its_owners_alone_from_the_start() {
        use std::os::unix::fs::PermissionsExt as _;
        let path = std::env::temp_dir().join(format!("mesh-uapi-{}.sock", std::process::id()));
        let _listener = listen(&path).unwrap();
        let mode = fs::metadata(&path).unwrap().permissions().mode();
        fs::remove_file(&path).unwrap();
        assert_eq!(mode & 0o777, 0o600);
    }
}
