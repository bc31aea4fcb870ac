//! The host's links: our interface by difference, the underlay, its changes, and routes in the way.

use crate::host::{Host, index, netlink};
use crate::stage::{INTERFACE, Kind, Stage};
use crate::trial;
use futures::TryStreamExt as _;
use libtest_mimic::Trial;
use mesh_node::link::{Change, LinkConfig, LinkError, Links, Monitor, Underlay};
use mesh_types::Overlay;
use rtnetlink::packet_route::route::{RouteAttribute, RouteMessage};
use rtnetlink::{LinkUnspec, LinkVeth, RouteMessageBuilder};
use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;
use tokio::time::timeout;

pub(crate) fn trials() -> Vec<Trial> {
    let cases: [(&str, fn()); 11] = [
        ("an_interface_is_configured_once", an_interface_is_configured_once),
        ("a_changed_configuration_replaces_the_former", a_changed_configuration_replaces_the_former),
        ("a_missing_interface_is_told", a_missing_interface_is_told),
        ("the_underlay_is_all_but_loopback_and_tunnels", the_underlay_is_all_but_loopback_and_tunnels),
        ("the_overlay_mtu_follows_the_underlay", the_overlay_mtu_follows_the_underlay),
        ("the_monitor_tells_of_addresses_and_carriers", the_monitor_tells_of_addresses_and_carriers),
        (
            "the_monitor_tells_of_whatever_somebody_does_to_our_own_interface",
            the_monitor_tells_of_whatever_somebody_does_to_our_own_interface,
        ),
        ("the_monitor_tells_of_a_new_way_out", the_monitor_tells_of_a_new_way_out),
        ("routes_in_the_way_are_found", routes_in_the_way_are_found),
        ("a_host_route_to_the_same_range_is_left_alone", a_host_route_to_the_same_range_is_left_alone),
        ("ipv6_that_is_off_is_turned_on_for_our_interface", ipv6_that_is_off_is_turned_on_for_our_interface),
    ];
    cases.into_iter().map(|(name, case)| trial("links", name, case)).collect()
}

fn an_interface_is_configured_once() {
    Host::new().run(async {
        let _device = Stage::new(Kind::Userspace).open(None).await;
        let links = Links::open().unwrap();
        let first = links.configure(INTERFACE, &config(1)).await.unwrap();
        assert_eq!(first, 5, "up, two addresses, two ranges");
        assert_eq!(links.configure(INTERFACE, &config(1)).await.unwrap(), 0);
        links.deconfigure(INTERFACE).await.unwrap();
        links.deconfigure(INTERFACE).await.unwrap();
        assert_eq!(links.configure(INTERFACE, &config(1)).await.unwrap(), 4, "all but being up");
    });
}

fn a_changed_configuration_replaces_the_former() {
    Host::new().run(async {
        let _device = Stage::new(Kind::Userspace).open(None).await;
        let links = Links::open().unwrap();
        links.configure(INTERFACE, &config(1)).await.unwrap();
        let wider = Overlay::new("10.8.0.0/15".parse().unwrap(), "fd00:8::/48".parse().unwrap()).unwrap();
        let other = LinkConfig { addresses: wider.addresses(3).unwrap(), overlay: wider, mtu: 1_300 };
        links.configure(INTERFACE, &other).await.unwrap();
        assert_eq!(links.configure(INTERFACE, &other).await.unwrap(), 0);
        // The way back is as complete: nothing of the other is left.
        links.configure(INTERFACE, &config(1)).await.unwrap();
        assert!(links.overlaps(&wider, "other").await.unwrap().iter().all(|route| route.interface == INTERFACE));
        assert_eq!(links.configure(INTERFACE, &config(1)).await.unwrap(), 0);
    });
}

fn a_missing_interface_is_told() {
    Host::new().run(async {
        let links = Links::open().unwrap();
        match links.configure(INTERFACE, &config(1)).await {
            Err(LinkError::NoInterface { interface }) => assert_eq!(interface, INTERFACE),
            other => panic!("expected no interface, got {other:?}"),
        }
        links.deconfigure(INTERFACE).await.unwrap();
    });
}

fn the_underlay_is_all_but_loopback_and_tunnels() {
    let host = cabled();
    host.run(async {
        let _device = Stage::new(Kind::Userspace).open(None).await;
        let links = Links::open().unwrap();
        links.configure(INTERFACE, &config(1)).await.unwrap();
        for own in [INTERFACE, "another"] {
            let underlay = links.underlay(own, 0).await.unwrap();
            assert_eq!(offered(&underlay), ["192.0.2.5", "2001:db8::5"]);
        }
    });
}

fn the_overlay_mtu_follows_the_underlay() {
    cabled().run(async {
        let links = Links::open().unwrap();
        assert_eq!(links.underlay(INTERFACE, 0).await.unwrap().overlay_mtu, 1_420);
        let handle = netlink();
        let at = index(&handle, "eth0").await;
        handle.link().set(LinkUnspec::new_with_index(at).mtu(1_400).build()).execute().await.unwrap();
        assert_eq!(links.underlay(INTERFACE, 0).await.unwrap().overlay_mtu, 1_320);
    });
}

fn the_monitor_tells_of_addresses_and_carriers() {
    cabled().run(async {
        let mut monitor = Monitor::start(INTERFACE, 0).await.unwrap();
        assert_eq!(offered(monitor.underlay()), ["192.0.2.5", "2001:db8::5"]);
        let handle = netlink();
        let at = index(&handle, "eth0").await;
        handle.address().add(at, "192.0.2.6".parse().unwrap(), 24).execute().await.unwrap();
        let Change::Underlay(underlay) = monitor.changed().await.unwrap() else { panic!("the underlay has changed") };
        assert_eq!(offered(&underlay), ["192.0.2.5", "192.0.2.6", "2001:db8::5"]);
        // What happens to our own interface is no news of the underlay; the next is that the cable came out.
        let _device = Stage::new(Kind::Userspace).open(None).await;
        Links::open().unwrap().configure(INTERFACE, &config(1)).await.unwrap();
        let far = index(&handle, "far").await;
        handle.link().set(LinkUnspec::new_with_index(far).down().build()).execute().await.unwrap();
        let underlay = loop {
            if let Change::Underlay(underlay) = monitor.changed().await.unwrap() {
                break underlay;
            }
        };
        assert!(underlay.addresses.is_empty());
    });
}

fn the_monitor_tells_of_whatever_somebody_does_to_our_own_interface() {
    cabled().run(async {
        let mut monitor = Monitor::start(INTERFACE, 0).await.unwrap();
        let _device = Stage::new(Kind::Userspace).open(None).await;
        let (links, handle) = (Links::open().unwrap(), netlink());
        let at = index(&handle, INTERFACE).await;
        for touch in 0..3 {
            // Until our own changes are told, and it is quiet.
            while links.configure(INTERFACE, &config(1)).await.unwrap() > 0 {}
            while timeout(Duration::from_millis(200), monitor.changed()).await.is_ok() {}
            match touch {
                0 => {
                    let all: Vec<_> = handle.address().get().execute().try_collect().await.unwrap();
                    let own = all.into_iter().find(|address| address.header.index == at).unwrap();
                    handle.address().del(own).execute().await.unwrap();
                }
                1 => {
                    let any = RouteMessageBuilder::<Ipv4Addr>::new().build();
                    let all: Vec<_> = handle.route().get(any).execute().try_collect().await.unwrap();
                    let to_us = |route: &RouteMessage| route.attributes.contains(&RouteAttribute::Oif(at));
                    let range =
                        all.into_iter().find(|route| to_us(route) && route.header.destination_prefix_length == 16);
                    handle.route().del(range.unwrap()).execute().await.unwrap();
                }
                _ => handle.link().set(LinkUnspec::new_with_index(at).down().build()).execute().await.unwrap(),
            }
            // What is reached through it has changed as well, which may be told first.
            while monitor.changed().await.unwrap() != Change::OwnInterface {}
            assert!(links.configure(INTERFACE, &config(1)).await.unwrap() > 0, "{touch}: there was something to mend");
        }
    });
}

fn the_monitor_tells_of_a_new_way_out() {
    cabled().run(async {
        let mut monitor = Monitor::start(INTERFACE, 0).await.unwrap();
        assert!(monitor.underlay().egress.is_empty());
        let route = RouteMessageBuilder::<Ipv4Addr>::new().gateway(Ipv4Addr::new(192, 0, 2, 1)).build();
        netlink().route().add(route).execute().await.unwrap();
        let Change::Underlay(underlay) = monitor.changed().await.unwrap() else { panic!("the underlay has changed") };
        let way = underlay.egress.first().unwrap();
        assert_eq!(way.gateway, Some(IpAddr::from([192, 0, 2, 1])));
        assert_eq!(way.source, Some(IpAddr::from([192, 0, 2, 5])));
        assert_eq!(
            underlay.addresses.first().map(|first| (first.secondary, first.address)),
            Some((false, way.source.unwrap()))
        );
    });
}

fn routes_in_the_way_are_found() {
    cabled().run(async {
        let links = Links::open().unwrap();
        assert!(links.overlaps(&overlay(), INTERFACE).await.unwrap().is_empty());
        let handle = netlink();
        let at = index(&handle, "eth0").await;
        let default = RouteMessageBuilder::<Ipv4Addr>::new().gateway(Ipv4Addr::new(192, 0, 2, 1)).build();
        handle.route().add(default).execute().await.unwrap();
        assert!(links.overlaps(&overlay(), INTERFACE).await.unwrap().is_empty());
        let inside = RouteMessageBuilder::<Ipv4Addr>::new()
            .destination_prefix(Ipv4Addr::new(10, 9, 4, 0), 24)
            .output_interface(at)
            .build();
        handle.route().add(inside).execute().await.unwrap();
        let found = links.overlaps(&overlay(), INTERFACE).await.unwrap();
        assert_eq!(found.iter().map(ToString::to_string).collect::<Vec<_>>(), ["10.9.4.0/24 through eth0"]);
        let _device = Stage::new(Kind::Userspace).open(None).await;
        links.configure(INTERFACE, &config(1)).await.unwrap();
        assert_eq!(links.overlaps(&overlay(), INTERFACE).await.unwrap().len(), 1, "our own routes do not count");
    });
}

fn a_host_route_to_the_same_range_is_left_alone() {
    cabled().run(async {
        let links = Links::open().unwrap();
        let handle = netlink();
        let at = index(&handle, "eth0").await;
        let same = RouteMessageBuilder::<Ipv4Addr>::new()
            .destination_prefix(Ipv4Addr::new(10, 9, 0, 0), 16)
            .output_interface(at)
            .build();
        handle.route().add(same).execute().await.unwrap();
        let before = links.overlaps(&overlay(), INTERFACE).await.unwrap();
        let _device = Stage::new(Kind::Userspace).open(None).await;
        links.configure(INTERFACE, &config(1)).await.unwrap();
        assert_eq!(links.configure(INTERFACE, &config(1)).await.unwrap(), 0);
        assert_eq!(links.overlaps(&overlay(), INTERFACE).await.unwrap(), before);
        links.deconfigure(INTERFACE).await.unwrap();
        assert_eq!(links.overlaps(&overlay(), "none").await.unwrap(), before);
    });
}

fn ipv6_that_is_off_is_turned_on_for_our_interface() {
    Host::new().run(async {
        std::fs::write("/proc/sys/net/ipv6/conf/default/disable_ipv6", "1").unwrap();
        let _device = Stage::new(Kind::Userspace).open(None).await;
        let links = Links::open().unwrap();
        links.configure(INTERFACE, &config(1)).await.unwrap();
        // Bound by its address, which therefore is there.
        std::net::UdpSocket::bind((config(1).addresses.v6, 0)).unwrap();
        assert_eq!(std::fs::read_to_string("/proc/sys/net/ipv6/conf/default/disable_ipv6").unwrap().trim(), "1");
        assert_eq!(links.configure(INTERFACE, &config(1)).await.unwrap(), 0);
    });
}

/// A host with one cable, `eth0`, whose other end, `far`, is up as well.
fn cabled() -> Host {
    let host = Host::new();
    host.run(async { netlink().link().add(LinkVeth::new("eth0", "far").build()).execute().await.unwrap() });
    host.address("far", &[]);
    host.address("eth0", &["192.0.2.5/24", "2001:db8::5/64"]);
    host
}

fn offered(underlay: &Underlay) -> Vec<String> {
    let mut addresses: Vec<IpAddr> = underlay.addresses.iter().map(|found| found.address).collect();
    addresses.sort();
    addresses.iter().map(ToString::to_string).collect()
}

fn overlay() -> Overlay {
    Overlay::new("10.9.0.0/16".parse().unwrap(), "fd00:9::/48".parse().unwrap()).unwrap()
}

fn config(n: u32) -> LinkConfig {
    LinkConfig { addresses: overlay().addresses(n).unwrap(), overlay: overlay(), mtu: 1_420 }
}
