//! The node: ties netmap, presence, paths, probes and deadlines together.
//!
//! Life-cycle: made from what joining brought and what the journal remembers; then every event goes in through one
//! `handle_*`, after each of which the shell drains [`Node::poll_action`] in order and sets its one timer to
//! [`Node::poll_timeout`]. Device operations are answered in the order in which they were asked for.
//!
//! It owns what it decides and nothing else: the device is looked at, never assumed.

use crate::action::Action;
use crate::clock::{BootTime, Now};
use crate::device::ActualDevice;
use crate::journal::{Cache, Intent};
use crate::status::Status;
use ed25519_dalek::SigningKey;
use mesh_types::session::Hello;
use mesh_types::{CoordinatorMessage, Level, MeshConfig, MeshTime, NodeId, NodeRecord, PrivateKey, Revision};
use std::collections::VecDeque;
use std::net::IpAddr;
use thiserror::Error;

/// What a node is made of.
pub struct Setup {
    /// Its own record, as told at join; a newer one in the netmap replaces it.
    pub record: NodeRecord,
    /// The settings, as told at join; those in the journal replace them.
    pub config: MeshConfig,
    /// Signs its presence.
    pub identity: SigningKey,
    /// Its WireGuard key.
    pub private_key: PrivateKey,
    /// UDP port of the device.
    pub listen_port: u16,
    /// Mark on the device's packets; 0 is none.
    pub fwmark: u32,
    /// Software version, for people.
    pub software: String,
    /// Random for each start of the daemon.
    pub instance: u64,
    /// Random; jitter and probe tokens come from it.
    pub seed: u64,
    /// Of its certificate, if the core shall ask for a new one in time.
    pub certificate: Option<Validity>,
}

/// When a certificate is valid.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Validity {
    /// From.
    pub not_before: MeshTime,
    /// Until.
    pub not_after: MeshTime,
}

/// What becomes of the session.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SessionEvent {
    /// The stream is open and `hello()` was sent on it. Any earlier session is forgotten.
    Opened,
    /// The stream has ended, however.
    Closed,
}

/// Why a ping cannot be.
#[derive(Debug, Error, PartialEq, Eq, Clone, Copy)]
pub enum PingError {
    /// No such member.
    #[error("no peer with id {0} in the netmap")]
    UnknownPeer(NodeId),
    /// The interface is down.
    #[error("the interface is down: `meshctl up` brings it back")]
    Down,
    /// More pings under way than are kept.
    #[error("too many pings under way: try again in a moment")]
    TooMany,
}

/// A node's state and its decisions.
pub struct Node {
    setup: Setup,
    cache: Cache,
    actions: VecDeque<Action>,
}

impl Node {
    /// Begins a life of the node. The first actions tell the shell to make the interface and read the device.
    pub fn new(setup: Setup, cache: Cache, now: Now) -> Self {
        let _ = now;
        Self { setup, cache, actions: VecDeque::new() }
    }

    /// What to say first on a new session.
    pub fn hello(&self) -> Hello {
        Hello {
            mesh: self.cache.mesh,
            epoch: self.cache.netmap.as_ref().map(|n| n.epoch),
            revision: self.cache.netmap.as_ref().map_or(Revision::NONE, |n| n.revision),
            level: Level::SUPPORTED,
            instance: self.setup.instance,
            software: self.setup.software.clone(),
        }
    }

    /// Takes what became of the session.
    pub fn handle_session(&mut self, _event: SessionEvent, _now: Now) {}

    /// Takes a message of the session's coordinator.
    pub fn handle_message(&mut self, _message: CoordinatorMessage, _now: Now) {}

    /// Takes the addresses of the host's own interfaces, all of them, whenever they may have changed.
    pub fn handle_underlay(&mut self, _addresses: Vec<IpAddr>, _now: Now) {}

    /// Takes the answer to [`Action::Read`].
    pub fn handle_device(&mut self, _actual: ActualDevice, _now: Now) {}

    /// Takes the news that an [`Action::Apply`] was done.
    pub fn handle_applied(&mut self, _now: Now) {}

    /// Takes the news that an [`Action::Read`] or [`Action::Apply`] failed; it is tried again after a while.
    pub fn handle_device_failed(&mut self, _now: Now) {}

    /// Takes a datagram that came to the probe port through the tunnel.
    pub fn handle_probe(&mut self, _from: IpAddr, _bytes: &[u8], _now: Now) {}

    /// Probes a peer once; the returned token comes back in [`Action::Pong`] within two seconds.
    pub fn handle_ping(&mut self, peer: NodeId, _now: Now) -> Result<u64, PingError> {
        Err(PingError::UnknownPeer(peer))
    }

    /// Takes the interface down or up again, and remembers it.
    pub fn handle_intent(&mut self, _intent: Intent, _now: Now) {}

    /// Takes the validity of a new certificate.
    pub fn handle_certificate(&mut self, validity: Validity, _now: Now) {
        self.setup.certificate = Some(validity);
    }

    /// Does what is due. Harmless when nothing is.
    pub fn handle_timeout(&mut self, _now: Now) {}

    /// When `handle_timeout` is next needed.
    pub fn poll_timeout(&self) -> Option<BootTime> {
        None
    }

    /// The next thing to do.
    pub fn poll_action(&mut self) -> Option<Action> {
        self.actions.pop_front()
    }

    /// The peer with this name, overlay address or id.
    pub fn find_peer(&self, text: &str) -> Option<&NodeRecord> {
        let nodes = &self.cache.netmap.as_ref()?.nodes;
        nodes.values().find(|n| {
            n.name.as_str().eq_ignore_ascii_case(text)
                || n.id.to_string() == text
                || text.parse().is_ok_and(|ip: IpAddr| n.addresses.iter().any(|a| a == ip))
        })
    }

    /// All that the node remembers, for compacting the journal.
    pub fn cache(&self) -> &Cache {
        &self.cache
    }

    /// The settings held: ranges, authorities, coordinators.
    pub fn config(&self) -> &MeshConfig {
        self.cache.netmap.as_ref().map_or(&self.setup.config, |n| &n.config)
    }

    /// Mesh time, also for judging certificates.
    pub fn mesh_time(&self, now: Now) -> MeshTime {
        now.wall
    }

    /// The picture for people.
    pub fn status(&self, _now: Now) -> Status {
        unreachable!("filled in with the next change")
    }
}
