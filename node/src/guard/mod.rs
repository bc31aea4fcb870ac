//! The guard over a kernel device whose daemon is gone: `meshd --guard`.
//!
//! A kernel device goes on without its daemon, so that a restart drops no packet; but nobody enforces deadlines then.
//! The guard begins when the daemon has ended: started by a supervisor then, or by the daemon itself beforehand, see
//! [`child`]. It waits ten minutes, or until the first key in the cache expires, and takes the device away. A daemon
//! that holds the state directory by then ends the guard instead; so does a device that goes before.
//!
//! It keeps no daemon from the state directory while it waits, speaks to nobody, and changes nothing that a daemon keeps
//! there. A userspace device needs no guard: it ends with its daemon.

pub mod child;

use crate::clock;
use crate::device::{Device as _, DeviceError, kernel::Kernel};
use crate::drop_rule;
use crate::state::{JournalFile, StateDir, StateError};
use mesh_node_core::clock::{BootTime, Clock, Now};
use mesh_node_core::journal::Cache;
use mesh_types::{MeshTime, PublicKey};
use std::path::Path;
use std::time::Duration;
use thiserror::Error;
use tokio::time::sleep;
use tracing::{info, warn};

/// How long a device may go on without a daemon: long enough for an upgrade that went wrong and is put right.
const GRACE: Duration = Duration::from_secs(600);
/// Between looks at the clock, which goes on during suspend while timers do not, and at the device.
const LOOK: Duration = Duration::from_secs(5);

/// How a guard ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Outcome {
    /// A daemon is up and looks after the device itself.
    DaemonIsBack,
    /// This host is no member, so that no device is ours.
    NoMember,
    /// There is no device of ours by that name.
    NoDevice,
    /// The device was taken away.
    TakenDown,
    /// The daemon itself took its device away, and said so.
    Dismissed,
}

/// Why a guard could not do its work.
#[derive(Debug, Error)]
pub enum GuardError {
    /// The state directory cannot be read.
    #[error(transparent)]
    State(#[from] StateError),
    /// The device cannot be looked at or taken away.
    #[error(transparent)]
    Device(#[from] DeviceError),
}

/// Waits until `interface` may not go on without a daemon, then takes it away if there is still none.
pub async fn run(state_dir: &Path, interface: &str) -> Result<Outcome, GuardError> {
    let (key, until) = match look(state_dir)? {
        Found::Device { key, until } => (key, until),
        Found::Nothing(outcome) => return Ok(outcome),
    };
    if !is_there(interface, key).await? {
        return Ok(Outcome::NoDevice);
    }
    info!(interface, seconds = until.since(clock::since_boot()).as_secs(), "the daemon is gone, guarding its device");
    loop {
        let left = until.since(clock::since_boot());
        if left.is_zero() {
            break;
        }
        sleep(left.min(LOOK)).await;
        if !is_there(interface, key).await? {
            return Ok(Outcome::NoDevice);
        }
    }
    // Held to the end: a daemon that starts now waits for its supervisor's next try, and finds a clean host.
    let _state = match StateDir::open(state_dir) {
        Err(StateError::InUse(_)) => return Ok(Outcome::DaemonIsBack),
        other => other?,
    };
    take_down(interface, key).await
}

enum Found {
    Device { key: PublicKey, until: BootTime },
    Nothing(Outcome),
}

fn look(path: &Path) -> Result<Found, StateError> {
    if !path.is_dir() {
        return Ok(Found::Nothing(Outcome::NoMember));
    }
    let state = match StateDir::open(path) {
        Err(StateError::InUse(_)) => return Ok(Found::Nothing(Outcome::DaemonIsBack)),
        other => other?,
    };
    let Some(member) = state.membership()? else { return Ok(Found::Nothing(Outcome::NoMember)) };
    let bytes = if state.journal_path().exists() { JournalFile::open(path)?.1 } else { Vec::new() };
    let cache =
        Cache::replay(&bytes, member.mesh(), member.record.id).map(|(cache, _)| cache).unwrap_or_else(|error| {
            warn!(%error, "no deadline is known");
            Cache::new(member.mesh(), member.record.id)
        });
    let now = clock::now();
    let until = end_of_grace(deadlines(&cache), &Clock::restore(cache.clock, now), now);
    Ok(Found::Device { key: member.record.public_key, until })
}

fn deadlines(cache: &Cache) -> impl Iterator<Item = MeshTime> {
    cache.netmap.iter().flat_map(|netmap| netmap.nodes.values()).map(|node| node.expires_at)
}

/// Ten minutes from `now`, or the first of the deadlines that is still ahead, whichever comes first.
fn end_of_grace(deadlines: impl Iterator<Item = MeshTime>, clock: &Clock, now: Now) -> BootTime {
    let present = clock.now(now);
    // Those that have passed were enforced by the daemon.
    let next = deadlines.filter(|deadline| *deadline > present).min();
    let grace = now.boot + GRACE;
    next.map_or(grace, |deadline| grace.min(clock.boot_at(deadline, now)))
}

async fn is_there(interface: &str, key: PublicKey) -> Result<bool, DeviceError> {
    Ok(find(interface, key).await?.is_some())
}

async fn take_down(interface: &str, key: PublicKey) -> Result<Outcome, GuardError> {
    let Some(device) = find(interface, key).await? else { return Ok(Outcome::NoDevice) };
    Box::new(device).remove().await?;
    if let Err(error) = drop_rule::remove(interface) {
        warn!(interface, %error, "the rule that kept its datagrams out of itself stays");
    }
    info!(interface, "took down a device that nobody looks after");
    Ok(Outcome::TakenDown)
}

/// The device of that name, if it is ours.
async fn find(interface: &str, key: PublicKey) -> Result<Option<Kernel>, DeviceError> {
    match Kernel::adopt(interface, Some(key)).await {
        Err(error) if error.is_taken() => Ok(None),
        found => found,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Now = Now { boot: BootTime::from_millis(5_000), wall: MeshTime(1_000_000) };

    fn grace_with(deadlines: &[u64]) -> BootTime {
        end_of_grace(deadlines.iter().copied().map(MeshTime), &Clock::restore(None, NOW), NOW)
    }

    #[test]
    fn a_device_has_ten_minutes_or_until_the_first_deadline_ahead() {
        for (deadlines, until) in [
            (&[][..], 605_000),
            (&[1_060_000, 1_030_000], 35_000),
            (&[9_000_000], 605_000),
            // Passed, and enforced while there was a daemon.
            (&[999_999, 1_000_000], 605_000),
        ] {
            assert_eq!(grace_with(deadlines), BootTime::from_millis(until), "{deadlines:?}");
        }
    }

    #[tokio::test]
    async fn a_host_that_is_no_member_has_nothing_to_guard() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(run(&dir.path().join("absent"), "guard0").await.unwrap(), Outcome::NoMember);
        assert!(!dir.path().join("absent").exists(), "a guard makes no state directory");
        assert_eq!(run(dir.path(), "guard0").await.unwrap(), Outcome::NoMember);
    }

    #[tokio::test]
    async fn a_running_daemon_needs_no_guard() {
        let dir = tempfile::tempdir().unwrap();
        let _held = StateDir::open(dir.path()).unwrap();
        assert_eq!(run(dir.path(), "guard0").await.unwrap(), Outcome::DaemonIsBack);
    }
}
