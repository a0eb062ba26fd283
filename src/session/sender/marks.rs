//! Marks: through which record the downstream has everything when it has applied what was sent.

use super::{Origin, Sender};
use crate::model::limits::MARKS_HELD_MAX;
use crate::model::marks::thin_out;
use crate::model::{Mark, Sequence, Timestamp};
use crate::wire::Item;

impl Sender {
    /// Returns the mark that follows everything sent so far, if it says something new.
    /// `clock` is the source's when the watch was last drained.
    pub fn poll_through(&mut self, clock: Timestamp) -> Option<Item> {
        if let Some(id) = self.answers.pop_front() {
            return Some(Item::Answered { id });
        }
        if !self.hello_done || self.is_reconciling() {
            return None;
        }
        let through = self.through();
        let (mut sequence, mut clock) = (through, clock);
        let mut reached = Some(self.reached.max(through));
        if self.is_relay {
            let passed = self.marks.partition_point(|(at, _)| *at <= through);
            let (_, mark) = self.marks.drain(..passed).next_back()?;
            (sequence, clock) = (mark.watermarks.applied, mark.clock);
            reached = self.relay_reached.map(|reached| reached.max(sequence));
        }
        if self.through_sent.is_some_and(|sent| sequence <= sent) {
            return None;
        }
        (self.through_sent, self.mark_sent) = (Some(sequence), Some((sequence, clock)));
        // Before anything is applied, 0 is acknowledged as well.
        if self.trusts.is_none() && sequence > Sequence(0) {
            self.trusts = Some((sequence, clock));
        }
        // All renames up to here were sent before the states that the mark follows.
        self.moved = self.moved.max(sequence);
        Some(Item::Through { sequence, clock, reached })
    }

    /// Returns through which place of the journal everything was sent.
    pub(super) fn through(&self) -> Sequence {
        let staged = self.transfers.iter().filter_map(|transfer| transfer.sequence);
        let deferred = self.deferred.iter().filter_map(|job| match &job.origin {
            Origin::Journal(record) => Some(record.sequence),
            Origin::Again(sequence) => Some(*sequence),
            Origin::Walk(_) | Origin::Commit(_) => None,
        });
        let held = staged.chain(deferred).min();
        let cursor = self.cursor();
        held.map_or(cursor, |held| cursor.min(Sequence(held.0 - 1)))
    }

    /// Keeps a mark of the journal until everything before it was sent.
    pub(super) fn take_mark(&mut self, sequence: Sequence, mark: Mark) {
        if self.is_relay && mark.is_whole {
            if self.marks.len() >= MARKS_HELD_MAX {
                thin_out(&mut self.marks);
            }
            self.marks.push_back((sequence, mark));
        }
    }
}
