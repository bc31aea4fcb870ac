//! Callers that ask too often are told to try again, and disturb nobody else.

#![allow(clippy::unwrap_used)] // In tests, which end by it.

mod support;

use mesh_proto::pushback::retry_after;
use mesh_proto::v1::membership_client::MembershipClient;
use mesh_proto::{Authority, Member, certificate, v1};
use mesh_types::netmap::Certificate;
use mesh_types::{JoinToken, MeshTime, NodeId, Revision, TokenId};
use support::{Node, Session, mesh, raw};
use tonic::transport::Channel;
use tonic::{Code, Status};

/// Calls until one is refused.
async fn exhaust<T, F: Future<Output = Result<T, Status>>>(mut call: impl FnMut() -> F) -> Status {
    for _ in 0..5_000 {
        if let Err(status) = call().await {
            return status;
        }
    }
    panic!("never refused");
}

fn is_pushback(status: &Status) {
    assert_eq!(status.code(), Code::ResourceExhausted, "{status:?}");
    assert!(status.message().contains("too often: try again in"), "{status:?}");
    assert!(retry_after(status).is_some(), "{status:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn who_asks_too_often_is_told_when_to_try_again_and_others_are_served() {
    let root = tempfile::tempdir().unwrap();
    let mut all = mesh(root.path(), 1).await;
    let token = all[0].token("node", 9).await;
    let alice = Node::join(&token, 1, "alice").await.unwrap();
    let bob = Node::join(&token, 2, "bob").await.unwrap();
    let client = async |node: &Node| MembershipClient::<Channel>::new(node.connect(0).await.channel);
    let (loud, mut quiet) = (client(&alice).await, client(&bob).await);

    let renew =
        |mut client: MembershipClient<Channel>| async move { client.renew_key(v1::RenewKeyRequest::default()).await };
    is_pushback(&exhaust(|| renew(loud.clone())).await);
    renew(quiet.clone()).await.unwrap();

    let request = certificate::certificate_request(&alice.key).unwrap();
    let request = v1::RenewCertificateRequest { certificate_request: request.into() };
    let certify = |mut client: MembershipClient<Channel>| {
        let request = request.clone();
        async move { client.renew_certificate(request).await }
    };
    is_pushback(&exhaust(|| certify(loud.clone())).await);

    is_pushback(
        &exhaust(|| async { Session::open(alice.connect(0).await, alice.hello(1, Revision::NONE)).await }).await,
    );
    let mut session = bob.session(0, Revision::NONE).await;
    session.next().await.unwrap();

    is_pushback(&exhaust(|| Node::join(&token, 1, "alice")).await);
    Node::join(&token, 2, "bob").await.unwrap();

    // Whoever shows a good token does not suffer from others at its address.
    let unknown = unknown_token(&token);
    is_pushback(&exhaust(|| join_in_vain(&unknown)).await);
    Node::join(&token, 3, "carol").await.unwrap();
    quiet.renew_key(v1::RenewKeyRequest::default()).await.unwrap();
}

/// A token of the same mesh that nobody made.
fn unknown_token(token: &str) -> String {
    let token: JoinToken = token.parse().unwrap();
    JoinToken { id: TokenId::from_bytes([9; TokenId::LEN]), ..token }.to_string()
}

/// Joins with a token that is not known; an error only when it is put off.
async fn join_in_vain(token: &str) -> Result<(), Status> {
    match Node::join(token, 9, "mallory").await {
        Err(status) if status.code() == Code::PermissionDenied => Ok(()),
        Err(status) => Err(status),
        Ok(_) => panic!("it joined"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_is_judged_and_counted_before_its_body_comes() {
    let root = tempfile::tempdir().unwrap();
    let mut all = mesh(root.path(), 1).await;
    let token = all[0].token("node", 9).await;
    let alice = Node::join(&token, 1, "alice").await.unwrap();
    let address = &alice.config.coordinators[0].addresses[0];
    for (path, node, expected) in [
        ("/mesh.v1.Cluster/Raft", None, Code::Unauthenticated),
        ("/mesh.v1.Cluster/Propose", None, Code::Unauthenticated),
        ("/mesh.v1.Cluster/Presence", None, Code::Unauthenticated),
        ("/mesh.v1.Membership/Session", None, Code::Unauthenticated),
        ("/mesh.v1.Membership/RenewKey", None, Code::Unauthenticated),
        ("/mesh.v1.Admin/Backup", None, Code::Unimplemented),
        ("/mesh.v1.Cluster/Raft", Some(&alice), Code::PermissionDenied),
        ("/mesh.v1.Cluster/Health", Some(&alice), Code::PermissionDenied),
    ] {
        let status = raw::status_of_head(address, node, path).await;
        assert_eq!(status.code(), expected, "{path}: {status:?}");
    }
    let client = MembershipClient::<Channel>::new(alice.connect(0).await.channel);
    let renew =
        |mut client: MembershipClient<Channel>| async move { client.renew_key(v1::RenewKeyRequest::default()).await };
    is_pushback(&exhaust(|| renew(client.clone())).await);
    is_pushback(&raw::status_of_head(address, Some(&alice), "/mesh.v1.Membership/RenewKey").await);
}

#[tokio::test(flavor = "multi_thread")]
async fn no_certificate_is_signed_for_a_node_that_the_registry_does_not_hold() {
    let root = tempfile::tempdir().unwrap();
    let mut all = mesh(root.path(), 1).await;
    let token = all[0].token("node", 9).await;
    let ghost = Node::join(&token, 1, "alice").await.unwrap();
    let file = |name: &str| std::fs::read(all[0].data_dir().join(name)).unwrap();
    let authority = Authority::load(Certificate(file("authority.der")), &file("authority.key")).unwrap();
    // Its certificate is good, but names a node that never joined.
    let member = Member::Node(NodeId::from_bytes([7; NodeId::LEN]));
    let now = MeshTime::from_system(std::time::SystemTime::now());
    let forged = authority.issue(member, certificate::identity_key(&ghost.key), now).unwrap();
    ghost.credentials.replace(&forged, authority.certificate(), &ghost.key).unwrap();
    let mut client = MembershipClient::new(ghost.connect(0).await.channel);
    let request = certificate::certificate_request(&ghost.key).unwrap();
    let request = v1::RenewCertificateRequest { certificate_request: request.into() };
    let refused = client.renew_certificate(request).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unavailable, "{refused:?}");
    assert!(refused.message().contains("ask another coordinator"), "{refused:?}");
}
