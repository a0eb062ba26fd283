//! Big files on their way: chunk by chunk into a stage, then put in place by a commit.

use super::{Job, Origin, Sender, Travel};
use crate::model::limits::*;
use crate::model::{Sequence, TreePath};
use crate::wire::StageId;

/// A big file on its way.
#[derive(Debug)]
pub(super) struct Transfer {
    pub(super) stage: StageId,
    /// Where its file is now.
    pub(super) path: TreePath,
    /// Its record's number: nothing at or above is through before it is in place.
    pub(super) sequence: Option<Sequence>,
    pub(super) walk: Option<u64>,
    pub(super) phase: TransferPhase,
    pub(super) attempts: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum TransferPhase {
    Reading,
    Complete,
    /// A commit job is out.
    Committing,
}

impl Sender {
    /// Makes a stage for a big file, unless it is on its way already.
    pub(super) fn stage(&mut self, job: &Job) -> Travel {
        let through = self.through_sent.unwrap_or_default();
        let path = &job.path;
        if let Some(transfer) = self.transfers.iter_mut().find(|transfer| transfer.path == *path) {
            let sequence = match &job.origin {
                Origin::Journal(record) => record.sequence,
                Origin::Walk(_) | Origin::Commit(_) => through.next(),
            };
            transfer.sequence =
                Some(transfer.sequence.map_or(sequence, |before| before.min(sequence)));
            return Travel::Absorbed;
        }
        if self.transfers.len() >= TRANSFERS_MAX {
            return Travel::Later;
        }
        let stage = StageId(self.stage_next);
        self.stage_next += 1;
        let (sequence, walk) = match &job.origin {
            Origin::Journal(record) => (Some(record.sequence), None),
            Origin::Walk(number) => (None, Some(*number)),
            Origin::Commit(_) => (None, None),
        };
        self.transfers.push(Transfer {
            stage,
            path: job.path.clone(),
            sequence,
            walk,
            phase: TransferPhase::Reading,
            attempts: 0,
        });
        Travel::Stage(stage)
    }

    /// Returns the staged file whose next bytes should go out, if it is a chunk's turn.
    pub fn next_chunk(&mut self) -> Option<StageId> {
        if self.in_flight_bytes() >= WINDOW_CHUNK_BYTES_MAX {
            return None;
        }
        let reading = |transfer: &&Transfer| transfer.phase == TransferPhase::Reading;
        // Several big files take turns as well.
        let index = self.transfers.iter().position(|transfer| reading(&transfer))?;
        let transfer = self.transfers.remove(index);
        let stage = transfer.stage;
        self.transfers.push(transfer);
        Some(stage)
    }

    /// Says that all of a staged file was read.
    pub fn handle_stage_read(&mut self, stage: StageId) {
        if let Some(transfer) = self.transfer(stage) {
            transfer.phase = TransferPhase::Complete;
        }
    }

    /// Says that a staged file changed while it was read. Returns whether to read it anew;
    /// else it is sent as it was read, for it does not rest.
    pub fn handle_stage_changed(&mut self, stage: StageId) -> bool {
        let Some(transfer) = self.transfer(stage) else { return false };
        transfer.attempts += 1;
        let anew = transfer.attempts < TRANSFER_ATTEMPTS_MAX;
        if anew {
            transfer.phase = TransferPhase::Reading;
        }
        anew
    }

    /// Says that a staged file is gone, or cannot be read: it ends without being put in place.
    pub fn handle_stage_gone(&mut self, stage: StageId) {
        self.end_transfer(stage);
        self.collect_answers();
    }

    /// Returns the stage, if any, of a file that is on its way to `path`.
    pub fn stage_path(&self, stage: StageId) -> Option<&TreePath> {
        self.transfers.iter().find(|transfer| transfer.stage == stage).map(|found| &found.path)
    }

    pub(super) fn transfer(&mut self, stage: StageId) -> Option<&mut Transfer> {
        self.transfers.iter_mut().find(|transfer| transfer.stage == stage)
    }

    pub(super) fn end_transfer(&mut self, stage: StageId) {
        let Some(index) = self.transfers.iter().position(|transfer| transfer.stage == stage) else {
            return;
        };
        let transfer = self.transfers.remove(index);
        if let Some(number) = transfer.walk
            && let Some((_, walk)) = self.walks.iter_mut().find(|(walk, _)| *walk == number)
        {
            walk.in_hand -= 1;
        }
    }
}
