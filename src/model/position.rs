//! Positions: where in the history of a tree somebody is.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::Timestamp;

macro_rules! random_id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        pub struct $name(pub u128);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:032x}", self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({})"), self)
            }
        }
    };
}

random_id! {
    /// Identifies a tree for ever: random, made at its first source.
    TreeId
}
random_id! {
    /// Identifies one node (a source, relay or sink with its state), so that cycles are seen.
    NodeId
}

/// Number of a record within its epoch. The first record has 1; 0 is "before everything".
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default, Serialize, Deserialize,
)]
pub struct Sequence(pub u64);

impl Sequence {
    /// Returns the sequence after this one.
    pub fn next(self) -> Sequence {
        Sequence(self.0 + 1)
    }
}

impl fmt::Display for Sequence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Names an epoch: an unbroken run of watching. Ordered by `counter`; `random` tells apart two
/// epochs that were begun independently.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct EpochId {
    /// One more than the parent epoch's.
    pub counter: u64,
    /// Random, made when the epoch began.
    pub random: u64,
}

/// An epoch and where it forked from its parent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Epoch {
    /// The epoch itself.
    pub id: EpochId,
    /// The epoch before and the last sequence that both share, if continuity is claimed.
    pub parent: Option<(EpochId, Sequence)>,
}

impl Epoch {
    /// Returns whether a replica that is so far goes on by position in this epoch: it is in it, or
    /// in its parent where the two were still one.
    pub fn continues(&self, marks: &Watermarks) -> bool {
        let is_shared = |(parent, shared)| marks.epoch == parent && marks.moved <= shared;
        marks.epoch == self.id || self.parent.is_some_and(is_shared)
    }
}

/// Where in the history of a tree a record stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Position {
    /// Which tree.
    pub tree: TreeId,
    /// Which run of watching.
    pub epoch: EpochId,
    /// Which record.
    pub sequence: Sequence,
}

/// How far a replica has come within an epoch.
///
/// Invariant: `applied <= moved`. States may be applied twice, renames never: a rename at or
/// below `moved` is not sent again, a state above `applied` is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Watermarks {
    /// The epoch that both sequences belong to.
    pub epoch: EpochId,
    /// Every rename through this sequence is applied.
    pub moved: Sequence,
    /// Every record through this sequence is applied.
    pub applied: Sequence,
}

/// How far a relay was at some place of its journal: what this names was in place in the relay's
/// tree when it was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mark {
    /// How far, in the upstream's numbers.
    pub watermarks: Watermarks,
    /// The relay's clock, when no change of its tree was still to be journaled: 0 while that
    /// cannot be said.
    pub clock: Timestamp,
    /// The last record that the journal told of before this place, `None` if that cannot be said:
    /// all later ones are told of behind it. Not below `watermarks.applied`, and often above, for
    /// states overtake records.
    pub reached: Option<Sequence>,
    /// Whether nothing was missing besides. Only then downstreams may take it for their own
    /// position: what the relay still asks for, they do not know of.
    pub is_whole: bool,
}
