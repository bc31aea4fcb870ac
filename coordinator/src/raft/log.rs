//! Raft's log store: the log in memory, every change durable through [`Disk`] before Raft hears that it is.
//!
//! The log is short, since snapshots compact it, so reads never touch the disk. It is filled once, from disk, at start.

use super::disk::{Disk, Done, Write, key};
use super::record::{self, EntryRecord, LogIdRecord, VoteRecord};
use super::types::{LogId, RaftEntry, Types, Vote};
use openraft::storage::{IOFlushed, LogState, RaftLogReader, RaftLogStorage};
use openraft::{LogIdOptionExt, OptionalSend};
use std::collections::BTreeMap;
use std::fmt::Debug;
use std::io;
use std::ops::RangeBounds;
use std::sync::{Arc, Mutex, MutexGuard};

/// The log store; clones share it.
#[derive(Clone)]
pub(crate) struct LogStore {
    tail: Arc<Mutex<Tail>>,
    disk: Disk,
}

#[derive(Default)]
struct Tail {
    entries: BTreeMap<u64, RaftEntry>,
    purged: Option<LogId>,
    vote: Option<Vote>,
    committed: Option<LogId>,
}

impl LogStore {
    /// Reads the log from disk.
    pub(crate) fn load(disk: Disk) -> io::Result<Self> {
        let read = |key: &str| -> io::Result<Option<LogId>> {
            let bytes = disk.read(key)?;
            bytes.map(|bytes| record::decode::<LogIdRecord>(key, &bytes).map(LogId::from)).transpose()
        };
        let vote = disk.read(key::VOTE)?.map(|bytes| record::decode::<VoteRecord>(key::VOTE, &bytes)).transpose()?;
        let mut tail = Tail {
            purged: read(key::PURGED)?,
            committed: read(key::COMMITTED)?,
            vote: vote.map(Vote::from),
            ..Tail::default()
        };
        for (index, bytes) in disk.read_log()? {
            let entry = record::decode::<EntryRecord>("log entry", &bytes)?.into_entry()?;
            tail.entries.insert(index, entry);
        }
        tail.check()?;
        Ok(Self { tail: Arc::new(Mutex::new(tail)), disk })
    }

    fn tail(&self) -> MutexGuard<'_, Tail> {
        self.tail.lock().expect("no code panics while it holds the log's lock")
    }
}

impl Tail {
    fn last(&self) -> Option<LogId> {
        self.entries.last_key_value().map(|(_, entry)| entry.log_id).or(self.purged)
    }

    /// A hole, or an entry in the wrong place, means that the file was damaged or mixed from two stores.
    fn check(&self) -> io::Result<()> {
        let Some((&first, _)) = self.entries.first_key_value() else { return Ok(()) };
        let start = if self.purged.is_some() { self.purged.next_index() } else { first };
        for (expected, (&index, entry)) in (start..).zip(&self.entries) {
            if index != expected || entry.log_id.index() != index {
                return Err(io::Error::new(
                    io::ErrorKind::InvalidData,
                    format!("the Raft log on disk has a hole: expected entry {expected}, found {index}"),
                ));
            }
        }
        Ok(())
    }
}

impl RaftLogReader<Types> for LogStore {
    async fn try_get_log_entries<RB: RangeBounds<u64> + Clone + Debug + OptionalSend>(
        &mut self,
        range: RB,
    ) -> Result<Vec<RaftEntry>, io::Error> {
        Ok(self.tail().entries.range(range).map(|(_, entry)| entry.clone()).collect())
    }

    async fn read_vote(&mut self) -> Result<Option<Vote>, io::Error> {
        Ok(self.tail().vote)
    }
}

impl RaftLogStorage<Types> for LogStore {
    type LogReader = Self;

    async fn get_log_state(&mut self) -> Result<LogState<Types>, io::Error> {
        let tail = self.tail();
        Ok(LogState { last_purged_log_id: tail.purged, last_log_id: tail.last() })
    }

    async fn get_log_reader(&mut self) -> Self {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &Vote) -> Result<(), io::Error> {
        self.disk.write_durably(Write::Vote(record::encode(&VoteRecord::from(vote)))).await?;
        self.tail().vote = Some(*vote);
        Ok(())
    }

    async fn save_committed(&mut self, committed: Option<LogId>) -> Result<(), io::Error> {
        if let Some(id) = &committed {
            self.disk.write(Write::Committed(record::encode(&LogIdRecord::from(id))), Done::Nobody);
        }
        self.tail().committed = committed;
        Ok(())
    }

    async fn read_committed(&mut self) -> Result<Option<LogId>, io::Error> {
        let tail = self.tail();
        // The commit index is written lazily: beside a truncated or lost tail it may point beyond the log.
        Ok(tail.committed.min(tail.last()))
    }

    async fn append<I>(&mut self, entries: I, callback: IOFlushed<Types>) -> Result<(), io::Error>
    where
        I: IntoIterator<Item = RaftEntry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let entries: Vec<RaftEntry> = entries.into_iter().collect();
        let records =
            entries.iter().map(|entry| (entry.log_id.index(), record::encode(&EntryRecord::from(entry)))).collect();
        self.tail().entries.extend(entries.into_iter().map(|entry| (entry.log_id.index(), entry)));
        self.disk.write(Write::Append(records), Done::Flushed(callback));
        Ok(())
    }

    async fn truncate_after(&mut self, last: Option<LogId>) -> Result<(), io::Error> {
        let from = last.next_index();
        drop(self.tail().entries.split_off(&from));
        self.disk.write_durably(Write::Truncate(from)).await
    }

    async fn purge(&mut self, upto: LogId) -> Result<(), io::Error> {
        {
            let mut tail = self.tail();
            tail.purged = tail.purged.max(Some(upto));
            tail.entries = tail.entries.split_off(&(upto.index() + 1));
        }
        self.disk.write_durably(Write::Purge(upto.index(), record::encode(&LogIdRecord::from(&upto)))).await
    }
}
