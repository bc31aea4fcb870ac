//! Where peers are: endpoints, which never lie where they are barred.
//!
//! An endpoint that is reached through a tunnel of ours would wrap every datagram to it once more. WireGuard takes as
//! endpoint whatever something authentic came from, and anyone on the way can forge an outer source, so that it is looked
//! at here, the one place where an endpoint is set. What came from a barred address is delivered all the same: it
//! authenticated, dropping it would let a peer that chose a wrong source lose all it sends, and nothing goes back there.
//! A handshake from there is answered at the endpoint held, if there is one.

use crate::barred::Barred;
use crate::udp::Endpoint;
use mesh_types::PublicKey;
use std::net::SocketAddr;
use tracing::warn;

/// Where a peer is, as far as is known: never at a barred address.
///
/// Both functions that set it read the ranges while the peer is locked, and whoever changes the ranges locks every peer
/// afterwards: so no endpoint escapes both looks.
#[derive(Default)]
pub(crate) struct PeerEndpoint {
    held: Option<Endpoint>,
    refused: u64,
    last_refused: Option<SocketAddr>,
}

impl PeerEndpoint {
    /// The endpoint.
    pub(crate) fn get(&self) -> Option<Endpoint> {
        self.held
    }

    /// How many were refused, and the last of them.
    pub(crate) fn refused(&self) -> (u64, Option<SocketAddr>) {
        (self.refused, self.last_refused)
    }

    /// Takes another endpoint unless it is barred; says whether it was taken. A barred address of ours is not answered
    /// from.
    pub(crate) fn take(&mut self, endpoint: Endpoint, peer: &PublicKey, barred: &Barred) -> bool {
        let Endpoint { remote, source } = endpoint;
        if barred.contains(remote.ip()) {
            self.refuse(remote, peer);
            return false;
        }
        self.held = Some(Endpoint { remote, source: source.filter(|source| !barred.contains(*source)) });
        true
    }

    /// Gives up an endpoint that is barred now.
    pub(crate) fn recheck(&mut self, peer: &PublicKey, barred: &Barred) {
        if let Some(held) = self.held.take() {
            self.take(held, peer, barred);
        }
    }

    /// Lets the host choose from which address of ours the peer is written to.
    pub(crate) fn forget_source(&mut self) {
        if let Some(held) = &mut self.held {
            held.source = None;
        }
    }

    fn refuse(&mut self, remote: SocketAddr, peer: &PublicKey) {
        self.refused += 1;
        self.last_refused = Some(remote);
        // Told ever more seldom: whoever can forge a source can do it with each packet.
        if self.refused.is_power_of_two() {
            warn!(%peer, endpoint = %remote, refused = self.refused, "an endpoint inside a tunnel of this host is not taken");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PEER: PublicKey = PublicKey::from_bytes([9; 32]);

    fn at(remote: &str, source: Option<&str>) -> Endpoint {
        Endpoint { remote: remote.parse().unwrap(), source: source.map(|source| source.parse().unwrap()) }
    }

    fn barred(ranges: &[&str]) -> Barred {
        let barred = Barred::default();
        barred.set_ranges(ranges.iter().map(|range| range.parse().unwrap()).collect());
        barred
    }

    #[test]
    fn an_endpoint_in_a_barred_range_is_not_taken_and_the_one_held_stays() {
        let barred = barred(&["10.77.0.0/16", "fd77::/16"]);
        let mut endpoint = PeerEndpoint::default();
        assert!(endpoint.take(at("192.0.2.1:7", None), &PEER, &barred));
        for inside in ["10.77.0.9:7", "[fd77::9]:7", "[::ffff:10.77.0.9]:7"] {
            assert!(!endpoint.take(at(inside, None), &PEER, &barred), "{inside}");
        }
        assert_eq!(endpoint.get(), Some(at("192.0.2.1:7", None)));
        assert_eq!(endpoint.refused(), (3, Some("[::ffff:10.77.0.9]:7".parse().unwrap())));
    }

    #[test]
    fn what_is_barred_later_is_given_up_and_only_that() {
        let (free, narrow) = (barred(&[]), barred(&["10.77.0.0/16"]));
        for (remote, stays) in [("10.77.0.9:7", false), ("10.78.0.9:7", true)] {
            let mut endpoint = PeerEndpoint::default();
            assert!(endpoint.take(at(remote, None), &PEER, &free));
            endpoint.recheck(&PEER, &narrow);
            assert_eq!((endpoint.get().is_some(), endpoint.refused().0), (stays, u64::from(!stays)), "{remote}");
        }
    }

    #[test]
    fn no_answer_leaves_from_a_barred_address_of_ours() {
        let (free, narrow) = (barred(&[]), barred(&["10.77.0.0/16"]));
        let mut endpoint = PeerEndpoint::default();
        assert!(endpoint.take(at("192.0.2.1:7", Some("10.77.0.1")), &PEER, &free));
        endpoint.recheck(&PEER, &narrow);
        assert_eq!(endpoint.get(), Some(at("192.0.2.1:7", None)));
        assert!(endpoint.take(at("192.0.2.2:7", Some("10.77.0.1")), &PEER, &narrow));
        assert_eq!(endpoint.get(), Some(at("192.0.2.2:7", None)));
    }
}
