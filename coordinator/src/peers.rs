//! Calls to the other coordinators, over channels that are kept open.
//!
//! Each coordinator has a link with a task that dials when someone wants to call and nothing is open; a caller that
//! gives up does not end the dial. A channel is one connection: when it breaks it is dropped, and the next call dials
//! again, with the addresses known then. Links to coordinators that are no longer known end.

use crate::raft::{CallError, Kind, Transport};
use bytes::Bytes;
use mesh_proto::dial::Dialer;
use mesh_proto::tls::Expect;
use mesh_proto::v1;
use mesh_proto::v1::cluster_client::ClusterClient;
use mesh_types::{CoordinatorAddress, CoordinatorId, CoordinatorRecord, MeshId};
use std::collections::BTreeMap;
use std::error::Error as _;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;
use tokio::sync::{Notify, watch};
use tokio::task::AbortHandle;
use tokio::time::Instant;
use tonic::transport::Channel;

/// Longest time for one dial: a name to resolve, a few addresses to try, one handshake.
const DIAL: Duration = Duration::from_secs(4);
/// Pause after a dial that failed, plus up to as much again, so that replicas do not call in step.
const PAUSE: Duration = Duration::from_millis(150);
/// Largest message taken: a batch of log entries stays far below.
const MAX_MESSAGE: usize = 16 << 20;

/// Why a call to another coordinator gave no answer.
#[derive(Debug, Clone, thiserror::Error)]
pub(crate) enum PeerError {
    /// No coordinator with this id is known.
    #[error("coordinator {0} is not known here")]
    Unknown(CoordinatorId),
    /// It cannot be reached.
    #[error("coordinator {0} cannot be reached: {1}")]
    Unreachable(CoordinatorId, String),
    /// It did not answer in time.
    #[error("coordinator {0} did not answer within {1:?}")]
    Timeout(CoordinatorId, Duration),
    /// It answered with an error.
    #[error("coordinator {0}: {status}", status = .1.message())]
    Status(CoordinatorId, tonic::Status),
}

/// Links to all other coordinators; clones share them.
#[derive(Clone)]
pub(crate) struct Peers {
    mesh: MeshId,
    own: CoordinatorId,
    dialer: Arc<Dialer>,
    links: Arc<Mutex<BTreeMap<CoordinatorId, Link>>>,
}

/// A channel, and how many there were before it on this link.
type Open = (u64, Channel);

struct Link {
    addresses: watch::Sender<Vec<CoordinatorAddress>>,
    state: watch::Receiver<LinkState>,
    sender: Arc<watch::Sender<LinkState>>,
    wanted: Arc<Notify>,
    task: AbortHandle,
}

impl Drop for Link {
    fn drop(&mut self) {
        self.task.abort();
    }
}

#[derive(Clone, Default)]
struct LinkState {
    open: Option<Open>,
    error: Option<String>,
    dials: u64,
}

impl Peers {
    /// No links yet.
    pub(crate) fn new(mesh: MeshId, own: CoordinatorId, dialer: Dialer) -> Self {
        Self { mesh, own, dialer: Arc::new(dialer), links: Arc::default() }
    }

    /// From now on these are the coordinators, at these addresses.
    pub(crate) fn set<'a>(&self, records: impl IntoIterator<Item = &'a CoordinatorRecord>) {
        let records: BTreeMap<_, _> =
            records.into_iter().filter(|record| record.id != self.own).map(|record| (record.id, record)).collect();
        let mut links = self.links();
        links.retain(|id, _| records.contains_key(id));
        for (id, record) in records {
            let link = links.entry(id).or_insert_with(|| self.link(id));
            link.addresses.send_if_modified(|held| {
                let changed = *held != record.addresses;
                held.clone_from(&record.addresses);
                changed
            });
        }
    }

    /// One coordinator says that it answers elsewhere; the registry may follow later.
    pub(crate) fn relocate(&self, id: CoordinatorId, addresses: Vec<CoordinatorAddress>) {
        if let Some(link) = self.links().get(&id) {
            tracing::info!(coordinator = %id, ?addresses, "coordinator moved");
            link.addresses.send_replace(addresses);
        }
    }

    /// The coordinators known, without this one.
    pub(crate) fn ids(&self) -> Vec<CoordinatorId> {
        self.links().keys().copied().collect()
    }

    /// Calls a coordinator and waits at most `limit`, dialling included.
    pub(crate) async fn call<T, F>(
        &self,
        to: CoordinatorId,
        limit: Duration,
        call: impl FnOnce(ClusterClient<Channel>) -> F,
    ) -> Result<T, PeerError>
    where
        F: Future<Output = Result<tonic::Response<T>, tonic::Status>>,
    {
        let deadline = Instant::now() + limit;
        let (generation, channel) = self.channel(to, deadline, limit).await?;
        let client =
            ClusterClient::new(channel).max_decoding_message_size(MAX_MESSAGE).max_encoding_message_size(MAX_MESSAGE);
        match tokio::time::timeout_at(deadline, call(client)).await {
            Ok(Ok(response)) => Ok(response.into_inner()),
            // Only what failed below gRPC has a source: the connection is gone.
            Ok(Err(status)) if status.source().is_some() => {
                self.drop_channel(to, generation);
                Err(PeerError::Unreachable(to, status.message().to_owned()))
            }
            Ok(Err(status)) => Err(PeerError::Status(to, status)),
            Err(_) => Err(PeerError::Timeout(to, limit)),
        }
    }

    async fn channel(&self, to: CoordinatorId, deadline: Instant, limit: Duration) -> Result<Open, PeerError> {
        let (mut state, wanted) = {
            let links = self.links();
            let link = links.get(&to).ok_or(PeerError::Unknown(to))?;
            (link.state.clone(), link.wanted.clone())
        };
        let dials = {
            let state = state.borrow_and_update();
            if let Some(open) = &state.open {
                return Ok(open.clone());
            }
            state.dials
        };
        wanted.notify_one();
        let waited = state.wait_for(|state| state.open.is_some() || state.dials > dials);
        match tokio::time::timeout_at(deadline, waited).await {
            Ok(Ok(state)) => match (&state.open, &state.error) {
                (Some(open), _) => Ok(open.clone()),
                (None, error) => Err(PeerError::Unreachable(to, error.clone().unwrap_or_default())),
            },
            Ok(Err(_)) => Err(PeerError::Unknown(to)),
            Err(_) => Err(PeerError::Timeout(to, limit)),
        }
    }

    fn drop_channel(&self, to: CoordinatorId, generation: u64) {
        if let Some(link) = self.links().get(&to) {
            link.sender.send_if_modified(|state| state.open.take_if(|(open, _)| *open == generation).is_some());
        }
    }

    fn link(&self, id: CoordinatorId) -> Link {
        let (addresses, known) = watch::channel(Vec::new());
        let (sender, state) = watch::channel(LinkState::default());
        let (sender, wanted) = (Arc::new(sender), Arc::new(Notify::new()));
        let task = tokio::spawn(keep(id, self.dialer.clone(), known, sender.clone(), wanted.clone()));
        Link { addresses, state, sender, wanted, task: task.abort_handle() }
    }

    fn links(&self) -> MutexGuard<'_, BTreeMap<CoordinatorId, Link>> {
        self.links.lock().expect("no code panics while it holds the links")
    }
}

/// Dials whenever a channel is wanted and none is open.
async fn keep(
    id: CoordinatorId,
    dialer: Arc<Dialer>,
    addresses: watch::Receiver<Vec<CoordinatorAddress>>,
    state: Arc<watch::Sender<LinkState>>,
    wanted: Arc<Notify>,
) {
    loop {
        wanted.notified().await;
        if state.borrow().open.is_some() {
            continue;
        }
        let known = addresses.borrow().clone();
        let dialled = tokio::time::timeout(DIAL, dialer.dial(&known, Expect::Coordinator(id))).await;
        let error = match dialled {
            Ok(Ok(connection)) => {
                tracing::debug!(coordinator = %id, "link open");
                state.send_modify(|state| {
                    state.dials += 1;
                    state.open = Some((state.dials, connection.channel));
                    state.error = None;
                });
                continue;
            }
            Ok(Err(error)) => error.to_string(),
            Err(_) => format!("no connection within {DIAL:?}"),
        };
        tracing::debug!(coordinator = %id, %error, "link not open");
        state.send_modify(|state| {
            state.dials += 1;
            state.error = Some(error);
        });
        tokio::time::sleep(PAUSE + crate::random::jitter(PAUSE)).await;
    }
}

impl Transport for Peers {
    async fn call(&self, to: u64, kind: Kind, body: Vec<u8>, timeout: Duration) -> Result<Bytes, CallError> {
        let envelope = v1::RaftEnvelope {
            mesh: Bytes::copy_from_slice(self.mesh.as_bytes()),
            from: self.own.0,
            kind: kind as u32,
            body: Bytes::from(body),
        };
        let answer =
            Peers::call(self, CoordinatorId(to), timeout, |mut client| async move { client.raft(envelope).await });
        match answer.await {
            Ok(answer) => Ok(answer.body),
            Err(PeerError::Timeout(..)) => Err(CallError::Timeout),
            Err(PeerError::Status(_, status)) => Err(CallError::Refused(status.message().to_owned())),
            Err(error) => Err(CallError::Unreachable(error.to_string())),
        }
    }
}
