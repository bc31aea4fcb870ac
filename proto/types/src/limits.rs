//! Caps on everything that is fed from outside, each with its reason.

/// Candidates in one presence. A host has a few addresses on a few interfaces; each is a place other nodes send to.
pub const MAX_CANDIDATES: usize = 16;

/// Bytes of a presence payload: sixteen IPv6 candidates take 362; the rest is room for later versions.
pub const MAX_PRESENCE_PAYLOAD: usize = 1024;

/// Presence changes that one node may make a minute before they are dropped. Roaming between two networks every
/// second is far from honest use.
pub const MAX_PRESENCE_CHANGES_PER_MINUTE: u32 = 60;

/// Nodes in one mesh: the registry lives in memory, a full mesh beyond this is not sensible.
pub const MAX_NODES: usize = 65_536;

/// Node records in one snapshot page: about 200 bytes each, so that a page stays well under gRPC's 4 MiB.
pub const SNAPSHOT_PAGE: usize = 1_000;

/// Presence records in one message, for the same reason.
pub const PRESENCE_BATCH: usize = 500;

/// Coordinators in one mesh: Raft's write cost grows with each; beyond seven no availability is gained.
pub const MAX_COORDINATORS: usize = 7;

/// Addresses of one coordinator: both families, inside and outside, and names.
pub const MAX_COORDINATOR_ADDRESSES: usize = 8;

/// Join tokens outstanding at once.
pub const MAX_TOKENS: usize = 4_096;

/// Longest DNS name in presentation form (RFC 1035, 2.3.4).
pub const MAX_HOST_NAME: usize = 253;

/// CA certificates in trust at once: the present one, the next one, and room.
pub const MAX_AUTHORITIES: usize = 4;

/// Bytes of one certificate or certificate request. Ours have some 500.
pub const MAX_CERTIFICATE: usize = 8_192;

/// Messages waiting for one session's reader before it is cut and has to resynchronise.
pub const SESSION_QUEUE: usize = 256;

/// Sessions one coordinator keeps: more than a mesh may have nodes.
pub const MAX_SESSIONS: usize = MAX_NODES;

/// Request ids remembered to make writes idempotent.
pub const MAX_REQUESTS: usize = 4_096;
