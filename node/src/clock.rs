//! The host's clocks, read in one place and handed to the cores as arguments.

use mesh_types::MeshTime;
use nix::time::{ClockId, clock_gettime};
use std::time::SystemTime;

/// Milliseconds since boot, time asleep included (`CLOCK_BOOTTIME`): leases run on while the host is suspended.
pub fn since_boot() -> u64 {
    let now = clock_gettime(ClockId::CLOCK_BOOTTIME).expect("Linux has CLOCK_BOOTTIME since 2.6.39");
    let seconds = u64::try_from(now.tv_sec()).unwrap_or_default();
    seconds * 1_000 + u64::try_from(now.tv_nsec()).unwrap_or_default() / 1_000_000
}

/// The host's wall clock, right or wrong.
pub fn wall() -> MeshTime {
    MeshTime::from_system(SystemTime::now())
}
