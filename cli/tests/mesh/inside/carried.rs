//! Networks that the mesh carries: what is reached through them is reached through the mesh, and no way for it.

use super::cable::{block, index_of, unblock};
use super::stage::{CHANGING, Member, Place, host, mesh};
use crate::in_lab;
use mesh_cli::lab::Pings;
use rtnetlink::{LinkUnspec, LinkVxlan};
use std::net::{IpAddr, Ipv4Addr};
use std::time::{Duration, Instant};

const INTERVAL: Duration = Duration::from_millis(50);
const VXLAN: &str = "vxlan0";
const VXLAN_PORT: u16 = 4789;
/// How long the direct path is blocked: silence is noticed in seconds.
const BLOCKED: Duration = Duration::from_secs(12);

#[test]
fn a_vxlan_that_the_mesh_carries_is_no_way_for_the_mesh() {
    in_lab("inside::carried::a_vxlan_that_the_mesh_carries_is_no_way_for_the_mesh", async |mut lab| {
        let members = mesh(&mut lab, Place::Cable).await;
        let [_, second, third] = &members;
        span(second, third, 2).await;
        span(third, second, 3).await;
        let mut pings = Pings::start(&second.machine.host, [carried(3), third.overlay.into()], INTERVAL).unwrap();
        pings.answered(&[carried(3), third.overlay.into()]).await.unwrap();
        let before = sent(second, third).await;

        // Only between these two: what they know of each other still spreads by way of the coordinator.
        block(&second.machine, host(CHANGING, 3)).await;
        block(&third.machine, host(CHANGING, 2)).await;
        tokio::time::sleep(BLOCKED).await;
        let blocked = sent(second, third).await - before;
        let wrapped = [second, third].map(Member::wrapped);
        let pinged = u64::try_from(2 * BLOCKED.as_millis() / INTERVAL.as_millis()).unwrap();
        println!("{blocked} packets in the tunnel for {pinged} pings, {wrapped:?} wrapped");
        for member in [second, third] {
            member.sends_to_the_underlay("with the direct path blocked").await;
        }
        assert_eq!(wrapped, [0, 0], "sent into the tunnel what is the tunnel");
        assert!(blocked <= 4 * pinged + 500, "{blocked} packets in the tunnel for {pinged} pings");

        unblock(&second.machine, host(CHANGING, 3)).await;
        unblock(&third.machine, host(CHANGING, 2)).await;
        let now = Instant::now();
        pings.answered_since(&[carried(3), third.overlay.into()], now).await.unwrap();
        pings.stop().await.unwrap();
    });
}

/// Makes a VXLAN to a peer's overlay address, with an address of its own.
async fn span(member: &Member, peer: &Member, number: u8) {
    let links = member.machine.links();
    let vxlan = LinkVxlan::new(VXLAN, 7).local(member.overlay).remote(peer.overlay).port(VXLAN_PORT).up().build();
    links.link().add(vxlan).execute().await.unwrap();
    let index = index_of(&links, VXLAN).await;
    links.address().add(index, carried(number), 24).execute().await.unwrap();
    links.link().set(LinkUnspec::new_with_index(index).up().build()).execute().await.unwrap();
}

/// An address in the network that the mesh carries.
fn carried(number: u8) -> IpAddr {
    Ipv4Addr::new(172, 30, 0, number).into()
}

async fn sent(second: &Member, third: &Member) -> u64 {
    second.sent().await[0].packets + third.sent().await[0].packets
}
