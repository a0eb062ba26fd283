//! Where a source's records come from.

use std::os::fd::BorrowedFd;
use std::time::Instant;

use super::{Epoch, Identity, NodeId, Position, Record, Sequence, Timestamp, TreePath, What};

/// Where a source's records come from: the watch of a tree, or a sink.
pub trait Feed {
    /// Returns the next event to journal, `None` until there is more.
    fn poll_event(&mut self) -> Option<FeedEvent>;

    /// Tells the feed that everything through `position` is written to the journal.
    fn committed(&mut self, position: Position);

    /// Sets the number of the first record that the feed will make.
    fn start(&mut self, next: Sequence);

    /// Returns the descriptor that becomes readable when there are events, if there is one.
    fn descriptor(&self) -> Option<BorrowedFd<'_>>;

    /// Returns whether states may be read now: no rename is half seen, nothing that appeared is
    /// unlisted. Otherwise [`Feed::poll_event`] goes on when it is called again, at once or at
    /// [`Feed::poll_timeout`].
    fn is_settled(&self) -> bool;

    /// Returns when [`Feed::poll_event`] has something to do although nothing happens.
    fn poll_timeout(&self) -> Option<Instant>;

    /// Returns the moment of the wall clock up to which no change is unknown.
    fn clock(&self) -> Timestamp;

    /// Returns other names, `most` at most, of the file that was just seen at `path` and has
    /// `count` names in all; remembers this one.
    fn links(
        &mut self,
        identity: Identity,
        count: u32,
        path: &TreePath,
        most: usize,
    ) -> Vec<TreePath>;

    /// Returns whether the directory at `path` is the one that the feed knows there. A state
    /// read in another one (a file system was mounted or unmounted, a rename is under way) is
    /// not the tree's.
    fn confirm(&mut self, path: &[u8], identity: Identity) -> Confirmation;

    /// Returns how far the writing of the file at `path` is.
    fn progress(&self, path: &TreePath) -> Progress;

    /// Returns the files whose writing is not finished, by one name each.
    fn unfinished(&self) -> Vec<TreePath>;

    /// Makes a record that the entry at `path` must be read again: it could not be read.
    fn mark(&mut self, path: &TreePath);

    /// Makes a record of what an earlier run told of the entry at `path`.
    fn tell_again(&mut self, path: &TreePath, _what: What) {
        self.mark(path);
    }

    /// Lets the feed keep what a restart goes on from, a little in each call. Everything that it
    /// made so far is written to the journal, whose ring has dropped what is at or below `floor`;
    /// `untold` names the entries that could not be read. Returns whether the journal must be
    /// durable before the next call.
    fn keep(&mut self, _floor: Sequence, _untold: &mut dyn FnMut() -> Vec<TreePath>) -> bool {
        false
    }

    /// Says that no more will be asked for: what is kept should be as of this end.
    fn end(&mut self) {}

    /// Returns whether that is still to come, by [`Feed::poll_event`] and [`Feed::keep`].
    fn is_ending(&self) -> bool {
        false
    }

    /// Returns why nothing may be sent at all, checked anew: the root is not in its place.
    fn hold(&mut self) -> Option<String>;

    /// Returns where the feed stands among its upstream's records; `None` if it has no upstream,
    /// and the journal's own numbers are those of the tree.
    fn upstream(&self) -> Option<Standing> {
        None
    }
}

/// Where a feed that follows an upstream stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Standing {
    /// The nodes from the origin to the upstream; `None` while there is no connection to it, for
    /// the next one may lead elsewhere.
    pub chain: Option<Vec<NodeId>>,
    /// Another number each time when downstreams may not know of an unfinished file.
    pub untold: u64,
    /// What all the numbers belong to; `None` until the journal may be served, for it is not known
    /// yet how it goes on.
    pub epoch: Option<Epoch>,
    /// Every rename through this is in the tree.
    pub moved: Sequence,
    /// Every record through this is in the tree; `None` while that is compared.
    pub applied: Option<Sequence>,
    /// The last record that the journal may have told of, if that can be said.
    pub reached: Option<Sequence>,
    /// The origin's last record and its clock, as heard last.
    pub origin: (Sequence, Timestamp),
}

/// An event of a feed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FeedEvent {
    /// Something changed.
    Record(Record),
    /// Continuity is lost: a new epoch begins at this position.
    Reset(Position),
}

/// What a feed knows of a directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Confirmation {
    /// It is the one.
    Known,
    /// Not yet; read again when the feed is settled.
    Unknown,
    /// It is held back, and what is below it is looked at when it is released.
    Held,
}

/// What a feed knows of a file's being written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Progress {
    /// It was closed, or never opened, as far as is known.
    Finished,
    /// It is open, or may be, and rests. What is read of it may be a part; another record follows
    /// only if it is written to again.
    Rested,
    /// It does not rest. What is read of it may be a part, and another record follows.
    Restless,
    /// It is written to at this moment. A record of it comes when it rests.
    Writing,
}
