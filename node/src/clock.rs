//! The host's clocks, read in one place and handed to the core as arguments; and the mesh's, as the core knows it.

use mesh_node_core::clock::{BootTime, Now};
use mesh_types::MeshTime;
use nix::time::{ClockId, clock_gettime};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, SystemTime};

/// The present by both clocks of the host.
pub fn now() -> Now {
    Now { boot: since_boot(), wall: wall() }
}

/// The time since boot, time asleep included (`CLOCK_BOOTTIME`): leases run on while the host is suspended.
pub fn since_boot() -> BootTime {
    let now = clock_gettime(ClockId::CLOCK_BOOTTIME).expect("Linux has CLOCK_BOOTTIME since 2.6.39");
    let seconds = u64::try_from(now.tv_sec()).unwrap_or_default();
    let nanoseconds = u32::try_from(now.tv_nsec()).unwrap_or_default();
    BootTime::from_elapsed(Duration::new(seconds, nanoseconds))
}

/// The host's wall clock, right or wrong.
pub fn wall() -> MeshTime {
    MeshTime::from_system(SystemTime::now())
}

/// Mesh time for those outside the loop (TLS judges certificates by it), as the difference to the time since boot.
#[derive(Clone)]
pub struct SharedMeshTime(Arc<AtomicI64>);

impl SharedMeshTime {
    /// Starts from the wall clock.
    pub fn new() -> Self {
        let shared = Self(Arc::new(AtomicI64::new(0)));
        shared.set(wall());
        shared
    }

    /// Takes what mesh time is now.
    pub fn set(&self, time: MeshTime) {
        self.0.store(time.0.wrapping_sub(millis_since_boot()).cast_signed(), Ordering::Relaxed);
    }

    /// What mesh time is now.
    pub fn now(&self) -> MeshTime {
        MeshTime(millis_since_boot().saturating_add_signed(self.0.load(Ordering::Relaxed)))
    }
}

impl Default for SharedMeshTime {
    fn default() -> Self {
        Self::new()
    }
}

fn millis_since_boot() -> u64 {
    since_boot().as_micros() / 1_000
}
