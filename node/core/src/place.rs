//! Where a peer may be, in the order in which it is looked for.

use crate::view::View;
use mesh_types::{Candidate, CandidateKind};
use std::net::{IpAddr, SocketAddr};

/// The order in which places are tried: the fields are the policy, smaller is better.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
struct Rank {
    /// The peer was there and is not any more.
    away: bool,
    /// An address that this host has too (a container bridge): more likely ours than the peer's.
    ours: bool,
    /// This host has no address of the family.
    no_family: bool,
    origin: Origin,
    /// Where the peer lists it.
    position: usize,
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Origin {
    /// It worked before, and the peer still lists it.
    Worked,
    /// The peer's own address, on a network that this host is on too.
    Near,
    /// The peer lists it.
    Listed(CandidateKind),
    /// It worked before, and the peer does not list it.
    WorkedUnlisted,
}

/// All places where the peer may be, the best first. None is reached through the mesh.
pub(crate) fn places(candidates: &[Candidate], view: &View<'_>, away: Option<SocketAddr>) -> Vec<SocketAddr> {
    let rank = |origin: Origin, position: usize, at: SocketAddr| {
        let rank = Rank {
            away: away == Some(at),
            ours: view.underlay.contains(&at.ip()),
            no_family: !view.underlay.iter().any(|own| own.is_ipv4() == at.is_ipv4()),
            origin,
            position,
        };
        (rank, at)
    };
    let listed = candidates.iter().enumerate().map(|(position, candidate)| {
        let at = candidate.endpoint;
        let near = view.underlay.iter().any(|&own| share_network(own, at.ip()));
        let origin = match candidate.kind {
            _ if view.worked == Some(at) => Origin::Worked,
            CandidateKind::Host if near => Origin::Near,
            kind => Origin::Listed(kind),
        };
        rank(origin, position, at)
    });
    let unlisted = view.worked.filter(|&at| candidates.iter().all(|c| c.endpoint != at));
    let unlisted = unlisted.map(|at| rank(Origin::WorkedUnlisted, candidates.len(), at));
    let mut ranked: Vec<_> = listed.chain(unlisted).filter(|(_, at)| view.barred.permits(*at)).collect();
    ranked.sort_unstable();
    let mut order = Vec::with_capacity(ranked.len());
    for (_, at) in ranked {
        if !order.contains(&at) {
            order.push(at);
        }
    }
    order
}

/// Whether two addresses are probably on one link: the usual size of one.
fn share_network(a: IpAddr, b: IpAddr) -> bool {
    match (a, b) {
        (IpAddr::V4(a), IpAddr::V4(b)) => a.octets()[..3] == b.octets()[..3],
        (IpAddr::V6(a), IpAddr::V6(b)) => a.octets()[..8] == b.octets()[..8],
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::barred::tests::barred;
    use crate::view::Online;

    fn order(listed: &[&str], underlay: &[&str], worked: Option<&str>, away: Option<&str>) -> Vec<String> {
        let candidates: Vec<_> = listed
            .iter()
            .map(|text| match text.strip_prefix("nat ") {
                Some(text) => Candidate { kind: CandidateKind::Reflexive, endpoint: text.parse().unwrap() },
                None => Candidate { kind: CandidateKind::Host, endpoint: text.parse().unwrap() },
            })
            .collect();
        let underlay: Vec<IpAddr> = underlay.iter().map(|text| text.parse().unwrap()).collect();
        let worked = worked.map(|text| text.parse().unwrap());
        let barred = barred(&["172.31.0.0/16"]);
        let view = View { underlay: &underlay, barred: &barred, worked, online: Online::Unknown, fresh: false };
        places(&candidates, &view, away.map(|text| text.parse().unwrap())).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn places_are_ordered_by_what_speaks_for_them() {
        let own = ["192.168.7.2", "172.17.0.1"];
        for (why, listed, worked, away, expected) in [
            ("as the peer lists them", &["1.0.0.1:1", "1.0.0.2:1"][..], None, None, &["1.0.0.1:1", "1.0.0.2:1"][..]),
            ("what worked", &["1.0.0.1:1", "1.0.0.2:1"], Some("1.0.0.2:1"), None, &["1.0.0.2:1", "1.0.0.1:1"]),
            ("a shared network", &["1.0.0.1:1", "192.168.7.9:1"], None, None, &["192.168.7.9:1", "1.0.0.1:1"]),
            ("its own before a translator's", &["nat 1.0.0.1:1", "1.0.0.2:1"], None, None, &["1.0.0.2:1", "1.0.0.1:1"]),
            ("a family that we have", &["[2001:db8::1]:1", "1.0.0.1:1"], None, None, &["1.0.0.1:1", "[2001:db8::1]:1"]),
            ("not an address of ours", &["172.17.0.1:1", "1.0.0.1:1"], None, None, &["1.0.0.1:1", "172.17.0.1:1"]),
            ("listed before remembered", &["1.0.0.1:1"], Some("1.0.0.9:1"), None, &["1.0.0.1:1", "1.0.0.9:1"]),
            (
                "not where it left",
                &["1.0.0.1:1", "1.0.0.2:1"],
                Some("1.0.0.1:1"),
                Some("1.0.0.1:1"),
                &["1.0.0.2:1", "1.0.0.1:1"],
            ),
            ("only memory", &[], Some("1.0.0.9:1"), None, &["1.0.0.9:1"]),
            ("nothing", &[], None, None, &[]),
            (
                "nothing in the overlay or behind a link that the mesh carries",
                &["10.99.0.9:1", "172.31.0.1:1", "[fd00:99::9]:1", "1.0.0.1:1"],
                None,
                None,
                &["1.0.0.1:1"],
            ),
            ("not what is remembered there", &["nat 10.99.0.9:1"], Some("10.99.0.7:1"), None, &[]),
        ] {
            assert_eq!(order(listed, &own, worked, away), expected, "{why}");
        }
    }

    #[test]
    fn a_place_that_is_listed_twice_is_tried_once() {
        assert_eq!(order(&["nat 1.0.0.1:1", "1.0.0.1:1"], &["1.0.0.7"], None, None), ["1.0.0.1:1"]);
    }
}
