//! Which peer owns which allowed IP, for backends that do not keep that straight by themselves.
//!
//! WireGuard's rule: an allowed IP belongs to one peer, and giving it to another takes it from the first.

use mesh_types::{AllowedIp, PublicKey};
use std::collections::{BTreeMap, BTreeSet};

/// Cryptokey routing, seen from both sides.
#[derive(Clone, Debug, Default)]
pub(crate) struct Cryptokey {
    owners: BTreeMap<AllowedIp, PublicKey>,
    holdings: BTreeMap<PublicKey, BTreeSet<AllowedIp>>,
}

impl Cryptokey {
    /// Gives `peer` exactly `wanted`; returns each peer that lost something, with what it has left.
    pub(crate) fn assign(
        &mut self,
        peer: PublicKey,
        wanted: &BTreeSet<AllowedIp>,
    ) -> BTreeMap<PublicKey, BTreeSet<AllowedIp>> {
        self.release(&peer);
        let mut losers = BTreeSet::new();
        for ip in wanted {
            if let Some(loser) = self.owners.insert(*ip, peer) {
                if let Some(held) = self.holdings.get_mut(&loser) {
                    held.remove(ip);
                }
                losers.insert(loser);
            }
        }
        self.holdings.insert(peer, wanted.clone());
        losers.into_iter().map(|loser| (loser, self.held(&loser))).collect()
    }

    /// Takes everything from `peer`.
    pub(crate) fn release(&mut self, peer: &PublicKey) {
        for ip in self.holdings.remove(peer).unwrap_or_default() {
            self.owners.remove(&ip);
        }
    }

    /// What `peer` has.
    pub(crate) fn held(&self, peer: &PublicKey) -> BTreeSet<AllowedIp> {
        self.holdings.get(peer).cloned().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(n: u8) -> PublicKey {
        PublicKey::from_bytes([n; 32])
    }

    fn ips(texts: &[&str]) -> BTreeSet<AllowedIp> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    #[test]
    fn an_allowed_ip_belongs_to_the_last_peer_it_was_given_to() {
        let mut table = Cryptokey::default();
        assert!(table.assign(key(1), &ips(&["10.0.0.1/32", "10.0.0.2/32"])).is_empty());
        let losers = table.assign(key(2), &ips(&["10.0.0.2/32"]));
        assert_eq!(losers, BTreeMap::from([(key(1), ips(&["10.0.0.1/32"]))]));
        // The old owner's leaving takes nothing from the new one.
        table.release(&key(1));
        assert_eq!(table.held(&key(2)), ips(&["10.0.0.2/32"]));
        assert_eq!(table.assign(key(3), &ips(&["10.0.0.2/32"])).len(), 1);
    }

    #[test]
    fn giving_a_peer_what_it_has_makes_nobody_lose() {
        let mut table = Cryptokey::default();
        table.assign(key(1), &ips(&["10.0.0.1/32"]));
        assert!(table.assign(key(1), &ips(&["10.0.0.1/32", "10.0.0.9/32"])).is_empty());
        assert_eq!(table.held(&key(1)), ips(&["10.0.0.1/32", "10.0.0.9/32"]));
    }

    #[test]
    fn a_range_and_an_address_inside_it_are_different_entries() {
        let mut table = Cryptokey::default();
        table.assign(key(1), &ips(&["10.0.0.0/24"]));
        assert!(table.assign(key(2), &ips(&["10.0.0.1/32"])).is_empty());
    }
}
