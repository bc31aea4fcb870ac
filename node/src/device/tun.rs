//! A TUN interface for the embedded engine: IP packets in and out of the host's network stack.
//!
//! Lives as long as its file descriptors: when the last one closes, the kernel takes the interface away. Configures
//! nothing but the MTU it starts with; that is [`crate::link`]'s business.

use super::DeviceError;
use crate::link::DEFAULT_MTU;
use gotatun::packet::{Ip, Packet, PacketBufPool};
use gotatun::tun::{IpRecv, IpSend, MtuWatcher};
use nix::errno::Errno;
use std::ffi::{c_int, c_short};
use std::fs::OpenOptions;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::sync::Arc;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::watch;

/// Packets taken from the interface in one go: enough to spare wake-ups, few enough to stay in the cache.
const BATCH: usize = 64;

/// What wakes the reader. That the interface was removed shows as an error alone.
const WATCHED: Interest = Interest::READABLE.add(Interest::ERROR);

/// The write side.
#[derive(Clone)]
pub(crate) struct TunWriter(Arc<AsyncFd<OwnedFd>>);

/// The read side.
pub(crate) struct TunReader {
    fd: Arc<AsyncFd<OwnedFd>>,
    batch: Vec<Packet<Ip>>,
    mtu: watch::Receiver<u16>,
}

/// Tells the engine of the interface's MTU, which it pads packets up to.
pub(crate) struct TunMtu {
    interface: String,
    sender: watch::Sender<u16>,
}

/// Makes the interface. It is down and has no addresses.
pub(crate) fn create(interface: &str) -> Result<(TunWriter, TunReader, TunMtu), DeviceError> {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC)
        .open("/dev/net/tun")
        .map_err(|error| match error.kind() {
            io::ErrorKind::PermissionDenied => DeviceError::Privilege { doing: "open /dev/net/tun".to_owned() },
            _ => DeviceError::NoTun { source: error },
        })?;
    let fd = OwnedFd::from(file);
    attach(&fd, interface).map_err(|errno| match errno {
        Errno::EBUSY | Errno::EINVAL | Errno::EEXIST => {
            DeviceError::NameTaken { interface: interface.to_owned(), kind: "tun".to_owned() }
        }
        Errno::EPERM | Errno::EACCES => DeviceError::Privilege { doing: format!("make the TUN interface {interface}") },
        errno => DeviceError::system(format!("make the TUN interface {interface}"), errno.into()),
    })?;
    set_mtu(interface).map_err(|error| DeviceError::system(format!("set {interface}'s MTU"), error))?;
    // SAFETY: an `OwnedFd` is open for as long as it lives, and always the same descriptor.
    let fd = unsafe { AsyncFd::register_with_interest(fd, WATCHED.add(Interest::WRITABLE)) };
    let fd = fd.map_err(|error| DeviceError::system("wait on the TUN interface", error.into()))?;
    let fd = Arc::new(fd);
    let mtu = read_mtu(interface).map_err(|error| DeviceError::system(format!("read {interface}'s MTU"), error))?;
    let (sender, mtu) = watch::channel(mtu);
    let reader = TunReader { fd: fd.clone(), batch: Vec::with_capacity(BATCH), mtu };
    Ok((TunWriter(fd), reader, TunMtu { interface: interface.to_owned(), sender }))
}

impl TunMtu {
    /// Looks whether the MTU was changed since.
    pub(crate) fn refresh(&self) {
        // A failure means that the interface is gone, which the reader will notice.
        if let Ok(mtu) = read_mtu(&self.interface) {
            self.sender.send_if_modified(|known| std::mem::replace(known, mtu) != mtu);
        }
    }
}

impl IpSend for TunWriter {
    async fn send(&mut self, packet: Packet<Ip>) -> io::Result<()> {
        let bytes = packet.into_bytes();
        loop {
            let mut ready = self.0.writable().await?;
            match ready.try_io(|fd| nix::unistd::write(fd.get_ref(), &bytes).map_err(io::Error::from)) {
                // While the interface is down it takes nothing (EIO): such a packet is lost, as on any link.
                Ok(Err(error)) if error.raw_os_error() == Some(libc::EIO) => return Ok(()),
                Ok(result) => return result.map(drop),
                Err(_would_block) => {}
            }
        }
    }
}

impl IpRecv for TunReader {
    async fn recv<'a>(
        &'a mut self,
        pool: &mut PacketBufPool,
    ) -> io::Result<impl Iterator<Item = Packet<Ip>> + Send + 'a> {
        while self.batch.is_empty() {
            let mut ready = self.fd.ready(WATCHED).await?;
            while self.batch.len() < BATCH {
                let mut packet = pool.get();
                match ready.try_io(|fd| nix::unistd::read(fd.get_ref(), &mut packet).map_err(io::Error::from)) {
                    Ok(read) => {
                        packet.truncate(read?);
                        // What is no IP packet has no way through the tunnel.
                        self.batch.extend(packet.try_into_ip());
                    }
                    Err(_would_block) => break,
                }
            }
        }
        Ok(self.batch.drain(..))
    }

    fn mtu(&self) -> MtuWatcher {
        self.mtu.clone().into()
    }
}

nix::ioctl_write_ptr_bad!(tun_set_iff, nix::request_code_write!(b'T', 202, size_of::<c_int>()), libc::ifreq);
nix::ioctl_write_ptr_bad!(set_interface_mtu, libc::SIOCSIFMTU, libc::ifreq);
nix::ioctl_read_bad!(get_interface_mtu, libc::SIOCGIFMTU, libc::ifreq);

/// Ties the descriptor to a new interface of that name; fails if there is one already.
fn attach(fd: &OwnedFd, interface: &str) -> Result<(), Errno> {
    let mut request = interface_request(interface)?;
    request.ifr_ifru.ifru_flags = (libc::IFF_TUN | libc::IFF_NO_PI | libc::IFF_TUN_EXCL) as c_short;
    // SAFETY: `fd` is open, and `request` is a whole `ifreq` that outlives the call.
    unsafe { tun_set_iff(fd.as_raw_fd(), &request) }.map(drop)
}

/// Starts with the overlay's usual MTU, so that there is no moment at which packets are too large.
fn set_mtu(interface: &str) -> io::Result<()> {
    let socket = std::os::unix::net::UnixDatagram::unbound()?;
    let mut request = interface_request(interface)?;
    request.ifr_ifru.ifru_mtu = c_int::from(DEFAULT_MTU);
    // SAFETY: the socket is open, and `request` is a whole `ifreq` that outlives the call.
    unsafe { set_interface_mtu(socket.as_raw_fd(), &request) }?;
    Ok(())
}

fn read_mtu(interface: &str) -> io::Result<u16> {
    // Any socket of the namespace answers questions about its interfaces.
    let socket = std::os::unix::net::UnixDatagram::unbound()?;
    let mut request = interface_request(interface)?;
    // SAFETY: the socket is open, and `request` is a whole `ifreq` that outlives the call.
    unsafe { get_interface_mtu(socket.as_raw_fd(), &mut request) }?;
    // SAFETY: SIOCGIFMTU fills in this member.
    let mtu = unsafe { request.ifr_ifru.ifru_mtu };
    Ok(u16::try_from(mtu).unwrap_or(u16::MAX))
}

/// An `ifreq` with the name filled in and the rest zero.
fn interface_request(interface: &str) -> Result<libc::ifreq, Errno> {
    // SAFETY: `ifreq` is plain data, for which all zeroes are a value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    // One byte less than the array: the name ends with a zero.
    if interface.len() >= request.ifr_name.len() {
        return Err(Errno::ENAMETOOLONG);
    }
    for (to, from) in request.ifr_name.iter_mut().zip(interface.bytes()) {
        *to = from as libc::c_char;
    }
    Ok(request)
}
