//! ICMP echo from a host of the lab: requests out, replies in.
//!
//! Raw sockets, because what answers is the far kernel: a reply proves the whole way through both tunnels' ends, with no
//! process of ours on the other side. Sends and receives only; who counts is [`super::Pings`].

use super::host::Host;
use anyhow::{Context as _, Result};
use nix::sys::socket::{AddressFamily, SockFlag, SockProtocol, SockType, SockaddrIn, SockaddrIn6, socket};
use nix::sys::socket::{MsgFlags, recvfrom, sendto};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsRawFd as _, OwnedFd};
use tokio::io::unix::AsyncFd;

const ECHO_REQUEST_V4: u8 = 8;
const ECHO_REPLY_V4: u8 = 0;
const ECHO_REQUEST_V6: u8 = 128;
const ECHO_REPLY_V6: u8 = 129;
const HEADER: usize = 8;
const PAYLOAD: usize = 16;

/// An echo reply: who answered, and the number that the request carried.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Reply {
    /// Who answered.
    pub from: IpAddr,
    /// What the request was numbered with.
    pub number: u64,
}

/// Raw sockets of both families in one host's network.
#[derive(Debug)]
pub struct EchoSocket {
    v4: AsyncFd<OwnedFd>,
    v6: AsyncFd<OwnedFd>,
    /// Tells this socket's packets from those of others on the host.
    mark: u64,
}

impl EchoSocket {
    /// Opens the sockets on `host`. `mark` should differ between sockets that live at the same time.
    pub fn open(host: &Host, mark: u64) -> Result<Self> {
        let raw = |family, protocol| {
            let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
            socket(family, SockType::Raw, flags, protocol).context("cannot open a raw socket")
        };
        let (v4, v6) = host.enter(|| {
            Ok((raw(AddressFamily::Inet, SockProtocol::Icmp)?, raw(AddressFamily::Inet6, SockProtocol::IcmpV6)?))
        })?;
        // SAFETY: an `OwnedFd` always names the same open descriptor, and keeps it open until `AsyncFd` has let go.
        let (v4, v6) = unsafe { (AsyncFd::register(v4)?, AsyncFd::register(v6)?) };
        Ok(Self { v4, v6, mark })
    }

    /// Sends one request; an error is what the host's own stack said, such as that there is no route.
    pub fn send(&self, to: IpAddr, number: u64) -> io::Result<()> {
        let mut packet = [0u8; HEADER + PAYLOAD];
        packet[4..6].copy_from_slice(&self.mark.to_be_bytes()[6..]);
        packet[6..8].copy_from_slice(&number.to_be_bytes()[6..]);
        packet[8..16].copy_from_slice(&self.mark.to_be_bytes());
        packet[16..24].copy_from_slice(&number.to_be_bytes());
        let sent = match SocketAddr::new(to, 0) {
            SocketAddr::V4(to) => {
                packet[0] = ECHO_REQUEST_V4;
                let sum = checksum(&packet);
                packet[2..4].copy_from_slice(&sum.to_be_bytes());
                sendto(self.v4.get_ref().as_raw_fd(), &packet, &SockaddrIn::from(to), MsgFlags::empty())
            }
            SocketAddr::V6(to) => {
                // The kernel fills in the checksum of ICMPv6.
                packet[0] = ECHO_REQUEST_V6;
                sendto(self.v6.get_ref().as_raw_fd(), &packet, &SockaddrIn6::from(to), MsgFlags::empty())
            }
        };
        sent.map(drop).map_err(io::Error::from)
    }

    /// Waits for the next reply to a request of this socket.
    pub async fn receive(&self) -> io::Result<Reply> {
        loop {
            let reply = tokio::select! {
                reply = receive_v4(&self.v4, self.mark) => reply?,
                reply = receive_v6(&self.v6, self.mark) => reply?,
            };
            if let Some(reply) = reply {
                return Ok(reply);
            }
        }
    }
}

async fn receive_v4(socket: &AsyncFd<OwnedFd>, mark: u64) -> io::Result<Option<Reply>> {
    let (packet, from) = receive_from::<SockaddrIn>(socket).await?;
    let header = usize::from(packet.first().map_or(0, |first| first & 0x0f)) * 4;
    let number = packet.get(header..).and_then(|echo| read_reply(echo, ECHO_REPLY_V4, mark));
    Ok(number.zip(from).map(|(number, from)| Reply { from: IpAddr::V4(from.ip()), number }))
}

async fn receive_v6(socket: &AsyncFd<OwnedFd>, mark: u64) -> io::Result<Option<Reply>> {
    let (packet, from) = receive_from::<SockaddrIn6>(socket).await?;
    let number = read_reply(&packet, ECHO_REPLY_V6, mark);
    Ok(number.zip(from).map(|(number, from)| Reply { from: IpAddr::V6(from.ip()), number }))
}

async fn receive_from<A: nix::sys::socket::SockaddrLike>(
    socket: &AsyncFd<OwnedFd>,
) -> io::Result<(Vec<u8>, Option<A>)> {
    loop {
        let mut ready = socket.readable().await?;
        let mut buffer = [0u8; 256];
        let received = ready.try_io(|socket| {
            let (length, from) = recvfrom::<A>(socket.as_raw_fd(), &mut buffer)?;
            Ok((length, from))
        });
        match received {
            Ok(Ok((length, from))) => return Ok((buffer[..length].to_vec(), from)),
            Ok(Err(error)) if error.kind() == io::ErrorKind::Interrupted => {}
            Ok(Err(error)) => return Err(error),
            Err(_not_ready) => {}
        }
    }
}

fn read_reply(echo: &[u8], kind: u8, mark: u64) -> Option<u64> {
    let payload = echo.get(HEADER..HEADER + PAYLOAD)?;
    let (held_mark, number) = payload.split_first_chunk::<8>()?;
    let number = number.first_chunk::<8>()?;
    (echo[0] == kind && u64::from_be_bytes(*held_mark) == mark).then(|| u64::from_be_bytes(*number))
}

/// The Internet checksum (RFC 1071) of an even number of bytes.
fn checksum(packet: &[u8]) -> u16 {
    let mut sum: u32 = packet.chunks_exact(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_packet_with_its_checksum_in_place_sums_to_zero() {
        let mut packet = [8, 0, 0, 0, 0x12, 0x34, 0xff, 0xff, 1, 2, 3, 4];
        let sum = checksum(&packet);
        packet[2..4].copy_from_slice(&sum.to_be_bytes());
        assert_eq!(checksum(&packet), 0);
    }

    #[test]
    fn a_reply_to_somebody_else_is_not_ours() {
        let mut echo = [0u8; HEADER + PAYLOAD];
        echo[8..16].copy_from_slice(&7u64.to_be_bytes());
        echo[16..24].copy_from_slice(&9u64.to_be_bytes());
        assert_eq!(read_reply(&echo, ECHO_REPLY_V4, 7), Some(9));
        assert_eq!(read_reply(&echo, ECHO_REPLY_V4, 8), None);
        assert_eq!(read_reply(&echo, ECHO_REPLY_V6, 7), None);
        assert_eq!(read_reply(&echo[..20], ECHO_REPLY_V4, 7), None);
    }
}
