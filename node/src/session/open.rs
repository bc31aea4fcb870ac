//! Opening one stream: dial, hello, and the first answer.

use super::Places;
use mesh_proto::certificate::Member;
use mesh_proto::convert::Wire as _;
use mesh_proto::dial::{Connection, DialError, Dialer};
use mesh_proto::tls::Expect;
use mesh_proto::v1::membership_client::MembershipClient;
use mesh_proto::v1::{self, node_message};
use mesh_types::session::{CloseReason, CoordinatorMessage, Hello};
use mesh_types::{CoordinatorId, limits};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;
use thiserror::Error;
use tokio::sync::{mpsc, watch};
use tokio::time::timeout;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;
use tracing::debug;

/// From hello to the first answer. A coordinator answers from memory, unless another daemon with our identity, mostly
/// our own stream from before a power cut, is in the way: it takes up to four seconds to find out.
const FIRST_ANSWER: Duration = Duration::from_secs(6);

/// Everything needed to open streams. Hello and places are read anew for each.
#[derive(Clone)]
pub(crate) struct Opener {
    pub(crate) dialer: Dialer,
    pub(crate) places: watch::Receiver<Places>,
    pub(crate) hello: watch::Receiver<Hello>,
}

/// An open stream on which hello was said and answered.
pub(crate) struct Open {
    pub(super) coordinator: CoordinatorId,
    pub(super) remote: SocketAddr,
    pub(super) local: IpAddr,
    pub(super) first: Option<CoordinatorMessage>,
    pub(super) to: mpsc::Sender<v1::NodeMessage>,
    from: Streaming<v1::CoordinatorMessage>,
}

/// Why no stream was opened.
#[derive(Debug, Error)]
pub(crate) enum OpenError {
    /// No coordinator was reached.
    #[error(transparent)]
    Dial(#[from] DialError),
    /// One was reached but did not open the session.
    #[error("coordinator {0} refused the session: {1}")]
    Refused(SocketAddr, String),
    /// One was reached but did not answer in time.
    #[error("coordinator {0} did not answer within {within} s", within = FIRST_ANSWER.as_secs())]
    Silent(SocketAddr),
}

impl Opener {
    /// Opens a stream with any coordinator, `avoid` only if no other answers.
    pub(super) async fn open_any(&self, avoid: Option<CoordinatorId>) -> Result<Open, OpenError> {
        let addresses = self.places.borrow().shuffled(avoid);
        self.open_over(self.dialer.dial(&addresses, Expect::AnyCoordinator).await?).await
    }

    /// Opens a stream with a coordinator other than `stale` that has contact to a leader; `None` if there is none.
    pub(super) async fn open_fresh(&self, stale: CoordinatorId) -> Option<Open> {
        let others = self.places.borrow().others(stale);
        for other in others {
            let expect = Expect::Coordinator(other.id);
            let Ok(connection) = self.dialer.dial(&other.addresses, expect).await else { continue };
            match self.open_over(connection).await {
                Ok(open) if open.is_fresh() => return Some(open),
                Ok(_) => debug!(coordinator = %other.id, "is stale as well"),
                Err(error) => debug!(coordinator = %other.id, %error, "is no better"),
            }
        }
        None
    }

    async fn open_over(&self, connection: Connection) -> Result<Open, OpenError> {
        let remote = connection.remote;
        let refused = |error: tonic::Status| OpenError::Refused(remote, error.message().to_owned());
        let (to, said) = mpsc::channel(limits::SESSION_QUEUE);
        let hello = node_message::Message::Hello(self.hello.borrow().to_wire());
        to.try_send(v1::NodeMessage { message: Some(hello) }).expect("a new channel has room");
        let opening = async {
            let mut client = MembershipClient::new(connection.channel.clone());
            let mut from = client.session(ReceiverStream::new(said)).await?.into_inner();
            let first = next(&mut from).await?;
            Ok((from, first))
        };
        let (from, first) =
            timeout(FIRST_ANSWER, opening).await.map_err(|_| OpenError::Silent(remote))?.map_err(refused)?;
        let first = first.ok_or_else(|| OpenError::Refused(remote, "it ended the stream at once".to_owned()))?;
        let Member::Coordinator(coordinator) = connection.identity.member else {
            unreachable!("the dialler takes coordinators only");
        };
        Ok(Open { coordinator, remote, local: connection.local.ip().to_canonical(), first: Some(first), to, from })
    }
}

impl Open {
    /// The next message; `None` at the end.
    pub(super) async fn next(&mut self) -> Result<Option<CoordinatorMessage>, tonic::Status> {
        next(&mut self.from).await
    }

    /// Why the coordinator closed the session with its first word, if it did.
    pub(super) fn refusal(&self) -> Option<CloseReason> {
        match &self.first {
            Some(CoordinatorMessage::Close(reason)) => Some(*reason),
            _ => None,
        }
    }

    fn is_fresh(&self) -> bool {
        matches!(&self.first, Some(CoordinatorMessage::Welcome(welcome)) if welcome.tick.fresh)
    }
}

/// The next message that this version understands.
async fn next(from: &mut Streaming<v1::CoordinatorMessage>) -> Result<Option<CoordinatorMessage>, tonic::Status> {
    while let Some(message) = from.message().await? {
        match CoordinatorMessage::from_wire(message) {
            Ok(message) => return Ok(Some(message)),
            Err(error) if error.is_unknown() => debug!(%error, "skipping a message"),
            Err(error) => return Err(tonic::Status::invalid_argument(error.to_string())),
        }
    }
    Ok(None)
}
