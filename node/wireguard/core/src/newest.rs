//! The greatest timestamp of each peer's initiations, while the peer itself is not there.
//!
//! A peer that is made anew, or taken away and given again, would take every initiation that was recorded before, and its
//! endpoint would go to whoever replays one. They are good for one private key of this side: with another no recorded
//! initiation authenticates.

use crate::tai64n::Tai64n;
use mesh_types::PublicKey;
use std::collections::BTreeMap;

/// Keys that are remembered: as many as a mesh may have nodes, 4 MiB. Beyond it the half with the smaller timestamps is
/// forgotten: those have been away for longest, and a replay of theirs needs the peer to be given again.
const MAX_REMEMBERED: usize = 65_536;

/// Timestamps by public key.
#[derive(Debug, Default)]
pub struct NewestInitiations(BTreeMap<PublicKey, Tai64n>);

impl NewestInitiations {
    /// Remembers the timestamp of a peer that goes.
    pub fn keep(&mut self, peer: PublicKey, newest: Tai64n) {
        if newest == Tai64n::default() {
            return;
        }
        self.0.insert(peer, newest);
        if self.0.len() > MAX_REMEMBERED {
            let mut all: Vec<Tai64n> = self.0.values().copied().collect();
            let (_, median, _) = all.select_nth_unstable(MAX_REMEMBERED / 2);
            let median = *median;
            self.0.retain(|_, newest| *newest > median);
        }
    }

    /// Gives back the timestamp of a peer that comes; the smallest if none is known.
    pub fn take(&mut self, peer: &PublicKey) -> Tai64n {
        self.0.remove(peer).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn key(number: u32) -> PublicKey {
        let mut bytes = [0; 32];
        bytes[..4].copy_from_slice(&number.to_be_bytes());
        PublicKey::from_bytes(bytes)
    }

    fn stamp(seconds: u32) -> Tai64n {
        Tai64n::from_unix(Duration::from_secs(seconds.into()))
    }

    #[test]
    fn what_was_kept_is_given_back_once() {
        let mut newest = NewestInitiations::default();
        newest.keep(key(1), stamp(7));
        newest.keep(key(2), Tai64n::default());
        assert_eq!(newest.0.len(), 1, "a peer that never came takes no place");
        assert_eq!([newest.take(&key(1)), newest.take(&key(1))], [stamp(7), Tai64n::default()]);
    }

    #[test]
    fn too_many_are_halved_and_the_latest_stay() {
        let mut newest = NewestInitiations::default();
        (0..=MAX_REMEMBERED as u32).for_each(|number| newest.keep(key(number), stamp(number)));
        assert_eq!(newest.0.len(), MAX_REMEMBERED / 2);
        assert_eq!(newest.take(&key(0)), Tai64n::default());
        assert_eq!(newest.take(&key(MAX_REMEMBERED as u32)), stamp(MAX_REMEMBERED as u32));
    }
}
