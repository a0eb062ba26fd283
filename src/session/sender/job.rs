//! What a sender asks its shell to read, and what the shell says it saw.

use crate::model::{Entry, Identity, Record, Sequence, Timestamp, TreePath, What};
use crate::wire::{Content, StageId};

/// One path to be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Job {
    /// Where the entry is now.
    pub path: TreePath,
    /// What is to be sent of it.
    pub what: What,
    /// Who asked.
    pub origin: Origin,
}

/// Why a path is read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// A record says that it changed.
    Journal(Record),
    /// A walk came to it: the number of the walk.
    Walk(u64),
    /// A staged file is complete and is to be put in place.
    Commit(StageId),
    /// A staged file was sent as it was read, or is another one now, and comes once more.
    /// Nothing at or above the sequence is through before.
    Again(Sequence),
}

/// What the shell saw at a path.
#[derive(Debug, Clone)]
pub struct Look<'a> {
    /// The entry.
    pub entry: &'a Entry,
    /// Its inode.
    pub identity: Identity,
    /// Time of its last change of any sort.
    pub ctime: Timestamp,
    /// Whether the file has holes, and so cannot travel inline.
    pub has_holes: bool,
    /// Whether it has other names.
    pub is_linked: bool,
    /// Its other names, as far as they are known.
    pub links: &'a [TreePath],
}

/// How the content of an entry travels.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Travel {
    /// This way, with these other names.
    As(Content, Vec<TreePath>),
    /// Compared by a digest, which the shell must compute.
    Digest(Vec<TreePath>),
    /// Inline: the shell reads it behind the item.
    Inline(Vec<TreePath>),
    /// Staged: nothing is sent at the path yet; the shell opens the stage.
    Stage(StageId),
    /// Nothing now: it is staged already, and its commit will send what is there then.
    Absorbed,
    /// Nothing now: too many files are staged. Give the job to [`defer`](super::Sender::defer).
    Later,
}

/// A job as it was read.
#[derive(Debug, Clone)]
pub struct BatchJob {
    /// The job.
    pub job: Job,
    /// Other names whose content was sent with it.
    pub links: Vec<TreePath>,
    /// What was read of it in this batch and sent, so that earlier records of the same have
    /// nothing to add; `None` if that is another job's to send.
    pub sent: Option<What>,
    /// What came of it.
    pub outcome: Outcome,
}

/// What came of a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// All that is to be sent of it was read, and is sent.
    Used,
    /// A stage was opened or begun anew for it: the job is over, and its commit follows.
    Staged,
    /// What was read is not sent, for the same job comes again.
    Again,
    /// What was read is not sent, and the job is over: it is a problem, or is told anew.
    Dropped,
}

impl BatchJob {
    /// Returns a job that was read, without other names.
    pub fn used(job: Job) -> Self {
        let sent = Some(job.what);
        BatchJob { job, links: Vec::new(), sent, outcome: Outcome::Used }
    }
}
