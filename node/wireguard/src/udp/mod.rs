//! WireGuard's UDP sockets: one a worker, all on one port, for both address families.
//!
//! A receive takes several datagrams, each of which may be a train of equal packets that the kernel joined (UDP GRO); a
//! send gives several trains, which the kernel cuts as late as it can (UDP GSO). Every train carries the address it came
//! to, so that answers leave from there (sticky source), and the two ECN bits of its outer header.

mod name;
mod receive;
mod send;
mod source;

pub(crate) use receive::Receiver;
use source::Probes;

pub(crate) use send::{MAX_TRAIN_BYTES, MAX_TRAIN_PACKETS, MAX_TRAINS, Outgoing};

use crate::barred::Barred;
use nix::errno::Errno;
use nix::sys::socket::{self, AddressFamily, SockFlag, SockType, setsockopt, sockopt};
use std::ffi::c_int;
use std::io;
use std::mem::size_of;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use tracing::debug;

/// Asked of the system for each direction, as wireguard-go does: room for a burst while the worker is scheduled away.
const SOCKET_BUFFER: usize = 7 << 20;

/// One socket on the device's port.
#[derive(Debug)]
pub(crate) struct Socket {
    fd: OwnedFd,
    family: Family,
    /// Whether the kernel still cuts trains for us.
    gso: AtomicBool,
    /// From where nothing is sent.
    barred: Arc<Barred>,
    probes: Probes,
}

/// What the socket speaks.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Family {
    /// IPv6, and IPv4 in IPv6's notation.
    Both,
    /// A host without IPv6.
    V4,
}

/// Where a peer is reached, and from which of our addresses.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Endpoint {
    /// The peer's.
    pub(crate) remote: SocketAddr,
    /// Ours, if the peer wrote to it.
    pub(crate) source: Option<IpAddr>,
}

impl Socket {
    /// Binds that many sockets to one port, which nobody else has and nobody else can take; 0 lets the system choose.
    pub(crate) fn bind_group(count: usize, port: u16, mark: u32, barred: &Arc<Barred>) -> io::Result<Vec<Self>> {
        // The first is bound alone, which fails if any other program has the port. Only then are the rest let in, and
        // after them nobody.
        let first = Self::bind_one(port, mark, false, barred)?;
        let port = first.port()?;
        let mut group = vec![first];
        if count > 1 {
            setsockopt(&group[0].fd, sockopt::ReusePort, &true)?;
            for _ in 1..count {
                group.push(Self::bind_one(port, mark, true, barred)?);
            }
            for socket in &group {
                setsockopt(&socket.fd, sockopt::ReusePort, &false)?;
            }
        }
        Ok(group)
    }

    fn bind_one(port: u16, mark: u32, shared: bool, barred: &Arc<Barred>) -> io::Result<Self> {
        let bind = |family| Self::bind_family(family, port, mark, shared, barred);
        match bind(Family::Both) {
            Err(Errno::EAFNOSUPPORT | Errno::EADDRNOTAVAIL) => Ok(bind(Family::V4)?),
            bound => Ok(bound?),
        }
    }

    fn bind_family(family: Family, port: u16, mark: u32, shared: bool, barred: &Arc<Barred>) -> Result<Self, Errno> {
        let domain = match family {
            Family::Both => AddressFamily::Inet6,
            Family::V4 => AddressFamily::Inet,
        };
        let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
        let fd = socket::socket(domain, SockType::Datagram, flags, None)?;
        // Linux has it since 4.18; others may know the name and not the thing.
        let gso = AtomicBool::new(has_option(&fd, libc::SOL_UDP, libc::UDP_SEGMENT));
        let socket = Self { fd, family, gso, barred: barred.clone(), probes: Probes::open() };
        socket.set_options(shared)?;
        socket.set_mark(mark)?;
        match family {
            Family::Both => {
                let any = socket::SockaddrIn6::from(std::net::SocketAddrV6::new(Ipv6Addr::UNSPECIFIED, port, 0, 0));
                socket::bind(socket.fd.as_raw_fd(), &any)?;
            }
            Family::V4 => {
                let any = socket::SockaddrIn::from(std::net::SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, port));
                socket::bind(socket.fd.as_raw_fd(), &any)?;
            }
        }
        Ok(socket)
    }

    fn set_options(&self, shared: bool) -> Result<(), Errno> {
        if shared {
            setsockopt(&self.fd, sockopt::ReusePort, &true)?;
        }
        if self.family == Family::Both {
            setsockopt(&self.fd, sockopt::Ipv6V6Only, &false)?;
            self.set(libc::IPPROTO_IPV6, libc::IPV6_RECVPKTINFO, 1)?;
            self.set(libc::IPPROTO_IPV6, libc::IPV6_RECVTCLASS, 1)?;
        } else {
            self.set(libc::IPPROTO_IP, libc::IP_PKTINFO, 1)?;
        }
        self.set(libc::IPPROTO_IP, libc::IP_RECVTOS, 1)?;
        // As the kernel's WireGuard: the outer packet may be fragmented on its way.
        self.set(libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, libc::IP_PMTUDISC_DONT)?;
        if let Err(error) = self.set(libc::SOL_UDP, libc::UDP_GRO, 1) {
            debug!(%error, "the kernel does not join received packets (UDP GRO)");
        }
        // Beyond the system's limit where that is allowed, else up to it.
        if setsockopt(&self.fd, sockopt::RcvBufForce, &SOCKET_BUFFER).is_err() {
            setsockopt(&self.fd, sockopt::RcvBuf, &SOCKET_BUFFER)?;
        }
        if setsockopt(&self.fd, sockopt::SndBufForce, &SOCKET_BUFFER).is_err() {
            setsockopt(&self.fd, sockopt::SndBuf, &SOCKET_BUFFER)?;
        }
        Ok(())
    }

    /// Marks outgoing packets from now on.
    pub(crate) fn set_mark(&self, mark: u32) -> Result<(), Errno> {
        set_mark(&self.fd, mark)?;
        self.probes.set_mark(mark)
    }

    /// The port.
    pub(crate) fn port(&self) -> io::Result<u16> {
        let bound: socket::SockaddrStorage = socket::getsockname(self.fd.as_raw_fd())?;
        let v6 = bound.as_sockaddr_in6().map(socket::SockaddrIn6::port);
        Ok(v6.or_else(|| bound.as_sockaddr_in().map(socket::SockaddrIn::port)).unwrap_or_default())
    }

    fn set(&self, level: c_int, name: c_int, value: c_int) -> Result<(), Errno> {
        let length = size_of::<c_int>() as libc::socklen_t;
        // SAFETY: the descriptor is open, and `value` is an int of the length given that outlives the call.
        let result =
            unsafe { libc::setsockopt(self.fd.as_raw_fd(), level, name, std::ptr::from_ref(&value).cast(), length) };
        Errno::result(result).map(drop)
    }

    fn has_gso(&self) -> bool {
        self.gso.load(Ordering::Relaxed)
    }

    fn lose_gso(&self) {
        if self.gso.swap(false, Ordering::Relaxed) {
            debug!("the path out takes no trains (UDP GSO): packets are sent one by one");
        }
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// Taking a mark off needs no right, setting one does.
fn set_mark(fd: &OwnedFd, mark: u32) -> Result<(), Errno> {
    let has_it = socket::getsockopt(fd, sockopt::Mark)? == mark;
    if has_it { Ok(()) } else { setsockopt(fd, sockopt::Mark, &mark) }
}

fn has_option(fd: &OwnedFd, level: c_int, name: c_int) -> bool {
    let mut value: c_int = 0;
    let mut length = size_of::<c_int>() as libc::socklen_t;
    // SAFETY: the descriptor is open; `value` has the length given, and both outlive the call.
    let result =
        unsafe { libc::getsockopt(fd.as_raw_fd(), level, name, std::ptr::from_mut(&mut value).cast(), &mut length) };
    result == 0
}

/// Room for the ancillary data of one message, aligned as the kernel wants it: three pieces of at most 20 bytes.
#[repr(C, align(8))]
#[derive(Clone, Copy)]
struct Control([u8; 128]);

impl Control {
    const EMPTY: Self = Self([0; 128]);
}

#[cfg(test)]
mod tests;
