//! `meshd`, the node daemon: reads its options and runs.

use clap::Parser as _;
use mesh_node::failure::Failure;
use mesh_node::options::Options;
use std::io::{IsTerminal as _, stderr};
use std::process::ExitCode;
use tracing::{debug, error};
use tracing_subscriber::EnvFilter;

/// Workers: one for the loop and one for packets, so that a slow disk holds up neither.
const WORKERS: usize = 2;

fn main() -> ExitCode {
    let options = Options::parse();
    start_log(options.log_json);
    spare_memory();
    match start(options) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            error!("{failure}");
            failure.exit_code()
        }
    }
}

fn start(options: Options) -> Result<(), Failure> {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(WORKERS)
        .enable_all()
        .build()
        .map_err(Failure::Start)?
        .block_on(mesh_node::run::run(options))
}

/// Keeps the kernel from backing large buffers with huge pages. The embedded engine sets 26 MB aside for bursts and uses
/// a few kilobytes of each quarter of a megabyte: with huge pages the first burst would make all of it resident.
fn spare_memory() {
    if let Err(error) = nix::sys::prctl::set_thp_disable(true) {
        debug!(%error, "huge pages stay on");
    }
}

/// What is logged unless RUST_LOG says otherwise. The embedded engine writes an error for each packet to a peer without
/// endpoint; what matters of it comes up through the device. netlink warns of each rest of a dump that nobody wanted.
const LOGGED: &str = "info,gotatun=off,netlink_proto=error";

/// To stderr, where supervisors look.
fn start_log(json: bool) {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(LOGGED));
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(stderr).with_ansi(stderr().is_terminal());
    if json { log.json().init() } else { log.init() }
}
