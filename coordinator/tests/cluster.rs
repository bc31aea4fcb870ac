//! Three coordinators as real processes, over real gRPC and disks: killed, restarted, moved, removed.

#![allow(clippy::unwrap_used)] // In tests, which end by it.

mod support;

use mesh_proto::v1;
use std::time::Instant;
use support::{Coordinator, Node, PATIENCE, leader, mesh};

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_leader_costs_no_acknowledged_write_and_the_next_is_soon_taken() {
    let root = tempfile::tempdir().unwrap();
    let mut all = mesh(root.path(), 3).await;
    let token = all[0].token("node", 100).await;
    let mut names = Vec::new();
    for seed in 1..=5 {
        names.push(Node::join(&token, seed, &format!("n{seed}")).await.unwrap().name);
    }
    let first = leader(&mut all).await;
    let mut lost = all.remove(first);
    lost.kill();
    let killed = Instant::now();
    // Any coordinator takes the write, once there is a leader again.
    let node = Node::join(&token, 6, "n6").await.unwrap();
    eprintln!("leader killed to next acknowledged write: {:?}", killed.elapsed());
    names.push(node.name);
    for one in &mut all {
        let listed = one.nodes().await;
        let held: Vec<_> = listed.nodes.iter().map(|node| node.record.as_ref().unwrap().name.clone()).collect();
        assert!(names.iter().all(|name| held.contains(name)), "{names:?} in {held:?}");
        assert!(listed.fresh);
    }
    // The killed one comes back with its log and catches up.
    lost.start(&[]);
    let begun = Instant::now();
    let listed = loop {
        let listed = lost.nodes().await;
        if listed.fresh {
            break listed;
        }
        assert!(begun.elapsed() < PATIENCE, "it does not catch up");
    };
    assert_eq!(listed.nodes.len(), names.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_quorum_reads_are_stale_and_writes_say_why() {
    let root = tempfile::tempdir().unwrap();
    let mut all = mesh(root.path(), 3).await;
    let mut last = all.pop().unwrap();
    for one in &mut all {
        one.kill();
    }
    let begun = Instant::now();
    while last.nodes().await.fresh {
        assert!(begun.elapsed() < PATIENCE, "still fresh");
    }
    let request = v1::CreateTokenRequest { role: "node".into(), ttl: 60_000, uses: 1, ..Default::default() };
    let status = last.admin().await.create_token(request).await.unwrap_err();
    assert_eq!(status.code(), tonic::Code::Unavailable);
    assert!(status.message().starts_with("no quorum"), "{}", status.message());
    let listed = last.coordinators().await;
    assert!(listed.coordinators.iter().all(|one| one.role != "leader"), "{listed:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_that_has_lost_its_quorum_is_none_and_says_why_it_cannot_write() {
    let root = tempfile::tempdir().unwrap();
    let mut all = mesh(root.path(), 3).await;
    let index = leader(&mut all).await;
    let mut led = all.remove(index);
    all.clear();
    let begun = Instant::now();
    while led.coordinators().await.coordinators.iter().any(|one| one.role == "leader") {
        assert!(begun.elapsed() < PATIENCE, "it is shown as one");
    }
    let request = v1::CreateTokenRequest { role: "node".into(), ttl: 60_000, uses: 1, ..Default::default() };
    let status = led.admin().await.create_token(request).await.unwrap_err();
    assert!(!status.message().contains("does not lead"), "{}", status.message());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_coordinator_that_stops_hands_over_and_one_that_moves_is_found_again() {
    let root = tempfile::tempdir().unwrap();
    let mut all = mesh(root.path(), 3).await;
    let index = leader(&mut all).await;
    assert_eq!(all[index].terminate(), Some(0));
    let mut stopped = all.remove(index);
    let new = leader(&mut all).await;
    stopped.move_away();
    stopped.start(&[]);
    let begun = Instant::now();
    loop {
        let listed = all[new].coordinators().await.coordinators;
        let records: Vec<_> = listed.iter().map(|one| one.record.clone().unwrap()).collect();
        let moved = stopped.coordinators().await;
        let address = records.iter().find(|record| record.id == moved.this).unwrap().addresses.clone();
        let reached = listed.iter().all(|one| one.reachable);
        if reached && moved.fresh && address == moved_addresses(&moved) {
            return;
        }
        assert!(begun.elapsed() < PATIENCE, "{listed:?}");
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    }
}

fn moved_addresses(reply: &v1::ListCoordinatorsReply) -> Vec<String> {
    let own = reply.coordinators.iter().find(|one| one.record.as_ref().unwrap().id == reply.this);
    own.unwrap().record.as_ref().unwrap().addresses.clone()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_removed_coordinator_ends_and_stays_out() {
    let root = tempfile::tempdir().unwrap();
    let mut all = mesh(root.path(), 3).await;
    let mut removed = all.pop().unwrap();
    let request = v1::RemoveCoordinatorRequest { coordinator: "c3".into(), ..Default::default() };
    all[0].admin().await.remove_coordinator(request).await.unwrap();
    assert_eq!(removed.wait(), Some(6));
    let begun = Instant::now();
    loop {
        let listed = all[0].coordinators().await.coordinators;
        let voters = listed.iter().filter(|one| one.role != "learner").count();
        if listed.len() == 2 && voters == 1 {
            break;
        }
        assert!(begun.elapsed() < PATIENCE, "{listed:?}");
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    }
    all[0].token("node", 1).await;
    let (code, said) = removed.start_and_fail(&[]);
    assert_eq!(code, Some(6));
    assert!(said.contains("removed from the mesh"), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_does_not_belong_together_is_refused_with_a_way_out() {
    let root = tempfile::tempdir().unwrap();
    let mut one = Coordinator::new(root.path(), "one");
    let (code, said) = one.start_and_fail(&[]);
    assert!(code == Some(1) && said.contains("--bootstrap"), "{said}");
    let (code, said) = one.start_and_fail(&["--bootstrap", "--default-key-ttl", "1s"]);
    assert!(code == Some(6) && said.contains("key lifetime"), "{said}");

    one.start(&["--bootstrap"]);
    one.token("node", 1).await;
    let (code, said) = one.start_and_fail(&["--bootstrap"]);
    assert!(code == Some(1) && said.contains("in use"), "{said}");
    assert_eq!(one.terminate(), Some(0));

    // Bootstrap on its own data changes nothing.
    one.start(&["--bootstrap"]);
    assert_eq!(one.coordinators().await.coordinators.len(), 1);
    one.kill();
    std::fs::remove_file(one.data_dir().join("raft.redb")).unwrap();
    let (code, said) = one.start_and_fail(&["--bootstrap"]);
    assert!(code == Some(1) && said.contains("lost its log"), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_token_makes_no_coordinator_and_a_used_token_no_second_node() {
    let root = tempfile::tempdir().unwrap();
    let mut all = mesh(root.path(), 1).await;
    let token = all[0].token("node", 1).await;
    let path = root.path().join("token");
    std::fs::write(&path, &token).unwrap();
    let (code, said) =
        Coordinator::new(root.path(), "x").start_and_fail(&["--join-token-file", path.to_str().unwrap()]);
    assert!(code == Some(6) && said.contains("for a node"), "{said}");

    let first = Node::join(&token, 1, "a").await.unwrap();
    let again = Node::join(&token, 1, "a").await.unwrap();
    assert_eq!(first.id, again.id);
    let status = Node::join(&token, 2, "b").await.map(|node| node.id).unwrap_err();
    assert_eq!(status.code(), tonic::Code::PermissionDenied);
    assert!(status.message().contains("used up"), "{}", status.message());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mesh_is_restored_from_a_backup_in_a_new_epoch_without_its_tokens() {
    let root = tempfile::tempdir().unwrap();
    let mut all = mesh(root.path(), 1).await;
    let token = all[0].token("node", 9).await;
    let alice = Node::join(&token, 1, "alice").await.unwrap();
    let epoch = all[0].coordinators().await.epoch.unwrap();
    let request = v1::BackupRequest { passphrase: "correct horse".into() };
    let mut chunks = all[0].admin().await.backup(request).await.unwrap().into_inner();
    let mut sealed = Vec::new();
    while let Some(chunk) = chunks.message().await.unwrap() {
        sealed.extend_from_slice(&chunk.data);
    }
    all[0].kill();
    let (backup, passphrase) = (root.path().join("backup"), root.path().join("passphrase"));
    std::fs::write(&backup, &sealed).unwrap();
    std::fs::write(&passphrase, "correct horse\n").unwrap();

    let mut restored = Coordinator::new(root.path(), "restored");
    let said = restored
        .offline("restore", &["--from", backup.to_str().unwrap(), "--passphrase-file", passphrase.to_str().unwrap()]);
    assert!(said.is_ok(), "{said:?}");
    restored.start(&[]);
    let listed = restored.coordinators().await;
    assert_eq!((listed.coordinators.len(), listed.this), (1, 2));
    assert_eq!(listed.epoch.unwrap().counter, epoch.counter + 1);
    let nodes = restored.nodes().await.nodes;
    assert_eq!(nodes[0].record.as_ref().unwrap().id.as_ref(), alice.id.as_bytes());
    let tokens = restored.admin().await.list_tokens(v1::ListTokensRequest {}).await.unwrap().into_inner();
    assert!(tokens.tokens.is_empty());
    restored.token("node", 1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_survivor_recovers_and_the_others_are_shut_out() {
    let root = tempfile::tempdir().unwrap();
    let mut all = mesh(root.path(), 3).await;
    let token = all[0].token("node", 9).await;
    Node::join(&token, 1, "alice").await.unwrap();
    let begun = Instant::now();
    while !all[2].nodes().await.fresh {
        assert!(begun.elapsed() < PATIENCE, "it does not catch up");
    }
    for one in &mut all {
        one.kill();
    }
    let (mut other, mut survivor) = (all.remove(0), all.pop().unwrap());
    let said = survivor.offline("recover", &[]);
    assert!(said.is_ok(), "{said:?}");
    survivor.start(&[]);
    leader(std::slice::from_mut(&mut survivor)).await;
    let listed = survivor.coordinators().await;
    assert_eq!((listed.coordinators.len(), listed.this), (1, 3));
    assert_eq!(survivor.nodes().await.nodes.len(), 1);
    survivor.token("coordinator", 1).await;
    other.start(&[]);
    assert_eq!(other.wait(), Some(6));
    assert!(other.log().contains("removed from the mesh"), "{}", other.log());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_ends_the_replica_with_the_reason_and_costs_no_acknowledged_write() {
    let root = tempfile::tempdir().unwrap();
    let mut all = mesh(root.path(), 1).await;
    let one = &mut all[0];
    one.terminate();
    let size = std::fs::metadata(one.data_dir().join("raft.redb")).unwrap().len();
    one.start_on_full_disk(size);
    let mut acknowledged = 0;
    let mut admin = one.admin().await;
    // Every token is a record of some hundred bytes; the file has little room left, or none.
    for _ in 0..2_000 {
        let request = v1::CreateTokenRequest { role: "node".into(), ttl: 3_600_000, uses: 1, ..Default::default() };
        match admin.create_token(request).await {
            Ok(_) => acknowledged += 1,
            Err(_) => break,
        }
    }
    assert_eq!(one.wait(), Some(1));
    assert!(one.log().contains("Raft store cannot be written"), "{}", one.log());
    one.start(&[]);
    leader(std::slice::from_mut(one)).await;
    let tokens = one.admin().await.list_tokens(v1::ListTokensRequest {}).await.unwrap().into_inner().tokens;
    // The one coordinator token of the mesh, and what was acknowledged; what was under way may be there too.
    assert!(tokens.len() > acknowledged, "{} of {acknowledged}", tokens.len());
}
