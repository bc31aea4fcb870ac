//! Addresses where no endpoint can be, and from which nothing of ours is sent: those that are reached through a tunnel of
//! this host.
//!
//! They are ranges that the mesh knows, and the addresses of the engine's own interface. Read where an endpoint changes and
//! where the host would choose a source address; packets on a known way do not come here.

use mesh_types::AllowedIp;
use mesh_wireguard_core::ranges::Ranges;
use std::net::IpAddr;
use std::sync::{Mutex, PoisonError, RwLock};

// The standard library's locks in tests as well: nothing waits inside of them.
#[derive(Default, Debug)]
pub(crate) struct Barred {
    given: Mutex<Given>,
    all: RwLock<Ranges>,
}

#[derive(Default, Debug)]
struct Given {
    ranges: Vec<AllowedIp>,
    own: Vec<IpAddr>,
}

impl Barred {
    /// Replaces the ranges.
    pub(crate) fn set_ranges(&self, ranges: Vec<AllowedIp>) {
        self.change(|given| given.ranges = ranges);
    }

    /// Replaces the addresses of the engine's own interface.
    pub(crate) fn set_own(&self, own: Vec<IpAddr>) {
        self.change(|given| given.own = own);
    }

    fn change(&self, change: impl FnOnce(&mut Given)) {
        let mut given = self.given.lock().unwrap_or_else(PoisonError::into_inner);
        change(&mut given);
        let own = given.own.iter().copied().map(AllowedIp::host);
        let all = given.ranges.iter().copied().chain(own).collect();
        *self.all.write().unwrap_or_else(PoisonError::into_inner) = all;
    }

    /// Whether an address is barred.
    pub(crate) fn contains(&self, address: IpAddr) -> bool {
        self.all.read().unwrap_or_else(PoisonError::into_inner).contains(address)
    }

    /// Whether none is.
    pub(crate) fn is_empty(&self) -> bool {
        self.all.read().unwrap_or_else(PoisonError::into_inner).is_empty()
    }
}
