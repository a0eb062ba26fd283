//! A watch in front of which a test goes on.

use std::os::fd::BorrowedFd;
use std::time::Instant;

use mirror::model::{Identity, Position, Sequence, Timestamp, TreePath, What};
use mirror::role::{Confirmation, Feed, FeedEvent, Progress, SourceFeed};
use mirror::watch::Watch;

/// What a test does between what a source asks of its watch.
pub trait Meddler {
    /// Before the next event is asked for.
    fn before_event(&mut self, _watch: &mut Watch) {}

    /// After an event, or the end of them.
    fn after_event(&mut self, _is_end: bool) {}

    /// Before the other names of a file are asked for, between its reading and its use.
    fn before_links(&mut self) {}
}

/// A watch with a meddler.
pub struct Meddled<M> {
    pub watch: Watch,
    pub meddler: M,
}

impl<M: Meddler> Feed for Meddled<M> {
    fn poll_event(&mut self) -> Option<FeedEvent> {
        self.meddler.before_event(&mut self.watch);
        let event = self.watch.poll_event();
        self.meddler.after_event(event.is_none());
        event
    }
    fn committed(&mut self, position: Position) {
        self.watch.committed(position)
    }
    fn start(&mut self, next: Sequence) {
        self.watch.start(next)
    }
    fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        self.watch.descriptor()
    }
    fn is_settled(&self) -> bool {
        self.watch.is_settled()
    }
    fn poll_timeout(&self) -> Option<Instant> {
        self.watch.poll_timeout()
    }
    fn clock(&self) -> Timestamp {
        self.watch.clock()
    }
    fn links(
        &mut self,
        identity: Identity,
        count: u32,
        path: &TreePath,
        most: usize,
    ) -> Vec<TreePath> {
        self.meddler.before_links();
        self.watch.links(identity, count, path, most)
    }
    fn confirm(&mut self, path: &[u8], identity: Identity) -> Confirmation {
        self.watch.confirm(path, identity)
    }
    fn progress(&self, path: &TreePath) -> Progress {
        self.watch.progress(path)
    }
    fn unfinished(&self) -> Vec<TreePath> {
        self.watch.unfinished()
    }
    fn mark(&mut self, path: &TreePath) {
        self.watch.mark(path)
    }
    fn tell_again(&mut self, path: &TreePath, what: What) {
        self.watch.tell_again(path, what)
    }
    fn keep(&mut self, floor: Sequence, untold: &mut dyn FnMut() -> Vec<TreePath>) -> bool {
        self.watch.keep(floor, untold)
    }
    fn end(&mut self) {
        self.watch.end()
    }
    fn is_ending(&self) -> bool {
        self.watch.is_ending()
    }
    fn hold(&mut self) -> Option<String> {
        self.watch.hold()
    }
}

impl<M: Meddler> SourceFeed for Meddled<M> {}
