//! How much the kernel keeps of a connection, beside what this process does.

use mesh_types::limits::STRANGER_SOCKET_BUFFER;
use nix::libc;
use nix::sys::socket::{setsockopt, sockopt};
use std::io;
use std::os::fd::AsRawFd as _;
use tokio::net::TcpStream;

/// Which buffer sizes are fixed (socket(7), Linux 5.14; all but a few architectures have this number).
const SO_BUF_LOCK: libc::c_int = 72;

/// For a caller who is nobody yet: both buffers are small and stay so.
pub(super) fn fix_buffers(stream: &TcpStream) -> io::Result<()> {
    setsockopt(stream, sockopt::RcvBuf, &STRANGER_SOCKET_BUFFER)?;
    setsockopt(stream, sockopt::SndBuf, &STRANGER_SOCKET_BUFFER)?;
    Ok(())
}

/// For a member: the kernel fits the buffers to the traffic again. One that is too old to be told leaves them small.
pub(super) fn free_buffers(stream: &TcpStream) {
    let neither: libc::c_uint = 0;
    let (value, length) = ((&raw const neither).cast(), size_of_val(&neither) as libc::socklen_t);
    // SAFETY: the descriptor is open while `stream` is borrowed, and the kernel reads `length` bytes at `value`.
    let result = unsafe { libc::setsockopt(stream.as_raw_fd(), libc::SOL_SOCKET, SO_BUF_LOCK, value, length) };
    if result != 0 {
        tracing::debug!(error = %io::Error::last_os_error(), "socket buffers stay small");
    }
}
