//! WireGuard devices: one door, three backends.
//!
//! [`open`] makes the interface, or takes over one that is already ours, and gives back a [`Device`]: read it, apply
//! differences to it, take it away. The kernel backend is preferred; where the kernel has no WireGuard, the embedded
//! engine serves a TUN interface instead. Addresses, routes and MTU are not WireGuard's business: see [`crate::link`].
//!
//! Dropping a kernel device leaves it running, so that a restart of the daemon costs no packet. Dropping a userspace
//! device ends it.

mod cryptokey;
pub mod error;
mod exchange;
pub mod fake;
pub mod kernel;
mod kernel_message;
pub mod userspace;

pub use error::DeviceError;

use futures::future::BoxFuture;
use mesh_node_core::device::{ActualDevice, DeviceUpdate};
use mesh_types::PublicKey;
use std::fmt;
use std::str::FromStr;
use tracing::info;

/// What runs the tunnels.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Backend {
    /// The kernel's WireGuard.
    Kernel,
    /// The engine embedded in this program, on a TUN interface.
    Userspace,
}

impl fmt::Display for Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Kernel => "kernel",
            Self::Userspace => "userspace",
        })
    }
}

/// Which backend the operator wants.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub enum BackendChoice {
    /// The kernel's where it works, else the embedded one.
    #[default]
    Auto,
    /// The kernel's or none.
    Kernel,
    /// The embedded one or none.
    Userspace,
}

/// Why a text is not a backend choice.
#[derive(Debug, thiserror::Error, PartialEq, Eq, Clone)]
#[error("backend {0:?} not known: use auto, kernel or userspace")]
pub struct ParseBackendError(String);

impl FromStr for BackendChoice {
    type Err = ParseBackendError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "auto" => Ok(Self::Auto),
            "kernel" => Ok(Self::Kernel),
            "userspace" => Ok(Self::Userspace),
            _ => Err(ParseBackendError(text.to_owned())),
        }
    }
}

impl fmt::Display for BackendChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Auto => "auto",
            Self::Kernel => "kernel",
            Self::Userspace => "userspace",
        })
    }
}

/// WireGuard on one interface. One owner at a time; it decides nothing.
pub trait Device: Send {
    /// What runs it.
    fn backend(&self) -> Backend;

    /// The name of its interface.
    fn interface(&self) -> &str;

    /// Reads the whole of it.
    fn read(&mut self) -> BoxFuture<'_, Result<ActualDevice, DeviceError>>;

    /// Applies the changes in their order. On failure some may have been applied: read again and compare.
    fn apply<'a>(&'a mut self, update: &'a DeviceUpdate) -> BoxFuture<'a, Result<(), DeviceError>>;

    /// Takes the interface away, with everything on it.
    fn remove(self: Box<Self>) -> BoxFuture<'static, Result<(), DeviceError>>;
}

/// Makes the interface, or takes over the one of that name if it is ours.
///
/// A kernel device is ours when its public key is `ours`; its sessions go on undisturbed. So is one without a key that
/// was made for `ours`: that is what a crash between making and keying leaves behind. Anything else of that name is
/// refused.
pub async fn open(
    interface: &str,
    choice: BackendChoice,
    ours: Option<PublicKey>,
) -> Result<Box<dyn Device>, DeviceError> {
    check_name(interface)?;
    match choice {
        BackendChoice::Kernel => Ok(Box::new(kernel::Kernel::open(interface, ours).await?)),
        BackendChoice::Userspace => open_userspace(interface, ours).await,
        BackendChoice::Auto => match kernel::Kernel::open(interface, ours).await {
            Ok(device) => Ok(Box::new(device)),
            // Another's interface is as much in the way of the other backend.
            Err(error) if error.is_taken() => Err(error),
            Err(kernel) => {
                info!(interface, reason = %kernel, "no kernel WireGuard here, taking the userspace engine");
                open_userspace(interface, ours).await.map_err(|userspace| DeviceError::NoBackend {
                    kernel: Box::new(kernel),
                    userspace: Box::new(userspace),
                })
            }
        },
    }
}

/// Takes away the device of that name if it is ours, as [`open`] judges: an earlier run left it. Says whether there was
/// one.
pub async fn clear(interface: &str, ours: PublicKey) -> Result<bool, DeviceError> {
    check_name(interface)?;
    match kernel::Kernel::adopt(interface, Some(ours)).await {
        Ok(Some(device)) => Box::new(device).remove().await.map(|()| true),
        Ok(None) => Ok(false),
        Err(error) if error.is_taken() => Ok(false),
        Err(error) => Err(error),
    }
}

/// Opens the embedded engine, in place of our own kernel device if a former run left one.
async fn open_userspace(interface: &str, ours: Option<PublicKey>) -> Result<Box<dyn Device>, DeviceError> {
    if let Some(former) = kernel::Kernel::adopt(interface, ours).await? {
        info!(interface, "replacing our kernel device by the userspace engine");
        Box::new(former).remove().await?;
    }
    Ok(Box::new(userspace::Userspace::open(interface).await?))
}

/// Refuses what the kernel would refuse as a name, or read as a path.
fn check_name(interface: &str) -> Result<(), DeviceError> {
    match interface.parse::<wireguard_control::InterfaceName>() {
        Ok(_) if interface != "." && interface != ".." => Ok(()),
        _ => Err(DeviceError::InvalidName { interface: interface.to_owned() }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_linux_would_refuse_are_refused_first() {
        for good in ["mesh0", "a", "fifteen-letters"] {
            assert!(check_name(good).is_ok(), "{good}");
        }
        for bad in ["", ".", "..", "sixteen-letters!", "a/b", "a b"] {
            assert!(check_name(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn backend_choices_read_as_they_print() {
        for choice in [BackendChoice::Auto, BackendChoice::Kernel, BackendChoice::Userspace] {
            assert_eq!(choice.to_string().parse(), Ok(choice));
        }
        assert!("wg".parse::<BackendChoice>().is_err());
    }
}
