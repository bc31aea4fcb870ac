//! A mesh made by hand, as its user makes it: `init`, `join` and every verb after, with real daemons on hosts of the lab.
//!
//! Needs the daemons' programs beside `meshctl`: `cargo test --workspace` builds them, or `cargo build --workspace`.

#![allow(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

mod inside;
mod interface;
mod machine;
mod underlay;

use machine::{Machine, text};
use mesh_cli::lab::{Lab, World};
use serde_json::Value;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

/// Far above what anything here takes on a busy machine.
const LIMIT: Duration = Duration::from_secs(120);

#[test]
fn a_mesh_is_made_joined_looked_at_and_left_with_the_verbs_alone() {
    in_lab("a_mesh_is_made_joined_looked_at_and_left_with_the_verbs_alone", async |mut lab| {
        let first = Machine::new(&mut lab, "first", 1).await;
        let second = Machine::new(&mut lab, "second", 2).await;

        let made = first.json(&["init", "--advertise", "192.0.2.1", "--overlay", "10.77.0.0/24"]).await;
        let token = made["token"].as_str().unwrap();
        assert_eq!(made["node"]["name"], "first");
        assert!(made["node"]["addresses"][0].as_str().unwrap().starts_with("10.77.0."));
        assert!(first.file("meshd.log").exists() && first.file("node.pid").exists());
        let tokens = first.json(&["token", "list"]).await.as_array().unwrap().len();
        let again = first.json(&["init", "--advertise", "192.0.2.1"]).await;
        assert_eq!(first.json(&["token", "list"]).await.as_array().unwrap().len(), tokens + 1, "the one it prints");
        let output = first.run(&["init", "--advertise", "192.0.2.1", "--overlay", "10.78.0.0/24"]).await;
        assert!(text(&output.stderr).contains("change nothing"), "{}", text(&output.stderr));
        assert_eq!((&again["node"]["id"], &again["node"]["already"]), (&made["node"]["id"], &Value::Bool(true)));

        let joined = second.json(&["join", token]).await;
        assert_eq!((&joined["name"], &joined["already"]), (&"second".into(), &Value::Bool(false)));
        assert_eq!(second.json(&["join"]).await["id"], joined["id"], "a member needs no token to join again");
        assert_eq!(second.json(&["join", token]).await["already"], true);

        first.until_it_pings("second").await;
        let ping = first.json(&["ping", "second", "-c", "3", "-i", "20ms"]).await;
        assert_eq!((&ping["sent"], &ping["received"]), (&3.into(), &3.into()));
        assert_eq!(first.run(&["ping", "nobody"]).await.status.code(), Some(7));

        let status = second.json(&["status"]).await;
        assert_eq!((&status["phase"], &status["self"]["name"]), (&"up".into(), &"second".into()));
        assert_eq!(status["coordinators"][0]["role"], "leader");
        assert_eq!((&status["peers"][0]["name"], &status["peers"][0]["path"]), (&"first".into(), &"direct".into()));
        assert_eq!(second.run(&["status", "--check"]).await.status.code(), Some(0));

        let nodes = first.json(&["node", "list"]).await;
        assert_eq!(nodes.as_array().unwrap().len(), 2);
        for field in ["id", "name", "addresses", "public_key", "online", "expires_at", "state"] {
            assert!(nodes[0].get(field).is_some(), "{field}");
        }
        first.done(&["node", "rename", "second", "db-1"]).await;
        assert_eq!(first.json(&["node", "show", "db-1"]).await["id"], joined["id"]);
        assert_eq!(first.run(&["node", "show", "second"]).await.status.code(), Some(7));
        assert_eq!(first.run(&["node", "rename", "db-1", "first"]).await.status.code(), Some(6));
        assert_eq!(first.run(&["node", "remove", "nobody"]).await.status.code(), Some(7));

        second.done(&["down"]).await;
        second.done(&["down"]).await;
        assert_eq!(second.json(&["status"]).await["phase"], "down");
        assert_eq!(second.run(&["status", "--check"]).await.status.code(), Some(1));
        second.done(&["up"]).await;
        second.done(&["up"]).await;
        second.until_it_pings("first").await;

        second.done(&["leave"]).await;
        assert_eq!(second.run(&["status"]).await.status.code(), Some(4), "the daemon went with the membership");
        assert!(!second.file("node.pid").exists() && !second.file("node/membership").exists());
        second.done(&["leave"]).await;
        let nodes = first.json(&["node", "list"]).await;
        let left = nodes.as_array().unwrap().iter().find(|node| node["id"] == joined["id"]).unwrap();
        assert_eq!(left["state"], "removed");
    });
}

#[test]
fn what_no_mesh_can_be_made_of_is_refused_and_leaves_nothing_behind() {
    in_lab("what_no_mesh_can_be_made_of_is_refused_and_leaves_nothing_behind", async |mut lab| {
        let first = Machine::new(&mut lab, "first", 1).await;
        let second = Machine::new(&mut lab, "second", 2).await;
        let init = ["init", "--advertise", "192.0.2.1"];
        assert_eq!(first.run(&[&init[..], &["--default-key-ttl", "1s"]].concat()).await.status.code(), Some(2));
        for nowhere in ["0.0.0.0", "fe80::1", "224.0.0.1"] {
            assert_eq!(first.run(&["init", "--advertise", nowhere]).await.status.code(), Some(2), "{nowhere}");
        }
        let output = first.run(&[&init[..], &["--overlay", "192.0.2.0/25"]].concat()).await;
        assert_eq!(output.status.code(), Some(6), "{}", text(&output.stderr));
        assert!(text(&output.stderr).contains("route to 192.0.2.0/24"), "{}", text(&output.stderr));
        let made = first.json(&init).await;
        first.done(&["coordinator", "set-address", "192.0.2.1", "192.0.2.1:8551"]).await;
        assert_eq!(first.json(&["coordinator", "list"]).await[0]["addresses"], serde_json::json!(["192.0.2.1:8551"]));
        assert_eq!(first.run(&["coordinator", "set-key-ttl", "1s"]).await.status.code(), Some(2));
        first.done(&["coordinator", "set-key-ttl", "7d"]).await;

        second.json(&["join", made["token"].as_str().unwrap()]).await;
        for _ in ["while its meshd runs", "and while it does not"] {
            let output = second.run(&["init", "--advertise", "192.0.2.2"]).await;
            assert_eq!(output.status.code(), Some(6), "{}", text(&output.stderr));
            assert!(text(&output.stderr).contains("meshctl leave"), "{}", text(&output.stderr));
            assert!(!second.file("coordinator").exists(), "a coordinator was begun");
            if second.run(&["status"]).await.status.success() {
                second.stop("node").await;
            }
        }
    });
}

#[test]
fn tokens_run_out_are_revoked_and_keep_to_their_role() {
    in_lab("tokens_run_out_are_revoked_and_keep_to_their_role", async |mut lab| {
        let first = Machine::new(&mut lab, "first", 1).await;
        let second = Machine::new(&mut lab, "second", 2).await;
        let third = Machine::new(&mut lab, "third", 3).await;
        first.json(&["init", "--advertise", "192.0.2.1"]).await;

        let file = first.file("token");
        let output = file.display().to_string();
        let created = first.json(&["token", "create", "--uses", "1", "--ttl", "5m", "--output", &output]).await;
        assert!(created.get("token").is_none(), "what is in a file is not on the screen");
        assert_eq!(file.metadata().unwrap().permissions().mode() & 0o777, 0o600);
        second.json(&["join", "--token-file", &output]).await;
        assert_eq!(third.run(&["join", "--token-file", &output]).await.status.code(), Some(6), "it is used up");
        second.json(&["join", "--token-file", &output]).await;

        let created = first.json(&["token", "create"]).await;
        let (token, id) = (created["token"].as_str().unwrap(), created["id"].as_str().unwrap());
        let tokens = first.json(&["token", "list"]).await;
        assert!(tokens.as_array().unwrap().iter().any(|token| token["id"] == id && token["uses_left"] == 1));
        first.done(&["token", "revoke", id]).await;
        assert_eq!(third.run(&["join", token]).await.status.code(), Some(6), "it is revoked");

        let invitation = first.json(&["coordinator", "add"]).await;
        let token = invitation["token"].as_str().unwrap();
        assert_eq!(third.run(&["join", token]).await.status.code(), Some(6), "it is for coordinators");
        let node = first.json(&["token", "create"]).await;
        let code = third.run(&["join", "--coordinator", node["token"].as_str().unwrap()]).await.status.code();
        assert_eq!(code, Some(6), "it is for nodes");

        second.json(&["join", "--coordinator", token]).await;
        let output = third.run(&["join", "--coordinator", token]).await;
        assert_eq!(output.status.code(), Some(6), "{}", text(&output.stderr));
        assert!(text(&output.stderr).contains("used up"), "{}", text(&output.stderr));
        assert!(!third.file("coordinator.pid").exists() && !third.file("coordinator.token").exists());
    });
}

#[test]
fn three_hosts_become_coordinators_and_hand_leadership_around() {
    in_lab("three_hosts_become_coordinators_and_hand_leadership_around", async |mut lab| {
        let first = Machine::new(&mut lab, "first", 1).await;
        let second = Machine::new(&mut lab, "second", 2).await;
        let third = Machine::new(&mut lab, "third", 3).await;
        first.json(&["init", "--advertise", "192.0.2.1"]).await;
        let invitation = first.json(&["coordinator", "add", "--uses", "2"]).await;
        let token = invitation["token"].as_str().unwrap();
        for machine in [&second, &third] {
            let joined = machine.json(&["join", "--coordinator", token]).await;
            assert_eq!(joined["name"], machine.host.name());
            assert!(!machine.file("coordinator.token").exists(), "the token does not stay on the disk");
        }
        first
            .until("three vote", async || {
                let all = first.json(&["coordinator", "list"]).await;
                let roles: Vec<&str> =
                    all.as_array().unwrap().iter().filter_map(|found| found["role"].as_str()).collect();
                roles.len() == 3 && roles.iter().all(|role| ["leader", "follower"].contains(role))
            })
            .await;
        let all = first.json(&["coordinator", "list"]).await;
        let address =
            |name: &str| all.as_array().unwrap().iter().find(|found| found["name"] == name).unwrap()["address"].clone();
        assert_eq!(address("second"), "192.0.2.2:8551", "it found the address that faces the mesh");

        third.done(&["coordinator", "transfer-leader", "second"]).await;
        third.done(&["coordinator", "transfer-leader", "second"]).await;
        first.until("the second leads", async || first.role_of("second").await == "leader").await;
        assert_eq!(first.run(&["coordinator", "transfer-leader", "nobody"]).await.status.code(), Some(7));
        first.until_it_pings("third").await;
        first.done(&["coordinator", "remove", "third"]).await;
        first.done(&["coordinator", "remove", "third"]).await;
        assert_eq!(first.run(&["coordinator", "remove", "nobody"]).await.status.code(), Some(7));
        assert_eq!(second.json(&["node", "list"]).await.as_array().unwrap().len(), 3);
    });
}

#[test]
fn a_mesh_whose_range_the_host_routes_elsewhere_is_refused_and_costs_nothing() {
    in_lab("a_mesh_whose_range_the_host_routes_elsewhere_is_refused_and_costs_nothing", async |mut lab| {
        let first = Machine::new(&mut lab, "first", 1).await;
        let second = Machine::new(&mut lab, "second", 2).await;
        first.json(&["init", "--advertise", "192.0.2.1", "--overlay", "10.77.0.0/24"]).await;
        let created = first.json(&["token", "create", "--uses", "1"]).await;
        let token = created["token"].as_str().unwrap();
        let uses_left = async || {
            let tokens = first.json(&["token", "list"]).await;
            let found = tokens.as_array().unwrap().iter().find(|token| token["id"] == created["id"]);
            found.and_then(|token| token["uses_left"].as_u64())
        };

        let route = second.route("10.77.0.128", 25).await;
        let refused = second.run(&["join", token]).await;
        assert_eq!(refused.status.code(), Some(6));
        let named = "range 10.77.0.0/24 overlaps this host's route 10.77.0.128/25 through eth0";
        assert!(text(&refused.stderr).contains(named), "{}", text(&refused.stderr));
        assert_eq!(first.json(&["node", "list"]).await.as_array().unwrap().len(), 1);
        assert_eq!(uses_left().await, Some(1));

        second.unroute(route).await;
        second.json(&["join", token]).await;
        first.until_it_pings("second").await;
        assert_eq!(uses_left().await, None, "it is used up");
    });
}

#[test]
fn the_first_node_joins_also_where_the_advertised_address_is_one_for_others_only() {
    in_lab("the_first_node_joins_also_where_the_advertised_address_is_one_for_others_only", async |mut lab| {
        let first = Machine::new(&mut lab, "first", 1).await;
        let made = first.json(&["init", "--advertise", "203.0.113.10"]).await;
        assert_eq!(made["node"]["name"], "first");
        assert_eq!(first.json(&["coordinator", "list"]).await[0]["address"], "203.0.113.10:8551");
    });
}

#[test]
fn a_removed_node_stays_out_until_it_is_allowed_again() {
    in_lab("a_removed_node_stays_out_until_it_is_allowed_again", async |mut lab| {
        let first = Machine::new(&mut lab, "first", 1).await;
        let second = Machine::new(&mut lab, "second", 2).await;
        let made = first.json(&["init", "--advertise", "192.0.2.1"]).await;
        let token = made["token"].as_str().unwrap();
        let joined = second.json(&["join", token]).await;
        first.until_it_pings("second").await;

        first.done(&["node", "remove", "second"]).await;
        first.done(&["node", "remove", "second"]).await;
        first.until("it has no peer", async || first.json(&["status"]).await["peers"] == serde_json::json!([])).await;
        second.until("it is down", async || !second.run(&["status", "--check"]).await.status.success()).await;
        assert_eq!(second.run(&["join", token]).await.status.code(), Some(6), "it kept its keys, and they are barred");
        second.stop("node").await;
        assert_ne!(second.run(&["join", token]).await.status.code(), Some(0), "nor does a restart help");
        assert_eq!(first.json(&["status"]).await["peers"], serde_json::json!([]));

        let id = joined["id"].as_str().unwrap();
        first.done(&["node", "allow", id]).await;
        first.done(&["node", "allow", id]).await;
        first.done(&["node", "allow", "second"]).await;
        assert_eq!(first.run(&["node", "allow", "nobody"]).await.status.code(), Some(7));
        second.done(&["join", token]).await;
        first.until_it_pings("second").await;
    });
}

#[test]
fn a_mesh_outlives_its_only_coordinator_by_a_snapshot() {
    in_lab("a_mesh_outlives_its_only_coordinator_by_a_snapshot", async |mut lab| {
        let first = Machine::new(&mut lab, "first", 1).await;
        let spare = Machine::new(&mut lab, "spare", 2).await;
        let made = first.json(&["init", "--advertise", "192.0.2.1"]).await;
        let (file, pass) = (first.file("backup").display().to_string(), first.file("pass").display().to_string());
        let snapshot = ["coordinator", "snapshot", &file, "--passphrase-file", &pass];
        assert_eq!(first.run(&snapshot).await.status.code(), Some(1), "there is no passphrase yet");
        assert_eq!(first.run(&snapshot[..3]).await.status.code(), Some(2), "there is none at all");
        std::fs::write(&pass, "correct horse battery staple \r\n").unwrap();
        first.done(&snapshot).await;
        assert_eq!(Path::new(&file).metadata().unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(first.run(&snapshot).await.status.code(), Some(1), "a snapshot is never written over");

        first.stop("coordinator").await;
        std::fs::remove_dir_all(first.file("coordinator")).unwrap();
        let restore = ["coordinator", "restore", &file, "--advertise", "192.0.2.2", "--passphrase-file", &pass];
        let mut by_stdin = spare.command(&[&restore[..6], &["-", "--json"]].concat());
        by_stdin.stdin(std::fs::File::open(&pass).unwrap()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let output = spare.host.spawn(by_stdin).unwrap().wait_with_output().await.unwrap();
        assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
        assert_eq!(text(&output.stdout), "", "what it says is no answer");
        assert_ne!(spare.run(&restore).await.status.code(), Some(0), "what is there is not written over");
        let again = spare.json(&["init", "--advertise", "192.0.2.2"]).await;
        assert_eq!(again["node"]["name"], "spare");
        let nodes = spare.json(&["node", "list"]).await;
        let kept = nodes.as_array().unwrap().iter().find(|node| node["name"] == "first").unwrap();
        assert_eq!(kept["id"], made["node"]["id"]);
    });
}

#[test]
fn the_last_of_three_coordinators_goes_on_alone_once_it_is_told_to() {
    in_lab("the_last_of_three_coordinators_goes_on_alone_once_it_is_told_to", async |mut lab| {
        let first = Machine::new(&mut lab, "first", 1).await;
        let second = Machine::new(&mut lab, "second", 2).await;
        let third = Machine::new(&mut lab, "third", 3).await;
        first.json(&["init", "--advertise", "192.0.2.1"]).await;
        let invitation = first.json(&["coordinator", "add", "--uses", "2"]).await;
        for machine in [&second, &third] {
            machine.json(&["join", "--coordinator", invitation["token"].as_str().unwrap()]).await;
        }
        first.until("three vote", async || first.votes().await == 3).await;

        assert_eq!(third.run(&["coordinator", "recover"]).await.status.code(), Some(6), "it runs");
        first.kill("coordinator").await;
        second.kill("coordinator").await;
        third
            .until("the quorum is missed", async || third.run(&["token", "create"]).await.status.code() == Some(5))
            .await;
        assert_eq!(third.json(&["node", "list"]).await.as_array().unwrap().len(), 3, "reading needs no quorum");

        third.stop("coordinator").await;
        third.done(&["coordinator", "recover"]).await;
        third.json(&["init", "--advertise", "192.0.2.3"]).await;
        third.until("it votes alone", async || third.votes().await == 1).await;
        third.done(&["token", "create"]).await;
        third.until_it_pings("first").await;
    });
}

#[test]
fn a_mesh_is_ended_on_purpose_alone_and_its_nodes_keep_their_tunnels() {
    in_lab("a_mesh_is_ended_on_purpose_alone_and_its_nodes_keep_their_tunnels", async |mut lab| {
        let first = Machine::new(&mut lab, "first", 1).await;
        let second = Machine::new(&mut lab, "second", 2).await;
        let third = Machine::new(&mut lab, "third", 3).await;
        let made = first.json(&["init", "--advertise", "192.0.2.1"]).await;
        for machine in [&second, &third] {
            machine.json(&["join", made["token"].as_str().unwrap()]).await;
        }
        second.until_it_pings("third").await;
        assert_eq!(second.run(&["leave", "--destroy"]).await.status.code(), Some(4), "no coordinator is here");
        for verb in [&["leave"][..], &["coordinator", "remove", "first"]] {
            let output = first.run(verb).await;
            assert_eq!(output.status.code(), Some(6), "{verb:?}");
            assert!(text(&output.stderr).contains("--destroy"), "{}", text(&output.stderr));
        }
        second.until_it_pings("first").await;

        for verb in [&["leave", "--destroy"][..], &["coordinator", "remove", "first", "--destroy"]] {
            first.done(verb).await;
            first.done(verb).await;
        }
        assert_eq!(first.run(&["coordinator", "list"]).await.status.code(), Some(4));
        let output = first.run(&["init", "--advertise", "192.0.2.1"]).await;
        assert_eq!(output.status.code(), Some(6));
        assert!(text(&output.stderr).contains("was ended"), "{}", text(&output.stderr));
        second.until_it_pings("third").await;
        third.until_it_pings("second").await;
    });
}

#[test]
fn a_coordinator_out_of_reach_is_told_from_one_that_refuses() {
    in_lab("a_coordinator_out_of_reach_is_told_from_one_that_refuses", async |mut lab| {
        let first = Machine::new(&mut lab, "first", 1).await;
        let second = Machine::new(&mut lab, "second", 2).await;
        let made = first.json(&["init", "--advertise", "192.0.2.1"]).await;
        lab.unplug(&first.host).await.unwrap();
        let output = second.run(&["join", made["token"].as_str().unwrap()]).await;
        assert_eq!(output.status.code(), Some(5), "{}", text(&output.stderr));
        assert!(text(&output.stderr).contains("192.0.2.1"), "it names what it tried: {}", text(&output.stderr));
        lab.plug(&first.host).await.unwrap();
        second.json(&["join", made["token"].as_str().unwrap()]).await;
    });
}

#[test]
fn in_the_foreground_the_daemons_end_with_their_meshctl() {
    in_lab("in_the_foreground_the_daemons_end_with_their_meshctl", async |mut lab| {
        let first = Machine::new(&mut lab, "first", 1).await;
        let mut child = first.spawn(&["init", "--advertise", "192.0.2.1", "--foreground"]);
        first.until("the node is up", async || first.run(&["status", "--check"]).await.status.success()).await;
        let pid = nix::unistd::Pid::from_raw(i32::try_from(child.id().unwrap()).unwrap());
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).unwrap();
        assert_eq!(child.wait().await.unwrap().code(), Some(0));
        assert_eq!(first.run(&["status"]).await.status.code(), Some(4));
        assert_eq!(first.run(&["coordinator", "list"]).await.status.code(), Some(4));
    });
}

#[test]
fn a_join_that_is_interrupted_leaves_neither_a_token_nor_a_daemon() {
    in_lab("a_join_that_is_interrupted_leaves_neither_a_token_nor_a_daemon", async |mut lab| {
        let first = Machine::new(&mut lab, "first", 1).await;
        let second = Machine::new(&mut lab, "second", 2).await;
        first.json(&["init", "--advertise", "192.0.2.1"]).await;
        let invitation = first.json(&["coordinator", "add"]).await;
        first.stop("coordinator").await;
        let mut child = second.spawn(&["join", "--coordinator", invitation["token"].as_str().unwrap()]);
        let (token, pid_file) = (second.file("coordinator.token"), second.file("coordinator.pid"));
        second.until("the daemon has begun", async || token.exists() && pid_file.exists()).await;
        let daemon = std::fs::read_to_string(&pid_file).unwrap();
        let pid = nix::unistd::Pid::from_raw(i32::try_from(child.id().unwrap()).unwrap());
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGINT).unwrap();
        assert_eq!(child.wait().await.unwrap().code(), Some(130));
        assert!(!token.exists() && !pid_file.exists());
        let daemon = nix::unistd::Pid::from_raw(daemon.trim().parse().unwrap());
        second
            .until("the daemon has ended", async || {
                use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
                !matches!(waitpid(daemon, Some(WaitPidFlag::WNOHANG)), Ok(WaitStatus::StillAlive))
            })
            .await;
    });
}

#[test]
fn a_coordinator_that_cannot_start_and_one_that_hangs_are_told_from_a_lost_quorum() {
    in_lab("a_coordinator_that_cannot_start_and_one_that_hangs_are_told_from_a_lost_quorum", async |mut lab| {
        let first = Machine::new(&mut lab, "first", 1).await;
        first.json(&["init", "--advertise", "192.0.2.1"]).await;
        first.signal("coordinator", nix::sys::signal::Signal::SIGSTOP);
        let output = first.run(&["token", "create"]).await;
        assert_eq!(output.status.code(), Some(4), "{}", text(&output.stderr));
        assert!(text(&output.stderr).contains("does not answer"), "{}", text(&output.stderr));
        first.signal("coordinator", nix::sys::signal::Signal::SIGCONT);
        first.stop("coordinator").await;

        std::fs::write(first.file("coordinator").join("authority.key"), "damaged").unwrap();
        let output = first.run(&["init", "--advertise", "192.0.2.1"]).await;
        assert_eq!(output.status.code(), Some(1), "{}", text(&output.stderr));
        assert!(text(&output.stderr).contains("the mesh CA in"), "{}", text(&output.stderr));
        assert!(!text(&output.stderr).contains("Started"), "{}", text(&output.stderr));
    });
}

/// Runs `test` in a lab; `name` is its own.
fn in_lab(name: &str, test: impl AsyncFnOnce(Lab)) {
    in_lab_for(name, LIMIT, test);
}

/// The same for a test that may take another time.
fn in_lab_for(name: &str, limit: Duration, test: impl AsyncFnOnce(Lab)) {
    let Some(world) = World::for_test(name) else { return };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let lab = Lab::new(&world).await.unwrap();
        let ended = tokio::time::timeout(limit, test(lab)).await;
        ended.unwrap_or_else(|_| panic!("the test ends within {limit:?}"));
    });
}
