//! `meshd`, the node daemon: reads its options and runs.

use clap::Parser as _;
use mesh_node::failure::Failure;
use mesh_node::log;
use mesh_node::options::{Command, Options};
use mesh_node::wireguard;
use mesh_proto::confine::keep_memory_private;
use mesh_proto::descriptors;
use std::io::{IsTerminal as _, stderr};
use std::process::ExitCode;
use tracing::{error, warn};
use tracing_subscriber::util::SubscriberInitExt as _;

/// Workers: one for the loop and one for packets, so that a slow disk holds up neither.
const WORKERS: usize = 2;

fn main() -> ExitCode {
    let options = Options::parse();
    start_log(options.log_json);
    if let Err(error) = keep_memory_private() {
        warn!(%error, "a core dump of this process would hold its keys");
    }
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

/// To stderr, where supervisors look.
fn start_log(json: bool) {
    let asked = std::env::var("RUST_LOG").ok();
    log::subscriber(asked.as_deref(), json, stderr().is_terminal(), stderr).init();
}
