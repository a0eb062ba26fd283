//! A relay: a source whose feed is a sink.
//!
//! What is here is how the two are put together: what of the journal can be used at the start,
//! and which calls of the loop are for the sink.

use std::time::Instant;

use super::replay::Replay;
use super::source::Downstream;
use super::{OpenError, RelayOptions, Role, RoleError, Sink, Source, SourceFeed};
use crate::journal::Journal;
use crate::tree::{Reader, Root};

/// Follows an upstream and serves others from its replica.
pub type Relay = Source<Sink>;

impl Source<Sink> {
    /// Opens the relay whose replica is at `options.sink.root`.
    ///
    /// # Errors
    ///
    /// As [`Sink::open`]; or its journal cannot be used.
    pub fn open_relay(options: RelayOptions) -> Result<Self, OpenError> {
        let path = options.sink.root.clone();
        let journal_path = options.sink.state_dir.join("journal");
        let mut sink = Sink::open(options.sink)?;
        let node = sink.state().node;
        let unusable = |error: &dyn std::fmt::Display| {
            RoleError(format!("the journal cannot be used: {error}"))
        };
        let journal = Journal::open(&journal_path, options.journal_bytes)
            .map_err(|error| unusable(&error))?;
        let mut replay = Replay::of(&journal).map_err(|error| unusable(&error))?;
        let had_journal = journal.tree_and_epoch().is_some();
        let end = replay
            .end()
            .filter(|_| journal.tree_and_epoch().map(|known| known.0) == sink.state().tree);
        if !sink.become_feed(end) {
            if had_journal {
                tracing::warn!(
                    "{}: the relay's journal does not go on where its tree is; it begins anew, \
                     and downstreams compare their trees",
                    journal_path.display()
                );
            } else if sink.state().tree.is_some() {
                tracing::warn!(
                    "{}: there is no journal of the tree that is here; it begins anew, and \
                     downstreams compare their trees",
                    journal_path.display()
                );
            }
            replay = Replay::default();
        }
        let root = Root::open(&path)
            .map_err(|error| RoleError(format!("{}: cannot open it: {error}", path.display())))?;
        Ok(Source::resume(path, sink, journal, Reader::new(root), node, replay))
    }
}

impl<F: SourceFeed> Source<F> {
    /// Has the sink handle something, and takes up what came of it.
    pub(super) fn with_role<T>(
        &mut self,
        now: Instant,
        call: impl FnOnce(&mut dyn Role) -> T,
    ) -> Option<T> {
        let result = call(self.feed.role_mut()?);
        self.drain(now);
        self.follow_upstream();
        Some(result)
    }

    /// Has downstreams greet anew when what they were told at first is no longer true: the nodes
    /// above, by which cycles are seen, or what the numbers belong to, or which files are parts.
    fn follow_upstream(&mut self) {
        let Some(standing) = self.feed.upstream() else { return };
        if std::mem::replace(&mut self.parts_untold, standing.untold) != standing.untold {
            self.start_over("which files are parts is told again");
        }
        let above = standing.chain.zip(standing.epoch).map(|(mut chain, epoch)| {
            chain.push(self.node);
            (chain, epoch.id)
        });
        if above == self.above {
            return;
        }
        if above.is_some() {
            let is_other = |downstream: &&mut Downstream| downstream.told != above;
            let others = self.downstreams.values_mut().filter(is_other);
            others.for_each(|downstream| downstream.start_over("the nodes above are other ones"));
        }
        self.above = above;
    }

    /// Has every downstream that was answered greet anew.
    pub(super) fn start_over(&mut self, reason: &str) {
        self.downstreams.values_mut().for_each(|downstream| downstream.start_over(reason));
    }
}
