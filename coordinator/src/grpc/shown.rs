//! The join token that a stranger shows, looked at before anything that costs more.
//!
//! Whoever shows a good one is counted with it, and apart from strangers: a whole site may join from behind one address.
//! Whoever does not is counted with its address.

use crate::rates::Act;
use crate::replica::Replica;
use mesh_proto::{Caller, pushback};
use mesh_types::{Fingerprint, TokenId};
use std::time::Duration;
use tonic::Status;

/// When one that finds no place among those who join may try again: each is there for a write.
const AGAIN: Duration = Duration::from_secs(1);

/// Counts a join that shows this token. One that is not known here may have been made elsewhere a moment ago.
pub(super) fn count(
    replica: &Replica,
    caller: &Caller,
    token: TokenId,
    secret_hash: Fingerprint,
) -> Result<(), Status> {
    let is_known =
        replica.view().read(|registry| registry.token(token).is_some_and(|token| token.secret_hash == secret_hash));
    if !is_known {
        return replica.ration(Act::FailToJoin(caller.remote.ip()));
    }
    replica.ration(Act::UseToken(token))?;
    vouch(caller)
}

/// Counts the connection of a caller whose token is good among those who join.
pub(super) fn vouch(caller: &Caller) -> Result<(), Status> {
    let vouched = caller.visit.as_ref().map_or(Ok(()), |visit| visit.vouch());
    vouched.map_err(|_| pushback::try_again("machines join", AGAIN))
}
