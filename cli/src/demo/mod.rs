//! `meshctl demo`
use crate::args::{Demo, Globals};
use crate::exit::{Exit, Failure};

/// Runs the demo.
pub(crate) fn run(_globals: &Globals, _demo: &Demo) -> Result<Exit, Failure> {
    Ok(Exit::Done)
}
