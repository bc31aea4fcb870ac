//! Five coordinators: the two that may die do.

#![allow(clippy::unwrap_used)] // In tests, which end by it.

mod support;

use support::{Node, leader, mesh};

#[tokio::test(flavor = "multi_thread")]
async fn five_replicas_take_writes_with_two_of_them_killed() {
    let root = tempfile::tempdir().unwrap();
    let mut all = mesh(root.path(), 5).await;
    let token = all[0].token("node", 100).await;
    for _ in 0..2 {
        let first = leader(&mut all).await;
        all.remove(first).kill();
    }
    let node = Node::join(&token, 1, "survivor").await.unwrap();
    for one in &mut all {
        let listed = one.nodes().await;
        assert_eq!(listed.nodes[0].record.as_ref().unwrap().name, node.name);
    }
}
