//! The disk of the Raft store: one redb file, one writer thread, one order.
//!
//! Every write goes through one queue, so that votes and entries are never reordered. The thread takes what waits there
//! as one transaction, makes it durable (in two phases if it holds a vote, the one record whose loss could elect two
//! leaders), and only then reports. The first failure is final: every later write fails with it, and the process is
//! expected to exit and be restarted. Nothing here knows what the records mean.

use super::types::Types;
use openraft::storage::IOFlushed;
use redb::{Database, DatabaseError, ReadableDatabase, ReadableTable, TableDefinition, WriteTransaction};
use std::fs::OpenOptions;
use std::io;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;
use tokio::sync::oneshot;

const LOG: TableDefinition<u64, &[u8]> = TableDefinition::new("log");
const META: TableDefinition<&str, &[u8]> = TableDefinition::new("meta");

/// Writes taken into one transaction: bounds the memory and the time of one commit.
const BATCH: usize = 256;
/// The registry of a large mesh is a few MiB and lives in memory; redb's page cache only has to hold the write path.
const CACHE_BYTES: usize = 4 << 20;

/// The names of single records.
pub(super) mod key {
    pub(in crate::raft) const VOTE: &str = "vote";
    pub(in crate::raft) const PURGED: &str = "purged";
    pub(in crate::raft) const COMMITTED: &str = "committed";
    pub(in crate::raft) const SNAPSHOT: &str = "snapshot";
    pub(in crate::raft) const SNAPSHOT_NEXT: &str = "snapshot-next";
    pub(in crate::raft) const SNAPSHOT_DATA: &str = "snapshot-data";
    pub(in crate::raft) const OWNER: &str = "owner";
}

/// Where a snapshot stands in the log, and what it holds.
pub(super) type PlaceAndContent = (Vec<u8>, Vec<u8>);

/// One thing to write.
#[cfg_attr(test, derive(Clone))]
pub(super) enum Write {
    /// Entries by index.
    Append(Vec<(u64, Vec<u8>)>),
    /// The vote.
    Vote(Vec<u8>),
    /// Removes entries from this index on.
    Truncate(u64),
    /// Removes entries up to this index and notes how far.
    Purge(u64, Vec<u8>),
    /// How far is committed. Not worth a flush of its own: it goes with the next write.
    Committed(Vec<u8>),
    /// A snapshot: one more than the index it reaches to, its place and its content. An older one than the stored is
    /// dropped: building one and receiving one may overlap.
    Snapshot { next: u64, place: Vec<u8>, content: Vec<u8> },
    /// Whose store this is; and nothing else may be in it.
    Owner(Vec<u8>),
}

/// Who is told that a write is durable.
pub(super) enum Done {
    /// openraft's callback for entries.
    Flushed(IOFlushed<Types>),
    /// A waiting caller.
    Signal(oneshot::Sender<io::Result<()>>),
    /// Nobody.
    Nobody,
}

impl Done {
    fn report(self, result: Result<(), &str>) {
        let result = result.map_err(io::Error::other);
        match self {
            Self::Flushed(callback) => callback.io_completed(result),
            // A caller that no longer waits needs no answer.
            Self::Signal(sender) => drop(sender.send(result)),
            Self::Nobody => {}
        }
    }
}

/// A handle to the store; clones share it, and the last one to go ends the writer.
#[derive(Clone)]
pub(crate) struct Disk {
    database: Arc<Database>,
    writer: Arc<Writer>,
}

struct Writer {
    queue: Option<mpsc::Sender<(Write, Done)>>,
    thread: Option<JoinHandle<()>>,
}

impl Drop for Writer {
    fn drop(&mut self) {
        drop(self.queue.take());
        if let Some(thread) = self.thread.take() {
            // The thread ends once the queue is empty and closed; what it says last has been reported already.
            let _ = thread.join();
        }
    }
}

impl std::fmt::Debug for Disk {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Disk")
    }
}

impl Disk {
    /// Opens the store at `path`, and makes it if there is none.
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(path);
        drop(file.map_err(|error| named(error, path))?);
        let database = redb::Builder::new().set_cache_size(CACHE_BYTES).create(path).map_err(|error| match error {
            DatabaseError::DatabaseAlreadyOpen => io::Error::new(
                io::ErrorKind::WouldBlock,
                format!(
                    "{} is in use by another mesh-coordinator: stop that one, or use another --data-dir",
                    path.display()
                ),
            ),
            other => io::Error::other(format!("cannot open the Raft store {}: {other}", path.display())),
        })?;
        Self::over(database)
            .map_err(|error| io::Error::other(format!("cannot set up the Raft store {}: {error}", path.display())))
    }

    /// Opens a store that lies elsewhere than in a file.
    #[cfg(test)]
    pub(super) fn on(backend: impl redb::StorageBackend) -> io::Result<Self> {
        Self::over(redb::Builder::new().create_with_backend(backend).map_err(io::Error::other)?)
    }

    fn over(database: Database) -> io::Result<Self> {
        set_up(&database).map_err(io::Error::other)?;
        let database = Arc::new(database);
        let (queue, receiver) = mpsc::channel();
        let thread = std::thread::Builder::new().name("raft-disk".into()).spawn({
            let database = database.clone();
            move || write_loop(&database, &receiver)
        })?;
        Ok(Self { database, writer: Arc::new(Writer { queue: Some(queue), thread: Some(thread) }) })
    }

    /// Queues a write; `done` is told when it is durable.
    pub(super) fn write(&self, write: Write, done: Done) {
        let queue = self.writer.queue.as_ref().expect("the queue is closed only on drop");
        if let Err(mpsc::SendError((_, done))) = queue.send((write, done)) {
            done.report(Err("the Raft store's writer has stopped"));
        }
    }

    /// Queues a write and waits until it is durable.
    pub(super) async fn write_durably(&self, write: Write) -> io::Result<()> {
        let (sender, receiver) = oneshot::channel();
        self.write(write, Done::Signal(sender));
        receiver.await.unwrap_or_else(|_| Err(io::Error::other("the Raft store's writer has stopped")))
    }

    /// Reads one single record.
    pub(super) fn read(&self, key: &str) -> io::Result<Option<Vec<u8>>> {
        let read = || -> Result<Option<Vec<u8>>, redb::Error> {
            let table = self.database.begin_read()?.open_table(META)?;
            Ok(table.get(key)?.map(|value| value.value().to_vec()))
        };
        read().map_err(|error| io::Error::other(format!("cannot read {key} from the Raft store: {error}")))
    }

    /// Reads the place and the content of the stored snapshot, of the same one: a newer may be written meanwhile.
    pub(super) fn read_snapshot(&self) -> io::Result<Option<PlaceAndContent>> {
        let read = || -> Result<Option<PlaceAndContent>, redb::Error> {
            let table = self.database.begin_read()?.open_table(META)?;
            let take = |key: &str| table.get(key).map(|value| value.map(|value| value.value().to_vec()));
            Ok(take(key::SNAPSHOT)?.zip(take(key::SNAPSHOT_DATA)?))
        };
        read().map_err(|error| io::Error::other(format!("cannot read the snapshot from the Raft store: {error}")))
    }

    /// Reads the whole log, in order.
    pub(super) fn read_log(&self) -> io::Result<Vec<(u64, Vec<u8>)>> {
        let read = || -> Result<Vec<(u64, Vec<u8>)>, redb::Error> {
            let table = self.database.begin_read()?.open_table(LOG)?;
            table
                .iter()?
                .map(|item| item.map(|(key, value)| (key.value(), value.value().to_vec())).map_err(Into::into))
                .collect()
        };
        read().map_err(|error| io::Error::other(format!("cannot read the log from the Raft store: {error}")))
    }
}

/// Makes the tables, so that reading finds them.
pub(super) fn set_up(database: &Database) -> Result<(), redb::Error> {
    let transaction = database.begin_write()?;
    transaction.open_table(LOG)?;
    transaction.open_table(META)?;
    transaction.commit()?;
    Ok(())
}

fn named(error: io::Error, path: &Path) -> io::Error {
    io::Error::new(error.kind(), format!("cannot open the Raft store {}: {error}", path.display()))
}

/// Writes what comes through the queue until it is closed.
pub(super) fn write_loop(database: &Database, queue: &mpsc::Receiver<(Write, Done)>) {
    let mut committed = None;
    let mut failed: Option<String> = None;
    while let Ok(first) = queue.recv() {
        let mut batch: Vec<_> = std::iter::once(first).chain(queue.try_iter().take(BATCH - 1)).collect();
        batch.retain_mut(|(write, _)| match write {
            Write::Committed(record) => {
                committed = Some(std::mem::take(record));
                false
            }
            _ => true,
        });
        if batch.is_empty() {
            continue;
        }
        if failed.is_none()
            && let Err(error) = commit(database, batch.iter().map(|(write, _)| write), committed.take())
        {
            tracing::error!(%error, "raft store failed");
            failed = Some(format!("the Raft store cannot be written: {error}; free or repair the disk and restart"));
        }
        for (_, done) in batch {
            done.report(failed.as_deref().map_or(Ok(()), Err));
        }
    }
    if failed.is_none()
        && committed.is_some()
        && let Err(error) = commit(database, std::iter::empty(), committed)
    {
        tracing::warn!(%error, "commit index not saved at the end; it is learnt again");
    }
}

fn commit<'a>(
    database: &Database,
    writes: impl Iterator<Item = &'a Write>,
    committed: Option<Vec<u8>>,
) -> Result<(), redb::Error> {
    let mut transaction = database.begin_write()?;
    let mut has_vote = false;
    for write in writes {
        has_vote |= matches!(write, Write::Vote(_));
        apply(&transaction, write)?;
    }
    if let Some(record) = committed {
        transaction.open_table(META)?.insert(key::COMMITTED, record.as_slice())?;
    }
    transaction.set_two_phase_commit(has_vote);
    transaction.commit()?;
    Ok(())
}

fn apply(transaction: &WriteTransaction, write: &Write) -> Result<(), redb::Error> {
    match write {
        Write::Append(entries) => {
            let mut log = transaction.open_table(LOG)?;
            for (index, entry) in entries {
                log.insert(*index, entry.as_slice())?;
            }
        }
        Write::Truncate(from) => transaction.open_table(LOG)?.retain_in(*from.., |_, _| false)?,
        Write::Purge(upto, record) => {
            transaction.open_table(LOG)?.retain_in(..=*upto, |_, _| false)?;
            transaction.open_table(META)?.insert(key::PURGED, record.as_slice())?;
        }
        Write::Vote(record) => put(transaction, key::VOTE, record)?,
        Write::Committed(record) => put(transaction, key::COMMITTED, record)?,
        Write::Owner(record) => put(transaction, key::OWNER, record)?,
        Write::Snapshot { next, place, content } => {
            let mut meta = transaction.open_table(META)?;
            let stored = meta.get(key::SNAPSHOT_NEXT)?.and_then(|value| value.value().try_into().ok());
            if stored.map_or(0, u64::from_be_bytes) <= *next {
                meta.insert(key::SNAPSHOT_NEXT, next.to_be_bytes().as_slice())?;
                meta.insert(key::SNAPSHOT, place.as_slice())?;
                meta.insert(key::SNAPSHOT_DATA, content.as_slice())?;
            }
        }
    }
    Ok(())
}

fn put(transaction: &WriteTransaction, key: &str, record: &[u8]) -> Result<(), redb::Error> {
    transaction.open_table(META)?.insert(key, record)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_snapshot_is_read_with_its_own_place_while_newer_ones_are_written() {
        let root = tempfile::tempdir().unwrap();
        let disk = Disk::open(&root.path().join("raft.redb")).unwrap();
        let (mut written, reader) = (Vec::new(), disk.clone());
        let stop = Arc::new(std::sync::atomic::AtomicBool::new(false));
        let reading = std::thread::spawn({
            let stop = stop.clone();
            move || {
                while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                    if let Some((place, content)) = reader.read_snapshot().unwrap() {
                        assert_eq!(place, content, "the place of one and the content of another");
                    }
                }
            }
        });
        for next in 0..400_u64 {
            let mark = next.to_be_bytes().to_vec();
            let (sender, receiver) = oneshot::channel();
            disk.write(Write::Snapshot { next, place: mark.clone(), content: mark }, Done::Signal(sender));
            written.push(receiver);
        }
        for receiver in written {
            receiver.await.unwrap().unwrap();
        }
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
        reading.join().unwrap();
    }
}
