//! When a sink's position is saved, and what is said if it cannot be.

use std::time::Instant;

use super::super::identity::boot_id;
use super::Sink;
use crate::journal::checkpoint::Checkpoint;

impl Sink {
    pub(super) fn checkpoint(&self) -> Option<Checkpoint> {
        Some(Checkpoint {
            tree: self.state.tree?,
            watermarks: self.state.watermarks,
            trusted_until: self.state.trusted_until,
            trusted_node: self.state.trusted_node,
            needs: self.state.needs().map(|(path, content)| (path.clone(), content)).collect(),
            boot_id: boot_id(),
        })
    }

    /// Notes durably that the tree is about to be in an unknown state, or says why it cannot.
    pub(super) fn begin_reconcile(&mut self) -> Result<(), String> {
        let failed =
            |error: &dyn std::fmt::Display| format!("its checkpoint cannot be written: {error}");
        self.checkpointer.cancel();
        if let Some(checkpoint) = self.checkpoint() {
            checkpoint.save(self.replica.control()).map_err(|error| failed(&error))?;
        }
        self.replica.forget_moved().map_err(|error| failed(&error))
    }

    /// Returns whether a checkpoint is due.
    pub(super) fn is_checkpoint_due(&self, now: Instant) -> bool {
        let revision = self.state.revision();
        let due = self.state.watermarks.and_then(|marks| self.checkpointer.due_at(marks, revision));
        due.is_some_and(|due| now >= due)
    }

    pub(super) fn start_checkpoint(&mut self, now: Instant) {
        if !self.is_checkpoint_due(now) {
            return;
        }
        let journal = self.outlet.as_mut().and_then(|outlet| outlet.journal_sync.take());
        if self.outlet.is_some() && journal.is_none() {
            return; // What it names must be in the journal as well.
        }
        let Some(checkpoint) = self.checkpoint() else { return };
        let revision = self.state.revision();
        let started = self.ensure_marker(&checkpoint).and_then(|()| {
            self.checkpointer.start(&self.replica, journal, checkpoint, revision, now)
        });
        if let Err(error) = started {
            self.say_checkpoint(Some(error.to_string()));
        }
    }

    /// Makes the marker that must be there before this checkpoint is.
    pub(super) fn ensure_marker(&mut self, checkpoint: &Checkpoint) -> std::io::Result<()> {
        let Some(marks) = checkpoint.watermarks else { return Ok(()) };
        self.replica.ensure_marker(marks.moved)
    }

    pub(super) fn finish_checkpoint(&mut self) {
        match self.checkpointer.finish() {
            Some(Ok(marks)) => {
                if self.state.watermarks.is_some_and(|now| now.epoch == marks.epoch) {
                    self.state.durable = marks.applied;
                    self.replica.handle_checkpoint(marks.moved);
                }
                self.say_checkpoint(None);
            }
            Some(Err(error)) => self.say_checkpoint(Some(error)),
            None => {}
        }
    }

    /// Says that checkpoints fail, and why, once until one succeeds.
    pub(super) fn say_checkpoint(&mut self, failure: Option<String>) {
        match (&failure, &self.checkpoint_failure) {
            (Some(now), before) if before.as_ref() != Some(now) => tracing::error!(
                "{}: the checkpoint failed: {now}; it is tried again until it succeeds, and a \
                 restart resumes from the last one",
                self.path.display()
            ),
            (None, Some(_)) => {
                tracing::info!("{}: checkpoints succeed again", self.path.display());
            }
            _ => {}
        }
        self.checkpoint_failure = failure;
    }
}
