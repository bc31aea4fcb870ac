//! Requests are begun and never gone on with, one after the other on one connection.

use super::{Attack, source};
use crate::frames::{Frames, Heads, Then};
use crate::scene::{Seen, Stage};
use crate::stranger::{Connection, Stream, tls};
use anyhow::Result;
use std::io;
use std::time::Duration;
use tokio::time::{sleep, timeout};

pub(super) const ATTACK: Attack = Attack {
    name: "streams",
    about: "100,000 request heads on one connection, and again on a new one where that is ended",
    waits: false,
    run: |stage| Box::pin(run(stage)),
};

pub(super) const HEADS: u32 = 100_000;
/// Request heads in one write.
const BATCH: u32 = 500;
/// Connections after one another, where each is ended.
const CONNECTIONS: usize = 20;
const LONGEST: Duration = Duration::from_secs(15);
/// For memory to be counted that is taken late.
const HOLD: Duration = Duration::from_secs(2);

async fn run(stage: Stage) -> Result<Seen> {
    let scene = stage.coordinator().await?;
    let address = scene.target.address();
    scene
        .judge(async move {
            let flooded = flood("/mesh.v1.Membership/Join", HEADS, || tls(address, source(1))).await?;
            Ok(Seen::saw(flooded))
        })
        .await
}

/// Begins so many requests; says what came of it.
pub(super) async fn flood<F>(path: &'static str, count: u32, dial: impl Fn() -> F) -> Result<String>
where
    F: Future<Output = io::Result<Box<dyn Stream>>>,
{
    let (mut sent, mut connections, mut ended, mut goaway) = (0, 0, 0, None);
    let flooding = async {
        while sent < count && connections < CONNECTIONS {
            connections += 1;
            let connection = Connection::open(dial().await?, &[]).await?;
            while sent < count && send_heads(&connection, path, &mut sent, count).await.is_ok() {}
            sleep(HOLD).await;
            let heard = connection.heard();
            ended += heard.ended_streams;
            goaway = goaway.or(heard.goaway);
        }
        io::Result::Ok(())
    };
    let bounded = timeout(LONGEST, flooding).await;
    let goaway = goaway.map_or_else(String::new, |code| format!(", GOAWAY {code}"));
    let cut = if matches!(bounded, Ok(Ok(()))) { "" } else { ", then no more" };
    Ok(format!("{sent} heads on {connections} connections, {ended} streams ended{goaway}{cut}"))
}

/// Sends until the connection is ended, or all are sent.
async fn send_heads(connection: &Connection, path: &'static str, sent: &mut u32, count: u32) -> io::Result<()> {
    let mut heads = Heads::of(path);
    let mut stream = 1;
    while *sent < count {
        if connection.is_over() {
            return Err(io::ErrorKind::ConnectionReset.into());
        }
        let mut frames = Frames::default();
        for _ in 0..BATCH {
            frames = frames.request(stream, &heads.next(), Then::More);
            stream += 2;
        }
        connection.send(&frames).await?;
        *sent += BATCH;
    }
    Ok(())
}
