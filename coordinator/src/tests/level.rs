//! The log takes up a later language when the last coordinator understands it.

use super::*;

const LATER: Level = Level(Level::SUPPORTED.0 + 1);

#[tokio::test(flavor = "multi_thread")]
async fn the_level_rises_when_the_last_coordinator_is_upgraded_and_not_before() {
    let root = tempfile::tempdir().unwrap();
    let mut all = mesh(root.path(), 3).await;
    for number in 0..3 {
        assert_eq!(all[0].list().await.level, Level::SUPPORTED.0, "{number} of three are upgraded");
        all[number].stop().await;
        all[number].level = LATER;
        all[number].start(&[]);
        // Everyone has heard of it before the next one goes.
        eventually("the others know", async || {
            let mut known = 0;
            for one in &all {
                let info = one.info(number as u64 + 1).await;
                known += usize::from(info.reachable && info.level == Some(LATER.0));
            }
            known == 3
        })
        .await;
        if number < 2 {
            stays(&all[0]).await;
        }
    }
    eventually("the level rises", async || all[0].list().await.level == LATER.0).await;

    // From now on who understands less is stopped or kept out, with the way out.
    let mut fourth = Coordinator::new(root.path(), "c4");
    fourth.start(&join_arguments(root.path(), 4).each_ref().map(String::as_str));
    let said = fourth.ended().await;
    assert!(said.contains("level 2") && said.contains("install the version"), "{said}");
    all[2].stop().await;
    all[2].level = Level::SUPPORTED;
    all[2].start(&[]);
    let said = all[2].ended().await;
    assert!(said.contains("level 2") && said.contains("later one"), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_coordinator_that_does_not_answer_holds_the_level_until_it_is_removed() {
    let root = tempfile::tempdir().unwrap();
    let mut all = mesh(root.path(), 3).await;
    all[2].stop().await;
    for one in &mut all[..2] {
        one.stop().await;
        one.level = LATER;
    }
    for one in &mut all[..2] {
        one.start(&[]);
    }
    eventually("both know of each other", async || {
        all[0].info(2).await.level == Some(LATER.0) && all[1].info(1).await.level == Some(LATER.0)
    })
    .await;
    stays(&all[0]).await;
    let request = v1::RemoveCoordinatorRequest { coordinator: "c3".into(), ..Default::default() };
    all[0].admin().await.remove_coordinator(request).await.unwrap();
    eventually("the level rises", async || all[0].list().await.level == LATER.0).await;
}

/// The leader has looked at least twice, and has not raised the level.
async fn stays(one: &Coordinator) {
    eventually("a leader writes", async || one.try_token("node").await.is_ok()).await;
    for _ in 0..50 {
        assert_eq!(one.list().await.level, Level::SUPPORTED.0);
        tokio::time::sleep(LOOK).await;
    }
}
