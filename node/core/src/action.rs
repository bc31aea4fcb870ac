//! What the core asks of its shell, and the words around it.
//!
//! Actions say what must happen, not how. The shell performs them strictly in order and hands results back in the
//! order in which they came about; a [`Action::Persist`] is on disk before the action behind it begins.

use crate::device::DeviceUpdate;
use crate::journal::Record;
use crate::probe::PROBE_LEN;
use mesh_types::{MeshTime, NodeId, NodeMessage, Overlay, OverlayAddresses};
use std::fmt;
use std::net::IpAddr;
use std::time::Duration;

/// One thing for the shell to do.
#[derive(Clone, PartialEq, Debug)]
pub enum Action {
    /// Append to the journal and sync it, before anything that follows.
    Persist(Record),
    /// Make interface, addresses and routes so. Comes first after the start and whenever it changes.
    Link(DesiredLink),
    /// Read the whole device and answer with `handle_device`, or `handle_device_failed`.
    Read,
    /// Change the device and answer with `handle_applied`, or `handle_device_failed`.
    Apply(DeviceUpdate),
    /// Count the own datagrams that were kept out of the own interface so far, and answer with `handle_dropped`; no answer
    /// if they cannot be counted. Losing it is harmless.
    CountDropped,
    /// Send through the tunnel to [`PROBE_PORT`](crate::probe::PROBE_PORT) of an overlay address. Losing it is harmless.
    SendProbe {
        /// A peer's overlay address.
        to: IpAddr,
        /// The datagram.
        bytes: [u8; PROBE_LEN],
    },
    /// Tell the coordinator of the session; dropped if there is none.
    Say(NodeMessage),
    /// End the session and open one with another coordinator.
    EndSession(EndReason),
    /// Keep the session, but look for a coordinator that has contact to a leader. Repeated while it is so.
    LookElsewhere,
    /// Ask any coordinator to renew the key's lease. Repeated by the core until the netmap shows it done.
    RenewKey,
    /// Ask any coordinator for a new certificate; answer with `handle_certificate`. Repeated by the core until then.
    RenewCertificate,
    /// A ping has ended.
    Pong(Pong),
    /// This node is no longer a member; a [`DesiredLink::Down`] came before.
    Removed,
    /// Something that a person should know, once each time that it becomes true.
    Warn(Warning),
}

/// What the interface should be.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum DesiredLink {
    /// Not there, with all that belongs to it.
    Down,
    /// There and up.
    Up(Link),
}

/// What belongs to the interface beside the WireGuard device.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Link {
    /// The node's own addresses, each as a single host.
    pub addresses: OverlayAddresses,
    /// The ranges to route into the interface.
    pub overlay: Overlay,
}

/// Why a session is of no more use.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum EndReason {
    /// The coordinator follows an earlier or split history, or another mesh.
    WrongHistory,
    /// What came does not connect to what is held: begin anew to be brought up to date.
    OutOfStep,
    /// The coordinator did not keep to the protocol.
    Protocol,
    /// The coordinator does not know this node yet: it is behind.
    Behind,
    /// The coordinator closed it; the reason is its own.
    Closed(mesh_types::session::CloseReason),
}

/// The end of a ping.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Pong {
    /// What `handle_ping` returned.
    pub token: u64,
    /// Who was asked.
    pub peer: NodeId,
    /// From request to reply; `None` if none came in time.
    pub latency: Option<Duration>,
}

/// Something that a person should know.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Warning {
    /// The lease of this node's key ends soon and could not be renewed.
    ExpiresSoon(MeshTime),
    /// The lease of this node's key has ended: no peer talks to it.
    Expired(MeshTime),
    /// Mesh time may be behind: see [`Trust::Behind`](crate::clock::Trust::Behind).
    ClockBehind,
    /// The coordinator of the session has no contact to a leader.
    Stale,
    /// Another daemon runs with this identity.
    DuplicateIdentity,
    /// This node was removed from the mesh.
    Removed,
    /// A coordinator does not know this node.
    Forgotten,
}

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ExpiresSoon(at) => write!(
                f,
                "the lease of this node's key ends at {at} and is not renewed yet: check that a majority of the \
                 coordinators is up and can be reached from here"
            ),
            Self::Expired(at) => write!(
                f,
                "the lease of this node's key ended at {at}, so that no peer talks to it: it is renewed as soon as a \
                 coordinator with a quorum is reached"
            ),
            Self::ClockBehind => f.write_str(
                "the host's clock does not agree with the last known mesh time: until a coordinator is reached, keys may \
                 live longer by the time that this host was off; check the clock",
            ),
            Self::Stale => f.write_str(
                "the coordinator of the session has no contact to a leader: changes of membership are not seen",
            ),
            Self::DuplicateIdentity => f.write_str(
                "another daemon with this node's identity is in the mesh: stop one of the two; a copied state \
                 directory must be emptied and joined anew",
            ),
            Self::Removed => f.write_str(
                "this node was removed from the mesh: `meshctl node allow` on a coordinator lets it back in, \
                 `meshctl leave` forgets the mesh here",
            ),
            Self::Forgotten => f.write_str(
                "a coordinator does not know this node, as after a restore of the registry from before it joined: join \
                 again with a new token, `meshctl join TOKEN`; or that coordinator is one that was left behind",
            ),
        }
    }
}
