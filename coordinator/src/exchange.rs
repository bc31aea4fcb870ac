//! Streams of presence between coordinators. Each pair has one: the one that came later dials.
//!
//! A stream that ends is begun anew after a jittered pause; digests then show what was missed. No leader is needed.

use crate::random::jitter;
use crate::replica::Replica;
use crate::sessions::{Event, Sessions};
use mesh_proto::{Wire as _, v1};
use mesh_types::{CoordinatorId, ExchangeMessage};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::task::JoinHandle;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;

/// Longest time for a stream to open.
const OPEN: Duration = Duration::from_secs(5);
/// Pause before a stream is begun anew, plus up to as much again.
const PAUSE: Duration = Duration::from_millis(250);
/// How often the coordinators that are known are looked at.
const LOOK: Duration = Duration::from_millis(500);

/// Keeps a stream to every coordinator that was there before this one, for ever.
pub(crate) async fn keep(replica: Arc<Replica>) {
    let mut streams: BTreeMap<CoordinatorId, JoinHandle<()>> = BTreeMap::new();
    loop {
        let elders: Vec<_> = replica.peers.ids().into_iter().filter(|id| *id < replica.id).collect();
        streams.retain(|id, stream| {
            let stays = elders.contains(id);
            if !stays {
                stream.abort();
            }
            stays
        });
        for id in elders {
            streams.entry(id).or_insert_with(|| tokio::spawn(keep_one(replica.clone(), id)));
        }
        tokio::time::sleep(LOOK).await;
    }
}

async fn keep_one(replica: Arc<Replica>, peer: CoordinatorId) {
    loop {
        let (queue, messages) = Sessions::exchange_queue();
        let messages = ReceiverStream::new(messages);
        let opened = replica.peers.call(peer, OPEN, |mut client| async move { client.presence(messages).await }).await;
        match opened {
            Ok(incoming) => {
                let stream = replica.sessions.number();
                replica.sessions.tell(Event::ExchangeOpened { peer, stream, queue }).await;
                listen(&replica.sessions, peer, stream, incoming).await;
            }
            Err(error) => tracing::debug!(coordinator = %peer, %error, "no presence stream"),
        }
        tokio::time::sleep(PAUSE + jitter(PAUSE)).await;
    }
}

/// Passes on what comes until the stream ends.
pub(crate) async fn listen(
    sessions: &Sessions,
    peer: CoordinatorId,
    stream: u64,
    mut incoming: Streaming<v1::PresenceExchange>,
) {
    while let Ok(Some(message)) = incoming.message().await {
        match ExchangeMessage::from_wire(message) {
            Ok(message) => sessions.tell(Event::ExchangeSaid { peer, message }).await,
            Err(error) if error.is_unknown() => tracing::debug!(coordinator = %peer, %error, "skipped"),
            Err(error) => {
                tracing::warn!(coordinator = %peer, %error, "presence stream ended");
                break;
            }
        }
    }
    sessions.tell(Event::ExchangeClosed { peer, stream }).await;
}
