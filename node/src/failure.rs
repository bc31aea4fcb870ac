//! What ends the daemon, and the one place that turns it into an exit code.

use crate::daemon::journal::JournalError;
use crate::daemon::member::MemberError;
use crate::device::DeviceError;
use crate::guard::GuardError;
use crate::host::HostError;
use crate::join::JoinError;
use crate::link::LinkError;
use crate::refusal::Refusal;
use crate::state::StateError;
use mesh_proto::local::LocalError;
use mesh_types::token::ParseTokenError;
use std::io;
use std::path::PathBuf;
use std::process::ExitCode;
use thiserror::Error;

/// Why the daemon ended by itself.
#[derive(Debug, Error)]
pub enum Failure {
    /// The state directory.
    #[error(transparent)]
    State(#[from] StateError),
    /// The socket of the local API.
    #[error(transparent)]
    Socket(#[from] LocalError),
    /// The group of the socket.
    #[error("--socket-group {0}: there is no such group; make it with `groupadd {0}`")]
    Group(String),
    /// The membership.
    #[error(transparent)]
    Member(#[from] MemberError),
    /// The host.
    #[error(transparent)]
    Host(HostError),
    /// The underlay cannot be watched.
    #[error(transparent)]
    Link(#[from] LinkError),
    /// The guard.
    #[error(transparent)]
    Guard(#[from] GuardError),
    /// The token that came with the start is none.
    #[error("{place}: {source}")]
    Token {
        /// Where it came from.
        place: String,
        /// What is wrong with it.
        source: ParseTokenError,
    },
    /// The file of the token cannot be read.
    #[error("cannot read the join token in {path}: {source}")]
    TokenFile {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The token that came with the start was refused.
    #[error("not joined: {0}")]
    Refused(String),
    /// The engine alone.
    #[error(transparent)]
    Engine(#[from] DeviceError),
    /// The socket for `wg(8)`.
    #[error("cannot listen for wg(8): {0}")]
    Uapi(io::Error),
    /// The engine that was started in the background has ended with this exit code.
    #[error("the engine in the background has ended: see above")]
    Detached(u8),
    /// The runtime.
    #[error("cannot start: {0}")]
    Start(io::Error),
}

impl Failure {
    /// What a failed join at the start means for the daemon.
    pub(crate) fn from_refusal(refusal: Refusal) -> Self {
        match refusal {
            Refusal::Host(error) => Self::Host(error),
            Refusal::State(error) => Self::State(error),
            Refusal::Join(JoinError::Link(error)) => Self::Link(error),
            other => Self::Refused(other.to_string()),
        }
    }

    /// The exit code, as `meshd --help` lists them.
    pub fn exit_code(&self) -> ExitCode {
        ExitCode::from(self.code())
    }

    fn code(&self) -> u8 {
        match self {
            Self::State(error) => state_code(error),
            Self::Member(MemberError::Journal(JournalError::State(error))) => state_code(error),
            Self::Member(_) => 5,
            Self::Socket(LocalError::InUse(_)) => 4,
            Self::Socket(LocalError::Permission(_)) => 3,
            Self::Host(error) if error.is_permission() => 3,
            Self::Host(error) if error.is_taken() => 4,
            Self::Link(LinkError::Privilege { .. }) => 3,
            Self::Guard(GuardError::Device(DeviceError::Privilege { .. }))
            | Self::Engine(DeviceError::Privilege { .. }) => 3,
            Self::Engine(error) if error.is_taken() => 4,
            Self::Detached(code) => *code,
            Self::Group(_) | Self::Token { .. } => 2,
            Self::Refused(_) => 6,
            Self::Socket(_)
            | Self::Host(_)
            | Self::Link(_)
            | Self::Guard(_)
            | Self::TokenFile { .. }
            | Self::Engine(_)
            | Self::Uapi(_)
            | Self::Start(_) => 1,
        }
    }
}

fn state_code(error: &StateError) -> u8 {
    match error {
        StateError::InUse(_) => 4,
        error if error.is_permission() => 3,
        StateError::Damaged { .. } | StateError::KeyMissing(_) | StateError::Newer { .. } => 5,
        StateError::Io { .. } => 1,
    }
}
