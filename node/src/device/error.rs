//! What can go wrong with a device, each with what to do about it.

use std::io;
use std::time::Duration;
use thiserror::Error;

/// Why a device could not be opened, read or changed.
#[derive(Debug, Error)]
pub enum DeviceError {
    /// The name is none that Linux takes.
    #[error("interface name {interface:?} is not valid: use 1 to 15 letters, digits, dashes or dots")]
    InvalidName {
        /// The name given.
        interface: String,
    },
    /// An interface of another kind has the name.
    #[error(
        "interface {interface} exists and is no WireGuard device of ours (its kind is {kind}): choose another name with \
         --interface, or remove it with `ip link delete {interface}`"
    )]
    NameTaken {
        /// The name given.
        interface: String,
        /// What the kernel says it is.
        kind: String,
    },
    /// An interface has the name, of which no more is known.
    #[error("interface {interface} exists: choose another name, or remove it with `ip link delete {interface}`")]
    Exists {
        /// The name given.
        interface: String,
    },
    /// A WireGuard device with another's key has the name.
    #[error(
        "interface {interface} is a WireGuard device with another key ({found}): it is not ours and is left alone; \
         choose another name with --interface, or remove it with `ip link delete {interface}`"
    )]
    ForeignKey {
        /// The name given.
        interface: String,
        /// Its public key.
        found: String,
    },
    /// A WireGuard device without a key has the name, and not one that an earlier run of ours was about to give its key.
    #[error(
        "interface {interface} is a WireGuard device without a key that somebody else made: it is left alone; choose \
         another name with --interface, or remove it with `ip link delete {interface}`"
    )]
    Keyless {
        /// The name given.
        interface: String,
    },
    /// The process lacks the right to make or change interfaces.
    #[error("no right to {doing}: run as root or with CAP_NET_ADMIN")]
    Privilege {
        /// What was tried.
        doing: String,
    },
    /// The kernel has no WireGuard.
    #[error("this kernel has no WireGuard: load it with `modprobe wireguard`, or use --backend userspace")]
    KernelMissing,
    /// There is no TUN driver to be had.
    #[error(
        "cannot open /dev/net/tun ({source}): load it with `modprobe tun`; in a container, pass the device in \
         (--device /dev/net/tun)"
    )]
    NoTun {
        /// What the system said.
        source: io::Error,
    },
    /// Neither backend works.
    #[error("no WireGuard backend works here. kernel: {kernel}. userspace: {userspace}")]
    NoBackend {
        /// What is wrong with the kernel's.
        kernel: Box<DeviceError>,
        /// What is wrong with the embedded one.
        userspace: Box<DeviceError>,
    },
    /// Another program has the UDP port.
    #[error("UDP port {port} is taken by another program: choose another with --listen-port")]
    PortTaken {
        /// The port.
        port: u16,
    },
    /// Peers were given before a private key.
    #[error("interface {interface} has no private key yet: set one before its peers")]
    NoPrivateKey {
        /// The interface.
        interface: String,
    },
    /// The interface was taken away under us.
    #[error("interface {interface} has gone: it was removed by someone else")]
    Gone {
        /// The interface.
        interface: String,
    },
    /// The kernel did not answer.
    #[error("no answer from the kernel within {} s while trying to {doing}", after.as_secs())]
    Timeout {
        /// What was tried.
        doing: String,
        /// How long was waited.
        after: Duration,
    },
    /// The system refused.
    #[error("cannot {doing}: {source}")]
    System {
        /// What was tried.
        doing: String,
        /// What the system said.
        source: io::Error,
    },
}

impl DeviceError {
    /// Whether the interface's name belongs to somebody else.
    pub fn is_taken(&self) -> bool {
        matches!(self, Self::NameTaken { .. } | Self::Exists { .. } | Self::ForeignKey { .. } | Self::Keyless { .. })
    }

    /// Names what was tried, and tells a lack of rights from other refusals.
    pub(crate) fn system(doing: impl Into<String>, source: io::Error) -> Self {
        let doing = doing.into();
        match source.kind() {
            io::ErrorKind::PermissionDenied => Self::Privilege { doing },
            io::ErrorKind::TimedOut => Self::Timeout { doing, after: crate::link::netlink::TIMEOUT },
            _ => Self::System { doing, source },
        }
    }
}
