//! From options to a running daemon and, on a signal, to its end.

use crate::daemon::Daemon;
use crate::failure::Failure;
use crate::ground::{Ground, RealGround};
use crate::guard;
use crate::host::Host;
use crate::link::MIN_MTU;
use crate::local;
use crate::options::Options;
use crate::state::{Keys, StateDir};
use mesh_proto::local::{Access, LocalListener};
use nix::unistd::Group;
use sd_notify::NotifyState;
use std::sync::Arc;
use tokio::signal::unix::{SignalKind, signal};
use tracing::{debug, info};

/// Runs the daemon, or the guard, until a signal or a failure ends it.
pub async fn run(options: Options) -> Result<(), Failure> {
    if options.guard {
        let (state_dir, interface) = (options.state_dir(), &options.interface);
        let outcome = if options.after_daemon {
            guard::child::run_after_daemon(&state_dir, interface).await?
        } else {
            guard::run(&state_dir, interface).await?
        };
        info!(?outcome, "the guard has ended");
        return Ok(());
    }
    let ground = RealGround {
        interface: options.interface.clone(),
        backend: options.backend,
        mark: options.fwmark,
        guarded_by: (!options.no_guard).then(|| options.state_dir()),
    };
    run_on(Arc::new(ground), options, signalled()?).await
}

/// Runs the daemon on any ground until `stop`.
pub async fn run_on(ground: Arc<dyn Ground>, options: Options, stop: impl Future<Output = ()>) -> Result<(), Failure> {
    let state = StateDir::open(&options.state_dir())?;
    let keys = state.held_keys()?;
    let host = Host::new(ground, &options.interface, keys.as_ref().map(Keys::public_key), MIN_MTU);
    let listener = LocalListener::bind(&options.socket(), access(&options)?).await?;
    let (asked, requests) = local::channel();
    info!(version = env!("CARGO_PKG_VERSION"), socket = %listener.path().display(), "meshd starts");
    let daemon = Daemon::new(options, state, host, keys, requests).await?;
    notify(NotifyState::Ready);
    let result = tokio::select! {
        result = daemon.run(stop) => result,
        never = local::serve(listener, asked) => match never {},
    };
    notify(NotifyState::Stopping);
    result
}

fn access(options: &Options) -> Result<Access, Failure> {
    let Some(name) = &options.socket_group else { return Ok(Access::Owner) };
    match Group::from_name(name) {
        Ok(Some(group)) => Ok(Access::Group(group.gid.as_raw())),
        _ => Err(Failure::Group(name.clone())),
    }
}

/// Completes at the first signal to end.
fn signalled() -> Result<impl Future<Output = ()>, Failure> {
    let mut terminate = signal(SignalKind::terminate()).map_err(Failure::Start)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(Failure::Start)?;
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        info!("stopping; a kernel device stays as it is");
    })
}

/// Tells the supervisor, if there is one.
fn notify(state: NotifyState<'_>) {
    if let Err(error) = sd_notify::notify(&[state]) {
        debug!(%error, "the supervisor was not told");
    }
}
