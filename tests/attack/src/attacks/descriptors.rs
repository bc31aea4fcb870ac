//! All file descriptors are taken: by connections that stay, and by handshakes that are not gone on with.

use super::{Attack, crowd, source};
use crate::daemon::Descriptors;
use crate::scene::{Seen, Stage};
use crate::stranger::tcp;
use anyhow::Result;
use std::time::Duration;
use tokio::io::AsyncReadExt as _;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout_at};

pub(super) const SOFT: Attack = Attack {
    name: "descriptors",
    about: "3,072 connections, most of them without a handshake, where the soft limit of descriptors is 1,024",
    waits: false,
    run: |stage| Box::pin(run(stage, None)),
};

pub(super) const HARD: Attack = Attack {
    name: "few-descriptors",
    about: "3,072 connections, most of them without a handshake, where the hard limit of descriptors is 1,024",
    waits: false,
    run: |stage| Box::pin(run(stage, Some(LIMIT))),
};

const LIMIT: u32 = 1_024;
const SILENT_SOURCES: u8 = 16;
const SILENT_OF_EACH: usize = 128;
/// Before a connection is opened again.
const ANEW: Duration = Duration::from_millis(500);

async fn run(stage: Stage, hard: Option<u32>) -> Result<Seen> {
    let scene = stage.coordinator_with(Some(Descriptors { soft: LIMIT, hard })).await?;
    let (address, places) = (scene.target.address(), crowd::of_ipv4(&scene.target));
    let until = Instant::now() + stage.either(Duration::from_secs(9), Duration::from_secs(60));
    scene
        .judge(async move {
            let mut silent = JoinSet::new();
            for number in (0..SILENT_SOURCES).cycle().take(usize::from(SILENT_SOURCES) * SILENT_OF_EACH) {
                silent.spawn(timeout_at(until, async move {
                    loop {
                        if let Ok(mut stream) = tcp(address, source(101 + number)).await {
                            while stream.read(&mut [0; 1_024]).await.is_ok_and(|length| length > 0) {}
                        }
                        sleep(ANEW).await;
                    }
                }));
            }
            let held = crowd::hold(places, until).await;
            silent.shutdown().await;
            Ok(Seen::saw(held))
        })
        .await
}
