//! Entries that could not be read: remembered until they are cured, and tried less and less
//! often, so that a source whose tree rests journals next to nothing.

use std::collections::BTreeMap;
use std::io;
use std::time::{Duration, Instant};

use crate::model::limits::PROBLEMS_MAX;
use crate::model::{Change, TreePath};

/// First and longest time between two attempts at an entry.
const PAUSE_MIN: Duration = Duration::from_secs(5);
/// See [`PAUSE_MIN`].
const PAUSE_MAX: Duration = Duration::from_secs(300);

/// The problems of a tree.
#[derive(Debug, Default)]
pub(super) struct Problems {
    known: BTreeMap<TreePath, Problem>,
    /// No attempt is due before this.
    earliest: Option<Instant>,
    /// Whether it was said that there are too many.
    too_many_said: bool,
}

#[derive(Debug)]
struct Problem {
    reason: String,
    retry_at: Instant,
    pause: Duration,
}

impl Problems {
    /// Notes that the entry at `path` cannot be read. I8: an error is not a deletion; it stays
    /// as it is downstream, and is tried again by and by.
    pub fn note(&mut self, path: TreePath, error: &io::Error, now: Instant) {
        let reason = error.to_string();
        if let Some(known) = self.known.get_mut(&path) {
            if known.reason != reason {
                tracing::warn!("{path}: {reason}; it is left as it is downstream");
                known.reason = reason;
            }
            return;
        }
        if self.known.len() >= PROBLEMS_MAX {
            if !std::mem::replace(&mut self.too_many_said, true) {
                tracing::error!(
                    "{path}: {reason}; more than {PROBLEMS_MAX} entries cannot be read, and no \
                     more are tried again before they change"
                );
            }
            return;
        }
        tracing::warn!("{path}: {reason}; it is left as it is downstream");
        let (pause, retry_at) = (PAUSE_MIN, now + PAUSE_MIN);
        self.known.insert(path, Problem { reason, retry_at, pause });
        self.earliest = self.earliest.into_iter().chain([retry_at]).min();
    }

    /// Forgets the problem at `path`: it was read.
    pub fn cure(&mut self, path: &TreePath) {
        if !self.known.is_empty() && self.known.remove(path).is_some() {
            self.too_many_said = false;
        }
    }

    /// Follows a rename.
    pub fn translate(&mut self, change: &Change) {
        if self.known.is_empty() || change.ends().is_none() {
            return;
        }
        let known = std::mem::take(&mut self.known).into_iter();
        let moved = |path: TreePath| change.translate(&path).unwrap_or(path);
        self.known = known.map(|(path, problem)| (moved(path), problem)).collect();
    }

    /// Returns the entries that could not be read.
    pub fn paths(&self) -> Vec<TreePath> {
        self.known.keys().cloned().collect()
    }

    /// Returns when the next attempt may be due.
    pub fn next_due(&self) -> Option<Instant> {
        self.earliest
    }

    /// Takes the entries that are to be tried now.
    pub fn due(&mut self, now: Instant) -> Vec<TreePath> {
        if self.earliest.is_none_or(|earliest| now < earliest) {
            return Vec::new();
        }
        let mut due = Vec::new();
        for (path, problem) in &mut self.known {
            if problem.retry_at <= now {
                problem.pause = (problem.pause * 2).min(PAUSE_MAX);
                problem.retry_at = now + problem.pause;
                due.push(path.clone());
            }
        }
        self.earliest = self.known.values().map(|problem| problem.retry_at).min();
        due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(text: &str) -> TreePath {
        TreePath::new(text).unwrap()
    }

    #[test]
    fn is_tried_less_and_less_often_until_it_is_cured() {
        let (mut problems, start) = (Problems::default(), Instant::now());
        let error = io::Error::from_raw_os_error(5);
        let mut attempts = Vec::new();
        problems.note(path("a"), &error, start);
        for second in 0..2000 {
            let now = start + Duration::from_secs(second);
            for found in problems.due(now) {
                assert_eq!(found, path("a"));
                attempts.push(second);
                // Each downstream meets it again.
                problems.note(found.clone(), &error, now);
                problems.note(found, &error, now);
            }
        }
        assert_eq!(attempts, [5, 15, 35, 75, 155, 315, 615, 915, 1215, 1515, 1815]);
        problems.translate(&Change::Rename { from: path("a"), to: path("b") });
        problems.cure(&path("b"));
        assert!(problems.due(start + Duration::from_secs(9999)).is_empty());
        assert_eq!(problems.next_due(), None);
    }

    #[test]
    fn stays_bounded() {
        let (mut problems, start) = (Problems::default(), Instant::now());
        let error = io::Error::from_raw_os_error(13);
        for number in 0..PROBLEMS_MAX + 10 {
            problems.note(path(&number.to_string()), &error, start);
        }
        assert_eq!(problems.due(start + PAUSE_MIN).len(), PROBLEMS_MAX);
    }
}
