//! The text of WireGuard's cross-platform userspace API (wireguard.com/xplatform): requests in, answers out. Pure.

use crate::engine::{Change, DeviceState, PeerChange, PeerChangeKind, since_1970};
use mesh_types::{AllowedIp, PresharedKey, PrivateKey, PublicKey};
use std::fmt;
use std::net::SocketAddr;
use thiserror::Error;
use zeroize::Zeroizing;

/// What a client asks.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Request {
    /// Tell all.
    Get,
    /// Change these.
    Set(Vec<Change>),
}

/// Why a request was not understood.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
pub enum RequestError {
    /// Not an operation. The key of the first line alone.
    #[error("the first line is neither get=1 nor set=1; its key is {0:?}")]
    Operation(String),
    /// Not `key=value`: the number of the line, which may be a secret as a whole.
    #[error("line {0} is not of the form key=value")]
    Form(usize),
    /// A key that is not known where it stands.
    #[error("unknown key {0:?}")]
    Key(String),
    /// The value is not one of this key.
    #[error("value of {key} not understood: {value:?}")]
    Value {
        /// The key.
        key: String,
        /// The value; secrets are left out.
        value: String,
    },
}

/// Reads a request, given without the empty line that ends it.
pub fn parse(text: &str) -> Result<Request, RequestError> {
    let mut lines = text.lines();
    match lines.next() {
        Some("get=1") => Ok(Request::Get),
        Some("set=1") => Ok(Request::Set(parse_changes(lines)?)),
        other => {
            // A client that leaves the operation out may begin with a secret, whose value is not repeated.
            let (key, _) = other.and_then(|line| line.split_once('=')).unwrap_or_default();
            Err(RequestError::Operation(key.to_owned()))
        }
    }
}

fn parse_changes<'a>(lines: impl Iterator<Item = &'a str>) -> Result<Vec<Change>, RequestError> {
    let mut changes = Vec::new();
    // The first was the operation.
    for (line, number) in lines.zip(2..) {
        let (key, value) = line.split_once('=').ok_or(RequestError::Form(number))?;
        if key == "public_key" {
            let key = PublicKey::from_bytes(*parse_key(key, value)?);
            changes.push(Change::Peer(PeerChange::new(key, PeerChangeKind::Set)));
            continue;
        }
        match changes.last_mut() {
            // From the first peer on, all lines are of the peer named last.
            Some(Change::Peer(peer)) => parse_of_peer(peer, key, value)?,
            _ => changes.push(parse_of_device(key, value)?),
        }
    }
    Ok(changes)
}

fn parse_of_device(key: &str, value: &str) -> Result<Change, RequestError> {
    match key {
        "private_key" => {
            let bytes = parse_key(key, value)?;
            Ok(Change::PrivateKey((*bytes != [0; 32]).then(|| PrivateKey::from_bytes(*bytes))))
        }
        "listen_port" => Ok(Change::ListenPort(parse_number(key, value)?)),
        "fwmark" => Ok(Change::FwMark(parse_number(key, value)?)),
        "replace_peers" => parse_true(key, value).map(|()| Change::RemoveAllPeers),
        _ => Err(RequestError::Key(key.to_owned())),
    }
}

fn parse_of_peer(peer: &mut PeerChange, key: &str, value: &str) -> Result<(), RequestError> {
    match key {
        "remove" => {
            parse_true(key, value)?;
            peer.kind = PeerChangeKind::Remove;
        }
        "update_only" => {
            parse_true(key, value)?;
            peer.kind = PeerChangeKind::Update;
        }
        "preshared_key" => {
            let bytes = parse_key(key, value)?;
            peer.preshared_key = Some((*bytes != [0; 32]).then(|| PresharedKey::from_bytes(*bytes)));
        }
        "endpoint" => peer.endpoint = Some(value.parse::<SocketAddr>().map_err(|_| invalid(key, value))?),
        "persistent_keepalive_interval" => {
            let seconds = parse_number(key, value)?;
            peer.keepalive = Some((seconds != 0).then_some(seconds));
        }
        "replace_allowed_ips" => {
            parse_true(key, value)?;
            peer.replace_allowed_ips = true;
            peer.allowed_ips.clear();
        }
        "allowed_ip" => peer.allowed_ips.push(value.parse::<AllowedIp>().map_err(|_| invalid(key, value))?),
        "protocol_version" if value == "1" => {}
        "protocol_version" => return Err(invalid(key, value)),
        _ => return Err(RequestError::Key(key.to_owned())),
    }
    Ok(())
}

fn parse_key(key: &str, value: &str) -> Result<Zeroizing<[u8; 32]>, RequestError> {
    let mut bytes = Zeroizing::new([0; 32]);
    let digits = value.as_bytes();
    // What is wrong with a key is not repeated: it may be a secret.
    let wrong = || invalid(key, "(not 64 hex digits)");
    if digits.len() != 64 {
        return Err(wrong());
    }
    for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
        let digit = |c: u8| char::from(c).to_digit(16).ok_or_else(wrong);
        *byte = (digit(pair[0])? * 16 + digit(pair[1])?) as u8;
    }
    Ok(bytes)
}

fn parse_number<N: std::str::FromStr>(key: &str, value: &str) -> Result<N, RequestError> {
    value.parse().map_err(|_| invalid(key, value))
}

fn parse_true(key: &str, value: &str) -> Result<(), RequestError> {
    if value == "true" { Ok(()) } else { Err(invalid(key, value)) }
}

fn invalid(key: &str, value: &str) -> RequestError {
    RequestError::Value { key: key.to_owned(), value: value.to_owned() }
}

/// Writes a device's state, without the line that ends it. Keys are among it.
pub fn describe(state: &DeviceState, out: &mut impl fmt::Write) {
    // Writing to text cannot fail.
    let mut line = |key: &str, value: &dyn fmt::Display| {
        let _ = writeln!(out, "{key}={value}");
    };
    if let Some(key) = &state.private_key {
        line("private_key", &Hex(key.as_bytes()));
    }
    if state.listen_port != 0 {
        line("listen_port", &state.listen_port);
    }
    if state.fwmark != 0 {
        line("fwmark", &state.fwmark);
    }
    for peer in &state.peers {
        line("public_key", &Hex(peer.key.as_bytes()));
        let none = PresharedKey::from_bytes([0; 32]);
        line("preshared_key", &Hex(peer.preshared_key.as_ref().unwrap_or(&none).as_bytes()));
        line("protocol_version", &1);
        if let Some(endpoint) = peer.endpoint {
            line("endpoint", &endpoint);
        }
        let handshake = peer.last_handshake.map(since_1970).unwrap_or_default();
        line("last_handshake_time_sec", &handshake.as_secs());
        line("last_handshake_time_nsec", &handshake.subsec_nanos());
        line("tx_bytes", &peer.tx_bytes);
        line("rx_bytes", &peer.rx_bytes);
        line("persistent_keepalive_interval", &peer.keepalive.unwrap_or_default());
        for allowed in &peer.allowed_ips {
            line("allowed_ip", allowed);
        }
    }
}

/// Bytes in hex.
struct Hex<'a>(&'a [u8]);

impl fmt::Display for Hex<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::PeerState;

    const KEY: &str = "a8dac1d8a70a751f0f699fb14ba1cff7b79cf4fbd8f09f44c6e6a90d0369604f";

    fn set(lines: &str) -> Result<Vec<Change>, RequestError> {
        match parse(&format!("set=1\n{lines}")) {
            Ok(Request::Set(changes)) => Ok(changes),
            Ok(Request::Get) => panic!("a set is no get"),
            Err(error) => Err(error),
        }
    }

    #[test]
    fn a_device_and_its_peers_are_read_line_by_line() {
        let changes = set(&format!(
            "private_key={KEY}\nlisten_port=12912\nfwmark=7\nreplace_peers=true\npublic_key={KEY}\nupdate_only=true\n\
             endpoint=[abcd:23::33%2]:51820\nreplace_allowed_ips=true\nallowed_ip=192.168.4.4/32\nallowed_ip=fd00::7/64\n\
             persistent_keepalive_interval=111\nprotocol_version=1\npublic_key={KEY}\nremove=true"
        ));
        let changes = changes.unwrap();
        assert_eq!(changes.len(), 6);
        assert_eq!(changes[1..4], [Change::ListenPort(12_912), Change::FwMark(7), Change::RemoveAllPeers]);
        let Change::Peer(peer) = &changes[4] else { panic!("{changes:?}") };
        assert_eq!(
            (peer.kind, peer.keepalive, peer.replace_allowed_ips),
            (PeerChangeKind::Update, Some(Some(111)), true)
        );
        assert_eq!(peer.endpoint.map(|endpoint| endpoint.port()), Some(51_820));
        let allowed: Vec<_> = peer.allowed_ips.iter().map(ToString::to_string).collect();
        assert_eq!(allowed, ["192.168.4.4/32", "fd00::/64"]);
        assert!(matches!(&changes[5], Change::Peer(peer) if peer.kind == PeerChangeKind::Remove));
    }

    #[test]
    fn zeroes_take_keys_and_keepalives_away() {
        let zero = "0".repeat(64);
        let changes = set(&format!(
            "private_key={zero}\npublic_key={KEY}\npreshared_key={zero}\npersistent_keepalive_interval=0"
        ));
        let changes = changes.unwrap();
        assert_eq!(changes[0], Change::PrivateKey(None));
        let Change::Peer(peer) = &changes[1] else { panic!("{changes:?}") };
        assert_eq!((&peer.preshared_key, peer.keepalive), (&Some(None), Some(None)));
    }

    #[test]
    fn nonsense_is_named_and_secrets_are_not() {
        for (lines, told) in [
            ("listen_port=65536", "listen_port"),
            ("fwmark=x", "fwmark"),
            ("allowed_ip=10.0.0.0/8", "allowed_ip"),
            ("replace_peers=false", "replace_peers"),
            ("no equals sign", "line 2"),
            (&format!("public_key={KEY}\nendpoint=example.com:1"), "example.com:1"),
            (&format!("public_key={KEY}\nprotocol_version=2"), "protocol_version"),
            (&format!("public_key={KEY}\nlisten_port=1"), "listen_port"),
        ] {
            let error = set(lines).unwrap_err().to_string();
            assert!(error.contains(told), "{lines}: {error}");
        }
        let error = set(&format!("private_key={}", &KEY[1..])).unwrap_err().to_string();
        assert!(!error.contains(&KEY[1..9]), "{error}");
        let error = parse(&format!("preshared_key={KEY}")).unwrap_err().to_string();
        assert!(error.contains("preshared_key") && !error.contains(&KEY[1..9]), "{error}");
        assert_eq!(set(&format!("listen_port=1\nprivate_key {KEY}")), Err(RequestError::Form(3)));
        assert!(parse("").is_err() && parse("get=2").is_err());
    }

    #[test]
    fn what_is_described_reads_as_the_change_that_makes_it() {
        let state = DeviceState {
            private_key: Some(PrivateKey::from_bytes([7; 32])),
            public_key: None,
            listen_port: 51_820,
            fwmark: 3,
            looped_datagrams: 0,
            peers: vec![PeerState {
                key: KEY_BYTES,
                preshared_key: None,
                endpoint: Some("[2001:db8::1]:7".parse().unwrap()),
                refused_endpoints: 0,
                last_refused_endpoint: None,
                keepalive: Some(25),
                allowed_ips: vec!["10.9.0.0/24".parse().unwrap()],
                last_handshake: None,
                last_received: None,
                rx_bytes: 5,
                tx_bytes: 6,
            }],
        };
        let mut told = String::new();
        describe(&state, &mut told);
        let counters = ["last_handshake_time_sec=0\n", "last_handshake_time_nsec=0\n", "tx_bytes=6\n", "rx_bytes=5\n"];
        assert!(counters.iter().all(|line| told.contains(line)), "{told}");
        let settings = counters.iter().fold(told.clone(), |text, line| text.replace(line, ""));
        let changes = set(&settings).unwrap();
        assert_eq!(changes[0], Change::PrivateKey(state.private_key.clone()));
        let Change::Peer(peer) = &changes[3] else { panic!("{changes:?}") };
        assert_eq!((peer.key, peer.endpoint, peer.keepalive), (KEY_BYTES, state.peers[0].endpoint, Some(Some(25))));
        assert_eq!(peer.allowed_ips, state.peers[0].allowed_ips);
    }

    const KEY_BYTES: PublicKey = PublicKey::from_bytes([9; 32]);
}
