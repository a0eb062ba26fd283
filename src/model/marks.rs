//! Where in a relay's journal the positions are that its upstream's records have.
//!
//! A relay journals in the order in which it applies, and what it applies has no number but for
//! renames: only the marks in between say how far it was. A state may be of later records than the
//! one for which it was sent, and is not sent for those again: a mark says of all before it how far
//! they may have reached. So a downstream goes on behind the last mark that had not reached beyond
//! what it has applied.

use std::collections::VecDeque;

use super::limits::MARKS_MAX;
use super::{Mark, Sequence};

/// The marks of a relay's journal, or some of them: with fewer, a downstream is told again what it
/// knows.
#[derive(Debug, Default)]
pub struct Marks {
    /// With their places in the journal, which rise. What they name does not always: after a crash
    /// some of it comes again.
    marks: VecDeque<(Sequence, Mark)>,
}

impl Marks {
    /// Adds the mark at `sequence` of the journal.
    pub fn push(&mut self, sequence: Sequence, mark: Mark) {
        assert!(self.marks.back().is_none_or(|(last, _)| *last < sequence));
        if self.marks.len() >= MARKS_MAX {
            thin_out(&mut self.marks);
        }
        self.marks.push_back((sequence, mark));
    }

    /// Forgets the marks below `floor`, which left the journal.
    pub fn drop_below(&mut self, floor: Sequence) {
        while self.marks.front().is_some_and(|(first, _)| *first < floor) {
            self.marks.pop_front();
        }
    }

    /// Returns the first mark that is known.
    pub fn first(&self) -> Option<&Mark> {
        self.marks.front().map(|(_, mark)| mark)
    }

    /// Returns the last mark.
    pub fn last(&self) -> Option<&Mark> {
        self.marks.back().map(|(_, mark)| mark)
    }

    /// Returns the last mark, and its place, if downstreams may take it for their own. An earlier
    /// one says nothing of a tree that lacks something now.
    pub fn last_if_whole(&self) -> Option<(Sequence, Mark)> {
        self.marks.back().filter(|(_, mark)| mark.is_whole).copied()
    }

    /// Returns after which place of the journal a replica goes on that has applied everything
    /// through `applied` of the upstream's, `None` if the journal does not go back that far.
    pub fn cursor(&self, applied: Sequence) -> Option<Sequence> {
        let is_before =
            |(_, mark): &&(Sequence, Mark)| mark.reached.is_some_and(|reached| reached <= applied);
        self.marks.iter().rfind(is_before).map(|(sequence, _)| *sequence)
    }
}

/// Leaves every second one out, but not the first.
pub fn thin_out<T>(sequence: &mut VecDeque<T>) {
    let mut keep = false;
    sequence.retain(|_| {
        keep = !keep;
        keep
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{EpochId, Timestamp, Watermarks};

    fn mark(applied: u64) -> Mark {
        let epoch = EpochId { counter: 1, random: 1 };
        let applied = Sequence(applied);
        let watermarks = Watermarks { epoch, moved: applied, applied };
        Mark { watermarks, clock: Timestamp::default(), reached: Some(applied), is_whole: true }
    }

    #[test]
    fn a_place_before_which_more_was_told_is_none_to_go_on_from() {
        let mut marks = Marks::default();
        marks.push(Sequence(1), mark(5));
        // What was read for record 6 and before was of record 9 already, or of nobody knows which.
        marks.push(Sequence(4), Mark { reached: Some(Sequence(9)), ..mark(6) });
        marks.push(Sequence(6), Mark { reached: None, ..mark(6) });
        let cursor = |applied| marks.cursor(Sequence(applied)).map(|found| found.0);
        assert_eq!([cursor(6), cursor(8), cursor(9)], [Some(1), Some(1), Some(4)]);
    }

    #[test]
    fn a_replica_goes_on_behind_the_last_mark_that_it_has_passed() {
        let mut marks = Marks::default();
        // The relay was killed behind 7, and was told again what follows 5.
        for (sequence, applied) in [(2, 5), (4, 7), (6, 6), (8, 7), (9, 9)] {
            marks.push(Sequence(sequence), mark(applied));
        }
        let cursor = |applied| marks.cursor(Sequence(applied)).map(|found| found.0);
        assert_eq!([cursor(4), cursor(5), cursor(6), cursor(7)], [None, Some(2), Some(6), Some(8)]);
        assert_eq!([cursor(8), cursor(9), cursor(99)], [Some(8), Some(9), Some(9)]);
        marks.drop_below(Sequence(4));
        assert_eq!(marks.cursor(Sequence(5)), None);
    }

    #[test]
    fn they_stay_bounded_and_go_back_as_far() {
        let mut marks = Marks::default();
        let count = 4 * MARKS_MAX as u64;
        for number in 1..=count {
            marks.push(Sequence(number), mark(number));
        }
        assert!(marks.marks.len() <= MARKS_MAX);
        let mut last = Sequence(0);
        for number in 8..=count {
            let cursor = marks.cursor(Sequence(number)).unwrap();
            assert!(cursor >= last && cursor <= Sequence(number));
            last = cursor;
        }
        assert_eq!(last, Sequence(count));
    }
}
