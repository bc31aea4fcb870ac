//! File descriptors: as many as the host allows, shared out so that callers never use up what the daemon itself needs.

use mesh_types::limits::{MAX_HANDSHAKES, MAX_JOINERS, MAX_NODES, MAX_STRANGERS, RESERVED_DESCRIPTORS};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use std::io;

/// How many connections of each kind there may be at once on one listener.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Budget {
    /// TLS handshakes under way.
    pub handshakes: usize,
    /// Without a certificate.
    pub strangers: usize,
    /// Without a certificate, but with a valid join token.
    pub joiners: usize,
    /// Of nodes.
    pub nodes: usize,
}

impl Budget {
    /// What so many descriptors allow. Coordinators and files have theirs before all others, and nodes half of the rest or
    /// more.
    pub fn of(descriptors: usize) -> Self {
        let left = descriptors.saturating_sub(RESERVED_DESCRIPTORS);
        let at_most = |most: usize, part: usize| most.min(left / part).max(1);
        let handshakes = at_most(MAX_HANDSHAKES, 4);
        let (strangers, joiners) = (at_most(MAX_STRANGERS, 8), at_most(MAX_JOINERS, 8));
        let nodes = left.saturating_sub(handshakes + strangers + joiners).max(1);
        Self { handshakes, strangers, joiners, nodes }
    }

    /// Whether every node of the largest mesh may be connected.
    pub fn is_ample(&self) -> bool {
        self.nodes >= MAX_NODES
    }
}

/// Lets this process open as many files as its hard limit allows; gives how many those are.
pub fn raise() -> io::Result<usize> {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    if soft < hard {
        setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?;
    }
    Ok(usize::try_from(hard).unwrap_or(usize::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nodes_keep_half_of_what_there_is_and_all_together_leave_what_is_reserved() {
        for descriptors in [256, 1_024, 4_096, 65_536, 1_048_576] {
            let Budget { handshakes, strangers, joiners, nodes } = Budget::of(descriptors);
            let left = descriptors - RESERVED_DESCRIPTORS;
            assert_eq!(handshakes + strangers + joiners + nodes, left, "{descriptors}");
            assert!(nodes >= left / 2, "{descriptors}");
            assert!(handshakes <= MAX_HANDSHAKES && strangers <= MAX_STRANGERS && joiners <= MAX_JOINERS);
        }
    }

    #[test]
    fn a_host_without_descriptors_still_has_a_place_for_each() {
        assert_eq!(Budget::of(0), Budget { handshakes: 1, strangers: 1, joiners: 1, nodes: 1 });
        assert!(!Budget::of(1_024).is_ample());
        assert!(Budget::of(1_048_576).is_ample());
    }

    #[test]
    fn the_soft_limit_becomes_the_hard_one() {
        let raised = raise().unwrap();
        let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
        assert_eq!((soft, raised), (hard, usize::try_from(hard).unwrap()));
    }
}
