//! Giving trains to a socket, several at a time, and what to do when the path takes none.

use super::{Control, Endpoint, Family, Socket};
use nix::errno::Errno;
use std::ffi::c_int;
use std::io;
use std::mem::{size_of, zeroed};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::fd::AsRawFd;
use std::ptr;

/// Packets in one train; the kernel's own limit (UDP_MAX_SEGMENTS) was 64 for long.
pub(crate) const MAX_TRAIN_PACKETS: usize = 64;
/// Bytes in one train: the largest UDP payload over IPv4.
pub(crate) const MAX_TRAIN_BYTES: usize = 65_507;

/// One train to send.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Outgoing<'a> {
    /// Its packets, end to end.
    pub(crate) bytes: &'a [u8],
    /// The length of each but the last, which may be shorter.
    pub(crate) stride: usize,
    /// Where to, and from which of our addresses.
    pub(crate) endpoint: Endpoint,
    /// The outer header's traffic class: ECN bits, and DSCP for handshakes.
    pub(crate) class: u8,
}

impl Socket {
    /// Sends a train. Says whether the source address was refused: then the endpoint should forget it. On an error the
    /// train, or part of it, is lost, as packets may be.
    pub(crate) fn send(&self, train: &Outgoing<'_>) -> io::Result<bool> {
        let mut train = *train;
        let mut source_lost = false;
        loop {
            let single = train.bytes.len() <= train.stride;
            let result = if single || self.has_gso() { send_message(self, &train) } else { each(self, &train) };
            match result {
                // The address is no longer ours, or leads nowhere any more.
                Err(Errno::EINVAL | Errno::EADDRNOTAVAIL | Errno::ENETUNREACH | Errno::EHOSTUNREACH)
                    if train.endpoint.source.is_some() =>
                {
                    train.endpoint.source = None;
                    source_lost = true;
                }
                // No checksum offload on the way out: it will not come back.
                Err(Errno::EIO) if !single && self.has_gso() => self.lose_gso(),
                // A packet of it is larger than the link: only whole packets can be fragmented.
                Err(Errno::EMSGSIZE | Errno::EINVAL) if !single && self.has_gso() => {
                    return each(self, &train).map(|()| source_lost).map_err(io::Error::from);
                }
                Ok(()) => return Ok(source_lost),
                Err(errno) => return Err(errno.into()),
            }
        }
    }
}

/// Sends the packets of a train one by one.
fn each(socket: &Socket, train: &Outgoing<'_>) -> Result<(), Errno> {
    for packet in train.bytes.chunks(train.stride) {
        send_message(socket, &Outgoing { bytes: packet, stride: packet.len(), ..*train })?;
    }
    Ok(())
}

fn send_message(socket: &Socket, train: &Outgoing<'_>) -> Result<(), Errno> {
    let (name, length) = name(socket.family, train.endpoint.remote).ok_or(Errno::ENETUNREACH)?;
    let mut control = Control::EMPTY;
    let mut piece = libc::iovec { iov_base: train.bytes.as_ptr().cast_mut().cast(), iov_len: train.bytes.len() };
    // SAFETY: `msghdr` is plain data, for which all zeroes are a value.
    let mut header: libc::msghdr = unsafe { zeroed() };
    header.msg_name = ptr::from_ref(&name).cast_mut().cast();
    header.msg_namelen = length;
    header.msg_iov = &mut piece;
    header.msg_iovlen = 1;
    header.msg_control = control.0.as_mut_ptr().cast();
    header.msg_controllen = control.0.len();
    header.msg_controllen = say(&mut header, socket.family, train);
    if header.msg_controllen == 0 {
        header.msg_control = ptr::null_mut();
    }
    // SAFETY: the descriptor is open; name, piece and control live until the call is over, with the lengths given; the
    // kernel only reads them.
    let sent = unsafe { libc::sendmsg(socket.fd.as_raw_fd(), &header, libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL) };
    Errno::result(sent).map(drop)
}

/// Writes the ancillary data and returns its length.
fn say(header: &mut libc::msghdr, family: Family, train: &Outgoing<'_>) -> usize {
    let mut writer = Writer { header, used: 0 };
    if train.bytes.len() > train.stride {
        writer.put(libc::SOL_UDP, libc::UDP_SEGMENT, train.stride as u16);
    }
    let to_v4 = train.endpoint.remote.is_ipv4();
    match (family, train.endpoint.source) {
        (Family::V4, Some(IpAddr::V4(source))) => {
            let info = libc::in_pktinfo { ipi_ifindex: 0, ipi_spec_dst: in_addr(source), ipi_addr: in_addr(source) };
            writer.put(libc::IPPROTO_IP, libc::IP_PKTINFO, info);
        }
        (Family::Both, Some(source)) if source.is_ipv4() == to_v4 => {
            let source = match source {
                IpAddr::V4(source) => source.to_ipv6_mapped(),
                IpAddr::V6(source) => source,
            };
            let info = libc::in6_pktinfo { ipi6_addr: libc::in6_addr { s6_addr: source.octets() }, ipi6_ifindex: 0 };
            writer.put(libc::IPPROTO_IPV6, libc::IPV6_PKTINFO, info);
        }
        (Family::V4 | Family::Both, _) => {}
    }
    if train.class != 0 {
        let (level, kind) = match to_v4 {
            true => (libc::IPPROTO_IP, libc::IP_TOS),
            false => (libc::IPPROTO_IPV6, libc::IPV6_TCLASS),
        };
        writer.put(level, kind, c_int::from(train.class));
    }
    writer.used
}

/// Puts pieces of ancillary data one behind the other.
struct Writer<'a> {
    header: &'a mut libc::msghdr,
    used: usize,
}

impl Writer<'_> {
    fn put<T: Copy>(&mut self, level: c_int, kind: c_int, value: T) {
        // SAFETY: these only compute lengths.
        let (space, length) =
            unsafe { (libc::CMSG_SPACE(size_of::<T>() as u32), libc::CMSG_LEN(size_of::<T>() as u32)) };
        assert!(self.used + space as usize <= size_of::<Control>(), "the control buffer holds all that is ever said");
        // SAFETY: the control buffer is aligned, `used` is a multiple of its alignment, and by the check above header
        // and value fit behind it.
        unsafe {
            let at = self.header.msg_control.cast::<u8>().add(self.used).cast::<libc::cmsghdr>();
            (*at).cmsg_level = level;
            (*at).cmsg_type = kind;
            (*at).cmsg_len = length as _;
            libc::CMSG_DATA(at).cast::<T>().write_unaligned(value);
        }
        self.used += space as usize;
    }
}

/// The address as the socket's family writes it; `None` if it cannot.
fn name(family: Family, remote: SocketAddr) -> Option<(libc::sockaddr_in6, libc::socklen_t)> {
    // SAFETY: plain data, for which all zeroes are a value.
    let mut name: libc::sockaddr_in6 = unsafe { zeroed() };
    match (family, remote) {
        (Family::Both, remote) => {
            name.sin6_family = libc::AF_INET6 as libc::sa_family_t;
            name.sin6_port = remote.port().to_be();
            let (ip, scope) = match remote {
                SocketAddr::V4(remote) => (remote.ip().to_ipv6_mapped(), 0),
                SocketAddr::V6(remote) => (*remote.ip(), remote.scope_id()),
            };
            name.sin6_addr = libc::in6_addr { s6_addr: ip.octets() };
            name.sin6_scope_id = scope;
            Some((name, size_of::<libc::sockaddr_in6>() as libc::socklen_t))
        }
        (Family::V4, SocketAddr::V4(remote)) => {
            let v4 = libc::sockaddr_in {
                sin_family: libc::AF_INET as libc::sa_family_t,
                sin_port: remote.port().to_be(),
                sin_addr: in_addr(*remote.ip()),
                sin_zero: [0; 8],
            };
            // SAFETY: a `sockaddr_in` is smaller than a `sockaddr_in6`, and both are plain data.
            unsafe { ptr::from_mut(&mut name).cast::<libc::sockaddr_in>().write_unaligned(v4) };
            Some((name, size_of::<libc::sockaddr_in>() as libc::socklen_t))
        }
        (Family::V4, SocketAddr::V6(_)) => None,
    }
}

fn in_addr(ip: Ipv4Addr) -> libc::in_addr {
    libc::in_addr { s_addr: u32::from(ip).to_be() }
}
