//! The one place that says who may make which call, how often, and how much it may bring.
//!
//! A caller is judged by its certificate and the registry before anything of its call is read, and the call is counted
//! then: whoever is refused costs no memory. A join alone is read first, because the token is in it. Services behind the
//! gate find in each request who makes it, and need not ask again.

use super::caller::{self, Farewell};
use super::{ClusterService, MembershipService};
use crate::rates::Act;
use crate::replica::Replica;
use bytes::{Buf as _, Bytes, BytesMut};
use http::{Request, Response};
use http_body_util::{BodyExt as _, Full};
use mesh_proto::Caller;
use mesh_proto::v1::cluster_server::ClusterServer;
use mesh_proto::v1::membership_server::MembershipServer;
use mesh_types::NodeId;
use mesh_types::limits::MAX_STRANGERS_CALL;
use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use tonic::Status;
use tonic::body::Body;
use tonic::service::Routes;
use tower::{Service, ServiceExt as _};

/// Before each message: a flag and its length.
const FRAME_HEADER: usize = 5;
/// Calls with a few numbers and ids.
const SMALL: usize = 4 << 10;
/// Calls that carry a certificate request, or a few addresses.
const REQUEST: usize = MAX_STRANGERS_CALL as usize - FRAME_HEADER;
/// One command for the registry or for its leader.
const COMMAND: usize = 64 << 10;
/// What a node says in its session: a presence, or the digest that begins it.
const SESSION: usize = 64 << 10;
/// Presence between coordinators: who is online, of all nodes, is the largest.
const PRESENCE: usize = 4 << 20;
/// Entries of the log, and the registry as a whole.
const RAFT: usize = 16 << 20;
/// How long a stranger may take to bring its request.
const STRANGERS_PATIENCE: Duration = Duration::from_secs(5);
/// The same of a member, on a slow line.
const MEMBERS_PATIENCE: Duration = Duration::from_secs(30);

/// Who may make a call.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Audience {
    Anyone,
    /// A node that the registry holds here.
    Node,
    /// Also one that joined elsewhere a moment ago: whether it is a member is decided where it is certain.
    NewNode,
    /// Also one that was removed, to be told so.
    FormerNode,
    /// A coordinator that is a member.
    Coordinator,
    /// Also one that was removed while Raft still counts on it.
    Replica,
}

/// What a call may bring.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Brings {
    /// One message of at most so many bytes.
    Message(usize),
    /// Messages without end, each bounded by the service.
    Messages,
}

/// The rule for one call.
#[derive(Clone, Copy, Debug)]
struct Rule {
    audience: Audience,
    brings: Brings,
    counted_as: Option<fn(NodeId) -> Act>,
}

impl Rule {
    const fn new(audience: Audience, brings: Brings) -> Self {
        Self { audience, brings, counted_as: None }
    }

    const fn counted(self, act: fn(NodeId) -> Act) -> Self {
        Self { counted_as: Some(act), ..self }
    }

    /// None: there is no such call.
    fn of(path: &str) -> Option<Self> {
        use Audience::{Anyone, Coordinator, FormerNode, NewNode, Node, Replica};
        use Brings::{Message, Messages};
        Some(match path {
            "/mesh.v1.Membership/Challenge" => Self::new(Anyone, Message(SMALL)),
            "/mesh.v1.Membership/Join" | "/mesh.v1.Cluster/JoinCluster" => Self::new(Anyone, Message(REQUEST)),
            "/mesh.v1.Membership/Session" => Self::new(FormerNode, Messages).counted(Act::OpenSession),
            "/mesh.v1.Membership/RenewKey" => Self::new(NewNode, Message(SMALL)).counted(Act::RenewKey),
            "/mesh.v1.Membership/RenewCertificate" => Self::new(Node, Message(REQUEST)).counted(Act::RenewCertificate),
            "/mesh.v1.Membership/Leave" => Self::new(NewNode, Message(SMALL)).counted(Act::Leave),
            "/mesh.v1.Cluster/Raft" => Self::new(Replica, Message(RAFT)),
            "/mesh.v1.Cluster/Propose" | "/mesh.v1.Cluster/Administer" => Self::new(Coordinator, Message(COMMAND)),
            "/mesh.v1.Cluster/Enlist" => Self::new(Coordinator, Message(REQUEST)),
            "/mesh.v1.Cluster/Presence" => Self::new(Coordinator, Messages),
            "/mesh.v1.Cluster/Health" => Self::new(Replica, Message(SMALL)),
            _ => return None,
        })
    }
}

/// The services behind their gate.
#[derive(Clone)]
pub(crate) struct Gate {
    replica: Arc<Replica>,
    /// Calls that bring one message, whose length is judged here.
    calls: Routes,
    streams: Routes,
}

impl Gate {
    pub(crate) fn new(replica: Arc<Replica>) -> Self {
        let routes = |of_node, of_coordinator| {
            let membership = MembershipServer::new(MembershipService(replica.clone()));
            let cluster = ClusterServer::new(ClusterService(replica.clone()));
            Routes::new(membership.max_decoding_message_size(of_node))
                .add_service(cluster.max_decoding_message_size(of_coordinator).max_encoding_message_size(RAFT))
                .prepare()
        };
        let (calls, streams) = (routes(REQUEST, RAFT), routes(SESSION, PRESENCE));
        Self { replica, calls, streams }
    }

    async fn answer(self, mut request: Request<Body>) -> Result<Response<Body>, Status> {
        let path = request.uri().path();
        let rule = Rule::of(path).ok_or_else(|| Status::unimplemented(format!("there is no call {path}")))?;
        self.judge(rule, &mut request)?;
        let routes = match rule.brings {
            Brings::Messages => self.streams,
            Brings::Message(most) => {
                let is_stranger = rule.audience == Audience::Anyone;
                let patience = if is_stranger { STRANGERS_PATIENCE } else { MEMBERS_PATIENCE };
                let (head, body) = request.into_parts();
                request = Request::from_parts(head, read(body, most, patience).await?);
                self.calls
            }
        };
        let Ok(response) = routes.oneshot(request).await;
        Ok(response)
    }

    /// Refuses whoever may not make this call, or made it too often, and notes in the request who makes it.
    fn judge(&self, rule: Rule, request: &mut Request<Body>) -> Result<(), Status> {
        let extensions = request.extensions_mut();
        let by = extensions.get::<Caller>().ok_or_else(|| Status::internal("the call came over no connection"))?;
        let replica = &self.replica;
        let node = match rule.audience {
            Audience::Anyone => return Ok(()),
            Audience::Coordinator => {
                extensions.insert(caller::coordinator(replica, by)?);
                return Ok(());
            }
            Audience::Replica => {
                extensions.insert(caller::replica(replica, by)?);
                return Ok(());
            }
            Audience::Node => caller::node(replica, by)?,
            Audience::NewNode => caller::new_node(replica, by)?,
            Audience::FormerNode => match caller::removed_node(replica, by) {
                Some(node) => {
                    extensions.insert(Farewell);
                    node
                }
                None => caller::new_node(replica, by)?,
            },
        };
        if let Some(act) = rule.counted_as {
            replica.ration(act(node.id))?;
        }
        extensions.insert(node);
        Ok(())
    }
}

impl Service<Request<Body>> for Gate {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

    fn poll_ready(&mut self, _cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let answer = self.clone().answer(request);
        Box::pin(async { Ok(answer.await.unwrap_or_else(Status::into_http)) })
    }
}

/// Reads the one message of a call, before any memory is set aside for what it only announces.
async fn read(body: Body, most: usize, patience: Duration) -> Result<Body, Status> {
    let message = tokio::time::timeout(patience, collect(body, most)).await.map_err(|_| {
        Status::deadline_exceeded(format!("the request did not arrive within {} s", patience.as_secs()))
    })??;
    let mut header = message.clone();
    let announced = header.try_get_u8().and_then(|_| header.try_get_u32());
    if announced.is_ok_and(|length| usize::try_from(length) != Ok(header.remaining())) {
        return Err(Status::invalid_argument("the request is not as long as it says"));
    }
    Ok(Body::new(Full::new(message)))
}

/// Copies what comes: a frame of a few bytes would keep the whole buffer that it was read into.
async fn collect(mut body: Body, most: usize) -> Result<Bytes, Status> {
    let mut message = BytesMut::new();
    while let Some(frame) = body.frame().await {
        let Ok(data) = frame?.into_data() else { continue };
        if message.len() + data.len() > most + FRAME_HEADER {
            return Err(Status::out_of_range(format!("the request is longer than {most} bytes")));
        }
        message.extend_from_slice(&data);
    }
    Ok(message.freeze())
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::sync::mpsc;
    use tokio_stream::StreamExt as _;
    use tokio_stream::wrappers::ReceiverStream;
    use tonic::Code;

    fn body(bytes: &[u8]) -> Body {
        Body::new(Full::new(Bytes::copy_from_slice(bytes)))
    }

    async fn code(body: Body, most: usize) -> Code {
        read(body, most, STRANGERS_PATIENCE).await.map_or_else(|status| status.code(), |_| Code::Ok)
    }

    #[tokio::test]
    async fn a_message_is_read_whole_unless_it_is_longer_than_its_call_allows_or_than_it_says() {
        for (bytes, expected) in [
            (&[0, 0, 0, 0, 2, 7, 7][..], Code::Ok),
            (&[0, 0, 0, 0, 0], Code::Ok),
            (&[0, 0, 0, 0, 3, 7, 7, 7], Code::OutOfRange),
            (&[0, 0, 0, 0, 1, 7, 7], Code::InvalidArgument),
            (&[0, 0, 255, 255, 255, 7, 7], Code::InvalidArgument),
        ] {
            assert_eq!(code(body(bytes), 2).await, expected, "{bytes:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_message_that_does_not_come_is_not_waited_for() {
        let (frames, never) = mpsc::channel::<Result<http_body::Frame<Bytes>, Status>>(1);
        let body = Body::new(http_body_util::StreamBody::new(ReceiverStream::new(never).fuse()));
        assert_eq!(code(body, 2).await, Code::DeadlineExceeded);
        drop(frames);
    }
}
