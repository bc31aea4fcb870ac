//! One call to whichever coordinator can answer it: each address is tried until one gives a definite answer.
//!
//! Only for calls that may be repeated, which all of a node's are: an answer may have been lost on its way.

use mesh_proto::dial::{Connection, DialError, Dialer};
use mesh_proto::pushback::retry_after;
use mesh_proto::tls::Expect;
use mesh_types::CoordinatorAddress;
use std::time::Duration;
use thiserror::Error;
use tokio::time::timeout;
use tonic::{Code, Status};
use tracing::debug;

/// A write waits for a majority of disks and perhaps for an election, which takes up to two seconds.
const ANSWER: Duration = Duration::from_secs(8);

/// Why nobody answered.
#[derive(Debug, Error)]
pub(crate) enum AskError {
    /// No coordinator was reached.
    #[error(transparent)]
    Unreachable(#[from] DialError),
    /// Coordinators were reached, but none could do it now.
    #[error("coordinator {0} cannot do it now: {message}", message = .1.message())]
    Unavailable(CoordinatorAddress, Status),
    /// A coordinator said no.
    #[error("coordinator {0} refuses: {message}", message = .1.message())]
    Refused(CoordinatorAddress, Status),
}

/// Makes `call` on a connection to one of `addresses`; on the next if it cannot be answered there.
pub(crate) async fn ask<T, F>(
    dialer: &Dialer,
    addresses: &[CoordinatorAddress],
    expect: Expect,
    call: impl Fn(Connection) -> F,
) -> Result<T, AskError>
where
    F: Future<Output = Result<T, Status>>,
{
    let mut left = addresses.to_vec();
    let mut unavailable = None;
    loop {
        let connection = match dialer.dial(&left, expect).await {
            Ok(connection) => connection,
            Err(error) => return Err(unavailable.unwrap_or(AskError::Unreachable(error))),
        };
        let address = connection.address.clone();
        let answer = timeout(ANSWER, call(connection))
            .await
            .unwrap_or_else(|_| Err(Status::deadline_exceeded(format!("no answer within {} s", ANSWER.as_secs()))));
        match answer {
            Ok(answer) => return Ok(answer),
            Err(status) if is_temporary(&status) => {
                debug!(%address, %status, "asking the next coordinator");
                left.retain(|other| *other != address);
                unavailable = Some(AskError::Unavailable(address, status));
            }
            Err(status) => return Err(AskError::Refused(address, status)),
        }
    }
}

/// Whether another coordinator, or this one later, may answer otherwise. Transport failures come as `Unknown`.
fn is_temporary(status: &Status) -> bool {
    matches!(
        status.code(),
        Code::Unavailable | Code::DeadlineExceeded | Code::Unknown | Code::Cancelled | Code::Internal | Code::Aborted
    ) || retry_after(status).is_some()
}
