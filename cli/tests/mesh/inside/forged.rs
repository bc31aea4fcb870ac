//! A member whose datagrams come from its overlay address, as an attacker's may, or those of a host whose routes say so.

use super::cable::route;
use super::stage::{CHANGING, Member, Place, host, mesh};
use crate::in_lab;
use mesh_cli::lab::Pings;
use std::net::IpAddr;
use std::time::{Duration, Instant};

const INTERVAL: Duration = Duration::from_millis(10);
/// Many pings, and at least one handshake.
const ATTACK: Duration = Duration::from_secs(6);

#[test]
fn a_member_that_sends_from_its_overlay_address_is_not_answered_there() {
    in_lab("inside::forged::a_member_that_sends_from_its_overlay_address_is_not_answered_there", async |mut lab| {
        let [victim, attacker, third] = mesh(&mut lab, Place::Cable).await;
        let mut outside = Pings::start(&third.machine.host, [IpAddr::from(victim.overlay)], INTERVAL).unwrap();
        let towards = [&attacker, &third].map(|member| IpAddr::from(member.overlay));
        let inside = Pings::start(&victim.machine.host, towards, INTERVAL).unwrap();
        outside.answered(&[victim.overlay.into()]).await.unwrap();

        forge(&attacker).await;
        let pinged = Pings::start(&attacker.machine.host, [IpAddr::from(victim.overlay)], INTERVAL).unwrap();
        let [before, _] = victim.sent().await;
        tokio::time::sleep(ATTACK).await;

        assert!(victim.strange() > 0, "nothing came from an overlay address: there was no attack");
        victim.sends_to_the_underlay("under attack").await;
        assert_eq!(victim.wrapped(), 0, "sent into the tunnel what is the tunnel: {}", victim.picture().await);
        let [after, _] = victim.sent().await;
        let seconds = ATTACK.as_millis() / INTERVAL.as_millis();
        let most = 10 * u64::try_from(seconds).unwrap();
        assert!((after - before).packets <= most, "{:?} for {seconds} pings of four flows", after - before);
        let now = Instant::now();
        outside.answered_since(&[victim.overlay.into()], now).await.unwrap();
        for pings in [outside, inside, pinged] {
            println!("{:?}", pings.stop().await.unwrap());
        }
    });
}

/// Makes the attacker send to the first host from its overlay address: its routes prefer that, and the address that peers
/// have written to, which would be preferred, is replaced.
async fn forge(attacker: &Member) {
    route(&attacker.machine, (host(CHANGING, 1), 32), Some(attacker.overlay)).await;
    // The routes stay.
    attacker.set_promotion(true);
    attacker.holder.add(host(CHANGING, 102)).await;
    attacker.holder.delete(host(CHANGING, 2)).await;
}
