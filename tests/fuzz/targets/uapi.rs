//! Requests of local clients: any text is read or refused without telling a secret, and what is told of a device reads as
//! the changes that make it.

#![no_main]

use arbitrary::{Arbitrary, Unstructured};
use libfuzzer_sys::fuzz_target;
use mesh_types::{PresharedKey, PrivateKey, PublicKey};
use mesh_wireguard::engine::{Change, DeviceState, PeerChange, PeerChangeKind, PeerState};
use mesh_wireguard::uapi::text::{Request, describe, parse};
use std::fmt::Write as _;
use std::net::SocketAddr;
use std::time::{Duration, SystemTime};

#[derive(Debug, Arbitrary)]
enum Input<'a> {
    Text(&'a str),
    Lines(Vec<(u8, Value<'a>)>),
    Device(Device),
}

#[derive(Debug, Arbitrary)]
enum Value<'a> {
    Text(&'a str),
    Number(i64),
    True,
    Key([u8; 32]),
    Zero,
    Endpoint(SocketAddr),
    Prefix([u8; 16], bool, u8),
}

#[derive(Debug, Arbitrary)]
struct Device {
    private_key: Option<[u8; 32]>,
    listen_port: u16,
    fwmark: u32,
    peers: Vec<Peer>,
}

#[derive(Debug, Arbitrary)]
struct Peer {
    key: [u8; 32],
    preshared_key: Option<[u8; 32]>,
    endpoint: Option<SocketAddr>,
    keepalive: Option<u16>,
    allowed_ips: Vec<([u8; 16], bool, u8)>,
    last_handshake: Option<u64>,
    bytes: (u64, u64),
}

const KEYS: [&str; 15] = [
    "private_key",
    "listen_port",
    "fwmark",
    "replace_peers",
    "public_key",
    "remove",
    "update_only",
    "preshared_key",
    "endpoint",
    "persistent_keepalive_interval",
    "replace_allowed_ips",
    "allowed_ip",
    "protocol_version",
    "get",
    "",
];

fuzz_target!(|bytes: &[u8]| {
    let Ok(input) = Input::arbitrary_take_rest(Unstructured::new(bytes)) else { return };
    match input {
        Input::Text(text) => check_any(text),
        Input::Lines(lines) => check_any(&request(&lines)),
        Input::Device(device) => check_device(&state(device)),
    }
});

fn request(lines: &[(u8, Value<'_>)]) -> String {
    let mut text = "set=1\n".to_owned();
    for (key, value) in lines {
        let key = KEYS[usize::from(*key) % KEYS.len()];
        let value = match value {
            Value::Text(text) => (*text).to_owned(),
            Value::Number(number) => number.to_string(),
            Value::True => "true".to_owned(),
            Value::Key(bytes) => hex(bytes),
            Value::Zero => hex(&[0; 32]),
            Value::Endpoint(endpoint) => endpoint.to_string(),
            Value::Prefix(address, v4, length) => prefix(address, *v4, *length),
        };
        let _ = writeln!(text, "{key}={value}");
    }
    text
}

fn prefix(address: &[u8; 16], v4: bool, length: u8) -> String {
    match (v4, *address) {
        (true, [a, b, c, d, ..]) => format!("{}/{}", std::net::Ipv4Addr::from([a, b, c, d]), length % 34),
        (false, octets) => format!("{}/{}", std::net::Ipv6Addr::from(octets), length % 130),
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn check_any(text: &str) {
    match parse(text) {
        Ok(Request::Get) => assert!(text.lines().eq(["get=1"]) || text.starts_with("get=1")),
        Ok(Request::Set(changes)) => {
            assert!(changes.len() < text.lines().count(), "a line makes one change at most");
            let first = changes.iter().position(|change| matches!(change, Change::Peer(_))).unwrap_or(changes.len());
            assert!(changes[first..].iter().all(|change| matches!(change, Change::Peer(_))), "peers come last");
        }
        Err(error) => {
            let told = error.to_string();
            for line in text.lines() {
                let secret = line.strip_prefix("private_key=").or_else(|| line.strip_prefix("preshared_key="));
                // What stands elsewhere too may have been told from there.
                let alone =
                    |secret: &&str| secret.len() > 16 && secret.is_ascii() && text.matches(*secret).count() == 1;
                if let Some(secret) = secret.filter(alone) {
                    // A secret may happen to be made of the error's own words; but none changes what is told.
                    let other = secret.replace(|c: char| c.is_ascii_hexdigit(), "1");
                    let other = other.replace(|c: char| !c.is_ascii_hexdigit(), "x");
                    let of_other = parse(&text.replacen(secret, &other, 1)).map_err(|error| error.to_string());
                    assert!(of_other.is_err_and(|of_other| of_other == told), "{told}");
                }
            }
        }
    }
}

fn state(device: Device) -> DeviceState {
    let peer = |peer: Peer| PeerState {
        key: PublicKey::from_bytes(peer.key),
        preshared_key: peer.preshared_key.filter(|key| *key != [0; 32]).map(PresharedKey::from_bytes),
        endpoint: peer.endpoint.map(without_flow),
        refused_endpoints: 0,
        last_refused_endpoint: None,
        keepalive: peer.keepalive.filter(|seconds| *seconds > 0),
        allowed_ips: peer
            .allowed_ips
            .iter()
            .filter_map(|(address, v4, length)| prefix(address, *v4, *length).parse().ok())
            .collect(),
        last_handshake: peer.last_handshake.map(|nanos| SystemTime::UNIX_EPOCH + Duration::from_nanos(nanos)),
        last_received: None,
        rx_bytes: peer.bytes.0,
        tx_bytes: peer.bytes.1,
    };
    DeviceState {
        private_key: device.private_key.filter(|key| *key != [0; 32]).map(PrivateKey::from_bytes),
        public_key: None,
        listen_port: device.listen_port,
        fwmark: device.fwmark,
        looped_datagrams: 0,
        peers: device.peers.into_iter().map(peer).collect(),
    }
}

/// The flow label of an IPv6 socket address has no place in its text.
fn without_flow(endpoint: SocketAddr) -> SocketAddr {
    match endpoint {
        SocketAddr::V6(mut v6) => {
            v6.set_flowinfo(0);
            v6.into()
        }
        v4 => v4,
    }
}

fn check_device(state: &DeviceState) {
    let mut told = String::new();
    describe(state, &mut told);
    // What counts and is not set.
    let counts = ["last_handshake_time_sec=", "last_handshake_time_nsec=", "tx_bytes=", "rx_bytes="];
    let settings = told.lines().filter(|line| !counts.iter().any(|count| line.starts_with(count)));
    let text = std::iter::once("set=1").chain(settings).collect::<Vec<_>>().join("\n");
    let mut expected: Vec<Change> = state.private_key.iter().map(|key| Change::PrivateKey(Some(key.clone()))).collect();
    expected.extend((state.listen_port != 0).then_some(Change::ListenPort(state.listen_port)));
    expected.extend((state.fwmark != 0).then_some(Change::FwMark(state.fwmark)));
    for peer in &state.peers {
        expected.push(Change::Peer(PeerChange {
            preshared_key: Some(peer.preshared_key.clone()),
            endpoint: peer.endpoint,
            keepalive: Some(peer.keepalive),
            allowed_ips: peer.allowed_ips.clone(),
            ..PeerChange::new(peer.key, PeerChangeKind::Set)
        }));
    }
    assert_eq!(parse(&text), Ok(Request::Set(expected)), "{text}");
}
