//! Overlay addressing: the mesh's ranges, one node's addresses, and WireGuard's allowed IPs.

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;
use thiserror::Error;

/// The ranges that node addresses come from. The n-th address of one family goes with the n-th of the other.
#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Debug)]
pub struct Overlay {
    /// IPv4 range, /8 to /29.
    pub v4: Ipv4Net,
    /// IPv6 range, /16 to /64: by default a random unique local /48 (RFC 4193).
    pub v6: Ipv6Net,
}

/// Why ranges cannot be an overlay.
#[derive(Debug, Error, PartialEq, Eq, Clone)]
pub enum OverlayError {
    /// The prefix is too short or too long.
    #[error("overlay range {0} has an unusable size: use /8 to /29 for IPv4, /16 to /64 for IPv6")]
    Size(IpNet),
    /// The range is not private or unicast.
    #[error("overlay range {0} is not for unicast between hosts: use a private range")]
    NotUnicast(IpNet),
}

impl Overlay {
    /// Checks and normalises (host bits are cleared).
    pub fn new(v4: Ipv4Net, v6: Ipv6Net) -> Result<Self, OverlayError> {
        let (v4, v6) = (v4.trunc(), v6.trunc());
        if !(8..=29).contains(&v4.prefix_len()) {
            return Err(OverlayError::Size(v4.into()));
        }
        if !(16..=64).contains(&v6.prefix_len()) {
            return Err(OverlayError::Size(v6.into()));
        }
        let first4 = v4.network();
        if first4.is_loopback() || first4.is_multicast() || first4.is_unspecified() || first4.is_link_local() {
            return Err(OverlayError::NotUnicast(v4.into()));
        }
        let first6 = v6.network();
        if first6.is_loopback() || first6.is_multicast() || first6.is_unicast_link_local() || first6.is_unspecified() {
            return Err(OverlayError::NotUnicast(v6.into()));
        }
        Ok(Self { v4, v6 })
    }

    /// How many nodes fit: the IPv4 range without its network and broadcast address.
    pub fn capacity(&self) -> u32 {
        (1u32 << (32 - self.v4.prefix_len())) - 2
    }

    /// The addresses of slot `index`, counted from 1 to `capacity`; `None` beyond.
    pub fn addresses(&self, index: u32) -> Option<OverlayAddresses> {
        if index == 0 || index > self.capacity() {
            return None;
        }
        let v4 = Ipv4Addr::from(u32::from(self.v4.network()) + index);
        let v6 = Ipv6Addr::from(u128::from(self.v6.network()) + u128::from(index));
        Some(OverlayAddresses { v4, v6 })
    }

    /// Whether `address` lies inside.
    pub fn contains(&self, address: IpAddr) -> bool {
        match address {
            IpAddr::V4(address) => self.v4.contains(&address),
            IpAddr::V6(address) => self.v6.contains(&address),
        }
    }
}

impl fmt::Display for Overlay {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}, {}", self.v4, self.v6)
    }
}

/// One node's overlay addresses.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, Debug)]
pub struct OverlayAddresses {
    /// In the overlay's IPv4 range.
    pub v4: Ipv4Addr,
    /// In the overlay's IPv6 range.
    pub v6: Ipv6Addr,
}

impl OverlayAddresses {
    /// Both, IPv4 first.
    pub fn iter(&self) -> impl Iterator<Item = IpAddr> {
        [IpAddr::V4(self.v4), IpAddr::V6(self.v6)].into_iter()
    }

    /// What a peer with these addresses may send from: each address alone.
    pub fn allowed_ips(&self) -> impl Iterator<Item = AllowedIp> {
        self.iter().map(AllowedIp::host)
    }
}

/// One entry of WireGuard's cryptokey routing table; host bits are zero.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(from = "IpNet", into = "IpNet")]
pub struct AllowedIp(IpNet);

impl AllowedIp {
    /// Just this address.
    pub fn host(address: IpAddr) -> Self {
        Self(IpNet::from(address))
    }

    /// The range.
    pub fn net(&self) -> IpNet {
        self.0
    }
}

impl From<IpNet> for AllowedIp {
    fn from(net: IpNet) -> Self {
        Self(net.trunc())
    }
}

impl From<AllowedIp> for IpNet {
    fn from(allowed: AllowedIp) -> Self {
        allowed.0
    }
}

impl FromStr for AllowedIp {
    type Err = ipnet::AddrParseError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        text.parse::<IpNet>().map(Self::from)
    }
}

impl fmt::Display for AllowedIp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Debug for AllowedIp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn overlay(v4: &str) -> Result<Overlay, OverlayError> {
        Overlay::new(v4.parse().unwrap(), "fd00:1:2::/48".parse().unwrap())
    }

    #[test]
    fn slots_are_usable_host_addresses() {
        let overlay = overlay("10.9.0.5/29").unwrap();
        assert_eq!(overlay.v4.to_string(), "10.9.0.0/29");
        assert_eq!(overlay.capacity(), 6);
        assert_eq!(overlay.addresses(0), None);
        assert_eq!(overlay.addresses(1).unwrap().v4.to_string(), "10.9.0.1");
        assert_eq!(overlay.addresses(6).unwrap().v4.to_string(), "10.9.0.6");
        assert_eq!(overlay.addresses(6).unwrap().v6.to_string(), "fd00:1:2::6");
        assert_eq!(overlay.addresses(7), None);
    }

    #[test]
    fn ranges_that_cannot_carry_a_mesh_are_refused() {
        for bad in ["10.0.0.0/7", "10.0.0.0/30", "127.0.0.0/8", "224.0.0.0/8", "169.254.0.0/16", "0.0.0.0/8"] {
            assert!(overlay(bad).is_err(), "{bad}");
        }
    }
}
