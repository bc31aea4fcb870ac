//! Real coordinator processes on loopback, and callers for them.

#![allow(clippy::unwrap_used, dead_code, unreachable_pub)] // In tests, which end by it; not every test uses everything.

pub mod raw;

use bytes::Bytes;
use ed25519_dalek::SigningKey;
use mesh_proto::certificate::certificate_request;
use mesh_proto::dial::{Connection, Dialer};
use mesh_proto::join_proof::{Statement, prove, public_key};
use mesh_proto::tls::{Credentials, Expect, Trust, system_clock};
use mesh_proto::v1::admin_client::AdminClient;
use mesh_proto::v1::membership_client::MembershipClient;
use mesh_proto::{Wire, local, v1};
use mesh_types::netmap::Certificate;
use mesh_types::session::Hello;
use mesh_types::{
    CoordinatorMessage, Epoch, JoinToken, Level, MeshConfig, NodeId, NodeMessage, PrivateKey, PublicKey, Revision,
};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use tokio::sync::mpsc;
use tonic::Streaming;
use tonic::transport::Channel;

/// Longest wait for anything; only a failing test waits so long.
pub const PATIENCE: Duration = Duration::from_secs(40);

/// One coordinator process; killed when dropped.
pub struct Coordinator {
    root: PathBuf,
    port: u16,
    /// Where others are told to call, if that is not the port itself.
    advertised: Option<u16>,
    child: Option<Child>,
}

impl Coordinator {
    /// A directory and a port; nothing runs yet.
    pub fn new(root: &Path, name: &str) -> Self {
        let root = root.join(name);
        std::fs::create_dir_all(&root).unwrap();
        Self { root, port: free_port(), advertised: None, child: None }
    }

    /// Lets everybody call this port of loopback instead of its own.
    pub fn advertise(&mut self, port: u16) {
        self.advertised = Some(port);
    }

    /// Where it listens itself.
    pub fn address(&self) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], self.port))
    }

    /// Starts it; `more` is what to become, if it is nothing yet.
    pub fn start(&mut self, more: &[&str]) {
        assert!(self.child.is_none(), "it runs already");
        let log = std::fs::OpenOptions::new().create(true).append(true).open(self.root.join("log")).unwrap();
        let child = self.command(more).stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).spawn().unwrap();
        self.child = Some(child);
    }

    /// Starts it so that none of its files grows beyond this many bytes: writing more fails, as on a full disk.
    pub fn start_on_full_disk(&mut self, bytes: u64) {
        let coordinator = self.command(&[]);
        let log = std::fs::OpenOptions::new().create(true).append(true).open(self.root.join("log")).unwrap();
        // The shell counts in blocks of 512 bytes; the signal is ignored, so that the call fails instead.
        let script = format!("trap '' XFSZ; ulimit -f {}; exec \"$0\" \"$@\"", bytes.div_ceil(512));
        let mut shell = Command::new("sh");
        shell.arg("-c").arg(script).arg(coordinator.get_program()).args(coordinator.get_args());
        for (name, value) in coordinator.get_envs() {
            match value {
                Some(value) => shell.env(name, value),
                None => shell.env_remove(name),
            };
        }
        self.child = Some(shell.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).spawn().unwrap());
    }

    /// Starts it, waits until it ends, and gives its exit code and what it said.
    pub fn start_and_fail(&mut self, more: &[&str]) -> (Option<i32>, String) {
        let output = self.command(more).output().unwrap();
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    }

    /// Works on the data directory while nothing runs.
    pub fn offline(&self, action: &str, more: &[&str]) -> Result<String, String> {
        assert!(self.child.is_none(), "it runs");
        let mut command = Command::new(env!("CARGO_BIN_EXE_mesh-coordinator"));
        command.arg(action).arg("--data-dir").arg(self.data_dir()).args(more);
        if action == "restore" {
            command.args(["--advertise", &format!("127.0.0.1:{}", self.port)]);
        }
        let output = command.output().unwrap();
        let said = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
        if output.status.success() { Ok(said) } else { Err(said) }
    }

    fn command(&self, more: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_mesh-coordinator"));
        command
            .arg("--data-dir")
            .arg(self.data_dir())
            .arg("--socket")
            .arg(self.socket())
            .args(["--advertise", &format!("127.0.0.1:{}", self.advertised.unwrap_or(self.port))])
            .args(["--listen", &self.address().to_string()])
            .args(more)
            .env("RUST_LOG", "info,openraft=warn")
            .env_remove("MESH_JOIN_TOKEN");
        command
    }

    pub fn data_dir(&self) -> PathBuf {
        self.root.join("data")
    }

    pub fn socket(&self) -> PathBuf {
        self.root.join("coordinator.sock")
    }

    /// Moves to another port: what a new address is.
    pub fn move_away(&mut self) {
        self.port = free_port();
    }

    /// `kill -9`.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }

    /// SIGTERM; gives the exit code.
    pub fn terminate(&mut self) -> Option<i32> {
        let mut child = self.child.take().unwrap();
        let pid = nix::unistd::Pid::from_raw(i32::try_from(child.id()).unwrap());
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).unwrap();
        child.wait().unwrap().code()
    }

    /// Waits until the process ends by itself; gives the exit code.
    pub fn wait(&mut self) -> Option<i32> {
        let begun = Instant::now();
        let mut child = self.child.take().unwrap();
        loop {
            if let Some(status) = child.try_wait().unwrap() {
                return status.code();
            }
            if begun.elapsed() > PATIENCE {
                child.kill().unwrap();
                panic!("it does not end: {}", self.log());
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    pub fn log(&self) -> String {
        std::fs::read_to_string(self.root.join("log")).unwrap_or_default()
    }

    /// The admin service, once it is there.
    pub async fn admin(&mut self) -> AdminClient<Channel> {
        let begun = Instant::now();
        loop {
            if let Ok(channel) = local::connect(&self.socket()).await {
                return AdminClient::new(channel);
            }
            let ended = self.child.as_mut().is_none_or(|child| child.try_wait().unwrap().is_some());
            assert!(!ended && begun.elapsed() < PATIENCE, "no admin socket: {}", self.log());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    pub async fn token(&mut self, role: &str, uses: u32) -> String {
        let request = v1::CreateTokenRequest { request_id: Bytes::new(), role: role.into(), ttl: 3_600_000, uses };
        self.admin().await.create_token(request).await.unwrap().into_inner().token
    }

    pub async fn coordinators(&mut self) -> v1::ListCoordinatorsReply {
        self.admin().await.list_coordinators(v1::ListCoordinatorsRequest {}).await.unwrap().into_inner()
    }

    /// Where it answers itself, as the registry says.
    pub async fn own_addresses(&mut self) -> Vec<String> {
        let begun = Instant::now();
        loop {
            let listed = self.coordinators().await;
            let mut records = listed.coordinators.into_iter().filter_map(|one| one.record);
            if listed.fresh {
                return records.find(|record| record.id == listed.this).unwrap().addresses;
            }
            assert!(begun.elapsed() < PATIENCE, "it does not catch up");
        }
    }

    pub async fn nodes(&mut self) -> v1::ListNodesReply {
        self.admin().await.list_nodes(v1::ListNodesRequest {}).await.unwrap().into_inner()
    }
}

impl Drop for Coordinator {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- log of {} ---\n{}", self.root.display(), self.log());
        }
        self.kill();
    }
}

/// Waits until something holds.
pub async fn eventually(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let begun = Instant::now();
    while !holds().await {
        assert!(begun.elapsed() < PATIENCE, "{what} did not come about");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

fn free_port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// A mesh of `count` coordinators, all of whom vote.
pub async fn mesh(root: &Path, count: usize) -> Vec<Coordinator> {
    found((1..=count).map(|number| Coordinator::new(root, &format!("c{number}"))).collect(), root).await
}

/// Makes a mesh of coordinators that run nowhere yet, `c1` and on.
pub async fn found(coordinators: Vec<Coordinator>, root: &Path) -> Vec<Coordinator> {
    let count = coordinators.len();
    let mut coordinators = coordinators.into_iter();
    let mut first = coordinators.next().unwrap();
    first.start(&["--bootstrap", "--overlay", "10.77.0.0/16", "--name", "c1"]);
    let token = first.token("coordinator", 9).await;
    let path = root.join("coordinator-token");
    std::fs::write(&path, &token).unwrap();
    let mut all = vec![first];
    for (number, mut next) in (2..).zip(coordinators) {
        next.start(&["--join-token-file", path.to_str().unwrap(), "--name", &format!("c{number}")]);
        // One after the other, so that the ids are known.
        next.admin().await;
        all.push(next);
    }
    let begun = Instant::now();
    loop {
        let listed = all[0].coordinators().await.coordinators;
        if listed.len() == count && listed.iter().all(|one| one.role != "learner" && one.reachable) {
            return all;
        }
        assert!(begun.elapsed() < PATIENCE, "no {count} voters: {listed:?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// The index of the coordinator that leads, as the others see it.
pub async fn leader(all: &mut [Coordinator]) -> usize {
    let begun = Instant::now();
    loop {
        for (index, one) in all.iter_mut().enumerate() {
            let listed = one.coordinators().await;
            let leads = listed.coordinators.iter().find(|one| one.role == "leader");
            if leads.is_some_and(|one| one.record.as_ref().unwrap().id == listed.this) {
                return index;
            }
        }
        assert!(begun.elapsed() < PATIENCE, "no leader");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// A node that joined, as far as a coordinator can tell.
pub struct Node {
    pub id: NodeId,
    pub name: String,
    pub key: SigningKey,
    pub private_key: PrivateKey,
    pub config: MeshConfig,
    pub epoch: Epoch,
    pub credentials: Credentials,
    dialer: Dialer,
}

/// One session: both directions.
pub struct Session {
    pub said: mpsc::Sender<v1::NodeMessage>,
    heard: Streaming<v1::CoordinatorMessage>,
    _connection: Connection,
}

impl Node {
    /// Joins, or joins again, with keys made of `seed`.
    pub async fn join(token: &str, seed: u8, name: &str) -> Result<Self, tonic::Status> {
        let token: JoinToken = token.parse().unwrap();
        let key = SigningKey::from_bytes(&[seed; 32]);
        let private_key = PrivateKey::from_bytes([seed; 32]);
        let expect = Expect::Pinned { mesh: token.mesh, authority: token.authority };
        let connection = Dialer::joiner(system_clock()).dial(&token.addresses, expect).await.unwrap();
        let mut client = MembershipClient::new(connection.channel.clone());
        let challenge = client.challenge(v1::ChallengeRequest {}).await?.into_inner();
        let challenge = PublicKey::try_from(challenge.public_key.as_ref()).unwrap();
        let request = certificate_request(&key).unwrap();
        let statement = Statement {
            exporter: &connection.exporter,
            mesh: token.mesh,
            token: token.id,
            public_key: public_key(&private_key),
            identity_key: mesh_proto::certificate::identity_key(&key),
            certificate_request: &request,
        };
        let proof = prove(&statement, &private_key, challenge).unwrap();
        let join = v1::JoinRequest {
            mesh: Bytes::copy_from_slice(token.mesh.as_bytes()),
            token_id: Bytes::copy_from_slice(token.id.as_bytes()),
            token_secret: Bytes::copy_from_slice(token.secret.as_bytes()),
            public_key: Bytes::copy_from_slice(statement.public_key.as_bytes()),
            certificate_request: Bytes::from(request.clone()),
            name: name.into(),
            proof: Bytes::copy_from_slice(&proof),
        };
        let reply = client.join(join).await?.into_inner();
        let config = MeshConfig::from_wire(reply.config.unwrap()).unwrap();
        let trust = Trust::new(token.mesh, &config.authorities, system_clock());
        let certificate = Certificate(reply.certificate.to_vec());
        let credentials = Credentials::new(&certificate, &config.authorities[0], &key).unwrap();
        Ok(Self {
            id: NodeId::try_from(reply.node_id.as_ref()).unwrap(),
            name: reply.name,
            key,
            private_key,
            config,
            epoch: Epoch::from_wire(reply.epoch.unwrap()).unwrap(),
            dialer: Dialer::member(trust, credentials.clone()),
            credentials,
        })
    }

    /// A connection to one coordinator, by its place in the settings.
    pub async fn connect(&self, index: usize) -> Connection {
        self.dialer.dial(&self.config.coordinators[index].addresses, Expect::AnyCoordinator).await.unwrap()
    }

    /// What this start of the daemon says first, holding `revision`.
    pub fn hello(&self, instance: u64, revision: Revision) -> Hello {
        Hello {
            mesh: self.config.mesh,
            epoch: (revision > Revision::NONE).then_some(self.epoch),
            revision,
            level: Level::SUPPORTED,
            instance,
            software: "test".into(),
            presence: Vec::new(),
        }
    }

    /// Opens a session, holding `revision`.
    pub async fn session(&self, index: usize, revision: Revision) -> Session {
        self.session_of(1, index, revision).await
    }

    /// Opens a session of another start of the daemon.
    pub async fn session_of(&self, instance: u64, index: usize, revision: Revision) -> Session {
        Session::open(self.connect(index).await, self.hello(instance, revision)).await.unwrap()
    }

    /// A connection to a coordinator at an address that no settings tell.
    pub async fn connect_to(&self, address: SocketAddr) -> Connection {
        self.dialer.dial(&[address.to_string().parse().unwrap()], Expect::AnyCoordinator).await.unwrap()
    }
}

impl Session {
    /// Says hello on a new stream.
    pub async fn open(connection: Connection, hello: Hello) -> Result<Self, tonic::Status> {
        let (said, messages) = mpsc::channel(16);
        said.send(NodeMessage::Hello(hello).to_wire()).await.unwrap();
        let stream = tokio_stream::wrappers::ReceiverStream::new(messages);
        let heard = MembershipClient::new(connection.channel.clone()).session(stream).await?.into_inner();
        Ok(Self { said, heard, _connection: connection })
    }

    /// The next message; none when the stream has ended.
    pub async fn next(&mut self) -> Option<CoordinatorMessage> {
        let message = tokio::time::timeout(PATIENCE, self.heard.message()).await.expect("silence");
        message.unwrap_or(None).map(|message| CoordinatorMessage::from_wire(message).unwrap())
    }

    /// Skips until `wanted` gives something.
    pub async fn until<T>(&mut self, mut wanted: impl FnMut(CoordinatorMessage) -> Option<T>) -> T {
        let begun = Instant::now();
        loop {
            assert!(begun.elapsed() < PATIENCE, "it was never said");
            let message = self.next().await.expect("the stream ended");
            if let Some(found) = wanted(message) {
                return found;
            }
        }
    }
}
