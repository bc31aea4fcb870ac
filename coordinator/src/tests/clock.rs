//! Clocks that are wrong, and time that passes.

use super::*;
use mesh_proto::dial::Dialer;
use mesh_proto::tls::Expect;
use mesh_types::JoinToken;

const HOUR: i64 = 3_600_000;
const DAY: u64 = 86_400_000;

#[tokio::test(flavor = "multi_thread")]
async fn a_coordinator_whose_clock_is_far_off_hands_over_and_no_write_bears_its_time() {
    let root = tempfile::tempdir().unwrap();
    let all = mesh(root.path(), 3).await;
    let wrong = leader(&all).await;
    all[wrong].clock.wrong.store(2 * HOUR, Ordering::Relaxed);
    let id = wrong as u64 + 1;
    eventually("another leads", async || {
        let request = v1::CreateTokenRequest { role: "node".into(), ttl: HOUR as u64, uses: 1, ..Default::default() };
        if let Ok(made) = all[wrong].admin().await.create_token(request).await {
            let honest = Host.wall() + MeshDuration(HOUR as u64 + 600_000);
            assert!(made.into_inner().expires_at <= honest.0, "its time came into the registry");
        }
        let other = &all[(wrong + 1) % 3];
        let led = other.list().await.coordinators.into_iter().find(|one| one.role == "leader");
        led.is_some_and(|one| one.record.unwrap().id != id)
    })
    .await;
    for (number, one) in all.iter().enumerate().filter(|(number, _)| *number != wrong) {
        let offset = one.info(id).await.clock_offset.unwrap();
        assert!((offset - 2 * HOUR).abs() < 60_000, "{number} sees it {offset} ms ahead");
    }
    // It knows by itself: it does not stand, and told to lead it hands over again.
    let request = v1::TransferLeaderRequest { to: format!("c{id}") };
    let _ = all[(wrong + 1) % 3].admin().await.transfer_leader(request.clone()).await;
    eventually("another leads again", async || leader(&all).await != wrong).await;

    all[wrong].clock.wrong.store(0, Ordering::Relaxed);
    eventually("with its clock right it leads again", async || {
        let _ = all[(wrong + 1) % 3].admin().await.transfer_leader(request.clone()).await;
        leader(&all).await == wrong
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lone_coordinator_whose_clock_jumps_refuses_writes_until_somebody_vouches_for_it() {
    let root = tempfile::tempdir().unwrap();
    let one = mesh(root.path(), 1).await.remove(0);
    one.clock.wrong.store(2 * HOUR, Ordering::Relaxed);
    let refused = one.try_token("node").await.unwrap_err();
    assert_eq!(refused.code(), tonic::Code::FailedPrecondition);
    assert!(refused.message().contains("set the clock right"), "{}", refused.message());
    one.clock.synchronised.store(true, Ordering::Relaxed);
    one.try_token("node").await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_is_renewed_in_time_without_restart_and_without_a_quorum() {
    let root = tempfile::tempdir().unwrap();
    let mut all = mesh(root.path(), 3).await;
    let token: JoinToken = all[0].try_token("node").await.unwrap().parse().unwrap();
    let begun = Host.wall();
    let shown_on = async |one: &Coordinator, day: u64| {
        let at = begun + MeshDuration(day * DAY);
        let expect = Expect::Pinned { mesh: token.mesh, authority: token.authority };
        let address = format!("127.0.0.1:{}", one.port).parse().unwrap();
        Dialer::joiner(Arc::new(move || at)).dial(&[address], expect).await.map(drop).map_err(|error| error.to_string())
    };
    // It lives a year; half of that passes.
    let early = shown_on(&all[2], 400).await.unwrap_err();
    assert!(early.contains("clock") || early.contains("expired"), "{early}");
    for one in &all {
        one.clock.passed.store(200 * DAY, Ordering::Relaxed);
    }
    for one in &all {
        eventually("a new one is shown", async || shown_on(one, 400).await.is_ok()).await;
    }
    for one in &mut all[..2] {
        one.stop().await;
    }
    assert!(shown_on(&all[2], 600).await.is_err());
    all[2].clock.passed.store(400 * DAY, Ordering::Relaxed);
    eventually("a new one is shown by the one that is left", async || shown_on(&all[2], 600).await.is_ok()).await;
}

/// The index of the one that leads, as a quorum confirms it.
async fn leader(all: &[Coordinator]) -> usize {
    let mut found = None;
    eventually("one leads", async || {
        for one in all {
            let listed = one.list().await;
            let led = listed.coordinators.into_iter().find(|one| one.role == "leader");
            found = led.filter(|_| listed.fresh).map(|one| one.record.unwrap().id as usize - 1);
            if found.is_some() {
                return true;
            }
        }
        false
    })
    .await;
    found.unwrap()
}
