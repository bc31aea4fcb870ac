//! Counters of history: revision (of the registry), epoch (of the mesh's past), level (of the log's language).

use serde::{Deserialize, Serialize};
use std::fmt;

/// Counts registry changes that a node can see; a record carries the revision that last changed it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, Debug, Default)]
#[serde(transparent)]
pub struct Revision(pub u64);

impl Revision {
    /// Before the first change; what a node without a netmap holds.
    pub const NONE: Self = Self(0);

    /// The revision after this one.
    pub const fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

impl fmt::Display for Revision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// One uninterrupted history of a mesh. Restore and recovery open the next one.
///
/// Revisions compare only within an epoch. A higher counter wins; an equal counter with another id is another
/// history, and refused.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, Debug)]
pub struct Epoch {
    /// Raised by every restore and recovery.
    pub counter: u64,
    /// Random, to tell two histories apart that were opened with the same counter.
    pub id: u64,
}

/// How a held epoch relates to an offered one.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum EpochOrder {
    /// The same history.
    Same,
    /// The offered one is later: what was held is replaced by a snapshot.
    Newer,
    /// The offered one is earlier: refuse it.
    Older,
    /// Same counter, other id: a history that split; refuse it.
    Split,
}

impl Epoch {
    /// How `offered` relates to this held epoch.
    pub fn compare(self, offered: Self) -> EpochOrder {
        match offered.counter.cmp(&self.counter) {
            std::cmp::Ordering::Greater => EpochOrder::Newer,
            std::cmp::Ordering::Less => EpochOrder::Older,
            std::cmp::Ordering::Equal if offered.id == self.id => EpochOrder::Same,
            std::cmp::Ordering::Equal => EpochOrder::Split,
        }
    }
}

impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{:016x}", self.counter, self.id)
    }
}

/// The language of the replicated log: which commands exist and what they mean.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, Debug)]
#[serde(transparent)]
pub struct Level(pub u32);

impl Level {
    /// The only level so far.
    pub const FIRST: Self = Self(1);
    /// The highest level that this binary understands.
    pub const SUPPORTED: Self = Self(1);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_split_history_is_neither_newer_nor_the_same() {
        let held = Epoch { counter: 3, id: 7 };
        assert_eq!(held.compare(Epoch { counter: 3, id: 7 }), EpochOrder::Same);
        assert_eq!(held.compare(Epoch { counter: 4, id: 1 }), EpochOrder::Newer);
        assert_eq!(held.compare(Epoch { counter: 2, id: 7 }), EpochOrder::Older);
        assert_eq!(held.compare(Epoch { counter: 3, id: 8 }), EpochOrder::Split);
    }
}
