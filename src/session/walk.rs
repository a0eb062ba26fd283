//! Visiting a subtree entry by entry: for a whole tree's first sync, a comparison, a `Need`.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::ops::Bound;

use crate::model::{Change, Identity, Timestamp, TreePath};

/// How the entries of a walk are sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// With their content.
    Full,
    /// Without content, for the downstream to compare. Files changed at or after
    /// `trusted_until` carry a digest, for their size and time prove nothing.
    Compare {
        /// A moment of the source's clock.
        trusted_until: Timestamp,
    },
}

impl Mode {
    /// Returns whether size and time prove anything, so that digests of them do.
    pub fn trusts(self) -> bool {
        matches!(self, Mode::Compare { trusted_until } if trusted_until != Timestamp::default())
    }
}

/// How far a walk goes from each of its paths.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reach {
    /// To all that is below it.
    Subtree,
    /// To itself; what is below is compared by digests, which say what else is to be walked.
    Digests,
    /// To what is in it, but not into the directories among that.
    Directory,
}

/// A subtree on its way to the downstream.
#[derive(Debug)]
pub(super) struct Walk {
    pub mode: Mode,
    pub reach: Reach,
    /// The `Need` that asked for it; `None` for the walk of the whole tree and what belongs to
    /// it.
    pub need: Option<u64>,
    /// What is still to be visited, the next one last.
    pending: VecDeque<TreePath>,
    /// The same paths, to answer [`Walk::will_visit`], in order, so that what a rename moves is
    /// found without a look at each.
    members: BTreeSet<TreePath>,
    /// The first visited name of each file that has several.
    first_names: HashMap<Identity, TreePath>,
    /// Paths handed out whose outcome is not known yet.
    pub in_hand: usize,
}

impl Walk {
    pub fn new(mode: Mode, need: Option<u64>, path: TreePath) -> Self {
        let reach = if mode.trusts() { Reach::Digests } else { Reach::Subtree };
        let mut walk = Walk { reach, ..Walk::of_directories(mode, need) };
        walk.push(path);
        walk
    }

    /// Returns a walk of single directories, which has none yet.
    pub fn of_directories(mode: Mode, need: Option<u64>) -> Self {
        Walk {
            mode,
            reach: Reach::Directory,
            need,
            pending: VecDeque::new(),
            members: BTreeSet::new(),
            first_names: HashMap::new(),
            in_hand: 0,
        }
    }

    /// Adds `path` as the next to be visited.
    pub fn push(&mut self, path: TreePath) {
        if self.members.insert(path.clone()) {
            self.pending.push_back(path);
        }
    }

    /// Adds `path` as the last to be visited.
    pub fn push_last(&mut self, path: TreePath) {
        if self.members.insert(path.clone()) {
            self.pending.push_front(path);
        }
    }

    /// Returns how many paths are still to be visited.
    pub fn left(&self) -> usize {
        self.pending.len()
    }

    pub fn pop(&mut self) -> Option<TreePath> {
        let path = self.pending.pop_back()?;
        self.members.remove(&path);
        self.in_hand += 1;
        Some(path)
    }

    /// Returns whether nothing is left and nothing in hand.
    pub fn is_done(&self) -> bool {
        self.pending.is_empty() && self.in_hand == 0
    }

    /// Returns whether `path` is still to be visited for certain, or compared by digests.
    pub fn will_visit(&self, path: &TreePath) -> bool {
        match self.reach {
            // Whether it is one of those that are not gone into is not known.
            Reach::Directory => self.members.contains(path),
            Reach::Subtree | Reach::Digests => self.may_visit(path),
        }
    }

    /// Returns whether `path` or a directory above it is still to be visited.
    fn may_visit(&self, path: &TreePath) -> bool {
        !self.members.is_empty()
            && path.self_and_ancestors().any(|ancestor| self.members.contains(ancestor))
    }

    /// Returns whether `path` or something below it is still to be visited.
    fn has_below(&self, path: &TreePath) -> bool {
        // Other names may sort between a directory and what is in it.
        let below = [path.as_bytes(), if path.is_root() { b"" } else { b"/" }].concat();
        let first = self.members.range::<[u8], _>((Bound::Included(&below[..]), Bound::Unbounded));
        self.members.contains(path) || first.take(1).any(|path| path.as_bytes().starts_with(&below))
    }

    /// Returns the name under which the file was visited before, and remembers `path` if none.
    pub fn first_name(&mut self, identity: Identity, path: &TreePath) -> Option<TreePath> {
        match self.first_names.get(&identity) {
            Some(first) if first != path => Some(first.clone()),
            Some(_) => None,
            None => {
                self.first_names.insert(identity, path.clone());
                None
            }
        }
    }

    /// Returns whether no other name of the file was visited before `path`.
    pub fn may_be_first_name(&self, identity: Identity, path: &TreePath) -> bool {
        self.first_names.get(&identity).is_none_or(|first| first == path)
    }

    /// Returns whether a name of the file was visited, so that others are sent as names of it.
    pub fn has_name_of(&self, identity: Identity) -> bool {
        self.first_names.contains_key(&identity)
    }

    /// Follows a rename in everything that is to be visited.
    pub fn follow(&mut self, change: &Change) {
        let moved = |path: &TreePath| change.translate(path);
        let Some((from, to)) = change.ends() else { return };
        // A directory above, which is still to be listed, will not have it any more. The walk of
        // the whole tree has both ends compared instead.
        let swaps = matches!(change, Change::Exchange { .. });
        let takes = |walk: &Self, from: &TreePath| walk.need.is_some() && walk.may_visit(from);
        let (takes_from, takes_to) = (takes(self, from), swaps && takes(self, to));
        if self.has_below(from) || self.has_below(to) {
            for path in &mut self.pending {
                if let Some(to) = moved(path) {
                    *path = to;
                }
            }
            self.members = self.pending.iter().cloned().collect();
        }
        for (takes, path) in [(takes_from, to), (takes_to, from)] {
            if takes && !self.will_visit(path) {
                self.push(path.clone());
            }
        }
        // A name that moved is no longer where the downstream would look for it, and one that was
        // overwritten is another file's.
        self.first_names.retain(|_, path| moved(path).is_none() && !path.starts_with(to));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_that_was_overwritten_is_not_one_of_the_file_any_more() {
        let path = |text: &str| TreePath::new(text).unwrap();
        let file = Identity { device: 1, inode: 7 };
        let mut walk = Walk::new(Mode::Full, None, TreePath::root());
        walk.first_name(file, &path("d/a"));
        walk.follow(&Change::Rename { from: path("x"), to: path("d/b") });
        assert!(walk.has_name_of(file));
        walk.follow(&Change::Rename { from: path("x"), to: path("d") });
        assert!(!walk.has_name_of(file));
    }
}
