//! The attacks, by name.

mod bodies;
mod calls;
mod continuation;
mod crowd;
mod descriptors;
mod half_open;
mod joins;
mod local;
mod messages;
mod pings;
mod resets;
mod settings;
mod slow_headers;
mod streams;
mod windows;

use crate::frames::Frames;
use crate::scene::{Seen, Stage};
use crate::stranger::{open, send, tls};
use anyhow::Result;
use futures::future::BoxFuture;
use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};

/// A stranger's connection is ended by the coordinator within this, whatever is done on it.
const STAY: Duration = Duration::from_secs(30);
/// What a busy machine may need beyond a deadline.
const SLACK: Duration = Duration::from_secs(8);

const DEAF: u8 = 4;

/// One attack.
#[derive(Clone, Copy)]
pub(crate) struct Attack {
    pub(crate) name: &'static str,
    /// What is done.
    pub(crate) about: &'static str,
    /// Whether it waits more than it works, so that others may go on beside it.
    pub(crate) waits: bool,
    pub(crate) run: fn(Stage) -> BoxFuture<'static, Result<Seen>>,
}

/// All of them, in the order in which they are tried.
pub(crate) const ALL: [Attack; 19] = [
    pings::ATTACK,
    settings::ATTACK,
    slow_headers::ATTACK,
    half_open::ATTACK,
    windows::ZERO,
    windows::TINY,
    streams::ATTACK,
    messages::ATTACK,
    bodies::ATTACK,
    calls::ATTACK,
    resets::ATTACK,
    continuation::ATTACK,
    crowd::IPV6,
    crowd::IPV4,
    descriptors::SOFT,
    descriptors::HARD,
    joins::ATTACK,
    local::COORDINATOR,
    local::NODE,
];

/// An address of this host to call from: each is another network to the coordinator, and none is that of the members.
fn source(number: u8) -> IpAddr {
    Ipv4Addr::new(127, 66, number, 1).into()
}

/// Waits until connections have been ended by the other side; gives how many were, and when the last one was.
async fn all_ended(connections: JoinSet<()>, begun: Instant, within: Duration) -> (usize, Duration) {
    let (mut connections, mut ended, mut last) = (connections, 0, Duration::ZERO);
    let late = sleep_until(begun + within);
    tokio::pin!(late);
    loop {
        tokio::select! {
            one = connections.join_next() => match one {
                Some(_) => (ended, last) = (ended + 1, begun.elapsed()),
                None => return (ended, last),
            },
            () = &mut late => return (ended, last),
        }
    }
}

/// What is seen of connections that have to be ended within a time.
async fn ends(connections: JoinSet<()>, begun: Instant, within: Duration) -> Seen {
    let all = connections.len();
    let (ended, last) = all_ended(connections, begun, within + SLACK).await;
    let last = if ended > 0 { format!(", the last after {:.1} s", last.as_secs_f64()) } else { String::new() };
    Seen::saw(format!("{ended} of {all} connections were ended{last}")).unless(ended == all, || {
        format!("{} connections are still open after {} s", all - ended, begun.elapsed().as_secs())
    })
}

/// Sends the same frames without end on a few connections and reads nothing; each has to be ended within a time.
async fn deaf(stage: Stage, within: Duration, frames: fn() -> Frames) -> Result<Seen> {
    let scene = stage.coordinator().await?;
    let address = scene.target.address();
    scene
        .judge(async move {
            let (mut connections, begun) = (JoinSet::new(), Instant::now());
            for number in 0..DEAF {
                let (reads, mut writes) = open(tls(address, source(1 + number)).await?, &[]).await?;
                connections.spawn(async move {
                    let frames = frames();
                    while send(&mut writes, &frames).await.is_ok() {}
                    drop(reads);
                });
            }
            Ok(ends(connections, begun, within).await)
        })
        .await
}
