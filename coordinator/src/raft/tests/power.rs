//! Power loss and failing disks: what the store acknowledged is there afterwards, and nothing that is half written.

use super::super::disk::{self, Done, Write, key};
use super::super::record::{EntryRecord, LogIdRecord, VoteRecord};
use super::super::types::{LogId, Payload, RaftEntry};
use super::platter::{Chance, Fault, Platter};
use super::*;
use openraft::vote::leader_id_adv::LeaderId;
use std::sync::mpsc;
use tokio::sync::oneshot;

/// Enough to cut creation, every kind of write and recovery itself at each of their operations, many times over.
const SEEDS: u64 = 40;
/// How often each store loses power, and how many transactions it writes in between at most.
const LIVES: u32 = 4;
const GROUPS: u32 = 40;

/// What a store holds that obeyed some writes, all of them whole.
#[derive(Clone, Default, PartialEq, Eq, Debug)]
struct Held {
    log: BTreeMap<u64, Vec<u8>>,
    vote: Option<Vec<u8>>,
    purged: Option<Vec<u8>>,
    snapshot: Option<disk::PlaceAndContent>,
}

impl Held {
    fn obey(&mut self, write: &Write) {
        match write.clone() {
            Write::Append(entries) => self.log.extend(entries),
            Write::Vote(record) => self.vote = Some(record),
            Write::Truncate(from) => drop(self.log.split_off(&from)),
            Write::Purge(upto, record) => {
                self.log = self.log.split_off(&(upto + 1));
                self.purged = Some(record);
            }
            Write::Snapshot { place, content, .. } => self.snapshot = Some((place, content)),
            Write::Committed(_) | Write::Owner(_) => {}
        }
    }

    fn read(disk: &Disk) -> Self {
        Self {
            log: disk.read_log().unwrap().into_iter().collect(),
            vote: disk.read(key::VOTE).unwrap(),
            purged: disk.read(key::PURGED).unwrap(),
            snapshot: disk.read_snapshot().unwrap(),
        }
    }
}

/// Writes as Raft makes them, in groups of which each is waited for.
struct Script {
    chance: Chance,
    term: u64,
    next: u64,
    snapshot: u64,
    purged: u64,
}

impl Script {
    fn new(seed: u64) -> Self {
        Self { chance: Chance(seed), term: 1, next: 0, snapshot: 0, purged: 0 }
    }

    /// Goes on from what is held.
    fn resume(&mut self, held: &Held) {
        let after = |record: &Vec<u8>| LogId::from(decode::<LogIdRecord>("place", record).unwrap()).index() + 1;
        self.purged = held.purged.as_ref().map_or(0, after);
        self.snapshot = held.snapshot.as_ref().map_or(0, |(place, _)| after(place));
        self.next = held.log.last_key_value().map_or(self.purged, |(index, _)| index + 1);
    }

    fn group(&mut self) -> Vec<Write> {
        (0..=self.chance.below(4)).map(|_| self.write()).collect()
    }

    fn write(&mut self) -> Write {
        let leader = LeaderId { term: self.term, node_id: 1 };
        let place = |index: u64| encode(&LogIdRecord::from(&LogId::new(leader, index)));
        match self.chance.below(16) {
            0 | 1 => {
                self.term += 1;
                let leader_id = LeaderId { term: self.term, node_id: 1 };
                Write::Vote(encode(&VoteRecord::from(&Vote { leader_id, committed: false })))
            }
            2 if self.next > self.snapshot => {
                self.next = self.snapshot + self.chance.below(self.next - self.snapshot);
                Write::Truncate(self.next)
            }
            3 if self.next > 0 => Write::Committed(place(self.next - 1)),
            4 if self.next > self.snapshot => {
                self.snapshot = self.next;
                let size = self.chance.below(40_000);
                let content = self.chance.bytes(size);
                Write::Snapshot { next: self.next, place: place(self.next - 1), content }
            }
            5 if self.snapshot > self.purged => {
                self.purged += 1 + self.chance.below(self.snapshot - self.purged);
                Write::Purge(self.purged - 1, place(self.purged - 1))
            }
            _ => {
                let entries = (0..=self.chance.below(3)).map(|_| {
                    let log_id = LogId::new(leader, self.next);
                    self.next += 1;
                    let size = self.chance.below(3_000);
                    let payload = Payload::Normal(EntryBytes(Bytes::from(self.chance.bytes(size))));
                    (log_id.index(), encode(&EntryRecord::from(&RaftEntry { log_id, payload })))
                });
                Write::Append(entries.collect())
            }
        }
    }
}

/// Everything that was asked for, and how much of it was acknowledged.
struct Written {
    /// What the store holds after so many writes.
    states: Vec<Held>,
    acknowledged: usize,
}

impl Written {
    fn on(held: Held) -> Self {
        Self { states: vec![held], acknowledged: 0 }
    }

    fn ask(&mut self, write: &Write) {
        let mut state = self.states.last().cloned().unwrap_or_default();
        state.obey(write);
        self.states.push(state);
    }

    /// Opens what is left, and compares: every acknowledged write is there, those under way are there up to some point.
    fn check(&self, platter: &Platter, what: &str) -> Held {
        let disk = Disk::on(platter.clone()).unwrap_or_else(|error| panic!("{what}: {error}"));
        let held = Held::read(&disk);
        let possible = &self.states[self.acknowledged..];
        assert!(possible.contains(&held), "{what}: not what was acknowledged: {} writes", self.acknowledged);
        LogStore::load(disk).unwrap_or_else(|error| panic!("{what}: {error}"));
        held
    }
}

/// Writes groups, each in one transaction, until the power goes or the script ends.
fn write_until_the_cut(platter: &Platter, script: &mut Script, written: &mut Written) {
    let Ok(database) = redb::Builder::new().create_with_backend(platter.clone()) else { return };
    if disk::set_up(&database).is_err() {
        return;
    }
    for _ in 0..GROUPS {
        let (queue, receiver) = mpsc::channel();
        let mut answers = Vec::new();
        for write in script.group() {
            written.ask(&write);
            // Nobody waits for a commit index.
            let (sender, answer) = oneshot::channel();
            let done = if matches!(write, Write::Committed(_)) { Done::Nobody } else { Done::Signal(sender) };
            answers.push(answer);
            queue.send((write, done)).unwrap();
        }
        drop(queue);
        // On this thread, so that nothing but the seed says what goes into one transaction.
        disk::write_loop(&database, &receiver);
        let asked = written.states.len() - 1 - answers.len();
        for (number, mut answer) in answers.into_iter().enumerate() {
            match answer.try_recv() {
                Ok(Ok(())) => written.acknowledged = asked + number + 1,
                Ok(Err(_)) => return,
                Err(_) => {}
            }
        }
    }
}

#[test]
fn a_power_cut_at_any_moment_costs_nothing_that_was_acknowledged_and_leaves_nothing_half_written() {
    let only = std::env::var("MESH_SEED").ok().map(|seed| seed.parse().unwrap());
    let (mut cut_short, mut acknowledged) = (0, 0);
    for seed in only.map_or(0..SEEDS, |seed: u64| seed..seed + 1) {
        let replay = format!("seed {seed} (MESH_SEED={seed} cargo test -p mesh-coordinator --lib power_cut_at_any)");
        let (mut script, mut platter, mut held) = (Script::new(seed), Platter::default(), Held::default());
        for _ in 0..LIVES {
            script.resume(&held);
            let mut written = Written::on(held);
            platter.fail_after(script.chance.below(700), Fault::PowerCut);
            write_until_the_cut(&platter, &mut script, &mut written);
            cut_short += usize::from(written.states.len() > written.acknowledged + 1);
            acknowledged += written.acknowledged;
            platter.cut();
            platter = platter.after_the_cut(&mut script.chance);
            // It may go again while the store is opened after the first time.
            while script.chance.below(3) == 0 {
                platter.fail_after(script.chance.below(60), Fault::PowerCut);
                drop(Disk::on(platter.clone()));
                platter = platter.after_the_cut(&mut script.chance);
            }
            held = written.check(&platter, &replay);
        }
    }
    assert!(only.is_some() || (cut_short > 40 && acknowledged > 2_000), "{cut_short} cut, {acknowledged} acknowledged");
}

#[tokio::test]
async fn after_a_failed_sync_or_a_full_disk_nothing_is_acknowledged_any_more_and_nothing_acknowledged_is_lost() {
    for (fault, error) in [(Fault::LostSync, "Input/output error"), (Fault::Full, "storage space")] {
        for seed in 0..40 {
            let (platter, mut script) = (Platter::default(), Script::new(seed));
            let disk = Disk::on(platter.clone()).unwrap();
            let mut written = Written::on(Held::default());
            platter.fail_after(script.chance.below(120), fault);
            let mut said = String::new();
            while said.is_empty() {
                let write = script.write();
                if matches!(write, Write::Committed(_)) {
                    continue;
                }
                written.ask(&write);
                match disk.write_durably(write).await {
                    Ok(()) => written.acknowledged = written.states.len() - 1,
                    Err(error) => said = error.to_string(),
                }
                assert!(written.states.len() < 1_000, "the fault is not noticed");
            }
            assert!(said.contains("Raft store cannot be written") && said.contains(error), "{said}");
            for _ in 0..3 {
                let write = script.write();
                if !matches!(write, Write::Committed(_)) {
                    assert_eq!(disk.write_durably(write).await.unwrap_err().to_string(), said);
                }
            }
            drop(disk);
            platter.cut();
            written.check(&platter.after_the_cut(&mut script.chance), &format!("{fault:?}, seed {seed}"));
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_whose_disk_fails_stops_with_the_reason() {
    let board = Switchboard::default();
    let platter = Platter::default();
    let raft = board.start_on(1, Disk::on(platter.clone()).unwrap()).await;
    raft.initialize().await.unwrap();
    write(&raft, found()).await.granted().unwrap();
    platter.fail_after(0, Fault::LostSync);
    assert!(matches!(raft.propose(&token(1, Role::Node)).await, Err(ProposeError::Stopped(_))));
    let reason = raft.failed().await;
    assert!(reason.contains("Raft store cannot be written") && reason.contains("Input/output error"), "{reason}");
    assert!(matches!(raft.propose(&token(2, Role::Node)).await, Err(ProposeError::Stopped(_))));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_that_loses_power_again_and_again_keeps_every_acknowledged_write() {
    let (mut site, mut chance) = (Site::new().await, Chance(1));
    let mut acknowledged = BTreeSet::new();
    for round in 0..12_u8 {
        let leader = site.leader().await;
        let mut writing = tokio::task::JoinSet::new();
        for number in (0..16).map(|number| 2 + round * 16 + number) {
            let raft = site.replicas[&leader].clone();
            writing.spawn(async move {
                matches!(raft.propose(&token(number, Role::Node)).await, Ok(Reply::TokenCreated { .. }))
                    .then_some(number)
            });
        }
        if round % 4 == 3 {
            site.compact(leader).await;
        }
        for _ in 0..chance.below(16) {
            acknowledged.extend(writing.join_next().await.unwrap().unwrap());
        }
        // One, be it the leader or not, or the whole site.
        let struck = match chance.below(3) {
            0 => vec![1 + chance.below(3)],
            1 => vec![leader],
            _ => vec![1, 2, 3],
        };
        site.cut(&struck).await;
        while let Some(written) = writing.join_next().await {
            acknowledged.extend(written.unwrap());
        }
        site.power_on(&struck, &mut chance).await;
        site.check(&acknowledged, round).await;
    }
    assert!(acknowledged.len() > 48, "{} writes were acknowledged", acknowledged.len());
    for id in 1..=3 {
        site.board.stop(id).await;
    }
}

/// Three replicas that vote, on disks of which the plug can be pulled.
struct Site {
    board: Switchboard,
    platters: BTreeMap<u64, Platter>,
    replicas: BTreeMap<u64, Raft>,
}

impl Site {
    async fn new() -> Self {
        let (board, mut platters, mut replicas) = (Switchboard::default(), BTreeMap::new(), BTreeMap::new());
        for id in 1..=3 {
            let platter = Platter::default();
            replicas.insert(id, board.start_on(id, Disk::on(platter.clone()).unwrap()).await);
            platters.insert(id, platter);
        }
        let first = &replicas[&1];
        first.initialize().await.unwrap();
        for entry in [found(), token(1, Role::Coordinator), join(1, 2), join(1, 3)] {
            write(first, entry).await.granted().unwrap();
        }
        until_all_vote(first, 3).await;
        Self { board, platters, replicas }
    }

    /// The replica that leads, and whose lead a quorum confirms.
    async fn leader(&self) -> u64 {
        for _ in 0..500 {
            for (id, raft) in &self.replicas {
                if raft.status().leads && raft.read_point().await.is_ok() {
                    return *id;
                }
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        panic!("no leader")
    }

    /// Who is behind gets a snapshot from now on, since the log before it is gone.
    async fn compact(&self, leader: u64) {
        let raft = &self.replicas[&leader];
        raft.snapshot().await;
        raft.inner.trigger().purge_log(raft.status().applied - 1).await.unwrap();
    }

    async fn cut(&mut self, struck: &[u64]) {
        for id in struck {
            self.platters[id].cut();
        }
        for id in struck {
            self.board.stop(*id).await;
            self.replicas.remove(id);
        }
    }

    async fn power_on(&mut self, struck: &[u64], chance: &mut Chance) {
        for id in struck {
            let found = self.platters[id].after_the_cut(chance);
            self.replicas.insert(*id, self.board.start_on(*id, Disk::on(found.clone()).unwrap()).await);
            self.platters.insert(*id, found);
        }
    }

    /// A consistent read at any replica shows every acknowledged token, and all replicas hold the same.
    async fn check(&self, acknowledged: &BTreeSet<u8>, round: u8) {
        let point = self.replicas[&self.leader().await].read_point().await.unwrap();
        let mut hashes = BTreeSet::new();
        for raft in self.replicas.values() {
            raft.wait_applied(point).await;
            let (lost, hash) = raft.view().read(|registry| {
                let lost = acknowledged.iter().filter(|number| registry.token(token_id(**number)).is_none());
                (lost.copied().collect::<Vec<u8>>(), registry.hash().to_string())
            });
            assert!(lost.is_empty(), "round {round}: tokens {lost:?} were acknowledged and are not there");
            hashes.insert(hash);
        }
        assert_eq!(hashes.len(), 1, "round {round}");
    }
}
