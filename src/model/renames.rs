//! The rename index: every rename that a cursor may still have ahead of it, in memory.
//!
//! A state is addressed by the path that its entry has *now*, so a path from an old record is
//! translated through all later renames (DESIGN 7). The index is shared by all sessions and
//! holds at most [`RENAMES_MAX`] renames; a cursor older than its oldest one has fallen off.

use std::cell::RefCell;
use std::collections::{HashMap, VecDeque};

use super::limits::RENAMES_MAX;
use super::{Change, Record, Sequence, TreePath};

/// Renames and exchanges in the order of their sequences, searchable by ancestor.
///
/// A rename has two numbers, both rising: its *sequence* is its place in the journal that it is
/// in, among the records whose paths it moves; its *origin* is what sessions call it, for a
/// replica is told the same number by whomever it hears of the rename. At the tree's own source
/// the two are one.
#[derive(Debug, Default)]
pub struct RenameIndex {
    renames: VecDeque<Rename>,
    /// Renames before this many were dropped; `by_end` counts from the very first.
    dropped: u64,
    /// For each path that a rename takes entries away from: the rising numbers of those renames.
    by_end: HashMap<TreePath, VecDeque<u64>>,
    /// The last sequence whose rename was dropped: a cursor below it cannot be served.
    floor: Sequence,
    /// The last origin that was dropped likewise.
    origin_floor: Sequence,
    /// Where a path came to that a rename moved, and the number of the rename to go on with. It
    /// stays true, whatever is pushed.
    ways: RefCell<HashMap<(u64, TreePath), (TreePath, u64)>>,
}

#[derive(Debug)]
struct Rename {
    sequence: Sequence,
    origin: Sequence,
    change: Change,
}

/// Most ways that are remembered.
const WAYS_MAX: usize = 2 * RENAMES_MAX;

impl RenameIndex {
    /// Returns an empty index for a journal that begins after `floor`, of which no rename above
    /// `origin_floor` was dropped.
    pub fn new(floor: Sequence, origin_floor: Sequence) -> Self {
        RenameIndex { floor, origin_floor, ..RenameIndex::default() }
    }

    /// Adds `record` if it moves entries.
    pub fn push(&mut self, record: &Record) {
        let Record { sequence, origin, change } = record;
        if change.ends().is_none() {
            return;
        }
        let (sequence, origin) = (*sequence, origin.unwrap_or(*sequence));
        let rises = |last: &Rename| last.sequence < sequence && last.origin < origin;
        assert!(self.renames.back().is_none_or(rises));
        let number = self.dropped + self.renames.len() as u64;
        for end in moved_ends(change) {
            self.by_end.entry(end.clone()).or_default().push_back(number);
        }
        self.renames.push_back(Rename { sequence, origin, change: change.clone() });
        if self.renames.len() > RENAMES_MAX {
            self.pop();
        }
    }

    /// Forgets renames at or below `sequence`, which left the journal.
    pub fn drop_through(&mut self, sequence: Sequence) {
        while self.renames.front().is_some_and(|first| first.sequence <= sequence) {
            self.pop();
        }
    }

    /// Returns the sequence below which renames are missing: a cursor must stand at or above it.
    pub fn floor(&self) -> Sequence {
        self.floor
    }

    /// Returns the origin below which renames are missing: a downstream that has not moved that
    /// far cannot be served.
    pub fn origin_floor(&self) -> Sequence {
        self.origin_floor
    }

    /// Notes that renames through `origin` may have been dropped before the index was made.
    pub fn forget_through(&mut self, origin: Sequence) {
        self.origin_floor = self.origin_floor.max(origin);
    }

    /// Returns the last rename's origin, `None` if none is known.
    pub fn last_origin(&self) -> Option<Sequence> {
        self.renames.back().map(|last| last.origin)
    }

    /// Returns the renames above `origin` with their origins, in order.
    pub fn after(&self, origin: Sequence) -> impl Iterator<Item = (Sequence, &Change)> {
        let start = self.renames.partition_point(|rename| rename.origin <= origin);
        self.renames.range(start..).map(|rename| (rename.origin, &rename.change))
    }

    /// Returns where the entry that was at `path` as of `sequence` is now.
    ///
    /// Takes time for each rename of the way only once: each place that was passed remembers
    /// where the way led, as in the path compression of union-find. Without it, a file that is
    /// renamed there and back ten thousand times costs as many steps for each of its records.
    pub fn translate(&self, path: &TreePath, sequence: Sequence) -> TreePath {
        let mut ways = self.ways.borrow_mut();
        let mut passed = Vec::new();
        let mut path = path.clone();
        let mut next =
            self.dropped + self.renames.partition_point(|at| at.sequence <= sequence) as u64;
        let end = self.dropped + self.renames.len() as u64;
        while next < end {
            let Some(number) = self.first_moving(&path, next) else { break };
            let Rename { change, .. } = &self.renames[(number - self.dropped) as usize];
            let from = path.clone();
            match ways.get(&(number, path)) {
                Some((to, then)) => (path, next) = (to.clone(), *then),
                None => {
                    (path, next) = (change.translate(&from).unwrap_or(from.clone()), number + 1)
                }
            }
            passed.push((number, from));
        }
        if passed.len() > 1 {
            if ways.len() + passed.len() > WAYS_MAX {
                ways.clear();
            }
            ways.extend(passed.into_iter().map(|place| (place, (path.clone(), end))));
        }
        path
    }

    /// Returns whether a rename above `origin` takes something away at, above or under `path`: what was read there may be what has moved, or not.
    ///
    /// What a rename puts there does not matter. Its record follows, overwrites what the
    /// downstream has at its target, and brings what the downstream had at its origin, which is
    /// true or has a record of its own.
    pub fn touches(&self, path: &TreePath, origin: Sequence) -> bool {
        self.after(origin).any(|(_, change)| moved_ends(change).any(|end| path.is_related(end)))
    }

    /// Returns the number of the first rename from `next` on that moves `path`.
    fn first_moving(&self, path: &TreePath, next: u64) -> Option<u64> {
        if self.by_end.is_empty() {
            return None;
        }
        path.self_and_ancestors()
            .filter_map(|ancestor| {
                let numbers = self.by_end.get(ancestor)?;
                numbers.get(numbers.partition_point(|number| *number < next)).copied()
            })
            .min()
    }

    fn pop(&mut self) {
        let Some(Rename { sequence, origin, change }) = self.renames.pop_front() else { return };
        for end in moved_ends(&change) {
            if let Some(numbers) = self.by_end.get_mut(end) {
                numbers.pop_front();
                if numbers.is_empty() {
                    self.by_end.remove(end);
                }
            }
        }
        self.dropped += 1;
        (self.floor, self.origin_floor) = (sequence, origin);
    }
}

/// Returns the paths that `change` takes entries away from.
fn moved_ends(change: &Change) -> impl Iterator<Item = &TreePath> {
    let (first, second) = match change {
        Change::Rename { from, .. } => (Some(from), None),
        Change::Exchange { a, b } => (Some(a), Some(b)),
        Change::Dirty { .. } | Change::Through(_) => (None, None),
    };
    first.into_iter().chain(second)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(text: &str) -> TreePath {
        TreePath::new(text).unwrap()
    }

    fn rename(from: &str, to: &str) -> Change {
        Change::Rename { from: path(from), to: path(to) }
    }

    fn push(index: &mut RenameIndex, sequence: Sequence, change: Change) {
        index.push(&Record::new(sequence, change));
    }

    #[test]
    fn translates_through_later_renames_only() {
        let mut index = RenameIndex::new(Sequence(0), Sequence(0));
        push(&mut index, Sequence(3), rename("a", "b"));
        push(&mut index, Sequence(5), rename("b/x", "y"));
        push(&mut index, Sequence(7), Change::Exchange { a: path("y"), b: path("z") });
        assert_eq!(index.translate(&path("a/x/f"), Sequence(1)), path("z/f"));
        assert_eq!(index.translate(&path("a/x/f"), Sequence(3)), path("a/x/f"));
        assert_eq!(index.translate(&path("b/x"), Sequence(4)), path("z"));
        assert_eq!(index.translate(&path("z"), Sequence(6)), path("y"));
        assert!(index.touches(&path("b"), Sequence(3)));
        assert!(index.touches(&path("a/deeper"), Sequence(0)));
        assert!(!index.touches(&path("q"), Sequence(0)));
    }

    #[test]
    fn paths_are_of_the_journal_and_sessions_speak_of_origins() {
        let mut index = RenameIndex::new(Sequence(0), Sequence(0));
        let record = |sequence, origin, change| Record {
            sequence: Sequence(sequence),
            origin: Some(Sequence(origin)),
            change,
        };
        index.push(&record(3, 40, rename("a", "b")));
        index.push(&record(4, 50, rename("b", "c")));
        assert_eq!(index.translate(&path("b"), Sequence(3)), path("c"));
        assert_eq!(index.translate(&path("b"), Sequence(4)), path("b"));
        assert_eq!(index.after(Sequence(40)).next().unwrap().0, Sequence(50));
        assert!(
            index.touches(&path("b"), Sequence(40)) && !index.touches(&path("a"), Sequence(40))
        );
        index.drop_through(Sequence(3));
        assert_eq!((index.floor(), index.origin_floor()), (Sequence(3), Sequence(40)));
        assert_eq!(index.last_origin(), Some(Sequence(50)));
    }

    #[test]
    fn what_left_the_journal_is_forgotten() {
        let mut index = RenameIndex::new(Sequence(0), Sequence(0));
        push(&mut index, Sequence(3), rename("a", "b"));
        push(&mut index, Sequence(5), rename("b", "c"));
        index.drop_through(Sequence(4));
        assert_eq!((index.floor(), index.after(Sequence(0)).count()), (Sequence(3), 1));
        assert_eq!(index.translate(&path("b"), Sequence(4)), path("c"));
    }

    #[test]
    fn a_way_there_and_back_is_gone_only_once() {
        let mut index = RenameIndex::new(Sequence(0), Sequence(0));
        let rounds = RENAMES_MAX as u64 / 2;
        for number in 0..rounds {
            push(&mut index, Sequence(2 * number + 1), rename("a", "b"));
            push(&mut index, Sequence(2 * number + 2), rename("b", "a"));
        }
        // By steps this would be a thousand million of them.
        for number in 0..rounds {
            assert_eq!(index.translate(&path("a/f"), Sequence(2 * number)), path("a/f"));
            index.translate(&path("b/f"), Sequence(2 * number + 1));
        }
        push(&mut index, Sequence(2 * rounds + 1), rename("a", "c"));
        assert_eq!(index.translate(&path("a/f"), Sequence(2)), path("c/f"));
    }

    #[test]
    fn agrees_with_plain_replay_and_stays_bounded() {
        let names = ["a", "b", "a/c", "b/c", "a/c/d", "e"];
        for seed in 0..200 {
            let mut random = fastrand::Rng::with_seed(seed);
            let mut index = RenameIndex::new(Sequence(0), Sequence(0));
            let mut log = Vec::new();
            for number in 1..40 {
                let (one, two) = (random.choice(names).unwrap(), random.choice(names).unwrap());
                if path(one).is_related(&path(two)) {
                    continue;
                }
                let change = if random.bool() {
                    rename(one, two)
                } else {
                    Change::Exchange { a: path(one), b: path(two) }
                };
                push(&mut index, Sequence(number), change.clone());
                log.push((Sequence(number), change));
            }
            for from in 0..40 {
                for name in names.iter().chain(&names) {
                    let plain = log
                        .iter()
                        .filter(|(at, _)| *at > Sequence(from))
                        .fold(path(name), |at, (_, change)| change.translate(&at).unwrap_or(at));
                    assert_eq!(index.translate(&path(name), Sequence(from)), plain, "seed {seed}");
                }
            }
        }
        let mut index = RenameIndex::new(Sequence(0), Sequence(0));
        for number in 1..=RENAMES_MAX as u64 + 10 {
            push(&mut index, Sequence(number), rename("a", "b"));
        }
        assert_eq!(index.floor(), Sequence(10));
        assert_eq!(index.after(Sequence(0)).count(), RENAMES_MAX);
    }
}
