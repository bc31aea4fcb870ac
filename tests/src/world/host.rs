//! One node of the world: the real core, with a disk, a WireGuard device and clocks that are its own.

use super::network::Host;
use super::rng::Rng;
use super::wireguard::Device;
use ed25519_dalek::SigningKey;
use mesh_coordinator_core::hub::SessionId;
use mesh_node_core::journal::{self, Cache};
use mesh_node_core::{BootTime, Node, Now, Setup, Validity, Warning};
use mesh_types::{
    CoordinatorId, IdentityKey, MeshConfig, MeshDuration, MeshTime, NodeId, NodeRecord, PrivateKey, PublicKey,
};
use mesh_types::{NodeName, Revision};
use std::collections::BTreeMap;

/// A machine with a node on it.
pub struct Machine {
    /// Its place on the network.
    pub host: Host,
    /// The member that it is, once it has joined.
    pub record: NodeRecord,
    /// Signs its presence.
    pub identity: SigningKey,
    /// The daemon, while it runs.
    pub node: Option<Node>,
    /// The interface; a kernel's survives the daemon.
    pub device: Device,
    /// Whether the device is the kernel's.
    pub kernel: bool,
    /// Until when the kernel picks the overlay address as source of what it sends: its primary address was just replaced.
    pub wrong_source_until: u64,
    /// Whether the daemon has just looked at its device.
    pub looked: bool,
    /// Datagrams that its drop rule kept out of its own tunnel.
    pub dropped: u64,
    /// The journal, as far as it was synced.
    pub disk: Vec<u8>,
    /// The session, as the node's end sees it.
    pub session: Option<(SessionId, CoordinatorId)>,
    /// Milliseconds that the host's wall clock is ahead of the right time.
    pub skew: i64,
    /// Whether its wall clock ever jumped: then it may see deadlines early when it starts without a coordinator.
    pub clock_jumped: bool,
    /// The highest revision that it ever held, to see that it never goes back.
    pub highest: Revision,
    /// Whether the core said that it was removed.
    pub removed: bool,
    /// Of the peers that were pinged: whether one ping was answered.
    pub pongs: BTreeMap<NodeId, bool>,
    /// How many records of presence were sent to it.
    pub records_heard: usize,
    instance: u64,
    config: MeshConfig,
}

/// The keys of a machine that has not joined yet.
pub struct Keys {
    /// Signs its presence.
    pub identity: SigningKey,
    /// Its WireGuard key. The world does no arithmetic with it.
    pub public_key: PublicKey,
    /// The id that its join proposes.
    pub node: NodeId,
    /// What it wants to be called.
    pub name: NodeName,
}

impl Keys {
    /// New ones.
    pub fn make(number: usize, rng: &mut Rng) -> Self {
        Self {
            identity: SigningKey::from_bytes(&rng.bytes()),
            public_key: PublicKey::from_bytes(rng.bytes()),
            node: NodeId::from_bytes(rng.bytes()),
            name: format!("node-{number}").parse().expect("a label"),
        }
    }

    /// The public half of the identity.
    pub fn identity_key(&self) -> IdentityKey {
        IdentityKey::from_bytes(self.identity.verifying_key().to_bytes())
    }
}

impl Machine {
    /// A machine whose join was granted; its daemon does not run yet.
    pub fn new(host: Host, keys: Keys, record: NodeRecord, config: MeshConfig, kernel: bool) -> Self {
        Self {
            host,
            record,
            identity: keys.identity,
            node: None,
            device: Device::default(),
            kernel,
            wrong_source_until: 0,
            looked: false,
            dropped: 0,
            disk: Vec::new(),
            session: None,
            skew: 0,
            clock_jumped: false,
            highest: Revision::NONE,
            removed: false,
            pongs: BTreeMap::new(),
            records_heard: 0,
            instance: 0,
            config,
        }
    }

    /// The same membership on another host, as a copied state directory makes it; its daemon does not run yet.
    pub fn copy(&self, host: Host) -> Self {
        let keys = Keys {
            identity: self.identity.clone(),
            public_key: self.record.public_key,
            node: self.record.id,
            name: self.record.name.clone(),
        };
        let mut copy = Self::new(host, keys, self.record.clone(), self.config.clone(), self.kernel);
        copy.disk.clone_from(&self.disk);
        // Starts of the two are told apart, as random numbers are.
        copy.instance = self.instance + 1_000;
        copy
    }

    /// Whether the coordinators said that another daemon has its identity.
    pub fn is_refused(&self, millis: u64) -> bool {
        let status = self.node.as_ref().map(|node| node.status(self.now(millis)));
        status.is_some_and(|status| status.warnings.contains(&Warning::DuplicateIdentity))
    }

    /// The coordinator that has welcomed it.
    pub fn welcomed_by(&self, millis: u64) -> Option<CoordinatorId> {
        let status = self.node.as_ref().map(|node| node.status(self.now(millis)));
        status.and_then(|status| status.session).map(|session| session.coordinator)
    }

    /// What the host's clocks show when the right time is `millis`.
    pub fn now(&self, millis: u64) -> Now {
        let wall = super::mesh_time(millis).0.saturating_add_signed(self.skew);
        Now { boot: BootTime::from_millis(millis), wall: MeshTime(wall) }
    }

    /// Starts the daemon on what is on its disk.
    pub fn start(&mut self, rng: &mut Rng, millis: u64) {
        self.looked = false;
        if !self.kernel {
            self.device.restart();
        }
        let (cache, valid) = self.remembered();
        if valid == 0 {
            self.disk = cache.compact();
        } else {
            self.disk.truncate(valid);
        }
        self.instance += 1;
        let setup = Setup {
            record: self.record.clone(),
            config: self.config.clone(),
            identity: self.identity.clone(),
            private_key: PrivateKey::from_bytes([1; 32]),
            listen_port: 51_820,
            fwmark: 0,
            software: "world".to_owned(),
            instance: self.instance,
            seed: rng.draw(),
            certificate: Some(Validity {
                not_before: super::mesh_time(0),
                not_after: super::mesh_time(0) + MeshDuration::from_secs(365 * 86_400),
            }),
        };
        self.node = Some(Node::new(setup, cache, self.now(millis)));
    }

    /// Ends the daemon as `kill -9` does; with `torn`, a record was just being written.
    pub fn kill(&mut self, torn: bool) {
        self.node = None;
        self.session = None;
        if torn {
            self.disk.extend_from_slice(&[0, 0, 0, 99, 1, 2, 3]);
        }
    }

    /// What a start would find on the disk, and how much of it is whole.
    pub fn remembered(&self) -> (Cache, usize) {
        Cache::replay(&self.disk, self.config.mesh, self.record.id).expect("the world damages no more than the tail")
    }

    /// Writes and syncs.
    pub fn persist(&mut self, record: &journal::Record) {
        self.disk.extend_from_slice(&journal::encode(record));
    }
}
