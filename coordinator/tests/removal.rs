//! Who leaves and who never gets in: coordinators that are removed while others are missing, and strangers.

#![allow(clippy::unwrap_used)] // In tests, which end by it.

mod support;

use mesh_proto::v1;
use mesh_types::{JoinToken, TokenSecret};
use std::path::Path;
use std::time::{Duration, Instant};
use support::{Coordinator, Node, PATIENCE, leader, mesh};

async fn remove(at: &mut Coordinator, name: &str) {
    let request = v1::RemoveCoordinatorRequest { coordinator: name.into(), ..Default::default() };
    at.admin().await.remove_coordinator(request).await.unwrap();
}

/// Waits until writes are taken.
async fn writable(at: &mut Coordinator) {
    let begun = Instant::now();
    loop {
        let request = v1::CreateTokenRequest { role: "node".into(), ttl: 60_000, uses: 1, ..Default::default() };
        match at.admin().await.create_token(request).await {
            Ok(_) => return,
            Err(status) => assert!(begun.elapsed() < PATIENCE, "{status:?}\n{}", at.log()),
        }
    }
}

/// The first votes, the second is a learner.
async fn two(root: &Path) -> (Coordinator, Coordinator) {
    let first = mesh(root, 1).await.remove(0);
    let mut second = Coordinator::new(root, "c2");
    let token = root.join("coordinator-token");
    second.start(&["--join-token-file", token.to_str().unwrap(), "--name", "c2"]);
    let begun = Instant::now();
    while second.coordinators().await.coordinators.len() < 2 {
        assert!(begun.elapsed() < PATIENCE, "it does not join: {}", second.log());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    (first, second)
}

#[tokio::test(flavor = "multi_thread")]
async fn the_only_voter_is_removed_once_the_learner_votes_in_its_place() {
    let root = tempfile::tempdir().unwrap();
    let (mut first, mut second) = two(root.path()).await;
    remove(&mut second, "c1").await;
    assert_eq!(first.wait(), Some(6));
    assert!(first.log().contains("removed from the mesh"), "{}", first.log());
    writable(&mut second).await;
    assert_eq!(second.coordinators().await.coordinators.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_only_voter_goes_on_while_nobody_can_take_its_place() {
    let root = tempfile::tempdir().unwrap();
    let (mut first, mut second) = two(root.path()).await;
    second.kill();
    remove(&mut first, "c1").await;
    writable(&mut first).await;
    assert_eq!(first.terminate(), Some(0));
    first.start(&[]);
    writable(&mut first).await;
    second.start(&[]);
    assert_eq!(first.wait(), Some(6));
    writable(&mut second).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_voter_is_removed_while_another_is_gone_and_the_rest_goes_on() {
    let root = tempfile::tempdir().unwrap();
    let mut all = mesh(root.path(), 3).await;
    let index = leader(&mut all).await;
    let mut leads = all.remove(index);
    all[0].kill();
    let name = own_name(&mut all[1]).await;
    remove(&mut leads, &name).await;
    assert_eq!(all[1].wait(), Some(6));
    writable(&mut leads).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_that_is_removed_hands_over_and_ends() {
    let root = tempfile::tempdir().unwrap();
    let mut all = mesh(root.path(), 3).await;
    let index = leader(&mut all).await;
    let mut leads = all.remove(index);
    let name = own_name(&mut leads).await;
    remove(&mut all[0], &name).await;
    assert_eq!(leads.wait(), Some(6));
    for one in &mut all {
        writable(one).await;
    }
}

async fn own_name(one: &mut Coordinator) -> String {
    let listed = one.coordinators().await;
    let own = listed.coordinators.into_iter().filter_map(|one| one.record).find(|record| record.id == listed.this);
    own.unwrap().name
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_holds_no_token_leaves_nothing_in_the_log() {
    let root = tempfile::tempdir().unwrap();
    let mut one = mesh(root.path(), 1).await.remove(0);
    let token: JoinToken = one.token("node", 1).await.parse().unwrap();
    let forged = JoinToken { secret: TokenSecret::from_bytes([7; 20]), ..token.clone() };
    let before = one.coordinators().await.coordinators[0].applied;
    for seed in 1..=3 {
        let status = Node::join(&forged.to_string(), seed, "n").await.map(|node| node.id).unwrap_err();
        assert_eq!(status.code(), tonic::Code::PermissionDenied, "{status:?}");
    }
    assert_eq!(one.coordinators().await.coordinators[0].applied, before);
    Node::join(&token.to_string(), 1, "n").await.unwrap();
    assert!(one.coordinators().await.coordinators[0].applied > before);
}
