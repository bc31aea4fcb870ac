//! Sessions of nodes: a stream each way, with the hub's loop in between.

use super::caller::{Farewell, Node, noted};
use crate::queue::queue;
use crate::replica::Replica;
use crate::sessions::{Event, Sessions, Stream};
use mesh_coordinator_core::SessionId;
use mesh_proto::{Caller, Wire as _, v1};
use mesh_types::session::CloseReason;
use mesh_types::{CoordinatorMessage, NodeMessage};
use std::pin::Pin;
use tokio::sync::oneshot;
use tokio_stream::StreamExt as _;
use tonic::{Request, Status, Streaming};

/// What a node hears.
pub(crate) type Outgoing = Pin<Box<dyn futures::Stream<Item = Result<v1::CoordinatorMessage, Status>> + Send>>;

/// Opens a session for the node that calls.
pub(super) async fn open(replica: &Replica, request: Request<Streaming<v1::NodeMessage>>) -> Result<Outgoing, Status> {
    // A removed node is told in the words of a session, which it takes as final.
    if request.extensions().get::<Farewell>().is_some() {
        let farewell = CoordinatorMessage::Close(CloseReason::Removed).to_wire();
        return Ok(Box::pin(tokio_stream::once(Ok(farewell))));
    }
    let (Node { id: node, .. }, Caller { hangup, .. }) = (noted(&request)?, noted(&request)?);
    let session = SessionId(replica.sessions.number());
    let (queue, messages) = queue();
    let (begin, begun) = oneshot::channel::<()>();
    let (sessions, incoming) = (replica.sessions.clone(), request.into_inner());
    let reader = tokio::spawn(async move {
        // The loop hears of a session first that it was opened.
        if begun.await.is_ok() {
            listen(&sessions, session, incoming).await;
        }
    });
    let stream = Stream { queue, reader: reader.abort_handle(), hangup };
    replica.sessions.tell(Event::Opened { session, node, stream }).await;
    // The reader waits for this and nothing else.
    let _ = begin.send(());
    Ok(Box::pin(messages.map(Ok)))
}

async fn listen(sessions: &Sessions, session: SessionId, mut incoming: Streaming<v1::NodeMessage>) {
    while let Ok(Some(message)) = incoming.message().await {
        match NodeMessage::from_wire(message) {
            Ok(message) => sessions.tell(Event::Said { session, message }).await,
            Err(error) if error.is_unknown() => tracing::debug!(session = session.0, %error, "skipped"),
            Err(error) => {
                tracing::warn!(session = session.0, %error, "session ended");
                break;
            }
        }
    }
    sessions.tell(Event::Closed { session }).await;
}
