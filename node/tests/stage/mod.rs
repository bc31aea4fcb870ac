//! A stage for a whole daemon: a coordinator of one process speaking the real protocol over loopback, and a host whose
//! device is in memory.

#![allow(clippy::unwrap_used)] // In tests, which end by it.

use bytes::Bytes;
use ed25519_dalek::SigningKey;
use futures::future::BoxFuture;
use futures::{FutureExt as _, StreamExt as _};
use mesh_node::device::fake::{Fake, Handle};
use mesh_node::device::{Backend, Device, DeviceError};
use mesh_node::ground::Ground;
use mesh_node::guard::child::GuardChild;
use mesh_node::link::{HostRoute, LinkConfig, LinkError};
use mesh_node::probe::ProbeSockets;
use mesh_node_core::device::{ActualDevice, DeviceUpdate};
use mesh_proto::certificate::{identity_key, read_request};
use mesh_proto::convert::{self, Wire as _};
use mesh_proto::descriptors::Budget;
use mesh_proto::join_proof::{Challenger, Statement};
use mesh_proto::listen::Listener;
use mesh_proto::serve::serve;
use mesh_proto::tls::{server_config, system_clock};
use mesh_proto::v1::membership_server::{Membership, MembershipServer};
use mesh_proto::{Authority, Credentials, Member, Trust, caller, pushback, v1};
use mesh_types::session::{CloseReason, SnapshotPage, Tick, Welcome};
use mesh_types::{
    CoordinatorAddress, CoordinatorId, CoordinatorMessage, CoordinatorRecord, Epoch, Fingerprint, Incarnation,
    JoinToken, MeshConfig, MeshDuration, MeshId, MeshTime, NodeId, NodeMessage, NodeRecord, Overlay, PublicKey,
    Revision, Role, TokenId, TokenSecret,
};
use std::collections::BTreeSet;
use std::convert::Infallible;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_stream::wrappers::ReceiverStream;
use tonic::service::Routes;
use tonic::{Request, Response, Status, Streaming};

pub(crate) const MESH: MeshId = MeshId::from_bytes([1; 16]);
pub(crate) const COORDINATOR: CoordinatorId = CoordinatorId(1);
const SECRET: TokenSecret = TokenSecret::from_bytes([4; 20]);
const EPOCH: Epoch = Epoch { counter: 1, id: 7 };

pub(crate) fn now() -> MeshTime {
    MeshTime::from_system(SystemTime::now())
}

/// The one peer in the netmap.
pub(crate) fn peer() -> NodeRecord {
    NodeRecord {
        id: NodeId::from_bytes([9; 16]),
        name: "beta".parse().unwrap(),
        public_key: PublicKey::from_bytes([9; 32]),
        identity_key: identity_key(&SigningKey::from_bytes(&[9; 32])),
        addresses: overlay().addresses(2).unwrap(),
        expires_at: now() + MeshDuration::from_secs(3_600),
        revision: Revision(2),
    }
}

/// From the range for benchmarks (RFC 2544) and for documentation: on no host's table.
pub(crate) fn overlay() -> Overlay {
    Overlay::new("198.18.0.0/16".parse().unwrap(), "2001:db8:7::/48".parse().unwrap()).unwrap()
}

/// A port of loopback.
async fn door() -> (TcpListener, CoordinatorAddress) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string().parse().unwrap();
    (listener, address)
}

/// How the coordinator answers to Join.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) enum Mood {
    #[default]
    Willing,
    /// Writes, but the reply is lost; then willing.
    LosesReply,
    TokenExpired,
    /// Tells its ranges only to those who have joined.
    Discreet,
}

#[derive(Default)]
struct Book {
    mood: Mood,
    record: Option<NodeRecord>,
    joins: Vec<(PublicKey, TokenId)>,
    sessions: Vec<mpsc::Sender<Result<v1::CoordinatorMessage, Status>>>,
    opened: usize,
    left: bool,
    removed: bool,
    /// How many sessions to refuse, because an older stream is not missed yet.
    refusals: usize,
    /// How many calls to answer with "not so often".
    pushbacks: usize,
    /// Whether sessions are taken and nothing is said on them.
    silent: bool,
    kept: Vec<mpsc::Sender<Result<v1::CoordinatorMessage, Status>>>,
    /// How often the node was forgotten: the next to join is another.
    forgotten: u8,
}

impl Book {
    fn push_back(&mut self) -> Result<(), Status> {
        match self.pushbacks.checked_sub(1) {
            Some(left) => {
                self.pushbacks = left;
                Err(pushback::try_again("this node calls", Duration::from_millis(1)))
            }
            None => Ok(()),
        }
    }

    fn node(&self) -> NodeId {
        NodeId::from_bytes([0x30 + self.forgotten; 16])
    }
}

/// A coordinator that knows one node and one peer.
#[derive(Clone)]
pub(crate) struct Stage {
    authority: Arc<Authority>,
    challenger: Arc<Challenger>,
    book: Arc<Mutex<Book>>,
    serving: Arc<Mutex<Option<JoinHandle<Infallible>>>>,
    config: MeshConfig,
    credentials: Credentials,
    pub(crate) token: JoinToken,
}

impl Stage {
    /// Serves on a port of loopback until the test ends.
    pub(crate) async fn open() -> Self {
        let (listener, address) = door().await;
        let authority = Authority::create(MESH, now()).unwrap();
        let key = SigningKey::from_bytes(&[5; 32]);
        let certificate = authority.issue(Member::Coordinator(COORDINATOR), identity_key(&key), now()).unwrap();
        let credentials = Credentials::new(&certificate, authority.certificate(), &key).unwrap();
        let addresses = vec![address];
        let coordinator = CoordinatorRecord {
            id: COORDINATOR,
            name: "coordinator".parse().unwrap(),
            identity_key: identity_key(&key),
            addresses: addresses.clone(),
        };
        let config = MeshConfig {
            mesh: MESH,
            overlay: overlay(),
            authorities: vec![authority.certificate().clone()],
            coordinators: vec![coordinator],
            key_ttl: MeshDuration::from_secs(3_600),
            revision: Revision(1),
        };
        let token = JoinToken {
            role: Role::Node,
            mesh: MESH,
            authority: Fingerprint::of(&authority.certificate().0),
            id: TokenId::from_bytes([6; 8]),
            secret: SECRET,
            addresses,
        };
        let stage = Self {
            authority: Arc::new(authority),
            challenger: Arc::new(Challenger::new([8; 32])),
            book: Arc::default(),
            serving: Arc::default(),
            config,
            credentials,
            token,
        };
        stage.serve(listener);
        stage
    }

    /// The same coordinator restored on another host: its token names another address than the nodes know.
    pub(crate) async fn elsewhere(&self) -> Self {
        let (listener, address) = door().await;
        let token = JoinToken { addresses: vec![address], ..self.token.clone() };
        let stage = Self { token, serving: Arc::default(), ..self.clone() };
        stage.serve(listener);
        stage
    }

    fn serve(&self, listener: TcpListener) {
        let trust = Trust::new(MESH, &[self.authority.certificate().clone()], system_clock());
        let service = MembershipServer::new(self.clone());
        let config = server_config(self.credentials.clone(), trust);
        let listener = Listener::new(listener, config, Budget::of(1_024));
        *self.serving.lock().unwrap() = Some(tokio::spawn(serve(listener, Routes::new(service).prepare())));
    }

    pub(crate) fn set_mood(&self, mood: Mood) {
        self.book.lock().unwrap().mood = mood;
    }

    /// The WireGuard keys of all joins that were asked for.
    pub(crate) fn joined_keys(&self) -> Vec<PublicKey> {
        self.book.lock().unwrap().joins.iter().map(|(key, _)| *key).collect()
    }

    pub(crate) fn has_left(&self) -> bool {
        self.book.lock().unwrap().left
    }

    /// How many sessions were opened so far.
    pub(crate) fn opened(&self) -> usize {
        self.book.lock().unwrap().opened
    }

    /// Ends all sessions, as a coordinator that stops.
    pub(crate) fn cut_sessions(&self) {
        self.book.lock().unwrap().sessions.clear();
    }

    /// Takes sessions and says nothing on them, or ends those and is itself again.
    pub(crate) fn be_silent(&self, silent: bool) {
        let mut book = self.book.lock().unwrap();
        book.silent = silent;
        book.kept.clear();
    }

    /// Takes the next `count` sessions for those of a second daemon.
    pub(crate) fn refuse_as_duplicate(&self, count: usize) {
        self.book.lock().unwrap().refusals = count;
    }

    /// Tells the next `count` joins and sessions that they come too often.
    pub(crate) fn push_back(&self, count: usize) {
        self.book.lock().unwrap().pushbacks = count;
    }

    /// How many are still to be told so.
    pub(crate) fn pushbacks(&self) -> usize {
        self.book.lock().unwrap().pushbacks
    }

    /// How many sessions are still to be refused.
    pub(crate) fn refusals(&self) -> usize {
        self.book.lock().unwrap().refusals
    }

    /// Is gone from now on: the port is closed and sessions end.
    pub(crate) async fn close(&self) {
        let serving = self.serving.lock().unwrap().take().unwrap();
        serving.abort();
        // Aborted, so there is no result; it is over when this returns, and the port with it.
        let _ = serving.await;
        self.cut_sessions();
    }

    /// Is as it was before the node joined, after a restore.
    pub(crate) fn forget_node(&self) {
        self.book.lock().unwrap().forgotten += 1;
        self.cut_sessions();
    }

    /// Removes the node, as an operator would.
    pub(crate) async fn remove_node(&self) {
        let sessions = {
            let mut book = self.book.lock().unwrap();
            book.removed = true;
            book.sessions.clone()
        };
        for session in sessions {
            // Sessions that have ended do not hear it.
            let _ = session.send(Ok(CoordinatorMessage::Close(CloseReason::Removed).to_wire())).await;
        }
    }

    /// Allows the node again.
    pub(crate) fn allow_node(&self) {
        self.book.lock().unwrap().removed = false;
    }

    fn node(&self, request: &v1::JoinRequest) -> NodeRecord {
        NodeRecord {
            id: self.book.lock().unwrap().node(),
            name: request.name.parse().unwrap(),
            public_key: PublicKey::try_from(&*request.public_key).unwrap(),
            identity_key: read_request(&request.certificate_request).unwrap(),
            addresses: overlay().addresses(1).unwrap(),
            expires_at: now() + self.config.key_ttl,
            revision: Revision(2),
        }
    }

    fn tick(&self) -> Tick {
        Tick { time: now(), fresh: true, leader: Some(COORDINATOR), voters: BTreeSet::from([COORDINATOR]) }
    }
}

#[tonic::async_trait]
impl Membership for Stage {
    async fn challenge(&self, request: Request<v1::ChallengeRequest>) -> Result<Response<v1::ChallengeReply>, Status> {
        let exporter = caller(&request).unwrap().exporter;
        let public_key = Bytes::copy_from_slice(self.challenger.challenge(&exporter).as_bytes());
        let discreet = self.book.lock().unwrap().mood == Mood::Discreet;
        let overlay = (!discreet).then(|| self.config.overlay.to_wire());
        Ok(Response::new(v1::ChallengeReply { public_key, time: now().0, overlay }))
    }

    async fn join(&self, request: Request<v1::JoinRequest>) -> Result<Response<v1::JoinReply>, Status> {
        let exporter = caller(&request).unwrap().exporter;
        let request = request.into_inner();
        let record = self.node(&request);
        let statement = Statement {
            exporter: &exporter,
            mesh: MESH,
            token: convert::field("token_id", &request.token_id).unwrap(),
            public_key: record.public_key,
            identity_key: record.identity_key,
            certificate_request: &request.certificate_request,
        };
        self.challenger.verify(&statement, &request.proof).map_err(|e| Status::permission_denied(e.to_string()))?;
        assert_eq!(&*request.token_secret, SECRET.as_bytes());
        let mut book = self.book.lock().unwrap();
        book.push_back()?;
        book.joins.push((record.public_key, statement.token));
        match book.mood {
            Mood::Willing | Mood::Discreet => {}
            Mood::LosesReply => {
                book.mood = Mood::Willing;
                return Err(Status::unavailable("the reply is lost"));
            }
            Mood::TokenExpired => return Err(Status::permission_denied("the join token expired: ask for a new one")),
        }
        let certificate = self.authority.issue(Member::Node(record.id), record.identity_key, now()).unwrap();
        book.record = Some(record.clone());
        Ok(Response::new(v1::JoinReply {
            node_id: Bytes::copy_from_slice(record.id.as_bytes()),
            name: record.name.to_string(),
            address_v4: Bytes::copy_from_slice(&record.addresses.v4.octets()),
            address_v6: Bytes::copy_from_slice(&record.addresses.v6.octets()),
            expires_at: record.expires_at.0,
            certificate: certificate.0.into(),
            config: Some(self.config.to_wire()),
            epoch: Some(EPOCH.to_wire()),
            time: now().0,
        }))
    }

    type SessionStream = Pin<Box<dyn futures::Stream<Item = Result<v1::CoordinatorMessage, Status>> + Send>>;

    async fn session(
        &self,
        request: Request<Streaming<v1::NodeMessage>>,
    ) -> Result<Response<Self::SessionStream>, Status> {
        let identity = caller(&request).unwrap().identity.ok_or_else(|| Status::unauthenticated("who are you?"))?;
        let (say, said) = mpsc::channel(16);
        let mut book = self.book.lock().unwrap();
        book.push_back()?;
        if book.silent {
            book.kept.push(say);
            return Ok(Response::new(ReceiverStream::new(said).boxed()));
        }
        if book.removed {
            say.try_send(Ok(CoordinatorMessage::Close(CloseReason::Removed).to_wire())).unwrap();
            return Ok(Response::new(ReceiverStream::new(said).boxed()));
        }
        if book.refusals > 0 {
            book.refusals -= 1;
            say.try_send(Ok(CoordinatorMessage::Close(CloseReason::DuplicateIdentity).to_wire())).unwrap();
            return Ok(Response::new(ReceiverStream::new(said).boxed()));
        }
        if identity.member != Member::Node(book.node()) {
            say.try_send(Ok(CoordinatorMessage::Close(CloseReason::WrongHistory).to_wire())).unwrap();
            return Ok(Response::new(ReceiverStream::new(said).boxed()));
        }
        let welcome =
            Welcome { coordinator: COORDINATOR, epoch: EPOCH, incarnation: Incarnation(0), tick: self.tick() };
        let page = SnapshotPage {
            revision: Revision(2),
            config: Some(self.config.clone()),
            nodes: vec![book.record.clone().unwrap(), peer()],
            last: true,
        };
        for message in [CoordinatorMessage::Welcome(welcome), CoordinatorMessage::Snapshot(page)] {
            say.try_send(Ok(message.to_wire())).unwrap();
        }
        book.sessions.push(say);
        book.opened += 1;
        drop(book);
        let mut heard = request.into_inner();
        tokio::spawn(async move {
            while let Ok(Some(message)) = heard.message().await {
                NodeMessage::from_wire(message).unwrap();
            }
        });
        Ok(Response::new(ReceiverStream::new(said).boxed()))
    }

    async fn renew_key(&self, _request: Request<v1::RenewKeyRequest>) -> Result<Response<v1::RenewKeyReply>, Status> {
        Ok(Response::new(v1::RenewKeyReply { expires_at: (now() + self.config.key_ttl).0 }))
    }

    async fn renew_certificate(
        &self,
        request: Request<v1::RenewCertificateRequest>,
    ) -> Result<Response<v1::RenewCertificateReply>, Status> {
        let key = read_request(&request.into_inner().certificate_request).unwrap();
        let node = self.book.lock().unwrap().node();
        let certificate = self.authority.issue(Member::Node(node), key, now()).unwrap();
        Ok(Response::new(v1::RenewCertificateReply { certificate: certificate.0.into() }))
    }

    async fn leave(&self, _request: Request<v1::LeaveRequest>) -> Result<Response<v1::LeaveReply>, Status> {
        self.book.lock().unwrap().left = true;
        Ok(Response::new(v1::LeaveReply {}))
    }
}

/// A host whose devices are in memory. The latest is at hand.
#[derive(Clone, Default)]
pub(crate) struct Pretence {
    state: Arc<Mutex<PretenceState>>,
}

#[derive(Default)]
struct PretenceState {
    device: Option<Handle>,
    link: Option<LinkConfig>,
    forbids: bool,
    /// Whether what stands cannot be taken away.
    clings: bool,
    /// Whether another program has the UDP port.
    port_taken: bool,
    routes: Vec<HostRoute>,
    /// Own datagrams kept out of the interface; `None` while nothing keeps them out.
    dropped: Option<u64>,
    /// Where the state is by which a guard knows the device; without, devices end with the daemon.
    outlives: Option<PathBuf>,
    guards: Vec<u32>,
}

impl Pretence {
    /// The latest device, if there ever was one.
    pub(crate) fn device(&self) -> Option<Handle> {
        self.state.lock().unwrap().device.clone()
    }

    /// What the interface was last made to be.
    pub(crate) fn link(&self) -> Option<LinkConfig> {
        self.state.lock().unwrap().link
    }

    /// Takes addresses and routes off the interface, as somebody at a keyboard would.
    pub(crate) fn strip(&self) {
        self.state.lock().unwrap().link = None;
    }

    /// Whether another program has the UDP port from now on.
    pub(crate) fn take_port(&self, taken: bool) {
        self.state.lock().unwrap().port_taken = taken;
    }

    /// What of the host's routes an overlay would hide.
    pub(crate) fn set_routes(&self, routes: Vec<HostRoute>) {
        self.state.lock().unwrap().routes = routes;
    }

    /// Whether interfaces cannot be taken away any more, as when the right to do so is lost.
    pub(crate) fn cling(&self, clings: bool) {
        self.state.lock().unwrap().clings = clings;
    }

    /// Takes devices for the kernel's from now on, which outlive a daemon that keeps its things in `state_dir`.
    pub(crate) fn outlive(&self, state_dir: &Path) {
        self.state.lock().unwrap().outlives = Some(state_dir.to_owned());
    }

    /// The processes of all guards that were ever started, the latest last.
    pub(crate) fn guards(&self) -> Vec<u32> {
        self.state.lock().unwrap().guards.clone()
    }

    /// Lets nobody make interfaces from now on.
    pub(crate) fn forbid(&self) {
        self.state.lock().unwrap().forbids = true;
    }
}

impl Ground for Pretence {
    fn open(&self, _ours: PublicKey) -> BoxFuture<'_, Result<Box<dyn Device>, DeviceError>> {
        async {
            let mut state = self.state.lock().unwrap();
            if state.forbids {
                return Err(DeviceError::Privilege { doing: "make an interface".to_owned() });
            }
            let (fake, handle) = Fake::new("pretence");
            state.device = Some(handle);
            Ok(Box::new(Clinging { fake, ground: self.clone() }) as Box<dyn Device>)
        }
        .boxed()
    }

    fn clear(&self, ours: PublicKey) -> BoxFuture<'_, Result<bool, DeviceError>> {
        async move {
            let state = self.state.lock().unwrap();
            let left = |device: &&Handle| !device.is_removed() && device.device().public_key == Some(ours);
            let Some(device) = state.device.as_ref().filter(left) else { return Ok(false) };
            if state.clings {
                return Err(DeviceError::Privilege { doing: "remove the interface".to_owned() });
            }
            device.pull();
            Ok(true)
        }
        .boxed()
    }

    fn configure(&self, config: LinkConfig) -> BoxFuture<'_, Result<(), LinkError>> {
        async move {
            self.state.lock().unwrap().link = Some(config);
            Ok(())
        }
        .boxed()
    }

    fn overlaps(&self, _overlay: Overlay) -> BoxFuture<'_, Result<Vec<HostRoute>, LinkError>> {
        async { Ok(self.state.lock().unwrap().routes.clone()) }.boxed()
    }

    fn make_drop_rule(&self) -> std::io::Result<bool> {
        let mut state = self.state.lock().unwrap();
        state.dropped = Some(0);
        Ok(true)
    }

    fn count_dropped(&self) -> std::io::Result<u64> {
        self.state.lock().unwrap().dropped.ok_or_else(|| std::io::ErrorKind::NotFound.into())
    }

    fn remove_drop_rule(&self) -> std::io::Result<()> {
        self.state.lock().unwrap().dropped = None;
        Ok(())
    }

    fn probes(&self, _link: &mesh_node_core::Link) -> std::io::Result<Option<ProbeSockets>> {
        Ok(None)
    }

    fn guard(&self) -> std::io::Result<Option<GuardChild>> {
        let mut state = self.state.lock().unwrap();
        let Some(state_dir) = &state.outlives else { return Ok(None) };
        let guard = GuardChild::start_as(env!("CARGO_BIN_EXE_meshd").as_ref(), state_dir, "pretence")?;
        state.guards.extend(guard.id());
        Ok(Some(guard))
    }
}

/// A device in memory that goes only if its ground lets it.
struct Clinging {
    fake: Fake,
    ground: Pretence,
}

impl Device for Clinging {
    fn backend(&self) -> Backend {
        let outlives = self.ground.state.lock().unwrap().outlives.is_some();
        if outlives { Backend::Kernel } else { self.fake.backend() }
    }

    fn interface(&self) -> &str {
        self.fake.interface()
    }

    fn read(&mut self) -> BoxFuture<'_, Result<ActualDevice, DeviceError>> {
        self.fake.read()
    }

    fn apply<'a>(&'a mut self, update: &'a DeviceUpdate) -> BoxFuture<'a, Result<(), DeviceError>> {
        let taken = self.ground.state.lock().unwrap().port_taken;
        match update.listen_port.filter(|_| taken) {
            Some(port) => async move { Err(DeviceError::PortTaken { port }) }.boxed(),
            None => self.fake.apply(update),
        }
    }

    fn remove(self: Box<Self>) -> BoxFuture<'static, Result<(), DeviceError>> {
        if self.ground.state.lock().unwrap().clings {
            let error = DeviceError::Privilege { doing: "remove the interface".to_owned() };
            return async { Err(error) }.boxed();
        }
        Box::new(self.fake).remove()
    }
}
