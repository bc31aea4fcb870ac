//! Who gets a place among those of whom nothing is known but the address.
//!
//! Places are shared out among networks, so that no holder of many addresses takes them all: each network has a share of
//! its own, and when all places are taken, whoever holds most gives way to whoever holds less. Among equals the oldest
//! gives way, but not before it had time to finish: what is honest leaves by itself.

use super::source::{LEVELS, Network, Source};
use std::cmp::Reverse;
use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;
use tokio::time::Instant;

const WIDEST: usize = LEVELS - 1;

/// How many there may be.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Bounds {
    /// In all.
    pub(super) most: usize,
    /// In each network, the narrowest first.
    pub(super) of_network: [usize; LEVELS],
    /// How long an equal may stay before it has to give way.
    pub(super) patience: Duration,
}

/// Why there is no place.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum NoPlace {
    /// The caller's own network has as many as it may, or no fewer than any other when all are taken.
    Share,
    /// All are taken by others, who are new; the caller's network has none.
    Full,
}

/// A place that was given; the occupant that gave way for it, if one had to.
#[derive(Debug)]
pub(super) struct Given<T> {
    pub(super) place: u64,
    pub(super) gave_way: Option<T>,
}

/// All places and who has them.
#[derive(Debug)]
pub(super) struct Places<T> {
    bounds: Bounds,
    /// The oldest first.
    held: VecDeque<Held<T>>,
    /// How many each network has, so that whoever comes in a flood is refused at little cost.
    counts: BTreeMap<(usize, Network), usize>,
    next: u64,
}

#[derive(Debug)]
struct Held<T> {
    place: u64,
    source: Source,
    since: Instant,
    occupant: T,
}

impl<T> Places<T> {
    pub(super) fn new(bounds: Bounds) -> Self {
        Self { bounds, held: VecDeque::new(), counts: BTreeMap::new(), next: 0 }
    }

    /// Gives a place to a newcomer.
    pub(super) fn take(&mut self, source: Source, occupant: T, now: Instant) -> Result<Given<T>, NoPlace> {
        let gives_way = self.make_room(source, now)?;
        let gave_way = gives_way.and_then(|index| self.remove(index));
        let place = self.next;
        self.next += 1;
        for key in source.networks().into_iter().enumerate() {
            *self.counts.entry(key).or_default() += 1;
        }
        self.held.push_back(Held { place, source, since: now, occupant });
        Ok(Given { place, gave_way })
    }

    /// Frees a place; nothing happens if its occupant gave way before.
    pub(super) fn leave(&mut self, place: u64) {
        if let Ok(index) = self.held.binary_search_by_key(&place, |held| held.place) {
            self.remove(index);
        }
    }

    fn remove(&mut self, index: usize) -> Option<T> {
        let held = self.held.remove(index)?;
        for key in held.source.networks().into_iter().enumerate() {
            match self.counts.get_mut(&key) {
                Some(count) if *count > 1 => *count -= 1,
                _ => drop(self.counts.remove(&key)),
            }
        }
        Some(held.occupant)
    }

    fn count(&self, level: usize, network: Network) -> usize {
        self.counts.get(&(level, network)).copied().unwrap_or_default()
    }

    /// Who has to give way to a newcomer from `source`, if anyone.
    fn make_room(&self, source: Source, now: Instant) -> Result<Option<usize>, NoPlace> {
        for (level, (network, most)) in source.networks().into_iter().zip(self.bounds.of_network).enumerate() {
            if self.count(level, network) >= most {
                let own = self.within(level, network).find(|&index| self.had_its_time(index, now));
                return own.map(Some).ok_or(NoPlace::Share);
            }
        }
        if self.held.len() < self.bounds.most {
            return Ok(None);
        }
        let [.., widest] = source.networks();
        let own = self.count(WIDEST, widest);
        let most = self.counts.range((WIDEST, Network::FIRST)..).map(|(_, count)| *count).max();
        if most > Some(own + 1) {
            return Ok(self.oldest_of_largest());
        }
        let oldest = (0..self.held.len()).find(|&index| self.had_its_time(index, now));
        oldest.map(Some).ok_or(if own == 0 { NoPlace::Full } else { NoPlace::Share })
    }

    fn had_its_time(&self, index: usize, now: Instant) -> bool {
        now.saturating_duration_since(self.held[index].since) >= self.bounds.patience
    }

    /// Those of one network, the oldest first.
    fn within(&self, level: usize, network: Network) -> impl Iterator<Item = usize> {
        let of = move |held: &Held<T>| held.source.networks()[level] == network;
        self.held.iter().enumerate().filter(move |(_, held)| of(held)).map(|(index, _)| index)
    }

    /// The oldest of the narrowest network that holds most within the wider one that holds most; among equals the one
    /// that began first.
    fn oldest_of_largest(&self) -> Option<usize> {
        let mut within = None;
        for level in (0..LEVELS).rev() {
            let inside = |held: &&Held<T>| within.is_none_or(|(at, wide)| held.source.networks()[at] == wide);
            let ranked = self.held.iter().filter(inside).map(|held| {
                let network = held.source.networks()[level];
                (self.count(level, network), Reverse(held.place), network)
            });
            within = ranked.max().map(|(_, _, network)| (level, network));
        }
        within.and_then(|(level, network)| self.within(level, network).next())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOUNDS: Bounds = Bounds { most: 16, of_network: [4, 6, 8], patience: Duration::from_secs(1) };

    struct Scene {
        places: Places<usize>,
        now: Instant,
        came: usize,
    }

    impl Scene {
        fn new() -> Self {
            Self { places: Places::new(BOUNDS), now: Instant::now(), came: 0 }
        }

        /// Who gave way to a newcomer, counted from zero in the order of coming.
        fn comes(&mut self, ip: &str) -> Result<Option<usize>, NoPlace> {
            let given = self.places.take(Source::of(ip.parse().unwrap()), self.came, self.now)?;
            self.came += 1;
            assert!(self.places.held.len() <= BOUNDS.most);
            Ok(given.gave_way)
        }

        fn passes(&mut self, time: Duration) {
            self.now += time;
        }

        /// Takes all places from as many networks, each of which holds one.
        fn fill(&mut self) {
            for number in 0..BOUNDS.most {
                assert_eq!(self.comes(&format!("198.51.{number}.1")), Ok(None));
            }
        }
    }

    #[test]
    fn a_network_at_its_share_makes_room_for_its_own_once_the_oldest_had_its_time() {
        let mut scene = Scene::new();
        for _ in 0..4 {
            assert_eq!(scene.comes("192.0.2.1"), Ok(None));
        }
        assert_eq!(scene.comes("192.0.2.1"), Err(NoPlace::Share));
        assert_eq!(scene.comes("192.0.2.2"), Ok(None), "a neighbour has its own share");
        scene.passes(BOUNDS.patience);
        assert_eq!(scene.comes("192.0.2.1"), Ok(Some(0)));
    }

    #[test]
    fn many_addresses_of_one_holder_get_no_more_than_its_share() {
        let mut scene = Scene::new();
        let mut given = 0;
        for number in 0..64 {
            given += usize::from(scene.comes(&format!("2001:db8:0:{number:x}::1")).is_ok());
        }
        assert_eq!(given, 6, "they are of one /56");
        for number in 0..64 {
            given += usize::from(scene.comes(&format!("2001:db8:0:{:x}::1", 0x100 * number + 0x1000)).is_ok());
        }
        assert_eq!(given, 8, "they are of one /48");
        assert_eq!(scene.comes("2001:db8:1::1"), Ok(None));
    }

    #[test]
    fn when_all_places_are_taken_the_oldest_of_whoever_holds_most_gives_way_at_once() {
        let mut scene = Scene::new();
        for ip in ["198.51.100.1", "198.51.100.2"].repeat(3) {
            assert_eq!(scene.comes(ip), Ok(None));
        }
        while scene.places.held.len() < BOUNDS.most {
            let ip = format!("203.0.{}.1", scene.came);
            assert_eq!(scene.comes(&ip), Ok(None));
        }
        assert_eq!(scene.comes("192.0.2.1"), Ok(Some(0)));
        assert_eq!(scene.comes("192.0.2.1"), Ok(Some(1)));
    }

    #[test]
    fn among_equals_the_oldest_gives_way_only_once_it_had_its_time() {
        let mut scene = Scene::new();
        scene.fill();
        assert_eq!(scene.comes("192.0.2.1"), Err(NoPlace::Full));
        assert_eq!(scene.comes("198.51.7.1"), Err(NoPlace::Share), "it has one already, as everybody");
        scene.passes(BOUNDS.patience);
        assert_eq!(scene.comes("192.0.2.1"), Ok(Some(0)));
    }

    #[test]
    fn a_place_that_was_left_is_free_and_leaving_it_again_does_nothing() {
        let mut scene = Scene::new();
        scene.fill();
        scene.places.leave(3);
        assert_eq!(scene.comes("192.0.2.1"), Ok(None));
        scene.places.leave(3);
        assert_eq!(scene.places.held.len(), BOUNDS.most);
    }
}
