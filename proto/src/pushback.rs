//! The answer "not so often": one status for all calls, with the time after which it may be tried again.
//!
//! The same code also stands for a registry that is full, which waiting does not change: the time tells the two apart.

use std::time::Duration;
use tonic::{Code, Status};

/// As gRPC names it in its retry design (A6); milliseconds.
const KEY: &str = "grpc-retry-pushback-ms";

/// Refuses a call that came too soon after others like it.
pub fn try_again(what: &str, after: Duration) -> Status {
    let seconds = after.as_millis().div_ceil(1_000).max(1);
    let mut status = Status::new(Code::ResourceExhausted, format!("{what} too often: try again in {seconds} s"));
    status.metadata_mut().insert(KEY, u64::try_from(after.as_millis()).unwrap_or(u64::MAX).into());
    status
}

/// When a refused call may be tried again; none if it was refused for another reason.
pub fn retry_after(status: &Status) -> Option<Duration> {
    let millis = status.metadata().get(KEY).filter(|_| status.code() == Code::ResourceExhausted)?;
    millis.to_str().ok()?.parse().ok().map(Duration::from_millis)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_comes_too_often_is_told_when_to_try_again_and_who_is_refused_for_good_is_not() {
        let status = try_again("this node renews its key", Duration::from_millis(1_200));
        assert_eq!(status.message(), "this node renews its key too often: try again in 2 s");
        assert_eq!(retry_after(&status), Some(Duration::from_millis(1_200)));
        assert_eq!(retry_after(&Status::resource_exhausted("the overlay has no free address")), None);
    }
}
