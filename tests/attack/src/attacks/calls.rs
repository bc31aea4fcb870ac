//! Complete calls to methods that do and do not exist, as fast as they are answered.

use super::{Attack, source};
use crate::frames::{Frames, Heads, Then, message_head};
use crate::scene::{Seen, Stage};
use crate::stranger::{Connection, tls};
use anyhow::Result;
use std::io;
use std::time::Duration;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

pub(super) const ATTACK: Attack = Attack {
    name: "calls",
    about: "complete calls without end from 8 addresses, half of them to methods that do not exist",
    waits: false,
    run: |stage| Box::pin(run(stage)),
};

const CONNECTIONS: u8 = 8;
/// Calls of one connection that are under way at once.
const AT_ONCE: u32 = 50;
const PAUSE: Duration = Duration::from_millis(5);
/// Before a connection that was ended is opened anew.
const ANEW: Duration = Duration::from_millis(200);

async fn run(stage: Stage) -> Result<Seen> {
    let scene = stage.coordinator().await?;
    let address = scene.target.address();
    let until = Instant::now() + stage.either(Duration::from_secs(4), Duration::from_secs(30));
    scene
        .judge(async move {
            let mut callers = JoinSet::new();
            for number in 0..CONNECTIONS {
                let path = ["/mesh.v1.Membership/Challenge", "/mesh.v1.Membership/None"][usize::from(number) % 2];
                callers.spawn(async move {
                    let mut sent = 0;
                    while Instant::now() < until {
                        if let Ok(stream) = tls(address, source(1 + number)).await {
                            let _ = call(stream, path, until, &mut sent).await;
                        }
                        sleep(ANEW).await;
                    }
                    sent
                });
            }
            let sent: u32 = callers.join_all().await.into_iter().sum();
            Ok(Seen::saw(format!("{sent} calls were made")))
        })
        .await
}

async fn call(
    stream: Box<dyn crate::stranger::Stream>,
    path: &'static str,
    until: Instant,
    sent: &mut u32,
) -> io::Result<()> {
    let connection = Connection::open(stream, &[]).await?;
    let (mut heads, mut begun) = (Heads::of(path), 0_u32);
    while Instant::now() < until && !connection.is_over() {
        let ended = u32::try_from(connection.heard().ended_streams).unwrap_or(u32::MAX);
        let room = AT_ONCE.saturating_sub(begun.saturating_sub(ended));
        let mut calls = Frames::default();
        for _ in 0..room {
            let stream = 1 + 2 * begun;
            calls = calls.request(stream, &heads.next(), Then::More).data(stream, &message_head(0), Then::End);
            begun += 1;
        }
        // There is room for the answers: what is granted for the connection is used up by them.
        connection.send(&calls.window_update(0, 1 << 16)).await?;
        *sent += room;
        sleep(PAUSE).await;
    }
    Ok(())
}
