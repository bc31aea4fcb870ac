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
