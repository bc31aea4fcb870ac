//! Large messages to services that a stranger may not use, on a few connections, as fast as they are taken.

use super::{Attack, source};
use crate::frames::Heads;
use crate::scene::{Seen, Stage};
use crate::stranger::{Connection, tls};
use anyhow::Result;
use std::io;
use std::time::Duration;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

pub(super) const ATTACK: Attack = Attack {
    name: "messages",
    about: "messages of 16 MiB to Cluster, all but their ends, 32 at once on each of 4 connections",
    waits: false,
    run: |stage| Box::pin(run(stage)),
};

const CONNECTIONS: u8 = 4;
const STREAMS: usize = 32;
const MESSAGE: u32 = (16 << 20) - 64;
/// While there is no room to send.
const PAUSE: Duration = Duration::from_millis(2);

async fn run(stage: Stage) -> Result<Seen> {
    let scene = stage.coordinator().await?;
    let address = scene.target.address();
    let until = Instant::now() + stage.either(Duration::from_secs(5), Duration::from_secs(30));
    scene
        .judge(async move {
            let mut senders = JoinSet::new();
            for number in 0..CONNECTIONS {
                senders.spawn(async move {
                    let mut sent = 0;
                    while Instant::now() < until {
                        // Ended or refused: once more.
                        let _ = send(tls(address, source(1 + number % 2)).await, until, &mut sent).await;
                        sleep(100 * PAUSE).await;
                    }
                    sent
                });
            }
            let sent: usize = senders.join_all().await.into_iter().sum();
            Ok(Seen::saw(format!("{} MiB were taken", sent >> 20)))
        })
        .await
}

async fn send(
    stream: io::Result<Box<dyn crate::stranger::Stream>>,
    until: Instant,
    sent: &mut usize,
) -> io::Result<()> {
    let connection = Connection::open(stream?, &[]).await?;
    let mut heads = Heads::of("/mesh.v1.Cluster/Raft");
    let mut left = Vec::new();
    for stream in (1..).step_by(2).take(STREAMS) {
        connection.begin(stream, &heads.next(), MESSAGE).await?;
        left.push((stream, usize::try_from(MESSAGE - 1).expect("it is small")));
    }
    while Instant::now() < until && !connection.is_over() {
        let mut taken = 0;
        for (stream, left) in &mut left {
            let size = connection.send_body(*stream, *left).await?;
            *left -= size;
            taken += size;
        }
        *sent += taken;
        if taken == 0 {
            sleep(PAUSE).await;
        }
    }
    Ok(())
}
