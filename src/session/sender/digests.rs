//! Comparing subtrees by digests: what is equal costs a few bytes for a hundred directories.
//!
//! Both sides walk through a subtree in the same order. The shell surveys directory by directory
//! ([`Sender::poll_survey`], [`Sender::handle_surveyed`]); consecutive ones are told as a range,
//! and ranges are on their way while the survey goes on. The downstream answers each. Where one
//! differs, what both sides have tells which directories do: those are walked, and those that the
//! downstream lacks are sent whole.
//!
//! # Why nothing is missed
//!
//! A digest is of one moment of this side's tree and of another of the downstream's, and so may
//! claim that a directory is equal which is not any more. Whatever else changed here since has a
//! record, which is sent behind the digest; and an entry that the downstream got meanwhile is what
//! that record, or an earlier one, had it be. Only what a rename moves has no record of its own:
//! therefore both ends of a rename that is sent while a subtree is compared are compared for
//! themselves, by digests of after the rename. For the walk of the whole tree,
//! [`Sender::poll_rename`] sees to that; for a need, [`Sender::follow_in_comparison`].
//!
//! So ranges are parts of the order of paths, not of what once was there, and need not follow
//! renames. Only a need's subtree that is moved itself is followed: its comparison starts over.

use std::cmp::Ordering;
use std::collections::VecDeque;

use super::super::walk::{Mode, Reach, Walk};
use super::Sender;
use crate::model::limits::*;
use crate::model::survey::{range_digest, walk_order};
use crate::model::{Change, DirectoryDigest, Glance, Lacks, Surveyed, Timestamp, TreePath};
use crate::wire::{Differs, Item, RangeId, Refusal};

/// What the shell is to survey next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SurveyTask {
    /// Names the survey: under another number another one begins.
    pub number: u64,
    /// The subtree.
    pub path: TreePath,
    /// What is left out of digests.
    pub lacks: Lacks,
}

/// The comparisons of all walks.
#[derive(Debug)]
pub(super) struct Comparison {
    pub lacks: Lacks,
    /// Most directories in one range.
    pub directories_max: usize,
    /// What is still to be surveyed. The first is under way.
    subtrees: VecDeque<Subtree>,
    subtree_next: u64,
    /// What was surveyed and is in no range yet.
    gathered: Gathered,
    /// Told, and not answered.
    told: VecDeque<Range>,
    range_next: u64,
    /// The rest of ranges of which the downstream had too much to list.
    again: VecDeque<Range>,
}

#[derive(Debug)]
struct Subtree {
    number: u64,
    /// The walk that it belongs to.
    walk: u64,
    path: TreePath,
    /// The last directory that is in a range.
    after: Option<TreePath>,
}

#[derive(Debug, Default)]
struct Gathered {
    directories: Vec<Found>,
    entries: u64,
    bytes: usize,
}

/// A directory and its digest.
type Found = (TreePath, Option<DirectoryDigest>);

#[derive(Debug)]
struct Range {
    id: RangeId,
    /// `None` if the answer is not of interest any more.
    walk: Option<u64>,
    /// The subtree.
    path: TreePath,
    after: Option<TreePath>,
    /// At least one.
    directories: Vec<Found>,
    entries: u64,
}

impl Default for Comparison {
    fn default() -> Self {
        Comparison {
            lacks: Lacks::NOTHING,
            directories_max: RANGE_DIRECTORIES_MAX,
            subtrees: VecDeque::new(),
            subtree_next: 0,
            gathered: Gathered::default(),
            told: VecDeque::new(),
            range_next: 0,
            again: VecDeque::new(),
        }
    }
}

impl Comparison {
    /// Has the subtree at `path` compared for a walk.
    pub fn begin(&mut self, walk: u64, path: &TreePath) {
        let covers = |known: &Subtree| known.walk == walk && path.starts_with(&known.path);
        if self.subtrees.iter().skip(1).any(covers) {
            return; // None but the first has begun.
        }
        let number = self.subtree_next;
        self.subtree_next += 1;
        self.subtrees.push_back(Subtree { number, walk, path: path.clone(), after: None });
    }

    /// Returns whether something is compared for a walk.
    pub fn is_of(&self, walk: u64) -> bool {
        self.subtrees.iter().any(|subtree| subtree.walk == walk)
            || self.told.iter().chain(&self.again).any(|range| range.walk == Some(walk))
    }

    /// Forgets what belongs to walks that are not kept.
    pub fn retain(&mut self, is_kept: impl Fn(u64) -> bool) {
        self.retain_if(|walk, _| is_kept(walk));
    }

    /// Forgets what belongs to a walk and a subtree that are not kept.
    fn retain_if(&mut self, is_kept: impl Fn(u64, &TreePath) -> bool) {
        if self.subtrees.front().is_some_and(|first| !is_kept(first.walk, &first.path)) {
            self.gathered = Gathered::default();
        }
        self.subtrees.retain(|subtree| is_kept(subtree.walk, &subtree.path));
        self.again.retain(|range| range.walk.is_some_and(|walk| is_kept(walk, &range.path)));
        for range in &mut self.told {
            range.walk = range.walk.filter(|walk| is_kept(*walk, &range.path));
        }
    }

    /// Makes a range of what was gathered, if there is anything, and tells it.
    fn cut(&mut self) -> Option<Item> {
        let subtree = self.subtrees.front_mut()?;
        let Gathered { directories, entries, .. } = std::mem::take(&mut self.gathered);
        let (last, _) = directories.last()?;
        let after = subtree.after.replace(last.clone());
        let (walk, path) = (Some(subtree.walk), subtree.path.clone());
        Some(self.tell(Range { id: RangeId(0), walk, path, after, directories, entries }))
    }

    fn tell(&mut self, mut range: Range) -> Item {
        range.id = RangeId(self.range_next);
        self.range_next += 1;
        let (through, _) = range.directories.last().expect("no range is empty");
        let directories = range.directories.iter().map(|(path, digest)| (path, *digest));
        let item = Item::Digest {
            range: range.id,
            path: range.path.clone(),
            after: range.after.clone(),
            through: through.clone(),
            entries: range.entries,
            digest: range_digest(directories),
        };
        self.told.push_back(range);
        item
    }

    /// Returns whether there is room for another range, besides those of which a rest is left.
    fn may_tell(&self) -> bool {
        self.told.len() + self.again.len() < RANGES_MAX
    }
}

impl Sender {
    /// Returns what is to be surveyed on, `None` if nothing is, or not now: what the downstream
    /// has not answered is bounded, and so is what differs and was not sent.
    pub fn poll_survey(&self) -> Option<SurveyTask> {
        let subtree = self.comparison.subtrees.front()?;
        let left: usize = self.walks.iter().map(|(_, walk)| self.left_of_comparison(walk)).sum();
        let waits = self.window.is_full() || !self.comparison.may_tell() || left >= WALK_LEFT_MAX;
        (self.hello_done && !waits).then(|| SurveyTask {
            number: subtree.number,
            path: subtree.path.clone(),
            lacks: self.comparison.lacks,
        })
    }

    fn left_of_comparison(&self, walk: &Walk) -> usize {
        if walk.reach == Reach::Subtree { 0 } else { walk.left() }
    }

    /// Has fewer directories told at once, so that a test sees of a small tree what others do of a
    /// great one.
    pub fn limit_ranges(&mut self, directories_max: usize) {
        self.comparison.directories_max = directories_max;
    }

    /// Takes up an entry that was seen in a survey. What a digest may not find to differ is
    /// compared for itself: a file whose time of change is too recent to vouch for its content,
    /// and all names of a file that has several.
    pub fn handle_glance(&mut self, directory: &TreePath, name: &[u8], glance: Glance) {
        let Some(subtree) = self.comparison.subtrees.front() else { return };
        let owner = |(number, _): &&mut (u64, Walk)| *number == subtree.walk;
        let Some((_, walk)) = self.walks.iter_mut().find(owner) else { return };
        let Mode::Compare { trusted_until } = walk.mode else { return };
        let is_recent = glance.is_regular && is_untrusted(glance.ctime, trusted_until);
        if !is_recent && glance.linked.is_none() {
            return;
        }
        let path = directory.join(name);
        // All names go with the first one that is met.
        if glance.linked.is_none_or(|identity| walk.may_be_first_name(identity, &path)) {
            if let Some(identity) = glance.linked {
                walk.first_name(identity, &path);
            }
            walk.push_last(path);
        }
    }

    /// Takes up the next directory of the survey, and returns the digest of a range that is full.
    pub fn handle_surveyed(&mut self, surveyed: Surveyed) -> Option<Item> {
        let gathered = &mut self.comparison.gathered;
        gathered.entries += surveyed.entries + 1;
        gathered.bytes += surveyed.path.as_bytes().len();
        gathered.directories.push((surveyed.path, surveyed.digest));
        let is_full = gathered.directories.len() >= self.comparison.directories_max
            || gathered.entries >= RANGE_ENTRIES
            || gathered.bytes >= RANGE_BYTES;
        if is_full { self.comparison.cut() } else { None }
    }

    /// Says that the survey came to the end of its subtree, and returns the last digest. What the
    /// downstream has beyond is surplus in a directory that was told.
    pub fn handle_survey_end(&mut self) -> Option<Item> {
        let item = self.comparison.cut();
        self.comparison.subtrees.pop_front();
        item
    }

    /// Returns the digest of a part of a range that is to be compared once more: of which the
    /// downstream had more than it lists, before what differs was sent.
    pub fn poll_digest(&mut self) -> Option<Item> {
        let is_sent = |(_, walk): &(u64, Walk)| walk.reach != Reach::Directory || walk.is_done();
        if self.comparison.again.is_empty()
            || self.comparison.told.len() >= RANGES_MAX
            || !self.walks.iter().all(is_sent)
        {
            return None;
        }
        let range = self.comparison.again.pop_front()?;
        Some(self.comparison.tell(range))
    }

    /// Handles the answer to a digest.
    ///
    /// # Errors
    ///
    /// A [`Refusal`] if no honest downstream gives this answer.
    pub(super) fn handle_compared(
        &mut self,
        id: RangeId,
        differs: Option<Differs>,
    ) -> Result<(), Refusal> {
        let refuse = |what: &str| Refusal::Protocol(what.into());
        let range = self.comparison.told.pop_front().filter(|range| range.id == id);
        let range = range.ok_or_else(|| refuse("compared what was never told"))?;
        let Some(differs) = differs else { return Ok(()) };
        let is_whole = differs.is_whole;
        let listed = unpack(differs, &range).ok_or_else(|| refuse("a list that cannot be"))?;
        let Some(owner) = range.walk else { return Ok(()) };
        let end = if is_whole { None } else { listed.last().map(|(path, _)| path.clone()) };
        let mut rest = Vec::new();
        let mut theirs = listed.into_iter().peekable();
        // What could not be read there may be below: then it is not known to be lacked.
        let mut unread: Option<TreePath> = None;
        for (path, digest) in range.directories {
            let order = |other: &TreePath| walk_order(other.as_bytes(), path.as_bytes());
            if end.as_ref().is_some_and(|end| order(end).is_lt()) {
                rest.push((path, digest));
                continue;
            }
            while let Some((other, None)) = theirs.next_if(|(other, _)| order(other).is_lt()) {
                unread = Some(other);
            }
            let found = theirs.next_if(|(other, _)| order(other).is_eq()).map(|(_, there)| there);
            if found == Some(None) {
                unread = Some(path.clone());
            }
            match found {
                Some(there) if there.is_some() && there == digest => {}
                None if unread.as_ref().is_none_or(|unread| !path.starts_with(unread)) => {
                    self.walk_directory(owner, true, path);
                }
                _ => self.walk_directory(owner, false, path),
            }
        }
        if let (Some(end), false) = (end, rest.is_empty()) {
            self.comparison.again.push_back(Range {
                id,
                walk: Some(owner),
                path: range.path,
                after: Some(end),
                directories: rest,
                entries: range.entries,
            });
        }
        Ok(())
    }

    /// Has one directory walked for a comparison, as a part of the walk that it belongs to.
    fn walk_directory(&mut self, owner: u64, is_lacking: bool, path: TreePath) {
        let found = self.walks.iter().find(|(number, _)| *number == owner);
        let Some((need, mode)) = found.map(|(_, walk)| (walk.need, walk.mode)) else { return };
        let mode = if is_lacking { Mode::Full } else { mode };
        let is_it =
            |walk: &Walk| walk.reach == Reach::Directory && (walk.need, walk.mode) == (need, mode);
        match self.walks.iter_mut().find(|(_, walk)| is_it(walk)) {
            Some((_, walk)) => walk.push_last(path),
            None => {
                let mut walk = Walk::of_directories(mode, need);
                walk.push_last(path);
                self.start_walk(walk);
            }
        }
    }

    /// Has what a rename moves in or out of a need's subtree compared at both ends, and a subtree
    /// that is moved itself at its new place, from its beginning.
    pub(super) fn follow_in_comparison(&mut self, change: &Change) {
        let Some((from, to)) = change.ends() else { return };
        let Comparison { subtrees, told, again, .. } = &self.comparison;
        let mut next = Vec::new();
        let mut gone = Vec::new();
        let subtrees = subtrees.iter().map(|subtree| (Some(subtree.walk), &subtree.path));
        let ranges = told.iter().chain(again).map(|range| (range.walk, &range.path));
        for (walk, path) in subtrees.chain(ranges) {
            let needs =
                |(number, found): &&(u64, Walk)| Some(*number) == walk && found.need.is_some();
            let Some((number, _)) = self.walks.iter().find(needs) else { continue };
            if let Some(moved) = change.translate(path) {
                next.push((*number, moved));
                gone.push((*number, path.clone()));
            }
            if from.starts_with(path) || to.starts_with(path) {
                next.extend([from, to].map(|end| (*number, end.clone())));
            }
        }
        self.comparison.retain_if(|walk, path| {
            !gone.iter().any(|(number, moved)| (*number, moved) == (walk, path))
        });
        for (number, path) in next {
            if let Some((_, walk)) = self.walks.iter_mut().find(|(walk, _)| *walk == number) {
                walk.push(path);
            }
        }
    }
}

/// Returns whether a file of this time of change may differ although size and time agree.
fn is_untrusted(ctime: Timestamp, trusted_until: Timestamp) -> bool {
    ctime >= trusted_until.earlier_by_seconds(2)
}

/// Returns the directories of an answer, `None` if they are not some of the range's, in order.
fn unpack(differs: Differs, range: &Range) -> Option<Vec<Found>> {
    let (through, _) = range.directories.last()?;
    let mut found: Vec<Found> = Vec::new();
    let (mut bytes, mut all_bytes) = (Vec::new(), 0);
    for listed in differs.directories {
        let shared = usize::try_from(listed.shared).ok().filter(|shared| *shared <= bytes.len())?;
        bytes.truncate(shared);
        bytes.extend_from_slice(&listed.rest);
        // What is shared takes no bytes of the message, and would take memory without end here.
        all_bytes += bytes.len();
        if all_bytes > LISTED_BYTES_MAX + PATH_BYTES_MAX {
            return None;
        }
        let path = TreePath::new(bytes.clone()).ok()?;
        let before = found.last().map(|(path, _)| path).or(range.after.as_ref());
        let is_in_order = before.is_none_or(|before| order(before, &path).is_lt());
        if !is_in_order || order(&path, through).is_gt() || !path.starts_with(&range.path) {
            return None;
        }
        found.push((path, listed.digest));
    }
    // Else it would be asked the same again.
    (differs.is_whole || !found.is_empty()).then_some(found)
}

fn order(one: &TreePath, other: &TreePath) -> Ordering {
    walk_order(one.as_bytes(), other.as_bytes())
}

/// Most paths that differ, or are to be compared for themselves, while more is surveyed.
const WALK_LEFT_MAX: usize = 2048;
