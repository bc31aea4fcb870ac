//! What the node says of itself: its candidates, signed, in an order that everyone can tell.
//!
//! A word is signed when the candidates change and repeated as it is on every new session. Changes are rationed below
//! what coordinators take, so that a flapping interface is not cut off when it comes to rest.

use crate::barred::Barred;
use crate::clock::BootTime;
use ed25519_dalek::SigningKey;
use mesh_types::limits::MAX_CANDIDATES;
use mesh_types::{Candidate, CandidateKind, Incarnation, MeshId, MeshTime, NodeId, Presence, SignedPresence};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

/// Changes that may follow one another at once; a laptop that wakes up makes a handful.
const BURST: u32 = 10;
/// One more is allowed each time this has passed: with the burst, forty a minute.
const REFILL: Duration = Duration::from_secs(2);

/// The node's own presence.
#[derive(Clone, Debug)]
pub(crate) struct Voice {
    incarnation: Incarnation,
    sequence: u64,
    said: Option<Said>,
    wanted: Option<Vec<Candidate>>,
    credit: u32,
    refilled: BootTime,
}

#[derive(Clone, Debug)]
struct Said {
    candidates: Vec<Candidate>,
    signed: SignedPresence,
}

/// Who signs, for whom.
pub(crate) struct Signer<'a> {
    pub(crate) mesh: MeshId,
    pub(crate) node: NodeId,
    pub(crate) key: &'a SigningKey,
}

impl Voice {
    /// A life above `highest`, the highest incarnation known of this node.
    pub(crate) fn new(highest: Incarnation, now: BootTime) -> Self {
        Self { incarnation: above(highest), sequence: 0, said: None, wanted: None, credit: BURST, refilled: now }
    }

    pub(crate) fn incarnation(&self) -> Incarnation {
        self.incarnation
    }

    /// Goes above the highest incarnation that a coordinator knows, if that is not this life's; whether it had to.
    pub(crate) fn rise_above(&mut self, known: Incarnation) -> bool {
        let ours = known == self.incarnation && self.said.is_some();
        if known < self.incarnation || ours {
            return false;
        }
        self.incarnation = above(known);
        self.sequence = 0;
        if let Some(said) = self.said.take() {
            self.wanted.get_or_insert(said.candidates);
        }
        true
    }

    /// Takes where the node may be reached from now on.
    pub(crate) fn want(&mut self, candidates: Vec<Candidate>) {
        let known = self.said.as_ref().is_some_and(|said| said.candidates == candidates);
        self.wanted = (!known).then_some(candidates);
    }

    /// Signs what changed, if it may be said by now; the new word.
    pub(crate) fn speak(&mut self, signer: &Signer<'_>, mesh_time: MeshTime, now: BootTime) -> Option<SignedPresence> {
        self.refill(now);
        if self.credit == 0 {
            return None;
        }
        let candidates = self.wanted.take()?;
        self.credit -= 1;
        self.sequence += 1;
        let presence = Presence {
            node: signer.node,
            incarnation: self.incarnation,
            sequence: self.sequence,
            signed_at: mesh_time,
            candidates: candidates.clone(),
        };
        let signed = presence.sign(signer.mesh, signer.key);
        self.said = Some(Said { candidates, signed: signed.clone() });
        Some(signed)
    }

    /// The last word, to be said again on a new session.
    pub(crate) fn last_word(&self) -> Option<&SignedPresence> {
        self.said.as_ref().map(|said| &said.signed)
    }

    /// Where the node says, or is about to say, that it may be reached.
    pub(crate) fn candidates(&self) -> &[Candidate] {
        let said = self.said.as_ref().map(|said| &said.candidates);
        self.wanted.as_ref().or(said).map_or(&[], Vec::as_slice)
    }

    /// When something that waits may be said.
    pub(crate) fn due(&self) -> Option<BootTime> {
        self.wanted.as_ref().filter(|_| self.credit == 0).map(|_| self.refilled + REFILL)
    }

    fn refill(&mut self, now: BootTime) {
        while self.credit < BURST && now >= self.refilled + REFILL {
            self.credit += 1;
            self.refilled = self.refilled + REFILL;
        }
        if self.credit == BURST {
            self.refilled = now;
        }
    }
}

fn above(known: Incarnation) -> Incarnation {
    Incarnation(known.0.saturating_add(1))
}

/// The host candidates of a node with these addresses: what another host could send to, in the order given.
pub(crate) fn host_candidates(addresses: &[IpAddr], port: u16, barred: &Barred) -> Vec<Candidate> {
    let mut candidates = Vec::new();
    for address in addresses {
        let ip = address.to_canonical();
        let candidate = Candidate { kind: CandidateKind::Host, endpoint: SocketAddr::new(ip, port) };
        if candidate.is_plausible() && barred.permits(candidate.endpoint) && !candidates.contains(&candidate) {
            candidates.push(candidate);
        }
    }
    candidates.truncate(MAX_CANDIDATES);
    candidates
}
