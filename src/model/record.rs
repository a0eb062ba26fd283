//! Records: what the journal holds.

use std::ops::{BitOr, BitOrAssign};

use serde::{Deserialize, Serialize};

use super::{Mark, Sequence, TreePath};

/// A change with its place in the journal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// Its number in the journal that holds it; these rise.
    pub sequence: Sequence,
    /// In a relay's journal, the number that a rename has upstream: what downstreams hear.
    pub origin: Option<Sequence>,
    /// What happened.
    pub change: Change,
}

impl Record {
    /// Returns a record that was made here.
    pub fn new(sequence: Sequence, change: Change) -> Self {
        Record { sequence, origin: None, change }
    }
}

/// What happened to an entry. Append-only: the encoding holds the variant's number.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Change {
    /// The entry at `path` is not what it was; its state is read when the record is sent.
    Dirty {
        /// Where, in the tree as of this record.
        path: TreePath,
        /// What about it.
        what: What,
    },
    /// The entry at `from` is now at `to`; what was at `to` is gone.
    Rename {
        /// Old path, in the tree just before this record.
        from: TreePath,
        /// New path.
        to: TreePath,
    },
    /// The entries at `a` and `b` changed places.
    Exchange {
        /// One of the two.
        a: TreePath,
        /// The other.
        b: TreePath,
    },
    /// In a relay's journal: how far the relay was with its upstream's records.
    Through(Mark),
}

impl Change {
    /// Returns the two ends if this moves entries.
    pub fn ends(&self) -> Option<(&TreePath, &TreePath)> {
        match self {
            Change::Rename { from, to } => Some((from, to)),
            Change::Exchange { a, b } => Some((a, b)),
            Change::Dirty { .. } | Change::Through(_) => None,
        }
    }

    /// Returns where entries from below `path` are after this change, outside of it, if it takes
    /// some away; what is at `path` itself is for [`Change::translate`].
    pub fn taken_from(&self, path: &TreePath) -> Option<&TreePath> {
        let takes = |from: &TreePath, to: &TreePath| {
            from != path && from.starts_with(path) && !to.starts_with(path)
        };
        match self {
            Change::Rename { from, to } | Change::Exchange { a: from, b: to }
                if takes(from, to) =>
            {
                Some(to)
            }
            Change::Exchange { a, b } if takes(b, a) => Some(a),
            _ => None,
        }
    }

    /// Returns where an entry at `path` is after this change, `None` if it stays.
    pub fn translate(&self, path: &TreePath) -> Option<TreePath> {
        match self {
            Change::Rename { from, to } => path.rebase(from, to),
            Change::Exchange { a, b } => path.rebase(a, b).or_else(|| path.rebase(b, a)),
            Change::Dirty { .. } | Change::Through(_) => None,
        }
    }
}

/// Which parts of an entry a [`Change::Dirty`] speaks of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct What(u8);

impl What {
    /// Owner, mode, times, extended attributes. Every change of an entry covers these.
    pub const ATTRIBUTES: What = What(1);
    /// A name was added to a file that has others: that it is there, and one file with them.
    pub const NAME: What = What(4 | 1);
    /// A file's content, a directory's names, and whether the entry is there at all.
    pub const CONTENT: What = What(4 | 2 | 1);

    /// As [`What::CONTENT`], of an entry that is most likely as the downstream has it: a file's
    /// content is compared by a digest before it travels.
    pub const COMPARE: What = What(8 | 4 | 1);

    /// What is known of a file by another of its names: not that this one is there, and not the
    /// time of the directory that holds it.
    pub const BY_ANOTHER_NAME: What = What(2 | 1);

    /// Returns what of this is left to tell when `told` was told; `None` if nothing is.
    pub fn less(self, told: What) -> Option<What> {
        match (told.covers(self), told.covers(What::BY_ANOTHER_NAME)) {
            (true, _) => None,
            (false, true) => Some(What::NAME),
            (false, false) => Some(self),
        }
    }

    /// Returns whether this includes all of `other`.
    pub fn covers(self, other: What) -> bool {
        // A content that travels is also compared. It is not said in the bits, for they are what
        // journals hold that were written before there was anything to compare.
        let compares = if self.0 & Self::CONTENT.0 == Self::CONTENT.0 { 8 } else { 0 };
        (self.0 | compares) & other.0 == other.0
    }
}

impl BitOr for What {
    type Output = What;
    fn bitor(self, other: What) -> What {
        What(self.0 | other.0)
    }
}

impl BitOrAssign for What {
    fn bitor_assign(&mut self, other: What) {
        self.0 |= other.0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_content_that_travels_covers_a_comparison_and_not_the_other_way() {
        assert!(What::CONTENT.covers(What::COMPARE) && !What::COMPARE.covers(What::CONTENT));
        assert!(What::COMPARE.covers(What::NAME) && !What::NAME.covers(What::COMPARE));
        assert_eq!(What::COMPARE.less(What::CONTENT), None);
        assert_eq!(What::CONTENT.less(What::COMPARE), Some(What::CONTENT));
        assert!((What::COMPARE | What::CONTENT).covers(What::CONTENT));
    }
}
