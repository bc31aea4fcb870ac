//! Tells that addresses or routes of the host changed, whatever the change was.
//!
//! Answers leave from the address that a peer wrote to. When the host's addresses or routes change, that address may lead
//! nowhere any more without an error being seen, so that it is forgotten and the host chooses anew.

use nix::sys::socket::{self, AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

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

    /// Forgets what was told so far, and says whether there was anything.
    pub(crate) fn changed(&self) -> bool {
        let mut changed = false;
        let mut message = [0; 4_096];
        // An overflow tells of a change as well.
        while let Ok(1..) | Err(nix::errno::Errno::ENOBUFS) =
            socket::recv(self.0.as_raw_fd(), &mut message, MsgFlags::MSG_TRUNC)
        {
            changed = true;
        }
        changed
    }
}

impl AsFd for Underlay {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
