//! From which of the host's addresses a datagram leaves, where no peer has written to one yet or that one has gone.
//!
//! The host would choose. While it replaces a primary address, that may be the address of the tunnel's own interface, and
//! whoever then gets a datagram takes it for where to answer. So as long as any address is barred the choice is looked at
//! before it is made, and a datagram that could only leave from a barred one is lost.

use super::{Socket, set_mark};
use nix::errno::Errno;
use nix::sys::socket::{self, AddressFamily, SockFlag, SockType, SockaddrStorage};
use std::mem::{size_of, zeroed};
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::sync::{Mutex, PoisonError};

/// Sockets that are connected and never sent from: what they are bound to by that is what the host would choose. They are
/// kept, since who sends may be in another network namespace. The standard library's lock in tests as well: nothing waits
/// inside of it.
#[derive(Debug)]
pub(super) struct Probes(Mutex<[Option<OwnedFd>; 2]>);

impl Probes {
    /// One for each address family that the host has.
    pub(super) fn open() -> Self {
        let open = |family| {
            let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
            socket::socket(family, SockType::Datagram, flags, None).ok()
        };
        Self(Mutex::new([AddressFamily::Inet, AddressFamily::Inet6].map(open)))
    }

    /// Has them choose as packets with a mark.
    pub(super) fn set_mark(&self, mark: u32) -> Result<(), Errno> {
        let probes = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        probes.iter().flatten().try_for_each(|probe| set_mark(probe, mark))
    }

    /// The address that datagrams to `remote` would leave from. Nothing is sent.
    fn choose(&self, remote: SocketAddr) -> Result<IpAddr, Errno> {
        let probes = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let probe = probes[usize::from(remote.is_ipv6())].as_ref().ok_or(Errno::EAFNOSUPPORT)?;
        socket::connect(probe.as_raw_fd(), &SockaddrStorage::from(remote))?;
        let bound: SockaddrStorage = socket::getsockname(probe.as_raw_fd())?;
        disconnect(probe)?;
        let v4 = bound.as_sockaddr_in().map(|bound| bound.ip().into());
        v4.or_else(|| bound.as_sockaddr_in6().map(|bound| bound.ip().to_canonical())).ok_or(Errno::EAFNOSUPPORT)
    }
}

impl Socket {
    /// Whether the host may choose without being looked at.
    pub(super) fn trusts_host(&self) -> bool {
        self.barred.is_empty()
    }

    /// The source address for datagrams to `remote`; `None` if that is left to the host.
    pub(super) fn source(&self, remote: SocketAddr) -> Result<Option<IpAddr>, Errno> {
        if self.trusts_host() {
            return Ok(None);
        }
        let source = self.probes.choose(remote)?;
        if self.barred.contains(source) { Err(Errno::EADDRNOTAVAIL) } else { Ok(Some(source)) }
    }
}

/// Takes the choice back, and gives back the port that came with it.
fn disconnect(probe: &OwnedFd) -> Result<(), Errno> {
    // SAFETY: plain data, for which all zeroes are a value.
    let mut nowhere: libc::sockaddr = unsafe { zeroed() };
    nowhere.sa_family = libc::AF_UNSPEC as libc::sa_family_t;
    // SAFETY: the descriptor is open, and the name has the length given and outlives the call.
    let result = unsafe { libc::connect(probe.as_raw_fd(), &nowhere, size_of::<libc::sockaddr>() as libc::socklen_t) };
    Errno::result(result).map(drop)
}
