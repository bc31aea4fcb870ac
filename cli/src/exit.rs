//! Exit codes, and the one place where what went wrong becomes one of them.

use std::fmt;
use std::process::ExitCode;
use tonic::{Code, Status};

/// How `meshctl` ends. The numbers are stable.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub(crate) enum Exit {
    /// Done, or was so already.
    Done = 0,
    /// Failed for a reason that has no code of its own.
    Failed = 1,
    /// Called in a way it does not understand.
    Usage = 2,
    /// Not permitted: not root, no access to a socket, no right to make namespaces.
    Permission = 3,
    /// The daemon on this host does not run, or does not answer.
    NotRunning = 4,
    /// No coordinator can be reached, or they have no quorum; may work later.
    Unreachable = 5,
    /// Refused, and will be refused again: token expired or used up, name taken, not a member.
    Refused = 6,
    /// What was named does not exist.
    NotFound = 7,
    /// Ended by Ctrl-C.
    Interrupted = 130,
}

/// The table of exit codes, for `--help`.
pub(crate) const EXIT_CODES: &str = "\
Exit codes:
  0  done, or was so already
  1  failed
  2  wrong arguments
  3  not permitted (not root, no access to a socket)
  4  the daemon on this host does not run, or does not answer
  5  no coordinator reachable, or no quorum: may work later
  6  refused (token expired or used up, name taken, not a member)
  7  not found";

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

/// Why a verb failed: for people in words, for scripts as a code.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Failure {
    /// The code.
    pub(crate) exit: Exit,
    /// What went wrong, and what to do next.
    pub(crate) message: String,
}

impl Failure {
    /// A failure with this code and these words.
    pub(crate) fn new(exit: Exit, message: impl Into<String>) -> Self {
        Self { exit, message: message.into() }
    }

    /// A call that is not understood.
    pub(crate) fn usage(message: impl Into<String>) -> Self {
        Self::new(Exit::Usage, message)
    }

    /// What a daemon answered. Its words already say what to do next.
    pub(crate) fn from_status(status: &Status) -> Self {
        let exit = match status.code() {
            Code::InvalidArgument => Exit::Usage,
            Code::NotFound => Exit::NotFound,
            Code::PermissionDenied => Exit::Permission,
            Code::Unavailable | Code::DeadlineExceeded => Exit::Unreachable,
            Code::FailedPrecondition | Code::AlreadyExists | Code::ResourceExhausted | Code::Unauthenticated => {
                Exit::Refused
            }
            _ => Exit::Failed,
        };
        Self::new(exit, status.message())
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Failure {}

/// An error without a code of its own, with all its causes.
impl From<anyhow::Error> for Failure {
    fn from(error: anyhow::Error) -> Self {
        match error.downcast::<Self>() {
            Ok(failure) => failure,
            Err(error) => Self::new(Exit::Failed, format!("{error:#}")),
        }
    }
}

impl From<Status> for Failure {
    fn from(status: Status) -> Self {
        Self::from_status(&status)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_may_work_later_is_told_apart_from_what_will_not() {
        let exit = |status: Status| Failure::from_status(&status).exit;
        assert_eq!(exit(Status::unavailable("no quorum")), Exit::Unreachable);
        assert_eq!(exit(Status::failed_precondition("token used up")), Exit::Refused);
        assert_eq!(exit(Status::not_found("node")), Exit::NotFound);
        assert_eq!(exit(Status::permission_denied("not root")), Exit::Permission);
        assert_eq!(exit(Status::internal("bug")), Exit::Failed);
    }

    #[test]
    fn a_failure_keeps_its_code_through_anyhow() {
        let failure = Failure::new(Exit::NotFound, "no node x");
        assert_eq!(Failure::from(anyhow::Error::from(failure.clone())), failure);
        assert_eq!(Failure::from(anyhow::anyhow!("inner").context("outer")).message, "outer: inner");
    }

    #[test]
    fn every_code_is_in_the_help() {
        for exit in [Exit::Done, Exit::Failed, Exit::Usage, Exit::Permission, Exit::NotRunning] {
            assert!(EXIT_CODES.contains(&format!("\n  {}  ", exit as u8)));
        }
        for exit in [Exit::Unreachable, Exit::Refused, Exit::NotFound] {
            assert!(EXIT_CODES.contains(&format!("\n  {}  ", exit as u8)));
        }
    }
}
