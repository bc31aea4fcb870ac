//! What a recovery cannot know of the history that it ends.

#![allow(clippy::unwrap_used)] // In tests, which end by it.

mod support;

use std::time::{Duration, Instant};
use support::{Coordinator, PATIENCE, leader, mesh};

#[tokio::test(flavor = "multi_thread")]
async fn a_coordinator_that_joined_unseen_by_the_survivor_is_shut_out_and_no_newcomer() {
    let root = tempfile::tempdir().unwrap();
    let mut all = mesh(root.path(), 3).await;
    let mut survivor = all.pop().unwrap();
    survivor.kill();
    let token = root.path().join("coordinator-token");
    let mut unseen = Coordinator::new(root.path(), "c4");
    unseen.start(&["--join-token-file", token.to_str().unwrap(), "--name", "c4"]);
    let begun = Instant::now();
    while unseen.coordinators().await.coordinators.len() < 4 {
        assert!(begun.elapsed() < PATIENCE, "it does not join: {}", unseen.log());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    for one in all.iter_mut().chain([&mut unseen]) {
        one.kill();
    }

    let said = survivor.offline("recover", &[]);
    assert!(said.is_ok(), "{said:?}");
    survivor.start(&[]);
    leader(std::slice::from_mut(&mut survivor)).await;
    unseen.start(&[]);
    assert_ne!(unseen.wait(), Some(0));
    assert!(unseen.log().contains("removed from the mesh"), "{}", unseen.log());
    survivor.token("node", 1).await;
    assert_eq!(survivor.coordinators().await.coordinators.len(), 1);
}
