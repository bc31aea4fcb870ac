//! Coordinators as others see them: where they answer and who they are.

use crate::id::CoordinatorId;
use crate::key::IdentityKey;
use crate::limits::MAX_HOST_NAME;
use crate::name::NodeName;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;
use thiserror::Error;

/// TCP port of a coordinator's gRPC where an address names none.
pub const DEFAULT_COORDINATOR_PORT: u16 = 8551;

/// The file in a coordinator's data directory that says that its mesh was ended. No replica starts from there again.
pub const ENDED_FILE: &str = "ended";

/// The host part of an address.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Host {
    /// A literal address.
    Ip(IpAddr),
    /// A DNS name, resolved at each dial.
    Name(String),
}

/// Where a coordinator answers: `ADDR[:PORT]`, with `[...]` around IPv6 if a port follows.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct CoordinatorAddress {
    /// Address or name.
    pub host: Host,
    /// TCP port.
    pub port: u16,
}

/// Why a text is not a coordinator address.
#[derive(Debug, Error, PartialEq, Eq, Clone)]
#[error(
    "coordinator address {0:?} not understood: expected ADDR, ADDR:PORT or [IPV6]:PORT, ADDR being an IP address or a host name"
)]
pub struct ParseAddressError(pub String);

impl FromStr for CoordinatorAddress {
    type Err = ParseAddressError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let refuse = || ParseAddressError(text.chars().take(300).collect());
        if let Ok(ip) = text.parse::<IpAddr>() {
            return Ok(Self { host: Host::Ip(ip), port: DEFAULT_COORDINATOR_PORT });
        }
        let (host, port) = match text.rsplit_once(':') {
            Some((host, port)) => (host, port.parse().map_err(|_| refuse())?),
            None => (text, DEFAULT_COORDINATOR_PORT),
        };
        if port == 0 {
            return Err(refuse());
        }
        let bare = host.strip_prefix('[').and_then(|h| h.strip_suffix(']'));
        let host = match bare.unwrap_or(host).parse::<IpAddr>() {
            Ok(IpAddr::V6(ip)) if bare.is_some() => Host::Ip(ip.into()),
            Ok(IpAddr::V4(ip)) if bare.is_none() => Host::Ip(ip.into()),
            Ok(_) => return Err(refuse()),
            Err(_) if bare.is_none() && is_host_name(host) => Host::Name(host.to_ascii_lowercase()),
            Err(_) => return Err(refuse()),
        };
        Ok(Self { host, port })
    }
}

/// Why an address cannot be where others reach a coordinator.
#[derive(Debug, Error, PartialEq, Eq, Clone)]
pub enum AdvertiseError {
    /// Not an address at all.
    #[error(transparent)]
    Parse(#[from] ParseAddressError),
    /// An address that leads others nowhere, or not to this host.
    #[error("{0} leads no other host here: give an address of this host, or a name, that others reach it by")]
    Nowhere(IpAddr),
}

impl CoordinatorAddress {
    /// Reads where a coordinator shall be reached by others.
    pub fn parse_advertised(text: &str) -> Result<Self, AdvertiseError> {
        let address: Self = text.parse()?;
        match address.host {
            Host::Ip(ip) if leads_nowhere(ip) => Err(AdvertiseError::Nowhere(ip)),
            Host::Ip(_) | Host::Name(_) => Ok(address),
        }
    }

    /// Whether only its own host reaches a coordinator there.
    pub fn is_loopback(&self) -> bool {
        matches!(&self.host, Host::Ip(ip) if ip.to_canonical().is_loopback())
    }
}

/// Loopback is left: a mesh on one host has no other.
fn leads_nowhere(ip: IpAddr) -> bool {
    ip.is_unspecified()
        || ip.is_multicast()
        || match ip.to_canonical() {
            IpAddr::V4(ip) => ip.is_link_local() || ip.is_broadcast(),
            IpAddr::V6(ip) => ip.is_unicast_link_local(),
        }
}

/// The addresses in their order, each once.
pub fn distinct(addresses: Vec<CoordinatorAddress>) -> Vec<CoordinatorAddress> {
    let mut kept = Vec::with_capacity(addresses.len());
    for address in addresses {
        if !kept.contains(&address) {
            kept.push(address);
        }
    }
    kept
}

fn is_host_name(text: &str) -> bool {
    let label = |l: &str| {
        !l.is_empty()
            && l.len() <= crate::name::MAX_LABEL
            && !l.starts_with('-')
            && !l.ends_with('-')
            && l.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
    };
    let all_numeric = text.split('.').all(|l| l.bytes().all(|b| b.is_ascii_digit()));
    !text.is_empty() && text.len() <= MAX_HOST_NAME && text.split('.').all(label) && !all_numeric
}

impl fmt::Display for CoordinatorAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.host {
            Host::Ip(IpAddr::V6(ip)) => write!(f, "[{ip}]:{}", self.port),
            Host::Ip(ip) => write!(f, "{ip}:{}", self.port),
            Host::Name(name) => write!(f, "{name}:{}", self.port),
        }
    }
}

impl fmt::Debug for CoordinatorAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl TryFrom<String> for CoordinatorAddress {
    type Error = ParseAddressError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<CoordinatorAddress> for String {
    fn from(address: CoordinatorAddress) -> Self {
        address.to_string()
    }
}

/// One coordinator, as the registry holds it and every node knows it.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, Debug)]
pub struct CoordinatorRecord {
    /// Its Raft id.
    pub id: CoordinatorId,
    /// Its name.
    pub name: NodeName,
    /// The key of its certificate.
    pub identity_key: IdentityKey,
    /// Where it answers, in order of preference; at least one.
    pub addresses: Vec<CoordinatorAddress>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_read_with_and_without_port() {
        for (text, printed) in [
            ("203.0.113.10", "203.0.113.10:8551"),
            ("203.0.113.10:1", "203.0.113.10:1"),
            ("2001:db8::1", "[2001:db8::1]:8551"),
            ("[2001:db8::1]:9", "[2001:db8::1]:9"),
            ("Coord.example.org", "coord.example.org:8551"),
            ("coordinator_1:7", "coordinator_1:7"),
        ] {
            let address: CoordinatorAddress = text.parse().unwrap();
            assert_eq!(address.to_string(), printed);
            assert_eq!(address.to_string().parse::<CoordinatorAddress>().unwrap(), address);
        }
    }

    #[test]
    fn what_leads_others_nowhere_is_not_advertised() {
        for nowhere in ["0.0.0.0", "[::]:1", "fe80::1", "169.254.1.1", "224.0.0.1", "ff02::1", "255.255.255.255"] {
            let error = CoordinatorAddress::parse_advertised(nowhere).unwrap_err();
            assert!(matches!(error, AdvertiseError::Nowhere(_)), "{nowhere}: {error}");
        }
        for good in ["127.0.0.1", "::1", "10.0.0.1:7", "fd00::1", "coordinator.example.org"] {
            assert_eq!(CoordinatorAddress::parse_advertised(good).unwrap(), good.parse().unwrap());
        }
        assert!(matches!(CoordinatorAddress::parse_advertised("a b"), Err(AdvertiseError::Parse(_))));
    }

    #[test]
    fn an_address_that_is_given_twice_is_one() {
        let addresses = |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect::<Vec<_>>();
        assert_eq!(distinct(addresses(&["b", "a:8551", "B:8551", "a", "a:1"])), addresses(&["b", "a", "a:1"]));
    }

    #[test]
    fn nonsense_is_not_an_address() {
        for bad in ["", ":1", "a:0", "a:70000", "[1.2.3.4]:1", "1.2.3", "a b", "-a", "[::1", "a..b", "http://a"] {
            assert!(bad.parse::<CoordinatorAddress>().is_err(), "{bad}");
        }
    }
}
