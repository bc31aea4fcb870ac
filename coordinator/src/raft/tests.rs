//! The store under openraft's own suite, and small clusters whose messages are function calls.

mod platter;
mod power;

use super::log::LogStore;
use super::machine::Machine;
use super::membership::answers;
use super::types::{SnapshotMeta, Types, Vote};
use super::*;
use mesh_coordinator_core::command::{Command, CreateToken, Found, RevokeToken};
use mesh_types::netmap::Certificate;
use mesh_types::{CoordinatorRecord, Epoch, Fingerprint, IdentityKey, MeshDuration, MeshTime, Overlay, Role, TokenId};
use openraft::StorageError;
use openraft::testing::log::{StoreBuilder, Suite};
use std::path::Path;

struct Builder;

impl StoreBuilder<Types, LogStore, Machine, tempfile::TempDir> for Builder {
    async fn build(&self) -> Result<(tempfile::TempDir, LogStore, Machine), StorageError<Types>> {
        let root = tempfile::tempdir().unwrap();
        let disk = Disk::open(&root.path().join("raft.redb")).unwrap();
        Ok((root, LogStore::load(disk.clone()).unwrap(), Machine::new(disk, Level::SUPPORTED).0))
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_store_passes_the_suite_of_openraft() {
    Suite::test_all(Builder).await.unwrap();
}

/// Carries messages between the replicas of a test; whoever is cut off reaches nobody and is reached by nobody.
#[derive(Clone, Default)]
struct Switchboard(Arc<Mutex<Lines>>);

#[derive(Default)]
struct Lines {
    replicas: BTreeMap<u64, Raft>,
    cut: BTreeSet<u64>,
    /// Pairs that do not reach each other, the lower id first.
    cut_links: BTreeSet<(u64, u64)>,
}

#[derive(Clone)]
struct Line(u64, Switchboard);

impl Transport for Line {
    async fn call(&self, to: u64, kind: Kind, body: Vec<u8>, _timeout: Duration) -> Result<Bytes, CallError> {
        let target = {
            let lines = self.1.0.lock().unwrap();
            let link = (to.min(self.0), to.max(self.0));
            let cut = lines.cut.contains(&to) || lines.cut.contains(&self.0) || lines.cut_links.contains(&link);
            lines.replicas.get(&to).filter(|_| !cut).cloned()
        };
        let target = target.ok_or_else(|| CallError::Unreachable("cut".into()))?;
        target.handle(kind, &body).await.map(Bytes::from).map_err(CallError::Refused)
    }
}

impl Switchboard {
    async fn start(&self, id: u64, root: &Path) -> Raft {
        let path = root.join(format!("{id}.redb"));
        let mut disk = None;
        // A stopped Raft lets go of its store a moment after it says so.
        eventually("the store is free", || {
            disk = Disk::open(&path).ok();
            disk.is_some()
        })
        .await;
        self.start_on(id, disk.unwrap()).await
    }

    async fn start_on(&self, id: u64, disk: Disk) -> Raft {
        let timing = Timing { election: Duration::from_millis(150), heartbeat: Duration::from_millis(30) };
        let raft =
            Raft::start(CoordinatorId(id), timing, Level::SUPPORTED, disk, Line(id, self.clone())).await.unwrap();
        self.0.lock().unwrap().replicas.insert(id, raft.clone());
        raft
    }

    async fn stop(&self, id: u64) {
        let raft = self.0.lock().unwrap().replicas.remove(&id).unwrap();
        raft.shutdown().await;
    }

    fn cut(&self, id: u64) {
        self.0.lock().unwrap().cut.insert(id);
    }

    fn cut_link(&self, one: u64, other: u64) {
        self.0.lock().unwrap().cut_links.insert((one.min(other), one.max(other)));
    }
}

fn record(id: u64) -> CoordinatorRecord {
    CoordinatorRecord {
        id: CoordinatorId(id),
        name: format!("c{id}").parse().unwrap(),
        identity_key: IdentityKey::from_bytes([id as u8; 32]),
        addresses: vec![format!("192.0.2.{id}").parse().unwrap()],
    }
}

fn entry(command: impl Into<Command>) -> Entry {
    Entry { level: Level::FIRST, time: MeshTime(1_000), request: None, command: command.into() }
}

fn found() -> Entry {
    entry(Found {
        mesh: MeshId::from_bytes([1; 16]),
        overlay: Overlay::new("10.7.0.0/16".parse().unwrap(), "fd00::/48".parse().unwrap()).unwrap(),
        authority: Certificate(vec![1]),
        epoch: Epoch { counter: 1, id: 7 },
        key_ttl: MeshDuration::from_secs(86_400),
        coordinator: record(1),
    })
}

fn token_id(number: u8) -> TokenId {
    TokenId::from_bytes([number; 8])
}

fn secret_hash(number: u8) -> Fingerprint {
    Fingerprint::of(&[number])
}

fn token(number: u8, role: Role) -> Entry {
    entry(CreateToken {
        id: token_id(number),
        secret_hash: secret_hash(number),
        role,
        ttl: MeshDuration::from_secs(3_600),
        uses: 9,
    })
}

fn join(number: u8, id: u64) -> Entry {
    let record = record(id);
    entry(mesh_coordinator_core::command::JoinCoordinator {
        token: token_id(number),
        secret_hash: secret_hash(number),
        identity_key: record.identity_key,
        name: record.name,
        addresses: record.addresses,
    })
}

async fn write(raft: &Raft, entry: Entry) -> Reply {
    // A new leader is not a leader at once; nothing here waits longer than an election or two.
    for _ in 0..200 {
        match raft.propose(&entry).await {
            Ok(reply) => return reply,
            Err(ProposeError::NotLeader(_) | ProposeError::Uncertain) => {
                tokio::time::sleep(Duration::from_millis(20)).await
            }
            Err(error) => panic!("{error}"),
        }
    }
    panic!("no leader")
}

async fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    for _ in 0..500 {
        if holds() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("{what} did not come about")
}

async fn three(board: &Switchboard, root: &Path) -> [Raft; 3] {
    voters(board, root, 3).await.try_into().unwrap_or_else(|_| unreachable!())
}

/// So many replicas, all of whom vote; the first leads.
async fn voters(board: &Switchboard, root: &Path, count: u64) -> Vec<Raft> {
    let first = board.start(1, root).await;
    first.initialize().await.unwrap();
    write(&first, found()).await.granted().unwrap();
    write(&first, token(1, Role::Coordinator)).await.granted().unwrap();
    let mut all = vec![first.clone()];
    for id in 2..=count {
        all.push(board.start(id, root).await);
        write(&first, join(1, id)).await.granted().unwrap();
    }
    until_all_vote(&first, count).await;
    all
}

async fn until_all_vote(first: &Raft, count: u64) {
    for _ in 0..500 {
        let _ = first.step_membership().await;
        let voters = first.status().voters.len() as u64;
        if voters == count {
            break;
        }
        assert_eq!(voters % 2, 1, "never two voters");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(first.status().voters.len() as u64, count);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_single_replica_keeps_its_state_over_a_restart_with_and_without_snapshot() {
    let (root, board) = (tempfile::tempdir().unwrap(), Switchboard::default());
    let raft = board.start(1, root.path()).await;
    raft.initialize().await.unwrap();
    write(&raft, found()).await.granted().unwrap();
    write(&raft, token(1, Role::Node)).await.granted().unwrap();
    let hash = raft.view().read(Registry::hash);
    board.stop(1).await;
    drop(raft);

    let raft = board.start(1, root.path()).await;
    raft.initialize().await.unwrap();
    eventually("the same registry", || raft.view().read(Registry::hash) == hash).await;
    write(&raft, token(2, Role::Node)).await.granted().unwrap();
    raft.snapshot().await;
    write(&raft, entry(RevokeToken { id: token_id(1) })).await.granted().unwrap();
    let hash = raft.view().read(Registry::hash);
    board.stop(1).await;
    drop(raft);

    let raft = board.start(1, root.path()).await;
    eventually("the same registry again", || raft.view().read(Registry::hash) == hash).await;
    board.stop(1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn three_replicas_lose_their_leader_and_nothing_else() {
    let (root, board) = (tempfile::tempdir().unwrap(), Switchboard::default());
    let [first, second, third] = three(&board, root.path()).await;
    write(&first, token(2, Role::Node)).await.granted().unwrap();
    board.cut(1);
    eventually("another leader", || second.status().leads || third.status().leads).await;
    let leader = if second.status().leads { &second } else { &third };
    write(leader, token(3, Role::Node)).await.granted().unwrap();
    for raft in [&second, &third] {
        eventually("both tokens", || {
            raft.view().read(|registry| registry.token(token_id(2)).is_some() && registry.token(token_id(3)).is_some())
        })
        .await;
    }
    eventually("the old leader sees that it is alone", || !first.status().fresh).await;
    for id in [1, 2, 3] {
        board.stop(id).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn leadership_moves_on_request_and_a_removed_leader_hands_over() {
    let (root, board) = (tempfile::tempdir().unwrap(), Switchboard::default());
    let [first, second, third] = three(&board, root.path()).await;
    assert_eq!(first.transfer_leader(Some(CoordinatorId(3))).await, Ok(CoordinatorId(3)));
    eventually("three leads", || third.status().leads).await;
    let remove = mesh_coordinator_core::command::RemoveCoordinator { coordinator: CoordinatorId(3), destroy: false };
    write(&third, entry(remove)).await.granted().unwrap();
    for _ in 0..500 {
        for raft in [&first, &second, &third] {
            let _ = raft.step_membership().await;
        }
        let settled =
            |raft: &Raft| raft.status().voters.len() == 1 && raft.status().leads && raft.status().learners.len() == 1;
        if settled(&first) || settled(&second) {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let leader = if first.status().leads { &first } else { &second };
    let status = leader.status();
    assert_eq!((status.voters.len(), status.learners.len()), (1, 1), "{status:?}");
    assert!(!status.voters.contains(&CoordinatorId(3)) && !status.learners.contains(&CoordinatorId(3)));
    for id in [1, 2, 3] {
        board.stop(id).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_newcomer_gets_a_snapshot_when_the_log_is_gone() {
    let (root, board) = (tempfile::tempdir().unwrap(), Switchboard::default());
    let first = board.start(1, root.path()).await;
    first.initialize().await.unwrap();
    write(&first, found()).await.granted().unwrap();
    write(&first, token(1, Role::Coordinator)).await.granted().unwrap();
    write(&first, join(1, 2)).await.granted().unwrap();
    first.snapshot().await;
    first.inner.trigger().purge_log(first.status().applied - 1).await.unwrap();
    eventually("the log is purged", || first.inner.metrics().borrow_watched().purged.is_some()).await;
    let second = board.start(2, root.path()).await;
    eventually("a learner", || first.situation().is_some()).await;
    assert!(first.step_membership().await.unwrap());
    eventually("the registry arrives", || second.view().read(|registry| registry.coordinators().len() == 2)).await;
    let hashes = [&first, &second].map(|raft| raft.view().read(Registry::hash));
    assert_eq!(hashes[0], hashes[1]);
    for id in [1, 2] {
        board.stop(id).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn word_from_a_leader_without_a_quorum_keeps_nobody_fresh() {
    let (root, board) = (tempfile::tempdir().unwrap(), Switchboard::default());
    let all = voters(&board, root.path(), 5).await;
    eventually("all are fresh", || all.iter().all(|raft| raft.status().fresh)).await;
    let (leader, follower) = (&all[0], &all[1]);
    for id in [3, 4, 5] {
        board.cut(id);
    }
    eventually("the leader knows that it has no quorum", || !leader.status().fresh).await;
    eventually("its follower, too", || !follower.status().fresh).await;
    for id in 1..=5 {
        board.stop(id).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn leadership_is_not_handed_to_who_does_not_answer() {
    let (root, board) = (tempfile::tempdir().unwrap(), Switchboard::default());
    let [first, _, _] = three(&board, root.path()).await;
    board.cut(3);
    eventually("three is missed", || {
        !answers(&first.inner.metrics().borrow_watched(), 3) && answers(&first.inner.metrics().borrow_watched(), 2)
    })
    .await;
    let refused = first.transfer_leader(Some(CoordinatorId(3))).await.unwrap_err();
    assert!(refused.contains("does not answer"), "{refused}");
    assert_eq!(first.transfer_leader(None).await, Ok(CoordinatorId(2)));
    for id in [1, 2, 3] {
        board.stop(id).await;
    }
}

#[tokio::test]
async fn pieces_of_two_leaders_snapshots_are_never_put_together() {
    let (root, board) = (tempfile::tempdir().unwrap(), Switchboard::default());
    let raft = board.start(1, root.path()).await;
    let chunk = |term: u64, offset: u64, last: bool| {
        let leader_id = openraft::vote::leader_id_adv::LeaderId { term, node_id: 2 };
        let meta = SnapshotMeta {
            last_log_id: Some(types::LogId::new(leader_id, 9)),
            last_membership: types::StoredMembership::default(),
        };
        let vote = Vote { leader_id, committed: true };
        encode(&SnapshotChunk { vote, meta, offset, last, data: vec![7; 10] })
    };
    for (what, piece, goes_on) in [
        ("the new leader begins", chunk(5, 0, false), true),
        ("the old one goes on", chunk(4, 10, true), false),
        ("the old one begins again", chunk(4, 0, false), false),
        ("the new one is not disturbed", chunk(5, 10, false), true),
        ("a later one takes over", chunk(6, 0, false), true),
        ("and its piece follows on nothing else", chunk(5, 10, true), false),
    ] {
        let answer = raft.handle(Kind::SnapshotChunk, &piece).await.unwrap();
        let answer: ChunkReply = decode("answer", &answer).unwrap();
        assert_eq!(matches!(answer, ChunkReply::More), goes_on, "{what}");
    }
    board.stop(1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_that_reaches_one_voter_alone_does_not_keep_that_one_from_electing_another() {
    let (root, board) = (tempfile::tempdir().unwrap(), Switchboard::default());
    let all = voters(&board, root.path(), 5).await;
    // Two, three and four reach each other and are a majority; two also hears the old leader.
    board.cut(5);
    board.cut_link(1, 3);
    board.cut_link(1, 4);
    eventually("another leader", || all[1..4].iter().any(|raft| raft.status().leads && raft.status().fresh)).await;
    let leader = all[1..4].iter().find(|raft| raft.status().leads).unwrap();
    write(leader, token(2, Role::Node)).await.granted().unwrap();
    for id in 1..=5 {
        board.stop(id).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_stops_at_an_entry_that_it_does_not_understand_and_applies_nothing_after_it() {
    let (root, board) = (tempfile::tempdir().unwrap(), Switchboard::default());
    let raft = board.start(1, root.path()).await;
    raft.initialize().await.unwrap();
    write(&raft, found()).await.granted().unwrap();
    let before = raft.view().read(Registry::hash);
    let mut bytes = token(1, Role::Node).encode();
    // Format, level, then the command's number.
    bytes[5..7].copy_from_slice(&999_u16.to_be_bytes());
    let later = raft.inner.client_write(EntryBytes(Bytes::from(bytes))).await;
    assert!(later.is_err(), "{later:?}");
    let reason = raft.failed().await;
    assert!(reason.contains("command 999") && reason.contains("run the version that wrote it"), "{reason}");
    assert!(matches!(raft.propose(&token(2, Role::Node)).await, Err(ProposeError::Stopped(_))));
    assert_eq!(raft.view().read(Registry::hash), before);
}
