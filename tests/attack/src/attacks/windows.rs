//! Calls whose answers are given no room, or a byte at a time.

use super::{Attack, STAY, ends, source};
use crate::frames::{Frames, Heads, Then, message_head, setting};
use crate::scene::{Seen, Stage};
use crate::stranger::{Connection, tls};
use anyhow::Result;
use std::time::Duration;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

pub(super) const ZERO: Attack = Attack {
    name: "zero-window",
    about: "100 calls on each of 16 connections, with no room for any answer",
    waits: true,
    run: |stage| Box::pin(run(stage, 0)),
};

pub(super) const TINY: Attack = Attack {
    name: "tiny-window",
    about: "100 calls on each of 16 connections, with room for a byte of each answer twice a second",
    waits: true,
    run: |stage| Box::pin(run(stage, 1)),
};

const CONNECTIONS: u8 = 16;
const CALLS: u32 = 100;
const PAUSE: Duration = Duration::from_millis(500);

async fn run(stage: Stage, step: u32) -> Result<Seen> {
    let scene = stage.coordinator().await?;
    let address = scene.target.address();
    scene
        .judge(async move {
            let (mut connections, begun) = (JoinSet::new(), Instant::now());
            for number in 0..CONNECTIONS {
                let stream = tls(address, source(1 + number)).await?;
                let connection = Connection::open(stream, &[(setting::INITIAL_WINDOW_SIZE, step)]).await?;
                connections.spawn(call(connection, step));
            }
            Ok(ends(connections, begun, STAY).await)
        })
        .await
}

async fn call(connection: Connection, step: u32) {
    let streams: Vec<u32> = (0..CALLS).map(|number| 1 + 2 * number).collect();
    let mut heads = Heads::of("/mesh.v1.Membership/Challenge");
    let calls = streams.iter().fold(Frames::default(), |frames, stream| {
        frames.request(*stream, &heads.next(), Then::More).data(*stream, &message_head(0), Then::End)
    });
    let mut sent = connection.send(&calls).await;
    while step > 0 && sent.is_ok() && !connection.is_over() {
        sleep(PAUSE).await;
        let room = streams.iter().fold(Frames::default(), |frames, stream| frames.window_update(*stream, step));
        sent = connection.send(&room).await;
    }
    if sent.is_ok() {
        connection.ended().await;
    }
}
