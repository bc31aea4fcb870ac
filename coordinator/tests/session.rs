//! Sessions of nodes with real coordinators.

#![allow(clippy::unwrap_used)] // In tests, which end by it.

mod support;

use mesh_proto::v1;
use mesh_proto::v1::membership_client::MembershipClient;
use mesh_proto::{Wire, certificate};
use mesh_types::session::CloseReason;
use mesh_types::{
    Candidate, CandidateKind, CoordinatorMessage, Incarnation, MeshTime, NodeMessage, Presence, Revision,
};
use std::time::{Duration, Instant};
use support::{Coordinator, Node, PATIENCE, mesh};

fn presence(node: &Node, sequence: u64, endpoint: &str) -> v1::NodeMessage {
    let presence = Presence {
        node: node.id,
        incarnation: Incarnation(1),
        sequence,
        signed_at: MeshTime(1),
        candidates: vec![Candidate { kind: CandidateKind::Host, endpoint: endpoint.parse().unwrap() }],
    };
    NodeMessage::Presence(presence.sign(node.config.mesh, &node.key)).to_wire()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_brings_a_node_up_to_date_and_then_tells_what_changes() {
    let root = tempfile::tempdir().unwrap();
    let mut all = mesh(root.path(), 1).await;
    let token = all[0].token("node", 9).await;
    let alice = Node::join(&token, 1, "alice").await.unwrap();
    let mut session = alice.session(0, Revision::NONE).await;
    assert!(matches!(session.next().await, Some(CoordinatorMessage::Welcome(_))));
    let page = session.until(|said| match said {
        CoordinatorMessage::Snapshot(page) => Some(page),
        _ => None,
    });
    let page = page.await;
    assert!(page.last && page.nodes.len() == 1 && page.config.is_some());

    let bob = Node::join(&token, 2, "bob").await.unwrap();
    let changes = session.until(|said| match said {
        CoordinatorMessage::Delta(changes) => Some(changes),
        _ => None,
    });
    let changes = changes.await;
    assert_eq!((changes.from, changes.upserts.len()), (page.revision, 1));

    let theirs = bob.session(0, Revision::NONE).await;
    theirs.said.send(presence(&bob, 1, "192.0.2.7:51820")).await.unwrap();
    let record = session.until(|said| match said {
        CoordinatorMessage::Presence(update) => update.records.first().cloned(),
        _ => None,
    });
    assert_eq!(record.await.parse_unverified().unwrap().node, bob.id);

    // A session that resumes gets nothing twice.
    drop(session);
    let mut session = alice.session(0, changes.to).await;
    let request = v1::RenameNodeRequest { node: "bob".into(), name: "bobby".into(), ..Default::default() };
    all[0].admin().await.rename_node(request).await.unwrap();
    let renamed = session.until(|said| match said {
        CoordinatorMessage::Delta(changes) => Some(changes),
        CoordinatorMessage::Snapshot(_) => panic!("a snapshot where a delta would do"),
        _ => None,
    });
    let renamed = renamed.await;
    assert_eq!(renamed.from, changes.to);
    assert_eq!(renamed.upserts[0].name.as_str(), "bobby");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_removed_node_is_told_and_cannot_come_back_with_what_it_kept() {
    let root = tempfile::tempdir().unwrap();
    let mut all = mesh(root.path(), 1).await;
    let token = all[0].token("node", 9).await;
    let alice = Node::join(&token, 1, "alice").await.unwrap();
    let mut session = alice.session(0, Revision::NONE).await;
    session.next().await.unwrap();
    let request = v1::RemoveNodeRequest { node: "alice".into(), ..Default::default() };
    all[0].admin().await.remove_node(request).await.unwrap();
    let reason = session.until(|said| match said {
        CoordinatorMessage::Close(reason) => Some(reason),
        _ => None,
    });
    assert_eq!(reason.await, CloseReason::Removed);
    let mut again = alice.session(0, Revision::NONE).await;
    assert_eq!(again.next().await, Some(CoordinatorMessage::Close(CloseReason::Removed)));

    let mut client = MembershipClient::new(alice.connect(0).await.channel);
    let renewal = client.renew_key(v1::RenewKeyRequest::default()).await.unwrap_err();
    assert_eq!(renewal.code(), tonic::Code::PermissionDenied);
    let rejoin = Node::join(&token, 1, "alice").await.map(|node| node.id).unwrap_err();
    assert_eq!(rejoin.code(), tonic::Code::PermissionDenied);

    let request = v1::AllowNodeRequest { node: "alice".into(), ..Default::default() };
    all[0].admin().await.allow_node(request).await.unwrap();
    let back = Node::join(&token, 1, "alice").await.unwrap();
    assert_eq!(back.id, alice.id);
}

#[tokio::test(flavor = "multi_thread")]
async fn presence_and_certificates_need_no_quorum_but_renewed_keys_do() {
    let root = tempfile::tempdir().unwrap();
    let mut all = mesh(root.path(), 3).await;
    let token = all[0].token("node", 9).await;
    let alice = Node::join(&token, 1, "alice").await.unwrap();
    let bob = Node::join(&token, 2, "bob").await.unwrap();
    let mut hears = alice.session(1, Revision::NONE).await;
    let speaks = bob.session(2, Revision::NONE).await;
    all[0].kill();
    // Two are left and have a quorum, or will soon; what is exchanged asks for none.
    speaks.said.send(presence(&bob, 1, "192.0.2.7:51820")).await.unwrap();
    let record = hears.until(|said| match said {
        CoordinatorMessage::Presence(update) => update.records.first().cloned(),
        _ => None,
    });
    assert_eq!(record.await.parse_unverified().unwrap().node, bob.id);

    all[1].kill();
    let mut client = MembershipClient::new(bob.connect(2).await.channel);
    let request = certificate::certificate_request(&bob.key).unwrap();
    let request = v1::RenewCertificateRequest { certificate_request: request.into() };
    let reply = client.renew_certificate(request).await.unwrap().into_inner();
    let leaf = certificate::read_certificate(&reply.certificate).unwrap();
    assert_eq!(leaf.identity.identity_key, certificate::identity_key(&bob.key));
    let status = client.renew_key(v1::RenewKeyRequest::default()).await.unwrap_err();
    assert_eq!(status.code(), tonic::Code::Unavailable);
}

async fn knows_online(one: &mut Coordinator) {
    let begun = Instant::now();
    while one.nodes().await.nodes.iter().all(|node| !node.online) {
        assert!(begun.elapsed() < PATIENCE, "it does not hear of the session: {}", one.log());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn of_two_daemons_with_one_identity_at_two_coordinators_the_older_stays_as_long_as_it_answers() {
    let root = tempfile::tempdir().unwrap();
    let mut all = mesh(root.path(), 3).await;
    let token = all[0].token("node", 9).await;
    let alice = Node::join(&token, 1, "alice").await.unwrap();
    let mut older = alice.session_of(1, 0, Revision::NONE).await;
    assert!(matches!(older.next().await, Some(CoordinatorMessage::Welcome(_))));
    knows_online(&mut all[1]).await;

    let mut copy = alice.session_of(2, 1, Revision::NONE).await;
    older.until(|said| (said == CoordinatorMessage::Ping).then_some(())).await;
    older.said.send(NodeMessage::Pong.to_wire()).await.unwrap();
    assert_eq!(copy.next().await, Some(CoordinatorMessage::Close(CloseReason::DuplicateIdentity)));

    // It hangs, or its host lost power: the stream is there, nobody answers.
    let mut restarted = alice.session_of(3, 1, Revision::NONE).await;
    assert!(matches!(restarted.next().await, Some(CoordinatorMessage::Welcome(_))));
    let end = older.until(|said| match said {
        CoordinatorMessage::Close(reason) => Some(reason),
        _ => None,
    });
    assert_eq!(end.await, CloseReason::GoElsewhere);
}
