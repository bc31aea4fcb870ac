//! Where coordinators may be found: those of the mesh's settings, then those that the join token named.

use mesh_types::{CoordinatorAddress, CoordinatorId, CoordinatorRecord};

/// All places known.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub(crate) struct Places {
    /// As the registry has them.
    pub(crate) coordinators: Vec<CoordinatorRecord>,
    /// As the token had them: old, but perhaps the only ones that still answer.
    pub(crate) named: Vec<CoordinatorAddress>,
}

impl Places {
    /// Every address once, coordinators in random order so that nodes spread, `last` and the token's at the end.
    pub(crate) fn shuffled(&self, last: Option<CoordinatorId>) -> Vec<CoordinatorAddress> {
        self.ordered(|id| Some(id) == last)
    }

    /// Every address once, those of `first` before the others.
    pub(crate) fn shuffled_first(&self, first: Option<CoordinatorId>) -> Vec<CoordinatorAddress> {
        self.ordered(|id| Some(id) != first)
    }

    /// Those for whom `late` holds come after the others, each group in random order.
    fn ordered(&self, late: impl Fn(CoordinatorId) -> bool) -> Vec<CoordinatorAddress> {
        let mut order: Vec<_> = self.coordinators.iter().collect();
        order.sort_by_cached_key(|coordinator| (late(coordinator.id), getrandom::u32().unwrap_or_default()));
        let registered = order.into_iter().flat_map(|coordinator| &coordinator.addresses);
        let mut addresses: Vec<CoordinatorAddress> = Vec::new();
        for address in registered.chain(&self.named) {
            if !addresses.contains(address) {
                addresses.push(address.clone());
            }
        }
        addresses
    }

    /// All coordinators but `except`, in random order.
    pub(crate) fn others(&self, except: CoordinatorId) -> Vec<CoordinatorRecord> {
        let mut others: Vec<_> = self.coordinators.iter().filter(|c| c.id != except).cloned().collect();
        others.sort_by_cached_key(|_| getrandom::u32().unwrap_or_default());
        others
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use mesh_types::IdentityKey;

    fn coordinator(id: u64) -> CoordinatorRecord {
        CoordinatorRecord {
            id: CoordinatorId(id),
            name: format!("c{id}").parse().unwrap(),
            identity_key: IdentityKey::from_bytes([0; 32]),
            addresses: vec![format!("192.0.2.{id}").parse().unwrap()],
        }
    }

    #[test]
    fn the_coordinator_to_avoid_and_the_tokens_addresses_come_last_and_none_twice() {
        let named = vec!["192.0.2.1".parse().unwrap(), "192.0.2.9".parse().unwrap()];
        let places = Places { coordinators: vec![coordinator(1), coordinator(2), coordinator(3)], named };
        for _ in 0..20 {
            let order: Vec<_> = places.shuffled(Some(CoordinatorId(2))).iter().map(ToString::to_string).collect();
            assert_eq!(order.len(), 4);
            assert_eq!(order[2..], ["192.0.2.2:8551", "192.0.2.9:8551"]);
        }
    }
}
