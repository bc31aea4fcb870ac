//! What each command grants and refuses.

use crate::fixture::*;
use mesh_coordinator_core::command::*;
use mesh_coordinator_core::registry::LookupError;
use mesh_coordinator_core::reply::KeyHolder;
use mesh_coordinator_core::{DecodeError, Registry, Rejection, Reply};
use mesh_types::{
    CoordinatorId, Epoch, Level, MeshDuration, MeshTime, NodeState, PublicKey, Revision, Role, TokenId, limits,
};

#[test]
fn a_registry_without_mesh_grants_nothing_but_founding() {
    let mut world = World { registry: Registry::new(), time: START };
    let commands: Vec<Command> = vec![
        join(1, 1).into(),
        join_coordinator(2, 1).into(),
        CreateToken { id: token(1), secret_hash: secret(1), role: Role::Node, ttl: DAY, uses: 1 }.into(),
        RevokeToken { id: token(1) }.into(),
        RenewKey { node: node(1) }.into(),
        RenameNode { node: node(1), name: name("a") }.into(),
        RemoveNode { node: node(1) }.into(),
        AllowNode { node: node(1) }.into(),
        SetCoordinatorAddresses { coordinator: CoordinatorId(1), addresses: coordinator(1).addresses }.into(),
        RemoveCoordinator { coordinator: CoordinatorId(1), destroy: false }.into(),
        SetKeyTtl { ttl: TTL }.into(),
        RaiseLevel { level: Level::FIRST }.into(),
        OpenEpoch { epoch: EPOCH, void_tokens: false, coordinator: coordinator(1) }.into(),
    ];
    for command in commands {
        assert_eq!(world.rejection(command.clone()), Rejection::NotFounded, "{}", command.name());
    }
    assert_eq!(world.registry.snapshot_pages().count(), 0);
    assert_eq!(world.registry.changes_since(Revision::NONE), None);
    assert_eq!(world.apply(found()), Reply::Done);
    assert_eq!(world.registry.revision(), Revision(1));
}

#[test]
fn a_mesh_is_founded_once_and_with_sense() {
    assert_eq!(World::founded().rejection(found()), Rejection::AlreadyFounded(MESH));
    let mut world = World { registry: Registry::new(), time: START };
    let unusable = mesh_types::Overlay { v4: "10.0.0.0/32".parse().unwrap(), ..overlay("10.9.0.0/24") };
    let cases = [
        (Found { key_ttl: MeshDuration(1), ..found() }, Rejection::KeyTtl(MeshDuration(1))),
        (Found { overlay: unusable, ..found() }, Rejection::OverlayUnusable(unusable)),
        (Found { coordinator: coordinator(2), ..found() }, Rejection::CoordinatorIdSpent(CoordinatorId(2))),
        (Found { authority: mesh_types::netmap::Certificate(vec![]), ..found() }, Rejection::CertificateSize(0)),
        (
            Found { coordinator: mesh_types::CoordinatorRecord { addresses: vec![], ..coordinator(1) }, ..found() },
            Rejection::AddressCount(0),
        ),
    ];
    for (command, expected) in cases {
        assert_eq!(world.rejection(command), expected);
    }
    assert_eq!(world.registry.config(), None);
}

#[test]
fn a_node_gets_id_name_addresses_and_a_lease() {
    let record = World::with_token().join(7);
    assert_eq!((record.id, record.name), (node(7), name("node-7")));
    assert_eq!(record.addresses.v4.to_string(), "10.9.0.1");
    assert_eq!(record.addresses.v6.to_string(), "fd00:1:2::1");
    assert_eq!(record.expires_at, START + TTL);
}

#[test]
fn names_that_collide_are_numbered() {
    let mut world = World::with_token();
    let named = |n| Join { name: name("web"), ..join(n, 1) };
    let names: Vec<_> = (1..=3).map(|n| node_of(world.apply(named(n))).name.to_string()).collect();
    assert_eq!(names, ["web", "web-2", "web-3"]);
}

#[test]
fn tokens_let_in_only_whom_and_while_they_should() {
    let mut world = World::founded();
    world.token(1, Role::Node, 1);
    world.token(2, Role::Coordinator, 1);
    assert_eq!(world.rejection(join(1, 9)), Rejection::TokenUnknown);
    assert_eq!(world.rejection(Join { secret_hash: secret(9), ..join(1, 1) }), Rejection::TokenUnknown);
    let wrong_role = Rejection::TokenRole { token: Role::Coordinator, wanted: Role::Node };
    assert_eq!(world.rejection(join(1, 2)), wrong_role);
    let wrong_role = Rejection::TokenRole { token: Role::Node, wanted: Role::Coordinator };
    assert_eq!(world.rejection(join_coordinator(2, 1)), wrong_role);
    world.join(1);
    assert_eq!(world.rejection(join(2, 1)), Rejection::TokenUsedUp);
    world.token(3, Role::Node, 1);
    world.pass(DAY);
    assert_eq!(world.rejection(join(2, 3)), Rejection::TokenExpired { expired_at: START + DAY });
    world.token(4, Role::Node, 1);
    assert_eq!(world.apply(RevokeToken { id: token(4) }), Reply::Done);
    assert_eq!(world.rejection(join(2, 4)), Rejection::TokenUnknown);
    assert_eq!(world.rejection(RevokeToken { id: token(4) }), Rejection::TokenNotListed(token(4)));
}

#[test]
fn tokens_that_make_no_sense_are_not_made() {
    let mut world = World::with_token();
    let create = CreateToken { id: token(2), secret_hash: secret(2), role: Role::Node, ttl: DAY, uses: 1 };
    let too_long = MeshDuration(limits::MAX_TOKEN_TTL.0 + 1);
    assert_eq!(world.rejection(CreateToken { ttl: too_long, ..create.clone() }), Rejection::TokenTtl(too_long));
    assert_eq!(
        world.rejection(CreateToken { ttl: MeshDuration(0), ..create.clone() }),
        Rejection::TokenTtl(MeshDuration(0))
    );
    assert_eq!(world.rejection(CreateToken { uses: 0, ..create.clone() }), Rejection::TokenUses);
    assert_eq!(world.rejection(CreateToken { id: token(1), ..create }), Rejection::TokenExists(token(1)));
}

#[test]
fn tokens_have_a_cap_that_ended_ones_make_room_under() {
    let mut world = World::founded();
    let create = |n: usize| CreateToken {
        id: TokenId::from_bytes((n as u64).to_be_bytes()),
        secret_hash: secret(1),
        role: Role::Node,
        ttl: DAY,
        uses: 1,
    };
    for n in 0..limits::MAX_TOKENS {
        assert!(world.apply(create(n)).granted().is_ok());
    }
    assert_eq!(world.rejection(create(limits::MAX_TOKENS)), Rejection::TooManyTokens);
    world.pass(DAY);
    assert!(world.apply(create(limits::MAX_TOKENS)).granted().is_ok());
    assert_eq!(world.registry.tokens().count(), 1);
}

#[test]
fn a_repeated_join_costs_nothing_and_outlives_the_token() {
    let mut world = World::founded();
    world.token(1, Role::Node, 1);
    let first = world.join(1);
    let revision = world.registry.revision();
    let other_id = Join { node: node(200), ..join(1, 1) };
    assert_eq!(node_of(world.apply(other_id.clone())), first, "used up");
    world.pass(MeshDuration(30 * DAY.0));
    assert_eq!(node_of(world.apply(other_id.clone())), first, "expired");
    world.apply(RevokeToken { id: token(1) });
    assert_eq!(node_of(world.apply(other_id)), first, "revoked");
    assert_eq!(world.registry.revision(), revision);
}

#[test]
fn a_member_that_joins_with_another_token_keeps_its_identity_and_gets_a_new_lease() {
    let mut world = World::with_token();
    world.token(2, Role::Node, 1);
    let first = world.join(1);
    world.pass(DAY);
    world.token(2 + 1, Role::Node, 1);
    let again = node_of(world.apply(Join { node: node(200), name: name("other"), ..join(1, 3) }));
    assert_eq!((again.id, &again.name, again.addresses), (first.id, &first.name, first.addresses));
    assert_eq!(again.expires_at, START + DAY + TTL);
    assert_eq!(world.registry.token(token(3)).unwrap().uses_left, 0);
    assert_eq!(node_of(world.apply(join(1, 3))), again, "and repeating that costs nothing");
}

#[test]
fn a_key_belongs_to_one_member() {
    let mut world = World::with_token();
    world.join(1);
    let by = KeyHolder::Node(node(1));
    let same_public = Join { public_key: join(1, 1).public_key, ..join(2, 1) };
    assert_eq!(world.rejection(same_public), Rejection::KeyInUse { by: by.clone() });
    let same_identity = Join { identity_key: identity(1), ..join(2, 1) };
    assert_eq!(world.rejection(same_identity), Rejection::KeyInUse { by });
    let coordinators_key = Join { identity_key: coordinator(1).identity_key, ..join(2, 1) };
    let by = KeyHolder::Coordinator(CoordinatorId(1));
    assert_eq!(world.rejection(coordinators_key), Rejection::KeyInUse { by });
    assert_eq!(world.registry.token(token(1)).unwrap().uses_left, 9, "a refusal costs no use");
}

#[test]
fn only_the_holder_of_a_token_learns_whose_a_key_is() {
    let mut world = World::with_token();
    world.join(1);
    let snooping = Join { identity_key: identity(1), ..join(2, 9) };
    assert_eq!(world.rejection(snooping), Rejection::TokenUnknown);
}

#[test]
fn a_join_is_judged_before_it_is_proposed_as_it_is_when_it_is_applied() {
    let mut world = World::with_token();
    world.token(2, Role::Coordinator, 1);
    world.token(3, Role::Node, 1);
    world.join(1);
    world.apply(join(2, 3));
    world.remove(2);
    let joins = [join(1, 1), join(1, 9), join(2, 1), join(2, 3), join(3, 1), join(3, 2), join(3, 3), join(3, 9)];
    for join in joins {
        let judged = world.registry.judge_join(&join);
        assert_eq!(judged.err(), world.clone().apply(join.clone()).granted().err(), "{join:?}");
    }
    for join in [join_coordinator(2, 2), join_coordinator(2, 1), join_coordinator(1, 2), join_coordinator(2, 9)] {
        let judged = world.registry.judge_coordinator_join(&join);
        assert_eq!(judged.err(), world.clone().apply(join.clone()).granted().err(), "{join:?}");
    }
}

#[test]
fn a_node_id_is_never_given_twice() {
    let mut world = World::with_token();
    world.join(1);
    let same_id = Join { node: node(1), ..join(2, 1) };
    assert_eq!(world.rejection(same_id.clone()), Rejection::IdTaken(node(1)));
    world.remove(1);
    assert_eq!(world.rejection(same_id), Rejection::IdTaken(node(1)));
}

#[test]
fn the_removed_cannot_come_back_with_anything_they_kept() {
    let mut world = World::with_token();
    world.join(1);
    world.remove(1);
    world.token(2, Role::Node, 9);
    let by = KeyHolder::Node(node(1));
    assert_eq!(world.rejection(join(1, 1)), Rejection::NodeRemoved(node(1)));
    assert_eq!(world.rejection(join(1, 2)), Rejection::KeyBarred { by: by.clone() });
    let new_identity = Join { identity_key: identity(3), ..join(1, 2) };
    assert_eq!(world.rejection(new_identity), Rejection::KeyBarred { by: by.clone() });
    let new_key = Join { public_key: PublicKey::from_bytes([3; 32]), ..join(1, 2) };
    assert_eq!(world.rejection(new_key), Rejection::KeyBarred { by });
    assert_eq!(world.rejection(RenewKey { node: node(1) }), Rejection::NodeRemoved(node(1)));
    assert_eq!(world.rejection(RenameNode { node: node(1), name: name("x") }), Rejection::NodeRemoved(node(1)));
}

#[test]
fn allowing_undoes_a_removal() {
    let mut world = World::with_token();
    let before = world.join(1);
    world.remove(1);
    assert_eq!(world.apply(RemoveNode { node: node(1) }), Reply::NodeRemoved(node(1)), "removing is idempotent");
    let after = node_of(world.apply(AllowNode { node: node(1) }));
    assert_eq!(mesh_types::NodeRecord { revision: before.revision, ..after.clone() }, before);
    assert!(after.revision > before.revision);
    assert_eq!(node_of(world.apply(AllowNode { node: node(1) })), after, "allowing is idempotent");
    assert_eq!(node_of(world.apply(join(1, 1))), after);
}

#[test]
fn who_is_allowed_late_gets_another_name_and_address_if_his_are_given_away() {
    let mut world = World::with_token();
    let before = world.join(1);
    world.remove(1);
    world.pass(TTL);
    world.token(2, Role::Node, 9);
    let heir = node_of(world.apply(Join { name: before.name.clone(), ..join(2, 2) }));
    assert_eq!((&heir.name, heir.addresses), (&before.name, before.addresses));
    let after = node_of(world.apply(AllowNode { node: node(1) }));
    assert_eq!(after.name, name("node-1-2"));
    assert_ne!(after.addresses, before.addresses);
    assert_eq!(after.state(world.time), NodeState::Expired);
}

#[test]
fn a_freed_address_rests_for_a_key_lifetime_or_the_lease_whichever_is_longer() {
    let mut world = World { registry: Registry::new(), time: START };
    world.apply(Found { overlay: overlay("10.9.0.0/29"), ..found() });
    world.token(1, Role::Node, 99);
    let first = world.join(1);
    (2..=6).for_each(|n| drop(world.join(n)));
    assert_eq!(world.rejection(join(7, 1)), Rejection::AddressesExhausted { next_free: None });
    world.apply(SetKeyTtl { ttl: DAY });
    world.remove(1);
    let next_free = Some(START + TTL);
    assert_eq!(world.rejection(join(7, 1)), Rejection::AddressesExhausted { next_free });
    world.time = START + TTL;
    world.token(2, Role::Node, 1);
    assert_eq!(node_of(world.apply(join(7, 2))).addresses, first.addresses);
}

#[test]
fn an_expired_node_may_renew_and_a_fresh_lease_stays_as_it_is() {
    let mut world = World::with_token();
    let first = world.join(1);
    world.pass(MeshDuration(TTL.0 / 20));
    assert_eq!(node_of(world.apply(RenewKey { node: node(1) })), first);
    world.pass(TTL);
    assert_eq!(world.registry.node(node(1)).unwrap().state(world.time), NodeState::Expired);
    let renewed = node_of(world.apply(RenewKey { node: node(1) }));
    assert_eq!(renewed.expires_at, world.time + TTL);
    assert_eq!((renewed.name, renewed.addresses), (first.name, first.addresses));
    assert_eq!(world.rejection(RenewKey { node: node(9) }), Rejection::NodeUnknown(node(9)));
}

#[test]
fn a_shorter_key_lifetime_shortens_the_next_lease() {
    let mut world = World::with_token();
    world.join(1);
    assert_eq!(world.apply(SetKeyTtl { ttl: DAY }), Reply::Done);
    assert_eq!(node_of(world.apply(RenewKey { node: node(1) })).expires_at, START + DAY);
    for ttl in [MeshDuration(0), MeshDuration(limits::MAX_KEY_TTL.0 + 1)] {
        assert_eq!(world.rejection(SetKeyTtl { ttl }), Rejection::KeyTtl(ttl));
    }
}

#[test]
fn renaming_refuses_a_taken_name_and_frees_the_old_one() {
    let mut world = World::with_token();
    world.join(1);
    world.join(2);
    let rename = |n, text| RenameNode { node: node(n), name: name(text) };
    assert_eq!(world.rejection(rename(2, "node-1")), Rejection::NameTaken { name: name("node-1"), by: node(1) });
    assert_eq!(node_of(world.apply(rename(1, "db"))).name, name("db"));
    assert_eq!(node_of(world.apply(rename(2, "node-1"))).name, name("node-1"));
    let revision = world.registry.revision();
    world.apply(rename(2, "node-1"));
    assert_eq!(world.registry.revision(), revision, "the same name again is no change");
}

#[test]
fn time_never_runs_back() {
    let mut world = World::with_token();
    world.pass(DAY);
    world.apply(SetKeyTtl { ttl: TTL });
    world.time = START;
    assert_eq!(world.rejection(join(1, 1)), Rejection::TokenExpired { expired_at: START + DAY });
    assert_eq!(world.registry.time(), START + DAY);
}

#[test]
fn a_repeated_request_does_nothing_again_and_answers_the_same() {
    let mut world = World::with_token();
    world.join(1);
    let renamed = world.request(1, RenameNode { node: node(1), name: name("a") });
    world.apply(RenameNode { node: node(1), name: name("b") });
    assert_eq!(world.request(1, RenameNode { node: node(1), name: name("a") }), renamed);
    assert_eq!(world.registry.node(node(1)).unwrap().name, name("b"));
    let refused = world.request(2, RenewKey { node: node(9) });
    assert_eq!(world.request(2, RenewKey { node: node(9) }), refused);
    let anothers = world.request(1, RenewKey { node: node(1) });
    assert_eq!(anothers, Reply::Rejected(Rejection::RequestReused));
}

#[test]
fn coordinators_are_counted_up_and_never_come_back() {
    let mut world = World::founded();
    world.token(1, Role::Coordinator, 9);
    let second = world.apply(join_coordinator(2, 1));
    assert_eq!(second, Reply::Coordinator(coordinator(2)));
    assert_eq!(world.apply(join_coordinator(2, 1)), second, "a repeat returns the same");
    assert_eq!(world.registry.token(token(1)).unwrap().uses_left, 8);
    world.token(2, Role::Coordinator, 9);
    let by = KeyHolder::Coordinator(CoordinatorId(2));
    assert_eq!(world.rejection(join_coordinator(2, 2)), Rejection::KeyInUse { by: by.clone() });
    let remove = RemoveCoordinator { coordinator: CoordinatorId(2), destroy: false };
    assert_eq!(world.apply(remove.clone()), Reply::CoordinatorRemoved(CoordinatorId(2)));
    assert_eq!(world.apply(remove), Reply::CoordinatorRemoved(CoordinatorId(2)), "removing is idempotent");
    assert_eq!(world.rejection(join_coordinator(2, 2)), Rejection::KeyBarred { by });
    assert!(matches!(world.apply(join_coordinator(3, 2)), Reply::Coordinator(record) if record.id.0 == 3));
    let last = RemoveCoordinator { coordinator: CoordinatorId(3), destroy: false };
    world.apply(last);
    let last = RemoveCoordinator { coordinator: CoordinatorId(1), destroy: false };
    assert_eq!(world.rejection(last), Rejection::LastCoordinator(CoordinatorId(1)));
}

#[test]
fn a_mesh_ends_with_its_last_coordinator_and_shows_nodes_nothing_of_it() {
    let mut world = World::with_token();
    world.token(2, Role::Coordinator, 9);
    world.apply(join_coordinator(2, 2)).granted().unwrap();
    let end = |id| RemoveCoordinator { coordinator: CoordinatorId(id), destroy: true };
    let others = Rejection::NotLastCoordinator { coordinator: CoordinatorId(1), others: 1 };
    assert_eq!(world.rejection(end(1)), others);
    world.apply(RemoveCoordinator { coordinator: CoordinatorId(2), destroy: false }).granted().unwrap();
    assert_eq!(world.rejection(end(2)), Rejection::CoordinatorUnknown(CoordinatorId(2)));
    let before = (world.registry.revision(), world.registry.config().cloned());
    assert_eq!(world.apply(end(1)), Reply::CoordinatorRemoved(CoordinatorId(1)));
    assert_eq!(world.apply(end(1)), Reply::CoordinatorRemoved(CoordinatorId(1)), "ending it twice is no error");
    assert!(world.registry.is_ended());
    assert_eq!((world.registry.revision(), world.registry.config().cloned()), before);
    let mesh = before.1.unwrap().mesh;
    for command in [Command::from(join(1, 1)), join_coordinator(3, 2).into(), found().into()] {
        assert_eq!(world.rejection(command), Rejection::MeshEnded(mesh));
    }
    assert_eq!(Registry::decode(&world.registry.encode()), Ok(world.registry.clone()));
}

#[test]
fn coordinators_have_a_cap_and_addresses() {
    let mut world = World::founded();
    world.token(1, Role::Coordinator, 99);
    for n in 2..=limits::MAX_COORDINATORS as u8 {
        assert!(world.apply(join_coordinator(n, 1)).granted().is_ok());
    }
    assert_eq!(world.rejection(join_coordinator(99, 1)), Rejection::TooManyCoordinators);
    let set = |n, addresses| SetCoordinatorAddresses { coordinator: CoordinatorId(n), addresses };
    assert_eq!(world.rejection(set(1, vec![])), Rejection::AddressCount(0));
    assert_eq!(world.rejection(set(99, coordinator(9).addresses)), Rejection::CoordinatorUnknown(CoordinatorId(99)));
    let revision = world.registry.revision();
    world.apply(set(2, coordinator(2).addresses));
    assert_eq!(world.registry.revision(), revision, "the same addresses again are no change");
    world.apply(set(2, coordinator(9).addresses));
    assert_eq!(world.registry.coordinator(CoordinatorId(2)).unwrap().addresses, coordinator(9).addresses);
    assert_eq!(world.registry.config().unwrap().revision, Revision(revision.0 + 1));
}

#[test]
fn a_new_epoch_leaves_one_coordinator_and_no_differences_across_it() {
    let mut world = World::with_token();
    world.token(2, Role::Coordinator, 9);
    world.apply(join_coordinator(2, 2));
    let before = world.registry.revision();
    let epoch = Epoch { counter: 2, id: 5 };
    let open = OpenEpoch { epoch, void_tokens: true, coordinator: coordinator(2) };
    for (wrong, expected) in [
        (OpenEpoch { epoch: EPOCH, ..open.clone() }, Rejection::EpochOrder { held: EPOCH, offered: EPOCH }),
        (
            OpenEpoch {
                coordinator: mesh_types::CoordinatorRecord { id: CoordinatorId(0), ..coordinator(3) },
                ..open.clone()
            },
            Rejection::CoordinatorIdSpent(CoordinatorId(0)),
        ),
        (
            OpenEpoch {
                coordinator: mesh_types::CoordinatorRecord {
                    identity_key: coordinator(1).identity_key,
                    ..coordinator(2)
                },
                ..open.clone()
            },
            Rejection::KeyInUse { by: KeyHolder::Coordinator(CoordinatorId(1)) },
        ),
    ] {
        assert_eq!(world.rejection(wrong), expected);
    }
    assert_eq!(world.apply(open), Reply::Done);
    assert_eq!(world.registry.epoch(), Some(epoch));
    assert_eq!(world.registry.coordinators(), [coordinator(2)]);
    assert_eq!(world.registry.former_coordinator(CoordinatorId(1)), Some(&coordinator(1)));
    assert_eq!(world.registry.tokens().count(), 0);
    assert_eq!(world.registry.changes_since(before), None);
    world.token(3, Role::Coordinator, 9);
    let third = mesh_types::CoordinatorRecord { id: CoordinatorId(103), ..coordinator(3) };
    assert_eq!(world.apply(join_coordinator(3, 3)), Reply::Coordinator(third), "3 may be one of the lost history");
}

#[test]
fn a_restore_may_go_on_with_a_new_coordinator_under_a_fresh_id() {
    let mut world = World::founded();
    let open = OpenEpoch { epoch: Epoch { counter: 2, id: 5 }, void_tokens: true, coordinator: coordinator(2) };
    assert_eq!(world.registry.next_coordinator_id(), Some(CoordinatorId(2)));
    assert_eq!(world.apply(open), Reply::Done);
    assert_eq!(world.registry.coordinators(), [coordinator(2)]);
    assert_eq!(world.registry.next_coordinator_id(), Some(CoordinatorId(103)));
}

#[test]
fn changes_name_what_is_new_changed_and_gone() {
    let mut world = World::with_token();
    let first = world.join(1);
    let second = world.join(2);
    let held = world.registry.revision();
    let none = world.registry.changes_since(held).unwrap();
    assert!(none.upserts.is_empty() && none.removals.is_empty() && none.config.is_none());
    world.remove(1);
    let third = world.join(3);
    let changes = world.registry.changes_since(held).unwrap();
    assert_eq!((changes.from, changes.to), (held, Revision(held.0 + 2)));
    assert_eq!((changes.upserts, changes.removals, changes.config), (vec![third.clone()], vec![node(1)], None));
    let all = world.registry.changes_since(Revision::NONE).unwrap();
    assert_eq!(all.upserts, [second, third]);
    assert_eq!(all.config.as_ref(), world.registry.config());
    assert_eq!(world.registry.changes_since(Revision(99)), None, "ahead");
    assert!(first.revision < held);
}

#[test]
fn tokens_and_refusals_are_no_change_that_nodes_see() {
    let mut world = World::with_token();
    let revision = world.registry.revision();
    world.token(2, Role::Node, 1);
    world.apply(RevokeToken { id: token(2) });
    world.apply(join(1, 9));
    assert_eq!(world.registry.revision(), revision);
}

#[test]
fn addresses_given_in_a_history_that_a_new_epoch_ends_are_given_to_nobody_else() {
    let mut world = World::with_token();
    world.join(1);
    world.join(2);
    world.remove(2);
    let mut backup = world.clone();
    world.pass(TTL);
    world.token(2, Role::Node, 9);
    let unseen: Vec<_> = (3..6).map(|n| node_of(world.apply(join(n, 2))).addresses).collect();
    assert_eq!(unseen[0], backup.registry.removed_node(node(2)).unwrap().record.addresses, "the one that had rested");

    let open = OpenEpoch { epoch: Epoch { counter: 2, id: 5 }, void_tokens: false, coordinator: coordinator(2) };
    assert_eq!(backup.apply(open), Reply::Done);
    backup.registry.rest_unseen_addresses(world.time).unwrap();
    assert_eq!(Registry::decode(&backup.registry.encode()), Ok(backup.registry.clone()));
    backup.time = world.time;
    backup.token(2, Role::Node, 9);
    assert!(!unseen.contains(&node_of(backup.apply(join(6, 2))).addresses));
    let mut same = backup.clone();
    assert_eq!(node_of(same.apply(AllowNode { node: node(2) })).addresses, unseen[0], "its own it may have again");
    backup.pass(TTL);
    backup.token(3, Role::Node, 9);
    assert!(
        unseen.contains(&node_of(backup.apply(join(7, 3))).addresses),
        "once they have rested they are given again"
    );
}

#[test]
fn names_and_ids_find_a_node_and_no_name_hides_an_id() {
    let mut world = World::with_token();
    world.join(1);
    world.apply(Join { name: name(&node(1).to_string()), ..join(2, 1) });
    let find = |world: &World, text: &str| world.registry.node_by_name_or_id(text).map(|record| record.id);
    assert_eq!(find(&world, "Node-1"), Some(node(1)));
    assert_eq!(find(&world, &node(1).to_string()), Some(node(1)));
    assert_eq!(find(&world, &node(2).to_string()), Some(node(2)));
    assert_eq!(find(&world, "nobody"), None);
    world.apply(RenameNode { node: node(2), name: name("twin") });
    world.remove(2);
    world.apply(Join { name: name("twin"), ..join(3, 1) });
    assert_eq!(world.registry.removed_by_name_or_id("twin").map(|removed| removed.record.id), Ok(node(2)));
    world.remove(3);
    let ambiguous = LookupError::Ambiguous { name: "twin".into(), count: 2 };
    assert_eq!(world.registry.removed_by_name_or_id("twin"), Err(ambiguous));
    assert!(world.registry.removed_by_name_or_id(&node(3).to_string()).is_ok());
    let unknown = LookupError::Unknown("nobody".into());
    assert_eq!(world.registry.removed_by_name_or_id("nobody"), Err(unknown));
}

#[test]
fn a_replica_stops_at_what_it_does_not_know_and_tells_it_from_damage() {
    let entry = Proposal::new(join(1, 1).into()).stamp(Level::FIRST, START);
    let bytes = entry.encode();
    let with = |at: usize, byte: u8| {
        let mut bytes = bytes.clone();
        bytes[at] = byte;
        Entry::decode(&bytes)
    };
    assert_eq!(Entry::decode(&bytes), Ok(entry));
    assert_eq!(with(0, 9), Err(DecodeError::UnknownFormat { what: "log entry", format: 9 }));
    assert_eq!(with(4, 2), Err(DecodeError::UnknownLevel(Level(2))));
    assert_eq!(with(6, 99), Err(DecodeError::UnknownCommand(99)));
    assert!(matches!(Entry::decode(&bytes[..bytes.len() - 1]), Err(DecodeError::Malformed(..))));
    assert!(matches!(Entry::decode(&[&bytes[..], &[0]].concat()), Err(DecodeError::Malformed(..))));
    let later = Proposal::new(RaiseLevel { level: Level(2) }.into()).stamp(Level::FIRST, START);
    assert_eq!(Entry::decode(&later.encode()), Err(DecodeError::UnknownLevel(Level(2))));
}

#[test]
fn a_command_with_a_field_of_a_later_version_is_not_read_without_it() {
    #[derive(serde::Serialize)]
    struct Later {
        node: mesh_types::NodeId,
        reason: &'static str,
    }
    let command = Command::from(RemoveNode { node: node(1) });
    let mut bytes = Proposal::new(command.clone()).encode();
    assert_eq!(Proposal::decode(&bytes), Ok(Proposal::new(command)));
    bytes.truncate(4);
    ciborium::into_writer(&Later { node: node(1), reason: "lost" }, &mut bytes).unwrap();
    assert!(matches!(Proposal::decode(&bytes), Err(DecodeError::Malformed("RemoveNode", _))));
}

#[test]
fn a_registry_of_a_later_level_is_refused_by_name() {
    let world = World::with_token();
    let mut bytes = world.registry.encode();
    assert_eq!(Registry::decode(&bytes), Ok(world.registry.clone()));
    bytes[4] = 2;
    assert_eq!(Registry::decode(&bytes), Err(DecodeError::UnknownLevel(Level(2))));
    bytes[0] = 2;
    assert!(matches!(Registry::decode(&bytes), Err(DecodeError::UnknownFormat { format: 2, .. })));
}

#[test]
fn replies_survive_the_way_from_the_leader() {
    let replies = [
        Reply::Done,
        Reply::Node(World::with_token().join(1)),
        Reply::Coordinator(coordinator(1)),
        Reply::Rejected(Rejection::AddressesExhausted { next_free: Some(MeshTime(1)) }),
        Reply::Rejected(Rejection::KeyInUse { by: KeyHolder::Node(node(1)) }),
        Reply::Rejected(Rejection::OverlayUnusable(overlay("10.9.0.0/24"))),
    ];
    for reply in replies {
        assert_eq!(Reply::decode(&reply.encode()), Ok(reply));
    }
}

#[test]
fn every_refusal_says_what_to_do_next() {
    for rejection in [
        Rejection::TokenExpired { expired_at: START },
        Rejection::KeyBarred { by: KeyHolder::Node(node(1)) },
        Rejection::AddressesExhausted { next_free: Some(START) },
        Rejection::TooManyCoordinators,
    ] {
        let text = rejection.to_string();
        assert!(text.contains(": ") && text.len() > 40, "{text}");
    }
}
