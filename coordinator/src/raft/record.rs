//! What Raft keeps on disk, in versioned records of our own: vote, log ids, entries, membership, snapshot.
//!
//! A record is one format byte and CBOR. openraft's own serialised forms never reach the disk, so that a later openraft
//! reads what an earlier one wrote.

use super::types::{EntryBytes, LogId, Payload, RaftEntry, SnapshotMeta, StoredMembership, Vote};
use bytes::Bytes;
use openraft::{EmptyNode, Membership};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::io;

const FORMAT: u8 = 1;

/// Encodes one record.
pub(super) fn encode<T: Serialize>(record: &T) -> Vec<u8> {
    let mut out = vec![FORMAT];
    ciborium::into_writer(record, &mut out).expect("a record of plain data always encodes into memory");
    out
}

/// Decodes one record; `what` names it in the error.
pub(super) fn decode<T: DeserializeOwned>(what: &str, bytes: &[u8]) -> io::Result<T> {
    match bytes.split_first() {
        Some((&FORMAT, body)) => {
            ciborium::from_reader(body).map_err(|error| damaged(format!("{what} on disk is damaged: {error}")))
        }
        Some((format, _)) => Err(damaged(format!(
            "{what} on disk has format {format}, this version reads {FORMAT}: run the version that wrote it, or a later one"
        ))),
        None => Err(damaged(format!("{what} on disk is empty"))),
    }
}

fn damaged(message: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, message)
}

/// A log id: the term and leader that wrote an entry, and its place.
#[derive(Serialize, Deserialize, Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct LogIdRecord {
    term: u64,
    leader: u64,
    index: u64,
}

impl From<&LogId> for LogIdRecord {
    fn from(id: &LogId) -> Self {
        let leader = id.committed_leader_id();
        Self { term: leader.term, leader: leader.node_id, index: id.index() }
    }
}

impl From<LogIdRecord> for LogId {
    fn from(record: LogIdRecord) -> Self {
        let leader = openraft::vote::leader_id_adv::LeaderId { term: record.term, node_id: record.leader };
        LogId::new(leader, record.index)
    }
}

/// The vote of this replica.
#[derive(Serialize, Deserialize, Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct VoteRecord {
    term: u64,
    candidate: u64,
    committed: bool,
}

impl From<&Vote> for VoteRecord {
    fn from(vote: &Vote) -> Self {
        Self { term: vote.leader_id.term, candidate: vote.leader_id.node_id, committed: vote.committed }
    }
}

impl From<VoteRecord> for Vote {
    fn from(record: VoteRecord) -> Self {
        let leader_id = openraft::vote::leader_id_adv::LeaderId { term: record.term, node_id: record.candidate };
        Vote { leader_id, committed: record.committed }
    }
}

/// Who votes (two sets while a change is under way) and who is a member at all.
#[derive(Serialize, Deserialize, Clone, PartialEq, Eq, Debug)]
pub(super) struct MembershipRecord {
    voters: Vec<BTreeSet<u64>>,
    members: BTreeSet<u64>,
}

impl From<&Membership<u64, EmptyNode>> for MembershipRecord {
    fn from(membership: &Membership<u64, EmptyNode>) -> Self {
        Self { voters: membership.get_joint_config().clone(), members: membership.nodes().map(|(id, _)| *id).collect() }
    }
}

impl MembershipRecord {
    fn into_membership(self) -> io::Result<Membership<u64, EmptyNode>> {
        if self.voters.is_empty() && self.members.is_empty() {
            return Ok(Membership::default());
        }
        let nodes: BTreeMap<u64, EmptyNode> = self.members.into_iter().map(|id| (id, EmptyNode {})).collect();
        Membership::new(self.voters, nodes).map_err(|error| damaged(format!("membership on disk is damaged: {error}")))
    }
}

#[derive(Serialize, Deserialize)]
enum PayloadRecord {
    Blank,
    Command(#[serde(with = "serde_bytes")] Vec<u8>),
    Membership(MembershipRecord),
}

/// One log entry.
#[derive(Serialize, Deserialize)]
pub(super) struct EntryRecord {
    id: LogIdRecord,
    payload: PayloadRecord,
}

impl From<&RaftEntry> for EntryRecord {
    fn from(entry: &RaftEntry) -> Self {
        let payload = match &entry.payload {
            Payload::Blank => PayloadRecord::Blank,
            Payload::Normal(bytes) => PayloadRecord::Command(bytes.0.to_vec()),
            Payload::Membership(membership) => PayloadRecord::Membership(membership.into()),
        };
        Self { id: (&entry.log_id).into(), payload }
    }
}

impl EntryRecord {
    /// The entry as openraft takes it.
    pub(super) fn into_entry(self) -> io::Result<RaftEntry> {
        let payload = match self.payload {
            PayloadRecord::Blank => Payload::Blank,
            PayloadRecord::Command(bytes) => Payload::Normal(EntryBytes(Bytes::from(bytes))),
            PayloadRecord::Membership(record) => Payload::Membership(record.into_membership()?),
        };
        Ok(RaftEntry { log_id: self.id.into(), payload })
    }
}

/// Where a snapshot stands in the log; the registry's own encoding lies beside it.
#[derive(Serialize, Deserialize)]
pub(super) struct SnapshotRecord {
    last: Option<LogIdRecord>,
    membership_id: Option<LogIdRecord>,
    membership: MembershipRecord,
}

impl From<&SnapshotMeta> for SnapshotRecord {
    fn from(meta: &SnapshotMeta) -> Self {
        Self {
            last: meta.last_log_id.as_ref().map(LogIdRecord::from),
            membership_id: meta.last_membership.log_id().as_ref().map(LogIdRecord::from),
            membership: meta.last_membership.membership().into(),
        }
    }
}

impl SnapshotRecord {
    /// The snapshot's place as openraft takes it.
    pub(super) fn into_meta(self) -> io::Result<SnapshotMeta> {
        let membership = self.membership.into_membership()?;
        Ok(SnapshotMeta {
            last_log_id: self.last.map(LogId::from),
            last_membership: StoredMembership::new(self.membership_id.map(LogId::from), membership),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_of_a_later_format_is_refused_with_both_formats() {
        let mut bytes = encode(&VoteRecord { term: 3, candidate: 1, committed: true });
        bytes[0] = 9;
        let error = decode::<VoteRecord>("vote", &bytes).unwrap_err().to_string();
        assert!(error.contains("format 9") && error.contains("reads 1"), "{error}");
    }

    #[test]
    fn entries_of_every_kind_survive_their_record() {
        let id = LogId::from(LogIdRecord { term: 2, leader: 1, index: 7 });
        let voters = vec![BTreeSet::from([1]), BTreeSet::from([1, 2, 3])];
        let nodes: BTreeMap<u64, EmptyNode> = (1..=4).map(|id| (id, EmptyNode {})).collect();
        for payload in [
            Payload::Blank,
            Payload::Normal(EntryBytes(Bytes::from_static(b"command"))),
            Payload::Membership(Membership::new(voters.clone(), nodes.clone()).unwrap()),
        ] {
            let entry = RaftEntry { log_id: id, payload };
            let bytes = encode(&EntryRecord::from(&entry));
            assert_eq!(decode::<EntryRecord>("entry", &bytes).unwrap().into_entry().unwrap(), entry);
        }
    }
}
