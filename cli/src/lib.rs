//! The mouth: everything behind the `meshctl` binary, and the namespace lab that tests share with the demo.
//!
//! One call of `meshctl` parses its arguments, asks a daemon on this host over its local socket, prints the answer and
//! exits with a documented code; what scripts may rely on is in `OUTPUT.md`. It keeps no state and speaks to no other
//! host.

pub mod lab;

mod args;
mod daemons;
mod demo;
mod exit;
mod files;
mod output;
mod paths;
mod programs;
mod reach;
mod units;
mod verbs;

use args::{Args, Verb};
use clap::Parser as _;
use exit::{Exit, Failure};
use std::process::ExitCode;

/// Runs one `meshctl` with the arguments of this process.
pub fn run() -> ExitCode {
    let args = match Args::try_parse() {
        Ok(args) => args,
        Err(error) => {
            // Help and version are errors to clap, but not to the user; a closed pipe is nobody's fault.
            let _ = error.print();
            return if error.use_stderr() { Exit::Usage.into() } else { Exit::Done.into() };
        }
    };
    match dispatch(args) {
        Ok(exit) => exit.into(),
        Err(failure) => {
            output::complain(&failure);
            failure.exit.into()
        }
    }
}

fn dispatch(args: Args) -> Result<Exit, Failure> {
    if let Verb::Demo(demo) = args.verb {
        // The demo makes its own processes and runtime: it starts where there is only one thread.
        return demo::run(&args.globals, &demo);
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::new(Exit::Failed, format!("cannot start: {error}")))?;
    runtime.block_on(verbs::run(args))
}
