//! Checkpoints: a position is named only after everything through it is on stable storage.
//!
//! Syncing a file system may take seconds, and the loop must not wait for it: a helper thread
//! makes that one blocking call, writes the checkpoint, and wakes the loop through a pipe.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::journal::PendingSync;
use crate::journal::checkpoint::Checkpoint;
use crate::model::Watermarks;
use crate::tree::replica::Replica;

/// Writes checkpoints now and then.
#[derive(Debug)]
pub(super) struct Checkpointer {
    interval: Duration,
    last: Instant,
    /// The position, and the revision of the needs, that were saved last.
    saved: Option<(Watermarks, u64)>,
    /// Whether the tree had no position before: the first one is saved without a pause.
    is_first: bool,
    running: Option<Running>,
    woken: OwnedFd,
    wake: OwnedFd,
}

#[derive(Debug)]
struct Running {
    thread: JoinHandle<Result<(), String>>,
    what: (Watermarks, u64),
}

impl Checkpointer {
    pub fn new(interval: Duration) -> io::Result<Self> {
        let flags = rustix::pipe::PipeFlags::CLOEXEC | rustix::pipe::PipeFlags::NONBLOCK;
        let (woken, wake) = rustix::pipe::pipe_with(flags)?;
        let last = Instant::now();
        Ok(Checkpointer {
            interval,
            last,
            saved: None,
            is_first: false,
            running: None,
            woken,
            wake,
        })
    }

    /// Returns what becomes readable when a checkpoint is done.
    pub fn descriptor(&self) -> BorrowedFd<'_> {
        self.woken.as_fd()
    }

    /// Returns when to save this position with needs of this revision, `None` if that is saved.
    pub fn due_at(&self, marks: Watermarks, needs: u64) -> Option<Instant> {
        let news = self.saved != Some((marks, needs));
        let due = if self.is_first { self.last } else { self.last + self.interval };
        (news && self.running.is_none()).then_some(due)
    }

    /// Begins to save what was applied so far, with needs of this revision, once `journal` is
    /// durable.
    pub fn start(
        &mut self,
        replica: &Replica,
        journal: Option<PendingSync>,
        checkpoint: Checkpoint,
        needs: u64,
        now: Instant,
    ) -> io::Result<()> {
        let Some(marks) = checkpoint.watermarks else { return Ok(()) };
        // What fails is not due again at once.
        (self.last, self.is_first) = (now, false);
        let root = replica.root().as_fd().try_clone_to_owned()?;
        let control = replica.control().try_clone_to_owned()?;
        let wake = self.wake.try_clone()?;
        let thread = std::thread::Builder::new().name("checkpoint".into()).spawn(move || {
            let journaled = journal.map_or(Ok(()), |journal| journal.run().map(drop));
            let saved = journaled
                .map_err(|error| error.to_string())
                .and_then(|()| rustix::fs::syncfs(&root).map_err(|error| error.to_string()))
                .and_then(|()| checkpoint.save(control.as_fd()).map_err(|error| error.to_string()));
            // Full, the pipe wakes the loop all the same.
            let _ = rustix::io::write(&wake, &[0]);
            saved
        })?;
        self.running = Some(Running { thread, what: (marks, needs) });
        Ok(())
    }

    /// Returns how a checkpoint went that has ended.
    pub fn finish(&mut self) -> Option<Result<Watermarks, String>> {
        let mut buffer = [0; 64];
        // The byte is the last thing that the thread does, so joining does not wait.
        match rustix::io::read(&self.woken, &mut buffer) {
            Ok(count) if count > 0 => self.join(),
            _ => None,
        }
    }

    /// Waits for a checkpoint that is under way, so that it cannot overwrite the one that says that
    /// the tree has no position.
    pub fn cancel(&mut self) {
        if let Some(Err(error)) = self.join() {
            tracing::error!("the checkpoint failed: {error}");
        }
        let _ = rustix::io::read(&self.woken, &mut [0; 64]);
        (self.saved, self.is_first) = (None, true);
    }

    fn join(&mut self) -> Option<Result<Watermarks, String>> {
        let Running { thread, what } = self.running.take()?;
        Some(match thread.join() {
            Ok(Ok(())) => {
                self.saved = Some(what);
                Ok(what.0)
            }
            Ok(Err(error)) => Err(error),
            Err(_) => Err("its thread panicked".into()),
        })
    }
}

impl Drop for Checkpointer {
    /// Waits: who opens the replica next, in this process, must not have its checkpoint overwritten.
    fn drop(&mut self) {
        let _ = self.join();
    }
}
