//! Joining a mesh with a token: dial, challenge, proof, and a reply that is checked before anything is believed.
//!
//! The host's routes are held against the overlay before the proof is given, so that a mesh that does not fit here
//! spends no name and no address; and against the reply, which alone binds.
//!
//! The keys are on disk before the coordinator hears of them and the reply is kept by the caller, so that a lost reply
//! or a crash in between costs nothing: the same token with the same keys gives the same identity again.

use crate::ask::{AskError, ask};
use crate::clock;
use crate::ground::Ground;
use crate::link::{HostRoute, LinkError};
use crate::state::{Keys, Membership, Standing, StateError};
use bytes::Bytes;
use ipnet::IpNet;
use mesh_proto::certificate::{CertificateError, Member, certificate_request, read_certificate};
use mesh_proto::convert::{self, Wire as _, WireError};
use mesh_proto::dial::{Connection, DialError, Dialer, Failure};
use mesh_proto::join_proof::{Exporter, Statement, prove};
use mesh_proto::tls::{Expect, system_clock};
use mesh_proto::v1::membership_client::MembershipClient;
use mesh_proto::v1::{ChallengeReply, ChallengeRequest, JoinReply, JoinRequest};
use mesh_types::netmap::Certificate;
use mesh_types::{
    JoinToken, MeshConfig, MeshDuration, MeshId, MeshTime, NodeName, NodeRecord, Overlay, PublicKey, Revision, Role,
};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;
use thiserror::Error;
use tokio::time::{Instant, sleep};
use tonic::Status;
use tracing::warn;

/// A missing quorum is often an election, over in a moment: so long the question is repeated.
const PATIENCE: Duration = Duration::from_secs(8);
const REPEAT: Duration = Duration::from_millis(300);
/// A clock this far off is worth a word: deadlines are kept by the mesh's time, but logs will confuse.
const CLOCK_DRIFT: MeshDuration = MeshDuration::from_secs(60);

/// What a join needs.
#[derive(Clone)]
pub(crate) struct Join {
    /// Where to go and whom to trust.
    pub(crate) token: JoinToken,
    /// The name wished for.
    pub(crate) name: NodeName,
    /// Already durable.
    pub(crate) keys: Arc<Keys>,
    /// The host to be on, whose routes must be left alone.
    pub(crate) ground: Arc<dyn Ground>,
    /// On the packets to coordinators; `None` is no mark.
    pub(crate) fwmark: Option<u32>,
}

/// Why a node did not join, each with what to do next.
#[derive(Debug, Error)]
pub(crate) enum JoinError {
    /// The token is for the other role.
    #[error("this token makes a coordinator, not a node: use `meshctl join --coordinator`, or ask for a node's token")]
    Role,
    /// Nobody answered.
    #[error("{0}; check that a coordinator runs there and that TCP to it is allowed from this host")]
    Unreachable(DialError),
    /// One of the clocks is wrong.
    #[error("{0}; set the clock of the machine that is wrong (here it is {now}) and join again", now = .1)]
    Clock(DialError, MeshTime),
    /// Somebody else answered.
    #[error("{0}; the token is of another mesh, or somebody stands between: ask for a new token on a coordinator")]
    Authority(DialError),
    /// Coordinators cannot write now.
    #[error("{0}; the token stays good: join again in a moment, or when a majority of the coordinators is up")]
    Unavailable(AskError),
    /// The coordinator said no and why.
    #[error("the coordinator refuses: {}", .0.message())]
    Refused(Status),
    /// The coordinator's reply is not one.
    #[error("the coordinator's reply is not understood ({0}): are meshctl there and here of the same version?")]
    Reply(String),
    /// Our own certificate request could not be made.
    #[error("cannot ask for a certificate: {0}")]
    Request(#[from] CertificateError),
    /// The overlay would hide a route of this host.
    #[error(
        "{}: remove or narrow that route and join again with the same token, or make a mesh with another --overlay",
        Listed(overlay, routes)
    )]
    Overlap {
        /// The mesh's ranges.
        overlay: Overlay,
        /// The host's routes in the way.
        routes: Vec<HostRoute>,
    },
    /// The host could not be looked at.
    #[error(transparent)]
    Link(#[from] LinkError),
    /// The membership could not be kept.
    #[error(transparent)]
    State(#[from] StateError),
}

impl JoinError {
    /// Whether the same join may work later, with nothing changed by a person.
    pub(crate) fn is_temporary(&self) -> bool {
        matches!(self, Self::Unreachable(_) | Self::Unavailable(_) | Self::Clock(..))
    }
}

struct Listed<'a>(&'a Overlay, &'a [HostRoute]);

impl fmt::Display for Listed<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, route) in self.1.iter().enumerate() {
            let range = match route.destination {
                IpNet::V4(_) => IpNet::from(self.0.v4),
                IpNet::V6(_) => IpNet::from(self.0.v6),
            };
            let separator = if index == 0 { "" } else { ", and " };
            write!(f, "{separator}the mesh's range {range} overlaps this host's route {route}")?;
        }
        Ok(())
    }
}

/// Joins, and gives the membership for the caller to keep.
pub(crate) async fn join(join: Join) -> Result<Membership, JoinError> {
    if join.token.role != Role::Node {
        return Err(JoinError::Role);
    }
    let (reply, authority) = ask_patiently(&join).await?;
    let membership = read_reply(reply, authority, &join)?;
    check_routes(membership.config.overlay, &join).await?;
    Ok(membership)
}

async fn check_routes(overlay: Overlay, join: &Join) -> Result<(), JoinError> {
    let routes = join.ground.overlaps(overlay).await?;
    if routes.is_empty() { Ok(()) } else { Err(JoinError::Overlap { overlay, routes }) }
}

/// Repeats while coordinators answer that they cannot write just now.
async fn ask_patiently(join: &Join) -> Result<(JoinReply, Certificate), JoinError> {
    let dialer = Dialer::joiner(system_clock()).with_fwmark(join.fwmark);
    let expect = Expect::Pinned { mesh: join.token.mesh, authority: join.token.authority };
    let until = Instant::now() + PATIENCE;
    loop {
        match ask(&dialer, &join.token.addresses, expect, |connection| ask_once(join.clone(), connection)).await {
            Ok(answer) => return answer,
            Err(AskError::Unavailable(..)) if Instant::now() < until => sleep(REPEAT).await,
            Err(error) => return Err(explain(error)),
        }
    }
}

/// What it comes to on one connection; a [`Status`] is the coordinator's, all else this host's own.
async fn ask_once(join: Join, connection: Connection) -> Result<Result<(JoinReply, Certificate), JoinError>, Status> {
    let mut client = MembershipClient::new(connection.channel);
    let challenge = client.challenge(ChallengeRequest {}).await?.into_inner();
    warn_of_clock(MeshTime(challenge.time));
    let request = match prepare(&join, challenge, &connection.exporter).await {
        Ok(request) => request,
        Err(error) => return Ok(Err(error)),
    };
    let reply = client.join(request).await?;
    Ok(Ok((reply.into_inner(), connection.authority)))
}

/// Looks whether this host can be a node of the mesh, while nothing is given away yet, and answers the challenge.
async fn prepare(join: &Join, challenge: ChallengeReply, exporter: &Exporter) -> Result<JoinRequest, JoinError> {
    let wire = |error: WireError| JoinError::Reply(error.to_string());
    if let Some(overlay) = challenge.overlay {
        check_routes(Overlay::from_wire(overlay).map_err(wire)?, join).await?;
    }
    let theirs: PublicKey = convert::field("ChallengeReply.public_key", &challenge.public_key).map_err(wire)?;
    let request = certificate_request(&join.keys.identity)?;
    let statement = Statement {
        exporter,
        mesh: join.token.mesh,
        token: join.token.id,
        public_key: join.keys.public_key(),
        identity_key: join.keys.identity_key(),
        certificate_request: &request,
    };
    let proof = prove(&statement, &join.keys.wireguard, theirs).map_err(|error| JoinError::Reply(error.to_string()))?;
    Ok(JoinRequest {
        mesh: Bytes::copy_from_slice(join.token.mesh.as_bytes()),
        token_id: Bytes::copy_from_slice(join.token.id.as_bytes()),
        token_secret: Bytes::copy_from_slice(join.token.secret.as_bytes()),
        public_key: Bytes::copy_from_slice(statement.public_key.as_bytes()),
        name: join.name.to_string(),
        proof: Bytes::copy_from_slice(&proof),
        certificate_request: Bytes::from(request),
    })
}

fn warn_of_clock(theirs: MeshTime) {
    let ours = clock::wall();
    if ours.since(theirs).max(theirs.since(ours)) > CLOCK_DRIFT {
        warn!(here = %ours, coordinator = %theirs, "this host's clock and the coordinator's differ: set the wrong one");
    }
}

fn explain(error: AskError) -> JoinError {
    match error {
        AskError::Unreachable(error) => match error.failure() {
            Some(Failure::Clock(_)) => JoinError::Clock(error, clock::wall()),
            Some(Failure::Pin(_)) => JoinError::Authority(error),
            _ => JoinError::Unreachable(error),
        },
        AskError::Refused(_, status) => JoinError::Refused(status),
        unavailable @ AskError::Unavailable(..) => JoinError::Unavailable(unavailable),
    }
}

/// Believes a reply only if it is of the token's mesh and its certificate is for our key and the id it gives.
fn read_reply(reply: JoinReply, authority: Certificate, join: &Join) -> Result<Membership, JoinError> {
    let wire = |error: WireError| JoinError::Reply(error.to_string());
    let config: MeshConfig = convert::nested("JoinReply.config", reply.config).map_err(wire)?;
    let record = NodeRecord {
        id: convert::field("JoinReply.node_id", &reply.node_id).map_err(wire)?,
        name: convert::text("JoinReply.name", &reply.name).map_err(wire)?,
        public_key: join.keys.public_key(),
        identity_key: join.keys.identity_key(),
        addresses: convert::addresses(&reply.address_v4, &reply.address_v6).map_err(wire)?,
        expires_at: MeshTime(reply.expires_at),
        revision: Revision::NONE,
    };
    let certificate = convert::certificate("JoinReply.certificate", &reply.certificate).map_err(wire)?;
    let mesh = join.token.mesh;
    check_certificate(&certificate, mesh, &record).map_err(JoinError::Reply)?;
    if config.mesh != mesh || !config.authorities.contains(&authority) {
        return Err(JoinError::Reply("its settings are of another mesh".to_owned()));
    }
    if !record.addresses.iter().all(|address| config.overlay.contains(address)) {
        return Err(JoinError::Reply("the addresses given lie outside the mesh's ranges".to_owned()));
    }
    let named = join.token.addresses.clone();
    Ok(Membership { record, certificate, authority, config, named, standing: Standing::Member })
}

/// Checks that `certificate` makes its holder the node of `record`. Who issued it, TLS will judge.
pub(crate) fn check_certificate(certificate: &Certificate, mesh: MeshId, record: &NodeRecord) -> Result<(), String> {
    let leaf = read_certificate(&certificate.0).map_err(|error: CertificateError| error.to_string())?;
    let identity = leaf.identity;
    if identity.mesh != mesh || identity.member != Member::Node(record.id) {
        return Err("the certificate given is another's".to_owned());
    }
    if identity.identity_key != record.identity_key {
        return Err("the certificate given is for another key".to_owned());
    }
    Ok(())
}
