//! The world's coordinators: the real registry and the real hub over a model of consensus.
//!
//! Raft promises one log that only grows, as long as a majority hears each other; that is what the model gives, and no
//! more: a write is taken when its replica and a leader reach each other and a majority, every replica applies the log
//! in order and as far as it has it. Raft itself is proved elsewhere, on real disks and sockets.

use super::network::{Host, Network};
use mesh_coordinator_core::clock::{Monotonic, Now};
use mesh_coordinator_core::command::{Command, Entry, Found, Proposal};
use mesh_coordinator_core::hub::{Health, Hub, HubAction};
use mesh_coordinator_core::registry::Registry;
use mesh_coordinator_core::reply::Reply;
use mesh_types::netmap::Certificate;
use mesh_types::{
    CoordinatorId, CoordinatorRecord, Epoch, Fingerprint, IdentityKey, Level, MeshDuration, MeshId, MeshTime, Overlay,
    Role, TokenId,
};
use std::collections::{BTreeMap, BTreeSet};

/// Without a leader for this long, a replica is stale.
const STALE: u64 = 3_000;

/// Short enough that leases end while a node is cut off.
const KEY_TTL: MeshDuration = MeshDuration::from_secs(240);

/// The token that every node of the world joins with.
pub const TOKEN: TokenId = TokenId::from_bytes([7; 8]);

/// All coordinators and the log that they agree on.
pub struct Cluster {
    log: Vec<Entry>,
    replicas: BTreeMap<CoordinatorId, Replica>,
    /// The registry after the whole log: what is true.
    pub truth: Registry,
}

/// One coordinator.
pub struct Replica {
    /// Whether its process runs.
    pub up: bool,
    /// What it has applied; survives a crash, as the log on disk does.
    pub registry: Registry,
    /// Sessions and presence; lost in a crash.
    pub hub: Hub,
    applied: usize,
    heard_leader: u64,
}

impl Cluster {
    /// A founded mesh with `count` coordinators, all up to date.
    pub fn found(count: u64, now: Now) -> Self {
        let coordinator = |id: u64| CoordinatorRecord {
            id: CoordinatorId(id),
            name: format!("coordinator-{id}").parse().expect("a label"),
            identity_key: IdentityKey::from_bytes([u8::try_from(200 + id).expect("few coordinators"); 32]),
            addresses: vec![format!("198.51.100.{id}").parse().expect("an address")],
        };
        let found = Command::Found(Found {
            mesh: MeshId::from_bytes([1; 16]),
            overlay: Overlay::new("10.7.0.0/16".parse().expect("a range"), "fd00:7::/48".parse().expect("a range"))
                .expect("a usable range"),
            authority: Certificate(vec![1]),
            epoch: Epoch { counter: 1, id: 1 },
            key_ttl: KEY_TTL,
            coordinator: coordinator(1),
        });
        let replica = || Replica {
            up: true,
            registry: Registry::new(),
            hub: Hub::new(CoordinatorId(0), now),
            applied: 0,
            heard_leader: now.monotonic.0,
        };
        let replicas = (1..=count).map(|id| (CoordinatorId(id), replica())).collect();
        let mut cluster = Self { log: Vec::new(), replicas, truth: Registry::new() };
        cluster.append(found, now.mesh);
        for (role, token) in [(Role::Node, TOKEN), (Role::Coordinator, TokenId::from_bytes([8; 8]))] {
            cluster.append(create_token(role, token), now.mesh);
        }
        for id in 2..=count {
            let record = coordinator(id);
            cluster.append(
                Command::JoinCoordinator(mesh_coordinator_core::command::JoinCoordinator {
                    token: TokenId::from_bytes([8; 8]),
                    secret_hash: secret_hash(),
                    identity_key: record.identity_key,
                    name: record.name,
                    addresses: record.addresses,
                }),
                now.mesh,
            );
        }
        for id in cluster.ids() {
            cluster.restart(id, now);
        }
        cluster
    }

    /// All coordinators, up or not.
    pub fn ids(&self) -> Vec<CoordinatorId> {
        self.replicas.keys().copied().collect()
    }

    /// One that runs.
    pub fn running(&mut self, id: CoordinatorId) -> Option<&mut Replica> {
        self.replicas.get_mut(&id).filter(|replica| replica.up)
    }

    /// Stops a process as `kill -9` does.
    pub fn crash(&mut self, id: CoordinatorId) {
        if let Some(replica) = self.replicas.get_mut(&id) {
            replica.up = false;
        }
    }

    /// Starts a process on what is on its disk.
    pub fn restart(&mut self, id: CoordinatorId, now: Now) {
        if let Some(replica) = self.replicas.get_mut(&id) {
            replica.up = true;
            replica.hub = Hub::new(id, now);
            replica.heard_leader = now.monotonic.0.saturating_sub(STALE);
        }
    }

    /// Who leads: the first that runs and reaches a majority.
    pub fn leader(&self, network: &Network) -> Option<CoordinatorId> {
        let up = |id: &CoordinatorId| self.replicas.get(id).is_some_and(|replica| replica.up);
        let reaches = |a: CoordinatorId, b: CoordinatorId| {
            a == b || network.reaches(Host::Coordinator(a.0), Host::Coordinator(b.0))
        };
        let candidates: Vec<CoordinatorId> = self.replicas.keys().copied().filter(up).collect();
        let majority = |leader: &&CoordinatorId| {
            candidates.iter().filter(|other| reaches(**leader, **other)).count() * 2 > self.replicas.len()
        };
        candidates.iter().find(majority).copied()
    }

    /// A write asked of the replica `at`: the outcome, or `None` without a quorum.
    pub fn propose(&mut self, at: CoordinatorId, command: Command, network: &Network, mesh: MeshTime) -> Option<Reply> {
        let leader = self.leader(network)?;
        let reached = at == leader || network.reaches(Host::Coordinator(at.0), Host::Coordinator(leader.0));
        let up = self.replicas.get(&at).is_some_and(|replica| replica.up);
        (up && reached).then(|| self.append(command, mesh))
    }

    fn append(&mut self, command: Command, mesh: MeshTime) -> Reply {
        let time = mesh.max(self.truth.time());
        let entry = Proposal::new(command).stamp(Level::FIRST, time);
        // Through the byte form, as on a disk.
        let entry = Entry::decode(&entry.encode()).expect("what is encoded can be read");
        let reply = self.truth.apply(&entry);
        self.log.push(entry);
        reply
    }

    /// Lets every replica that reaches the leader catch up, and every hub see what changed.
    pub fn advance(&mut self, network: &Network, now: Now) {
        let leader = self.leader(network);
        let voters: BTreeSet<CoordinatorId> = self.replicas.keys().copied().collect();
        for (id, replica) in self.replicas.iter_mut().filter(|(_, replica)| replica.up) {
            let contact = leader
                .filter(|leader| leader == id || network.reaches(Host::Coordinator(id.0), Host::Coordinator(leader.0)));
            if contact.is_some() {
                replica.heard_leader = now.monotonic.0;
                for entry in &self.log[replica.applied..] {
                    replica.registry.apply(entry);
                }
                replica.applied = self.log.len();
            }
            let fresh = now.monotonic.0.saturating_sub(replica.heard_leader) < STALE;
            replica.hub.handle_cluster(Health { fresh, leader: contact, voters: voters.clone() }, now);
            replica.hub.handle_applied(&replica.registry, now);
        }
    }

    /// What the hubs want done, with who wants it.
    pub fn actions(&mut self) -> Vec<(CoordinatorId, HubAction)> {
        let mut out = Vec::new();
        for (id, replica) in self.replicas.iter_mut().filter(|(_, replica)| replica.up) {
            while let Some(action) = replica.hub.poll_action() {
                out.push((*id, action));
            }
        }
        out
    }

    /// Gives every hub its tick.
    pub fn tick(&mut self, now: Now) {
        for replica in self.replicas.values_mut().filter(|replica| replica.up) {
            replica.hub.handle_tick(&replica.registry, now);
        }
    }

    /// Whether every running replica holds the truth.
    pub fn agrees(&self) -> bool {
        self.replicas.values().filter(|replica| replica.up).all(|replica| replica.registry.hash() == self.truth.hash())
    }
}

/// What the world's tokens are shown with.
pub fn secret_hash() -> Fingerprint {
    Fingerprint::of(b"the world's secret")
}

fn create_token(role: Role, id: TokenId) -> Command {
    Command::CreateToken(mesh_coordinator_core::command::CreateToken {
        id,
        secret_hash: secret_hash(),
        role,
        ttl: MeshDuration::from_secs(7 * 86_400),
        uses: 1_000,
    })
}

/// The coordinators' clocks: all right, as far as they need to be.
pub fn coordinator_now(millis: u64) -> Now {
    Now { monotonic: Monotonic(millis), mesh: super::mesh_time(millis) }
}
