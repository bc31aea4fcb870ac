//! The guard as a process of its own, and the end of its daemon as it sees it. That it takes a kernel device away is held
//! where there is a kernel with WireGuard, by tests/vm/systemd.

#![allow(clippy::unwrap_used)] // In tests, which end by it.

use mesh_node::guard::child::GuardChild;
use mesh_node::state::StateDir;
use nix::sys::signal::kill;
use nix::unistd::Pid;
use std::path::Path;
use std::time::Duration;
use tokio::time::{sleep, timeout};

/// Nothing here takes a tenth of this; it only keeps a broken test from hanging.
const PATIENCE: Duration = Duration::from_secs(30);

#[tokio::test]
async fn a_guard_stays_while_its_daemon_lives_and_goes_at_a_word() {
    let home = tempfile::tempdir().unwrap();
    let mut guard = guard_over(home.path()).await;
    let process = guard.id().unwrap();
    assert!(guard.stands());
    guard.dismiss().await;
    assert!(!is_alive(process));
}

#[tokio::test]
async fn a_guard_whose_daemon_is_gone_looks_and_ends_where_nothing_is_left_to_guard() {
    let home = tempfile::tempdir().unwrap();
    let guard = guard_over(home.path()).await;
    let process = guard.id().unwrap();
    // All that a daemon holds of its guard is closed when it ends, however it ends.
    drop(guard);
    until(|| !is_alive(process)).await;
}

#[tokio::test]
async fn a_guard_leaves_its_post_to_the_daemon_that_has_come_back_and_to_the_next_guard() {
    let home = tempfile::tempdir().unwrap();
    let mut first = guard_over(home.path()).await;
    let next = guard_over(home.path()).await;
    until(|| !first.stands()).await;
    let next_process = next.id().unwrap();
    assert!(is_alive(next_process));

    let _daemon = StateDir::open(home.path()).unwrap();
    drop(next);
    until(|| !is_alive(next_process)).await;
}

/// A guard that has taken its post.
async fn guard_over(state_dir: &Path) -> GuardChild {
    let guard = GuardChild::start_as(env!("CARGO_BIN_EXE_meshd").as_ref(), state_dir, "guarded0").unwrap();
    let own = guard.id().unwrap().to_string();
    until(|| std::fs::read_to_string(state_dir.join("guard")).is_ok_and(|holder| holder.trim() == own)).await;
    guard
}

fn is_alive(process: u32) -> bool {
    kill(Pid::from_raw(process.cast_signed()), None).is_ok()
}

async fn until(mut condition: impl FnMut() -> bool) {
    let waiting = async {
        while !condition() {
            sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(PATIENCE, waiting).await.unwrap();
}
