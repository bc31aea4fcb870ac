//! From which of the host's addresses a datagram leaves, where no peer has written to one yet or that one has gone.
//!
//! The host would choose. While it replaces a primary address, that may be the address of the tunnel's own interface, and
//! whoever then gets a datagram takes it for where to answer. So as long as any address is barred the choice is looked at
//! before it is made, and a datagram that could only leave from a barred one is lost.

use super::Socket;
use nix::errno::Errno;
use nix::sys::socket::{self, AddressFamily, SockFlag, SockType, SockaddrStorage, setsockopt, sockopt};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::fd::AsRawFd as _;

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
        let source = self.choice_of_host(remote)?;
        if self.barred.contains(source) { Err(Errno::EADDRNOTAVAIL) } else { Ok(Some(source)) }
    }

    /// What the host would choose. Nothing is sent.
    fn choice_of_host(&self, remote: SocketAddr) -> Result<IpAddr, Errno> {
        let family = if remote.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
        let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
        let probe = socket::socket(family, SockType::Datagram, flags, None)?;
        // The mark may choose another route.
        let mark = socket::getsockopt(&self.fd, sockopt::Mark)?;
        if mark != 0 {
            setsockopt(&probe, sockopt::Mark, &mark)?;
        }
        socket::connect(probe.as_raw_fd(), &SockaddrStorage::from(remote))?;
        let bound: SockaddrStorage = socket::getsockname(probe.as_raw_fd())?;
        let v6 = bound.as_sockaddr_in6().map(|bound| bound.ip().to_canonical());
        Ok(v6.unwrap_or_else(|| bound.as_sockaddr_in().map_or(Ipv4Addr::UNSPECIFIED, |bound| bound.ip()).into()))
    }
}
