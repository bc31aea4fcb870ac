//! `meshctl status`: this node, its coordinators and its peers.

use super::Context;
use crate::exit::{Exit, Failure};
use crate::output;
use crate::reach::{self, ask};
use mesh_proto::v1::{CoordinatorStatus, PeerStatus, SelfStatus, StatusReply, StatusRequest};
use mesh_types::{MeshDuration, MeshTime};
use serde::Serialize;

/// What `meshctl status --json` prints. Times are RFC 3339.
#[derive(Serialize)]
struct Status {
    phase: String,
    /// Null before the node has joined.
    #[serde(rename = "self")]
    own: Option<Own>,
    mesh: Option<String>,
    revision: u64,
    /// Whether the coordinator in session has contact to a leader.
    fresh: bool,
    time: Option<String>,
    coordinators: Vec<Coordinator>,
    peers: Vec<Peer>,
    /// On their way into the own tunnel.
    dropped_own_datagrams: u64,
    warnings: Vec<String>,
    version: String,
}

#[derive(Serialize)]
struct Own {
    id: String,
    name: String,
    addresses: Vec<String>,
    public_key: String,
    backend: Option<String>,
    interface: String,
    listen_port: Option<u32>,
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
    /// The last endpoint that was refused because it is reached through the mesh, and how many were.
    refused_endpoint: Option<String>,
    refused_endpoints: u64,
}

pub(super) async fn run(context: &Context, check: bool) -> Result<Exit, Failure> {
    let reply = ask(reach::ANSWER, reach::node(&context.paths).await?.status(StatusRequest {})).await?;
    let now = MeshTime(reply.time);
    let well = is_well(&reply);
    let status = Status::from(reply);
    if context.json() {
        output::json(&status);
    } else {
        print(&status, now);
    }
    Ok(if check && !well { Exit::Failed } else { Exit::Done })
}

/// Whether other nodes can reach this one, as far as it is up to this host: not while a lease that has ended keeps it out,
/// or interface or device are not as they should be.
fn is_well(reply: &StatusReply) -> bool {
    let alive = reply.self_.as_ref().and_then(|own| own.expires_at).is_some_and(|at| at > reply.time);
    reply.phase == "up" && alive && reply.trouble.is_none()
}

/// What is unknown comes empty.
fn known(text: String) -> Option<String> {
    Some(text).filter(|text| !text.is_empty())
}

impl From<StatusReply> for Status {
    fn from(reply: StatusReply) -> Self {
        let session = reply.session;
        Self {
            phase: reply.phase,
            own: reply.self_.map(Own::from),
            mesh: known(reply.mesh),
            revision: reply.revision,
            fresh: reply.fresh,
            time: (reply.time != 0).then(|| MeshTime(reply.time).to_string()),
            coordinators: reply.coordinators.into_iter().map(|found| Coordinator::new(found, session)).collect(),
            peers: reply.peers.into_iter().map(Peer::from).collect(),
            dropped_own_datagrams: reply.dropped_own_datagrams,
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
            backend: known(own.backend),
            interface: own.interface,
            listen_port: Some(own.listen_port).filter(|port| *port != 0),
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
            refused_endpoint: peer.refused_endpoint,
            refused_endpoints: peer.refused_endpoints,
        }
    }
}

fn print(status: &Status, now: MeshTime) {
    let Some(own) = &status.own else {
        output::line(format_args!("This host is not in a mesh ({}): `meshctl join TOKEN`", status.phase));
        return warn(status);
    };
    output::line(format_args!("{}  {}", first_line(own), output::verdict(&status.phase, status.phase == "up")));
    output::line(second_line(status, own, now));
    output::line("");
    print_coordinators(&status.coordinators);
    output::line("");
    print_peers(&status.peers, now);
    warn(status);
}

/// Who and where this node is. Nothing runs the tunnels while the interface is down, and who was removed has no port.
fn first_line(own: &Own) -> String {
    let port = own.listen_port.map(|port| format!("UDP {port}"));
    let how: Vec<String> = own.backend.iter().cloned().chain(port).collect();
    let how = if how.is_empty() { String::new() } else { format!(" ({})", how.join(", ")) };
    format!("{}  {}  {}{how}", own.name, own.addresses.join(", "), own.interface)
}

/// What it holds of the mesh, and whether that is the latest; while the interface is down there is no session on purpose.
fn second_line(status: &Status, own: &Own, now: MeshTime) -> String {
    let stale = match (status.phase.as_str(), status.fresh) {
        ("up", false) => ", not fresh: no session with a coordinator that has a leader",
        _ => "",
    };
    let expiry = own.expires_at.as_deref().map(|time| match left(time, now) {
        Some(left) => format!(", key valid until {time}, {left} from now"),
        None => format!(", key expired at {time}, {}", ago(time, now)),
    });
    let mesh = status.mesh.as_deref().unwrap_or("unknown");
    format!("mesh {mesh}, revision {}{}{stale}", status.revision, expiry.unwrap_or_default())
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
        output::table(["PEER", "ADDRESS", "ONLINE", "PATH", "ENDPOINT", "LATENCY", "HANDSHAKE", "RX", "TX", "EXPIRES"]);
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
            left(&peer.expires_at, now).map_or_else(|| "expired".to_owned(), |left| format!("in {left}")),
        ]);
    }
    output::print(&table);
}

/// What was kept out of the own tunnel, a line for each peer and one for all.
fn kept_out(status: &Status) -> Vec<String> {
    let refused = status.peers.iter().filter_map(|peer| {
        let endpoint = peer.refused_endpoint.as_ref()?;
        let (name, times) = (&peer.name, peer.refused_endpoints);
        Some(format!("{name} was heard from {endpoint}, which is reached through the mesh: refused {times} times"))
    });
    let dropped = Some(status.dropped_own_datagrams).filter(|dropped| *dropped > 0);
    let dropped = dropped.map(|dropped| format!("{dropped} own datagrams were kept from going through the own tunnel"));
    refused.chain(dropped).collect()
}

fn warn(status: &Status) {
    for line in kept_out(status) {
        output::note(line);
    }
    for warning in &status.warnings {
        output::note(format_args!("warning: {warning}"));
    }
}

fn yes(is: bool) -> &'static str {
    if is { "yes" } else { "no" }
}

fn ago(time: &str, now: MeshTime) -> String {
    parse(time).map_or_else(|| time.to_owned(), |then| format!("{} ago", span(now.since(then))))
}

/// The time left until `time`; none once it has come.
fn left(time: &str, now: MeshTime) -> Option<String> {
    parse(time).filter(|then| *then > now).map(|then| span(now.until(then)))
}

fn parse(time: &str) -> Option<MeshTime> {
    humantime::parse_rfc3339(time).ok().map(MeshTime::from_system)
}

/// A span in its two largest units: nobody plans a month by the second.
fn span(span: MeshDuration) -> String {
    const UNITS: [(u64, &str); 4] = [(86_400, "d"), (3_600, "h"), (60, "m"), (1, "s")];
    let secs = span.0 / 1_000;
    let first = UNITS.iter().position(|(unit, _)| secs >= *unit).unwrap_or(UNITS.len() - 1);
    let part = |index: usize| {
        let (unit, letter) = UNITS[index];
        let count = if index == first { secs / unit } else { secs % UNITS[index - 1].0 / unit };
        format!("{count}{letter}")
    };
    let parts: Vec<String> = (first..UNITS.len().min(first + 2)).map(part).collect();
    parts.join(" ")
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
        assert!(json["self"].is_null() && json["time"].is_null() && json["mesh"].is_null());
    }

    #[test]
    fn what_a_removed_node_does_not_have_is_null_and_not_shown() {
        let own = SelfStatus { name: "n".into(), interface: "mesh0".into(), ..SelfStatus::default() };
        let status = Status::from(StatusReply { phase: "left".into(), self_: Some(own), ..StatusReply::default() });
        assert!(first_line(status.own.as_ref().unwrap()).ends_with("mesh0"));
        let json = serde_json::to_value(status).unwrap();
        assert!(json["self"]["backend"].is_null() && json["self"]["listen_port"].is_null());
    }

    #[test]
    fn a_check_is_passed_by_a_member_with_a_live_lease_and_an_interface_that_stands() {
        let own = |expires_at| Some(SelfStatus { expires_at, ..SelfStatus::default() });
        let well = StatusReply { phase: "up".into(), time: 1_000, self_: own(Some(1_001)), ..StatusReply::default() };
        assert!(is_well(&well));
        assert!(!is_well(&StatusReply { phase: "down".into(), ..well.clone() }));
        assert!(!is_well(&StatusReply { self_: own(Some(1_000)), ..well.clone() }));
        assert!(!is_well(&StatusReply { trouble: Some("its port is taken".into()), ..well }));
    }

    #[test]
    fn the_time_that_a_key_has_left_is_shown() {
        let own = SelfStatus { expires_at: Some(90_061_000), ..SelfStatus::default() };
        let status = Status::from(StatusReply { phase: "up".into(), fresh: true, self_: Some(own), ..reply() });
        let line = |secs: u64| second_line(&status, status.own.as_ref().unwrap(), MeshTime(secs * 1_000));
        assert!(line(0).ends_with("1970-01-02T01:01:01Z, 1d 1h from now"), "{}", line(0));
        assert!(line(90_000).ends_with("1m 1s from now"), "{}", line(90_000));
        assert!(line(90_061).ends_with("key expired at 1970-01-02T01:01:01Z, 0s ago"), "{}", line(90_061));
        assert!(line(93_721).ends_with("1h 1m ago"), "{}", line(93_721));
    }

    #[test]
    fn a_node_that_is_down_says_no_more_than_it_knows_and_is_not_called_stale() {
        let lines = |phase: &str, backend: &str| {
            let own = SelfStatus { name: "n".into(), backend: backend.into(), listen_port: 7, ..SelfStatus::default() };
            let status = Status::from(StatusReply { phase: phase.into(), self_: Some(own), ..reply() });
            let own = status.own.as_ref().unwrap();
            (first_line(own), second_line(&status, own, MeshTime(0)))
        };
        let (first, second) = lines("down", "");
        assert!(first.ends_with("(UDP 7)") && !second.contains("not fresh"), "{first}\n{second}");
        let (first, second) = lines("up", "kernel");
        assert!(first.ends_with("(kernel, UDP 7)") && second.contains("not fresh"), "{first}\n{second}");
    }

    #[test]
    fn what_was_kept_out_of_the_own_tunnel_is_said_by_peer_and_address() {
        assert!(kept_out(&Status::from(reply())).is_empty());
        let mut reply = StatusReply { dropped_own_datagrams: 7, ..reply() };
        reply.peers[0].refused_endpoint = Some("10.99.0.2:51820".into());
        reply.peers[0].refused_endpoints = 3;
        let lines = kept_out(&Status::from(reply));
        assert!(lines[0].contains("node-2") && lines[0].contains("10.99.0.2:51820") && lines[0].contains("3 times"));
        assert!(lines[1].starts_with("7 own datagrams"));
    }

    #[test]
    fn sizes_read_well() {
        assert_eq!(size(0), "0 B");
        assert_eq!(size(1023), "1023 B");
        assert_eq!(size(1536), "1.5 KiB");
        assert_eq!(size(u64::MAX), "16777216.0 TiB");
    }
}
