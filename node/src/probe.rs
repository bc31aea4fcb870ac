//! The sockets that probes go through: UDP on both overlay addresses, tied to the interface.
//!
//! Tied, so that nothing from outside the tunnel is taken for a probe. They die with the interface and are made anew
//! with the next one. What a probe says is the core's.

use mesh_node_core::probe::PROBE_PORT;
use mesh_types::OverlayAddresses;
use nix::sys::socket::{
    AddressFamily, SockFlag, SockProtocol, SockType, SockaddrIn, SockaddrIn6, bind, setsockopt, socket, sockopt,
};
use std::ffi::OsString;
use std::future::pending;
use std::io;
use std::net::{IpAddr, SocketAddr, SocketAddrV4, SocketAddrV6};
use std::os::fd::AsRawFd as _;
use std::time::Duration;
use tokio::net::UdpSocket;
use tracing::debug;

/// Bytes taken of a datagram: more than any probe; what is longer is cut and refused by the core.
const MAX_DATAGRAM: usize = 256;

/// A datagram that came to the probe port.
pub struct Datagram {
    /// The overlay address it came from; the tunnel vouches for it.
    pub from: IpAddr,
    /// What it says.
    pub bytes: Vec<u8>,
}

/// Both sockets.
pub struct ProbeSockets {
    v4: UdpSocket,
    /// None on a host without IPv6.
    v6: Option<UdpSocket>,
}

impl ProbeSockets {
    /// Binds to the node's overlay addresses, which the interface must have by now.
    pub fn open(interface: &str, addresses: OverlayAddresses) -> io::Result<Self> {
        let v4 = SocketAddr::V4(SocketAddrV4::new(addresses.v4, PROBE_PORT));
        let v6 = SocketAddr::V6(SocketAddrV6::new(addresses.v6, PROBE_PORT, 0, 0));
        let v6 = open_one(interface, v6).inspect_err(|error| debug!(%error, "no probes over IPv6")).ok();
        Ok(Self { v4: open_one(interface, v4)?, v6 })
    }

    /// The next datagram from the probe port of an overlay address.
    pub async fn receive(&self) -> Datagram {
        let (mut first, mut second) = ([0; MAX_DATAGRAM], [0; MAX_DATAGRAM]);
        loop {
            let (received, bytes) = tokio::select! {
                received = self.v4.recv_from(&mut first) => (received, &first),
                received = receive_from(self.v6.as_ref(), &mut second) => (received, &second),
            };
            match received {
                Ok((length, from)) if from.port() == PROBE_PORT => {
                    return Datagram { from: from.ip(), bytes: bytes[..length].to_vec() };
                }
                Ok(_) => {}
                // The interface goes down under us, or ICMP speaks: neither is a datagram, and the socket may live on.
                Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
            }
        }
    }

    /// Sends if there is room; a lost probe is repeated by the core.
    pub fn send(&self, to: IpAddr, bytes: &[u8]) -> io::Result<()> {
        let socket = if to.is_ipv4() { Some(&self.v4) } else { self.v6.as_ref() };
        let Some(socket) = socket else { return Ok(()) };
        match socket.try_send_to(bytes, SocketAddr::new(to, PROBE_PORT)) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(()),
            result => result.map(|_| ()),
        }
    }
}

async fn receive_from(socket: Option<&UdpSocket>, bytes: &mut [u8]) -> io::Result<(usize, SocketAddr)> {
    match socket {
        Some(socket) => socket.recv_from(bytes).await,
        None => pending().await,
    }
}

fn open_one(interface: &str, address: SocketAddr) -> io::Result<UdpSocket> {
    let family = if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
    let descriptor = socket(family, SockType::Datagram, flags, SockProtocol::Udp)?;
    setsockopt(&descriptor, sockopt::BindToDevice, &OsString::from(interface))?;
    match address {
        SocketAddr::V4(address) => bind(descriptor.as_raw_fd(), &SockaddrIn::from(address))?,
        SocketAddr::V6(address) => bind(descriptor.as_raw_fd(), &SockaddrIn6::from(address))?,
    }
    UdpSocket::from_std(descriptor.into())
}
