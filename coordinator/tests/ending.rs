//! The end of a mesh: only on purpose, and for good.

#![allow(clippy::unwrap_used)] // In tests, which end by it.

mod support;

use mesh_proto::v1;
use mesh_types::coordinator::ENDED_FILE;
use support::mesh;

#[tokio::test(flavor = "multi_thread")]
async fn the_last_coordinator_goes_only_with_destroy_and_never_serves_again() {
    let root = tempfile::tempdir().unwrap();
    let mut one = mesh(root.path(), 1).await.remove(0);
    let request = |destroy| v1::RemoveCoordinatorRequest { coordinator: "c1".into(), destroy, ..Default::default() };
    let refused = one.admin().await.remove_coordinator(request(false)).await.unwrap_err();
    assert_eq!(refused.code(), tonic::Code::FailedPrecondition);
    assert!(refused.message().contains("--destroy"), "{}", refused.message());
    one.token("node", 1).await;

    one.admin().await.remove_coordinator(request(true)).await.unwrap();
    assert_eq!(one.wait(), Some(6));
    for more in [&[][..], &["--bootstrap"]] {
        let (code, said) = one.start_and_fail(more);
        assert!(code == Some(6) && said.contains("was ended") && said.contains("move it away"), "{said}");
    }
    let said = one.offline("recover", &[]).unwrap_err();
    assert!(said.contains("was ended"), "{said}");

    // Without the mark, as after a crash before it was made, the log itself says so.
    let mark = one.data_dir().join(ENDED_FILE);
    std::fs::remove_file(&mark).unwrap();
    one.start(&[]);
    assert_eq!(one.wait(), Some(6));
    assert!(mark.exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn removing_a_coordinator_again_is_no_error_and_one_of_several_does_not_end_the_mesh() {
    let root = tempfile::tempdir().unwrap();
    let mut all = mesh(root.path(), 3).await;
    let request =
        |name: &str, destroy| v1::RemoveCoordinatorRequest { coordinator: name.into(), destroy, ..Default::default() };
    for _ in 0..2 {
        all[0].admin().await.remove_coordinator(request("c3", false)).await.unwrap();
    }
    assert_eq!(all[2].wait(), Some(6));
    for (name, code) in [("c2", tonic::Code::FailedPrecondition), ("c3", tonic::Code::NotFound)] {
        let refused = all[0].admin().await.remove_coordinator(request(name, true)).await.unwrap_err();
        assert_eq!(refused.code(), code, "{name}: {refused:?}");
    }
    all[0].token("node", 1).await;
}
