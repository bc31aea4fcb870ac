//! Steps in which nodes change their underlay address while packets flow.
//!
//! WireGuard by itself finds a moved peer again only when the moved side sends; the cases differ in who does.

use super::report::{Outcome, read};
use super::stage::{Stage, underlay};
use anyhow::Result;
use std::time::{Duration, Instant};

/// A fine measure of the gap.
const INTERVAL: Duration = Duration::from_millis(10);
/// Pings before and after a move, so that a late loss is seen.
const AROUND: Duration = Duration::from_millis(300);

/// One node moves, and both sides send.
pub(super) async fn one_moves(stage: &mut Stage) -> Result<Outcome> {
    moves(stage, &[(1, 1)], &[(0, 1), (1, 0), (2, 1), (1, 2)]).await
}

/// One node moves that only answers: plain WireGuard waits for its own timers here.
pub(super) async fn silent_moves(stage: &mut Stage) -> Result<Outcome> {
    moves(stage, &[(1, 2)], &[(0, 1), (2, 1)]).await
}

/// Two nodes move at the same moment: plain WireGuard never finds them again.
pub(super) async fn both_move(stage: &mut Stage) -> Result<Outcome> {
    moves(stage, &[(1, 3), (2, 3)], &[(1, 2), (2, 1)]).await
}

async fn moves(stage: &mut Stage, movers: &[(usize, u8)], pairs: &[(usize, usize)]) -> Result<Outcome> {
    let mut traffic = stage.ping_between(pairs, INTERVAL)?;
    traffic.answered().await?;
    tokio::time::sleep(AROUND).await;
    let moved = Instant::now();
    for (node, place) in movers {
        stage.lab.readdress(&stage.nodes[*node].host, &[underlay(*node, *place)]).await?;
    }
    let all_moved = Instant::now();
    traffic.answered_since(all_moved).await?;
    let found = moved.elapsed();
    tokio::time::sleep(AROUND).await;
    let pings = traffic.sum().await?;
    let said = format!("silent for {}; all flows back after {}", read(pings.longest_gap), read(found));
    Ok(Outcome::said(said).measured("gap", pings.longest_gap).measured("all_back", found).pinged(pings))
}
