//! `meshctl status`: this node, its coordinators and its peers.

use super::Context;
use crate::exit::{Exit, Failure};
use crate::output;
use crate::reach::{self, ask};
use mesh_proto::v1::{CoordinatorStatus, PeerStatus, SelfStatus, StatusReply, StatusRequest};
use mesh_types::MeshTime;
use serde::Serialize;

/// What `meshctl status --json` prints. Times are RFC 3339.
#[derive(Serialize)]
struct Status {
    phase: String,
    /// Null before the node has joined.
    #[serde(rename = "self")]
    own: Option<Own>,
    mesh: String,
    revision: u64,
    /// Whether the coordinator in session has contact to a leader.
    fresh: bool,
    time: Option<String>,
    coordinators: Vec<Coordinator>,
    peers: Vec<Peer>,
    warnings: Vec<String>,
    version: String,
}

#[derive(Serialize)]
struct Own {
    id: String,
    name: String,
    addresses: Vec<String>,
    public_key: String,
    backend: String,
    interface: String,
    listen_port: u32,
    expires_at: Option<String>,
}

#[derive(Serialize)]
struct Coordinator {
    id: u64,
    name: String,
    address: String,
    addresses: Vec<String>,
    role: String,
    reachable: bool,
    /// Whether this node's session is with it.
    session: bool,
}

#[derive(Serialize)]
struct Peer {
    id: String,
    name: String,
    addresses: Vec<String>,
    public_key: String,
    endpoint: Option<String>,
    path: String,
    online: bool,
    last_handshake: Option<String>,
    latency_ms: Option<f64>,
    rx_bytes: u64,
    tx_bytes: u64,
    expires_at: String,
}

pub(super) async fn run(context: &Context, check: bool) -> Result<Exit, Failure> {
    let reply = ask(reach::ANSWER, reach::node(&context.paths).await?.status(StatusRequest {})).await?;
    let now = MeshTime(reply.time);
    let status = Status::from(reply);
    if context.json() {
        output::json(&status);
    } else {
        print(&status, now);
    }
    Ok(if check && status.phase != "up" { Exit::Failed } else { Exit::Done })
}

impl From<StatusReply> for Status {
    fn from(reply: StatusReply) -> Self {
        let session = reply.session;
        Self {
            phase: reply.phase,
            own: reply.self_.map(Own::from),
            mesh: reply.mesh,
            revision: reply.revision,
            fresh: reply.fresh,
            time: (reply.time != 0).then(|| MeshTime(reply.time).to_string()),
            coordinators: reply.coordinators.into_iter().map(|found| Coordinator::new(found, session)).collect(),
            peers: reply.peers.into_iter().map(Peer::from).collect(),
            warnings: reply.warnings,
            version: reply.software,
        }
    }
}

impl From<SelfStatus> for Own {
    fn from(own: SelfStatus) -> Self {
        Self {
            id: own.id,
            name: own.name,
            addresses: own.addresses,
            public_key: own.public_key,
            backend: own.backend,
            interface: own.interface,
            listen_port: own.listen_port,
            expires_at: own.expires_at.map(|time| MeshTime(time).to_string()),
        }
    }
}

impl Coordinator {
    fn new(found: CoordinatorStatus, session: Option<u64>) -> Self {
        Self {
            id: found.id,
            name: found.name,
            address: found.addresses.first().cloned().unwrap_or_default(),
            addresses: found.addresses,
            role: found.role,
            reachable: found.reachable,
            session: session == Some(found.id),
        }
    }
}

impl From<PeerStatus> for Peer {
    fn from(peer: PeerStatus) -> Self {
        Self {
            id: peer.id,
            name: peer.name,
            addresses: peer.addresses,
            public_key: peer.public_key,
            endpoint: peer.endpoint,
            path: peer.path,
            online: peer.online,
            last_handshake: peer.last_handshake.map(|time| MeshTime(time).to_string()),
            latency_ms: peer.latency_ms,
            rx_bytes: peer.rx_bytes,
            tx_bytes: peer.tx_bytes,
            expires_at: MeshTime(peer.expires_at).to_string(),
        }
    }
}

fn print(status: &Status, now: MeshTime) {
    let Some(own) = &status.own else {
        output::line(format_args!("This host is not in a mesh ({}): `meshctl join TOKEN`", status.phase));
        return warn(status);
    };
    output::line(format_args!("{}  {}", first_line(own), output::verdict(&status.phase, status.phase == "up")));
    output::line(second_line(status, own));
    output::line("");
    print_coordinators(&status.coordinators);
    output::line("");
    print_peers(&status.peers, now);
    warn(status);
}

/// Who and where this node is. Nothing runs the tunnels while the interface is down.
fn first_line(own: &Own) -> String {
    let engine = if own.backend.is_empty() { String::new() } else { format!("{}, ", own.backend) };
    format!("{}  {}  {} ({engine}UDP {})", own.name, own.addresses.join(", "), own.interface, own.listen_port)
}

/// What it holds of the mesh, and whether that is the latest; while the interface is down there is no session on purpose.
fn second_line(status: &Status, own: &Own) -> String {
    let stale = match (status.phase.as_str(), status.fresh) {
        ("up", false) => ", not fresh: no session with a coordinator that has a leader",
        _ => "",
    };
    let expiry = own.expires_at.as_deref().map(|time| format!(", key valid until {time}")).unwrap_or_default();
    format!("mesh {}, revision {}{expiry}{stale}", status.mesh, status.revision)
}

fn print_coordinators(coordinators: &[Coordinator]) {
    let mut table = output::table(["COORDINATOR", "ADDRESS", "ROLE", "REACHABLE"]);
    for coordinator in coordinators {
        let mark = if coordinator.session { " (session)" } else { "" };
        table.add_row([
            &coordinator.name,
            &coordinator.address,
            &coordinator.role,
            &format!("{}{mark}", output::verdict(yes(coordinator.reachable), coordinator.reachable)),
        ]);
    }
    output::print(&table);
}

fn print_peers(peers: &[Peer], now: MeshTime) {
    let mut table =
        output::table(["PEER", "ADDRESS", "ONLINE", "PATH", "ENDPOINT", "LATENCY", "HANDSHAKE", "RX", "TX"]);
    for peer in peers {
        let handshake = peer.last_handshake.as_deref().map(|time| ago(time, now)).unwrap_or_else(|| "never".to_owned());
        table.add_row([
            peer.name.clone(),
            peer.addresses.first().cloned().unwrap_or_default(),
            output::verdict(yes(peer.online), peer.online),
            output::verdict(&peer.path, peer.path != "none"),
            peer.endpoint.clone().unwrap_or_default(),
            peer.latency_ms.map(|latency| format!("{latency:.1} ms")).unwrap_or_default(),
            handshake,
            size(peer.rx_bytes),
            size(peer.tx_bytes),
        ]);
    }
    output::print(&table);
}

fn warn(status: &Status) {
    for warning in &status.warnings {
        output::note(format_args!("warning: {warning}"));
    }
}

fn yes(is: bool) -> &'static str {
    if is { "yes" } else { "no" }
}

fn ago(time: &str, now: MeshTime) -> String {
    match humantime::parse_rfc3339(time) {
        Ok(then) => {
            let secs = now.since(MeshTime::from_system(then)).0 / 1000;
            format!("{} ago", humantime::format_duration(std::time::Duration::from_secs(secs)))
        }
        Err(_) => time.to_owned(),
    }
}

fn size(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut value = bytes as f64;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    if unit == 0 { format!("{bytes} B") } else { format!("{value:.1} {}", UNITS[unit]) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reply() -> StatusReply {
        StatusReply {
            phase: "up".into(),
            self_: Some(SelfStatus { name: "node-1".into(), backend: "userspace".into(), ..SelfStatus::default() }),
            coordinators: vec![CoordinatorStatus {
                id: 2,
                addresses: vec!["192.0.2.2:8551".into(), "[2001:db8::2]:8551".into()],
                ..CoordinatorStatus::default()
            }],
            peers: vec![PeerStatus { name: "node-2".into(), last_handshake: Some(1_000), ..PeerStatus::default() }],
            session: Some(2),
            ..StatusReply::default()
        }
    }

    #[test]
    fn the_json_has_the_fields_that_scripts_rely_on() {
        let json = serde_json::to_value(Status::from(reply())).unwrap();
        let has = |value: &serde_json::Value, fields: &[&str]| {
            for field in fields {
                assert!(value.get(field).is_some(), "{field} is missing in {value}");
            }
        };
        has(&json, &["self", "revision", "coordinators", "peers"]);
        has(&json["self"], &["name", "addresses", "public_key", "backend", "expires_at"]);
        has(&json["coordinators"][0], &["name", "address", "role", "reachable"]);
        let peer = ["name", "addresses", "public_key", "endpoint", "path", "online", "last_handshake", "latency_ms"];
        has(&json["peers"][0], &peer);
        has(&json["peers"][0], &["rx_bytes", "tx_bytes", "expires_at"]);
        assert_eq!(json["coordinators"][0]["address"], "192.0.2.2:8551");
        assert_eq!(json["coordinators"][0]["session"], true);
        assert_eq!(json["peers"][0]["last_handshake"], "1970-01-01T00:00:01Z");
    }

    #[test]
    fn before_joining_self_is_null() {
        let json = serde_json::to_value(Status::from(StatusReply::default())).unwrap();
        assert!(json["self"].is_null() && json["time"].is_null());
    }

    #[test]
    fn a_node_that_is_down_says_no_more_than_it_knows_and_is_not_called_stale() {
        let lines = |phase: &str, backend: &str| {
            let own = SelfStatus { name: "n".into(), backend: backend.into(), listen_port: 7, ..SelfStatus::default() };
            let status = Status::from(StatusReply { phase: phase.into(), self_: Some(own), ..reply() });
            let own = status.own.as_ref().unwrap();
            (first_line(own), second_line(&status, own))
        };
        let (first, second) = lines("down", "");
        assert!(first.ends_with("(UDP 7)") && !second.contains("not fresh"), "{first}\n{second}");
        let (first, second) = lines("up", "kernel");
        assert!(first.ends_with("(kernel, UDP 7)") && second.contains("not fresh"), "{first}\n{second}");
    }

    #[test]
    fn sizes_read_well() {
        assert_eq!(size(0), "0 B");
        assert_eq!(size(1023), "1023 B");
        assert_eq!(size(1536), "1.5 KiB");
        assert_eq!(size(u64::MAX), "16777216.0 TiB");
    }
}
