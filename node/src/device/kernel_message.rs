//! The kernel's WireGuard messages: updates cut into few messages, dumps put together again. Pure.
//!
//! A nested attribute carries its length in 16 bits, so that the peers of one message must stay under 64 KiB. A dump is
//! cut by the kernel where its buffer ends, within a peer if need be.

use ipnet::IpNet;
use mesh_node_core::device::{ActualDevice, ActualPeer, DeviceUpdate, NewPeer, PeerChange, PeerUpdate};
use mesh_types::{AllowedIp, MeshTime, PresharedKey, PublicKey};
use netlink_packet_core::Nla;
use netlink_packet_wireguard::{
    WireguardAddressFamily, WireguardAllowedIp, WireguardAllowedIpAttr, WireguardAttribute, WireguardPeer,
    WireguardPeerAttribute, WireguardPeerFlags,
};
use std::collections::BTreeSet;

/// Bytes of peers in one message: a thousand peers go in four, and the 16-bit length is never near.
const MESSAGE_BYTES: usize = 56 * 1024;

/// Allowed IPs in one peer attribute (at most 44 bytes each); more follow in further attributes for the same peer.
const ALLOWED_IPS_PER_PEER: usize = 1_000;

/// No preshared key, in the kernel's words.
const NO_KEY: [u8; 32] = [0; 32];

/// Cuts an update into the attributes of as few messages as carry it, in its order.
pub(crate) fn encode(update: &DeviceUpdate) -> Vec<Vec<WireguardAttribute>> {
    let mut messages = Vec::new();
    let mut message = Vec::new();
    message.extend(update.private_key.as_ref().map(|key| WireguardAttribute::PrivateKey(*key.as_bytes())));
    message.extend(update.listen_port.map(WireguardAttribute::ListenPort));
    message.extend(update.fwmark.map(WireguardAttribute::Fwmark));
    let (mut peers, mut bytes) = (Vec::new(), 0);
    for peer in update.peers.iter().flat_map(|(key, change)| encode_change(key, change)) {
        let size = peer.buffer_len_aligned();
        if bytes + size > MESSAGE_BYTES && !peers.is_empty() {
            message.push(WireguardAttribute::Peers(std::mem::take(&mut peers)));
            messages.push(std::mem::take(&mut message));
            bytes = 0;
        }
        peers.push(peer);
        bytes += size;
    }
    if !peers.is_empty() {
        message.push(WireguardAttribute::Peers(peers));
    }
    if !message.is_empty() {
        messages.push(message);
    }
    messages
}

/// The room an attribute takes, with its header.
trait AlignedLen {
    fn buffer_len_aligned(&self) -> usize;
}

impl AlignedLen for WireguardPeer {
    fn buffer_len_aligned(&self) -> usize {
        4 + self.value_len().next_multiple_of(4)
    }
}

fn encode_change(key: &PublicKey, change: &PeerChange) -> Vec<WireguardPeer> {
    match change {
        PeerChange::Remove => vec![removal(key)],
        PeerChange::Add(new) => encode_peer(key, WireguardPeerFlags::empty(), &whole(new)),
        PeerChange::Modify(update) => encode_peer(key, WireguardPeerFlags::UpdateOnly, update),
        PeerChange::Recreate(new) => {
            let mut peers = vec![removal(key)];
            peers.extend(encode_peer(key, WireguardPeerFlags::empty(), &whole(new)));
            peers
        }
    }
}

fn removal(key: &PublicKey) -> WireguardPeer {
    WireguardPeer(vec![
        WireguardPeerAttribute::PublicKey(*key.as_bytes()),
        WireguardPeerAttribute::Flags(WireguardPeerFlags::RemoveMe),
    ])
}

/// A new peer as an update that leaves nothing out. An endpoint cannot be taken away, only replaced.
fn whole(new: &NewPeer) -> PeerUpdate {
    PeerUpdate {
        preshared_key: Some(new.preshared_key.clone()),
        endpoint: new.endpoint,
        keepalive: Some(new.keepalive),
        allowed_ips: Some(new.allowed_ips.clone()),
    }
}

fn encode_peer(key: &PublicKey, flags: WireguardPeerFlags, update: &PeerUpdate) -> Vec<WireguardPeer> {
    let mut attributes = vec![WireguardPeerAttribute::PublicKey(*key.as_bytes())];
    let replace =
        if update.allowed_ips.is_some() { WireguardPeerFlags::ReplaceAllowedIps } else { WireguardPeerFlags::empty() };
    let flags = flags | replace;
    if !flags.is_empty() {
        attributes.push(WireguardPeerAttribute::Flags(flags));
    }
    if let Some(preshared_key) = &update.preshared_key {
        let bytes = preshared_key.as_ref().map_or(NO_KEY, |key| *key.as_bytes());
        attributes.push(WireguardPeerAttribute::PresharedKey(bytes));
    }
    attributes.extend(update.endpoint.map(WireguardPeerAttribute::Endpoint));
    if let Some(keepalive) = update.keepalive {
        attributes.push(WireguardPeerAttribute::PersistentKeepalive(keepalive.unwrap_or(0)));
    }
    let allowed_ips: Vec<_> = update.allowed_ips.iter().flatten().map(encode_allowed_ip).collect();
    let mut parts = allowed_ips.chunks(ALLOWED_IPS_PER_PEER);
    if let Some(first) = parts.next() {
        attributes.push(WireguardPeerAttribute::AllowedIps(first.to_vec()));
    }
    let mut peers = vec![WireguardPeer(attributes)];
    peers.extend(parts.map(|part| {
        WireguardPeer(vec![
            WireguardPeerAttribute::PublicKey(*key.as_bytes()),
            WireguardPeerAttribute::Flags(WireguardPeerFlags::UpdateOnly),
            WireguardPeerAttribute::AllowedIps(part.to_vec()),
        ])
    }));
    peers
}

fn encode_allowed_ip(allowed: &AllowedIp) -> WireguardAllowedIp {
    let (family, net) = match allowed.net() {
        net @ IpNet::V4(_) => (WireguardAddressFamily::Ipv4, net),
        net @ IpNet::V6(_) => (WireguardAddressFamily::Ipv6, net),
    };
    WireguardAllowedIp(vec![
        WireguardAllowedIpAttr::Family(family),
        WireguardAllowedIpAttr::IpAddr(net.addr()),
        WireguardAllowedIpAttr::Cidr(net.prefix_len()),
    ])
}

/// Takes one message of a dump into `device`. A peer that was begun in an earlier message is continued.
pub(crate) fn decode(attributes: &[WireguardAttribute], device: &mut ActualDevice) {
    for attribute in attributes {
        match attribute {
            WireguardAttribute::PublicKey(key) => device.public_key = Some(PublicKey::from_bytes(*key)),
            WireguardAttribute::ListenPort(port) => device.listen_port = *port,
            WireguardAttribute::Fwmark(mark) => device.fwmark = *mark,
            WireguardAttribute::Peers(peers) => peers.iter().for_each(|peer| decode_peer(&peer.0, device)),
            _ => {}
        }
    }
}

fn decode_peer(attributes: &[WireguardPeerAttribute], device: &mut ActualDevice) {
    let key = attributes.iter().find_map(|attribute| match attribute {
        WireguardPeerAttribute::PublicKey(key) => Some(PublicKey::from_bytes(*key)),
        _ => None,
    });
    let Some(key) = key else { return };
    let peer: &mut ActualPeer = device.peers.entry(key).or_default();
    for attribute in attributes {
        match attribute {
            WireguardPeerAttribute::PresharedKey(key) => {
                peer.preshared_key = (*key != NO_KEY).then(|| PresharedKey::from_bytes(*key));
            }
            WireguardPeerAttribute::Endpoint(endpoint) => peer.endpoint = Some(*endpoint),
            WireguardPeerAttribute::PersistentKeepalive(seconds) => {
                peer.keepalive = Some(*seconds).filter(|seconds| *seconds > 0);
            }
            WireguardPeerAttribute::LastHandshake(at) => {
                let seconds = u64::try_from(at.seconds).unwrap_or(0);
                let millis = u64::try_from(at.nano_seconds).unwrap_or(0) / 1_000_000;
                let at = seconds.saturating_mul(1_000).saturating_add(millis);
                peer.last_handshake = (at > 0).then_some(MeshTime(at));
            }
            WireguardPeerAttribute::RxBytes(bytes) => peer.rx_bytes = *bytes,
            WireguardPeerAttribute::TxBytes(bytes) => peer.tx_bytes = *bytes,
            WireguardPeerAttribute::AllowedIps(ips) => decode_allowed_ips(ips, &mut peer.allowed_ips),
            _ => {}
        }
    }
}

fn decode_allowed_ips(from: &[WireguardAllowedIp], into: &mut BTreeSet<AllowedIp>) {
    for attributes in from {
        let (mut address, mut prefix) = (None, None);
        for attribute in &attributes.0 {
            match attribute {
                WireguardAllowedIpAttr::IpAddr(ip) => address = Some(*ip),
                WireguardAllowedIpAttr::Cidr(bits) => prefix = Some(*bits),
                _ => {}
            }
        }
        if let (Some(address), Some(prefix)) = (address, prefix)
            && let Ok(net) = IpNet::new(address, prefix)
        {
            into.insert(AllowedIp::from(net));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use mesh_types::PrivateKey;
    use netlink_packet_core::Emitable;
    use std::net::{IpAddr, Ipv4Addr};

    #[test]
    fn a_thousand_peers_go_in_a_handful_of_messages() {
        let peers = (0..1000).map(|n| (key(n), PeerChange::Add(peer(n)))).collect();
        let update = DeviceUpdate { private_key: Some(PrivateKey::from_bytes([1; 32])), peers, ..Default::default() };
        let messages = encode(&update);
        assert!(messages.len() <= 5, "{} messages", messages.len());
        assert!(messages.iter().all(|message| message.as_slice().buffer_len() < usize::from(u16::MAX)));
        let mut device = ActualDevice::default();
        messages.iter().for_each(|message| decode(message, &mut device));
        assert_eq!(device.peers.len(), 1000);
        assert_eq!(device.peers[&key(7)].allowed_ips, peer(7).allowed_ips);
    }

    #[test]
    fn one_changed_peer_is_one_small_message() {
        let change = PeerUpdate { endpoint: Some("192.0.2.1:51820".parse().unwrap()), ..Default::default() };
        let update = DeviceUpdate { peers: vec![(key(1), PeerChange::Modify(change))], ..Default::default() };
        let messages = encode(&update);
        assert_eq!(messages.len(), 1);
        assert!(messages[0].as_slice().buffer_len() < 100);
    }

    #[test]
    fn nothing_to_change_is_no_message() {
        assert!(encode(&DeviceUpdate::default()).is_empty());
    }

    #[test]
    fn a_peer_with_more_allowed_ips_than_fit_keeps_them_all() {
        let ip = |n: u32| AllowedIp::host(IpAddr::V4(Ipv4Addr::from(0x0a00_0000 + n)));
        let allowed_ips: BTreeSet<_> = (0..5000).map(ip).collect();
        let new = NewPeer { allowed_ips: allowed_ips.clone(), ..NewPeer::default() };
        let messages = encode(&DeviceUpdate { peers: vec![(key(1), PeerChange::Add(new))], ..Default::default() });
        let mut device = ActualDevice::default();
        messages.iter().for_each(|message| decode(message, &mut device));
        assert_eq!(device.peers[&key(1)].allowed_ips, allowed_ips);
        // Only the first part may replace; the others must add to it, and never bring the peer back.
        let flags: Vec<_> = messages.iter().flatten().flat_map(peers_of).map(flags_of).collect();
        assert_eq!(flags[0], WireguardPeerFlags::ReplaceAllowedIps);
        assert!(flags[1..].iter().all(|flags| *flags == WireguardPeerFlags::UpdateOnly));
    }

    #[test]
    fn a_peer_that_a_dump_cuts_in_two_is_joined() {
        let part = |ip: &str| {
            WireguardAttribute::Peers(vec![WireguardPeer(vec![
                WireguardPeerAttribute::PublicKey(*key(1).as_bytes()),
                WireguardPeerAttribute::AllowedIps(vec![encode_allowed_ip(&ip.parse().unwrap())]),
            ])])
        };
        let mut device = ActualDevice::default();
        decode(&[WireguardAttribute::ListenPort(7), part("10.0.0.1/32")], &mut device);
        decode(&[part("10.0.0.2/32")], &mut device);
        assert_eq!(device.peers[&key(1)].allowed_ips.len(), 2);
        assert_eq!(device.listen_port, 7);
    }

    #[test]
    fn a_modification_never_brings_a_peer_back_and_a_removal_carries_nothing_else() {
        let modify = encode_change(&key(1), &PeerChange::Modify(PeerUpdate::default()));
        assert_eq!(flags_of(&modify[0]), WireguardPeerFlags::UpdateOnly);
        let recreate = encode_change(&key(1), &PeerChange::Recreate(peer(1)));
        assert_eq!(flags_of(&recreate[0]), WireguardPeerFlags::RemoveMe);
        assert_eq!(flags_of(&recreate[1]), WireguardPeerFlags::ReplaceAllowedIps);
    }

    fn key(n: u32) -> PublicKey {
        let mut bytes = [7; 32];
        bytes[..4].copy_from_slice(&n.to_be_bytes());
        PublicKey::from_bytes(bytes)
    }

    fn peer(n: u32) -> NewPeer {
        NewPeer {
            preshared_key: Some(PresharedKey::from_bytes([9; 32])),
            endpoint: Some("[2001:db8::1]:51820".parse().unwrap()),
            keepalive: Some(25),
            allowed_ips: [
                AllowedIp::host(IpAddr::V4(Ipv4Addr::from(0x0a00_0000 + n))),
                format!("fd00::{n:x}/128").parse().unwrap(),
            ]
            .into(),
        }
    }

    fn peers_of(attribute: &WireguardAttribute) -> &[WireguardPeer] {
        match attribute {
            WireguardAttribute::Peers(peers) => peers,
            _ => &[],
        }
    }

    fn flags_of(peer: &WireguardPeer) -> WireguardPeerFlags {
        let flags = peer.0.iter().find_map(|attribute| match attribute {
            WireguardPeerAttribute::Flags(flags) => Some(*flags),
            _ => None,
        });
        flags.unwrap_or(WireguardPeerFlags::empty())
    }
}
