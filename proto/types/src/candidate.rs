//! Candidates: underlay addresses where a node may be reached.

use serde::{Deserialize, Serialize};
use std::net::{IpAddr, SocketAddr};

/// How a candidate became known; earlier kinds are preferred, all else equal.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, Debug)]
#[serde(rename_all = "lowercase")]
pub enum CandidateKind {
    /// An address of one of the node's own interfaces.
    Host,
    /// What a coordinator saw the node's device send from.
    Reflexive,
    /// What another node's device saw it send from.
    Harvested,
    /// A port of a relay.
    Relayed,
}

impl CandidateKind {
    /// The number of this kind on the wire and in signed bytes.
    pub const fn code(self) -> u8 {
        match self {
            Self::Host => 1,
            Self::Reflexive => 2,
            Self::Harvested => 3,
            Self::Relayed => 4,
        }
    }

    /// The kind of a wire number; `None` for one that a later version may know.
    pub const fn from_code(code: u8) -> Option<Self> {
        match code {
            1 => Some(Self::Host),
            2 => Some(Self::Reflexive),
            3 => Some(Self::Harvested),
            4 => Some(Self::Relayed),
            _ => None,
        }
    }
}

/// One address where a node may be reached.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, Debug)]
pub struct Candidate {
    /// How it became known.
    pub kind: CandidateKind,
    /// Where to send.
    pub endpoint: SocketAddr,
}

impl Candidate {
    /// Whether anything could ever be reached there from another host: unicast, not loopback, with a port.
    pub fn is_plausible(&self) -> bool {
        let routable = match self.endpoint.ip().to_canonical() {
            IpAddr::V4(ip) => {
                !(ip.is_loopback()
                    || ip.is_unspecified()
                    || ip.is_multicast()
                    || ip.is_broadcast()
                    || ip.is_link_local()
                    || ip.octets()[0] == 0)
            }
            IpAddr::V6(ip) => {
                !(ip.is_loopback() || ip.is_unspecified() || ip.is_multicast() || ip.is_unicast_link_local())
            }
        };
        routable && self.endpoint.port() != 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn implausible_endpoints_are_known_as_such() {
        let plausible =
            |text: &str| Candidate { kind: CandidateKind::Host, endpoint: text.parse().unwrap() }.is_plausible();
        assert!(plausible("192.0.2.1:51820") && plausible("[2001:db8::1]:1"));
        for bad in
            ["192.0.2.1:0", "127.0.0.1:1", "0.0.0.0:1", "224.0.0.1:1", "[::1]:1", "[fe80::1]:1", "[::ffff:127.0.0.1]:1"]
        {
            assert!(!plausible(bad), "{bad}");
        }
    }
}
