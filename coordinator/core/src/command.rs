//! What the replicated log is made of: domain commands, each stamped by its proposer with time and randomness.
//!
//! A command is proposed as a [`Proposal`], stamped by the leader into an [`Entry`], replicated, and applied by every
//! replica in the same order. Both have a byte form with a fixed head, so that a replica learns that it does not know a
//! command before it tries to read it: it then stops, and never skips. Nothing here decides whether a command is
//! granted; the registry does.
//!
//! Layout of an entry, integers big-endian: format (1 byte), level (4), kind (2), time (8), request id (1 and, if that
//! is 1, 16), then the command's fields in CBOR. A proposal has its own format byte, and no level and time.

use crate::codec::{self, DecodeError, Reader};
use mesh_types::netmap::Certificate;
use mesh_types::{
    CoordinatorAddress, CoordinatorId, CoordinatorRecord, Epoch, Fingerprint, IdentityKey, Level, MeshDuration, MeshId,
    MeshTime, NodeId, NodeName, Overlay, PublicKey, RequestId, Role, TokenId,
};
use serde::{Deserialize, Serialize};

const ENTRY_FORMAT: u8 = 1;
const PROPOSAL_FORMAT: u8 = 0x81;

/// A command on its way to the leader.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Proposal {
    /// Makes asking twice do it once; absent where the command itself is idempotent.
    pub request: Option<RequestId>,
    /// What is wanted.
    pub command: Command,
}

/// A command in the log.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Entry {
    /// The language it is written in.
    pub level: Level,
    /// The proposer's clock, guarded by [`crate::clock::ClockGuard`].
    pub time: MeshTime,
    /// Makes asking twice do it once.
    pub request: Option<RequestId>,
    /// What is wanted.
    pub command: Command,
}

/// Everything that can change the registry.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Command {
    /// Makes the mesh; only on an empty registry.
    Found(Found),
    /// Lets machines join.
    CreateToken(CreateToken),
    /// Ends a token early.
    RevokeToken(RevokeToken),
    /// Makes a machine a node, or gives a node its identity again.
    Join(Join),
    /// Makes a machine a coordinator.
    JoinCoordinator(JoinCoordinator),
    /// Begins a node's lease anew.
    RenewKey(RenewKey),
    /// Gives a node another name.
    RenameNode(RenameNode),
    /// Takes a node out and bars its id and keys.
    RemoveNode(RemoveNode),
    /// Undoes a removal: the node is a member again, under its id.
    AllowNode(AllowNode),
    /// Tells where a coordinator answers from now on.
    SetCoordinatorAddresses(SetCoordinatorAddresses),
    /// Takes a coordinator out; its id is never used again.
    RemoveCoordinator(RemoveCoordinator),
    /// Sets how long keys live from their next renewal.
    SetKeyTtl(SetKeyTtl),
    /// Lets the log use a later language.
    RaiseLevel(RaiseLevel),
    /// Begins another history after a restore or a recovery.
    OpenEpoch(OpenEpoch),
}

/// Fields of [`Command::Found`].
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, Debug)]
#[serde(deny_unknown_fields)]
pub struct Found {
    /// Random.
    pub mesh: MeshId,
    /// Where node addresses come from.
    pub overlay: Overlay,
    /// The mesh CA's certificate.
    pub authority: Certificate,
    /// The first history.
    pub epoch: Epoch,
    /// How long keys live.
    pub key_ttl: MeshDuration,
    /// The first coordinator.
    pub coordinator: CoordinatorRecord,
}

/// Fields of [`Command::CreateToken`].
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, Debug)]
#[serde(deny_unknown_fields)]
pub struct CreateToken {
    /// Random.
    pub id: TokenId,
    /// Of the random secret.
    pub secret_hash: Fingerprint,
    /// What it lets its holder become.
    pub role: Role,
    /// How long it works.
    pub ttl: MeshDuration,
    /// How many machines may use it.
    pub uses: u32,
}

/// Fields of [`Command::RevokeToken`].
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, Debug)]
#[serde(deny_unknown_fields)]
pub struct RevokeToken {
    /// Which.
    pub id: TokenId,
}

/// Fields of [`Command::Join`]. The proposer has checked possession of both private keys.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, Debug)]
#[serde(deny_unknown_fields)]
pub struct Join {
    /// The token shown.
    pub token: TokenId,
    /// Of the secret shown.
    pub secret_hash: Fingerprint,
    /// Random; used if the machine is new.
    pub node: NodeId,
    /// The WireGuard key.
    pub public_key: PublicKey,
    /// The identity key.
    pub identity_key: IdentityKey,
    /// Wished for; suffixed on collision.
    pub name: NodeName,
}

/// Fields of [`Command::JoinCoordinator`]. The proposer has checked possession of the identity's private key.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, Debug)]
#[serde(deny_unknown_fields)]
pub struct JoinCoordinator {
    /// The token shown.
    pub token: TokenId,
    /// Of the secret shown.
    pub secret_hash: Fingerprint,
    /// The key of its certificate.
    pub identity_key: IdentityKey,
    /// Wished for; suffixed on collision.
    pub name: NodeName,
    /// Where it answers.
    pub addresses: Vec<CoordinatorAddress>,
}

/// Fields of [`Command::RenewKey`].
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, Debug)]
#[serde(deny_unknown_fields)]
pub struct RenewKey {
    /// Who.
    pub node: NodeId,
}

/// Fields of [`Command::RenameNode`].
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, Debug)]
#[serde(deny_unknown_fields)]
pub struct RenameNode {
    /// Who.
    pub node: NodeId,
    /// Refused if another has it.
    pub name: NodeName,
}

/// Fields of [`Command::RemoveNode`].
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, Debug)]
#[serde(deny_unknown_fields)]
pub struct RemoveNode {
    /// Who.
    pub node: NodeId,
}

/// Fields of [`Command::AllowNode`].
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, Debug)]
#[serde(deny_unknown_fields)]
pub struct AllowNode {
    /// Who.
    pub node: NodeId,
}

/// Fields of [`Command::SetCoordinatorAddresses`].
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, Debug)]
#[serde(deny_unknown_fields)]
pub struct SetCoordinatorAddresses {
    /// Which.
    pub coordinator: CoordinatorId,
    /// All of them, in order of preference.
    pub addresses: Vec<CoordinatorAddress>,
}

/// Fields of [`Command::RemoveCoordinator`].
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, Debug)]
#[serde(deny_unknown_fields)]
pub struct RemoveCoordinator {
    /// Which.
    pub coordinator: CoordinatorId,
    /// It is the last one, and the mesh ends with it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub destroy: bool,
}

/// Fields of [`Command::SetKeyTtl`].
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, Debug)]
#[serde(deny_unknown_fields)]
pub struct SetKeyTtl {
    /// From [`mesh_types::limits::MIN_KEY_TTL`] to [`mesh_types::limits::MAX_KEY_TTL`].
    pub ttl: MeshDuration,
}

/// Fields of [`Command::RaiseLevel`]. The proposer has asked every member whether it understands the level.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, Debug)]
#[serde(deny_unknown_fields)]
pub struct RaiseLevel {
    /// The language from the next entry on.
    pub level: Level,
}

/// Fields of [`Command::OpenEpoch`].
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, Debug)]
#[serde(deny_unknown_fields)]
pub struct OpenEpoch {
    /// Its counter is above the present one's.
    pub epoch: Epoch,
    /// Whether outstanding tokens end: after a restore their uses are not known any more.
    pub void_tokens: bool,
    /// The only coordinator that goes on.
    pub coordinator: CoordinatorRecord,
}

impl Proposal {
    /// A proposal without request id.
    pub fn new(command: Command) -> Self {
        Self { request: None, command }
    }

    /// The entry that the leader appends: `level` is the registry's, `time` the guarded clock's.
    pub fn stamp(self, level: Level, time: MeshTime) -> Entry {
        Entry { level, time, request: self.request, command: self.command }
    }

    /// The byte form.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = vec![PROPOSAL_FORMAT];
        out.extend_from_slice(&self.command.kind().to_be_bytes());
        put_request(&mut out, self.request);
        self.command.encode_fields(&mut out);
        out
    }

    /// Reads the byte form. Unknown formats, commands and fields are errors, never skipped.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let mut reader = Reader::new(bytes);
        reader.format("proposal", PROPOSAL_FORMAT)?;
        let kind = u16::from_be_bytes(reader.take()?);
        let request = take_request(&mut reader)?;
        Ok(Self { request, command: Command::decode_fields(kind, reader.rest())? })
    }
}

impl Entry {
    /// The byte form.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = vec![ENTRY_FORMAT];
        out.extend_from_slice(&self.level.0.to_be_bytes());
        out.extend_from_slice(&self.command.kind().to_be_bytes());
        out.extend_from_slice(&self.time.0.to_be_bytes());
        put_request(&mut out, self.request);
        self.command.encode_fields(&mut out);
        out
    }

    /// Reads the byte form. On any error the replica must stop before applying: what it cannot read, others applied.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        Self::decode_within(Level::SUPPORTED, bytes)
    }

    /// Does the same for a replica that understands up to another level than this binary.
    pub fn decode_within(understood: Level, bytes: &[u8]) -> Result<Self, DecodeError> {
        let mut reader = Reader::new(bytes);
        reader.format("log entry", ENTRY_FORMAT)?;
        let level = codec::within(understood, Level(u32::from_be_bytes(reader.take()?)))?;
        let kind = u16::from_be_bytes(reader.take()?);
        let time = MeshTime(u64::from_be_bytes(reader.take()?));
        let request = take_request(&mut reader)?;
        let command = Command::decode_fields(kind, reader.rest())?;
        if let Command::RaiseLevel(raise) = &command {
            codec::within(understood, raise.level)?;
        }
        Ok(Self { level, time, request, command })
    }
}

fn put_request(out: &mut Vec<u8>, request: Option<RequestId>) {
    out.push(u8::from(request.is_some()));
    if let Some(request) = request {
        out.extend_from_slice(request.as_bytes());
    }
}

fn take_request(reader: &mut Reader<'_>) -> Result<Option<RequestId>, DecodeError> {
    match reader.take()? {
        [0] => Ok(None),
        [1] => Ok(Some(RequestId::from_bytes(reader.take()?))),
        _ => Err(DecodeError::Malformed("log entry", "request id flag is neither 0 nor 1".into())),
    }
}

/// One line for each command: its number in the log, for ever, and its fields.
macro_rules! commands {
    ($($kind:literal => $name:ident),+ $(,)?) => {
        impl Command {
            /// The number in the log; never given to another command.
            pub const fn kind(&self) -> u16 {
                match self { $(Self::$name(_) => $kind),+ }
            }

            /// The name, for logs.
            pub const fn name(&self) -> &'static str {
                match self { $(Self::$name(_) => stringify!($name)),+ }
            }

            pub(crate) fn encode_fields(&self, out: &mut Vec<u8>) {
                match self { $(Self::$name(fields) => codec::put_cbor(out, fields)),+ }
            }

            fn decode_fields(kind: u16, bytes: &[u8]) -> Result<Self, DecodeError> {
                match kind {
                    $($kind => codec::from_cbor(stringify!($name), bytes).map(Self::$name),)+
                    unknown => Err(DecodeError::UnknownCommand(unknown)),
                }
            }
        }

        $(impl From<$name> for Command {
            fn from(fields: $name) -> Self {
                Self::$name(fields)
            }
        })+
    };
}

commands! {
    1 => Found,
    2 => CreateToken,
    3 => RevokeToken,
    4 => Join,
    5 => JoinCoordinator,
    6 => RenewKey,
    7 => RenameNode,
    8 => RemoveNode,
    9 => AllowNode,
    10 => SetCoordinatorAddresses,
    11 => RemoveCoordinator,
    12 => SetKeyTtl,
    13 => RaiseLevel,
    14 => OpenEpoch,
}
