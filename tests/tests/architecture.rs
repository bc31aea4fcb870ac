//! The rooms depend on each other in one direction, and the cores stay free of I/O, clocks and randomness.

use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;

/// What a core may use besides the words of the mesh: address ranges, formats, checksums, key arithmetic, error types, log fields.
const PURE: [&str; 10] = [
    "mesh-types",
    "ciborium",
    "crc32fast",
    "ed25519-dalek",
    "ipnet",
    "serde",
    "sha2",
    "thiserror",
    "tracing",
    "x25519-dalek",
];
const CORES: [&str; 2] = ["mesh-coordinator-core", "mesh-node-core"];
const BINARIES: [&str; 3] = ["mesh-coordinator", "mesh-node", "mesh-cli"];

/// Direct, non-dev dependencies of every workspace member.
fn dependencies() -> BTreeMap<String, BTreeSet<String>> {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version=1", "--no-deps", "--offline"])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .expect("cargo runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metadata: Value = serde_json::from_slice(&output.stdout).expect("cargo metadata prints JSON");
    let text = |value: &Value| value.as_str().expect("names are strings").to_owned();
    let of = |package: &Value| {
        let all = package["dependencies"].as_array().expect("a list");
        all.iter().filter(|d| d["kind"] != "dev").map(|d| text(&d["name"])).collect()
    };
    metadata["packages"].as_array().expect("a list").iter().map(|p| (text(&p["name"]), of(p))).collect()
}

#[test]
fn cores_depend_on_nothing_that_does_io_or_tells_time() {
    let all = dependencies();
    for core in CORES {
        for dependency in &all[core] {
            assert!(PURE.contains(&dependency.as_str()), "{core} depends on {dependency}");
        }
    }
}

#[test]
fn cores_read_no_clock_no_file_and_no_entropy() {
    let root = concat!(env!("CARGO_MANIFEST_DIR"), "/..");
    for room in ["proto/types/src", "coordinator/core/src", "node/core/src"] {
        for (path, source) in sources(&std::path::Path::new(root).join(room)) {
            let product = source.split("#[cfg(test)]").next().unwrap_or_default();
            for forbidden in ["SystemTime::now", "Instant::now", "std::fs", "std::net::Udp", "std::net::Tcp", "HashMap"]
            {
                assert!(!product.contains(forbidden), "{} uses {forbidden}", path.display());
            }
        }
    }
}

#[test]
fn coordinator_and_node_meet_only_in_proto_and_binaries_are_for_tests_alone() {
    for (package, dependencies) in dependencies() {
        if package == "mesh-tests" {
            continue;
        }
        for binary in BINARIES {
            assert!(!dependencies.contains(binary), "{package} depends on {binary}");
        }
        let both = CORES.iter().all(|core| dependencies.contains(*core));
        assert!(!both, "{package} depends on both cores");
    }
}

#[test]
fn the_words_depend_on_no_other_room() {
    let all = dependencies();
    let rooms: BTreeSet<&String> = all.keys().collect();
    assert!(all["mesh-types"].iter().all(|dependency| !rooms.contains(dependency)));
}

fn sources(folder: &std::path::Path) -> Vec<(std::path::PathBuf, String)> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).expect("the room exists") {
        let path = entry.expect("readable").path();
        if path.is_dir() {
            found.extend(sources(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push((path.clone(), std::fs::read_to_string(&path).expect("readable")));
        }
    }
    assert!(!found.is_empty(), "{} holds no source", folder.display());
    found
}
