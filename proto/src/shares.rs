//! Who holds how many connections: each member, or each user of this host, has the same bound.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};

/// How many each one has taken, all with the same bound; clones share them.
#[derive(Clone, Debug)]
pub(crate) struct Shares<K> {
    most: usize,
    taken: Arc<Mutex<BTreeMap<K, usize>>>,
}

impl<K: Ord + Clone> Shares<K> {
    pub(crate) fn of(most: usize) -> Self {
        Self { most, taken: Arc::default() }
    }

    /// A share until it is dropped; none if `holder` has as many as it may.
    pub(crate) fn take(&self, holder: K) -> Option<Share<K>> {
        let mut taken = self.taken();
        let count = taken.entry(holder.clone()).or_default();
        if *count >= self.most {
            return None;
        }
        *count += 1;
        Some(Share { shares: self.clone(), holder })
    }

    fn taken(&self) -> MutexGuard<'_, BTreeMap<K, usize>> {
        self.taken.lock().expect("no code panics while it holds the shares")
    }
}

/// One that was taken.
#[derive(Debug)]
pub(crate) struct Share<K: Ord + Clone> {
    shares: Shares<K>,
    holder: K,
}

impl<K: Ord + Clone> Drop for Share<K> {
    fn drop(&mut self) {
        let mut taken = self.shares.taken();
        let left = taken.get(&self.holder).map_or(0, |count| count.saturating_sub(1));
        if left == 0 {
            taken.remove(&self.holder);
        } else {
            taken.insert(self.holder.clone(), left);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_share_is_free_again_once_it_is_left() {
        let shares = Shares::of(2);
        let (first, _second) = (shares.take('a').unwrap(), shares.take('a').unwrap());
        assert!(shares.take('a').is_none());
        let _other = shares.take('b').unwrap();
        drop(first);
        let _third = shares.take('a').unwrap();
        assert!(shares.take('a').is_none());
    }
}
