//! The `meshctl` binary: all of it is in the library, so that tests can drive it.

use std::process::ExitCode;

fn main() -> ExitCode {
    mesh_cli::run()
}
