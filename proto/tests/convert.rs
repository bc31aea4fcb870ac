//! The wire and the words: what is said is understood again, and nonsense is refused by name.

#![allow(clippy::unwrap_used)] // In tests, which end by it.

use mesh_proto::convert::{Wire, WireError};
use mesh_proto::v1;
use mesh_types::limits::{
    MAX_AUTHORITIES, MAX_COORDINATOR_ADDRESSES, MAX_COORDINATORS, MAX_DIGEST_BUCKETS, MAX_PRESENCE_PAYLOAD,
    MAX_SOFTWARE, PRESENCE_BATCH, SNAPSHOT_PAGE,
};
use mesh_types::netmap::Certificate;
use mesh_types::session::{CloseReason, Hello, PresenceUpdate, SnapshotPage, Tick, Welcome};
use mesh_types::{
    Changes, CoordinatorId, CoordinatorMessage, CoordinatorRecord, Epoch, IdentityKey, Incarnation, Level, MeshConfig,
    MeshDuration, MeshId, MeshTime, NodeId, NodeMessage, NodeRecord, Overlay, OverlayAddresses, PublicKey, Revision,
    Signature, SignedPresence,
};
use proptest::prelude::*;
use prost::Message as _;

prop_compose! {
    fn epoch()(counter: u64, id: u64) -> Epoch {
        Epoch { counter, id }
    }
}

prop_compose! {
    fn node_record()(
        id: [u8; 16], name in "[a-z0-9]([a-z0-9-]{0,20}[a-z0-9])?", key: [u8; 32], identity: [u8; 32], v4: [u8; 4],
        v6: [u8; 16], expires: u64, revision: u64,
    ) -> NodeRecord {
        NodeRecord {
            id: NodeId::from_bytes(id),
            name: name.parse().unwrap(),
            public_key: PublicKey::from_bytes(key),
            identity_key: IdentityKey::from_bytes(identity),
            addresses: OverlayAddresses { v4: v4.into(), v6: v6.into() },
            expires_at: MeshTime(expires),
            revision: Revision(revision),
        }
    }
}

prop_compose! {
    fn coordinator()(
        id: u64, identity: [u8; 32],
        addresses in proptest::collection::vec(
            prop_oneof!["[a-z]{1,10}\\.example\\.org:[1-9][0-9]{0,3}", "192\\.0\\.2\\.[1-9]", "\\[2001:db8::[1-9a-f]\\]:7"],
            1..=MAX_COORDINATOR_ADDRESSES,
        ),
    ) -> CoordinatorRecord {
        CoordinatorRecord {
            id: CoordinatorId(id),
            name: "coordinator".parse().unwrap(),
            identity_key: IdentityKey::from_bytes(identity),
            addresses: addresses.iter().map(|address| address.parse().unwrap()).collect(),
        }
    }
}

prop_compose! {
    fn config()(
        mesh: [u8; 16], octet: u8, prefix in 8u8..=29, ttl: u64, revision: u64,
        authorities in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 1..100), 1..=MAX_AUTHORITIES),
        coordinators in proptest::collection::vec(coordinator(), 0..=MAX_COORDINATORS),
    ) -> MeshConfig {
        let v4 = format!("10.{octet}.0.0/{prefix}").parse().unwrap();
        MeshConfig {
            mesh: MeshId::from_bytes(mesh),
            overlay: Overlay::new(v4, "fd00:1:2::/48".parse().unwrap()).unwrap(),
            authorities: authorities.into_iter().map(Certificate).collect(),
            coordinators,
            key_ttl: MeshDuration(ttl),
            revision: Revision(revision),
        }
    }
}

prop_compose! {
    fn presence()(
        payload in proptest::collection::vec(any::<u8>(), 0..=MAX_PRESENCE_PAYLOAD), half: [u8; 32],
    ) -> SignedPresence {
        let signature = Signature::try_from([half, half].concat().as_slice()).unwrap();
        SignedPresence { payload, signature }
    }
}

prop_compose! {
    fn tick()(
        time: u64, fresh: bool, leader in proptest::option::of(any::<u64>()),
        voters in proptest::collection::btree_set(any::<u64>(), 0..=MAX_COORDINATORS),
    ) -> Tick {
        let voters = voters.into_iter().map(CoordinatorId).collect();
        Tick { time: MeshTime(time), fresh, leader: leader.map(CoordinatorId), voters }
    }
}

prop_compose! {
    fn hello()(
        mesh: [u8; 16], epoch in proptest::option::of(epoch()), revision: u64, level: u32, instance: u64,
        software in "[ -~]{0,64}", presence in proptest::collection::vec(any::<u64>(), 0..4),
    ) -> Hello {
        Hello {
            mesh: MeshId::from_bytes(mesh), epoch, revision: Revision(revision), level: Level(level), instance, software, presence,
        }
    }
}

fn ids() -> impl Strategy<Value = Vec<NodeId>> {
    proptest::collection::vec(any::<[u8; 16]>().prop_map(NodeId::from_bytes), 0..5)
}

fn records() -> impl Strategy<Value = Vec<NodeRecord>> {
    proptest::collection::vec(node_record(), 0..4)
}

fn coordinator_message() -> impl Strategy<Value = CoordinatorMessage> {
    let welcome = (any::<u64>(), epoch(), any::<u64>(), tick()).prop_map(|(coordinator, epoch, incarnation, tick)| {
        let (coordinator, incarnation) = (CoordinatorId(coordinator), Incarnation(incarnation));
        CoordinatorMessage::Welcome(Welcome { coordinator, epoch, incarnation, tick })
    });
    let settings = || proptest::option::of(config());
    let page = (any::<u64>(), settings(), records(), any::<bool>()).prop_map(|(revision, config, nodes, last)| {
        CoordinatorMessage::Snapshot(SnapshotPage { revision: Revision(revision), config, nodes, last })
    });
    let delta =
        (any::<[u32; 2]>(), records(), ids(), settings()).prop_map(|([from, more], upserts, removals, config)| {
            let (from, to) = (Revision(from.into()), Revision(u64::from(from) + u64::from(more)));
            CoordinatorMessage::Delta(Changes { from, to, upserts, removals, config })
        });
    let update = (proptest::collection::vec(presence(), 0..4), ids(), ids()).prop_map(|(records, online, offline)| {
        CoordinatorMessage::Presence(PresenceUpdate { records, online, offline })
    });
    let close = proptest::sample::select(vec![
        CloseReason::Removed,
        CloseReason::DuplicateIdentity,
        CloseReason::WrongHistory,
        CloseReason::Protocol,
        CloseReason::SlowReader,
        CloseReason::GoElsewhere,
        CloseReason::Full,
    ]);
    prop_oneof![
        welcome,
        page,
        delta,
        update,
        tick().prop_map(CoordinatorMessage::Tick),
        close.prop_map(CoordinatorMessage::Close),
        Just(CoordinatorMessage::Ping)
    ]
}

/// Over the bytes, as a stream does it.
fn over_the_wire<T: Wire<Message: prost::Message + Default>>(value: &T) -> Result<T, WireError> {
    T::from_wire(T::Message::decode(value.to_wire().encode_to_vec().as_slice()).unwrap())
}

proptest! {
    #[test]
    fn what_a_coordinator_says_is_understood_again(message in coordinator_message()) {
        prop_assert_eq!(over_the_wire(&message), Ok(message));
    }

    #[test]
    fn what_a_node_says_is_understood_again(hello in hello(), presence in presence()) {
        for message in [NodeMessage::Hello(hello), NodeMessage::Presence(presence), NodeMessage::Pong] {
            prop_assert_eq!(over_the_wire(&message), Ok(message));
        }
    }

    #[test]
    fn hostile_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        let _ = v1::NodeMessage::decode(bytes.as_slice()).map(NodeMessage::from_wire);
        let _ = v1::CoordinatorMessage::decode(bytes.as_slice()).map(CoordinatorMessage::from_wire);
        let _ = v1::MeshConfig::decode(bytes.as_slice()).map(MeshConfig::from_wire);
        let _ = v1::NodeRecord::decode(bytes.as_slice()).map(NodeRecord::from_wire);
    }

    #[test]
    fn a_message_damaged_on_the_way_never_panics(
        message in coordinator_message(), index: prop::sample::Index, value: u8,
    ) {
        let mut bytes = message.to_wire().encode_to_vec();
        if !bytes.is_empty() {
            let index = index.index(bytes.len());
            bytes[index] = value;
        }
        let _ = v1::CoordinatorMessage::decode(bytes.as_slice()).map(CoordinatorMessage::from_wire);
    }
}

#[test]
fn a_message_to_many_sessions_is_encoded_once_and_shared() {
    use v1::coordinator_message::Message;
    let bytes = |message: &v1::CoordinatorMessage| match &message.message {
        Some(Message::Tick(bytes)) => bytes.as_ptr(),
        other => panic!("expected a tick, got {other:?}"),
    };
    let tick = Tick { time: MeshTime(1), fresh: true, leader: None, voters: [CoordinatorId(1)].into() };
    let message = CoordinatorMessage::Tick(tick).to_wire();
    assert_eq!(bytes(&message), bytes(&message.clone()));
}

#[test]
fn messages_that_only_a_later_version_knows_can_be_skipped() {
    assert!(NodeMessage::from_wire(v1::NodeMessage { message: None }).unwrap_err().is_unknown());
    assert!(CoordinatorMessage::from_wire(v1::CoordinatorMessage { message: None }).unwrap_err().is_unknown());
    for reason in [0, 99] {
        assert!(CloseReason::from_wire(v1::Close { reason }).unwrap_err().is_unknown());
    }
}

#[test]
fn an_error_names_the_field() {
    let record = v1::NodeRecord { id: vec![0; 3].into(), ..Default::default() };
    let error = NodeRecord::from_wire(record).unwrap_err();
    assert!(!error.is_unknown());
    assert_eq!(error.to_string(), "NodeRecord.id is not valid: node id: expected 16 bytes, got 3");
    let error = Welcome::from_wire(v1::Welcome::default()).unwrap_err();
    assert_eq!(error.to_string(), "Welcome.epoch is missing");
}

#[test]
fn more_than_any_honest_sender_says_is_refused() {
    let page = v1::SnapshotPage { nodes: vec![v1::NodeRecord::default(); SNAPSHOT_PAGE + 1], ..Default::default() };
    assert_eq!(too_many(SnapshotPage::from_wire(page)), "SnapshotPage.nodes");
    let records = vec![v1::SignedPresence::default(); PRESENCE_BATCH + 1];
    let update = v1::PresenceUpdate { records, ..Default::default() };
    assert_eq!(too_many(PresenceUpdate::from_wire(update)), "PresenceUpdate.records");
    let presence = v1::SignedPresence { payload: vec![0; MAX_PRESENCE_PAYLOAD + 1].into(), ..Default::default() };
    assert_eq!(too_many(SignedPresence::from_wire(presence)), "SignedPresence.payload");
    let tick = v1::Tick { voters: vec![1; 2 * MAX_COORDINATORS + 1], ..Default::default() };
    assert_eq!(too_many(Tick::from_wire(tick)), "Tick.voters");
    let hello = v1::Hello { presence: vec![0; MAX_DIGEST_BUCKETS + 1], ..Default::default() };
    assert_eq!(too_many(Hello::from_wire(hello)), "Hello.presence");
    let addresses = vec!["192.0.2.1".to_owned(); MAX_COORDINATOR_ADDRESSES + 1];
    let record = v1::CoordinatorRecord { addresses, ..Default::default() };
    assert_eq!(too_many(CoordinatorRecord::from_wire(record)), "CoordinatorRecord.addresses");
}

fn too_many<T: std::fmt::Debug>(result: Result<T, WireError>) -> &'static str {
    match result {
        Err(WireError::TooMany { field, .. }) => field,
        other => panic!("expected too many, got {other:?}"),
    }
}

#[test]
fn a_delta_that_goes_back_is_refused() {
    let delta = v1::Delta { from: 5, to: 4, ..Default::default() };
    assert!(matches!(Changes::from_wire(delta), Err(WireError::Invalid { field: "Delta.to", .. })));
}

#[test]
fn one_record_that_is_not_understood_does_not_silence_the_others() {
    let good = v1::SignedPresence { payload: vec![1].into(), signature: vec![2; 64].into() };
    let bad = v1::SignedPresence { signature: vec![2; 63].into(), ..good.clone() };
    let update = v1::PresenceUpdate { records: vec![bad, good], ..Default::default() };
    assert_eq!(PresenceUpdate::from_wire(update).unwrap().records.len(), 1);
}

#[test]
fn a_software_version_is_cut_and_cleaned() {
    let hello = v1::Hello {
        mesh: vec![0; 16].into(),
        software: format!("a\x1b[31m\n{}", "x".repeat(100)),
        ..Default::default()
    };
    let software = Hello::from_wire(hello).unwrap().software;
    assert_eq!(software.chars().count(), MAX_SOFTWARE);
    assert!(software.starts_with("a[31mxxx"));
}
