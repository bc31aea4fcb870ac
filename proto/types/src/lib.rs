//! The words of the mesh: plain domain types that cannot hold nonsense.
//!
//! Everything that enters the product from a wire, a disk or a command line is parsed into one of these once, at the
//! edge, and trusted from there on. Nothing here does I/O, reads a clock or makes randomness.

mod bytes;
pub mod candidate;
pub mod coordinator;
pub mod digest;
pub mod epoch;
pub mod exchange;
pub mod id;
pub mod key;
pub mod limits;
pub mod name;
pub mod netmap;
pub mod overlay;
pub mod presence;
pub mod session;
pub mod time;
pub mod token;

pub use candidate::{Candidate, CandidateKind};
pub use coordinator::{CoordinatorAddress, CoordinatorRecord};
pub use digest::PresenceDigest;
pub use epoch::{Epoch, Level, Revision};
pub use exchange::{Answer, ExchangeMessage, OnlineNode, OnlineNodes};
pub use id::{CoordinatorId, Incarnation, MeshId, NodeId, RequestId, TokenId};
pub use key::{Fingerprint, IdentityKey, PresharedKey, PrivateKey, PublicKey, Signature, TokenSecret};
pub use name::NodeName;
pub use netmap::{Changes, MeshConfig, NodeRecord, NodeState};
pub use overlay::{AllowedIp, Overlay, OverlayAddresses};
pub use presence::{Presence, SignedPresence};
pub use session::{Claim, CoordinatorMessage, NodeMessage};
pub use time::{MeshDuration, MeshTime};
pub use token::{JoinToken, Role};
