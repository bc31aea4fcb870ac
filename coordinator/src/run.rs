//! The life of a replica: become one, start, serve, stop.
//!
//! It ends on a signal, cleanly: nodes are sent elsewhere and leadership is handed over. It ends with an error when its
//! store fails, when it was removed from the mesh, or when it cannot serve; a supervisor then starts it again.

use crate::clock::{self, Clock, Source};
use crate::grpc::{AdminService, Gate};
use crate::health::{self, HealthTable};
use crate::home::{Gone, Home, Origin, Standing};
use crate::options::Serve;
use crate::peers::Peers;
use crate::raft::{Disk, Raft, Timing};
use crate::rates::Rates;
use crate::replica::{Replica, WRITE, WriteError};
use crate::sessions::{self, Sessions};
use crate::{exchange, join, level, random};
use anyhow::{Context as _, bail};
use mesh_coordinator_core::Rejection;
use mesh_coordinator_core::command::Found;
use mesh_proto::certificate::identity_key;
use mesh_proto::descriptors::{self, Budget};
use mesh_proto::dial::Dialer;
use mesh_proto::join_proof::Challenger;
use mesh_proto::listen::Listener;
use mesh_proto::local::{Access, LocalListener};
use mesh_proto::serve::{serve, serve_local};
use mesh_proto::tls::{Credentials, Trust, server_config};
use mesh_proto::v1::admin_server::AdminServer;
use mesh_proto::{Member, v1};
use mesh_types::coordinator::distinct;
use mesh_types::{CoordinatorAddress, Level};
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tonic::service::Routes;

/// How long connections may linger when the process stops.
const LINGER: Duration = Duration::from_millis(500);
/// What every host allows by default.
const ASSUMED_DESCRIPTORS: usize = 1_024;
/// How often a leader compares Raft's membership with the registry.
const LOOK: Duration = Duration::from_millis(250);
/// How long a replica that starts waits for the registry before it says that it is ready.
const READY: Duration = Duration::from_secs(10);

/// What a replica is made of besides its options.
#[derive(Clone, Debug)]
pub(crate) struct Nature {
    /// The highest level of the log that it understands.
    pub(crate) level: Level,
    /// Its clocks.
    pub(crate) clock: Arc<dyn Source>,
}

/// Serves until `stop` resolves.
///
/// # Errors
///
/// What keeps the replica from starting or from going on; the message says what to do.
pub async fn run(options: Serve, stop: impl Future<Output = ()>) -> anyhow::Result<()> {
    run_as(Nature { level: Level::SUPPORTED, clock: Arc::new(clock::Host) }, options, stop).await
}

pub(crate) async fn run_as(nature: Nature, mut options: Serve, stop: impl Future<Output = ()>) -> anyhow::Result<()> {
    options.advertise = distinct(options.advertise);
    let budget = budget();
    let home = Arc::new(Home::open(&options.data_dir)?);
    let mut stop = std::pin::pin!(stop);
    let (standing, disk) = tokio::select! {
        became = become_replica(&home, &options, nature.level) => became?,
        () = &mut stop => return Ok(()),
    };
    let listener = listen(options.listen_address())?;
    let local = LocalListener::bind(&options.socket, access(&options)?).await?;
    let (replica, mut tasks) = start(&home, &standing, disk, nature, &options).await?;

    let failure = replica.raft.clone();
    let public = Listener::new(listener, server_config(replica.credentials.clone(), replica.trust.clone()), budget);
    tasks.spawn(forever(serve(public, Gate::new(replica.clone()))));
    if let Origin::Founded(found) = &standing.origin {
        replica.raft.initialize().await?;
        establish(&replica, found).await?;
    } else {
        let registry = replica.raft.wait_applied(1);
        if tokio::time::timeout(READY, registry).await.is_err() {
            tracing::warn!("no leader has called yet; serving what is here");
        }
    }
    let admin = AdminServer::new(AdminService(replica.clone()));
    tasks.spawn(forever(serve_local(local, Routes::new(admin).prepare())));
    ready(&replica, &options);

    let ended = tokio::select! {
        () = &mut stop => Ok(()),
        reason = failure.failed() => Err(anyhow::anyhow!("raft stopped: {reason}")),
        Some(ended) = tasks.join_next() => match ended {
            Ok(Ok(())) => Err(anyhow::anyhow!("a part of this coordinator ended")),
            Ok(Err(error)) => Err(error),
            Err(panic) => Err(anyhow::anyhow!("a part of this coordinator failed: {panic}")),
        },
    };
    finish(&replica, &ended).await;
    tasks.shutdown().await;
    ended
}

/// How many may be connected, by what the host lets this process open.
fn budget() -> Budget {
    let descriptors = descriptors::raise().unwrap_or_else(|error| {
        tracing::warn!(%error, assumed = ASSUMED_DESCRIPTORS, "descriptor limit neither raised nor known");
        ASSUMED_DESCRIPTORS
    });
    let budget = Budget::of(descriptors);
    if !budget.is_ample() {
        let nodes = budget.nodes;
        tracing::warn!(descriptors, nodes, "no more nodes than this can be connected: raise the limit (LimitNOFILE=)");
    }
    budget
}

async fn become_replica(home: &Home, options: &Serve, understood: Level) -> anyhow::Result<(Standing, Disk)> {
    home.check_not_ended()?;
    if let Some(standing) = home.standing()? {
        let disk = home.store(&standing)?;
        return Ok((standing, disk));
    }
    if options.bootstrap {
        return join::found(home, options).await;
    }
    match join::token(options).await? {
        Some(token) => join::join(home, options, &token, understood).await,
        None => bail!(
            "{} is empty: make a new mesh with --bootstrap, or join one with --join-token-file or MESH_JOIN_TOKEN (a \
             token from `meshctl token create --role coordinator`)",
            options.data_dir.display()
        ),
    }
}

/// Listens on both families where the host has both.
fn listen(address: SocketAddr) -> anyhow::Result<TcpListener> {
    let bound = bind(address).or_else(|error| {
        let any = address.ip().is_unspecified() && address.is_ipv6();
        if any && error.kind() != std::io::ErrorKind::AddrInUse {
            return bind(SocketAddr::from((Ipv4Addr::UNSPECIFIED, address.port())));
        }
        Err(error)
    });
    bound.with_context(|| {
        format!("cannot listen on {address}: is the port taken? Free it, or choose another with --advertise ADDR:PORT")
    })
}

fn bind(address: SocketAddr) -> std::io::Result<TcpListener> {
    let socket = if address.is_ipv4() { tokio::net::TcpSocket::new_v4()? } else { tokio::net::TcpSocket::new_v6()? };
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(1_024)
}

fn access(options: &Serve) -> anyhow::Result<Access> {
    let Some(name) = &options.socket_group else { return Ok(Access::Owner) };
    let group = nix::unistd::Group::from_name(name).with_context(|| format!("cannot look up group {name:?}"))?;
    let group = group.with_context(|| format!("--socket-group {name:?}: this host has no such group"))?;
    Ok(Access::Group(group.gid.as_raw()))
}

async fn start(
    home: &Arc<Home>,
    standing: &Standing,
    disk: Disk,
    nature: Nature,
    options: &Serve,
) -> anyhow::Result<(Arc<Replica>, JoinSet<anyhow::Result<()>>)> {
    let clock = Clock::of(nature.clock, options.clock_is_right);
    let (key, authority) = (home.identity()?, home.authority()?);
    let (mesh, id) = (standing.mesh, standing.coordinator);
    let certificate = authority.issue(Member::Coordinator(id), identity_key(&key), clock.now().mesh)?;
    let credentials = Credentials::new(&certificate, authority.certificate(), &key)?;
    let judge = clock.clone();
    let trust = Trust::new(mesh, std::slice::from_ref(authority.certificate()), Arc::new(move || judge.now().mesh));
    let peers = Peers::new(mesh, id, Dialer::member(trust.clone(), credentials.clone()));
    if let Origin::Joined(config) = &standing.origin {
        peers.set(&config.coordinators);
    }
    let timing = Timing { election: options.election_timeout.to_std(), heartbeat: options.heartbeat.to_std() };
    let raft = Raft::start(id, timing, nature.level, disk, peers.clone()).await?;
    let (sessions, events) = Sessions::new();
    let replica = Arc::new(Replica {
        mesh,
        id,
        level: nature.level,
        raft: raft.clone(),
        peers,
        health: HealthTable::default(),
        sessions,
        clock: clock.clone(),
        authority,
        key,
        credentials,
        trust,
        challenger: Challenger::new(random::bytes()),
        rates: Rates::default(),
        expelled: Notify::new(),
    });
    clock.observe(replica.view().read(mesh_coordinator_core::Registry::time));
    // By the registry's time now, not by the host's clock alone.
    replica.renew_own_certificate()?;
    let mut tasks = JoinSet::new();
    tasks.spawn(async move {
        sessions::run(id, raft, clock, events).await;
        Ok(())
    });
    tasks.spawn(forever(health::watch(replica.clone())));
    tasks.spawn(forever(exchange::keep(replica.clone())));
    tasks.spawn(forever(keep_membership(replica.clone())));
    tasks.spawn(forever(level::keep(replica.clone())));
    tasks.spawn(announce(replica.clone(), home.clone(), options.advertise.clone()));
    tasks.spawn(follow(replica.clone(), home.clone()));
    Ok((replica, tasks))
}

async fn forever<T>(task: impl Future<Output = T>) -> anyhow::Result<()> {
    task.await;
    Ok(())
}

/// Founds the mesh in the registry, unless that was done before.
async fn establish(replica: &Replica, found: &Found) -> anyhow::Result<()> {
    replica.catch_up().await;
    if replica.view().read(|registry| registry.config().is_some()) || replica.raft.status().voters.len() > 1 {
        return Ok(());
    }
    match replica.write(found.clone(), None).await {
        Ok(_) | Err(WriteError::Rejected(Rejection::AlreadyFounded(_))) => Ok(()),
        Err(error) => Err(error).context("cannot found the mesh"),
    }
}

/// Takes over what the registry says: who the other coordinators are, and which CAs are trusted. Ends when this replica
/// was removed, and Raft needs it no more: it may be the leader, or the vote that its own removal takes; or when the mesh
/// was ended.
async fn follow(replica: Arc<Replica>, home: Arc<Home>) -> anyhow::Result<()> {
    let mut applied = replica.view().applied();
    let (mut known, mut told) = (None, false);
    loop {
        applied.mark_unchanged();
        let status = replica.raft.status();
        let (config, leaving, time, removed, ended) = replica.view().read(|registry| {
            let members = status.voters.iter().chain(&status.learners);
            let leaving: Vec<_> = members.filter_map(|id| registry.former_coordinator(*id)).cloned().collect();
            let removed = registry.former_coordinator(replica.id).is_some();
            (registry.config().cloned(), leaving, registry.time(), removed, registry.is_ended())
        });
        replica.clock.observe(time);
        if ended {
            home.retire(replica.mesh, replica.id, time)?;
            return home.check_not_ended();
        }
        if removed {
            // A Raft that has only just started does not say who votes.
            let votes = status.voters.is_empty() || status.voters.contains(&replica.id);
            if !status.leads && !votes {
                bail!(Gone::Removed(replica.id));
            }
            if !std::mem::replace(&mut told, true) {
                tracing::warn!("removed from the mesh: going on until the others can do without");
            }
        }
        // Membership settles a moment after the entry that the registry saw.
        let unsettled = removed || !leaving.is_empty();
        let now = Some((config, leaving));
        if now != known {
            if let Some((Some(config), leaving)) = &now {
                replica.peers.set(config.coordinators.iter().chain(leaving));
                replica.trust.set_authorities(&config.authorities);
            }
            known = now;
        }
        tokio::select! {
            changed = applied.changed() => changed.context("the registry is gone")?,
            () = replica.expelled.notified() => bail!(Gone::Removed(replica.id)),
            () = tokio::time::sleep(LOOK), if unsettled => {}
        }
    }
}

/// While this replica leads, brings Raft's membership to what the registry says.
async fn keep_membership(replica: Arc<Replica>) {
    loop {
        match replica.raft.step_membership().await {
            Ok(true) => continue,
            Ok(false) => {}
            Err(error) => tracing::debug!(%error, "membership unchanged"),
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// Tells the others where this replica answers, when it advertises something else than at its last start: what the
/// operator has set since stays. The registry may be out of reach, and the leader may not know where to call: anyone who
/// answers will do.
async fn announce(replica: Arc<Replica>, home: Arc<Home>, addresses: Vec<CoordinatorAddress>) -> anyhow::Result<()> {
    let registered =
        || replica.view().read(|registry| registry.coordinator(replica.id).map(|own| own.addresses.clone()));
    if home.advertised()?.as_ref() == Some(&addresses) {
        tracing::info!("the same addresses are advertised as at the last start: what is registered stays");
        return std::future::pending().await;
    }
    loop {
        let held = registered();
        if held.as_ref() == Some(&addresses) {
            // What is applied so far may be older than what is registered.
            if replica.catch_up().await && registered() == held {
                break;
            }
        } else if held.is_some() {
            announce_once(&replica, &addresses).await;
        }
        tokio::time::sleep(LOOK * 2 + random::jitter(LOOK * 2)).await;
    }
    home.keep_advertised(&addresses)?;
    std::future::pending().await
}

async fn announce_once(replica: &Replica, addresses: &[CoordinatorAddress]) {
    if replica.raft.status().leads {
        let command = mesh_coordinator_core::command::SetCoordinatorAddresses {
            coordinator: replica.id,
            addresses: addresses.to_vec(),
        };
        if let Err(error) = replica.write(command, None).await {
            tracing::warn!(%error, "new addresses not registered");
        }
        return;
    }
    let request = v1::EnlistRequest {
        coordinator: replica.id.0,
        addresses: addresses.iter().map(ToString::to_string).collect(),
        level: replica.level.0,
    };
    for peer in replica.peers.ids() {
        let request = request.clone();
        let call = replica.peers.call(peer, WRITE, |mut client| async move { client.enlist(request).await });
        match call.await {
            Ok(_) => break,
            Err(error) => tracing::debug!(coordinator = %peer, %error, "new addresses not told"),
        }
    }
}

fn ready(replica: &Replica, options: &Serve) {
    if options.advertises_only_loopback() {
        tracing::warn!("only loopback addresses are advertised: nobody on another host can reach this coordinator");
    }
    tracing::info!(mesh = %replica.mesh, coordinator = %replica.id, listen = %options.listen_address(), "serving");
    if let Err(error) = sd_notify::notify(&[sd_notify::NotifyState::Ready]) {
        tracing::debug!(%error, "no supervisor told");
    }
}

/// Leaves in order: nodes go elsewhere, another voter leads, and what is queued is sent.
async fn finish(replica: &Replica, ended: &anyhow::Result<()>) {
    let _ = sd_notify::notify(&[sd_notify::NotifyState::Stopping]);
    if ended.is_ok() && replica.raft.status().leads && replica.raft.status().voters.len() > 1 {
        match replica.raft.transfer_leader(None).await {
            Ok(leader) => tracing::info!(%leader, "leadership handed over"),
            Err(error) => tracing::warn!(%error, "leadership not handed over"),
        }
    }
    replica.sessions.stop().await;
    tokio::time::sleep(LINGER).await;
    replica.raft.shutdown().await;
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser as _;
    use mesh_coordinator_core::{Proposal, Registry};
    use mesh_proto::Authority;
    use mesh_types::{
        CoordinatorId, CoordinatorRecord, Epoch, Level, MeshConfig, MeshDuration, MeshId, MeshTime, NodeName, Overlay,
    };

    #[tokio::test]
    async fn the_first_certificate_is_made_by_the_registrys_time_and_not_by_a_clock_that_is_years_behind() {
        let root = tempfile::tempdir().unwrap();
        let home = Arc::new(Home::open(root.path()).unwrap());
        let (mesh, id, name) = (MeshId::from_bytes([1; 16]), CoordinatorId(1), "c1".parse::<NodeName>().unwrap());
        let wall = MeshTime::from_system(std::time::SystemTime::now());
        let time = wall + MeshDuration::from_secs(3 * 365 * 86_400);
        let authority = Authority::create(mesh, wall).unwrap();
        home.keep_authority(&authority).unwrap();
        let found = Found {
            mesh,
            overlay: Overlay::new("10.7.0.0/16".parse().unwrap(), "fd00::/48".parse().unwrap()).unwrap(),
            authority: authority.certificate().clone(),
            epoch: Epoch { counter: 1, id: 7 },
            key_ttl: MeshDuration::from_secs(86_400),
            coordinator: CoordinatorRecord {
                id,
                name: name.clone(),
                identity_key: identity_key(&home.identity().unwrap()),
                addresses: vec!["192.0.2.1".parse().unwrap()],
            },
        };
        let mut registry = Registry::new();
        registry.apply(&Proposal::new(found.into()).stamp(Level::FIRST, time)).granted().unwrap();
        let config: MeshConfig = registry.config().unwrap().clone();
        let standing = Standing { mesh, coordinator: id, name, origin: Origin::Joined(config) };
        let disk = home.settle_with(&standing, Some((1, 1, &registry))).await.unwrap();
        let line = ["x", "--data-dir", "unused", "--advertise", "192.0.2.1", "--socket", "unused"];
        let options = crate::options::Options::parse_from(line).serve.unwrap();

        let nature = Nature { level: Level::SUPPORTED, clock: Arc::new(clock::Host) };
        let (replica, mut tasks) = start(&home, &standing, disk, nature, &options).await.unwrap();
        let leaf = replica.credentials.leaf();
        assert!(!leaf.is_of_another_day(time), "made at {}, the registry's time is {time}", leaf.not_before);
        tasks.shutdown().await;
        replica.raft.shutdown().await;
    }
}
