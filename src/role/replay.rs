//! What a journal that is there already says to a role that starts: a relay, which goes on with it,
//! or a source in the epoch of its last run.

use super::sink::JournalEnd;
use crate::journal::{Journal, ReadError};
use crate::model::limits::RECORDS_READ_MAX;
use crate::model::{Change, Mark, Marks, RenameIndex, Sequence};

/// What a source keeps in memory of its journal.
#[derive(Debug, Default)]
pub(super) struct Replay {
    pub renames: RenameIndex,
    pub marks: Marks,
    last: Option<Mark>,
}

impl Replay {
    /// Reads a whole journal.
    pub fn of(journal: &Journal) -> Result<Replay, ReadError> {
        let mut replay = Replay::default();
        if journal.tree_and_epoch().is_none() {
            return Ok(replay);
        }
        let floor = journal.floor();
        // What a rename is called upstream has nothing to do with the numbers of this journal.
        replay.renames = RenameIndex::new(floor, Sequence(0));
        let Some(mut cursor) = journal.cursor(floor) else { return Ok(replay) };
        let mut records = Vec::new();
        loop {
            journal.read(&mut cursor, RECORDS_READ_MAX, &mut records)?;
            if records.is_empty() {
                return Ok(replay);
            }
            for record in records.drain(..) {
                if let Change::Through(mark) = record.change {
                    if replay.last.is_none() {
                        // Renames that left the journal, or were before its beginning, are at or
                        // below the first mark in it.
                        replay.renames.forget_through(mark.watermarks.moved);
                    }
                    replay.last = Some(mark);
                    replay.marks.push(record.sequence, mark);
                }
                replay.renames.push(&record);
            }
        }
    }

    /// Returns how far a relay's journal goes.
    pub fn end(&self) -> Option<JournalEnd> {
        let mark = self.last?;
        let moved = self.renames.last_origin().unwrap_or_default();
        Some(JournalEnd { mark, moved })
    }
}
