//! Tells that addresses or routes of the host changed, and which addresses the engine's own interface has.
//!
//! Answers leave from the address that a peer wrote to. When the host's addresses or routes change, that address may lead
//! nowhere any more without an error being seen, so that it is forgotten and the host chooses anew.

use nix::errno::Errno;
use nix::ifaddrs::getifaddrs;
use nix::sys::socket::{
    self, AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, SockaddrIn6, SockaddrStorage,
};
use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use tracing::debug;

/// A netlink socket that listens.
pub(crate) struct Underlay(OwnedFd);

impl Underlay {
    pub(crate) fn watch() -> io::Result<Self> {
        let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
        let fd = socket::socket(AddressFamily::Netlink, SockType::Raw, flags, SockProtocol::NetlinkRoute)?;
        let groups =
            libc::RTMGRP_IPV4_IFADDR | libc::RTMGRP_IPV6_IFADDR | libc::RTMGRP_IPV4_ROUTE | libc::RTMGRP_IPV6_ROUTE;
        socket::bind(fd.as_raw_fd(), &NetlinkAddr::new(0, groups as u32))?;
        Ok(Self(fd))
    }

    /// Forgets what was told so far, and says what it was, if anything.
    pub(crate) fn changed(&self) -> Option<Changed> {
        let mut changed = None;
        let mut message = [0; 4_096];
        loop {
            let seen = match socket::recv(self.0.as_raw_fd(), &mut message, MsgFlags::MSG_TRUNC) {
                Ok(1..) => Changed::of(&message),
                // More than there is room for.
                Err(Errno::ENOBUFS) => Changed::Addresses,
                Ok(0) | Err(_) => return changed,
            };
            changed = changed.max(Some(seen));
        }
    }
}

/// What changed.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) enum Changed {
    /// Routes alone.
    Routes,
    /// Addresses, and perhaps routes.
    Addresses,
}

impl Changed {
    /// Reads the type behind the length of a message, of which there is one in each datagram.
    fn of(message: &[u8]) -> Self {
        let kind = message.get(4..).and_then(<[u8]>::first_chunk).map(|kind| u16::from_ne_bytes(*kind));
        if kind.is_some_and(|kind| matches!(kind, libc::RTM_NEWADDR | libc::RTM_DELADDR)) {
            Self::Addresses
        } else {
            Self::Routes
        }
    }
}

/// The addresses of an interface but the link-local ones, which say nothing without their link.
pub(crate) fn addresses(interface: &str) -> Vec<IpAddr> {
    let all = getifaddrs().inspect_err(|error| debug!(%error, interface, "its addresses are not known"));
    let of_interface = all.into_iter().flatten().filter(|entry| entry.interface_name == interface);
    let ip = |address: SockaddrStorage| {
        let v4 = address.as_sockaddr_in().map(|address| IpAddr::from(address.ip()));
        let v6 = || address.as_sockaddr_in6().map(SockaddrIn6::ip).filter(|ip| !ip.is_unicast_link_local());
        v4.or_else(|| v6().map(IpAddr::from))
    };
    of_interface.filter_map(|entry| entry.address.and_then(ip)).collect()
}

impl AsFd for Underlay {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
