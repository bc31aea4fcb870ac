//! The host's links as the mesh meets them: our own interface, and the underlay below it.
//!
//! [`Links::configure`] makes our interface what it should be, by difference; [`Links::underlay`] tells where this host
//! can be reached; [`Monitor`] tells when either changes, from the kernel's own events; [`Links::overlaps`] finds host
//! routes that an overlay would hide. WireGuard itself is [`crate::device`]'s business.

mod carried;
mod interface;
pub mod monitor;
pub(crate) mod netlink;
mod overlap;
mod underlay;

pub use interface::LinkConfig;
pub use monitor::{Change, Monitor};
pub use overlap::HostRoute;
pub use underlay::{DEFAULT_MTU, Egress, MIN_MTU, Underlay, UnderlayAddress};

use netlink::Netlink;
use std::io;
use thiserror::Error;

/// The links of one network namespace.
pub struct Links {
    netlink: Netlink,
}

/// Why a link could not be looked at or changed.
#[derive(Debug, Error)]
pub enum LinkError {
    /// The interface is not there.
    #[error("interface {interface} does not exist")]
    NoInterface {
        /// Its name.
        interface: String,
    },
    /// The process lacks the right.
    #[error("no right to {doing}: run as root or with CAP_NET_ADMIN")]
    Privilege {
        /// What was tried.
        doing: String,
    },
    /// The interface's UDP port is another's; a kernel device tries for it when it comes up.
    #[error("cannot bring {interface} up: its UDP port is taken by another program; choose another with --listen-port")]
    PortTaken {
        /// The interface.
        interface: String,
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

impl LinkError {
    fn system(doing: impl Into<String>, source: io::Error) -> Self {
        let doing = doing.into();
        match source.kind() {
            io::ErrorKind::PermissionDenied => Self::Privilege { doing },
            _ => Self::System { doing, source },
        }
    }
}

impl Links {
    /// Opens a netlink socket in the thread's network namespace.
    pub fn open() -> Result<Self, LinkError> {
        let netlink = Netlink::open().map_err(|error| LinkError::system("open a netlink socket", error))?;
        Ok(Self { netlink })
    }

    /// The index of an interface, if it is there.
    async fn index(&self, interface: &str) -> Result<Option<u32>, LinkError> {
        let found = self.netlink.link(interface).await;
        let found = found.map_err(|error| LinkError::system(format!("look at interface {interface}"), error))?;
        Ok(found.map(|link| link.index))
    }
}
