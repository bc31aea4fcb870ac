//! A log that was written once. Every later version must read it, and come to the same registry at its level.
//!
//! `tests/golden/level-1.hex` holds one entry a line, in hex; `level-1.hash` the hash of the registry after the last.
//! They are never changed. A level that adds commands gets files of its own: `MESH_WRITE_GOLDEN=1 cargo test -p
//! mesh-coordinator-core golden` writes those that are not there yet.

use crate::fixture::*;
use mesh_coordinator_core::command::*;
use mesh_coordinator_core::{Registry, Reply};
use mesh_types::{CoordinatorId, Epoch, Level, MeshDuration, MeshTime, RequestId, Role};
use std::path::{Path, PathBuf};

#[test]
fn the_log_of_level_1_replays_to_the_same_registry() {
    if std::env::var_os("MESH_WRITE_GOLDEN").is_some() {
        write(&path("level-1.hex"), &hex_lines(&log_of_level_1()));
        write(&path("level-1.hash"), &format!("{}\n", replay(&log_of_level_1()).hash()));
    }
    let text = std::fs::read_to_string(path("level-1.hex")).unwrap();
    let entries: Vec<Entry> = text.lines().map(|line| Entry::decode(&unhex(line)).unwrap()).collect();
    let hash = std::fs::read_to_string(path("level-1.hash")).unwrap();
    assert_eq!(replay(&entries).hash().to_string(), hash.trim());
    assert_eq!(hex_lines(&entries), text, "and it is still written the same way");
}

#[test]
fn the_log_of_level_1_has_every_command_of_its_level() {
    let kinds: std::collections::BTreeSet<u16> = log_of_level_1().iter().map(|entry| entry.command.kind()).collect();
    assert_eq!(kinds, (1..=14).collect());
}

fn replay(entries: &[Entry]) -> Registry {
    let mut registry = Registry::new();
    for (line, entry) in entries.iter().enumerate() {
        let reply = registry.apply(entry);
        let refused = matches!(reply, Reply::Rejected(_));
        assert_eq!(refused, line == 6, "line {line}: {reply:?}");
    }
    registry
}

/// Line 6 is the one that is refused: the token has two uses.
fn log_of_level_1() -> Vec<Entry> {
    let token_of = |n, role, uses| CreateToken { id: token(n), secret_hash: secret(n), role, ttl: DAY, uses };
    let commands: Vec<Command> = vec![
        found().into(),
        token_of(1, Role::Node, 2).into(),
        token_of(2, Role::Coordinator, 2).into(),
        token_of(3, Role::Node, 1).into(),
        join(1, 1).into(),
        Join { name: name("node-1"), ..join(2, 1) }.into(),
        join(3, 1).into(),
        join(1, 1).into(),
        join_coordinator(2, 2).into(),
        join_coordinator(3, 2).into(),
        SetCoordinatorAddresses { coordinator: CoordinatorId(2), addresses: coordinator(9).addresses }.into(),
        RevokeToken { id: token(2) }.into(),
        SetKeyTtl { ttl: MeshDuration(7 * DAY.0) }.into(),
        RenewKey { node: node(1) }.into(),
        RenameNode { node: node(2), name: name("db") }.into(),
        RemoveNode { node: node(1) }.into(),
        AllowNode { node: node(1) }.into(),
        RemoveNode { node: node(2) }.into(),
        RemoveCoordinator { coordinator: CoordinatorId(3), destroy: false }.into(),
        RaiseLevel { level: Level::FIRST }.into(),
        join(4, 3).into(),
        OpenEpoch { epoch: Epoch { counter: 2, id: 9 }, void_tokens: true, coordinator: coordinator(2) }.into(),
    ];
    let stamp = |(line, command): (usize, Command)| Entry {
        level: Level::FIRST,
        time: MeshTime(START.0 + line as u64 * 1000),
        request: (line % 3 == 0).then(|| RequestId::from_bytes([line as u8; 16])),
        command,
    };
    commands.into_iter().enumerate().map(stamp).collect()
}

fn path(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name)
}

fn write(path: &Path, text: &str) {
    if !path.exists() {
        std::fs::write(path, text).unwrap();
    }
}

fn hex_lines(entries: &[Entry]) -> String {
    let hex = |bytes: Vec<u8>| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    entries.iter().map(|entry| hex(entry.encode()) + "\n").collect()
}

fn unhex(line: &str) -> Vec<u8> {
    (0..line.len()).step_by(2).map(|at| u8::from_str_radix(&line[at..at + 2], 16).unwrap()).collect()
}
