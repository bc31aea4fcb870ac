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
    /// The caller's own network has as many as it may, all of them new.
    Share,
    /// All are taken by others who are new, none of whom holds more.
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
        Self { bounds, held: VecDeque::new(), next: 0 }
    }

    /// Gives a place to a newcomer.
    pub(super) fn take(&mut self, source: Source, occupant: T, now: Instant) -> Result<Given<T>, NoPlace> {
        let gives_way = self.make_room(source, now)?;
        let gave_way = gives_way.and_then(|index| self.held.remove(index)).map(|held| held.occupant);
        let place = self.next;
        self.next += 1;
        self.held.push_back(Held { place, source, since: now, occupant });
        Ok(Given { place, gave_way })
    }

    /// Frees a place; nothing happens if its occupant gave way before.
    pub(super) fn leave(&mut self, place: u64) {
        self.held.retain(|held| held.place != place);
    }

    /// Who has to give way to a newcomer from `source`, if anyone.
    fn make_room(&self, source: Source, now: Instant) -> Result<Option<usize>, NoPlace> {
        for (level, (network, most)) in source.networks().into_iter().zip(self.bounds.of_network).enumerate() {
            if self.within(level, network).count() >= most {
                let own = self.within(level, network).find(|&index| self.had_its_time(index, now));
                return own.map(Some).ok_or(NoPlace::Share);
            }
        }
        if self.held.len() < self.bounds.most {
            return Ok(None);
        }
        let [.., widest] = source.networks();
        let own = self.within(LEVELS - 1, widest).count();
        if let Some((_, count)) = self.largest(LEVELS - 1, |_| true)
            && count > own + 1
        {
            return Ok(self.oldest_of_largest());
        }
        (0..self.held.len()).find(|&index| self.had_its_time(index, now)).map(Some).ok_or(NoPlace::Full)
    }

    fn had_its_time(&self, index: usize, now: Instant) -> bool {
        now.saturating_duration_since(self.held[index].since) >= self.bounds.patience
    }

    /// Those of one network, the oldest first.
    fn within(&self, level: usize, network: Network) -> impl Iterator<Item = usize> {
        let of = move |held: &Held<T>| held.source.networks()[level] == network;
        self.held.iter().enumerate().filter(move |(_, held)| of(held)).map(|(index, _)| index)
    }

    /// The network that holds most, among the sources that are looked at; among equals that of the oldest.
    fn largest(&self, level: usize, looked_at: impl Fn(&Source) -> bool) -> Option<(Network, usize)> {
        let mut counts = BTreeMap::<Network, (usize, Reverse<u64>)>::new();
        for held in self.held.iter().filter(|held| looked_at(&held.source)) {
            counts.entry(held.source.networks()[level]).or_insert((0, Reverse(held.place))).0 += 1;
        }
        counts.into_iter().max_by_key(|(_, rank)| *rank).map(|(network, (count, _))| (network, count))
    }

    /// The oldest of the narrowest network that holds most within the wider one that holds most.
    fn oldest_of_largest(&self) -> Option<usize> {
        let (widest, _) = self.largest(LEVELS - 1, |_| true)?;
        let (middle, _) = self.largest(1, |source| source.networks()[LEVELS - 1] == widest)?;
        let (narrowest, _) = self.largest(0, |source| source.networks()[1] == middle)?;
        self.within(0, narrowest).next()
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
