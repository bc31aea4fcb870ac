//! `meshd`, the node daemon: reads its options and runs.

use clap::Parser as _;
use mesh_node::failure::Failure;
use mesh_node::options::{Command, Options};
use mesh_node::wireguard;
use mesh_proto::descriptors;
use std::io::{IsTerminal as _, stderr};
use std::process::ExitCode;
use tracing::{error, warn};
use tracing_subscriber::EnvFilter;

/// Workers: one for the loop and one for packets, so that a slow disk holds up neither.
const WORKERS: usize = 2;

fn main() -> ExitCode {
    let options = Options::parse();
    start_log(options.log_json);
    match start(options) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            error!("{failure}");
            failure.exit_code()
        }
    }
}

fn start(options: Options) -> Result<(), Failure> {
    if let Some(Command::Wireguard(options)) = &options.command {
        return wireguard::run(options);
    }
    if let Err(error) = descriptors::raise() {
        warn!(%error, "descriptor limit not raised");
    }
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(WORKERS)
        .enable_all()
        .build()
        .map_err(Failure::Start)?
        .block_on(mesh_node::run::run(options))
}

/// What is logged unless RUST_LOG says otherwise. netlink warns of each rest of a dump that nobody wanted.
const LOGGED: &str = "info,netlink_proto=error";

/// To stderr, where supervisors look.
fn start_log(json: bool) {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(LOGGED));
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(stderr).with_ansi(stderr().is_terminal());
    if json { log.json().init() } else { log.init() }
}
