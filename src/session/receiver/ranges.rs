//! Comparing ranges of directories with the upstream's, in the order in which it told them.
//!
//! A comparison is taken up apart from the stream of items, so that neither they nor heartbeats
//! wait for a great directory. That items are applied meanwhile does no harm: see the sender's side.

use std::collections::VecDeque;

use super::Receiver;
use crate::model::limits::*;
use crate::model::survey::{range_digest, walk_order};
use crate::model::{DirectoryDigest, Surveyed, TreePath};
use crate::wire::{Differs, Item, Listed, Message, RangeId, Refusal};

/// A range that the upstream told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Range {
    /// Its name on this connection.
    pub id: RangeId,
    /// The subtree that it is a part of.
    pub path: TreePath,
    /// It begins after this directory, or with the subtree.
    pub after: Option<TreePath>,
    /// It ends with this one.
    pub through: TreePath,
    /// How many entries it has upstream.
    entries: u64,
    digest: Option<[u8; 32]>,
}

/// The ranges of a connection.
#[derive(Debug)]
pub(super) struct Ranges {
    /// Most entries that are looked at beyond those that the upstream has.
    entries_more: u64,
    /// Told, and not compared.
    waiting: VecDeque<Range>,
    last: Option<RangeId>,
    /// What was found in the first of them.
    found: Vec<(TreePath, Option<DirectoryDigest>)>,
    bytes: usize,
    entries: u64,
    /// Compared, and the upstream is still to be told.
    answers: VecDeque<Message>,
}

impl Default for Ranges {
    fn default() -> Self {
        Ranges {
            entries_more: LISTED_ENTRIES_MORE,
            waiting: VecDeque::new(),
            last: None,
            found: Vec::new(),
            bytes: 0,
            entries: 0,
            answers: VecDeque::new(),
        }
    }
}

impl Ranges {
    /// Takes up a [`Item::Digest`].
    pub fn handle_digest(&mut self, item: &Item) -> Result<(), Refusal> {
        let Item::Digest { range: id, path, after, through, entries, digest } = item else {
            return Ok(());
        };
        let refuse = |what: &str| Err(Refusal::Protocol(what.into()));
        if self.waiting.len() + self.answers.len() >= RANGES_MAX {
            return refuse("more to compare than may be asked at once");
        }
        if self.last.is_some_and(|last| *id <= last) {
            return refuse("a range came twice");
        }
        let begins_within = after.as_ref().is_none_or(|after| {
            after.starts_with(path) && walk_order(after.as_bytes(), through.as_bytes()).is_lt()
        });
        if !begins_within || !through.starts_with(path) || path.is_reserved() {
            return refuse("a range that cannot be");
        }
        self.last = Some(*id);
        self.waiting.push_back(Range {
            id: *id,
            path: path.clone(),
            after: after.clone(),
            through: through.clone(),
            entries: *entries,
            digest: *digest,
        });
        Ok(())
    }

    /// Returns the next answer.
    pub fn poll_answer(&mut self) -> Option<Message> {
        self.answers.pop_front()
    }

    /// Ends the first range, of which this is all, or all that is listed.
    fn finish(&mut self, is_whole: bool) {
        let Some(range) = self.waiting.pop_front() else { return };
        let found = std::mem::take(&mut self.found);
        (self.bytes, self.entries) = (0, 0);
        let digest = range_digest(found.iter().map(|(path, digest)| (path, *digest)));
        let is_equal = is_whole && digest.is_some() && digest == range.digest;
        let differs = (!is_equal).then(|| Differs { directories: pack(&found), is_whole });
        self.answers.push_back(Message::Compared { range: range.id, differs });
    }
}

impl Receiver {
    /// Returns the range that is to be surveyed next, or on.
    pub fn range(&self) -> Option<&Range> {
        self.ranges.waiting.front()
    }

    /// Has fewer surplus entries looked at, so that a test sees of a small tree what others do of
    /// a great one.
    pub fn limit_lists(&mut self, entries_more: u64) {
        self.ranges.entries_more = entries_more;
    }

    /// Takes up the next directory of the range. Returns `false` when no more of it is wanted:
    /// what the upstream does not have may be without end.
    pub fn handle_surveyed(&mut self, surveyed: Surveyed) -> bool {
        let Ranges { waiting, found, bytes, entries, entries_more, .. } = &mut self.ranges;
        let Some(range) = waiting.front() else { return false };
        *entries += surveyed.entries + 1;
        *bytes += surveyed.path.as_bytes().len();
        found.push((surveyed.path, surveyed.digest));
        let goes_on = *entries <= range.entries.saturating_add(*entries_more)
            && *bytes <= LISTED_BYTES_MAX
            && found.len() < LISTED_MAX;
        if !goes_on {
            self.ranges.finish(false);
        }
        goes_on
    }

    /// Says that the survey came to the end of the range.
    pub fn handle_survey_end(&mut self) {
        self.ranges.finish(true);
    }
}

/// Returns a list of directories as it travels.
fn pack(found: &[(TreePath, Option<DirectoryDigest>)]) -> Vec<Listed> {
    let mut before: &[u8] = &[];
    let mut listed = Vec::with_capacity(found.len());
    for (path, digest) in found {
        let path = path.as_bytes();
        let shared = before.iter().zip(path).take_while(|(one, other)| one == other).count();
        let rest = path[shared..].to_vec();
        listed.push(Listed { shared: shared as u32, rest, digest: *digest });
        before = path;
    }
    listed
}
