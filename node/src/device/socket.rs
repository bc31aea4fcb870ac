//! The embedded engine's UDP socket, bound by us and lent to it.
//!
//! Left to itself the engine lets go of its old socket, and then finds out that the new port is taken, or that its own
//! old socket still has it. Here the new one is bound first; a failure leaves the engine as it was.

use super::DeviceError;
use gotatun::udp::socket::{SockOpt, UdpSocket};
use gotatun::udp::{UdpRecv, UdpTransportFactory, UdpTransportFactoryParams};
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tracing::{debug, warn};

/// Where the engine finds its socket.
#[derive(Clone, Default)]
pub(crate) struct Lender(Arc<Mutex<Option<UdpSocket>>>);

impl Lender {
    /// Binds a socket for both families and lends that from now on. Returns its port, chosen by the system if `port`
    /// is 0.
    pub(crate) fn bind(&self, port: u16, fwmark: u32) -> Result<u16, DeviceError> {
        let socket = bind(port, fwmark).map_err(|error| match error.kind() {
            io::ErrorKind::AddrInUse => DeviceError::PortTaken { port },
            _ => DeviceError::system(format!("listen on UDP port {port}"), error),
        })?;
        if let Err(error) = socket.enable_udp_gro() {
            debug!(%error, "the system does not join received packets (UDP GRO)");
        }
        let bound = socket.local_addr().map_err(|error| DeviceError::system("read the socket's port", error))?.port();
        *self.lock() = Some(socket);
        Ok(bound)
    }

    /// The port of the socket that is lent; 0 if there is none.
    pub(crate) fn port(&self) -> u16 {
        self.lock().as_ref().and_then(|socket| socket.local_addr().ok()).map_or(0, |address| address.port())
    }

    fn lock(&self) -> MutexGuard<'_, Option<UdpSocket>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl UdpTransportFactory for Lender {
    type Send = UdpSocket;
    type Recv = UdpSocket;

    async fn bind(&mut self, _params: &UdpTransportFactoryParams) -> io::Result<(UdpSocket, UdpSocket)> {
        let socket = self.lock().clone().ok_or_else(|| io::Error::from(io::ErrorKind::NotConnected))?;
        Ok((socket.clone(), socket))
    }
}

fn bind(port: u16, fwmark: u32) -> io::Result<UdpSocket> {
    // Setting a mark takes a right that is not needed for none.
    let options = SockOpt { fwmark: (fwmark != 0).then_some(fwmark), only_v6: Some(false), ..SockOpt::default() };
    match UdpSocket::bind(SocketAddr::from((Ipv6Addr::UNSPECIFIED, port)), options) {
        Err(error) if matches!(error.raw_os_error(), Some(libc::EAFNOSUPPORT | libc::EADDRNOTAVAIL)) => {
            warn!(port, "this host has no IPv6 sockets: the underlay is IPv4 only");
            UdpSocket::bind(SocketAddr::from((Ipv4Addr::UNSPECIFIED, port)), options)
        }
        bound => bound,
    }
}
