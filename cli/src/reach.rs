//! Reaching the daemons on this host, and asking them with a deadline.

use crate::exit::{Exit, Failure};
use crate::paths::Paths;
use mesh_proto::local::{self, LocalError};
use mesh_proto::v1::admin_client::AdminClient;
use mesh_proto::v1::local_client::LocalClient;
use std::future::Future;
use std::path::Path;
use std::time::Duration;
use tonic::codegen::Bytes;
use tonic::transport::Channel;
use tonic::{Response, Status};

/// How long a daemon on this host may take to take a call.
const CONNECT: Duration = Duration::from_secs(3);

/// How long an ordinary answer may take: longer than a daemon itself tries to reach a leader.
pub(crate) const ANSWER: Duration = Duration::from_secs(15);

/// How long joining or leaving may take: longer than meshd itself tries, coordinator after coordinator.
pub(crate) const JOIN: Duration = Duration::from_secs(60);

/// The meshd of this host.
pub(crate) async fn node(paths: &Paths) -> Result<LocalClient<Channel>, Failure> {
    let channel = connect(
        &paths.node_socket,
        "meshd",
        "start it with `meshctl join TOKEN`, or without a token if this host is a member",
    )
    .await?;
    Ok(LocalClient::new(channel))
}

/// The coordinator of this host.
pub(crate) async fn coordinator(paths: &Paths) -> Result<AdminClient<Channel>, Failure> {
    let next = "run this on a coordinator's host, or start it there";
    let channel = connect(&paths.coordinator_socket, "mesh-coordinator", next).await?;
    Ok(AdminClient::new(channel))
}

async fn connect(socket: &Path, daemon: &str, next: &str) -> Result<Channel, Failure> {
    let path = socket.display();
    let connected = tokio::time::timeout(CONNECT, local::connect(socket)).await;
    let connected = connected.map_err(|_| silent(daemon, socket))?;
    connected.map_err(|error| match error {
        LocalError::NotThere(_) => {
            Failure::new(Exit::NotRunning, format!("{daemon} does not run here (no socket {path}): {next}"))
        }
        LocalError::Refused(_) => {
            let message = format!("{daemon} does not run here (nothing listens on {path}): {next}");
            Failure::new(Exit::NotRunning, message)
        }
        LocalError::Silent(_) => silent(daemon, socket),
        LocalError::Permission(_) => {
            Failure::new(Exit::Permission, format!("no access to {path}: run this as root, with sudo"))
        }
        other => Failure::new(Exit::Failed, format!("cannot reach {daemon}: {other}")),
    })
}

/// A daemon that is there and does nothing.
pub(crate) fn silent(daemon: &str, socket: &Path) -> Failure {
    let message = format!("{daemon} does not answer on {}: look at its log, or restart it", socket.display());
    Failure::new(Exit::NotRunning, message)
}

/// Waits for an answer, but not for ever.
pub(crate) async fn ask<T>(
    limit: Duration,
    call: impl Future<Output = Result<Response<T>, Status>>,
) -> Result<T, Failure> {
    match tokio::time::timeout(limit, call).await {
        Ok(answer) => Ok(answer?.into_inner()),
        // Whatever the others do, it answers sooner.
        Err(_) => Err(Failure::new(
            Exit::NotRunning,
            format!("the daemon on this host does not answer in {} s: look at its log, or restart it", limit.as_secs()),
        )),
    }
}

/// A number of its own for a write, so that asking twice does it once.
pub(crate) fn request_id() -> Result<Bytes, Failure> {
    let mut id = [0; mesh_types::RequestId::LEN];
    getrandom::fill(&mut id)
        .map_err(|error| Failure::new(Exit::Failed, format!("the system gives no randomness: {error}")))?;
    Ok(Bytes::copy_from_slice(&id))
}
