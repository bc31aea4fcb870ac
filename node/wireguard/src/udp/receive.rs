//! Taking datagrams from a socket, several trains at a time.

use super::{Control, Endpoint, Socket};
use nix::errno::Errno;
use std::ffi::c_int;
use std::io;
use std::mem::{MaybeUninit, size_of, zeroed};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};
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
        let said = Said::read(&header.msg_hdr);
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

/// What the kernel said of a train besides its bytes.
#[derive(Default)]
struct Said {
    stride: Option<usize>,
    to: Option<IpAddr>,
    ecn: u8,
}

impl Said {
    fn read(header: &libc::msghdr) -> Self {
        let mut said = Self::default();
        // SAFETY: the kernel filled in the control buffer that `header` points to and set its length.
        let mut at = unsafe { libc::CMSG_FIRSTHDR(header) };
        // SAFETY: `at` is null or a header inside the control buffer, as the macros of the C library find them.
        while let Some(message) = unsafe { at.as_ref() } {
            // SAFETY: as above.
            let data = unsafe { libc::CMSG_DATA(at) };
            let held = message.cmsg_len - (data as usize - at as usize);
            match (message.cmsg_level, message.cmsg_type) {
                (libc::SOL_UDP, libc::UDP_GRO) => {
                    said.stride = take::<c_int>(data, held).and_then(|stride| usize::try_from(stride).ok());
                }
                (libc::IPPROTO_IPV6, libc::IPV6_PKTINFO) => {
                    said.to = take::<libc::in6_pktinfo>(data, held)
                        .map(|info| Ipv6Addr::from(info.ipi6_addr.s6_addr).to_canonical());
                }
                (libc::IPPROTO_IP, libc::IP_PKTINFO) => {
                    said.to = take::<libc::in_pktinfo>(data, held)
                        .map(|info| Ipv4Addr::from(u32::from_be(info.ipi_spec_dst.s_addr)).into());
                }
                (libc::IPPROTO_IPV6, libc::IPV6_TCLASS) => {
                    said.ecn = take::<c_int>(data, held).unwrap_or_default() as u8 & 3;
                }
                (libc::IPPROTO_IP, libc::IP_TOS) => said.ecn = take::<u8>(data, held).unwrap_or_default() & 3,
                _ => {}
            }
            // SAFETY: as above.
            at = unsafe { libc::CMSG_NXTHDR(header, at) };
        }
        said
    }
}

/// Copies a plain value out of ancillary data, if there is as much.
fn take<T: Copy>(data: *const u8, held: usize) -> Option<T> {
    let mut value = MaybeUninit::<T>::uninit();
    (held >= size_of::<T>()).then(|| {
        // SAFETY: `data` has at least as many bytes as `T`, which is plain C data for which all bytes are a value.
        unsafe {
            ptr::copy_nonoverlapping(data, value.as_mut_ptr().cast(), size_of::<T>());
            value.assume_init()
        }
    })
}

/// The sender's address, IPv4 in its own notation.
fn address(name: &libc::sockaddr_in6) -> Option<SocketAddr> {
    match c_int::from(name.sin6_family) {
        libc::AF_INET6 => {
            let ip = Ipv6Addr::from(name.sin6_addr.s6_addr);
            let port = u16::from_be(name.sin6_port);
            Some(match ip.to_canonical() {
                IpAddr::V4(ip) => SocketAddrV4::new(ip, port).into(),
                // The scope tells link-local addresses apart and means nothing for others.
                IpAddr::V6(ip) => SocketAddrV6::new(ip, port, 0, name.sin6_scope_id).into(),
            })
        }
        libc::AF_INET => {
            // SAFETY: the family says that the kernel wrote a `sockaddr_in`, which is smaller.
            let name = unsafe { &*ptr::from_ref(name).cast::<libc::sockaddr_in>() };
            let ip = Ipv4Addr::from(u32::from_be(name.sin_addr.s_addr));
            Some(SocketAddrV4::new(ip, u16::from_be(name.sin_port)).into())
        }
        _ => None,
    }
}
