//! Files that are elsewhere than they were: found by their inodes, and put into an order in which
//! each rename is true when its turn comes.

use std::collections::{BTreeMap, HashMap};
use std::ops::Bound;

use rustc_hash::FxHashMap;

use crate::model::limits::RENAMES_MAX;
use crate::model::{Change, Identity, Timestamp, TreePath};

/// Tells a file from all others, also from a later one with the same inode number.
pub(super) type FileKey = (Identity, Timestamp);

/// A file at one of the two ends of its way.
#[derive(Debug, Clone)]
pub(super) struct End<P> {
    pub place: P,
    pub size: u64,
    pub mtime: Timestamp,
}

/// What was missed at one place and met at another, as far as there is room.
#[derive(Debug)]
pub(super) struct Moves<From, To> {
    gone: FxHashMap<FileKey, End<From>>,
    came: FxHashMap<FileKey, End<To>>,
}

/// Files that were missed or met.
#[derive(Debug)]
pub(super) struct Paired<From, To> {
    /// Those of which both ends are known.
    pub pairs: Vec<(End<From>, End<To>)>,
    pub gone: Vec<From>,
    pub came: Vec<To>,
}

impl<From, To> Default for Moves<From, To> {
    fn default() -> Self {
        Moves { gone: FxHashMap::default(), came: FxHashMap::default() }
    }
}

impl<From, To> Moves<From, To> {
    /// Notes that a file is not where it was. Gives `end` back if there is no room for it.
    pub fn goes(&mut self, key: FileKey, end: End<From>) -> Result<(), From> {
        insert(&mut self.gone, key, end)
    }

    /// Notes that a file is where it was not. Gives `end` back if there is no room for it.
    pub fn comes(&mut self, key: FileKey, end: End<To>) -> Result<(), To> {
        insert(&mut self.came, key, end)
    }

    /// Returns the files of which both ends are known, and the others' ends.
    pub fn pair(self) -> Paired<From, To> {
        let Moves { mut gone, came } = self;
        let (mut pairs, mut left) = (Vec::new(), Vec::new());
        for (key, to) in came {
            match gone.remove(&key) {
                Some(from) => pairs.push((from, to)),
                None => left.push(to.place),
            }
        }
        Paired { pairs, gone: gone.into_values().map(|end| end.place).collect(), came: left }
    }
}

fn insert<P>(ends: &mut FxHashMap<FileKey, End<P>>, key: FileKey, end: End<P>) -> Result<(), P> {
    // One that is met twice moves while it is looked for, and events tell.
    if ends.len() >= RENAMES_MAX || ends.contains_key(&key) {
        return Err(end.place);
    }
    ends.insert(key, end);
    Ok(())
}

/// What an order of moves is made of: the changes, and the moves that each of them completes.
pub(super) type Step = (Change, Vec<usize>);

/// Puts moves into an order: nothing is put where another file still has to go from. The steps
/// of one group depend on each other, those of two groups do not, so that a group can be left out
/// as a whole. A cycle is broken by a
/// temporary name. Moves that no order exists for are left out.
///
/// No two of `moves` have the same origin, and no two the same target.
pub(super) fn order(moves: &[(TreePath, TreePath)]) -> Vec<Vec<Step>> {
    let by_from: BTreeMap<&[u8], usize> =
        moves.iter().enumerate().map(|(number, (from, _))| (from.as_bytes(), number)).collect();
    // What must be done before each, by what stands in its way.
    let before: Vec<Vec<usize>> = moves
        .iter()
        .enumerate()
        .map(|(number, (_, to))| {
            // A file that still is at the target, or where a directory above it is to be.
            let above = to.self_and_ancestors().filter_map(|path| by_from.get(path));
            // Files in a directory that was at the target.
            let mut below = to.as_bytes().to_vec();
            below.push(b'/');
            let from_there = (Bound::Included(&below[..]), Bound::Unbounded);
            let below = by_from
                .range::<[u8], _>(from_there)
                .take_while(|(from, _)| from.starts_with(&below))
                .map(|(_, number)| number);
            above.chain(below).copied().filter(|other| *other != number).collect()
        })
        .collect();
    let mut groups = Groups::new(moves.len());
    for (number, others) in before.iter().enumerate() {
        others.iter().for_each(|other| groups.join(number, *other));
    }
    let mut steps: HashMap<usize, Vec<Step>> = HashMap::new();
    let mut states = vec![State::New; moves.len()];
    for start in 0..moves.len() {
        // A way through what must be done first, without recursion: it may be as long as there
        // are moves.
        let mut way = vec![(start, 0)];
        while let Some((number, next)) = way.last_mut() {
            let number = *number;
            if states[number] == State::Done {
                way.pop();
                continue;
            }
            states[number] = State::Open;
            if let Some(other) = before[number].get(*next) {
                *next += 1;
                match states[*other] {
                    State::Done => {}
                    State::New => way.push((*other, 0)),
                    State::Open => {
                        let first = way.iter().position(|(open, _)| open == other).unwrap_or(0);
                        let cycle: Vec<usize> =
                            way[first..].iter().map(|(number, _)| *number).collect();
                        let group = steps.entry(groups.find(number)).or_default();
                        break_cycle(moves, &cycle, group);
                        cycle.iter().for_each(|number| states[*number] = State::Done);
                    }
                }
                continue;
            }
            let (from, to) = moves[number].clone();
            let group = steps.entry(groups.find(number)).or_default();
            group.push((Change::Rename { from, to }, vec![number]));
            states[number] = State::Done;
            way.pop();
        }
    }
    let mut steps: Vec<(usize, Vec<Step>)> = steps.into_iter().collect();
    steps.sort_unstable_by_key(|(group, _)| *group);
    steps.into_iter().map(|(_, steps)| steps).filter(|steps| !steps.is_empty()).collect()
}

/// Appends the renames for moves each of which goes to where the next one comes from, and the
/// last to where the first does. If they do not, there is no order, and they are left out.
///
/// Not by exchanges: a replica that just came back replaces no file by another before it knows
/// that neither is a part.
fn break_cycle(moves: &[(TreePath, TreePath)], cycle: &[usize], steps: &mut Vec<Step>) {
    let next = |at: usize| cycle[(at + 1) % cycle.len()];
    if (0..cycle.len()).any(|at| moves[cycle[at]].1 != moves[next(at)].0) {
        return;
    }
    let (first, target) = moves[cycle[0]].clone();
    let aside = TreePath::root().join(format!("{ASIDE_PREFIX}{}", cycle[0]).as_bytes());
    steps.push((Change::Rename { from: first, to: aside.clone() }, Vec::new()));
    for number in cycle[1..].iter().rev() {
        let (from, to) = moves[*number].clone();
        steps.push((Change::Rename { from, to }, vec![*number]));
    }
    steps.push((Change::Rename { from: aside, to: target }, vec![cycle[0]]));
}

/// How the name begins that a file of a cycle has for a moment, in the root of a replica.
pub(super) const ASIDE_PREFIX: &str = ".moving-file-";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    New,
    Open,
    Done,
}

/// Which moves depend on each other.
struct Groups(Vec<usize>);

impl Groups {
    fn new(count: usize) -> Groups {
        Groups((0..count).collect())
    }

    fn find(&mut self, mut number: usize) -> usize {
        while self.0[number] != number {
            self.0[number] = self.0[self.0[number]];
            number = self.0[number];
        }
        number
    }

    fn join(&mut self, one: usize, other: usize) {
        let (one, other) = (self.find(one), self.find(other));
        self.0[one.max(other)] = one.min(other);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(text: &str) -> TreePath {
        TreePath::new(text).unwrap()
    }

    /// Replays the steps on a table of files and returns it.
    fn replay(files: &[String], steps: &[Vec<Step>]) -> BTreeMap<String, String> {
        let mut at: BTreeMap<String, String> =
            files.iter().map(|name| (name.clone(), name.clone())).collect();
        for (change, _) in steps.iter().flatten() {
            let name = |path: &TreePath| String::from_utf8(path.as_bytes().to_vec()).unwrap();
            match change {
                Change::Rename { from, to } => {
                    let file = at.remove(&name(from)).expect("what moves is there");
                    assert_eq!(at.insert(name(to), file), None, "{change:?} overwrites");
                }
                _ => panic!("{change:?}"),
            }
        }
        at
    }

    #[test]
    fn every_permutation_is_reached_and_nothing_is_overwritten() {
        let mut random = fastrand::Rng::with_seed(3);
        for _ in 0..2000 {
            let names: Vec<String> = (0..random.usize(1..12)).map(|n| format!("n{n}")).collect();
            let count = random.usize(1..=names.len());
            let (mut froms, mut tos) = (names.clone(), names.clone());
            random.shuffle(&mut froms);
            random.shuffle(&mut tos);
            let moves: Vec<(TreePath, TreePath)> = froms
                .iter()
                .zip(&tos)
                .take(count)
                .filter(|(from, to)| from != to)
                .map(|(from, to)| (path(from), path(to)))
                .collect();
            let files: Vec<String> = moves
                .iter()
                .map(|(from, _)| String::from_utf8(from.as_bytes().to_vec()).unwrap())
                .collect();
            let steps = order(&moves);
            let mut completed: Vec<usize> =
                steps.iter().flatten().flat_map(|(_, completes)| completes).copied().collect();
            completed.sort_unstable();
            assert_eq!(completed, (0..moves.len()).collect::<Vec<_>>());
            let found = replay(&files, &steps);
            for (from, to) in &moves {
                let (from, to) = (from.as_bytes(), to.as_bytes());
                let at = found.iter().find(|(place, _)| place.as_bytes() == to).unwrap();
                assert_eq!(at.1.as_bytes(), from, "{moves:?}");
            }
        }
    }

    #[test]
    fn what_stands_above_or_below_a_target_goes_first() {
        // x is a file and becomes a directory; d is a directory and becomes a file.
        let moves = [("f", "x/y"), ("x", "z"), ("g", "d"), ("d/a", "h"), ("d/b", "i")];
        let moves: Vec<_> = moves.iter().map(|(from, to)| (path(from), path(to))).collect();
        let numbers: Vec<Vec<usize>> = order(&moves)
            .iter()
            .map(|group| group.iter().flat_map(|(_, completes)| completes).copied().collect())
            .collect();
        assert_eq!(numbers, [vec![1, 0], vec![3, 4, 2]]);
        // A file moves into a directory of its own former name, in which it cannot be first.
        let moves = [("x", "x/y")].map(|(from, to)| (path(from), path(to)));
        assert!(order(&moves).iter().flatten().count() <= 1);
    }

    #[test]
    fn a_long_chain_takes_neither_stack_nor_the_square_of_time() {
        let moves: Vec<_> = (0..RENAMES_MAX as u64)
            .map(|number| (path(&format!("log.{number}")), path(&format!("log.{}", number + 1))))
            .collect();
        let steps = order(&moves);
        assert_eq!((steps.len(), steps[0].len()), (1, RENAMES_MAX));
        assert_eq!(steps[0][0].1, [RENAMES_MAX - 1]);
    }

    #[test]
    fn only_so_many_are_remembered_and_none_twice() {
        let mut moves: Moves<u64, u64> = Moves::default();
        let key = |inode| (Identity { device: 1, inode }, Timestamp::default());
        let end = |place| End { place, size: 0, mtime: Timestamp::default() };
        for inode in 0..RENAMES_MAX as u64 {
            moves.goes(key(inode), end(inode)).unwrap();
        }
        assert_eq!(moves.goes(key(u64::MAX), end(9)), Err(9));
        moves.comes(key(5), end(50)).unwrap();
        assert_eq!(moves.comes(key(5), end(51)), Err(51));
        moves.comes(key(u64::MAX), end(52)).unwrap();
        let Paired { pairs, gone, came } = moves.pair();
        let pairs: Vec<_> = pairs.iter().map(|(from, to)| (from.place, to.place)).collect();
        assert_eq!((pairs, gone.len(), came), (vec![(5, 50)], RENAMES_MAX - 1, vec![52]));
    }
}
