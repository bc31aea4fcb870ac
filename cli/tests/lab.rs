//! The lab itself: hosts reach each other, move, lose their cable, and leave nothing behind.

#![allow(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

use mesh_cli::lab::{Flow, Lab, Pings, World};
use std::net::IpAddr;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

const INTERVAL: Duration = Duration::from_millis(5);

#[test]
fn two_hosts_reach_each_other_over_both_families() {
    in_lab("two_hosts_reach_each_other_over_both_families", async |mut lab| {
        let left = lab.host("left", &[ip("192.0.2.1"), ip("2001:db8::1")]).await.unwrap();
        let targets = [ip("192.0.2.2"), ip("2001:db8::2")];
        lab.host("right", &targets).await.unwrap();
        let flows = ping_until_answered(&left, &targets).await;
        assert_eq!(flows.len(), 2);
        for flow in flows {
            assert!(flow.latency.is_some(), "{flow:?}");
        }
    });
}

#[test]
fn a_host_that_moves_answers_at_its_new_address_only() {
    in_lab("a_host_that_moves_answers_at_its_new_address_only", async |mut lab| {
        let left = lab.host("left", &[ip("192.0.2.1")]).await.unwrap();
        let right = lab.host("right", &[ip("192.0.2.2")]).await.unwrap();
        ping_until_answered(&left, &[ip("192.0.2.2")]).await;
        lab.readdress(&right, &[ip("192.0.2.102")]).await.unwrap();
        assert_eq!(right.addresses(), [ip("192.0.2.102")]);
        let mut pings = Pings::start(&left, [ip("192.0.2.2"), ip("192.0.2.102")], INTERVAL).unwrap();
        pings.answered(&[ip("192.0.2.102")]).await.unwrap();
        let flows = pings.stop().await.unwrap();
        assert!(flows.iter().any(|flow| flow.to == ip("192.0.2.2") && flow.lost == flow.sent && flow.sent > 0));
    });
}

#[test]
fn an_unplugged_host_is_silent_until_it_is_plugged_in_again() {
    in_lab("an_unplugged_host_is_silent_until_it_is_plugged_in_again", async |mut lab| {
        let left = lab.host("left", &[ip("192.0.2.1")]).await.unwrap();
        let right = lab.host("right", &[ip("192.0.2.2")]).await.unwrap();
        ping_until_answered(&left, &[ip("192.0.2.2")]).await;
        lab.unplug(&right).await.unwrap();
        let silent = Pings::start(&left, [ip("192.0.2.2")], INTERVAL).unwrap();
        tokio::time::sleep(10 * INTERVAL).await;
        assert!(silent.stop().await.unwrap().iter().all(|flow| flow.latency.is_none()));
        lab.plug(&right).await.unwrap();
        ping_until_answered(&left, &[ip("192.0.2.2")]).await;
    });
}

#[test]
fn a_process_on_a_host_sees_its_name_and_its_network() {
    in_lab("a_process_on_a_host_sees_its_name_and_its_network", async |mut lab| {
        let host = lab.host("left", &[ip("192.0.2.1")]).await.unwrap();
        let mut command = Command::new("/bin/sh");
        command.args(["-c", "test \"$(cat /proc/sys/kernel/hostname)\" = left && grep -q eth0 /proc/net/dev"]);
        assert!(host.spawn(command).unwrap().wait().await.unwrap().success());
        assert!(host.mounted().exists());
    });
}

#[test]
fn a_world_ends_with_everything_in_it_when_its_first_process_does() {
    // A grandchild in a session of its own, as far from its maker as a process can get.
    let directory = tempfile::tempdir().unwrap();
    let way = World::find_way().unwrap();
    let mark = directory.path().join("marker").display().to_string();
    let mut command = World::command(way, Path::new("/bin/sh"), directory.path()).unwrap();
    let script = "setsid sh -c 'sleep 600; :' \"$0\" & touch \"$0\"; exit 3";
    let status = command.args(["-c", script, &mark]).status().unwrap();
    assert_eq!(status.code(), Some(3), "the status of the first process is passed on");
    assert!(Path::new(&mark).exists());
    assert!(World::init_pid(directory.path()).is_some());
    assert_eq!(processes_with(&mark), Vec::<String>::new());
}

#[test]
fn a_world_ends_when_its_guard_is_killed() {
    let directory = tempfile::tempdir().unwrap();
    let way = World::find_way().unwrap();
    let mark = directory.path().join("marker").display().to_string();
    let mut command = World::command(way, Path::new("/bin/sh"), directory.path()).unwrap();
    let mut guard = command.args(["-c", "sleep 600; exit 0", &mark]).spawn().unwrap();
    assert!(!processes_with(&mark).is_empty());
    guard.kill().unwrap();
    guard.wait().unwrap();
    // The kernel has sent the signal by now; the process may still be on its way out.
    let gone = (0..2_000).any(|_| {
        std::thread::sleep(Duration::from_millis(5));
        processes_with(&mark).is_empty()
    });
    assert!(gone, "still there: {:?}", processes_with(&mark));
}

fn in_lab(name: &str, test: impl AsyncFnOnce(Lab)) {
    let Some(world) = World::for_test(name) else { return };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let lab = Lab::new(&world).await.unwrap();
        tokio::time::timeout(Duration::from_secs(60), test(lab)).await.expect("the lab works within a minute");
    });
}

async fn ping_until_answered(from: &mesh_cli::lab::Host, targets: &[IpAddr]) -> Vec<Flow> {
    let mut pings = Pings::start(from, targets.iter().copied(), INTERVAL).unwrap();
    pings.answered(targets).await.unwrap();
    pings.stop().await.unwrap()
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// Command lines of processes that mention `mark`.
fn processes_with(mark: &str) -> Vec<String> {
    let entries = std::fs::read_dir("/proc").unwrap().flatten();
    let lines = entries.filter_map(|entry| {
        let line = std::fs::read(entry.path().join("cmdline")).ok()?;
        Some(String::from_utf8_lossy(&line).replace('\0', " "))
    });
    lines.filter(|line| line.contains(mark)).collect()
}
