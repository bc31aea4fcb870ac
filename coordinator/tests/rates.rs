//! Callers that ask too often are told to try again, and disturb nobody else.

#![allow(clippy::unwrap_used)] // In tests, which end by it.

mod support;

use mesh_proto::dial::Dialer;
use mesh_proto::pushback::retry_after;
use mesh_proto::tls::{Expect, system_clock};
use mesh_proto::v1::membership_client::MembershipClient;
use mesh_proto::{certificate, v1};
use mesh_types::{JoinToken, Revision};
use support::{Node, Session, mesh};
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

    let pinned: JoinToken = token.parse().unwrap();
    let expect = Expect::Pinned { mesh: pinned.mesh, authority: pinned.authority };
    let stranger = Dialer::joiner(system_clock()).dial(&pinned.addresses, expect).await.unwrap();
    let stranger = MembershipClient::new(stranger.channel);
    let challenge =
        |mut client: MembershipClient<Channel>| async move { client.challenge(v1::ChallengeRequest {}).await };
    is_pushback(&exhaust(|| challenge(stranger.clone())).await);
    quiet.renew_key(v1::RenewKeyRequest::default()).await.unwrap();
}
