//! Caps on everything that is fed from outside, each with its reason.

use crate::time::MeshDuration;

/// Candidates in one presence. A host has a few addresses on a few interfaces; each is a place other nodes send to.
pub const MAX_CANDIDATES: usize = 16;

/// Bytes of a presence payload: sixteen IPv6 candidates take 362; the rest is room for later versions.
pub const MAX_PRESENCE_PAYLOAD: usize = 1024;

/// Addresses that a peer authenticated from and that a node knows for good ones: a laptop goes between home, office and
/// a telephone.
pub const MAX_PROVEN_ADDRESSES: usize = 8;

/// Ranges that a host's links carry through the mesh, beside the overlay: a few routes and bridges. What is more is kept
/// as wider ranges.
pub const MAX_CARRIED_RANGES: usize = 256;

/// How often something may be done: so many times at once, and once more each time that this has passed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Allowance {
    /// Times at once.
    pub burst: u32,
    /// Between one more and the next.
    pub every: MeshDuration,
}

/// Tries of one node to reach one peer: one turn over all its candidates, then no faster than WireGuard repeats a
/// handshake (REKEY_TIMEOUT), however often the peer changes what it lists.
pub const PEER_TRIES: Allowance = Allowance { burst: MAX_CANDIDATES as u32, every: MeshDuration::from_secs(5) };

/// Of these at one address that the peer lists and never authenticated from: a packet may be lost, two in a row seldom
/// are. Whoever is there has not asked for any.
pub const CLAIMED_ADDRESS_TRIES: Allowance = Allowance { burst: 4, every: MeshDuration::from_secs(60) };

/// Presence changes of one node before they are put off. Roaming between two networks every second is far from honest
/// use.
pub const PRESENCE_CHANGES: Allowance = Allowance { burst: 60, every: MeshDuration::from_secs(1) };

/// Sessions that one node opens with one coordinator: each is brought up to date anew. A node whose network flaps dials
/// at once each time; one that fails waits up to five seconds, and a copy of it must not use up what it needs.
pub const SESSION_OPENINGS: Allowance = Allowance { burst: 30, every: MeshDuration::from_secs(1) };

/// Renewals of one node's key: each is a write that a majority syncs to disk. With the shortest lifetime one is due
/// every five seconds, and repeated ever more seldom while it fails.
pub const KEY_RENEWALS: Allowance = Allowance { burst: 10, every: MeshDuration::from_secs(2) };

/// Renewals of one node's certificate: each is a signature with the key of the mesh's CA, due once in months.
pub const CERTIFICATE_RENEWALS: Allowance = Allowance { burst: 5, every: MeshDuration::from_secs(60) };

/// Requests of one node to leave: one is enough, the rest are repeats after lost replies.
pub const LEAVES: Allowance = Allowance { burst: 5, every: MeshDuration::from_secs(10) };

/// Joins with one identity key: the first makes a member, the rest are repeats after lost replies that cost no use of
/// the token, but each a write.
pub const JOINS: Allowance = Allowance { burst: 10, every: MeshDuration::from_secs(10) };

/// Joins with one token that is good: a site with one token brings thousands of machines at once, but each is a write
/// that a majority syncs to disk.
pub const TOKEN_JOINS: Allowance = Allowance { burst: 2_000, every: MeshDuration(5) };

/// Joins from one address with a token that is not known: each may cost a question to the leader, and a few come from
/// people who use an old one.
pub const FAILED_JOINS: Allowance = Allowance { burst: 50, every: MeshDuration::from_secs(1) };

/// Addresses that such joins are counted for at once: more than [`MAX_STRANGERS`] can be connected from, so that only
/// who comes and goes fills it, and each place is free again a minute later.
pub const MAX_SOURCES: usize = 16_384;

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

/// Sessions of one node at once: the live one, and streams of a reconnect that are not told apart yet.
pub const MAX_SESSIONS_PER_NODE: usize = 4;

/// Request ids remembered to make writes idempotent.
pub const MAX_REQUESTS: usize = 4_096;

/// Characters of a software version as another machine states it; longer ones are cut.
pub const MAX_SOFTWARE: usize = 64;

/// TLS handshakes under way at once on one listener: each ends within seconds. All that callers can do who are nobody yet
/// takes some 30 MiB: measured at worst, these have 52 KiB each, 13 MiB, and [`MAX_STRANGERS`] 117 KiB each, 15 MiB, with a
/// call, a head and a TLS record all but complete. What the kernel keeps for them is bounded by
/// [`STRANGER_SOCKET_BUFFER`].
pub const MAX_HANDSHAKES: usize = 256;

/// Bytes that are read of a caller before its handshake is done: with hybrid key exchange and two certificates it takes
/// some 4 KiB, and what follows at once is read with it, up to a TLS record of 16 KiB.
pub const HANDSHAKE_BYTES: usize = 32 << 10;

/// Connections without a certificate at once on one listener: machines that join, each for a second or so.
pub const MAX_STRANGERS: usize = 128;

/// Connections without a certificate whose callers showed a valid join token: each waits for a write. They are no
/// strangers any more, and have their own 15 MiB at worst.
pub const MAX_JOINERS: usize = 128;

/// Calls on one connection without a certificate: a challenge and a join, and some repeats.
pub const MAX_STRANGER_CALLS: usize = 16;

/// Bytes of one call without a certificate: a join with the largest certificate request and, of a coordinator, all its
/// addresses.
pub const MAX_STRANGERS_CALL: u32 = 12 << 10;

/// Bytes that the kernel keeps for each direction of a connection that is nobody's yet; it takes twice as much.
pub const STRANGER_SOCKET_BUFFER: usize = 16 << 10;

/// Descriptors that no caller gets: of the store, the log, local sockets, and connections from and to coordinators.
pub const RESERVED_DESCRIPTORS: usize = 128;

/// Connections of one user of this host to one local socket: commands and scripts, each with one.
pub const MAX_LOCAL_CONNECTIONS_PER_USER: usize = 32;

/// Connections that show one certificate at once on one listener: a member has one or two, and for some seconds those
/// that it lost by moving about.
pub const MAX_CONNECTIONS_PER_MEMBER: usize = 32;

/// Removed nodes whose id and keys stay barred. The oldest are forgotten beyond it: without a join token they cannot
/// come back either way.
pub const MAX_REMOVED: usize = MAX_NODES;

/// Coordinators that were removed and whose keys stay barred; replacing one is a rare, manual act.
pub const MAX_FORMER_COORDINATORS: usize = 256;

/// Changes in one delta, so that it stays under gRPC's 4 MiB; who lacks more gets a snapshot in pages.
pub const MAX_DELTA: usize = 4_096;

/// Presence records of nodes that the registry does not know yet: a burst of joins that reached other replicas first.
pub const MAX_EARLY_PRESENCE: usize = 1_024;

/// Buckets in a presence digest that are compared; more come from no version of ours.
pub const MAX_DIGEST_BUCKETS: usize = 4_096;

/// Shortest key lifetime: below it nodes would do little but renew.
pub const MIN_KEY_TTL: MeshDuration = MeshDuration::from_secs(10);

/// Longest key lifetime: ten years; a freed address rests as long.
pub const MAX_KEY_TTL: MeshDuration = MeshDuration::from_secs(10 * 365 * 86_400);

/// Longest time to live of a join token: a year.
pub const MAX_TOKEN_TTL: MeshDuration = MeshDuration::from_secs(365 * 86_400);

/// Presence records that a node keeps for nodes whose record has not come yet: the two travel independently, but
/// never far apart.
pub const MAX_PENDING_PRESENCE: usize = 1_024;

/// Addresses of coordinators that a node keeps from join tokens: all of the latest two.
pub const MAX_NAMED_PLACES: usize = 4 * MAX_COORDINATORS;

/// Pings of a node that are under way at once; each is a person or a script that waits two seconds at most.
pub const MAX_PINGS: usize = 256;

/// Probes of one peer that a node answers: a second's worth at once, and twice what the fastest `meshctl ping` sends. Each
/// is a datagram and a turn of the daemon's loop, which are there for all peers.
pub const PROBE_ANSWERS: Allowance = Allowance { burst: 200, every: MeshDuration(5) };
