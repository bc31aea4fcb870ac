//! What is asked or said twice: requests that are repeated, and addresses that are advertised at every start.

#![allow(clippy::unwrap_used)] // In tests, which end by it.

mod support;

use bytes::Bytes;
use mesh_proto::v1;
use mesh_types::JoinToken;
use support::{eventually, mesh};

#[tokio::test(flavor = "multi_thread")]
async fn a_token_that_is_asked_for_again_is_the_same_one_at_any_coordinator() {
    let root = tempfile::tempdir().unwrap();
    let mut all = mesh(root.path(), 3).await;
    let request = |uses: u32| v1::CreateTokenRequest {
        request_id: Bytes::from_static(&[7; 16]),
        role: "node".into(),
        ttl: 60_000,
        uses,
    };
    let mut made = Vec::new();
    for one in &mut all {
        let reply = one.admin().await.create_token(request(1)).await.unwrap().into_inner();
        let token: JoinToken = reply.token.parse().unwrap();
        assert_eq!(reply.id.as_ref(), token.id.as_bytes());
        made.push((token.id, *token.secret.as_bytes(), reply.expires_at));
    }
    assert!(made.iter().all(|token| *token == made[0]), "{made:?}");
    let refused = all[0].admin().await.create_token(request(2)).await.unwrap_err();
    assert_eq!(refused.code(), tonic::Code::InvalidArgument, "another token under the same id: {refused:?}");

    let listed = all[0].admin().await.list_tokens(v1::ListTokensRequest {}).await.unwrap().into_inner().tokens;
    let listed = listed.iter().filter(|token| token.role == "node").count();
    assert_eq!(listed, 1);
    let unnamed = || v1::CreateTokenRequest { request_id: Bytes::new(), ..request(1) };
    let (one, other) = (unnamed(), unnamed());
    let one = all[0].admin().await.create_token(one).await.unwrap().into_inner();
    let other = all[0].admin().await.create_token(other).await.unwrap().into_inner();
    assert_ne!(one.id, other.id, "who gives no id wants a new one each time");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_announces_only_what_was_not_advertised_before() {
    let root = tempfile::tempdir().unwrap();
    let mut one = mesh(root.path(), 1).await.remove(0);
    let advertised = one.own_addresses().await;
    let kept = one.data_dir().join("advertised");
    eventually("what is advertised is kept", async || kept.exists()).await;
    let set = vec!["192.0.2.7:8551".to_owned(), advertised[0].clone()];
    let request = v1::SetCoordinatorAddressesRequest { addresses: set.clone(), ..Default::default() };
    one.admin().await.set_coordinator_addresses(request).await.unwrap();

    one.kill();
    one.start(&[]);
    eventually("the start is over", async || {
        let addresses = one.own_addresses().await;
        assert_eq!(addresses, set);
        one.log().contains("what is registered stays")
    })
    .await;

    one.terminate();
    one.move_away();
    one.start(&[]);
    eventually("new addresses are announced", async || {
        let addresses = one.own_addresses().await;
        addresses.len() == 1 && addresses != advertised
    })
    .await;
}
