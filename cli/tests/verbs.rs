//! `meshctl` as scripts meet it: exit codes, what goes to stdout and to stderr, with no daemon anywhere.

#![allow(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

use std::path::Path;
use std::process::{Command, Output, Stdio};

#[test]
fn wrong_arguments_end_with_2_and_say_how_it_is_done() {
    for arguments in [
        &["bogus"][..],
        &["init"],
        &["ping"],
        &["--mesh", "much/too/strange", "status"],
        &["join", "--listen-port", "0"],
        &[],
    ] {
        let output = meshctl(arguments);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
        assert!(output.stdout.is_empty());
        assert!(text(&output.stderr).contains("Usage:") || text(&output.stderr).contains("--help"), "{arguments:?}");
    }
}

#[test]
fn a_token_that_is_none_is_told_so_before_anything_starts() {
    let directory = tempfile::tempdir().unwrap();
    let output = meshctl_in(directory.path(), &["join", "hello"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(text(&output.stderr).contains("meshctl token create"));
    assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0);
}

#[test]
fn joining_without_a_token_says_where_tokens_come_from() {
    let directory = tempfile::tempdir().unwrap();
    let output = meshctl_in(directory.path(), &["join"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(text(&output.stderr).contains("MESH_JOIN_TOKEN"));
}

#[test]
fn without_a_daemon_every_verb_ends_with_4_and_the_next_step() {
    let directory = tempfile::tempdir().unwrap();
    for verb in [
        &["status"][..],
        &["ping", "node-2"],
        &["down"],
        &["up"],
        &["leave"],
        &["token", "create"],
        &["token", "list"],
        &["token", "revoke", "0011223344556677"],
        &["node", "list"],
        &["node", "remove", "node-2"],
        &["coordinator", "list"],
        &["coordinator", "add"],
        &["coordinator", "transfer-leader"],
    ] {
        for json in [&[][..], &["--json"]] {
            let output = meshctl_in(directory.path(), &[verb, json].concat());
            assert_eq!(output.status.code(), Some(4), "{verb:?}");
            assert!(output.stdout.is_empty(), "{verb:?}");
            assert!(text(&output.stderr).contains(": "), "{verb:?}");
        }
    }
    assert!(text(&meshctl_in(directory.path(), &["status"]).stderr).contains("meshctl join"));
}

#[test]
fn a_socket_that_nobody_serves_is_as_good_as_none() {
    let directory = tempfile::tempdir().unwrap();
    drop(std::os::unix::net::UnixListener::bind(directory.path().join("node.sock")).unwrap());
    let output = meshctl_in(directory.path(), &["status"]);
    assert_eq!(output.status.code(), Some(4));
    assert!(text(&output.stderr).contains("nothing listens"));
}

#[test]
fn help_and_completion_go_to_stdout_and_succeed() {
    for arguments in [&["--help"][..], &["token", "create", "--help"], &["--version"], &["completion", "bash"]] {
        let output = meshctl(arguments);
        assert_eq!(output.status.code(), Some(0), "{arguments:?}");
        assert!(!output.stdout.is_empty() && output.stderr.is_empty(), "{arguments:?}");
    }
}

#[test]
fn a_reader_that_has_enough_is_no_failure() {
    let mut child = command(&["completion", "zsh"]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
}

fn command(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_meshctl"));
    command.args(arguments).stdin(Stdio::null()).env_remove("MESH_JOIN_TOKEN");
    command
}

fn meshctl(arguments: &[&str]) -> Output {
    command(arguments).output().unwrap()
}

/// With every path inside `directory`.
fn meshctl_in(directory: &Path, arguments: &[&str]) -> Output {
    let mut command = command(arguments);
    command.arg("--socket").arg(directory.join("node.sock"));
    command.arg("--coordinator-socket").arg(directory.join("coordinator.sock"));
    command.output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}
