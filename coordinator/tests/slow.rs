//! A node that reads nothing, at the level of HTTP/2: it grants its coordinator no room to send, and answers pings.

#![allow(clippy::unwrap_used)] // In tests, which end by it.

mod support;

use bytes::Bytes;
use mesh_proto::{Wire as _, v1};
use mesh_types::{CoordinatorMessage, NodeMessage, Revision};
use std::time::{Duration, Instant};
use support::{Coordinator, Node, PATIENCE, Session, mesh, raw};
use tokio::task::JoinHandle;

/// More than a session's queue holds.
const CHANGES: usize = mesh_types::limits::SESSION_QUEUE + 50;

/// A session whose node lets nothing be sent to it.
struct Deaf {
    connection: JoinHandle<Result<(), h2::Error>>,
    _says: h2::SendStream<Bytes>,
    _hears: http::Response<h2::RecvStream>,
}

impl Deaf {
    /// Says hello, and with `last` nothing more.
    async fn open(node: &Node, last: bool) -> Self {
        let tls = raw::line(&node.config.coordinators[0].addresses[0], Some(node)).await;
        let (requests, connection) = h2::client::Builder::new().initial_window_size(0).handshake(tls).await.unwrap();
        let connection = tokio::spawn(connection);
        let request = raw::head("/mesh.v1.Membership/Session");
        let (response, mut says) = requests.ready().await.unwrap().send_request(request, false).unwrap();
        let hello = NodeMessage::Hello(node.hello(1, Revision::NONE));
        says.send_data(raw::framed(&hello.to_wire()), last).unwrap();
        Self { connection, _says: says, _hears: response.await.unwrap() }
    }

    /// Waits until the coordinator has ended the connection.
    async fn ends(self) {
        let ended = tokio::time::timeout(PATIENCE, self.connection).await;
        assert!(ended.is_ok(), "its connection is still open");
    }
}

async fn rename(coordinator: &mut Coordinator, times: usize) {
    let mut admin = coordinator.admin().await;
    let mut name = "bob".to_owned();
    for count in 0..times {
        let next = format!("bob-{count}");
        let request = v1::RenameNodeRequest { node: name, name: next.clone(), ..Default::default() };
        admin.rename_node(request).await.unwrap();
        name = next;
    }
}

async fn wait_for_online(coordinator: &mut Coordinator, name: &str, online: bool) {
    let begun = Instant::now();
    loop {
        let nodes = coordinator.nodes().await.nodes;
        let node = nodes.iter().find(|node| node.record.as_ref().unwrap().name == name).unwrap();
        if node.online == online {
            return;
        }
        assert!(begun.elapsed() < PATIENCE, "{name} stays {online}: {}", coordinator.log());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Follows deltas without a gap from one revision up to another.
async fn follow(session: &mut Session, from: Revision, to: Revision) {
    let mut held = from;
    while held < to {
        let changes = session.until(|said| match said {
            CoordinatorMessage::Delta(changes) => Some(changes),
            _ => None,
        });
        let changes = changes.await;
        assert_eq!(changes.from, held);
        held = changes.to;
    }
}

async fn snapshot(session: &mut Session) -> Revision {
    let page = session.until(|said| match said {
        CoordinatorMessage::Snapshot(page) => Some(page),
        _ => None,
    });
    page.await.revision
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_reads_nothing_loses_session_and_connection_disturbs_nobody_and_resynchronises_later() {
    let root = tempfile::tempdir().unwrap();
    let mut one = mesh(root.path(), 1).await.remove(0);
    let token = one.token("node", 9).await;
    let alice = Node::join(&token, 1, "alice").await.unwrap();
    let bob = Node::join(&token, 2, "bob").await.unwrap();
    let deaf = Deaf::open(&alice, false).await;
    wait_for_online(&mut one, "alice", true).await;
    let mut reads = bob.session(0, Revision::NONE).await;
    let held = snapshot(&mut reads).await;
    let now = Revision(held.0 + u64::try_from(CHANGES).unwrap());

    let (following, ()) = tokio::join!(
        tokio::spawn(async move {
            follow(&mut reads, held, now).await;
            reads
        }),
        rename(&mut one, CHANGES)
    );
    let mut reads = following.unwrap();
    wait_for_online(&mut one, "alice", false).await;
    assert!(one.log().contains("session reads too slowly"), "{}", one.log());
    deaf.ends().await;

    let mut back = alice.session(0, held).await;
    follow(&mut back, held, now).await;
    let request = v1::RenameNodeRequest { node: "alice".into(), name: "alicia".into(), ..Default::default() };
    one.admin().await.rename_node(request).await.unwrap();
    for session in [&mut back, &mut reads] {
        follow(session, now, now.next()).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_reads_nothing_and_says_no_more_loses_its_connection_as_well() {
    let root = tempfile::tempdir().unwrap();
    let mut one = mesh(root.path(), 1).await.remove(0);
    let token = one.token("node", 9).await;
    let alice = Node::join(&token, 1, "alice").await.unwrap();
    Deaf::open(&alice, true).await.ends().await;
    wait_for_online(&mut one, "alice", false).await;
}
