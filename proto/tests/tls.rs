//! TLS between members over real loopback sockets: who gets through, and what the others are told.

#![allow(clippy::unwrap_used)] // In tests, which end by it.

use ed25519_dalek::SigningKey;
use mesh_proto::certificate::{LEAF_LIFETIME, identity_key};
use mesh_proto::descriptors::Budget;
use mesh_proto::dial::Failure;
use mesh_proto::listen::Listener;
use mesh_proto::serve::serve;
use mesh_proto::tls::{VerifyError, server_config};
use mesh_proto::v1::membership_client::MembershipClient;
use mesh_proto::v1::membership_server::{Membership, MembershipServer};
use mesh_proto::{
    Authority, Caller, Clock, Connection, Credentials, Dialer, Expect, Identity, Member, Trust, caller, v1,
};
use mesh_types::limits::MAX_CONNECTIONS_PER_MEMBER;
use mesh_types::netmap::Certificate;
use mesh_types::{CoordinatorAddress, CoordinatorId, Fingerprint, MeshDuration, MeshId, MeshTime, NodeId};
use rustls::AlertDescription;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::mpsc;
use tonic::service::Routes;
use tonic::{Request, Response, Status, Streaming};

const MESH: MeshId = MeshId::from_bytes([1; 16]);
const OTHER_MESH: MeshId = MeshId::from_bytes([2; 16]);
const NOW: MeshTime = MeshTime(1_800_000_000_000);
const NODE: Member = Member::Node(NodeId::from_bytes([3; 16]));
const COORDINATOR: Member = Member::Coordinator(CoordinatorId(1));

#[tokio::test]
async fn a_node_and_a_coordinator_know_each_other_by_certificate() {
    let mesh = World::new(MESH);
    let mut server = mesh.serve(COORDINATOR).await;
    let connection = mesh.dial(NODE, &server, Expect::Coordinator(CoordinatorId(1))).await.unwrap();
    assert_eq!(connection.identity, mesh.identity(COORDINATOR));
    assert_eq!(&connection.authority, mesh.authority.certificate());
    let seen = server.called_by(connection).await;
    assert_eq!(seen.identity, Some(mesh.identity(NODE)));
}

#[tokio::test]
async fn a_joiner_knows_only_the_pin_and_is_seen_as_nobody() {
    let mesh = World::new(MESH);
    let mut server = mesh.serve(COORDINATOR).await;
    let connection = mesh.join(&server, MESH, mesh.pin()).await.unwrap();
    assert_eq!(connection.identity, mesh.identity(COORDINATOR));
    assert_eq!(&connection.authority, mesh.authority.certificate());
    assert_eq!(server.called_by(connection).await.identity, None);
}

#[tokio::test]
async fn both_ends_of_a_connection_export_the_same_and_no_two_connections_do() {
    let mesh = World::new(MESH);
    let mut server = mesh.serve(COORDINATOR).await;
    let one = mesh.join(&server, MESH, mesh.pin()).await.unwrap();
    let two = mesh.join(&server, MESH, mesh.pin()).await.unwrap();
    assert_ne!(one.exporter, two.exporter);
    let (here, there) = (one.exporter, server.called_by(one).await.exporter);
    assert_eq!(here, there);
    let (here, there) = (two.exporter, server.called_by(two).await.exporter);
    assert_eq!(here, there);
}

#[tokio::test]
async fn a_pin_on_another_authority_is_told_as_such() {
    let mesh = World::new(MESH);
    let server = mesh.serve(COORDINATOR).await;
    let other = Fingerprint::of(b"another");
    let error = mesh.join(&server, MESH, other).await.unwrap_err();
    assert!(
        matches!(error.failure(), Some(Failure::Pin(VerifyError::Pin { expected })) if *expected == other),
        "{error}"
    );
}

#[tokio::test]
async fn sending_the_pinned_authority_along_does_not_help_who_is_not_certified_by_it() {
    let (mesh, forger) = (World::new(MESH), World::new(MESH));
    let key = forger.key(COORDINATOR);
    let forged = forger.authority.issue(COORDINATOR, identity_key(&key), NOW).unwrap();
    let credentials = Credentials::new(&forged, mesh.authority.certificate(), &key).unwrap();
    let server = mesh.serve_with(credentials).await;
    let error = mesh.join(&server, MESH, mesh.pin()).await.unwrap_err();
    assert!(matches!(error.failure(), Some(Failure::Certificate(VerifyError::Authority))), "{error}");
}

#[tokio::test]
async fn a_coordinator_under_an_unknown_authority_is_refused() {
    let (mesh, forger) = (World::new(MESH), World::new(MESH));
    let server = forger.serve(COORDINATOR).await;
    let error = mesh.dial(NODE, &server, Expect::AnyCoordinator).await.unwrap_err();
    assert!(matches!(error.failure(), Some(Failure::Certificate(VerifyError::Authority))), "{error}");
}

#[tokio::test]
async fn a_coordinator_of_another_mesh_is_refused_also_if_its_authority_is_pinned() {
    let (mesh, other) = (World::new(MESH), World::new(OTHER_MESH));
    let server = other.serve(COORDINATOR).await;
    let error = mesh.dial(NODE, &server, Expect::AnyCoordinator).await.unwrap_err();
    let expected = VerifyError::Mesh { expected: MESH, got: OTHER_MESH };
    assert!(matches!(error.failure(), Some(Failure::Certificate(error)) if *error == expected), "{error}");
    let error = mesh.join(&server, MESH, other.pin()).await.unwrap_err();
    assert!(matches!(error.failure(), Some(Failure::Certificate(error)) if *error == expected), "{error}");
}

#[tokio::test]
async fn a_node_cannot_answer_for_a_coordinator() {
    let mesh = World::new(MESH);
    let server = mesh.serve(NODE).await;
    for result in [
        mesh.dial(NODE, &server, Expect::AnyCoordinator).await,
        mesh.dial(NODE, &server, Expect::Coordinator(CoordinatorId(1))).await,
        mesh.join(&server, MESH, mesh.pin()).await,
    ] {
        let error = result.unwrap_err();
        assert!(
            matches!(error.failure(), Some(Failure::Certificate(VerifyError::Role { got })) if *got == NODE),
            "{error}"
        );
    }
}

#[tokio::test]
async fn another_coordinator_than_the_one_dialled_is_refused() {
    let mesh = World::new(MESH);
    let server = mesh.serve(Member::Coordinator(CoordinatorId(2))).await;
    let error = mesh.dial(NODE, &server, Expect::Coordinator(CoordinatorId(1))).await.unwrap_err();
    let expected = VerifyError::Coordinator { expected: CoordinatorId(1), got: CoordinatorId(2) };
    assert!(matches!(error.failure(), Some(Failure::Certificate(error)) if *error == expected), "{error}");
    mesh.dial(NODE, &server, Expect::AnyCoordinator).await.unwrap();
}

#[tokio::test]
async fn validity_is_judged_by_mesh_time_on_both_sides() {
    let mesh = World::new(MESH);
    let server = mesh.serve(COORDINATOR).await;
    let late = NOW + LEAF_LIFETIME + MeshDuration::from_secs(3600);
    mesh.set_time(late);
    for result in [mesh.dial(NODE, &server, Expect::AnyCoordinator).await, mesh.join(&server, MESH, mesh.pin()).await] {
        let error = result.unwrap_err();
        assert!(
            matches!(error.failure(), Some(Failure::Clock(VerifyError::Expired { now, .. })) if *now == late),
            "{error}"
        );
    }
    let early = NOW - MeshDuration::from_secs(7 * 86_400);
    mesh.set_time(early);
    let error = mesh.join(&server, MESH, mesh.pin()).await.unwrap_err();
    assert!(
        matches!(error.failure(), Some(Failure::Clock(VerifyError::NotYetValid { now, .. })) if *now == early),
        "{error}"
    );
    mesh.set_time(NOW);
    mesh.dial(NODE, &server, Expect::AnyCoordinator).await.unwrap();
}

#[tokio::test]
async fn a_coordinator_tells_a_caller_why_its_certificate_is_refused() {
    let mesh = World::new(MESH);
    let server = mesh.serve(COORDINATOR).await;

    let key = mesh.key(NODE);
    let long_ago = MeshTime(NOW.0 - 2 * LEAF_LIFETIME.0);
    let expired = mesh.authority.issue(NODE, identity_key(&key), long_ago).unwrap();
    let expired = Credentials::new(&expired, mesh.authority.certificate(), &key).unwrap();
    let error = mesh.dial_with(expired, &server).await.unwrap_err();
    assert!(matches!(error.failure(), Some(Failure::Rejected(AlertDescription::CertificateExpired))), "{error}");

    for stranger in [World::new(MESH), World::new(OTHER_MESH)] {
        let error = mesh.dial_with(stranger.credentials(NODE), &server).await.unwrap_err();
        assert!(matches!(error.failure(), Some(Failure::Rejected(AlertDescription::UnknownCA))), "{error}");
    }
}

#[tokio::test]
async fn trust_and_credentials_replaced_at_run_time_hold_from_the_next_connection_on() {
    let (mesh, next) = (World::new(MESH), World::new(MESH));
    let credentials = mesh.credentials(COORDINATOR);
    let server = mesh.serve_with(credentials.clone()).await;
    let dialer = Dialer::member(mesh.trust.clone(), mesh.credentials(NODE));
    let first = dialer.dial(&server.addresses(), Expect::AnyCoordinator).await.unwrap();
    assert_eq!(&first.authority, mesh.authority.certificate());

    let key = mesh.key(COORDINATOR);
    let renewed = next.authority.issue(COORDINATOR, identity_key(&key), NOW).unwrap();
    credentials.replace(&renewed, next.authority.certificate(), &key).unwrap();
    let error = dialer.dial(&server.addresses(), Expect::AnyCoordinator).await.unwrap_err();
    assert!(matches!(error.failure(), Some(Failure::Certificate(VerifyError::Authority))), "{error}");

    let both: [Certificate; 2] = [mesh.authority.certificate().clone(), next.authority.certificate().clone()];
    mesh.trust.set_authorities(&both);
    let second = dialer.dial(&server.addresses(), Expect::AnyCoordinator).await.unwrap();
    assert_eq!(&second.authority, next.authority.certificate());
}

#[tokio::test]
async fn credentials_for_another_key_are_refused_and_the_old_ones_stay() {
    let mesh = World::new(MESH);
    let credentials = mesh.credentials(NODE);
    let before = credentials.leaf();
    let certificate = mesh.authority.issue(NODE, identity_key(&mesh.key(COORDINATOR)), NOW).unwrap();
    let result = credentials.replace(&certificate, mesh.authority.certificate(), &mesh.key(NODE));
    assert!(result.is_err());
    assert_eq!(credentials.leaf(), before);
}

#[tokio::test]
async fn handshakes_that_stall_or_fail_hold_up_nobody() {
    let mesh = World::new(MESH);
    let mut server = mesh.serve(COORDINATOR).await;
    let mut stalled = Vec::new();
    for _ in 0..20 {
        stalled.push(TcpStream::connect(server.address).await.unwrap());
    }
    for stream in &stalled[..10] {
        stream.try_write(b"GET / HTTP/1.1\r\n\r\n").unwrap();
    }
    let connection = mesh.dial(NODE, &server, Expect::AnyCoordinator).await.unwrap();
    assert_eq!(server.called_by(connection).await.identity, Some(mesh.identity(NODE)));
    assert_eq!(stalled.len(), 20);
}

#[tokio::test]
async fn a_host_full_of_silent_connections_keeps_nobody_out_and_a_member_does_not_take_every_place() {
    let mesh = World::new(MESH);
    let budget = Budget { handshakes: 8, ..Budget::of(1_024) };
    let server = mesh.serve_within(mesh.credentials(COORDINATOR), budget).await;
    let mut silent = Vec::new();
    for _ in 0..budget.handshakes {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind("127.0.1.1:0".parse().unwrap()).unwrap();
        silent.push(socket.connect(server.address).await.unwrap());
    }
    let mut held = Vec::new();
    for _ in 0..MAX_CONNECTIONS_PER_MEMBER {
        held.push(mesh.dial(NODE, &server, Expect::AnyCoordinator).await.unwrap());
    }
    assert!(!is_served(mesh.dial(NODE, &server, Expect::AnyCoordinator).await).await);
    assert!(is_served(mesh.dial(COORDINATOR, &server, Expect::AnyCoordinator).await).await);
}

#[tokio::test]
async fn strangers_find_few_places_and_neither_they_nor_nodes_take_a_members() {
    let mesh = World::new(MESH);
    let budget = Budget { strangers: 2, nodes: 1, ..Budget::of(1_024) };
    let server = mesh.serve_within(mesh.credentials(COORDINATOR), budget).await;
    let strangers = [mesh.join(&server, MESH, mesh.pin()).await, mesh.join(&server, MESH, mesh.pin()).await];
    let node = mesh.dial(NODE, &server, Expect::AnyCoordinator).await.unwrap();
    assert!(!is_served(mesh.dial(NODE, &server, Expect::AnyCoordinator).await).await, "there is one place for nodes");
    assert!(is_served(mesh.dial(COORDINATOR, &server, Expect::AnyCoordinator).await).await);
    assert!(is_served(Ok(node)).await);
    // The second is too many for its host, or the first gave way to it.
    let mut served = 0;
    for stranger in strangers {
        served += usize::from(is_served(stranger).await);
    }
    assert_eq!(served, 1);
}

async fn is_served(dialled: Result<Connection, mesh_proto::DialError>) -> bool {
    match dialled {
        Ok(dialled) => MembershipClient::new(dialled.channel).challenge(v1::ChallengeRequest {}).await.is_ok(),
        Err(_) => false,
    }
}

#[tokio::test]
async fn the_first_address_that_answers_as_expected_is_kept() {
    let (mesh, stranger) = (World::new(MESH), World::new(MESH));
    let (server, wrong) = (mesh.serve(COORDINATOR).await, stranger.serve(COORDINATOR).await);
    let addresses = [refusing().await, wrong.addresses()[0].clone(), server.addresses()[0].clone()];
    let dialer = Dialer::member(mesh.trust.clone(), mesh.credentials(NODE));
    let connection = dialer.dial(&addresses, Expect::AnyCoordinator).await.unwrap();
    assert_eq!(connection.remote, server.address);
    assert_eq!(connection.address, addresses[2]);
}

#[tokio::test]
async fn the_next_address_is_tried_beside_one_that_stays_silent() {
    let mesh = World::new(MESH);
    let server = mesh.serve(COORDINATOR).await;
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let front = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addresses = [address(silent.local_addr().unwrap()), address(front.local_addr().unwrap())];
    let behind = server.address;
    let passed = tokio::spawn(async move {
        let (waiting, _) = silent.accept().await.unwrap();
        let (mut second, _) = front.accept().await.unwrap();
        assert!(is_open(waiting), "the first attempt was given up before the second began");
        let mut inner = TcpStream::connect(behind).await.unwrap();
        let _ = tokio::io::copy_bidirectional(&mut second, &mut inner).await;
    });
    let dialer = Dialer::member(mesh.trust.clone(), mesh.credentials(NODE));
    let connection = dialer.dial(&addresses, Expect::AnyCoordinator).await.unwrap();
    assert_eq!(connection.address, addresses[1]);
    drop(connection);
    passed.await.unwrap();
}

/// Whether the other end has not closed `stream`, whatever it has sent.
fn is_open(stream: TcpStream) -> bool {
    use std::io::Read as _;
    let mut stream = stream.into_std().unwrap();
    let mut buffer = [0; 4096];
    loop {
        match stream.read(&mut buffer) {
            Ok(0) => return false,
            Ok(_) => {}
            Err(error) => return error.kind() == std::io::ErrorKind::WouldBlock,
        }
    }
}

#[tokio::test]
async fn names_are_resolved_and_every_failed_attempt_is_named() {
    let mesh = World::new(MESH);
    let server = mesh.serve(COORDINATOR).await;
    let dialer = Dialer::member(mesh.trust.clone(), mesh.credentials(NODE));
    let name: CoordinatorAddress = format!("localhost:{}", server.address.port()).parse().unwrap();
    let connection = dialer.dial(std::slice::from_ref(&name), Expect::AnyCoordinator).await.unwrap();
    assert_eq!((connection.remote, connection.address), (server.address, name));

    let addresses = [refusing().await, refusing().await];
    let error = dialer.dial(&addresses, Expect::AnyCoordinator).await.unwrap_err();
    assert!(matches!(error.failure(), Some(Failure::Refused)), "{error}");
    let text = error.to_string();
    assert!(addresses.iter().all(|address| text.contains(&address.to_string())), "{text}");
    assert!(dialer.dial(&[], Expect::AnyCoordinator).await.unwrap_err().failure().is_none());
}

#[tokio::test]
async fn what_is_not_a_coordinator_is_told_apart_from_nothing_at_all() {
    let mesh = World::new(MESH);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addresses = [address(listener.local_addr().unwrap())];
    let other = tokio::spawn(async move {
        use tokio::io::AsyncWriteExt as _;
        let (mut stream, _) = listener.accept().await.unwrap();
        stream.write_all(b"SSH-2.0-OpenSSH_10.0\r\n").await.unwrap();
        stream
    });
    let dialer = Dialer::member(mesh.trust.clone(), mesh.credentials(NODE));
    let error = dialer.dial(&addresses, Expect::AnyCoordinator).await.unwrap_err();
    assert!(matches!(error.failure(), Some(Failure::Tls(_))), "{error}");
    other.await.unwrap();
}

#[tokio::test]
async fn a_connection_that_ended_is_not_dialled_again_behind_its_owners_back() {
    let mesh = World::new(MESH);
    let server = mesh.serve(COORDINATOR).await;
    let connection = mesh.dial(NODE, &server, Expect::AnyCoordinator).await.unwrap();
    let mut client = MembershipClient::new(connection.channel);
    client.challenge(v1::ChallengeRequest {}).await.unwrap();
    let address = server.address;
    server.stop().await;
    assert!(client.challenge(v1::ChallengeRequest {}).await.is_err());
    let again = std::net::TcpListener::bind(address).unwrap();
    again.set_nonblocking(true).unwrap();
    assert!(client.challenge(v1::ChallengeRequest {}).await.is_err());
    assert_eq!(again.accept().unwrap_err().kind(), std::io::ErrorKind::WouldBlock);
}

/// One mesh with its CA, its keys and its time.
struct World {
    mesh: MeshId,
    authority: Authority,
    time: Arc<AtomicU64>,
    trust: Trust,
}

impl World {
    fn new(mesh: MeshId) -> Self {
        let authority = Authority::create(mesh, NOW).unwrap();
        let time = Arc::new(AtomicU64::new(NOW.0));
        let trust = Trust::new(mesh, &[authority.certificate().clone()], clock(&time));
        Self { mesh, authority, time, trust }
    }

    fn set_time(&self, now: MeshTime) {
        self.time.store(now.0, Ordering::SeqCst);
    }

    fn pin(&self) -> Fingerprint {
        Fingerprint::of(&self.authority.certificate().0)
    }

    fn key(&self, member: Member) -> SigningKey {
        SigningKey::from_bytes(match member {
            Member::Node(_) => &[7; 32],
            Member::Coordinator(_) => &[8; 32],
        })
    }

    fn identity(&self, member: Member) -> Identity {
        Identity { mesh: self.mesh, member, identity_key: identity_key(&self.key(member)) }
    }

    fn credentials(&self, member: Member) -> Credentials {
        let key = self.key(member);
        let certificate = self.authority.issue(member, identity_key(&key), NOW).unwrap();
        Credentials::new(&certificate, self.authority.certificate(), &key).unwrap()
    }

    async fn serve(&self, member: Member) -> Server {
        self.serve_with(self.credentials(member)).await
    }

    async fn serve_with(&self, credentials: Credentials) -> Server {
        self.serve_within(credentials, Budget::of(1_024)).await
    }

    async fn serve_within(&self, credentials: Credentials, budget: Budget) -> Server {
        let (callers, seen) = mpsc::unbounded_channel();
        let config = server_config(credentials, self.trust.clone());
        // A runtime of its own can be ended with all its connections, as a process can.
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let serve = async move {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let address = listener.local_addr().unwrap();
            let service = Routes::new(MembershipServer::new(Recorder { callers }));
            tokio::spawn(serve(Listener::new(listener, config, budget), service));
            address
        };
        let address = runtime.spawn(serve).await.unwrap();
        Server { address, seen, runtime: Some(runtime) }
    }

    async fn dial(&self, member: Member, server: &Server, expect: Expect) -> Result<Connection, mesh_proto::DialError> {
        Dialer::member(self.trust.clone(), self.credentials(member)).dial(&server.addresses(), expect).await
    }

    async fn dial_with(&self, credentials: Credentials, server: &Server) -> Result<Connection, mesh_proto::DialError> {
        Dialer::member(self.trust.clone(), credentials).dial(&server.addresses(), Expect::AnyCoordinator).await
    }

    async fn join(
        &self,
        server: &Server,
        mesh: MeshId,
        authority: Fingerprint,
    ) -> Result<Connection, mesh_proto::DialError> {
        let dialer = Dialer::joiner(clock(&self.time));
        dialer.dial(&server.addresses(), Expect::Pinned { mesh, authority }).await
    }
}

fn clock(time: &Arc<AtomicU64>) -> Clock {
    let time = time.clone();
    Arc::new(move || MeshTime(time.load(Ordering::SeqCst)))
}

fn address(address: SocketAddr) -> CoordinatorAddress {
    address.to_string().parse().unwrap()
}

/// A port that was free a moment ago.
async fn refusing() -> CoordinatorAddress {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    address(listener.local_addr().unwrap())
}

struct Server {
    address: SocketAddr,
    seen: mpsc::UnboundedReceiver<Caller>,
    runtime: Option<tokio::runtime::Runtime>,
}

impl Server {
    fn addresses(&self) -> [CoordinatorAddress; 1] {
        [address(self.address)]
    }

    /// Makes a call on `connection` and says whom the server took the caller for.
    async fn called_by(&mut self, connection: Connection) -> Caller {
        let local = connection.local;
        MembershipClient::new(connection.channel).challenge(v1::ChallengeRequest {}).await.unwrap();
        let seen = self.seen.recv().await.unwrap();
        assert_eq!(seen.remote, local);
        seen
    }

    async fn stop(mut self) {
        let runtime = self.runtime.take().unwrap();
        let ended = tokio::task::spawn_blocking(|| runtime.shutdown_timeout(Duration::from_secs(10)));
        ended.await.unwrap();
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

struct Recorder {
    callers: mpsc::UnboundedSender<Caller>,
}

#[tonic::async_trait]
impl Membership for Recorder {
    async fn challenge(&self, request: Request<v1::ChallengeRequest>) -> Result<Response<v1::ChallengeReply>, Status> {
        let caller = caller(&request).ok_or_else(|| Status::internal("no caller"))?;
        let _ = self.callers.send(caller.clone());
        Ok(Response::new(v1::ChallengeReply::default()))
    }

    async fn join(&self, _: Request<v1::JoinRequest>) -> Result<Response<v1::JoinReply>, Status> {
        Err(Status::unimplemented("join"))
    }

    type SessionStream = Pin<Box<dyn futures::Stream<Item = Result<v1::CoordinatorMessage, Status>> + Send>>;

    async fn session(&self, _: Request<Streaming<v1::NodeMessage>>) -> Result<Response<Self::SessionStream>, Status> {
        Err(Status::unimplemented("session"))
    }

    async fn renew_key(&self, _: Request<v1::RenewKeyRequest>) -> Result<Response<v1::RenewKeyReply>, Status> {
        Err(Status::unimplemented("renew_key"))
    }

    async fn renew_certificate(
        &self,
        _: Request<v1::RenewCertificateRequest>,
    ) -> Result<Response<v1::RenewCertificateReply>, Status> {
        Err(Status::unimplemented("renew_certificate"))
    }

    async fn leave(&self, _: Request<v1::LeaveRequest>) -> Result<Response<v1::LeaveReply>, Status> {
        Err(Status::unimplemented("leave"))
    }
}
