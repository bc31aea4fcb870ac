//! Join tokens that come with the start: from a file that may appear later, or from the environment.
//!
//! Where containers start all at once, the token and its coordinators may not be there yet: both are waited for, with
//! a word in the log.

use crate::failure::Failure;
use crate::join::{Join, JoinError, join};
use crate::state::Membership;
use mesh_types::JoinToken;
use std::io::{self, Read as _};
use std::path::Path;
use std::time::Duration;
use tokio::time::{Instant, sleep};
use tracing::{info, warn};
use zeroize::Zeroizing;

/// Where a token may be given beside a file.
const VARIABLE: &str = "MESH_JOIN_TOKEN";
const LOOK: Duration = Duration::from_millis(200);
/// A file that is being written is whole after this.
const WRITING: Duration = Duration::from_secs(2);
/// Bytes of the longest token, with room.
const MAX_TOKEN: u64 = 16 << 10;
const FIRST_PAUSE: Duration = Duration::from_millis(250);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// The token in the environment, if one is set.
pub(crate) fn from_environment() -> Option<Result<JoinToken, Failure>> {
    let text = Zeroizing::new(std::env::var(VARIABLE).ok().filter(|text| !text.trim().is_empty())?);
    Some(text.parse().map_err(|source| Failure::Token { place: VARIABLE.to_owned(), source }))
}

/// The token in `path`, once it is there.
pub(crate) async fn from_file(path: &Path) -> Result<JoinToken, Failure> {
    let place = path.display().to_string();
    let mut seen: Option<Instant> = None;
    let mut told = false;
    loop {
        match read(path) {
            Ok(text) => match text.parse() {
                Ok(token) => return Ok(token),
                Err(source) if seen.get_or_insert_with(Instant::now).elapsed() >= WRITING => {
                    return Err(Failure::Token { place, source });
                }
                Err(_) => {}
            },
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                seen = None;
                if !std::mem::replace(&mut told, true) {
                    info!(file = place, "waiting for the join token");
                }
            }
            Err(source) => return Err(Failure::TokenFile { path: path.to_owned(), source }),
        }
        sleep(LOOK).await;
    }
}

fn read(path: &Path) -> io::Result<Zeroizing<String>> {
    let mut text = Zeroizing::new(String::new());
    std::fs::File::open(path)?.take(MAX_TOKEN).read_to_string(&mut text)?;
    Ok(text)
}

/// Joins as soon as coordinators can do it, however long that takes; a refusal ends it.
pub(crate) async fn join_at_last(asked: Join) -> Result<Membership, JoinError> {
    let mut pause = FIRST_PAUSE;
    loop {
        match join(asked.clone()).await {
            Err(error) if error.is_temporary() => {
                warn!(%error, "not joined yet, trying again");
                sleep(pause).await;
                pause = (pause * 2).min(LONGEST_PAUSE);
            }
            result => return result,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use mesh_types::{Fingerprint, MeshId, Role, TokenId, TokenSecret};

    fn token() -> JoinToken {
        JoinToken {
            role: Role::Node,
            mesh: MeshId::from_bytes([1; 16]),
            authority: Fingerprint::from_bytes([2; 32]),
            id: TokenId::from_bytes([3; 8]),
            secret: TokenSecret::from_bytes([4; 20]),
            addresses: vec!["192.0.2.1".parse().unwrap()],
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_token_file_is_waited_for_and_half_a_token_is_given_time() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("token");
        let text = token().to_string();
        let reading = from_file(&path);
        tokio::pin!(reading);
        assert!(tokio::time::timeout(LOOK * 3, &mut reading).await.is_err());
        std::fs::write(&path, &text[..20]).unwrap();
        assert!(tokio::time::timeout(LOOK * 3, &mut reading).await.is_err());
        std::fs::write(&path, &text).unwrap();
        assert_eq!(reading.await.unwrap(), token());
    }

    #[tokio::test(start_paused = true)]
    async fn a_file_that_stays_nonsense_is_an_error_naming_it() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("token");
        std::fs::write(&path, "mesh1nonsense").unwrap();
        let error = from_file(&path).await.unwrap_err().to_string();
        assert!(error.contains("token") && error.contains("damaged"), "{error}");
    }
}
