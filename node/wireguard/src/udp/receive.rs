//! Taking datagrams from a socket, several trains at a time.

use super::name::address;
use super::{Control, Endpoint, Socket};
use crate::ancillary::Said;
use nix::errno::Errno;
use std::io;
use std::mem::{size_of, zeroed};
use std::os::fd::AsRawFd;
use std::ptr;

/// Trains taken in one go: enough to spare system calls under load, few enough for their bytes to stay in the cache.
const TRAINS: usize = 8;
/// The largest train: what one UDP datagram can be.
const TRAIN_BYTES: usize = 65_536;

/// Buffers for receiving, used again and again.
pub(crate) struct Receiver {
    buffers: Box<[u8]>,
    names: Box<[libc::sockaddr_in6; TRAINS]>,
    controls: Box<[Control; TRAINS]>,
    headers: Box<[libc::mmsghdr; TRAINS]>,
    pieces: Box<[libc::iovec; TRAINS]>,
}

// SAFETY: the pointers inside `headers` and `pieces` are written anew before every system call and not followed outside
// it but into the boxes beside them, which move along.
unsafe impl Send for Receiver {}

/// One train.
pub(crate) struct Received<'a> {
    /// Its packets, end to end.
    pub(crate) bytes: &'a mut [u8],
    /// The length of each but the last, which may be shorter.
    pub(crate) stride: usize,
    /// Who sent it, and to which of our addresses.
    pub(crate) endpoint: Endpoint,
    /// The outer header's ECN bits.
    pub(crate) ecn: u8,
}

impl Receiver {
    /// Buffers that take no memory to speak of before they are used.
    pub(crate) fn new() -> Self {
        // SAFETY: all three are plain data, for which all zeroes (null pointers among them) are a value.
        let (names, headers, pieces) = unsafe { (zeroed(), zeroed(), zeroed()) };
        Self {
            buffers: vec![0; TRAINS * TRAIN_BYTES].into_boxed_slice(),
            names: Box::new(names),
            controls: Box::new([Control::EMPTY; TRAINS]),
            headers: Box::new(headers),
            pieces: Box::new(pieces),
        }
    }

    /// Takes what is there, and says how many trains that is. `WouldBlock` when there is none.
    pub(crate) fn receive(&mut self, socket: &Socket) -> io::Result<usize> {
        for (n, buffer) in self.buffers.chunks_exact_mut(TRAIN_BYTES).enumerate() {
            self.pieces[n] = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
            let header = &mut self.headers[n].msg_hdr;
            header.msg_name = ptr::from_mut(&mut self.names[n]).cast();
            header.msg_namelen = size_of::<libc::sockaddr_in6>() as libc::socklen_t;
            header.msg_iov = &mut self.pieces[n];
            header.msg_iovlen = 1;
            header.msg_control = self.controls[n].0.as_mut_ptr().cast();
            header.msg_controllen = self.controls[n].0.len();
            header.msg_flags = 0;
        }
        // SAFETY: the descriptor is open; every header points to a name, a buffer and a control buffer of the lengths
        // given, which live in boxes of `self` and are borrowed for the length of the call.
        let count = unsafe {
            libc::recvmmsg(
                socket.fd.as_raw_fd(),
                self.headers.as_mut_ptr(),
                TRAINS as libc::c_uint,
                libc::MSG_DONTWAIT as _,
                ptr::null_mut(),
            )
        };
        Ok(Errno::result(count)? as usize)
    }

    /// One of the trains that [`Receiver::receive`] counted; `None` if it was cut or came from nowhere.
    pub(crate) fn train(&mut self, n: usize) -> Option<Received<'_>> {
        let header = &self.headers[n];
        if header.msg_hdr.msg_flags & (libc::MSG_TRUNC | libc::MSG_CTRUNC) != 0 {
            return None;
        }
        let remote = address(&self.names[n])?;
        let length = (header.msg_len as usize).min(TRAIN_BYTES);
        let control = &self.controls[n].0;
        let said = Said::read(&control[..control.len().min(header.msg_hdr.msg_controllen)]);
        let bytes = &mut self.buffers[n * TRAIN_BYTES..][..length];
        let stride = said.stride.filter(|stride| *stride > 0).unwrap_or(length.max(1));
        Some(Received { bytes, stride, endpoint: Endpoint { remote, source: said.to }, ecn: said.ecn })
    }
}

impl Receiver {
    /// The bytes of a train, wherever its packets lie in them.
    pub(crate) fn buffer(&self, n: usize) -> &[u8] {
        &self.buffers[n * TRAIN_BYTES..][..TRAIN_BYTES]
    }
}

impl Default for Receiver {
    fn default() -> Self {
        Self::new()
    }
}
