//! Attacks of strangers on real daemons, bounded in count and time. Run it by `tests/attack/run`, in a network of its own.
//!
//! Each is tried on a daemon of its own, with real TLS, real disk, little memory and, on coordinators, members at work.
//! What must hold is the same for all: memory for strangers is bounded, the daemon lives, members get deltas and answers,
//! machines of other networks join, and a stranger's connection is ended in time. Nothing here knows how the daemons
//! keep to that.

mod attacks;
mod cgroup;
mod daemon;
mod frames;
mod members;
mod scene;
mod stranger;

use anyhow::{Context as _, Result};
use attacks::{ALL, Attack};
use clap::Parser;
use scene::{Seen, Stage};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;
use tokio::task::JoinSet;
use tokio::time::sleep;

/// Those that wait are begun one after the other: their members join, which takes the processor.
const STAGGER: Duration = Duration::from_millis(300);

/// Tries attacks of strangers on real daemons.
#[derive(Parser)]
#[command(name = "mesh-attack")]
struct Options {
    /// Attacks to try, by name; all unless told otherwise
    #[arg(value_parser = by_name)]
    attacks: Vec<Attack>,
    /// Names the attacks and says what each does
    #[arg(long)]
    list: bool,
    /// Tries each for a few seconds only
    #[arg(long)]
    brief: bool,
    /// Directory of mesh-coordinator and meshd; that of this program unless told otherwise
    #[arg(long, value_name = "DIR", env = "MESHCTL_BINARIES")]
    binaries: Option<PathBuf>,
}

fn by_name(name: &str) -> Result<Attack, String> {
    ALL.into_iter().find(|attack| attack.name == name).ok_or_else(|| "no such attack, see --list".to_owned())
}

#[tokio::main]
async fn main() -> Result<ExitCode> {
    let options = Options::parse();
    let attacks = if options.attacks.is_empty() { ALL.to_vec() } else { options.attacks };
    if options.list {
        attacks.iter().for_each(|attack| println!("{:<18} {}", attack.name, attack.about));
        return Ok(ExitCode::SUCCESS);
    }
    let own = std::env::current_exe()?;
    let binaries = options.binaries.or_else(|| own.parent().map(PathBuf::from)).context("no directory of binaries")?;
    let binaries = binaries.canonicalize().with_context(|| format!("no directory {}", binaries.display()))?;
    let stage = Stage { binaries, brief: options.brief };

    let (waiting, working): (Vec<_>, Vec<_>) = attacks.into_iter().partition(|attack| attack.waits);
    let mut beside = JoinSet::new();
    for attack in waiting {
        beside.spawn(carry_out(attack, stage.clone()));
        sleep(STAGGER).await;
    }
    let mut held = Vec::new();
    for attack in working {
        held.push(carry_out(attack, stage.clone()).await);
    }
    held.extend(beside.join_all().await);
    let passed = held.iter().filter(|held| **held).count();
    let failed = held.len() - passed;
    println!("{passed} passed, {failed} failed");
    Ok(if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Tries one attack and tells in a line what came of it; whether the daemon held.
async fn carry_out(attack: Attack, stage: Stage) -> bool {
    let Attack { name, about, run, .. } = attack;
    let Seen { saw, faults, .. } = match run(stage).await {
        Ok(seen) => seen,
        Err(error) => Seen::saw("not carried out".to_owned()).unless(false, || format!("{error:#}")),
    };
    let verdict = if faults.is_empty() { "held".to_owned() } else { format!("FAILED: {}", faults.join("; ")) };
    println!("{name}: {about}: {saw}: {verdict}");
    faults.is_empty()
}
