//! What an attack is tried on: a daemon in its control group, and those who use it meanwhile. Judges what came of it.

use crate::cgroup::LIMIT;
use crate::daemon::{Coordinator, Daemon, Descriptors, Resident};
use crate::members::{LATEST, Members, Tally};
use anyhow::{Context as _, Result};
use mesh_proto::v1::StatusRequest;
use mesh_proto::v1::local_client::LocalClient;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout};

/// Memory for all strangers together.
const MOST_MEMORY: u64 = 32 << 20;
/// What the registry, its indices and its log hold for a machine that became a member, which is no stranger's.
const MEMBER_MEMORY: u64 = 8 << 10;
const LOOK: Duration = Duration::from_millis(50);
/// No attack takes longer.
const LONGEST: Duration = Duration::from_secs(150);
/// So long it is looked at also what becomes of the others: each kind of their work comes up in it.
const LEAST: Duration = Duration::from_secs(3);
const STATUS: Duration = Duration::from_millis(200);

/// Where an attack is carried out, and how thoroughly.
#[derive(Clone)]
pub(crate) struct Stage {
    pub(crate) binaries: PathBuf,
    pub(crate) brief: bool,
}

impl Stage {
    /// One of two extents.
    pub(crate) fn either<T>(&self, brief: T, thorough: T) -> T {
        if self.brief { brief } else { thorough }
    }

    /// A coordinator with members at work.
    pub(crate) async fn coordinator(&self) -> Result<Scene<Coordinator>> {
        self.coordinator_with(None).await
    }

    /// The same, with so many descriptors.
    pub(crate) async fn coordinator_with(&self, descriptors: Option<Descriptors>) -> Result<Scene<Coordinator>> {
        let coordinator = Coordinator::found(&self.binaries, descriptors).await?;
        let members = Members::at_work(&coordinator).await?;
        Ok(Scene { target: coordinator, users: Users::Members(members) })
    }

    /// A node's daemon whose status is asked for.
    pub(crate) async fn node(&self) -> Result<Scene<Daemon>> {
        let daemon = Daemon::node(&self.binaries).await?;
        let (stop, stopped) = watch::channel(false);
        let asking = tokio::spawn(ask_status(daemon.socket().to_owned(), stopped));
        Ok(Scene { target: daemon, users: Users::Callers(asking, stop) })
    }
}

/// What an attack saw itself.
#[derive(Default)]
pub(crate) struct Seen {
    pub(crate) saw: String,
    pub(crate) faults: Vec<String>,
    /// Machines that became members by it.
    pub(crate) admitted: u32,
}

impl Seen {
    pub(crate) fn saw(saw: String) -> Self {
        Self { saw, ..Self::default() }
    }

    /// Adds a fault, if that is one.
    pub(crate) fn unless(mut self, holds: bool, fault: impl FnOnce() -> String) -> Self {
        if !holds {
            self.faults.push(fault());
        }
        self
    }
}

/// A daemon, and those who use it.
pub(crate) struct Scene<T> {
    pub(crate) target: T,
    users: Users,
}

enum Users {
    Members(Members),
    Callers(JoinHandle<Tally>, watch::Sender<bool>),
}

/// What an attack is carried out on.
pub(crate) trait Target {
    fn daemon(&mut self) -> &mut Daemon;
}

impl Target for Daemon {
    fn daemon(&mut self) -> &mut Daemon {
        self
    }
}

impl Target for Coordinator {
    fn daemon(&mut self) -> &mut Daemon {
        &mut self.daemon
    }
}

impl<T: Target> Scene<T> {
    /// Watches while the attack goes on, and judges.
    pub(crate) async fn judge(mut self, attack: impl Future<Output = Result<Seen>>) -> Result<Seen> {
        let daemon = self.target.daemon();
        daemon.forget_peak().context("the peak of memory is not reset")?;
        let before = daemon.resident().context("the daemon has ended before the attack")?;
        let mut peak = Resident::default();
        let (mut seen, ended) = {
            let attack = async { tokio::join!(timeout(LONGEST, attack), sleep(LEAST)).0 };
            tokio::pin!(attack);
            loop {
                peak = daemon.resident().unwrap_or(peak);
                tokio::select! {
                    seen = &mut attack => break (seen.context("the attack takes too long").flatten()?, None),
                    status = daemon.ended() => break (Seen::saw("cut short".to_owned()), Some(status?)),
                    () = sleep(LOOK) => {}
                }
            }
        };
        let grown = peak.most.saturating_sub(before.now);
        let killed = daemon.cgroup().is_some_and(|cgroup| cgroup.kills() > 0);
        let (used, mut faults) = self.users.stop().await;
        if let Some(status) = ended {
            let why = if killed {
                format!("out of memory at {} MiB", LIMIT >> 20)
            } else {
                format!("{status}: {}", daemon.last_log_line())
            };
            faults = vec![format!("the daemon was ended: {why}")];
        }
        let allowed = MOST_MEMORY + u64::from(seen.admitted) * MEMBER_MEMORY;
        if grown > allowed {
            faults.push(format!("memory grew by {} MiB, {} are allowed", grown >> 20, allowed >> 20));
        }
        let held = daemon
            .cgroup()
            .and_then(|cgroup| cgroup.peak())
            .map_or_else(String::new, |peak| format!(", {} MiB of {} in all", peak >> 20, LIMIT >> 20));
        daemon.kill().await?;
        seen.saw += &format!("; memory +{:.1} MiB{held}; {used}", grown as f64 / f64::from(1 << 20));
        seen.faults.append(&mut faults);
        Ok(seen)
    }
}

impl Users {
    async fn stop(self) -> (String, Vec<String>) {
        match self {
            Self::Members(members) => members.stop().await,
            Self::Callers(asking, stop) => {
                stop.send_replace(true);
                let tally = asking.await.unwrap_or_default();
                let what = "answers of status";
                (tally.tell(what), tally.fault(what).into_iter().collect())
            }
        }
    }
}

/// Asks on a new connection each time, as a person does.
async fn ask_status(socket: PathBuf, mut stop: watch::Receiver<bool>) -> Tally {
    let mut tally = Tally::default();
    loop {
        let begun = Instant::now();
        let answer = timeout(LATEST, status(&socket)).await.context("no answer").flatten();
        tally.note(answer.map(|()| begun.elapsed()).map_err(|error| format!("{error:#}")));
        if timeout(STATUS, stop.wait_for(|stop| *stop)).await.is_ok() {
            return tally;
        }
    }
}

async fn status(socket: &Path) -> Result<()> {
    let channel = mesh_proto::local::connect(socket).await?;
    LocalClient::new(channel).status(StatusRequest {}).await?;
    Ok(())
}
