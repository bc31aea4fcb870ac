//! Giving trains to a socket, several at a time, and what to do when the path takes none.

use super::name::name;
use super::{Control, Endpoint, Family, Socket};
use crate::ancillary::Writer;
use nix::errno::Errno;
use std::io;
use std::mem::zeroed;
use std::net::IpAddr;
use std::os::fd::AsRawFd;
use std::ptr;

/// Packets in one train; the kernel's own limit (UDP_MAX_SEGMENTS) was 64 for long.
pub(crate) const MAX_TRAIN_PACKETS: usize = 64;
/// Bytes in one train: the largest UDP payload over IPv4.
pub(crate) const MAX_TRAIN_BYTES: usize = 65_507;
/// Trains in one system call.
pub(crate) const MAX_TRAINS: usize = 16;

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
        if train.endpoint.source.is_none() {
            train.endpoint.source = self.source(train.endpoint.remote)?;
        }
        loop {
            let single = train.bytes.len() <= train.stride;
            let result = if single || self.has_gso() { send_message(self, &train) } else { each(self, &train) };
            match result {
                // The address is no longer ours, or leads nowhere any more.
                Err(Errno::EINVAL | Errno::EADDRNOTAVAIL | Errno::ENETUNREACH | Errno::EHOSTUNREACH)
                    if train.endpoint.source.is_some() && !source_lost =>
                {
                    train.endpoint.source = self.source(train.endpoint.remote)?;
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

impl Socket {
    /// Sends trains, at most [`MAX_TRAINS`], in as few system calls as it takes, and tells of each that did not go at once
    /// what became of it, as [`Socket::send`] does.
    pub(crate) fn send_all(&self, trains: &[Outgoing<'_>], mut other: impl FnMut(usize, io::Result<bool>)) {
        let mut next = 0;
        while next < trains.len() {
            let sent = if self.has_gso() { send_messages(self, &trains[next..]) } else { 0 };
            next += sent;
            if next < trains.len() {
                other(next, self.send(&trains[next]));
                next += 1;
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
    let mut envelope = Envelope::EMPTY;
    let header = envelope.close(socket.family, train).ok_or(Errno::ENETUNREACH)?;
    // SAFETY: the descriptor is open; envelope and train live until the call is over, with the lengths given; the kernel
    // only reads them.
    let sent = unsafe { libc::sendmsg(socket.fd.as_raw_fd(), &header, libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL) };
    Errno::result(sent).map(drop)
}

/// Sends trains up to the first that does not go, and says how many went.
fn send_messages(socket: &Socket, trains: &[Outgoing<'_>]) -> usize {
    let mut envelopes = [Envelope::EMPTY; MAX_TRAINS];
    // SAFETY: `mmsghdr` is plain data, for which all zeroes are a value.
    let mut headers: [libc::mmsghdr; MAX_TRAINS] = unsafe { zeroed() };
    let mut count = 0;
    for ((train, envelope), header) in trains.iter().zip(&mut envelopes).zip(&mut headers) {
        let has_source = train.endpoint.source.is_some() || socket.trusts_host();
        let Some(closed) = envelope.close(socket.family, train).filter(|_| has_source) else { break };
        header.msg_hdr = closed;
        count += 1;
    }
    if count == 0 {
        return 0;
    }
    // SAFETY: as many headers as told are filled in; the descriptor is open; envelopes and trains live until the call is
    // over, with the lengths given; the kernel only reads them.
    let sent = unsafe {
        libc::sendmmsg(
            socket.fd.as_raw_fd(),
            headers.as_mut_ptr(),
            count,
            (libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL) as _,
        )
    };
    usize::try_from(sent).unwrap_or(0)
}

/// What a message to the kernel points to, besides the train.
#[derive(Clone, Copy)]
struct Envelope {
    name: libc::sockaddr_in6,
    control: Control,
    piece: libc::iovec,
}

impl Envelope {
    const EMPTY: Self = {
        // SAFETY: all of it is plain data, for which all zeroes (a null pointer among them) are a value.
        unsafe { zeroed() }
    };

    /// The message that sends the train; `None` if the socket cannot name where it goes. It points to the envelope and to
    /// the train, and is good for as long as both stay where they are.
    fn close(&mut self, family: Family, train: &Outgoing<'_>) -> Option<libc::msghdr> {
        let (name, length) = name(family, train.endpoint.remote)?;
        self.name = name;
        self.piece = libc::iovec { iov_base: train.bytes.as_ptr().cast_mut().cast(), iov_len: train.bytes.len() };
        // SAFETY: `msghdr` is plain data, for which all zeroes are a value.
        let mut header: libc::msghdr = unsafe { zeroed() };
        header.msg_name = ptr::from_mut(&mut self.name).cast();
        header.msg_namelen = length;
        header.msg_iov = &mut self.piece;
        header.msg_iovlen = 1;
        header.msg_controllen = say(&mut self.control.0, family, train) as _;
        if header.msg_controllen > 0 {
            header.msg_control = self.control.0.as_mut_ptr().cast();
        }
        Some(header)
    }
}

/// Writes the ancillary data and returns its length.
fn say(control: &mut [u8], family: Family, train: &Outgoing<'_>) -> usize {
    let mut writer = Writer::new(control);
    if train.bytes.len() > train.stride {
        writer.stride(train.stride as u16);
    }
    let to_v4 = train.endpoint.remote.is_ipv4();
    match (family, train.endpoint.source) {
        (Family::V4, Some(IpAddr::V4(source))) => writer.source_v4(source),
        (Family::Both, Some(source)) if source.is_ipv4() == to_v4 => writer.source_v6(match source {
            IpAddr::V4(source) => source.to_ipv6_mapped(),
            IpAddr::V6(source) => source,
        }),
        (Family::V4 | Family::Both, _) => {}
    }
    if train.class != 0 {
        writer.class(to_v4, train.class);
    }
    writer.used()
}
