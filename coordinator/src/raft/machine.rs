//! Raft's state machine: the registry in memory, with snapshots on disk.
//!
//! Applying is a function call on the registry under a write lock that is never held across an await. What was applied
//! is published through a watch, and [`View`] lets the rest of the process read the registry at that point. An entry
//! that this version does not understand stops the replica before it is applied: it never skips.

use super::disk::{Disk, Write, key};
use super::record::{self, SnapshotRecord};
use super::types::{LogId, Payload, Snapshot, SnapshotMeta, StoredMembership, Types};
use bytes::Bytes;
use futures::{Stream, StreamExt as _};
use mesh_coordinator_core::{Entry, Registry};
use mesh_types::Level;
use openraft::storage::{EntryResponder, RaftSnapshotBuilder, RaftStateMachine};
use openraft::{LogIdOptionExt as _, OptionalSend};
use std::io;
use std::sync::{Arc, RwLock};
use tokio::sync::watch;

/// Read access to the registry as it is applied on this replica.
#[derive(Clone)]
pub(crate) struct View {
    state: Arc<RwLock<State>>,
    applied: watch::Receiver<u64>,
}

impl View {
    /// Calls `read` with the registry. Short work only: applying waits for it.
    pub(crate) fn read<T>(&self, read: impl FnOnce(&Registry) -> T) -> T {
        read(&self.state.read().expect("applying does not panic").registry)
    }

    /// One more than the index of the last applied entry: whoever was answered finds its own counted.
    pub(crate) fn position(&self) -> u64 {
        self.state.read().expect("applying does not panic").last.next_index()
    }

    /// The same, to wait on; changes after each batch.
    pub(crate) fn applied(&self) -> watch::Receiver<u64> {
        self.applied.clone()
    }
}

#[derive(Default, Clone)]
struct State {
    registry: Registry,
    last: Option<LogId>,
    membership: StoredMembership,
}

/// The state machine that Raft drives.
pub(crate) struct Machine {
    state: Arc<RwLock<State>>,
    applied: watch::Sender<u64>,
    disk: Disk,
    understood: Level,
}

impl Machine {
    /// An empty machine that understands the log up to a level; Raft fills it from the snapshot and the log on disk.
    pub(crate) fn new(disk: Disk, understood: Level) -> (Self, View) {
        let state = Arc::new(RwLock::new(State::default()));
        let (sender, applied) = watch::channel(0);
        (Self { state: state.clone(), applied: sender, disk, understood }, View { state, applied })
    }

    fn publish(&self) {
        let next = self.state.read().expect("applying does not panic").last.next_index();
        self.applied.send_if_modified(|held| std::mem::replace(held, next) != next);
    }

    fn apply_one(&self, (entry, responder): EntryResponder<Types>) -> io::Result<()> {
        let decoded = match &entry.payload {
            Payload::Normal(bytes) => Some(Entry::decode_within(self.understood, &bytes.0).map_err(|error| {
                io::Error::new(
                    io::ErrorKind::InvalidData,
                    format!(
                        "log entry {} is not understood: {error}; run the version that wrote it, or a later one",
                        entry.log_id.index()
                    ),
                )
            })?),
            Payload::Blank | Payload::Membership(_) => None,
        };
        let mut state = self.state.write().expect("applying does not panic");
        let reply = decoded.map(|decoded| state.registry.apply(&decoded));
        if let Payload::Membership(membership) = &entry.payload {
            state.membership = StoredMembership::new(Some(entry.log_id), membership.clone());
        }
        state.last = Some(entry.log_id);
        drop(state);
        if let Some(responder) = responder {
            responder.send(reply);
        }
        Ok(())
    }
}

impl RaftStateMachine<Types> for Machine {
    type SnapshotData = Bytes;
    type SnapshotBuilder = Builder;

    async fn applied_state(&mut self) -> Result<(Option<LogId>, StoredMembership), io::Error> {
        let state = self.state.read().expect("applying does not panic");
        Ok((state.last, state.membership.clone()))
    }

    async fn apply<S>(&mut self, mut entries: S) -> Result<(), io::Error>
    where
        S: Stream<Item = Result<EntryResponder<Types>, io::Error>> + Unpin + OptionalSend,
    {
        while let Some(entry) = entries.next().await {
            self.apply_one(entry?)?;
        }
        self.publish();
        Ok(())
    }

    async fn get_snapshot_builder(&mut self) -> Builder {
        let state = self.state.read().expect("applying does not panic").clone();
        Builder { state, disk: self.disk.clone() }
    }

    async fn install_snapshot(&mut self, meta: &SnapshotMeta, snapshot: Bytes) -> Result<(), io::Error> {
        let registry = Registry::decode_within(self.understood, &snapshot).map_err(|error| {
            io::Error::new(io::ErrorKind::InvalidData, format!("snapshot of the registry is not understood: {error}"))
        })?;
        // At start Raft installs what is on disk already.
        let stored = self.disk.read(key::SNAPSHOT)?.map(|place| read_place(&place)).transpose()?;
        if stored.as_ref() != Some(meta) {
            store(&self.disk, meta, snapshot.to_vec()).await?;
        }
        *self.state.write().expect("applying does not panic") =
            State { registry, last: meta.last_log_id, membership: meta.last_membership.clone() };
        self.publish();
        Ok(())
    }

    async fn get_current_snapshot(&mut self) -> Result<Option<Snapshot>, io::Error> {
        let Some((place, content)) = self.disk.read_snapshot()? else { return Ok(None) };
        Ok(Some(Snapshot { meta: read_place(&place)?, snapshot: Bytes::from(content) }))
    }
}

fn read_place(bytes: &[u8]) -> io::Result<SnapshotMeta> {
    record::decode::<SnapshotRecord>("snapshot", bytes)?.into_meta()
}

async fn store(disk: &Disk, meta: &SnapshotMeta, content: Vec<u8>) -> io::Result<()> {
    let place = record::encode(&SnapshotRecord::from(meta));
    disk.write_durably(Write::Snapshot { next: meta.last_log_id.next_index(), place, content }).await
}

/// Encodes a copy of the state and makes it durable.
pub(crate) struct Builder {
    state: State,
    disk: Disk,
}

impl RaftSnapshotBuilder<Types> for Builder {
    type SnapshotData = Bytes;

    async fn build_snapshot(&mut self) -> Result<Snapshot, io::Error> {
        let registry = std::mem::take(&mut self.state.registry);
        let data = tokio::task::spawn_blocking(move || registry.encode()).await.map_err(io::Error::other)?;
        let meta = SnapshotMeta { last_log_id: self.state.last, last_membership: self.state.membership.clone() };
        store(&self.disk, &meta, data.clone()).await?;
        Ok(Snapshot { meta, snapshot: Bytes::from(data) })
    }
}
