//! The store while Raft does not run: what is left in it, and how one begins that has no log before it.

use super::disk::{Disk, Write, key};
use super::record::{self, EntryRecord, LogIdRecord, SnapshotRecord, VoteRecord};
use super::types::{LogId, Payload, SnapshotMeta, StoredMembership, Vote};
use mesh_coordinator_core::{Entry, Registry};
use mesh_types::CoordinatorId;
use openraft::vote::leader_id_adv::LeaderId;
use openraft::{EmptyNode, LogIdOptionExt as _, Membership};
use std::collections::{BTreeMap, BTreeSet};
use std::io;

/// What is left in a store.
pub(crate) struct Remains {
    /// The registry, with everything in the log applied.
    pub(crate) registry: Registry,
    /// Above every term that the replica took part in.
    pub(crate) term: u64,
    /// Above every index in the log.
    pub(crate) index: u64,
}

impl Disk {
    /// Reads what is left. The end of the log is taken too, although it may not be committed: with the majority gone
    /// nobody can say, and an acknowledged write weighs more than an unacknowledged one.
    pub(crate) fn remains(&self) -> io::Result<Remains> {
        let (mut registry, mut last) = (Registry::new(), None);
        if let Some(bytes) = self.read(key::SNAPSHOT)? {
            last = record::decode::<SnapshotRecord>("snapshot", &bytes)?.into_meta()?.last_log_id;
            let content = self.read(key::SNAPSHOT_DATA)?.unwrap_or_default();
            registry = Registry::decode(&content).map_err(invalid)?;
        }
        let vote = self.read(key::VOTE)?;
        let vote = vote.map(|bytes| record::decode::<VoteRecord>("vote", &bytes)).transpose()?.map(Vote::from);
        for (index, bytes) in self.read_log()? {
            let entry = record::decode::<EntryRecord>("log entry", &bytes)?.into_entry()?;
            if index < last.next_index() {
                continue;
            }
            if index > last.next_index() {
                return Err(invalid(format!("the log has a hole before entry {index}")));
            }
            if let Payload::Normal(bytes) = &entry.payload {
                registry.apply(&Entry::decode(&bytes.0).map_err(invalid)?);
            }
            last = Some(entry.log_id);
        }
        let voted = vote.map_or(0, |vote| vote.leader_id.term);
        let term = last.map_or(0, |last| last.committed_leader_id().term).max(voted) + 1;
        Ok(Remains { registry, term, index: last.next_index() })
    }

    /// Makes an empty store begin at `term` and `index` with this registry, and replica `id` as the only voter.
    pub(crate) async fn begin(&self, id: CoordinatorId, term: u64, index: u64, registry: &Registry) -> io::Result<()> {
        let leader = LeaderId { term, node_id: id.0 };
        let place = LogId::new(leader, index);
        let nodes = BTreeMap::from([(id.0, EmptyNode {})]);
        let membership = Membership::new(vec![BTreeSet::from([id.0])], nodes).map_err(invalid)?;
        let meta =
            SnapshotMeta { last_log_id: Some(place), last_membership: StoredMembership::new(Some(place), membership) };
        // The log never holds an entry of a later term than the vote.
        let vote = VoteRecord::from(&Vote { leader_id: leader, committed: false });
        self.write_durably(Write::Vote(record::encode(&vote))).await?;
        let at = record::encode(&LogIdRecord::from(&place));
        self.write_durably(Write::Purge(index, at)).await?;
        let place = record::encode(&SnapshotRecord::from(&meta));
        self.write_durably(Write::Snapshot { next: index + 1, place, content: registry.encode() }).await
    }
}

fn invalid(error: impl ToString) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error.to_string())
}
