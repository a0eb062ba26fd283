//! Big files on their way: chunk by chunk into a stage, then put in place by a commit.

use super::{Job, Origin, Sender, Travel};
use crate::model::limits::*;
use crate::model::{Sequence, TreePath, What};
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
    /// Whether the file must be sent once more when this is over.
    pub(super) again: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum TransferPhase {
    Reading,
    Complete,
    /// A commit job is out.
    Committing,
}

impl Sender {
    /// Returns whether the file at a job's path is on its way: its commit sends what is there
    /// then, or has it sent once more, and so covers the job.
    pub(super) fn absorb(&mut self, job: &Job) -> bool {
        let through = self.through_sent.unwrap_or_default();
        let Some(transfer) = self.transfers.iter_mut().find(|known| known.path == job.path) else {
            return false;
        };
        let sequence = match &job.origin {
            Origin::Journal(record) => Some(record.sequence),
            Origin::Again(sequence) => Some(*sequence),
            // The walk must not end before; one that waits already holds all marks back.
            Origin::Walk(_) | Origin::Commit(_) => transfer.walk.is_none().then(|| through.next()),
        };
        transfer.sequence = transfer.sequence.into_iter().chain(sequence).min();
        true
    }

    /// Makes a stage for a big file, unless it is on its way already.
    pub(super) fn stage(&mut self, job: &Job) -> Travel {
        if self.transfers.len() >= TRANSFERS_MAX {
            return Travel::Later;
        }
        let stage = StageId(self.stage_next);
        self.stage_next += 1;
        let (sequence, walk) = match &job.origin {
            Origin::Journal(record) => (Some(record.sequence), None),
            Origin::Walk(number) => (None, Some(*number)),
            Origin::Again(sequence) => (Some(*sequence), None),
            Origin::Commit(_) => (None, None),
        };
        self.transfers.push(Transfer {
            stage,
            path: job.path.clone(),
            sequence,
            walk,
            phase: TransferPhase::Reading,
            attempts: 0,
            again: false,
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
        } else {
            transfer.again = true;
        }
        anew
    }

    /// Says that a stage is given up, for its file is not at its path any more. What is there is
    /// read once more: its record may have been taken for this file's.
    pub fn handle_stage_abandoned(&mut self, stage: StageId) {
        if let Some(transfer) = self.transfer(stage) {
            transfer.again = true;
        }
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
            if transfer.again {
                walk.push(transfer.path.clone());
            }
        }
        if let (true, Some(sequence)) = (transfer.again, transfer.sequence) {
            let origin = Origin::Again(sequence);
            self.deferred.push_back(Job { path: transfer.path, what: What::CONTENT, origin });
        }
    }
}
