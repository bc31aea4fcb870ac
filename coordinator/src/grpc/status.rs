//! The one place where errors become gRPC status codes. Scripts and `meshctl` tell outcomes apart by them.

use crate::replica::WriteError;
use mesh_coordinator_core::Rejection;
use mesh_proto::WireError;
use tonic::{Code, Status};

impl From<WriteError> for Status {
    fn from(error: WriteError) -> Self {
        match error {
            WriteError::Rejected(rejection) => rejected(&rejection),
            WriteError::NoQuorum { .. } | WriteError::Stopped(_) => Self::unavailable(error.to_string()),
            WriteError::Clock(refusal) => Self::failed_precondition(refusal.to_string()),
            WriteError::Refused(status) => status,
        }
    }
}

/// The status of a refusal by the registry.
pub(super) fn rejected(rejection: &Rejection) -> Status {
    Status::new(code(rejection), rejection.to_string())
}

fn code(rejection: &Rejection) -> Code {
    match rejection {
        Rejection::TokenUnknown
        | Rejection::TokenExpired { .. }
        | Rejection::TokenUsedUp
        | Rejection::TokenRole { .. }
        | Rejection::KeyBarred { .. }
        | Rejection::NodeRemoved(_) => Code::PermissionDenied,
        Rejection::TokenExists(_)
        | Rejection::KeyInUse { .. }
        | Rejection::IdTaken(_)
        | Rejection::NameTaken { .. }
        | Rejection::AlreadyFounded(_) => Code::AlreadyExists,
        Rejection::NodeUnknown(_) | Rejection::CoordinatorUnknown(_) | Rejection::TokenNotListed(_) => Code::NotFound,
        Rejection::TooManyTokens
        | Rejection::AddressesExhausted { .. }
        | Rejection::TooManyNodes
        | Rejection::TooManyCoordinators => Code::ResourceExhausted,
        Rejection::TokenTtl(_)
        | Rejection::TokenUses
        | Rejection::AddressCount(_)
        | Rejection::CertificateSize(_)
        | Rejection::KeyTtl(_)
        | Rejection::OverlayUnusable(_)
        | Rejection::RequestReused => Code::InvalidArgument,
        Rejection::NotFounded
        | Rejection::CoordinatorIdSpent(_)
        | Rejection::LastCoordinator(_)
        | Rejection::NotLastCoordinator { .. }
        | Rejection::MeshEnded(_)
        | Rejection::LevelOrder { .. }
        | Rejection::EpochOrder { .. } => Code::FailedPrecondition,
    }
}

/// The status of a message that was not understood.
pub(super) fn malformed(error: WireError) -> Status {
    Status::invalid_argument(error.to_string())
}

/// The status of a reply that does not answer the command: a bug, or a leader of another version.
pub(super) fn unexpected() -> Status {
    Status::internal("the registry gave another answer than was asked for: run the same version on all coordinators")
}
