//! No attack: a large site behind one address joins, every machine with a valid token.

use super::Attack;
use crate::members::Member;
use crate::scene::{Seen, Stage};
use anyhow::Result;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tonic::{Code, Status};

pub(super) const ATTACK: Attack = Attack {
    name: "joins",
    about: "a site joins from one address with a valid token, as fast as it is let in",
    waits: false,
    run: |stage| Box::pin(run(stage)),
};

/// Machines that join beside each other.
const AT_ONCE: usize = 16;
/// More than strangers may call without a pause.
const BRIEF: usize = 400;
const THOROUGH: usize = 10_000;
const LONGEST: Duration = Duration::from_secs(120);

async fn run(stage: Stage) -> Result<Seen> {
    let scene = stage.coordinator().await?;
    let token = Arc::new(scene.target.token().await?);
    let count = stage.either(BRIEF, THOROUGH);
    scene
        .judge(async move {
            let (begun, next) = (Instant::now(), Arc::new(AtomicUsize::new(0)));
            let mut joiners = JoinSet::new();
            for _ in 0..AT_ONCE {
                let (token, next) = (token.clone(), next.clone());
                joiners.spawn(async move {
                    let (mut joined, mut refused, mut failed) = (0_u32, 0_u32, None);
                    loop {
                        let number = next.fetch_add(1, Ordering::Relaxed);
                        if number >= count || begun.elapsed() > LONGEST {
                            return (joined, refused, failed);
                        }
                        match Member::join(&token, &format!("site{number}")).await {
                            Ok(_) => joined += 1,
                            Err(error) if is_refusal(&error) => refused += 1,
                            Err(error) => failed = Some(format!("{error:#}")),
                        }
                    }
                });
            }
            let all = joiners.join_all().await;
            let (joined, refused) = all.iter().fold((0, 0), |sum, one| (sum.0 + one.0, sum.1 + one.1));
            let took = begun.elapsed().as_secs_f64();
            let saw = format!(
                "{joined} of {count} joined in {took:.1} s, {:.0} a second; {refused} were told to wait",
                f64::from(joined) / took
            );
            let failed = all.into_iter().find_map(|one| one.2);
            Ok(Seen { admitted: joined, ..Seen::saw(saw) }
                .unless(refused == 0, || format!("{refused} machines with a valid token were told to wait"))
                .unless(failed.is_none(), || format!("a join failed: {}", failed.unwrap_or_default())))
        })
        .await
}

fn is_refusal(error: &anyhow::Error) -> bool {
    error.downcast_ref::<Status>().is_some_and(|status| status.code() == Code::ResourceExhausted)
}
