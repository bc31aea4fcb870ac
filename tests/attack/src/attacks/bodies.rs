//! Calls of which the head and most of the body are sent, and the end never: what is counted once a body is read does
//! not count them.

use super::{Attack, source};
use crate::frames::Heads;
use crate::scene::{Seen, Stage};
use crate::stranger::{Connection, tls};
use anyhow::Result;
use std::io;
use std::time::Duration;
use tokio::task::JoinSet;
use tokio::time::sleep;

pub(super) const ATTACK: Attack = Attack {
    name: "bodies",
    about: "3,000 calls with bodies of 60 KiB that never end, from one address on 30 connections",
    waits: false,
    run: |stage| Box::pin(run(stage)),
};

const CONNECTIONS: usize = 30;
const STREAMS: u32 = 100;
const BODY: u32 = 60 << 10;
/// More than one source may call at once, by the limit that there is on its calls.
const MOST_CALLS: usize = 1_000;
/// Rounds in which each body grows by what there is room for.
const ROUNDS: usize = 20;
/// Less than a body, in all rounds.
const STEP: usize = 3_000;
const PAUSE: Duration = Duration::from_millis(50);

async fn run(stage: Stage) -> Result<Seen> {
    let scene = stage.coordinator().await?;
    let address = scene.target.address();
    scene
        .judge(async move {
            let mut callers = JoinSet::new();
            for _ in 0..CONNECTIONS {
                callers.spawn(async move {
                    let connection = Connection::open(tls(address, source(1)).await?, &[]).await?;
                    call(connection).await
                });
            }
            let (mut open, mut refused) = (0, 0);
            for caller in callers.join_all().await {
                match caller {
                    Ok(held) => open += held,
                    Err(_) => refused += 1,
                }
            }
            sleep(PAUSE).await;
            let saw = format!("{open} calls stay open without an answer, {refused} connections were ended");
            Ok(Seen::saw(saw).unless(open <= MOST_CALLS, || format!("{open} calls of one address are under way")))
        })
        .await
}

/// Calls on one connection; gives how many stay open.
async fn call(connection: Connection) -> io::Result<usize> {
    let mut heads = Heads::of("/mesh.v1.Membership/Join");
    let streams: Vec<u32> = (0..STREAMS).map(|number| 1 + 2 * number).collect();
    for stream in &streams {
        connection.begin(*stream, &heads.next(), BODY).await?;
    }
    for _ in 0..ROUNDS {
        for stream in &streams {
            connection.send_body(*stream, STEP).await?;
        }
        sleep(PAUSE).await;
    }
    if connection.is_over() {
        return Err(io::ErrorKind::ConnectionReset.into());
    }
    Ok(streams.len().saturating_sub(connection.heard().ended_streams))
}
