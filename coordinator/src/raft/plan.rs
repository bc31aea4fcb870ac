//! Who should be a learner and who should vote: a pure comparison of the registry with Raft's membership.
//!
//! Voters are always odd in number: a second coordinator stays a learner until a third is there, then both become
//! voters in one change. An even number of voters survives no more losses than one less, and costs one more replica
//! whose loss stops writes; so when one of three is removed, one of the two that are left goes back to being a learner
//! and the leader votes alone until a third joins again. Only learners that have caught up are promoted.

use std::collections::BTreeSet;

/// What a leader knows.
#[derive(Clone, Debug, Default)]
pub(crate) struct Situation {
    /// The leader's own id.
    pub(crate) leader: u64,
    /// Coordinators in the registry.
    pub(crate) registered: BTreeSet<u64>,
    /// Raft's voters.
    pub(crate) voters: BTreeSet<u64>,
    /// Raft's learners.
    pub(crate) learners: BTreeSet<u64>,
    /// Learners whose log is as good as the leader's, and who answer.
    pub(crate) caught_up: BTreeSet<u64>,
    /// Members that answered lately.
    pub(crate) answering: BTreeSet<u64>,
}

/// One step towards what should be.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Step {
    /// The leader itself was removed: another voter leads, and goes on from there.
    HandOver(u64),
    /// Registered, but unknown to Raft.
    AddLearner(u64),
    /// These vote; who else did becomes a learner.
    SetVoters(BTreeSet<u64>),
    /// No longer registered.
    RemoveLearners(BTreeSet<u64>),
}

/// The next step, or none if everything is as it should be.
pub(crate) fn next_step(now: &Situation) -> Option<Step> {
    if !now.registered.contains(&now.leader) {
        let mut heirs = now.voters.intersection(&now.registered).peekable();
        if heirs.peek().is_some() {
            return heirs.find(|id| now.answering.contains(id)).map(|heir| Step::HandOver(*heir));
        }
        // The only voter was removed: learners that have everything take its place.
        let heirs: BTreeSet<u64> = odd(now.caught_up.intersection(&now.registered).copied().collect());
        return (!heirs.is_empty()).then_some(Step::SetVoters(heirs));
    }
    let voters = wanted_voters(now);
    if voters != now.voters {
        return Some(Step::SetVoters(voters));
    }
    let gone: BTreeSet<u64> = now.learners.difference(&now.registered).copied().collect();
    if !gone.is_empty() {
        return Some(Step::RemoveLearners(gone));
    }
    let new = now.registered.iter().find(|id| !now.voters.contains(id) && !now.learners.contains(id));
    new.map(|id| Step::AddLearner(*id))
}

fn wanted_voters(now: &Situation) -> BTreeSet<u64> {
    let stays = |id: &&u64| **id != now.leader && now.registered.contains(id);
    // Where one has to go, it is one that does not answer.
    let (present, silent): (Vec<_>, Vec<_>) =
        now.voters.iter().filter(stays).partition(|id| now.answering.contains(id));
    let ranked = std::iter::once(&now.leader)
        .chain(present)
        .chain(silent)
        .chain(now.caught_up.difference(&now.voters).filter(stays));
    odd(ranked.copied().collect())
}

/// The first of `ranked`, as many as make an odd number.
fn odd(ranked: Vec<u64>) -> BTreeSet<u64> {
    let count = if ranked.len().is_multiple_of(2) { ranked.len().saturating_sub(1) } else { ranked.len() };
    ranked.into_iter().take(count).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(ids: &[u64]) -> BTreeSet<u64> {
        ids.iter().copied().collect()
    }

    fn now(registered: &[u64], voters: &[u64], learners: &[u64], caught_up: &[u64]) -> Situation {
        Situation {
            leader: 1,
            registered: set(registered),
            voters: set(voters),
            learners: set(learners),
            caught_up: set(caught_up),
            answering: set(&[3]),
        }
    }

    #[test]
    fn each_situation_has_its_next_step() {
        let voters = |ids: &[u64]| Some(Step::SetVoters(set(ids)));
        for (case, situation, step) in [
            ("alone", now(&[1], &[1], &[], &[]), None),
            ("the second is added as a learner", now(&[1, 2], &[1], &[], &[]), Some(Step::AddLearner(2))),
            ("and stays one, also when it has caught up", now(&[1, 2], &[1], &[2], &[2]), None),
            ("the third too", now(&[1, 2, 3], &[1], &[2], &[2]), Some(Step::AddLearner(3))),
            ("until both have caught up", now(&[1, 2, 3], &[1], &[2, 3], &[2]), None),
            ("then both vote at once", now(&[1, 2, 3], &[1], &[2, 3], &[2, 3]), voters(&[1, 2, 3])),
            ("the fourth stays a learner", now(&[1, 2, 3, 4], &[1, 2, 3], &[4], &[4]), None),
            ("until the fifth", now(&[1, 2, 3, 4, 5], &[1, 2, 3], &[4, 5], &[4, 5]), voters(&[1, 2, 3, 4, 5])),
            (
                "a lost voter is replaced at once by a learner",
                now(&[1, 2, 4], &[1, 2, 3], &[4], &[4]),
                voters(&[1, 2, 4]),
            ),
            ("of two that are left the leader votes", now(&[1, 3], &[1, 2, 3], &[], &[]), voters(&[1])),
            ("a removed learner goes", now(&[1], &[1], &[2], &[2]), Some(Step::RemoveLearners(set(&[2])))),
            ("a removed leader hands over to who answers", now(&[2, 3], &[1, 2, 3], &[], &[]), Some(Step::HandOver(3))),
            ("and to nobody else", now(&[2, 4], &[1, 2, 4], &[], &[]), None),
            ("or a learner that has everything votes", now(&[2], &[1], &[2], &[2]), voters(&[2])),
            ("once it has", now(&[2], &[1], &[2], &[]), None),
        ] {
            assert_eq!(next_step(&situation), step, "{case}");
        }
    }

    #[test]
    fn who_answers_keeps_its_vote_before_one_that_does_not() {
        let shrunk = Situation { answering: set(&[1, 4, 5]), ..now(&[1, 3, 4, 5], &[1, 2, 3, 4, 5], &[], &[]) };
        assert_eq!(next_step(&shrunk), Some(Step::SetVoters(set(&[1, 4, 5]))));
        let back = Situation { answering: set(&[1, 3, 4, 5]), ..now(&[1, 3, 4, 5], &[1, 4, 5], &[3], &[3]) };
        assert_eq!(next_step(&back), None, "and nobody loses it to one that comes back");
    }
}
