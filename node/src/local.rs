//! The local API: what meshctl asks over the socket, handed to the loop as [`Request`]s.
//!
//! Root and the daemon's own user may ask everything; who else can open the socket, by its group, may only ask for the
//! status. Nothing is decided here but that.

use crate::refusal::Refusal;
use crate::status;
use futures::future::join_all;
use mesh_proto::dial::Dialer;
use mesh_proto::local::{LocalListener, peer};
use mesh_proto::serve::serve_local;
use mesh_proto::tls::Expect;
use mesh_proto::v1::local_server::{Local, LocalServer};
use mesh_proto::v1::{
    DownReply, DownRequest, LocalJoinReply, LocalJoinRequest, LocalLeaveReply, LocalLeaveRequest, PingReply,
    PingRequest, StatusReply, StatusRequest, UpReply, UpRequest,
};
use mesh_types::{CoordinatorRecord, JoinToken, NodeName};
use std::convert::Infallible;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{MissedTickBehavior, interval, timeout};
use tokio_stream::wrappers::ReceiverStream;
use tonic::service::Routes;
use tonic::{Response, Status};

/// Requests that may wait for the loop; more callers than this are held back by the socket.
const QUEUE: usize = 32;
/// The loop answers at once but for joining and leaving, which are bounded on their own below this.
const LONGEST: Duration = Duration::from_secs(60);
/// What a person waits for gladly to learn that a coordinator does not answer.
const REACH: Duration = Duration::from_millis(800);
/// The core ends a ping within two seconds.
const PONG: Duration = Duration::from_secs(4);
const SHORTEST_INTERVAL: Duration = Duration::from_millis(10);
const DEFAULT_INTERVAL: Duration = Duration::from_secs(1);

/// Where the loop's answer goes.
pub(crate) type Answer<T> = oneshot::Sender<Result<T, Refusal>>;

/// One thing asked of the loop.
pub(crate) enum Request {
    /// The picture for people.
    Status(Answer<Picture>),
    /// Become a member.
    Join { token: JoinToken, name: Option<NodeName>, answer: Answer<LocalJoinReply> },
    /// Probe a peer once.
    Ping { peer: String, answer: Answer<Ping> },
    /// Take the interface down.
    Down(Answer<DownReply>),
    /// Bring the interface up.
    Up(Answer<UpReply>),
    /// Give up the membership.
    Leave { force: bool, answer: Answer<LocalLeaveReply> },
}

/// A status, and what it takes to find out which coordinators answer.
pub(crate) struct Picture {
    /// All but whether coordinators are reachable.
    pub(crate) reply: StatusReply,
    /// In the order of the reply.
    pub(crate) coordinators: Vec<CoordinatorRecord>,
    /// For trying them; none before joining.
    pub(crate) dialer: Option<Dialer>,
}

/// A ping that is under way.
pub(crate) struct Ping {
    /// The overlay address asked.
    pub(crate) address: IpAddr,
    /// Where the device sends for that peer.
    pub(crate) endpoint: Option<SocketAddr>,
    /// The time from request to reply; none if none came.
    pub(crate) pong: oneshot::Receiver<Option<Duration>>,
}

/// Serves the socket for ever; the requests come out of the receiver of [`channel`].
pub(crate) async fn serve(listener: LocalListener, requests: mpsc::Sender<Request>) -> Infallible {
    serve_local(listener, Routes::new(LocalServer::new(Door { requests })).prepare()).await
}

/// The way from the socket to the loop.
pub(crate) fn channel() -> (mpsc::Sender<Request>, mpsc::Receiver<Request>) {
    mpsc::channel(QUEUE)
}

struct Door {
    requests: mpsc::Sender<Request>,
}

impl Door {
    async fn ask<T>(&self, request: impl FnOnce(Answer<T>) -> Request) -> Result<T, Status> {
        ask(&self.requests, request).await
    }
}

async fn ask<T>(requests: &mpsc::Sender<Request>, request: impl FnOnce(Answer<T>) -> Request) -> Result<T, Status> {
    let (answer, answered) = oneshot::channel();
    let stopping = || Status::unavailable("meshd is stopping");
    let asking = async {
        requests.send(request(answer)).await.map_err(|_| stopping())?;
        answered.await.map_err(|_| stopping())?.map_err(Status::from)
    };
    timeout(LONGEST, asking).await.unwrap_or_else(|_| {
        Err(Status::deadline_exceeded(format!("meshd did not answer within {} s: see its log", LONGEST.as_secs())))
    })
}

/// Refuses callers who may only look.
fn check_owner<T>(request: &tonic::Request<T>) -> Result<(), Status> {
    match peer(request) {
        Some(peer) if peer.uid == 0 || peer.uid == nix::unistd::geteuid().as_raw() => Ok(()),
        _ => Err(Status::permission_denied("only root may do this; members of the socket's group may ask for status")),
    }
}

#[tonic::async_trait]
impl Local for Door {
    async fn status(&self, _request: tonic::Request<StatusRequest>) -> Result<Response<StatusReply>, Status> {
        let Picture { mut reply, coordinators, dialer } = self.ask(Request::Status).await?;
        if let Some(dialer) = dialer {
            let reachable = join_all(coordinators.iter().map(|coordinator| is_reachable(&dialer, coordinator))).await;
            for (coordinator, reachable) in reply.coordinators.iter_mut().zip(reachable) {
                coordinator.reachable = reachable;
            }
        }
        Ok(Response::new(reply))
    }

    async fn join(&self, request: tonic::Request<LocalJoinRequest>) -> Result<Response<LocalJoinReply>, Status> {
        check_owner(&request)?;
        let LocalJoinRequest { token, name } = request.into_inner();
        let token = token.parse().map_err(|error| Status::invalid_argument(format!("{error}")))?;
        let name = match name.as_str() {
            "" => None,
            name => Some(name.parse().map_err(|error| Status::invalid_argument(format!("{error}")))?),
        };
        self.ask(|answer| Request::Join { token, name, answer }).await.map(Response::new)
    }

    type PingStream = ReceiverStream<Result<PingReply, Status>>;

    async fn ping(&self, request: tonic::Request<PingRequest>) -> Result<Response<Self::PingStream>, Status> {
        check_owner(&request)?;
        let request = request.into_inner();
        // The first is asked for here, so that an unknown peer is an error of the call and not of its stream.
        let first = self.ask(|answer| Request::Ping { peer: request.peer.clone(), answer }).await?;
        let (replies, stream) = mpsc::channel(4);
        tokio::spawn(ping_on(self.requests.clone(), request, first, replies));
        Ok(Response::new(ReceiverStream::new(stream)))
    }

    async fn down(&self, request: tonic::Request<DownRequest>) -> Result<Response<DownReply>, Status> {
        check_owner(&request)?;
        self.ask(Request::Down).await.map(Response::new)
    }

    async fn up(&self, request: tonic::Request<UpRequest>) -> Result<Response<UpReply>, Status> {
        check_owner(&request)?;
        self.ask(Request::Up).await.map(Response::new)
    }

    async fn leave(&self, request: tonic::Request<LocalLeaveRequest>) -> Result<Response<LocalLeaveReply>, Status> {
        check_owner(&request)?;
        let force = request.into_inner().force;
        self.ask(|answer| Request::Leave { force, answer }).await.map(Response::new)
    }
}

async fn is_reachable(dialer: &Dialer, coordinator: &CoordinatorRecord) -> bool {
    let dial = dialer.dial(&coordinator.addresses, Expect::Coordinator(coordinator.id));
    matches!(timeout(REACH, dial).await, Ok(Ok(_)))
}

/// Sends one ping an interval, each reply on its own, until the count is reached or the caller is gone.
async fn ping_on(
    requests: mpsc::Sender<Request>,
    request: PingRequest,
    first: Ping,
    replies: mpsc::Sender<Result<PingReply, Status>>,
) {
    let pause = match request.interval_ms {
        0 => DEFAULT_INTERVAL,
        millis => Duration::from_millis(millis.into()).max(SHORTEST_INTERVAL),
    };
    let mut ticks = interval(pause);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticks.tick().await;
    let mut ping = first;
    let mut sequence = 1;
    loop {
        let reply = finish(sequence, ping).await;
        if replies.send(Ok(reply)).await.is_err() || (request.count != 0 && sequence >= request.count) {
            return;
        }
        tokio::select! {
            _ = ticks.tick() => {}
            () = replies.closed() => return,
        }
        sequence = sequence.saturating_add(1);
        ping = match ask(&requests, |answer| Request::Ping { peer: request.peer.clone(), answer }).await {
            Ok(ping) => ping,
            Err(status) => {
                // Whether anybody still hears it does not matter: the stream ends here.
                let _ = replies.send(Err(status)).await;
                return;
            }
        };
    }
}

async fn finish(sequence: u32, ping: Ping) -> PingReply {
    let latency = timeout(PONG, ping.pong).await.ok().and_then(Result::ok).flatten();
    PingReply {
        sequence,
        latency_ms: latency.map(status::millis),
        address: ping.address.to_string(),
        endpoint: ping.endpoint.map(|endpoint| endpoint.to_string()),
    }
}
