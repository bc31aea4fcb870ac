//! Laws that hold whatever is commanded, in whatever order.

use crate::fixture::*;
use mesh_coordinator_core::command::*;
use mesh_coordinator_core::{Registry, Reply};
use mesh_types::{
    Changes, CoordinatorId, Epoch, IdentityKey, Level, MeshConfig, MeshDuration, MeshTime, NodeId, NodeRecord,
    PublicKey, RequestId, Revision, Role,
};
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet};

/// A world small enough that everything collides: seven machines, three tokens, six addresses.
fn command() -> impl Strategy<Value = Command> {
    let machine = 1u8..8;
    let tokens = 1u8..4;
    prop_oneof![
        2 => (tokens.clone(), any::<bool>(), 1u32..4, 1u64..200_000).prop_map(|(n, node, uses, ttl)| {
            let role = if node { Role::Node } else { Role::Coordinator };
            CreateToken { id: token(n), secret_hash: secret(n), role, ttl: MeshDuration(ttl * 1000), uses }.into()
        }),
        1 => tokens.clone().prop_map(|n| RevokeToken { id: token(n) }.into()),
        8 => (machine.clone(), machine.clone(), machine.clone(), tokens.clone(), 1u8..4).prop_map(join_mix),
        2 => (machine.clone(), tokens).prop_map(|(n, t)| join_coordinator(n, t).into()),
        3 => machine.clone().prop_map(|n| RenewKey { node: node(n) }.into()),
        2 => (machine.clone(), 1u8..4).prop_map(|(n, c)| RenameNode { node: node(n), name: short_name(c) }.into()),
        4 => machine.clone().prop_map(|n| RemoveNode { node: node(n) }.into()),
        3 => machine.clone().prop_map(|n| AllowNode { node: node(n) }.into()),
        1 => (machine.clone(), machine.clone()).prop_map(|(n, a)| {
            let addresses = coordinator(a).addresses;
            SetCoordinatorAddresses { coordinator: CoordinatorId(n.into()), addresses }.into()
        }),
        1 => machine.clone().prop_map(|n| RemoveCoordinator { coordinator: CoordinatorId(n.into()), destroy: false }.into()),
        1 => (10u64..500_000).prop_map(|ttl| SetKeyTtl { ttl: MeshDuration::from_secs(ttl) }.into()),
        1 => (1u64..6, machine).prop_map(|(counter, n)| {
            let epoch = Epoch { counter, id: counter };
            OpenEpoch { epoch, void_tokens: n > 4, coordinator: coordinator(n) }.into()
        }),
    ]
}

/// Keys that go together, mostly, under a proposed id that is often another's.
fn join_mix((id, public, shift, t, c): (u8, u8, u8, u8, u8)) -> Command {
    let identity_of = if shift == 7 { id } else { public };
    Join {
        node: node(id),
        public_key: PublicKey::from_bytes([public; 32]),
        identity_key: IdentityKey::from_bytes([identity_of; 32]),
        name: short_name(c),
        ..join(public, t)
    }
    .into()
}

fn short_name(c: u8) -> mesh_types::NodeName {
    name(&char::from(b'a' + c).to_string())
}

fn entry() -> impl Strategy<Value = Entry> {
    let time = START.0..START.0 + 400_000_000;
    (time, proptest::option::weighted(0.2, 0u8..5), command()).prop_map(|(time, request, command)| Entry {
        level: Level::FIRST,
        time: MeshTime(time),
        request: request.map(|n| RequestId::from_bytes([n; 16])),
        command,
    })
}

fn log() -> impl Strategy<Value = Vec<Entry>> {
    proptest::collection::vec(entry(), 1..120)
}

fn small_registry() -> Registry {
    let mut world = World { registry: Registry::new(), time: START };
    world.apply(Found { overlay: overlay("10.9.0.0/29"), ..found() });
    world.registry
}

/// What a node holds.
#[derive(Clone, PartialEq, Debug, Default)]
struct Netmap {
    revision: Revision,
    config: Option<MeshConfig>,
    nodes: BTreeMap<NodeId, NodeRecord>,
}

impl Netmap {
    fn snapshot(registry: &Registry) -> Self {
        let mut netmap = Self::default();
        for page in registry.snapshot_pages() {
            netmap.revision = page.revision;
            netmap.config = page.config.or(netmap.config);
            netmap.nodes.extend(page.nodes.into_iter().map(|record| (record.id, record)));
        }
        netmap
    }

    fn take(&mut self, changes: Changes) {
        assert_eq!(changes.from, self.revision);
        self.revision = changes.to;
        self.config = changes.config.or(self.config.take());
        changes.removals.iter().for_each(|id| {
            self.nodes.remove(id);
        });
        self.nodes.extend(changes.upserts.into_iter().map(|record| (record.id, record)));
    }
}

fn check_invariants(registry: &Registry) {
    let nodes: Vec<_> = registry.nodes().collect();
    let removed: Vec<_> = registry.removed().map(|removed| &removed.record).collect();
    let distinct = |count: usize, what: &str, of: usize| assert_eq!(count, of, "{what} are unique");
    let all = nodes.len() + removed.len();
    let everyone = || nodes.iter().chain(&removed);
    distinct(nodes.iter().map(|n| &n.name).collect::<BTreeSet<_>>().len(), "names", nodes.len());
    distinct(nodes.iter().map(|n| n.addresses).collect::<BTreeSet<_>>().len(), "addresses", nodes.len());
    distinct(everyone().map(|n| n.id).collect::<BTreeSet<_>>().len(), "ids", all);
    distinct(everyone().map(|n| n.public_key).collect::<BTreeSet<_>>().len(), "public keys", all);
    distinct(everyone().map(|n| n.revision).collect::<BTreeSet<_>>().len(), "revisions", all);
    let coordinators = registry.coordinators();
    let identities = everyone().map(|n| n.identity_key).chain(coordinators.iter().map(|c| c.identity_key));
    distinct(identities.collect::<BTreeSet<_>>().len(), "identity keys", all + coordinators.len());
    distinct(coordinators.iter().map(|c| &c.name).collect::<BTreeSet<_>>().len(), "names", coordinators.len());
    assert!(coordinators.is_sorted_by_key(|c| c.id) && !coordinators.is_empty());
    let overlay = registry.config().unwrap().overlay;
    assert!(nodes.iter().flat_map(|n| n.addresses.iter()).all(|address| overlay.contains(address)));
    assert!(everyone().all(|n| n.revision <= registry.revision()));
}

/// Addresses that rest are nobody's.
fn check_rest(registry: &Registry) {
    for removed in registry.removed().filter(|removed| registry.time() < removed.rests_until) {
        let heir = registry.nodes().find(|node| node.addresses == removed.record.addresses);
        assert_eq!(heir, None, "addresses of {} rest until {}", removed.record.id, removed.rests_until);
    }
}

proptest! {
    #[test]
    fn invariants_hold_after_every_entry(log in log()) {
        let mut registry = small_registry();
        for entry in &log {
            let (revision, time, nodes) = (registry.revision(), registry.time(), registry.node_count());
            let reply = registry.apply(entry);
            check_invariants(&registry);
            check_rest(&registry);
            prop_assert!(registry.revision() >= revision && registry.revision().0 <= revision.0 + 1);
            prop_assert!(registry.time() >= time);
            if let Reply::Rejected(_) = reply {
                prop_assert_eq!((registry.revision(), registry.node_count()), (revision, nodes));
            }
        }
    }

    #[test]
    fn a_token_lets_in_no_more_machines_than_it_has_uses(log in log(), uses in 1u32..5) {
        let mut registry = small_registry();
        let create = CreateToken { id: token(9), secret_hash: secret(9), role: Role::Node, ttl: DAY, uses };
        let entry = |command: Command| Entry { level: Level::FIRST, time: START, request: None, command };
        registry.apply(&entry(create.into()));
        let mut used = 0;
        for line in log {
            if let Command::Join(join) = line.command {
                let before = registry.revision();
                let join = Join { token: token(9), secret_hash: secret(9), ..join };
                let granted = matches!(registry.apply(&entry(join.into())), Reply::Node(_));
                used += u32::from(granted && registry.revision() > before);
            }
        }
        prop_assert!(used <= uses);
        prop_assert_eq!(registry.token(token(9)).unwrap().uses_left, uses - used);
    }

    #[test]
    fn a_delta_on_top_of_any_earlier_snapshot_is_the_snapshot_of_now(log in log(), stops in proptest::collection::vec(0usize..120, 1..6)) {
        let mut registry = small_registry();
        let mut held = vec![(registry.epoch(), Netmap::snapshot(&registry))];
        for (line, entry) in log.iter().enumerate() {
            registry.apply(entry);
            if stops.contains(&line) {
                held.push((registry.epoch(), Netmap::snapshot(&registry)));
            }
        }
        let now = Netmap::snapshot(&registry);
        for (epoch, mut netmap) in held.into_iter().filter(|(epoch, _)| *epoch == registry.epoch()) {
            let changes = registry.changes_since(netmap.revision);
            prop_assert!(changes.is_some(), "within an epoch, from {:?} of {:?}", netmap.revision, epoch);
            netmap.take(changes.unwrap());
            prop_assert_eq!(&netmap, &now);
        }
    }

    #[test]
    fn replicas_agree_also_when_one_of_them_started_from_a_snapshot(log in log(), cut in 0usize..120) {
        let mut whole = small_registry();
        let mut resumed = small_registry();
        for (line, entry) in log.iter().enumerate() {
            let replica = Entry::decode(&entry.encode()).unwrap();
            prop_assert_eq!(&replica, entry);
            prop_assert_eq!(whole.apply(entry), resumed.apply(&replica));
            if line == cut {
                resumed = Registry::decode(&resumed.encode()).unwrap();
            }
        }
        prop_assert_eq!(whole.hash(), resumed.hash());
        prop_assert_eq!(Registry::decode(&whole.encode()).unwrap(), whole);
    }

    #[test]
    fn hostile_bytes_are_refused_without_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200), kind in 0u8..16) {
        let _ = Entry::decode(&bytes);
        let _ = Proposal::decode(&bytes);
        let _ = Registry::decode(&bytes);
        let _ = Reply::decode(&bytes);
        let head = [&[1, 0, 0, 0, 1, 0, kind, 0, 0, 0, 0, 0, 0, 0, 1, 0][..], &bytes].concat();
        let _ = Entry::decode(&head);
    }
}
