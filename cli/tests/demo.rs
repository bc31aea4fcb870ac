//! The demo, as a user runs it: every step holds, and nothing is left of it, however it ends.
//!
//! Needs the daemons' programs beside `meshctl`: `cargo test --workspace` builds them, or `cargo build --workspace`.

#![allow(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

use serde_json::Value;
use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

#[test]
fn every_step_of_the_demo_holds() {
    let place = tempfile::tempdir().unwrap();
    let output = demo(place.path()).arg("--json").stdout(Stdio::piped()).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    let report: Value = serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {said}"));
    let steps = report["steps"].as_array().unwrap();
    for step in steps {
        assert_eq!(step["held"], true, "{step}{}", logs(place.path()));
    }
    assert_eq!((steps.len(), &report["held"]), (10, &Value::Bool(true)));
    assert_eq!(report["matrix"].as_array().unwrap().len(), 5 * 4 * 2, "every pair, over both families");
    assert_eq!(output.status.code(), Some(0), "{said}");
    assert_nothing_is_left(place.path());
}

#[test]
fn the_demo_cleans_up_after_an_interrupt() {
    let place = tempfile::tempdir().unwrap();
    let mut demo = demo(place.path()).stderr(Stdio::piped()).spawn().unwrap();
    wait_for_the_first_step(&mut demo);
    let pid = nix::unistd::Pid::from_raw(i32::try_from(demo.id()).unwrap());
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGINT).unwrap();
    assert_eq!(demo.wait().unwrap().code(), Some(130));
    assert_nothing_is_left(place.path());
}

#[test]
fn no_process_of_the_demo_outlives_a_kill() {
    let place = tempfile::tempdir().unwrap();
    let mut demo = demo(place.path()).stderr(Stdio::piped()).spawn().unwrap();
    wait_for_the_first_step(&mut demo);
    demo.kill().unwrap();
    demo.wait().unwrap();
    // The kernel has sent the signals by now; processes may still be on their way out.
    let gone = (0..2_000).any(|_| {
        std::thread::sleep(Duration::from_millis(5));
        processes_in(place.path()).is_empty()
    });
    assert!(gone, "still there: {:?}", processes_in(place.path()));
}

/// A demo whose directory of logs and state lies in `place`.
fn demo(place: &Path) -> Command {
    let program = Path::new(env!("CARGO_BIN_EXE_meshctl"));
    for daemon in ["meshd", "mesh-coordinator"] {
        let file = program.with_file_name(daemon);
        assert!(file.exists(), "{} is missing: run `cargo build --workspace` first", file.display());
    }
    let mut command = Command::new(program);
    command.arg("demo").env("TMPDIR", place).stdin(Stdio::null()).stdout(Stdio::null());
    command
}

fn wait_for_the_first_step(demo: &mut Child) {
    let mut line = String::new();
    BufReader::new(demo.stderr.take().unwrap()).read_line(&mut line).unwrap();
    assert!(line.contains("3 coordinators"), "{line}");
}

fn assert_nothing_is_left(place: &Path) {
    assert_eq!(processes_in(place), Vec::<String>::new());
    assert_eq!(std::fs::read_dir(place).unwrap().count(), 0, "files are left in {}", place.display());
}

/// Command lines of processes that mention `place`: all the daemons do.
fn processes_in(place: &Path) -> Vec<String> {
    let mark = place.display().to_string();
    let entries = std::fs::read_dir("/proc").unwrap().flatten();
    let lines = entries.filter_map(|entry| {
        let line = std::fs::read(entry.path().join("cmdline")).ok()?;
        Some(String::from_utf8_lossy(&line).replace('\0', " "))
    });
    lines.filter(|line| line.contains(&mark)).collect()
}

/// What the daemons said, for whoever reads why a step did not hold.
fn logs(place: &Path) -> String {
    let kept = std::fs::read_dir(place).unwrap().flatten().next().map(|entry| entry.path());
    let files = kept.and_then(|kept| std::fs::read_dir(kept).ok()).into_iter().flatten().flatten();
    let logs = files.filter(|file| file.path().extension().is_some_and(|extension| extension == "log"));
    logs.map(|log| {
        let said = std::fs::read_to_string(log.path()).unwrap_or_default();
        format!("\n--- {}\n{said}", log.path().display())
    })
    .collect()
}
