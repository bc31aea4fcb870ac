//! Becoming a replica: by making a mesh, or by a join token.

use crate::ending::{Refused, Unreachable};
use crate::home::{Home, Origin, Standing};
use crate::options::Serve;
use crate::raft::Disk;
use crate::{overlay, random};
use anyhow::{Context as _, bail, ensure};
use bytes::Bytes;
use mesh_coordinator_core::command::Found;
use mesh_coordinator_core::{Proposal, Registry};
use mesh_proto::certificate::{certificate_request, identity_key};
use mesh_proto::dial::{Dialer, Failure};
use mesh_proto::pushback::retry_after;
use mesh_proto::tls::{Expect, system_clock};
use mesh_proto::v1::cluster_client::ClusterClient;
use mesh_proto::{Authority, convert, v1};
use mesh_types::token::JoinToken;
use mesh_types::{
    CoordinatorId, CoordinatorRecord, Epoch, Fingerprint, Level, MeshConfig, MeshId, MeshTime, NodeName, Role,
};
use std::path::Path;
use std::time::{Duration, SystemTime};
use tokio::time::Instant;
use tonic::Code;

/// How long a join waits for coordinators that are starting too: less than `meshctl join` waits for this one.
const PATIENCE: Duration = Duration::from_secs(45);
/// Longest wait for the answer to one attempt.
const ANSWER: Duration = Duration::from_secs(15);
const PAUSE: Duration = Duration::from_millis(500);
/// How often is looked for a token file.
const TOKEN_LOOK: Duration = Duration::from_millis(200);

/// Makes a new mesh in an empty data directory.
pub(crate) async fn found(home: &Home, options: &Serve) -> anyhow::Result<(Standing, Disk)> {
    let overlay = overlay::choose(&options.overlay).await?.map_err(|refusal| Refused(refusal.to_string()))?;
    home.begin()?;
    let key = home.identity()?;
    let mesh = MeshId::from_bytes(random::bytes());
    let now = MeshTime::from_system(SystemTime::now());
    let authority = Authority::create(mesh, now).context("cannot make the mesh CA")?;
    let coordinator = CoordinatorRecord {
        id: CoordinatorId(1),
        name: name(options)?,
        identity_key: identity_key(&key),
        addresses: options.advertise.clone(),
    };
    let found = Found {
        mesh,
        overlay,
        authority: authority.certificate().clone(),
        epoch: Epoch { counter: 1, id: u64::from_be_bytes(random::bytes()) },
        key_ttl: options.default_key_ttl,
        coordinator: coordinator.clone(),
    };
    check(&found, now)?;
    home.keep_authority(&authority)?;
    let standing =
        Standing { mesh, coordinator: coordinator.id, name: coordinator.name, origin: Origin::Founded(found) };
    let disk = home.settle(&standing).await?;
    tracing::info!(%mesh, %overlay, "mesh made");
    Ok((standing, disk))
}

/// What the registry would refuse to found is written down nowhere: no later start could mend it.
fn check(found: &Found, now: MeshTime) -> anyhow::Result<()> {
    let entry = Proposal::new(found.clone().into()).stamp(Level::FIRST, now);
    Registry::new().apply(&entry).granted().map_err(|rejection| Refused(rejection.to_string()))?;
    Ok(())
}

fn name(options: &Serve) -> anyhow::Result<NodeName> {
    match &options.name {
        Some(name) => Ok(name.clone()),
        None => host_name(),
    }
}

/// The host's name, made a label.
pub(crate) fn host_name() -> anyhow::Result<NodeName> {
    let name = nix::unistd::gethostname().context("cannot read the host's name: give one with --name")?;
    Ok(NodeName::from_hostname(&name.to_string_lossy())
        .unwrap_or_else(|| "coordinator".parse().expect("it is a label")))
}

/// The join token from file or environment, if there is one. A file that is not there yet is waited for.
pub(crate) async fn token(options: &Serve) -> anyhow::Result<Option<JoinToken>> {
    let text = match &options.join_token_file {
        Some(path) => token_file(path).await?,
        None => match std::env::var("MESH_JOIN_TOKEN") {
            Ok(text) => text,
            Err(_) => return Ok(None),
        },
    };
    let token: JoinToken = text.parse()?;
    if token.role != Role::Coordinator {
        let message = "this join token is for a node: make one with `meshctl token create --role coordinator`";
        bail!(Refused(message.to_owned()));
    }
    Ok(Some(token))
}

/// Where containers start all at once, the token is written while this one waits. `meshctl token create --output`
/// brings it there whole.
async fn token_file(path: &Path) -> anyhow::Result<String> {
    let mut told = false;
    loop {
        match std::fs::read_to_string(path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                if !std::mem::replace(&mut told, true) {
                    tracing::info!(file = %path.display(), "waiting for the join token");
                }
                tokio::time::sleep(TOKEN_LOOK).await;
            }
            text => return text.with_context(|| format!("cannot read the join token from {}", path.display())),
        }
    }
}

/// Joins a mesh as a further replica. Repeating it after a lost answer gives the same identity.
pub(crate) async fn join(
    home: &Home,
    options: &Serve,
    token: &JoinToken,
    understood: Level,
) -> anyhow::Result<(Standing, Disk)> {
    home.begin()?;
    let key = home.identity()?;
    let request = v1::JoinClusterRequest {
        mesh: Bytes::copy_from_slice(token.mesh.as_bytes()),
        token_id: Bytes::copy_from_slice(token.id.as_bytes()),
        token_secret: Bytes::copy_from_slice(token.secret.as_bytes()),
        certificate_request: certificate_request(&key)?.into(),
        name: name(options)?.to_string(),
        addresses: options.advertise.iter().map(ToString::to_string).collect(),
        level: understood.0,
    };
    let reply = ask(token, request, PATIENCE).await?;
    let config: MeshConfig = convert::nested("config", reply.config).context("answer to the join")?;
    ensure!(config.mesh == token.mesh, "the coordinator answered for mesh {}, not {}", config.mesh, token.mesh);
    let certificate = config.authorities.iter().find(|certificate| Fingerprint::of(&certificate.0) == token.authority);
    let certificate = certificate.context("the coordinator's answer does not have the CA that the token pins")?;
    let authority =
        Authority::load(certificate.clone(), &reply.authority_key).context("the mesh CA's key in the answer")?;
    home.keep_authority(&authority)?;
    let standing = Standing {
        mesh: token.mesh,
        coordinator: CoordinatorId(reply.coordinator_id),
        name: convert::text("name", &reply.name)?,
        origin: Origin::Joined(config),
    };
    let disk = home.settle(&standing).await?;
    tracing::info!(mesh = %standing.mesh, coordinator = %standing.coordinator, name = %standing.name, "joined");
    Ok((standing, disk))
}

/// Asks until someone answers; a refusal is final.
async fn ask(
    token: &JoinToken,
    request: v1::JoinClusterRequest,
    patience: Duration,
) -> anyhow::Result<v1::JoinClusterReply> {
    let dialer = Dialer::joiner(system_clock());
    let expect = Expect::Pinned { mesh: token.mesh, authority: token.authority };
    let deadline = Instant::now() + patience;
    loop {
        let problem = match dialer.dial(&token.addresses, expect).await {
            Ok(connection) => {
                let mut client = ClusterClient::new(connection.channel);
                match tokio::time::timeout(ANSWER, client.join_cluster(request.clone())).await {
                    Ok(Ok(reply)) => return Ok(reply.into_inner()),
                    Ok(Err(status)) if status.code() != Code::Unavailable && retry_after(&status).is_none() => {
                        let (address, why) = (connection.address, status.message());
                        bail!(Refused(format!("the coordinator at {address} refuses the join: {why}")));
                    }
                    Ok(Err(status)) => status.message().to_owned(),
                    Err(_) => format!("the coordinator at {} does not answer", connection.address),
                }
            }
            Err(error) => match error.failure() {
                Some(Failure::Clock(_)) => bail!("{error}"),
                Some(Failure::Pin(_) | Failure::Rejected(_)) => bail!(Refused(error.to_string())),
                _ => error.to_string(),
            },
        };
        if Instant::now() >= deadline {
            let secs = patience.as_secs();
            bail!(Unreachable(format!("no coordinator took the join within {secs} s: {problem}")));
        }
        tracing::warn!(%problem, "join tried again");
        tokio::time::sleep(PAUSE + random::jitter(PAUSE)).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ending::exit_code;
    use mesh_types::{TokenId, TokenSecret};

    #[tokio::test]
    async fn a_join_that_nobody_takes_may_be_tried_later() {
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let token = JoinToken {
            role: Role::Coordinator,
            mesh: MeshId::from_bytes([1; 16]),
            authority: Fingerprint::from_bytes([2; 32]),
            id: TokenId::from_bytes([3; 8]),
            secret: TokenSecret::from_bytes([4; 20]),
            addresses: vec![port.to_string().parse().unwrap()],
        };
        let error = ask(&token, v1::JoinClusterRequest::default(), Duration::ZERO).await.unwrap_err();
        assert_eq!(exit_code(&error), 5, "{error}");
        assert!(error.to_string().contains(&port.to_string()), "{error}");
    }
}
