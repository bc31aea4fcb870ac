//! Members at work: they follow their sessions, call on new connections, and others join, while something goes on.
//!
//! All of it is tallied, and ends when it is told to; what is then still under way may finish, in its time.

use crate::daemon::Coordinator;
use anyhow::{Context as _, Result, bail, ensure};
use bytes::Bytes;
use ed25519_dalek::SigningKey;
use mesh_proto::certificate::{certificate_request, identity_key};
use mesh_proto::dial::{Connection, Dialer};
use mesh_proto::join_proof::{Statement, prove, public_key};
use mesh_proto::tls::{Credentials, Expect, Trust, system_clock};
use mesh_proto::v1::admin_client::AdminClient;
use mesh_proto::v1::membership_client::MembershipClient;
use mesh_proto::{Wire as _, v1};
use mesh_types::netmap::Certificate;
use mesh_types::session::Hello;
use mesh_types::{
    CoordinatorAddress, CoordinatorMessage, JoinToken, Level, MeshConfig, NodeMessage, PrivateKey, PublicKey, Revision,
};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;
use tonic::transport::Channel;

const MEMBERS: usize = 3;
/// Nothing that a member or a joiner waits for may take longer, whatever else goes on.
pub(crate) const LATEST: Duration = Duration::from_secs(5);
/// Between changes of the registry; each is a delta to every member.
const CHANGE: Duration = Duration::from_millis(400);
/// Between calls of one member, less often than a key may be renewed.
const CALL: Duration = Duration::from_millis(2_200);
const JOIN: Duration = Duration::from_millis(900);
/// A machine that is told to wait, or not served, tries again.
const REPEAT: Duration = Duration::from_millis(200);
/// What is renamed all the time.
const BEACON: &str = "beacon";

/// How often something was done, and how well.
#[derive(Clone, Debug, Default)]
pub(crate) struct Tally {
    pub(crate) done: usize,
    slowest: Duration,
    failures: Vec<String>,
}

impl Tally {
    /// Counts what took so long, or keeps why it came to nothing.
    pub(crate) fn note(&mut self, came: Result<Duration, String>) {
        match came {
            Ok(took) => {
                self.done += 1;
                self.slowest = self.slowest.max(took);
            }
            Err(why) => self.failures.push(why),
        }
    }

    /// In words, such as `9 joins in 210 ms`, the time being that of the slowest.
    pub(crate) fn tell(&self, what: &str) -> String {
        format!("{} {what} in at most {} ms", self.done, self.slowest.as_millis())
    }

    /// What was not as it must be.
    pub(crate) fn fault(&self, what: &str) -> Option<String> {
        match self.failures.first() {
            Some(first) => Some(format!("{} {what} failed: {first}", self.failures.len())),
            None if self.done == 0 => Some(format!("no {what}")),
            None if self.slowest > LATEST => Some(format!("{what} took {} ms", self.slowest.as_millis())),
            None => None,
        }
    }
}

/// What members do, in the order of its tallies.
#[derive(Clone, Copy)]
enum Work {
    Delta,
    Call,
    Join,
}

impl Work {
    const ALL: [(Self, &'static str); 3] = [(Self::Delta, "deltas"), (Self::Call, "calls"), (Self::Join, "joins")];
}

/// What members did, by kind; clones share it.
#[derive(Clone, Default)]
struct Tallies(Arc<Mutex<[Tally; 3]>>);

impl Tallies {
    /// Takes down how long something took, or why it came to nothing.
    fn note(&self, work: Work, came: Result<Duration, String>) {
        self.held()[work as usize].note(came);
    }

    fn held(&self) -> MutexGuard<'_, [Tally; 3]> {
        self.0.lock().expect("no code panics while it holds the tallies")
    }

    /// Whether some kind of work was neither done nor failed yet.
    fn is_incomplete(&self) -> bool {
        self.held().iter().any(|tally| tally.done == 0 && tally.failures.is_empty())
    }
}

/// Members at work.
pub(crate) struct Members {
    tallies: Tallies,
    stop: watch::Sender<bool>,
    tasks: JoinSet<()>,
}

impl Members {
    /// Joins some, opens their sessions, and sets all to work. Returns when every kind of work was done once.
    pub(crate) async fn at_work(coordinator: &Coordinator) -> Result<Self> {
        let token = Arc::new(coordinator.token().await?);
        let (tallies, stop) = (Tallies::default(), watch::channel(false).0);
        let mut tasks = JoinSet::new();
        Member::join(&token, BEACON).await?;
        let (named, _) = watch::channel(Named { number: 0, at: BTreeMap::new() });
        for number in 0..MEMBERS {
            let member = Member::join(&token, &format!("member{number}")).await?;
            let session = member.session().await?;
            tasks.spawn(follow(session, named.subscribe(), tallies.clone()));
            tasks.spawn(call(member, stop.subscribe(), tallies.clone()));
        }
        tasks.spawn(join(token, stop.subscribe(), tallies.clone()));
        tasks.spawn(rename(coordinator.admin().await?, named, stop.subscribe(), tallies.clone()));
        let members = Self { tallies, stop, tasks };
        let began = async {
            while members.tallies.is_incomplete() {
                sleep(Duration::from_millis(20)).await;
            }
        };
        timeout(2 * LATEST, began)
            .await
            .with_context(|| format!("members do not work: {:?}", members.tallies.held()))?;
        *members.tallies.held() = Default::default();
        Ok(members)
    }

    /// Lets them finish; gives what they did, and what went wrong.
    pub(crate) async fn stop(mut self) -> (String, Vec<String>) {
        self.stop.send_replace(true);
        let all_ended = async { while self.tasks.join_next().await.is_some() {} };
        let stuck = timeout(2 * LATEST, all_ended).await.is_err();
        let held = self.tallies.held();
        let told = Work::ALL.map(|(work, what)| held[work as usize].tell(what)).join(", ");
        let mut faults: Vec<String> =
            Work::ALL.into_iter().filter_map(|(work, what)| held[work as usize].fault(what)).collect();
        if stuck {
            faults.push("members are stuck".to_owned());
        }
        (told, faults)
    }
}

/// The names that the beacon was given.
struct Named {
    number: usize,
    at: BTreeMap<usize, Instant>,
}

/// Waits; `false` if it is time to stop.
async fn pause(pause: Duration, stop: &mut watch::Receiver<bool>) -> bool {
    timeout(pause, stop.wait_for(|stop| *stop)).await.is_err()
}

async fn rename(
    mut admin: AdminClient<Channel>,
    named: watch::Sender<Named>,
    mut stop: watch::Receiver<bool>,
    tallies: Tallies,
) {
    let mut name = BEACON.to_owned();
    let mut number = 0;
    while pause(CHANGE, &mut stop).await {
        number += 1;
        let next = format!("{BEACON}-{number}");
        let request = v1::RenameNodeRequest { request_id: Bytes::new(), node: name, name: next.clone() };
        named.send_modify(|named| {
            named.number = number;
            named.at.insert(number, Instant::now());
        });
        match timeout(LATEST, admin.rename_node(request)).await {
            Ok(Ok(_)) => name = next,
            Ok(Err(error)) => return tallies.note(Work::Delta, Err(error.message().to_owned())),
            Err(_) => return tallies.note(Work::Delta, Err("the registry does not change".to_owned())),
        }
    }
}

/// Follows a session until the beacon's last name has come.
async fn follow(mut session: Session, mut named: watch::Receiver<Named>, tallies: Tallies) {
    let mut seen = 0;
    loop {
        // The one who renames it has ended, and its last name is here.
        let is_last = named.has_changed().is_err();
        if is_last && seen >= named.borrow().number {
            return;
        }
        let message = tokio::select! {
            message = timeout(LATEST, session.from.message()) => message,
            _ = named.wait_for(|_| false), if !is_last => continue,
        };
        let lost = match message {
            Ok(Ok(Some(message))) => match CoordinatorMessage::from_wire(message) {
                Ok(CoordinatorMessage::Close(reason)) => Some(format!("session closed: {reason:?}")),
                Ok(CoordinatorMessage::Delta(delta)) => {
                    let names = delta.upserts.iter().filter_map(|record| record.name.as_str().strip_prefix(BEACON));
                    let latest = names.filter_map(|name| name.strip_prefix('-')?.parse::<usize>().ok()).max();
                    let (now, held) = (Instant::now(), named.borrow());
                    for number in seen + 1..=latest.unwrap_or(seen) {
                        let took = held.at.get(&number).map_or(Duration::ZERO, |at| now - *at);
                        tallies.note(Work::Delta, Ok(took));
                    }
                    seen = seen.max(latest.unwrap_or(0));
                    None
                }
                Ok(_) => None,
                Err(error) => Some(error.to_string()),
            },
            Ok(Ok(None)) => Some("session ended".to_owned()),
            Ok(Err(error)) => Some(format!("session lost: {}", error.message())),
            Err(_) => Some("session silent".to_owned()),
        };
        if let Some(lost) = lost {
            return tallies.note(Work::Delta, Err(lost));
        }
    }
}

/// Calls on a new connection each time, as a member that moved.
async fn call(member: Member, mut stop: watch::Receiver<bool>, tallies: Tallies) {
    loop {
        let begun = Instant::now();
        let called = timeout(LATEST, member.renew_key()).await.context("no answer").flatten();
        tallies.note(Work::Call, called.map(|()| begun.elapsed()).map_err(|error| format!("{error:#}")));
        if !pause(CALL, &mut stop).await {
            return;
        }
    }
}

async fn join(token: Arc<JoinToken>, mut stop: watch::Receiver<bool>, tallies: Tallies) {
    for number in 0.. {
        let begun = Instant::now();
        let joined = join_patiently(&token, &format!("joiner{number}")).await;
        tallies.note(Work::Join, joined.map(|()| begun.elapsed()).map_err(|error| format!("{error:#}")));
        if !pause(JOIN, &mut stop).await {
            return;
        }
    }
}

/// Tries to join again and again, as a machine does, with what is left of its time.
async fn join_patiently(token: &JoinToken, name: &str) -> Result<()> {
    let deadline = Instant::now() + LATEST;
    loop {
        let left = deadline - Instant::now();
        match timeout(left, Member::join(token, name)).await {
            Ok(Ok(_)) => return Ok(()),
            Ok(Err(error)) if Instant::now() + REPEAT > deadline => return Err(error),
            Ok(Err(_)) => sleep(REPEAT).await,
            Err(_) => bail!("no answer"),
        }
    }
}

/// A node that joined, as far as a coordinator can tell.
pub(crate) struct Member {
    config: MeshConfig,
    dialer: Dialer,
    addresses: Vec<CoordinatorAddress>,
}

struct Session {
    from: Streaming<v1::CoordinatorMessage>,
    /// Kept open: its end would be that of the session.
    _to: mpsc::Sender<v1::NodeMessage>,
    _connection: Connection,
}

impl Member {
    /// Joins with keys made now.
    pub(crate) async fn join(token: &JoinToken, name: &str) -> Result<Self> {
        let key = SigningKey::from_bytes(&random());
        let private_key = PrivateKey::from_bytes(random());
        let expect = Expect::Pinned { mesh: token.mesh, authority: token.authority };
        let connection = Dialer::joiner(system_clock()).dial(&token.addresses, expect).await?;
        let mut client = MembershipClient::new(connection.channel.clone());
        let challenge = client.challenge(v1::ChallengeRequest {}).await?.into_inner().public_key;
        let challenge = PublicKey::try_from(challenge.as_ref()).context("challenge")?;
        let request = certificate_request(&key)?;
        let statement = Statement {
            exporter: &connection.exporter,
            mesh: token.mesh,
            token: token.id,
            public_key: public_key(&private_key),
            identity_key: identity_key(&key),
            certificate_request: &request,
        };
        let proof = prove(&statement, &private_key, challenge)?;
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
        let config = MeshConfig::from_wire(reply.config.context("settings")?)?;
        let trust = Trust::new(token.mesh, &config.authorities, system_clock());
        let authority = config.authorities.first().context("authority")?;
        let credentials = Credentials::new(&Certificate(reply.certificate.to_vec()), authority, &key)?;
        let addresses = token.addresses.clone();
        Ok(Self { config, dialer: Dialer::member(trust, credentials), addresses })
    }

    async fn client(&self) -> Result<(MembershipClient<Channel>, Connection)> {
        let connection = self.dialer.dial(&self.addresses, Expect::AnyCoordinator).await?;
        Ok((MembershipClient::new(connection.channel.clone()), connection))
    }

    async fn renew_key(&self) -> Result<()> {
        let (mut client, _connection) = self.client().await?;
        client.renew_key(v1::RenewKeyRequest::default()).await?;
        Ok(())
    }

    /// Opens a session that holds nothing yet.
    async fn session(&self) -> Result<Session> {
        let (mut client, connection) = self.client().await?;
        let hello = Hello {
            mesh: self.config.mesh,
            epoch: None,
            revision: Revision::NONE,
            level: Level::SUPPORTED,
            instance: u64::from_be_bytes(random()),
            software: "attack".into(),
            presence: Vec::new(),
        };
        let (to, said) = mpsc::channel(4);
        to.try_send(NodeMessage::Hello(hello).to_wire()).expect("a new channel has room");
        let from = client.session(ReceiverStream::new(said)).await?.into_inner();
        ensure!(!to.is_closed(), "the session ended at once");
        Ok(Session { from, _to: to, _connection: connection })
    }
}

fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).expect("the kernel gives random bytes");
    bytes
}
