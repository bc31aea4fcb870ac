//! How often one peer is tried. A peer says itself where it may be reached, and each try is a packet to there: whoever
//! steals its keys must not aim the whole mesh at somebody else.
//!
//! A burst for the first turns of roaming, then no faster than WireGuard repeats a handshake by itself, however often
//! the peer changes its word; and few tries at an address from which nothing authenticated ever came.

use crate::allowance::Bucket;
use crate::clock::BootTime;
use mesh_types::limits::{CLAIMED_ADDRESS_TRIES, MAX_CANDIDATES, MAX_PROVEN_ADDRESSES, PEER_TRIES};
use std::collections::VecDeque;
use std::net::{IpAddr, SocketAddr};

/// The tries that one peer has left.
#[derive(Clone, Debug)]
pub(crate) struct Budget {
    all: Bucket,
    /// Addresses that were tried and are only the peer's word, the latest last.
    claimed: VecDeque<(IpAddr, Bucket)>,
    /// Addresses that it authenticated from, the latest last.
    proven: VecDeque<IpAddr>,
}

impl Budget {
    pub(crate) fn new(now: BootTime) -> Self {
        Self { all: Bucket::new(PEER_TRIES, now), claimed: VecDeque::new(), proven: VecDeque::new() }
    }

    /// The first of these places from `turn` on that may be tried now, as the number of places to pass over; else when
    /// one may. `worked` is known from an earlier life.
    pub(crate) fn pick(
        &self,
        places: &[SocketAddr],
        turn: usize,
        worked: Option<SocketAddr>,
        now: BootTime,
    ) -> Result<usize, BootTime> {
        let worked = worked.map(|at| at.ip());
        let in_turn = places.iter().cycle().skip(turn % places.len().max(1)).take(places.len());
        let next = |at: &SocketAddr| {
            let claimed = self.claimed.iter().find(|(ip, _)| *ip == at.ip() && worked != Some(*ip));
            claimed.map_or(now, |(_, bucket)| bucket.next()).max(self.all.next())
        };
        let times: Vec<BootTime> = in_turn.map(next).collect();
        let free = times.iter().position(|at| *at <= now);
        free.ok_or_else(|| times.into_iter().min().unwrap_or(now))
    }

    /// Counts a try.
    pub(crate) fn take(&mut self, at: IpAddr, now: BootTime) {
        self.all.take(now);
        if self.proven.contains(&at) {
            return;
        }
        if let Some((_, bucket)) = self.claimed.iter_mut().find(|(ip, _)| *ip == at) {
            bucket.take(now);
            return;
        }
        if self.claimed.len() == MAX_CANDIDATES {
            self.claimed.pop_front();
        }
        let mut bucket = Bucket::new(CLAIMED_ADDRESS_TRIES, now);
        bucket.take(now);
        self.claimed.push_back((at, bucket));
    }

    /// Takes the news that something authenticated came from there: the try that led to it is not counted.
    pub(crate) fn prove(&mut self, at: IpAddr) {
        if let Some(index) = self.claimed.iter().position(|(ip, _)| *ip == at) {
            self.claimed.remove(index);
            self.all.give_back();
        }
        if self.proven.contains(&at) {
            return;
        }
        if self.proven.len() == MAX_PROVEN_ADDRESSES {
            self.proven.pop_front();
        }
        self.proven.push_back(at);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(last: u8) -> SocketAddr {
        SocketAddr::from(([192, 0, 2, last], 51_820))
    }

    fn seconds(seconds: u64) -> BootTime {
        BootTime::from_millis(seconds * 1_000)
    }

    /// How many tries these places get from one second to another, and which.
    fn tried(budget: &mut Budget, places: &[SocketAddr], from: u64, to: u64) -> Vec<SocketAddr> {
        let mut tried = Vec::new();
        for now in (from..to).map(seconds) {
            while let Ok(skip) = budget.pick(places, tried.len(), None, now) {
                let place = places[(tried.len() + skip) % places.len()];
                budget.take(place.ip(), now);
                tried.push(place);
            }
        }
        tried
    }

    #[test]
    fn an_address_that_nothing_came_from_is_tried_a_few_times_and_then_once_a_minute() {
        let mut budget = Budget::new(seconds(0));
        assert_eq!(tried(&mut budget, &[at(1)], 0, 1).len(), 4);
        assert_eq!(tried(&mut budget, &[at(1)], 1, 301).len(), 5);
    }

    #[test]
    fn changed_candidates_draw_a_burst_and_then_one_try_in_five_seconds() {
        let mut budget = Budget::new(seconds(0));
        let first: Vec<_> = (0..200).map(at).collect();
        assert_eq!(tried(&mut budget, &first, 0, 1).len(), 16);
        let next = &first[100..];
        assert_eq!(tried(&mut budget, next, 1, 101).len(), 20);
    }

    #[test]
    fn where_the_peer_was_it_is_looked_for_when_its_claims_are_used_up() {
        let mut budget = Budget::new(seconds(0));
        budget.prove(at(9).ip());
        tried(&mut budget, &[at(1)], 0, 1);
        assert_eq!(budget.pick(&[at(1), at(9)], 0, None, seconds(1)), Ok(1));
        assert_eq!(budget.pick(&[at(1), at(8)], 0, Some(at(1)), seconds(1)), Ok(0), "it worked in an earlier life");
        assert!(budget.pick(&[at(1)], 0, None, seconds(1)).is_err());
    }

    #[test]
    fn a_try_that_succeeds_costs_nothing() {
        let mut budget = Budget::new(seconds(0));
        for last in 0..200 {
            assert_eq!(budget.pick(&[at(last)], 0, None, seconds(0)), Ok(0), "move {last}");
            budget.take(at(last).ip(), seconds(0));
            budget.prove(at(last).ip());
        }
    }
}
