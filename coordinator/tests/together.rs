//! Replicas that start at the same moment.

#![allow(clippy::unwrap_used)] // In tests, which end by it.

mod support;

use std::collections::BTreeSet;
use std::time::{Duration, Instant};
use support::{Coordinator, PATIENCE, mesh};

#[tokio::test(flavor = "multi_thread")]
async fn coordinators_that_join_at_once_under_one_name_become_different_ones_and_all_vote() {
    let root = tempfile::tempdir().unwrap();
    let mut first = mesh(root.path(), 1).await.remove(0);
    let token = root.path().join("coordinator-token");
    let mut others: Vec<_> = (0..4).map(|number| Coordinator::new(root.path(), &format!("other{number}"))).collect();
    for other in &mut others {
        other.start(&["--join-token-file", token.to_str().unwrap(), "--name", "twin"]);
    }
    let begun = Instant::now();
    loop {
        let listed = first.coordinators().await.coordinators;
        let voters = listed.iter().filter(|one| one.role != "learner").count();
        assert!([1, 3, 5].contains(&voters) || listed.is_empty(), "{voters} voters");
        if voters == 5 {
            let records: Vec<_> = listed.into_iter().filter_map(|one| one.record).collect();
            let ids: BTreeSet<_> = records.iter().map(|record| record.id).collect();
            let names: BTreeSet<_> = records.iter().map(|record| record.name.as_str()).collect();
            assert_eq!((ids.len(), names.len()), (5, 5), "{records:?}");
            return;
        }
        assert!(begun.elapsed() < PATIENCE, "no five voters: {listed:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
