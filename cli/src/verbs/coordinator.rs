//! `meshctl coordinator list|add|remove|transfer-leader|set-address|set-key-ttl|snapshot|restore|recover`.

use super::{Context, passphrase, token};
use crate::args::{Coordinator, Passphrase};
use crate::exit::{Exit, Failure};
use crate::reach::{self, ask, request_id};
use crate::{output, programs};
use anyhow::Context as _;
use mesh_proto::v1::{
    BackupRequest, CoordinatorInfo, ListCoordinatorsRequest, ListNodesRequest, RemoveCoordinatorRequest,
    SetCoordinatorAddressesRequest, SetKeyTtlRequest, TransferLeaderRequest,
};
use mesh_types::coordinator::ENDED_FILE;
use mesh_types::{CoordinatorAddress, MeshDuration, MeshTime, Role};
use serde::Serialize;
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

/// How long a coordinator that has ended may take until it is gone.
const STOP: Duration = Duration::from_secs(10);
const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// One of what `meshctl coordinator list --json` prints.
#[derive(Serialize)]
struct Listed {
    id: u64,
    name: String,
    address: String,
    addresses: Vec<String>,
    role: String,
    reachable: bool,
    /// Whether it is the one that answered.
    this: bool,
    clock_offset_ms: Option<i64>,
    applied: Option<u64>,
    version: String,
    /// The highest level of the log that it understands.
    level: Option<u32>,
    /// The log's own, which rises once every coordinator understands a higher one.
    log_level: u32,
}

pub(super) async fn run(context: &Context, verb: Coordinator) -> Result<Exit, Failure> {
    match verb {
        Coordinator::List => list(context).await,
        Coordinator::Add { ttl, uses } => add(context, ttl, uses).await,
        Coordinator::Remove { coordinator, destroy: false } => remove(context, coordinator).await,
        Coordinator::Remove { coordinator, destroy: true } => {
            end_mesh(context, &coordinator).await.map(|()| Exit::Done)
        }
        Coordinator::TransferLeader { to } => transfer_leader(context, to).await,
        Coordinator::SetAddress { addresses, of } => set_address(context, &addresses, of).await,
        Coordinator::SetKeyTtl { ttl } => set_key_ttl(context, ttl).await,
        Coordinator::Snapshot { file, passphrase } => snapshot(context, &file, &passphrase).await,
        Coordinator::Restore { file, advertise, passphrase } => restore(context, &file, &advertise, &passphrase),
        Coordinator::Recover => recover(context).await,
    }
}

async fn fetch(context: &Context) -> Result<Vec<Listed>, Failure> {
    let mut client = reach::coordinator(&context.paths).await?;
    let reply = ask(reach::ANSWER, client.list_coordinators(ListCoordinatorsRequest {})).await?;
    if !reply.fresh {
        output::note("meshctl: the coordinators have no quorum; this may be out of date");
    }
    Ok(reply.coordinators.into_iter().map(|info| listed(info, reply.this, reply.level)).collect())
}

fn listed(info: CoordinatorInfo, this: u64, log_level: u32) -> Listed {
    let record = info.record.unwrap_or_default();
    Listed {
        id: record.id,
        name: record.name,
        address: record.addresses.first().cloned().unwrap_or_default(),
        addresses: record.addresses,
        role: info.role,
        reachable: info.reachable,
        this: record.id == this,
        clock_offset_ms: info.clock_offset,
        applied: info.applied,
        version: info.software,
        level: info.level,
        log_level,
    }
}

async fn list(context: &Context) -> Result<Exit, Failure> {
    let coordinators = fetch(context).await?;
    if context.json() {
        output::json(&coordinators);
        return Ok(Exit::Done);
    }
    let mut table = output::table(["ID", "NAME", "ADDRESS", "ROLE", "REACHABLE", "CLOCK", "APPLIED", "LEVEL"]);
    for found in &coordinators {
        let this = if found.this { " (this)" } else { "" };
        let reachable = if found.reachable { "yes" } else { "no" };
        table.add_row([
            found.id.to_string(),
            format!("{}{this}", found.name),
            found.addresses.join(", "),
            found.role.clone(),
            output::verdict(reachable, found.reachable),
            found.clock_offset_ms.map(|offset| format!("{offset:+} ms")).unwrap_or_default(),
            found.applied.map(|index| index.to_string()).unwrap_or_default(),
            found.level.map(|level| level.to_string()).unwrap_or_default(),
        ]);
    }
    output::print(&table);
    if let Some(found) = coordinators.iter().find(|found| found.level.is_some_and(|level| level > found.log_level)) {
        context.note(format_args!(
            "The log stays at level {} until every coordinator understands more, and answers.",
            found.log_level
        ));
    }
    Ok(Exit::Done)
}

/// What `meshctl coordinator add --json` prints.
#[derive(Serialize)]
struct Invitation {
    token: String,
    command: String,
    expires_at: String,
}

async fn add(context: &Context, ttl: MeshDuration, uses: u32) -> Result<Exit, Failure> {
    let reply = token::create(context, Role::Coordinator, ttl, uses).await?;
    let command = format!("meshctl join --coordinator {}", reply.token);
    let expires_at = MeshTime(reply.expires_at).to_string();
    if context.json() {
        output::json(&Invitation { token: reply.token, command, expires_at });
    } else {
        context.note(format_args!("On the host that shall be a coordinator, until {expires_at}, run:"));
        output::line(command);
        context
            .note("Its holder gets the mesh CA's key: treat it as you would that. Two coordinators are no safer than");
        context.note("one, so the second only listens until there is a third.");
    }
    Ok(Exit::Done)
}

async fn remove(context: &Context, coordinator: String) -> Result<Exit, Failure> {
    let request =
        RemoveCoordinatorRequest { request_id: request_id()?, coordinator: coordinator.clone(), destroy: false };
    ask(reach::ANSWER, reach::coordinator(&context.paths).await?.remove_coordinator(request)).await?;
    context.note(format_args!("{coordinator} is no coordinator any more; its data directory there is of no use now."));
    Ok(Exit::Done)
}

/// Ends the mesh with its last coordinator, which is this host's. Once it is ended, doing so again is no error.
pub(super) async fn end_mesh(context: &Context, coordinator: &str) -> Result<(), Failure> {
    let directory = context.paths.coordinator_data.display();
    let mut client = match reach::coordinator(&context.paths).await {
        Err(failure) if failure.exit == Exit::NotRunning => return check_ended(context),
        reached => reached?,
    };
    let nodes = ask(reach::ANSWER, client.list_nodes(ListNodesRequest {})).await?.nodes;
    let deadlines = nodes.iter().filter(|node| node.state == "active").filter_map(|node| node.record.as_ref());
    let last = deadlines.map(|record| MeshTime(record.expires_at)).max();
    let request =
        RemoveCoordinatorRequest { request_id: request_id()?, coordinator: coordinator.to_owned(), destroy: true };
    ask(reach::ANSWER, client.remove_coordinator(request)).await?;
    drop(client);
    let deadline = Instant::now() + STOP;
    while reach::coordinator(&context.paths).await.is_ok() && Instant::now() < deadline {
        tokio::time::sleep(LOOK_AGAIN).await;
    }
    context.note("The mesh is ended: nobody joins it or renews a key any more, and its join tokens are worthless.");
    if let Some(last) = last {
        context.note(format_args!("Its nodes keep their tunnels until their keys' deadlines, the last at {last};"));
        context.note("`meshctl leave --force` on a node ends it there at once.");
    }
    context.note(format_args!("{directory} still holds the mesh CA's key and never serves again: delete it, or"));
    context.note("move it away before a new mesh is made here.");
    Ok(())
}

/// Fails unless the mesh was ended on this host before.
pub(super) fn check_ended(context: &Context) -> Result<(), Failure> {
    let said = std::fs::read_to_string(context.paths.coordinator_data.join(ENDED_FILE)).map_err(|_| {
        Failure::new(Exit::NotRunning, "no coordinator runs here: a mesh is ended on the host of its last coordinator")
    })?;
    context.note(format_args!("It is so already: {}.", said.trim()));
    Ok(())
}

/// What `meshctl leave` has to know: the coordinator of this host, and whether it is the last one.
pub(super) async fn own(context: &Context) -> Result<Option<(String, bool)>, Failure> {
    match reach::coordinator(&context.paths).await {
        Err(failure) if failure.exit == Exit::NotRunning => return Ok(None),
        reached => drop(reached?),
    }
    let all = fetch(context).await?;
    let alone = all.len() == 1;
    Ok(all.into_iter().find(|found| found.this).map(|found| (found.name, alone)))
}

async fn transfer_leader(context: &Context, to: Option<String>) -> Result<Exit, Failure> {
    let request = TransferLeaderRequest { to: to.unwrap_or_default() };
    let reply = ask(reach::ANSWER, reach::coordinator(&context.paths).await?.transfer_leader(request)).await?;
    context.note(format_args!("Coordinator {} leads.", reply.leader));
    Ok(Exit::Done)
}

async fn set_address(context: &Context, addresses: &[CoordinatorAddress], of: Option<String>) -> Result<Exit, Failure> {
    let request = SetCoordinatorAddressesRequest {
        request_id: request_id()?,
        coordinator: of.unwrap_or_default(),
        addresses: addresses.iter().map(ToString::to_string).collect(),
    };
    ask(reach::ANSWER, reach::coordinator(&context.paths).await?.set_coordinator_addresses(request)).await?;
    context.note("All replicas and nodes learn the new address.");
    Ok(Exit::Done)
}

async fn set_key_ttl(context: &Context, ttl: MeshDuration) -> Result<Exit, Failure> {
    let request = SetKeyTtlRequest { request_id: request_id()?, ttl: ttl.0 };
    ask(reach::ANSWER, reach::coordinator(&context.paths).await?.set_key_ttl(request)).await?;
    context.note(format_args!("Keys made or renewed from now on are valid for {ttl}."));
    Ok(Exit::Done)
}

async fn snapshot(context: &Context, file: &Path, from: &Passphrase) -> Result<Exit, Failure> {
    let request = BackupRequest { passphrase: passphrase::read(from)?.to_string() };
    let mut chunks = ask(reach::ANSWER, reach::coordinator(&context.paths).await?.backup(request)).await?;
    let partial = partial_of(file);
    let written = async {
        if file.exists() {
            anyhow::bail!("{} exists: choose another file, or remove it", file.display());
        }
        let mut options = std::fs::OpenOptions::new();
        let mut output = options.write(true).create_new(true).mode(0o600).open(&partial)?;
        let mut bytes = 0u64;
        while let Some(chunk) = tokio::time::timeout(reach::ANSWER, chunks.message()).await?? {
            output.write_all(&chunk.data)?;
            bytes += chunk.data.len() as u64;
        }
        output.sync_all()?;
        std::fs::rename(&partial, file)?;
        Ok(bytes)
    };
    let bytes = written.await.inspect_err(|_| {
        // Half a snapshot must not be taken for one.
        let _ = std::fs::remove_file(&partial);
    });
    let bytes = bytes.with_context(|| format!("no snapshot in {}", file.display()))?;
    context.note(format_args!("{}: {bytes} bytes. Without the passphrase it is worth nothing.", file.display()));
    Ok(Exit::Done)
}

fn partial_of(file: &Path) -> PathBuf {
    let mut name = file.as_os_str().to_owned();
    name.push(format!(".{}", std::process::id()));
    name.into()
}

fn restore(
    context: &Context,
    file: &Path,
    advertise: &[CoordinatorAddress],
    from: &Passphrase,
) -> Result<Exit, Failure> {
    let mut command = offline(context, "restore")?;
    command.arg("--from").arg(file);
    for address in advertise {
        command.arg("--advertise").arg(address.to_string());
    }
    command.env(passphrase::VARIABLE, passphrase::read(from)?.as_str());
    Err(replaced(command))
}

async fn recover(context: &Context) -> Result<Exit, Failure> {
    if reach::coordinator(&context.paths).await.is_ok() {
        return Err(Failure::new(
            Exit::Refused,
            "mesh-coordinator runs here: stop it first, then recover, then start it",
        ));
    }
    Err(replaced(offline(context, "recover")?))
}

/// Work on a data directory is the coordinator's own; meshctl only knows where it lies.
fn offline(context: &Context, action: &str) -> Result<Command, Failure> {
    let mut command = Command::new(programs::find(programs::COORDINATOR)?);
    command.arg(action).arg("--data-dir").arg(&context.paths.coordinator_data);
    Ok(command)
}

/// Becomes `command`; comes back only if that fails.
fn replaced(mut command: Command) -> Failure {
    let error = command.exec();
    Failure::new(Exit::Failed, format!("cannot run {}: {error}", command.get_program().display()))
}
