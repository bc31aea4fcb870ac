//! What happens to the interface of a node by other hands, and what is said of it.

use crate::in_lab;
use crate::machine::{Machine, text};
use futures::TryStreamExt as _;
use rtnetlink::packet_route::route::RouteAttribute;
use rtnetlink::{LinkUnspec, RouteMessageBuilder};
use std::net::{Ipv4Addr, UdpSocket};

#[test]
fn what_somebody_takes_off_the_interface_is_put_back() {
    in_lab("interface::what_somebody_takes_off_the_interface_is_put_back", async |mut lab| {
        let first = Machine::new(&mut lab, "first", 1).await;
        let second = Machine::new(&mut lab, "second", 2).await;
        let made = first.json(&["init", "--advertise", "192.0.2.1", "--overlay", "10.77.0.0/24"]).await;
        second.json(&["join", made["token"].as_str().unwrap()]).await;
        second.until_it_pings("first").await;
        let links = second.links();
        let interface = links.link().get().match_name("mesh0").execute().try_next().await.unwrap().unwrap();
        let index = interface.header.index;

        let addresses: Vec<_> = links.address().get().execute().try_collect().await.unwrap();
        for address in addresses.into_iter().filter(|address| address.header.index == index) {
            links.address().del(address).execute().await.unwrap();
        }
        second.until_it_pings("first").await;

        let any = RouteMessageBuilder::<Ipv4Addr>::new().build();
        let routes: Vec<_> = links.route().get(any).execute().try_collect().await.unwrap();
        let range = routes.into_iter().find(|route| {
            route.header.destination_prefix_length == 24 && route.attributes.contains(&RouteAttribute::Oif(index))
        });
        links.route().del(range.unwrap()).execute().await.unwrap();
        second.until_it_pings("first").await;

        links.link().set(LinkUnspec::new_with_index(index).down().build()).execute().await.unwrap();
        second.until_it_pings("first").await;

        links.link().del(index).execute().await.unwrap();
        second.until_it_pings("first").await;
        second.until("it is well", async || second.run(&["status", "--check"]).await.status.success()).await;
    });
}

#[test]
fn a_node_without_its_port_has_not_joined_well() {
    in_lab("interface::a_node_without_its_port_has_not_joined_well", async |mut lab| {
        let first = Machine::new(&mut lab, "first", 1).await;
        let second = Machine::new(&mut lab, "second", 2).await;
        let made = first.json(&["init", "--advertise", "192.0.2.1"]).await;
        let other = second.host.enter(|| Ok(UdpSocket::bind("0.0.0.0:7777")?)).unwrap();
        let output = second.run(&["join", made["token"].as_str().unwrap(), "--listen-port", "7777"]).await;
        assert_eq!(output.status.code(), Some(1));
        assert!(text(&output.stderr).contains("7777"), "{}", text(&output.stderr));
        assert_eq!(second.run(&["status", "--check"]).await.status.code(), Some(1));
        drop(other);
        second.until_it_pings("first").await;
        second.done(&["status", "--check"]).await;
    });
}
