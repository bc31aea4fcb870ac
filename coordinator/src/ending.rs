//! Why a coordinator ends by itself, and the one place that turns it into an exit code: they are `meshctl`'s.

use crate::home::Gone;
use thiserror::Error;

const FAILED: u8 = 1;
const UNREACHABLE: u8 = 5;
const REFUSED: u8 = 6;

/// What was asked for is refused, and will be again: a supervisor need not start it again.
#[derive(Debug, Error)]
#[error("{0}")]
pub(crate) struct Refused(pub(crate) String);

/// No coordinator took the join: it may work later.
#[derive(Debug, Error)]
#[error("{0}")]
pub(crate) struct Unreachable(pub(crate) String);

/// The exit code of a coordinator that ends with this error.
pub fn exit_code(error: &anyhow::Error) -> u8 {
    if error.is::<Gone>() || error.is::<Refused>() {
        REFUSED
    } else if error.is::<Unreachable>() {
        UNREACHABLE
    } else {
        FAILED
    }
}
