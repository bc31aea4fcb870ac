//! The difference between what a device should be and what it is, and a model of what applying it does.
//!
//! Minimal: what is right is not named, so that one changed peer is one small message and an adopted device keeps its
//! sessions. Endpoints are named only where the intent is to set them.

use crate::device::{
    ActualDevice, ActualPeer, DesiredDevice, DesiredPeer, DeviceUpdate, EndpointIntent, NewPeer, PeerChange, PeerUpdate,
};
use mesh_types::{PrivateKey, PublicKey};

/// What must change so that `actual` becomes `desired`; removals come first.
pub fn diff(desired: &DesiredDevice, actual: &ActualDevice) -> DeviceUpdate {
    let gone = actual.peers.keys().filter(|key| !desired.peers.contains_key(key));
    let removals = gone.map(|&key| (key, PeerChange::Remove));
    let changes = desired.peers.iter().filter_map(|(&key, peer)| {
        let change = match actual.peers.get(&key) {
            None => PeerChange::Add(peer.to_new(None)),
            Some(found) => PeerChange::Modify(modify(peer, found)?),
        };
        Some((key, change))
    });
    let own_key = actual.public_key != Some(public_key(&desired.private_key));
    DeviceUpdate {
        private_key: own_key.then(|| desired.private_key.clone()),
        listen_port: (actual.listen_port != desired.listen_port).then_some(desired.listen_port),
        fwmark: (actual.fwmark != desired.fwmark).then_some(desired.fwmark),
        barred: actual.barred.as_ref().is_some_and(|held| *held != desired.barred).then(|| desired.barred.clone()),
        peers: removals.chain(changes).collect(),
    }
}

/// The public half of a WireGuard private key.
pub fn public_key(private: &PrivateKey) -> PublicKey {
    let secret = x25519_dalek::StaticSecret::from(*private.as_bytes());
    PublicKey::from_bytes(x25519_dalek::PublicKey::from(&secret).to_bytes())
}

fn modify(desired: &DesiredPeer, found: &ActualPeer) -> Option<PeerUpdate> {
    let endpoint = match desired.endpoint {
        EndpointIntent::Keep => None,
        EndpointIntent::Set(endpoint) => (found.endpoint != Some(endpoint)).then_some(endpoint),
    };
    let update = PeerUpdate {
        preshared_key: (found.preshared_key != desired.preshared_key).then(|| desired.preshared_key.clone()),
        endpoint,
        keepalive: (found.keepalive != desired.keepalive).then_some(desired.keepalive),
        allowed_ips: (found.allowed_ips != desired.allowed_ips).then(|| desired.allowed_ips.clone()),
    };
    (update != PeerUpdate::default()).then_some(update)
}

impl DesiredPeer {
    /// The peer as it is first put on a device, with `known` as endpoint where the intent is to keep it.
    pub(crate) fn to_new(&self, known: Option<std::net::SocketAddr>) -> NewPeer {
        NewPeer {
            preshared_key: self.preshared_key.clone(),
            endpoint: match self.endpoint {
                EndpointIntent::Keep => known,
                EndpointIntent::Set(endpoint) => Some(endpoint),
            },
            keepalive: self.keepalive,
            allowed_ips: self.allowed_ips.clone(),
        }
    }
}

impl ActualDevice {
    /// Changes this picture of a device as the update changes the device.
    pub fn apply(&mut self, update: &DeviceUpdate) {
        if let Some(private) = &update.private_key {
            self.public_key = Some(public_key(private));
        }
        self.listen_port = update.listen_port.unwrap_or(self.listen_port);
        self.fwmark = update.fwmark.unwrap_or(self.fwmark);
        self.barred = update.barred.clone().or(self.barred.take());
        for (key, change) in &update.peers {
            self.apply_change(*key, change);
        }
    }

    fn apply_change(&mut self, key: PublicKey, change: &PeerChange) {
        match change {
            PeerChange::Remove => {
                self.peers.remove(&key);
            }
            PeerChange::Add(new) => {
                let found = self.peers.remove(&key).unwrap_or_default();
                self.put(key, new, found);
            }
            PeerChange::Recreate(new) => self.put(key, new, ActualPeer::default()),
            PeerChange::Modify(update) => {
                if let Some(mut peer) = self.peers.remove(&key) {
                    if let Some(psk) = &update.preshared_key {
                        peer.preshared_key = psk.clone();
                    }
                    peer.endpoint = update.endpoint.or(peer.endpoint);
                    peer.keepalive = update.keepalive.unwrap_or(peer.keepalive);
                    if let Some(allowed) = &update.allowed_ips {
                        self.claim(allowed);
                        peer.allowed_ips = allowed.clone();
                    }
                    self.peers.insert(key, peer);
                }
            }
        }
    }

    fn put(&mut self, key: PublicKey, new: &NewPeer, found: ActualPeer) {
        let NewPeer { preshared_key, endpoint, keepalive, allowed_ips } = new.clone();
        self.claim(&allowed_ips);
        let endpoint = endpoint.or(found.endpoint);
        self.peers.insert(key, ActualPeer { preshared_key, endpoint, keepalive, allowed_ips, ..found });
    }

    /// An allowed IP belongs to one peer: whoever gets it takes it from who had it.
    fn claim(&mut self, allowed: &std::collections::BTreeSet<mesh_types::AllowedIp>) {
        for peer in self.peers.values_mut() {
            peer.allowed_ips.retain(|ip| !allowed.contains(ip));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use mesh_types::{AllowedIp, PresharedKey};
    use proptest::collection::btree_map;
    use proptest::prelude::*;
    use std::collections::{BTreeMap, BTreeSet};
    use std::net::{IpAddr, SocketAddr};

    fn key(n: u8) -> PublicKey {
        PublicKey::from_bytes([n; 32])
    }

    fn place(n: u8) -> SocketAddr {
        SocketAddr::from(([192, 0, 2, n], 51820))
    }

    fn psk() -> impl Strategy<Value = Option<PresharedKey>> {
        proptest::option::of((0u8..3).prop_map(|n| PresharedKey::from_bytes([n; 32])))
    }

    fn ranges() -> impl Strategy<Value = BTreeSet<AllowedIp>> {
        proptest::collection::btree_set((0u8..3).prop_map(|n| AllowedIp::host(IpAddr::from([10, 99, 0, n]))), 0..3)
    }

    /// Which of four peers each of eight allowed IPs belongs to, if to any.
    fn owners() -> impl Strategy<Value = Vec<Option<u8>>> {
        proptest::collection::vec(proptest::option::of(0u8..4), 8)
    }

    fn allowed(owners: &[Option<u8>], peer: u8) -> BTreeSet<AllowedIp> {
        let address = |n: usize| AllowedIp::host(IpAddr::from([10, 0, 0, u8::try_from(n).unwrap()]));
        owners.iter().enumerate().filter(|(_, owner)| **owner == Some(peer)).map(|(n, _)| address(n)).collect()
    }

    fn desired() -> impl Strategy<Value = DesiredDevice> {
        let intent = prop_oneof![Just(EndpointIntent::Keep), (0u8..3).prop_map(|n| EndpointIntent::Set(place(n)))];
        let peer = (psk(), intent, proptest::option::of(1u16..3));
        (btree_map(0u8..4, peer, 0..4), owners(), 1u8..3, 1u16..3, 0u32..2, ranges()).prop_map(
            |(peers, owners, private, listen_port, fwmark, barred)| DesiredDevice {
                private_key: PrivateKey::from_bytes([private; 32]),
                listen_port,
                fwmark,
                barred,
                peers: peers
                    .into_iter()
                    .map(|(n, (preshared_key, endpoint, keepalive))| {
                        let allowed_ips = allowed(&owners, n);
                        (key(n), DesiredPeer { preshared_key, endpoint, keepalive, allowed_ips })
                    })
                    .collect(),
            },
        )
    }

    fn actual() -> impl Strategy<Value = ActualDevice> {
        let peer = (psk(), proptest::option::of((0u8..3).prop_map(place)), proptest::option::of(1u16..3), 0u64..9);
        let device = (proptest::option::of(1u8..3), 0u16..3, 0u32..2, proptest::option::of(ranges()));
        (btree_map(0u8..4, peer, 0..4), owners(), device).prop_map(
            |(peers, owners, (private, listen_port, fwmark, barred))| ActualDevice {
                public_key: private.map(|n| public_key(&PrivateKey::from_bytes([n; 32]))),
                listen_port,
                fwmark,
                barred,
                looped: 0,
                peers: peers
                    .into_iter()
                    .map(|(n, (preshared_key, endpoint, keepalive, rx_bytes))| {
                        let allowed_ips = allowed(&owners, n);
                        let peer = ActualPeer {
                            preshared_key,
                            endpoint,
                            keepalive,
                            allowed_ips,
                            rx_bytes,
                            ..Default::default()
                        };
                        (key(n), peer)
                    })
                    .collect(),
            },
        )
    }

    fn as_desired(actual: &ActualDevice, desired: &DesiredDevice) -> DesiredDevice {
        let intent =
            |key: &PublicKey, found: &ActualPeer| match (desired.peers.get(key).map(|p| p.endpoint), found.endpoint) {
                (Some(EndpointIntent::Set(_)), Some(at)) => EndpointIntent::Set(at),
                _ => EndpointIntent::Keep,
            };
        let peer = |(key, found): (&PublicKey, &ActualPeer)| {
            let ActualPeer { preshared_key, keepalive, allowed_ips, .. } = found.clone();
            (*key, DesiredPeer { preshared_key, endpoint: intent(key, found), keepalive, allowed_ips })
        };
        assert_eq!(actual.public_key, Some(public_key(&desired.private_key)));
        DesiredDevice {
            private_key: desired.private_key.clone(),
            listen_port: actual.listen_port,
            fwmark: actual.fwmark,
            // A device that cannot refuse is not asked to.
            barred: actual.barred.clone().unwrap_or_else(|| desired.barred.clone()),
            peers: actual.peers.iter().map(peer).collect::<BTreeMap<_, _>>(),
        }
    }

    proptest! {
        #[test]
        fn applying_the_difference_gives_what_is_desired_and_leaves_none(desired in desired(), actual in actual()) {
            let before = actual.clone();
            let mut device = actual;
            device.apply(&diff(&desired, &before));
            prop_assert_eq!(as_desired(&device, &desired), desired.clone());
            prop_assert!(diff(&desired, &device).is_empty());
            for (key, peer) in &desired.peers {
                if let (EndpointIntent::Keep, Some(found)) = (peer.endpoint, before.peers.get(key)) {
                    prop_assert_eq!(device.peers[key].endpoint, found.endpoint);
                    prop_assert_eq!(device.peers[key].rx_bytes, found.rx_bytes, "its session is not touched");
                }
            }
        }

        #[test]
        fn removals_come_first_and_a_key_is_named_once(desired in desired(), actual in actual()) {
            let update = diff(&desired, &actual);
            let kinds: Vec<bool> = update.peers.iter().map(|(_, change)| *change == PeerChange::Remove).collect();
            prop_assert!(kinds.is_sorted_by(|a, b| a >= b));
            let keys: BTreeSet<_> = update.peers.iter().map(|(key, _)| *key).collect();
            prop_assert_eq!(keys.len(), update.peers.len());
        }

        #[test]
        fn one_changed_peer_is_one_small_change(mut desired in desired(), pick in 0u8..4) {
            let mut device = ActualDevice::default();
            device.apply(&diff(&desired, &device));
            prop_assume!(desired.peers.contains_key(&key(pick)));
            desired.peers.get_mut(&key(pick)).unwrap().endpoint = EndpointIntent::Set(place(200));
            let change = PeerUpdate { endpoint: Some(place(200)), ..PeerUpdate::default() };
            let expected = DeviceUpdate { peers: vec![(key(pick), PeerChange::Modify(change))], ..DeviceUpdate::default() };
            prop_assert_eq!(diff(&desired, &device), expected);
        }
    }

    #[test]
    fn modifying_a_peer_that_is_not_there_brings_nothing_back() {
        let mut device = ActualDevice::default();
        let change = PeerUpdate { endpoint: Some(place(1)), ..PeerUpdate::default() };
        device.apply(&DeviceUpdate { peers: vec![(key(1), PeerChange::Modify(change))], ..DeviceUpdate::default() });
        assert!(device.peers.is_empty());
    }
}
