//! A TUN interface with one queue a worker: packets, and super-packets of up to 64 KiB, in and out of the host's stack.
//!
//! Lives as long as its file descriptors: when the last one closes, the kernel takes the interface away. What the kernel
//! can do is found out by trying: segmentation offload for TCP and UDP, for TCP alone, or none. Configures nothing but the
//! MTU it starts with.

use mesh_wireguard_core::offload::{Capabilities, VnetHeader};
use nix::errno::Errno;
use std::ffi::{c_int, c_short, c_uint};
use std::fs::OpenOptions;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;

/// The MTU that WireGuard's interfaces start with: 1,500 less the outer headers over IPv6.
pub(crate) const DEFAULT_MTU: u16 = 1_420;

/// The largest that one read gives: a super-packet behind its header.
pub(crate) const READ_SIZE: usize = VnetHeader::LEN + 65_536;

// From include/uapi/linux/if_tun.h.
const TUN_F_CSUM: c_uint = 0x01;
const TUN_F_TSO4: c_uint = 0x02;
const TUN_F_TSO6: c_uint = 0x04;
const TUN_F_TSO_ECN: c_uint = 0x08;
const TUN_F_USO4: c_uint = 0x20;
const TUN_F_USO6: c_uint = 0x40;
const TCP_OFFLOADS: c_uint = TUN_F_CSUM | TUN_F_TSO4 | TUN_F_TSO6 | TUN_F_TSO_ECN;

/// An interface, as its queues see it.
#[derive(Debug)]
pub(crate) struct Tun {
    name: String,
    capabilities: Capabilities,
}

/// One queue: whoever owns it reads and writes packets.
#[derive(Debug)]
pub(crate) struct Queue(OwnedFd);

/// Why there is no interface.
#[derive(Debug, thiserror::Error)]
pub enum TunError {
    /// The device node cannot be opened.
    #[error("open /dev/net/tun: {0}")]
    Open(io::Error),
    /// An interface of that name exists.
    #[error("interface {0} exists")]
    Exists(String),
    /// The system refused.
    #[error("{doing}: {source}")]
    System {
        /// What was tried.
        doing: String,
        /// What the system said.
        source: io::Error,
    },
}

impl Tun {
    /// Makes the interface with that many queues. It is down and has no addresses.
    pub(crate) fn create(name: &str, queues: usize) -> Result<(Self, Vec<Queue>), TunError> {
        let failed = |doing: &str, errno: Errno| TunError::System {
            doing: format!("{doing} of TUN interface {name}"),
            source: errno.into(),
        };
        let mut made = Vec::with_capacity(queues);
        for n in 0..queues.max(1) {
            let fd = open()?;
            // All but the first join what the first has made.
            let flags =
                if n == 0 { libc::IFF_TUN_EXCL } else { 0 } | if queues > 1 { libc::IFF_MULTI_QUEUE } else { 0 };
            attach(&fd, name, flags).map_err(|errno| match errno {
                Errno::EBUSY | Errno::EINVAL | Errno::EEXIST => TunError::Exists(name.to_owned()),
                errno => failed("creation", errno),
            })?;
            made.push(Queue(fd));
        }
        let capabilities = offload(&made[0].0).map_err(|errno| failed("offload", errno))?;
        set_mtu(name, DEFAULT_MTU).map_err(|errno| failed("MTU", errno))?;
        Ok((Self { name: name.to_owned(), capabilities }, made))
    }

    /// Its name.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Which super-packets it takes.
    pub(crate) fn capabilities(&self) -> Capabilities {
        self.capabilities
    }

    /// Its MTU, which others may change. An error means that the interface is gone.
    pub(crate) fn mtu(&self) -> io::Result<u16> {
        // Any socket of the namespace answers questions about its interfaces.
        let socket = std::os::unix::net::UnixDatagram::unbound()?;
        let mut request = interface_request(&self.name)?;
        // SAFETY: the socket is open, and `request` is a whole `ifreq` that outlives the call.
        unsafe { get_interface_mtu(socket.as_raw_fd(), &mut request) }?;
        // SAFETY: SIOCGIFMTU fills in this member.
        let mtu = unsafe { request.ifr_ifru.ifru_mtu };
        Ok(u16::try_from(mtu).unwrap_or(u16::MAX))
    }
}

#[cfg(test)]
impl Tun {
    /// One that is not there, for what neither reads nor writes it.
    pub(crate) fn absent() -> Self {
        Self { name: "absent".to_owned(), capabilities: Capabilities::default() }
    }
}

#[cfg(test)]
impl Queue {
    /// One that takes everything and gives nothing.
    pub(crate) fn nowhere() -> Self {
        Self(OpenOptions::new().write(true).open("/dev/null").expect("every Unix has it").into())
    }

    /// One that gives what is written to the other end, packet by packet, as far as a pipe has room.
    pub(crate) fn piped() -> (Self, std::fs::File) {
        use nix::fcntl::{FcntlArg, OFlag, fcntl};
        let (reader, writer) = nix::unistd::pipe2(OFlag::O_DIRECT | OFlag::O_NONBLOCK).expect("a pipe");
        // A page for each packet; what comes with a pipe is sixteen.
        fcntl(&writer, FcntlArg::F_SETPIPE_SZ(1 << 20)).expect("everybody may have that much");
        (Self(reader), writer.into())
    }
}

impl Queue {
    /// Takes the next packet, with its header in front. `WouldBlock` when there is none.
    pub(crate) fn read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        Ok(nix::unistd::read(&self.0, buffer)?)
    }

    /// Hands a packet, given in pieces and with its header in front, to the host.
    pub(crate) fn write(&self, pieces: &[io::IoSlice<'_>]) -> io::Result<()> {
        match nix::sys::uio::writev(&self.0, pieces) {
            // While the interface is down it takes nothing: such a packet is lost, as on any link. What the host cannot
            // read as a packet is lost as well.
            Ok(_) | Err(Errno::EIO | Errno::EINVAL | Errno::ENOMEM | Errno::ENOBUFS | Errno::EAGAIN) => Ok(()),
            Err(errno) => Err(errno.into()),
        }
    }
}

impl AsFd for Queue {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Whether an error of a queue says that the interface was taken away.
pub(crate) fn is_gone(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EBADFD | libc::EFAULT | libc::ENODEV | libc::EBADF))
}

fn open() -> Result<OwnedFd, TunError> {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC)
        .open("/dev/net/tun")
        .map_err(TunError::Open)?;
    Ok(file.into())
}

nix::ioctl_write_ptr_bad!(tun_set_iff, nix::request_code_write!(b'T', 202, size_of::<c_int>()), libc::ifreq);
nix::ioctl_write_int_bad!(tun_set_offload, nix::request_code_write!(b'T', 208, size_of::<c_uint>()));
nix::ioctl_write_ptr_bad!(set_interface_mtu, libc::SIOCSIFMTU, libc::ifreq);
nix::ioctl_read_bad!(get_interface_mtu, libc::SIOCGIFMTU, libc::ifreq);

fn attach(fd: &OwnedFd, name: &str, flags: c_int) -> Result<(), Errno> {
    let mut request = interface_request(name)?;
    request.ifr_ifru.ifru_flags = (libc::IFF_TUN | libc::IFF_NO_PI | libc::IFF_VNET_HDR | flags) as c_short;
    // SAFETY: `fd` is open, and `request` is a whole `ifreq` that outlives the call.
    unsafe { tun_set_iff(fd.as_raw_fd(), &request) }.map(drop)
}

/// Asks for as much as the kernel has: UDP since 6.2, TCP since always.
fn offload(fd: &OwnedFd) -> Result<Capabilities, Errno> {
    let tries = [
        (TCP_OFFLOADS | TUN_F_USO4 | TUN_F_USO6, Capabilities { tcp4: true, tcp6: true, udp: true }),
        (TCP_OFFLOADS, Capabilities { tcp4: true, tcp6: true, udp: false }),
    ];
    for (flags, capabilities) in tries {
        // SAFETY: `fd` is open, and the argument is a number.
        match unsafe { tun_set_offload(fd.as_raw_fd(), flags as c_int) } {
            Ok(_) => return Ok(capabilities),
            Err(Errno::EINVAL) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(Capabilities { tcp4: false, tcp6: false, udp: false })
}

fn set_mtu(name: &str, mtu: u16) -> Result<(), Errno> {
    let socket = std::os::unix::net::UnixDatagram::unbound().map_err(|_| Errno::EMFILE)?;
    let mut request = interface_request(name)?;
    request.ifr_ifru.ifru_mtu = c_int::from(mtu);
    // SAFETY: the socket is open, and `request` is a whole `ifreq` that outlives the call.
    unsafe { set_interface_mtu(socket.as_raw_fd(), &request) }.map(drop)
}

/// An `ifreq` with the name filled in and the rest zero.
fn interface_request(name: &str) -> Result<libc::ifreq, Errno> {
    // SAFETY: `ifreq` is plain data, for which all zeroes are a value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    // One byte less than the array: the name ends with a zero.
    if name.len() >= request.ifr_name.len() {
        return Err(Errno::ENAMETOOLONG);
    }
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    Ok(request)
}
