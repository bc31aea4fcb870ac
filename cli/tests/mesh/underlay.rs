//! What daemons do on the underlay: mark what they send, ask for names anew, and say when nothing of it helps in time.

use crate::in_lab;
use crate::machine::{Machine, text};
use mesh_cli::lab::Host;
use rtnetlink::packet_route::rule::RuleAction;
use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex};
use tokio::net::UdpSocket;

const MARK: u32 = 42;

#[test]
fn all_that_a_node_sends_outside_the_mesh_bears_its_mark() {
    in_lab("underlay::all_that_a_node_sends_outside_the_mesh_bears_its_mark", async |mut lab| {
        let first = Machine::new(&mut lab, "first", 1).await;
        let second = Machine::new(&mut lab, "second", 2).await;
        let made = first.json(&["init", "--advertise", "192.0.2.1"]).await;
        let token = made["token"].as_str().unwrap();

        forbid_unmarked(&second).await;
        assert_eq!(second.run(&["join", token]).await.status.code(), Some(5), "nothing gets out without a mark");
        second.stop("node").await;

        let _meshd = second.meshd(&["--fwmark", &MARK.to_string()]);
        second.until("meshd answers", async || second.run(&["status"]).await.status.success()).await;
        second.json(&["join", token]).await;
        second.until("it has a session", async || has_session(&second).await).await;
        second.until_it_pings("first").await;
    });
}

#[test]
fn a_coordinator_is_found_where_its_name_leads_at_that_moment() {
    in_lab("underlay::a_coordinator_is_found_where_its_name_leads_at_that_moment", async |mut lab| {
        let first = Machine::new(&mut lab, "first", 1).await;
        let second = Machine::new(&mut lab, "second", 2).await;
        let names = lab.host("names", &[Ipv4Addr::new(192, 0, 2, 53).into()]).await.unwrap();
        let leads_to = Arc::new(Mutex::new(Ipv4Addr::new(192, 0, 2, 1)));
        serve_names(&names, leads_to.clone());
        let configuration = lab.directory().join("resolv.conf");
        std::fs::write(&configuration, "nameserver 192.0.2.53\n").unwrap();
        mount_over(&configuration, "/etc/resolv.conf");

        let made = first.json(&["init", "--advertise", "coordinator.example.com"]).await;
        second.json(&["join", made["token"].as_str().unwrap()]).await;
        second.until("it has a session", async || has_session(&second).await).await;

        first.stop("coordinator").await;
        second.until("it has none any more", async || !has_session(&second).await).await;
        let elsewhere = Ipv4Addr::new(192, 0, 2, 101);
        lab.readdress(&first.host, &[elsewhere.into()]).await.unwrap();
        *leads_to.lock().unwrap() = elsewhere;
        first.json(&["init", "--advertise", "coordinator.example.com"]).await;
        second.until("it has a session at the new address", async || has_session(&second).await).await;
    });
}

#[test]
fn a_key_that_is_not_renewed_is_warned_of_before_its_deadline() {
    in_lab("underlay::a_key_that_is_not_renewed_is_warned_of_before_its_deadline", async |mut lab| {
        let first = Machine::new(&mut lab, "first", 1).await;
        first.json(&["init", "--advertise", "192.0.2.1", "--default-key-ttl", "10s"]).await;
        assert_eq!(first.json(&["status"]).await["warnings"], serde_json::json!([]));
        first.kill("coordinator").await;
        let said = "the lease of this node's key ends at";
        first
            .until("it is warned of", async || {
                let status = first.json(&["status"]).await;
                let warnings = status["warnings"].as_array().unwrap().iter();
                let in_json = warnings.filter_map(|warning| warning.as_str()).any(|warning| warning.starts_with(said));
                let shown = text(&first.run(&["status"]).await.stderr);
                in_json && shown.contains(&format!("warning: {said}"))
            })
            .await;
    });
}

async fn has_session(machine: &Machine) -> bool {
    machine.json(&["status"]).await["coordinators"][0]["session"] == true
}

/// Lets only marked packets leave the host.
async fn forbid_unmarked(machine: &Machine) {
    let links = machine.links();
    // The local table comes before, and the main one behind.
    let marked = links.rule().add().v4().fw_mark(MARK).priority(100).table_id(254).action(RuleAction::ToTable);
    marked.execute().await.unwrap();
    let others = links.rule().add().v4().priority(200).action(RuleAction::Unreachable);
    others.execute().await.unwrap();
}

/// Answers every question for an address with the one that `leads_to` has, good for an hour.
fn serve_names(host: &Host, leads_to: Arc<Mutex<Ipv4Addr>>) {
    let socket = host
        .enter(|| {
            let socket = std::net::UdpSocket::bind("0.0.0.0:53")?;
            socket.set_nonblocking(true)?;
            Ok(UdpSocket::from_std(socket)?)
        })
        .unwrap();
    tokio::spawn(async move {
        let mut query = [0; 512];
        while let Ok((length, from)) = socket.recv_from(&mut query).await {
            let address = *leads_to.lock().unwrap();
            if let Some(reply) = reply(&query[..length], address) {
                socket.send_to(&reply, from).await.unwrap();
            }
        }
    });
}

/// The reply to a query of one question (RFC 1035, 4): the address if it asks for one of IPv4, else nothing.
fn reply(query: &[u8], address: Ipv4Addr) -> Option<Vec<u8>> {
    const HEADER: usize = 12;
    let name = query.get(HEADER..)?.iter().position(|&length| length == 0)? + 1;
    let question = query.get(HEADER..HEADER + name + 4)?;
    let answers = u8::from(question.ends_with(&[0, 1, 0, 1]));
    let mut reply = query[..2].to_vec();
    reply.extend([0x81, 0x80, 0, 1, 0, answers, 0, 0, 0, 0]);
    reply.extend(question);
    if answers == 1 {
        // The name is the one in the question; type, class, an hour to live, four bytes.
        reply.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0x0e, 0x10, 0, 4]);
        reply.extend(address.octets());
    }
    Some(reply)
}

/// Puts a file in the place of another, for this world alone.
fn mount_over(file: &std::path::Path, place: &str) {
    use nix::mount::{MsFlags, mount};
    mount(Some(file), place, None::<&str>, MsFlags::MS_BIND, None::<&str>).unwrap();
}
