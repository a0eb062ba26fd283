//! Big files on their way: chunk by chunk into a stage, then put in place by a commit.

use std::collections::{HashSet, VecDeque};

use super::super::walk::{Reach, Walk};
use super::{Job, Look, Origin, Sender, Travel};
use crate::model::limits::*;
use crate::model::{Change, Identity, Sequence, Timestamp, TreePath, What};
use crate::wire::StageId;

/// A big file on its way.
#[derive(Debug)]
pub(super) struct Transfer {
    pub(super) stage: StageId,
    /// Where its file is now.
    pub(super) path: TreePath,
    identity: Identity,
    /// Its time of change, if any later change gives it another one.
    ctime: Option<Timestamp>,
    /// The first of the records that wait for it: nothing at or above is through before it is
    /// in place.
    pub(super) sequence: Option<Sequence>,
    /// The names that the commit must cover, or they are read again: for a record, or for a
    /// walk, which has them in hand.
    waiting: HashSet<(TreePath, Option<u64>)>,
    pub(super) phase: TransferPhase,
    /// Whether some of it was read.
    begun: bool,
    /// The journal's head when that began: what is recorded above may not be in it.
    pub(super) head: Sequence,
    attempts: u32,
    /// Whether the file must be sent once more when this is over.
    again: bool,
    /// Whether the downstream gave it up.
    is_given_up: bool,
}

impl Transfer {
    /// Follows a rename.
    pub(super) fn translate(&mut self, change: &Change) {
        let moved = |path: TreePath| change.translate(&path).unwrap_or(path);
        self.path = moved(std::mem::take(&mut self.path));
        let waiting = std::mem::take(&mut self.waiting);
        self.waiting = waiting.into_iter().map(|(path, walk)| (moved(path), walk)).collect();
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum TransferPhase {
    Reading,
    Complete,
    /// A commit job is out.
    Committing,
}

impl Sender {
    /// Returns whether the file at a job's path is on its way, by this name or another one: its
    /// commit sends what is there then, with all names, or has it sent once more, and so covers
    /// the job.
    pub(super) fn absorb(&mut self, job: &Job, look: &Look<'_>) -> bool {
        let is_it = |known: &&mut Transfer| {
            known.path == job.path || look.is_linked && known.identity == look.identity
        };
        let Some(transfer) = self.transfers.iter_mut().find(is_it) else { return false };
        // Whether what was read of it is from before the record or after it, only a time of
        // change tells, and that only if it was in the past already.
        let is_same = (transfer.identity, transfer.ctime) == (look.identity, Some(look.ctime));
        let may_be_newer = match job.origin {
            Origin::Journal(_) => job.what.covers(What::COMPARE),
            // It comes for records that were left to it as well.
            Origin::Walk(_) => self.left_to_walks > transfer.head,
            Origin::Again(_) | Origin::Commit(_) => false,
        };
        if may_be_newer && transfer.begun && !is_same {
            transfer.again = true;
        }
        Self::wait_for(transfer, &mut self.walks, job);
        true
    }

    /// Has a job wait for the end of a transfer.
    fn wait_for(transfer: &mut Transfer, walks: &mut VecDeque<(u64, Walk)>, job: &Job) {
        let (sequence, walk) = match &job.origin {
            Origin::Journal(record) => (Some(record.sequence), None),
            Origin::Again(sequence) => (Some(*sequence), None),
            Origin::Walk(number) => (None, Some(*number)),
            Origin::Commit(_) => return,
        };
        transfer.sequence = transfer.sequence.into_iter().chain(sequence).min();
        if transfer.waiting.insert((job.path.clone(), walk))
            && let Some((_, walk)) = walks.iter_mut().find(|(number, _)| Some(*number) == walk)
        {
            walk.in_hand += 1;
        }
    }

    /// Makes a stage for a big file.
    pub(super) fn stage(&mut self, job: &Job, look: &Look<'_>) -> Travel {
        if self.transfers.len() >= TRANSFERS_MAX {
            return Travel::Later;
        }
        let stage = StageId(self.stage_next);
        self.stage_next += 1;
        let mut transfer = Transfer {
            stage,
            path: job.path.clone(),
            identity: look.identity,
            // A change from the batch's beginning on has at least this time.
            ctime: (look.ctime < self.batch_clock).then_some(look.ctime),
            sequence: None,
            waiting: HashSet::new(),
            phase: TransferPhase::Reading,
            begun: false,
            head: Sequence(0),
            attempts: 0,
            again: false,
            is_given_up: false,
        };
        Self::wait_for(&mut transfer, &mut self.walks, job);
        self.transfers.push(transfer);
        Travel::Stage(stage)
    }

    /// Returns which of a staged file's other names its commit should send: not those that a
    /// walk of the whole tree comes to later, and then sends as names of the same file.
    pub fn commit_links(&mut self, identity: Identity, mut links: Vec<TreePath>) -> Vec<TreePath> {
        if !links.is_empty() {
            self.walks.iter_mut().for_each(|(_, walk)| walk.is_overtaken = true);
        }
        for (_, walk) in self.walks.iter().filter(|(_, walk)| walk.need.is_none()) {
            if walk.reach == Reach::Subtree && walk.has_name_of(identity) {
                links.retain(|link| !walk.will_visit(link));
            }
        }
        links
    }

    /// Returns the staged file whose next bytes should go out, if it is a chunk's turn.
    pub fn next_chunk(&mut self) -> Option<StageId> {
        if self.window.in_flight_bytes() >= WINDOW_CHUNK_BYTES_MAX {
            return None;
        }
        let reading = |transfer: &&Transfer| transfer.phase == TransferPhase::Reading;
        // Several big files take turns as well.
        let index = self.transfers.iter().position(|transfer| reading(&transfer))?;
        let mut transfer = self.transfers.remove(index);
        if !std::mem::replace(&mut transfer.begun, true) {
            transfer.head = self.batch_head;
        }
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

    /// Says that the downstream gave a stage up, if it is not over by now: the rest of it is
    /// left out. Its commit is not: that tells the downstream what it lacks, by all the names of
    /// that moment, and ends the transfer as any other.
    pub(super) fn handle_given_up(&mut self, stage: StageId) {
        if let Some(transfer) = self.transfer(stage) {
            transfer.is_given_up = true;
            if transfer.phase == TransferPhase::Reading {
                transfer.phase = TransferPhase::Complete;
            }
        }
    }

    /// Returns whether the downstream gave a stage up.
    pub fn is_given_up(&self, stage: StageId) -> bool {
        self.transfers.iter().any(|transfer| transfer.stage == stage && transfer.is_given_up)
    }

    /// Says that a staged file changed while it was read. Returns whether to read it anew;
    /// else it is sent as it was read, for it does not rest, or nobody takes it.
    pub fn handle_stage_changed(&mut self, stage: StageId) -> bool {
        let Some(transfer) = self.transfer(stage) else { return false };
        if transfer.is_given_up {
            return false;
        }
        transfer.attempts += 1;
        let anew = transfer.attempts < TRANSFER_ATTEMPTS_MAX;
        if anew {
            transfer.phase = TransferPhase::Reading;
            (transfer.begun, transfer.ctime) = (false, None);
        }
        transfer.again = !anew;
        anew
    }

    /// Says that a staged file, about to be committed, does not rest: a record follows when it
    /// does, or after a while, so that it is not sent once more at once, for ever.
    pub fn handle_stage_restless(&mut self, stage: StageId) {
        if let Some(transfer) = self.transfer(stage) {
            transfer.again = false;
        }
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
        self.end_transfer(stage, &[]);
        self.collect_answers();
    }

    /// Returns the stage, if any, of a file that is on its way to `path`.
    pub fn stage_path(&self, stage: StageId) -> Option<&TreePath> {
        self.transfers.iter().find(|transfer| transfer.stage == stage).map(|found| &found.path)
    }

    pub(super) fn transfer(&mut self, stage: StageId) -> Option<&mut Transfer> {
        self.transfers.iter_mut().find(|transfer| transfer.stage == stage)
    }

    /// Ends a transfer that has sent `links` as the other names of its file.
    pub(super) fn end_transfer(&mut self, stage: StageId, links: &[TreePath]) {
        let Some(index) = self.transfers.iter().position(|transfer| transfer.stage == stage) else {
            return;
        };
        let Transfer { path: own, sequence, waiting, again, .. } = self.transfers.remove(index);
        let links: HashSet<&TreePath> = links.iter().chain([&own]).collect();
        for (path, walk) in waiting {
            let comes_again = again || !links.contains(&path);
            if let Some(number) = walk {
                let Some((_, walk)) = self.walks.iter_mut().find(|(walk, _)| *walk == number)
                else {
                    continue;
                };
                walk.in_hand -= 1;
                if comes_again {
                    walk.push(path);
                }
            } else if let (true, Some(sequence)) = (comes_again, sequence) {
                let origin = Origin::Again(sequence);
                self.deferred.push_back(Job { path, what: What::CONTENT, origin });
            }
        }
    }
}
