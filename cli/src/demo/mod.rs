//! `meshctl demo`: a whole mesh on this machine, with real processes and real packets.
//!
//! Outside, this makes a world of namespaces, starts itself again as the first process of it, waits, and removes the
//! directory of logs and state unless a step did not hold. Inside, it sets up the stage and plays the steps in order.
//! Nothing of the host is touched, and the kernel takes everything away when the first process ends.

mod play;
mod process;
mod progress;
mod report;
mod roam;
mod stage;

use crate::args::{Demo, Globals};
use crate::exit::{Exit, Failure};
use crate::lab::World;
use crate::{output, programs};
use anyhow::Context as _;
use nix::sys::signal::{SigSet, Signal, kill};
use nix::unistd::Pid;
use std::path::Path;
use std::process::{Child, ExitStatus};
use std::time::{Duration, Instant};

/// How long the inside may take to end after a signal, before the kernel ends it.
const STOP: Duration = Duration::from_secs(5);
const LOOK_AGAIN: Duration = Duration::from_millis(100);

/// Runs the demo.
pub(crate) fn run(globals: &Globals, demo: &Demo) -> Result<Exit, Failure> {
    match World::inside() {
        Some(world) => inside(&world, globals, demo),
        None => outside(),
    }
}

fn outside() -> Result<Exit, Failure> {
    programs::find(programs::COORDINATOR)?;
    programs::find(programs::NODE)?;
    let way = World::find_way()
        .map_err(|obstacle| Failure::new(Exit::Permission, format!("the demo needs a world of its own: {obstacle}")))?;
    let directory =
        tempfile::Builder::new().prefix("meshctl-demo-").tempdir().context("no place for logs and state")?;
    let program = std::env::current_exe().context("cannot find the own program")?;
    let mut command = World::command(way, &program, directory.path()).context("cannot make a world")?;
    command.args(std::env::args_os().skip(1));
    // Taken by `watch`, one at a time. The inside inherits that, and lets them through again.
    let signals = SigSet::from_iter([Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP, Signal::SIGCHLD]);
    signals.thread_block().context("cannot hold signals back")?;
    let guard = command.spawn().context("cannot make a world")?;
    let (status, interrupted) = watch(guard, directory.path())?;
    if interrupted {
        return Ok(Exit::Interrupted);
    }
    match status.code() {
        Some(0) => Ok(Exit::Done),
        Some(code) if code == Exit::Interrupted as i32 => Ok(Exit::Interrupted),
        _ => {
            let kept = directory.keep();
            output::note(format_args!("Logs and state are kept in {}.", kept.display()));
            // Why, the inside has said already.
            Err(Failure::new(Exit::Failed, "the demo did not hold"))
        }
    }
}

/// Waits for the world to end, and passes signals on to its first process.
fn watch(mut guard: Child, directory: &Path) -> Result<(ExitStatus, bool), Failure> {
    let signals = SigSet::from_iter([Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP]);
    let mut deadline = None;
    loop {
        if let Some(status) = guard.try_wait().context("cannot wait for the world")? {
            return Ok((status, deadline.is_some()));
        }
        let overdue = deadline.is_some_and(|deadline| Instant::now() > deadline);
        if !next_signal(&signals) && !overdue {
            continue;
        }
        deadline = deadline.or_else(|| Some(Instant::now() + STOP));
        let signal = if overdue { Signal::SIGKILL } else { Signal::SIGINT };
        match World::init_pid(directory) {
            // If it has ended by now, the guard ends too: after everything else in the world.
            Some(first) => drop(kill(Pid::from_raw(first), signal)),
            None => guard.kill().context("cannot end the world")?,
        }
    }
}

/// Whether one of these signals came within a moment; also returns early when a child ended.
fn next_signal(signals: &SigSet) -> bool {
    let mut all = *signals;
    all.add(Signal::SIGCHLD);
    let limit = libc::timespec { tv_sec: 0, tv_nsec: LOOK_AGAIN.subsec_nanos().into() };
    // SAFETY: set and limit are valid for the call; no information about the signal is asked for.
    let taken = unsafe { libc::sigtimedwait(all.as_ref(), std::ptr::null_mut(), &raw const limit) };
    Signal::try_from(taken).is_ok_and(|signal| signals.contains(signal))
}

fn inside(world: &World, globals: &Globals, demo: &Demo) -> Result<Exit, Failure> {
    SigSet::empty().thread_set_mask().context("cannot let signals through")?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let runtime = runtime.context("cannot start")?;
    let exit = runtime.block_on(async {
        tokio::select! {
            exit = play::run(world, globals, demo) => exit,
            _ = tokio::signal::ctrl_c() => Ok(Exit::Interrupted),
        }
    });
    // What still runs ends with this process.
    runtime.shutdown_background();
    exit
}
