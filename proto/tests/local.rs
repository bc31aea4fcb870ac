//! Local sockets on a real file system: their mode, their life, and what a caller is told.

#![allow(clippy::unwrap_used)] // In tests, which end by it.

use mesh_proto::local::{Access, LocalError, LocalListener, connect, peer};
use mesh_proto::serve::serve_local;
use mesh_proto::v1;
use mesh_proto::v1::local_client::LocalClient;
use mesh_proto::v1::local_server::{Local, LocalServer};
use mesh_types::limits::MAX_LOCAL_CONNECTIONS_PER_USER;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::Path;
use std::pin::Pin;
use tempfile::TempDir;
use tokio::io::AsyncReadExt as _;
use tokio::net::UnixStream;
use tonic::service::Routes;
use tonic::{Request, Response, Status};

#[tokio::test]
async fn a_call_over_a_socket_carries_the_callers_credentials() {
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("mesh0/meshd.sock");
    let listener = LocalListener::bind(&path, Access::Owner).await.unwrap();
    let serving = tokio::spawn(serve_local(listener, Routes::new(LocalServer::new(WhoAmI))));
    let mut client = LocalClient::new(connect(&path).await.unwrap());
    let said = client.status(v1::StatusRequest {}).await.unwrap().into_inner().software;
    let me = std::fs::metadata(directory.path()).unwrap();
    assert_eq!(said, format!("{} {}", me.uid(), std::process::id()));
    serving.abort();
}

#[tokio::test]
async fn a_socket_is_for_its_owner_or_a_group_and_for_nobody_else() {
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("owner.sock");
    let _owner = LocalListener::bind(&path, Access::Owner).await.unwrap();
    assert_eq!(mode(&path), 0o600);
    let path = directory.path().join("group.sock");
    let group = std::fs::metadata(directory.path()).unwrap().gid();
    let _group = LocalListener::bind(&path, Access::Group(group)).await.unwrap();
    assert_eq!(mode(&path), 0o660);
    assert_eq!(std::fs::metadata(&path).unwrap().gid(), group);
}

#[tokio::test]
async fn a_live_socket_is_left_alone() {
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("meshd.sock");
    let mut first = LocalListener::bind(&path, Access::Owner).await.unwrap();
    let second = LocalListener::bind(&path, Access::Owner).await;
    assert!(matches!(second, Err(LocalError::InUse(at)) if at == path));
    drop(first.next().await); // The second one's knock.
    let (called, answered) = tokio::join!(connect(&path), first.next());
    assert!(called.is_ok());
    drop(answered);
}

#[tokio::test]
async fn a_socket_whose_process_is_gone_is_replaced() {
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("meshd.sock");
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    assert!(matches!(connect(&path).await, Err(LocalError::Refused(at)) if at == path));
    let mut listener = LocalListener::bind(&path, Access::Owner).await.unwrap();
    let (called, answered) = tokio::join!(connect(&path), listener.next());
    assert!(called.is_ok());
    drop(answered);
}

#[tokio::test]
async fn what_is_not_a_socket_is_neither_replaced_nor_removed() {
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("meshd.sock");
    std::fs::write(&path, "precious").unwrap();
    let result = LocalListener::bind(&path, Access::Owner).await;
    assert!(matches!(result, Err(LocalError::NotASocket(at)) if at == path));
    assert_eq!(std::fs::read(&path).unwrap(), b"precious");
}

#[tokio::test]
async fn a_socket_goes_with_its_listener_unless_it_is_anothers_by_then() {
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("meshd.sock");
    drop(LocalListener::bind(&path, Access::Owner).await.unwrap());
    assert!(matches!(connect(&path).await, Err(LocalError::NotThere(at)) if at == path));

    let first = LocalListener::bind(&path, Access::Owner).await.unwrap();
    std::fs::rename(&path, directory.path().join("aside")).unwrap();
    let _second = LocalListener::bind(&path, Access::Owner).await.unwrap();
    drop(first);
    assert!(path.exists());
}

#[tokio::test]
async fn a_user_with_too_many_connections_gets_no_more_until_one_ends() {
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("meshd.sock");
    let listener = LocalListener::bind(&path, Access::Owner).await.unwrap();
    tokio::spawn(serve_local(listener, Routes::new(LocalServer::new(WhoAmI))));
    let mut held = Vec::new();
    for _ in 0..MAX_LOCAL_CONNECTIONS_PER_USER {
        held.push(UnixStream::connect(&path).await.unwrap());
    }
    let mut one_more = UnixStream::connect(&path).await.unwrap();
    assert_eq!(one_more.read(&mut [0]).await.unwrap(), 0);
    drop(held);
    // Each that ends says so to nobody; the daemon sees it when it reads.
    while !answers(&path).await {
        tokio::task::yield_now().await;
    }
}

async fn answers(path: &Path) -> bool {
    match connect(path).await {
        Ok(channel) => LocalClient::new(channel).status(v1::StatusRequest {}).await.is_ok(),
        Err(_) => false,
    }
}

fn mode(path: &Path) -> u32 {
    std::fs::metadata(path).unwrap().permissions().mode() & 0o777
}

struct WhoAmI;

#[tonic::async_trait]
impl Local for WhoAmI {
    async fn status(&self, request: Request<v1::StatusRequest>) -> Result<Response<v1::StatusReply>, Status> {
        let peer = peer(&request).ok_or_else(|| Status::internal("no peer"))?;
        let software = format!("{} {}", peer.uid, peer.pid.unwrap_or_default());
        Ok(Response::new(v1::StatusReply { software, ..Default::default() }))
    }

    async fn join(&self, _: Request<v1::LocalJoinRequest>) -> Result<Response<v1::LocalJoinReply>, Status> {
        Err(Status::unimplemented("join"))
    }

    type PingStream = Pin<Box<dyn futures::Stream<Item = Result<v1::PingReply, Status>> + Send>>;

    async fn ping(&self, _: Request<v1::PingRequest>) -> Result<Response<Self::PingStream>, Status> {
        Err(Status::unimplemented("ping"))
    }

    async fn down(&self, _: Request<v1::DownRequest>) -> Result<Response<v1::DownReply>, Status> {
        Err(Status::unimplemented("down"))
    }

    async fn up(&self, _: Request<v1::UpRequest>) -> Result<Response<v1::UpReply>, Status> {
        Err(Status::unimplemented("up"))
    }

    async fn leave(&self, _: Request<v1::LocalLeaveRequest>) -> Result<Response<v1::LocalLeaveReply>, Status> {
        Err(Status::unimplemented("leave"))
    }
}
