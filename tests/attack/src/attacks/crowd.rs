//! All places for strangers are taken and held, from few addresses: machines of other networks still have to get in.

use super::{Attack, source};
use crate::daemon::Coordinator;
use crate::frames::Frames;
use crate::scene::{Seen, Stage};
use crate::stranger::tls;
use anyhow::Result;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until};

pub(super) const IPV6: Attack = Attack {
    name: "crowd-ipv6",
    about: "1,024 connections, each opened again when it is ended, from the eight /64 of an IPv6 /61",
    waits: false,
    run: |stage| Box::pin(run(stage, true)),
};

pub(super) const IPV4: Attack = Attack {
    name: "crowd-ipv4",
    about: "1,024 connections, each opened again when it is ended, from eight IPv4 addresses",
    waits: false,
    run: |stage| Box::pin(run(stage, false)),
};

const SOURCES: u8 = 8;
const OF_EACH: usize = 128;
/// Handshakes at once: an attacker's own processor is not what is tried here.
const HANDSHAKES: usize = 12;
/// Before a connection is opened again.
const ANEW: Duration = Duration::from_secs(1);

async fn run(stage: Stage, ipv6: bool) -> Result<Seen> {
    let scene = stage.coordinator().await?;
    let places = if ipv6 { of_ipv6(&scene.target) } else { of_ipv4(&scene.target) };
    let until = Instant::now() + stage.either(Duration::from_secs(8), Duration::from_secs(60));
    scene.judge(async move { Ok(Seen::saw(hold(places, until).await)) }).await
}

/// Where to call, and from where.
pub(super) type Place = (SocketAddr, IpAddr);

/// The first addresses of a /61, which `tests/attack/run` gives to loopback.
fn of_ipv6(coordinator: &Coordinator) -> Vec<Place> {
    let address = |number| IpAddr::from(Ipv6Addr::new(0x2001, 0xdb8, 0, number, 0, 0, 0, 1));
    (0..SOURCES).map(|number| (coordinator.at(address(0)), address(number.into()))).collect()
}

pub(super) fn of_ipv4(coordinator: &Coordinator) -> Vec<Place> {
    (0..SOURCES).map(|number| (coordinator.address(), source(1 + number))).collect()
}

/// Holds as many connections as it gets; says how many those were.
pub(super) async fn hold(places: Vec<Place>, until: Instant) -> String {
    let (held, opened) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let (most, handshakes) = (Arc::new(AtomicUsize::new(0)), Arc::new(Semaphore::new(HANDSHAKES)));
    let mut visitors = JoinSet::new();
    for (to, from) in places.into_iter().cycle().take(usize::from(SOURCES) * OF_EACH) {
        let (held, most, opened, handshakes) = (held.clone(), most.clone(), opened.clone(), handshakes.clone());
        visitors.spawn(async move {
            loop {
                let Ok(turn) = handshakes.acquire().await else { return };
                let stream = tls(to, from).await;
                drop(turn);
                if let Ok(mut stream) = stream
                    && stream.write_all(&Frames::opening(&[]).0).await.is_ok()
                {
                    opened.fetch_add(1, Ordering::Relaxed);
                    most.fetch_max(held.fetch_add(1, Ordering::Relaxed) + 1, Ordering::Relaxed);
                    let mut bytes = [0; 1_024];
                    while stream.read(&mut bytes).await.is_ok_and(|length| length > 0) {}
                    held.fetch_sub(1, Ordering::Relaxed);
                }
                sleep(ANEW).await;
            }
        });
    }
    sleep_until(until).await;
    visitors.shutdown().await;
    format!("at most {} connections were held, {} opened", most.load(Ordering::Relaxed), opened.load(Ordering::Relaxed))
}
