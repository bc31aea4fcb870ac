//! A founded registry and short ways to command it.

use ed25519_dalek::SigningKey;
use mesh_coordinator_core::command::*;
use mesh_coordinator_core::{Registry, Rejection, Reply};
use mesh_types::netmap::Certificate;
use mesh_types::{
    Candidate, CandidateKind, CoordinatorId, CoordinatorRecord, Epoch, Fingerprint, IdentityKey, Incarnation, Level,
    MeshDuration, MeshId, MeshTime, NodeId, NodeName, NodeRecord, Overlay, Presence, PublicKey, RequestId, Role,
    SignedPresence, TokenId,
};
use std::net::SocketAddr;

pub(crate) const MESH: MeshId = MeshId::from_bytes([0xaa; 16]);
pub(crate) const START: MeshTime = MeshTime(1_800_000_000_000);
pub(crate) const TTL: MeshDuration = MeshDuration::from_secs(30 * 86_400);
pub(crate) const DAY: MeshDuration = MeshDuration::from_secs(86_400);
pub(crate) const EPOCH: Epoch = Epoch { counter: 1, id: 77 };

/// A registry and the time.
#[derive(Clone)]
pub(crate) struct World {
    pub(crate) registry: Registry,
    pub(crate) time: MeshTime,
}

impl World {
    pub(crate) fn founded() -> Self {
        let mut world = Self { registry: Registry::new(), time: START };
        assert_eq!(world.apply(found()), Reply::Done);
        world
    }

    /// With a node token of ten uses: [`token`]`(1)`.
    pub(crate) fn with_token() -> Self {
        let mut world = Self::founded();
        world.token(1, Role::Node, 10);
        world
    }

    pub(crate) fn apply(&mut self, command: impl Into<Command>) -> Reply {
        self.apply_entry(None, command)
    }

    pub(crate) fn request(&mut self, id: u8, command: impl Into<Command>) -> Reply {
        self.apply_entry(Some(RequestId::from_bytes([id; 16])), command)
    }

    fn apply_entry(&mut self, request: Option<RequestId>, command: impl Into<Command>) -> Reply {
        let entry = Entry { level: Level::FIRST, time: self.time, request, command: command.into() };
        self.registry.apply(&Entry::decode(&entry.encode()).unwrap())
    }

    pub(crate) fn rejection(&mut self, command: impl Into<Command>) -> Rejection {
        self.apply(command).granted().unwrap_err()
    }

    pub(crate) fn token(&mut self, n: u8, role: Role, uses: u32) {
        let create = CreateToken { id: token(n), secret_hash: secret(n), role, ttl: DAY, uses };
        assert!(matches!(self.apply(create), Reply::TokenCreated { .. }));
    }

    pub(crate) fn join(&mut self, n: u8) -> NodeRecord {
        node_of(self.apply(join(n, 1)))
    }

    pub(crate) fn remove(&mut self, n: u8) {
        assert_eq!(self.apply(RemoveNode { node: node(n) }), Reply::NodeRemoved(node(n)));
    }

    pub(crate) fn pass(&mut self, span: MeshDuration) {
        self.time = self.time + span;
    }
}

pub(crate) fn found() -> Found {
    Found {
        mesh: MESH,
        overlay: overlay("10.9.0.0/24"),
        authority: Certificate(vec![1, 2, 3]),
        epoch: EPOCH,
        key_ttl: TTL,
        coordinator: coordinator(1),
    }
}

pub(crate) fn overlay(v4: &str) -> Overlay {
    Overlay::new(v4.parse().unwrap(), "fd00:1:2::/48".parse().unwrap()).unwrap()
}

pub(crate) fn coordinator(n: u8) -> CoordinatorRecord {
    CoordinatorRecord {
        id: CoordinatorId(n.into()),
        name: name(&format!("coordinator-{n}")),
        identity_key: IdentityKey::from_bytes([100 + n; 32]),
        addresses: vec![format!("192.0.2.{n}").parse().unwrap()],
    }
}

/// Machine `n` joins with token `t`.
pub(crate) fn join(n: u8, t: u8) -> Join {
    Join {
        token: token(t),
        secret_hash: secret(t),
        node: node(n),
        public_key: PublicKey::from_bytes([n; 32]),
        identity_key: identity(n),
        name: name(&format!("node-{n}")),
    }
}

/// Machine `n` joins as coordinator with token `t`.
pub(crate) fn join_coordinator(n: u8, t: u8) -> JoinCoordinator {
    let CoordinatorRecord { name, identity_key, addresses, .. } = coordinator(n);
    JoinCoordinator { token: token(t), secret_hash: secret(t), identity_key, name, addresses }
}

pub(crate) fn node(n: u8) -> NodeId {
    NodeId::from_bytes([n; 16])
}

pub(crate) fn token(n: u8) -> TokenId {
    TokenId::from_bytes([n; 8])
}

pub(crate) fn secret(n: u8) -> Fingerprint {
    Fingerprint::from_bytes([n; 32])
}

pub(crate) fn name(text: &str) -> NodeName {
    text.parse().unwrap()
}

pub(crate) fn signing_key(n: u8) -> SigningKey {
    SigningKey::from_bytes(&[n; 32])
}

pub(crate) fn identity(n: u8) -> IdentityKey {
    IdentityKey::from_bytes(signing_key(n).verifying_key().to_bytes())
}

pub(crate) fn node_of(reply: Reply) -> NodeRecord {
    match reply {
        Reply::Node(record) => record,
        other => panic!("expected a node, got {other:?}"),
    }
}

/// Word `sequence` of node `n`'s first life, with one candidate.
pub(crate) fn presence(n: u8, sequence: u64) -> SignedPresence {
    presence_at(n, sequence, &["198.51.100.1:51820"])
}

pub(crate) fn presence_at(n: u8, sequence: u64, endpoints: &[&str]) -> SignedPresence {
    let candidate =
        |text: &&str| Candidate { kind: CandidateKind::Host, endpoint: text.parse::<SocketAddr>().unwrap() };
    let presence = Presence {
        node: node(n),
        incarnation: Incarnation(1),
        sequence,
        signed_at: START,
        candidates: endpoints.iter().map(candidate).collect(),
    };
    presence.sign(MESH, &signing_key(n))
}
