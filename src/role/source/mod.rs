//! A source: a feed, its journal, and any number of downstreams.

mod driven;
mod session;
mod sharing;

use std::collections::{BTreeMap, HashSet};
use std::path::PathBuf;
use std::time::{Duration, Instant};

pub(super) use session::Downstream;
use sharing::Lead;

use super::batch::BATCH_JOBS_MAX;
use super::identity::SourceIdentity;
use super::options::SourceOptions;
use super::problems::Problems;
use super::replay::Replay;
use super::restart::{self, Again, Continued, Obstacle};
use super::{Feed, FeedEvent, LinkId, RoleError, SourceFeed};
use crate::journal::{FileError, Journal};
use crate::model::limits::SEQUENCES_SKIPPED_MAX;
use crate::model::{
    Change, Epoch, EpochId, Mark, Marks, NodeId, Position, RenameIndex, TreePath, What,
};
use crate::session::{Relayed, SourceState};
use crate::tree::{Reader, Root};
use crate::watch::{Watch, WatchOptions};

/// Time between two attempts while nothing may be sent.
const RETRY: Duration = Duration::from_millis(500);

/// Bytes of records at which they are written before more are taken up.
const BUFFERED_BYTES_MAX: usize = 1 << 20;

/// Longest time for which records are taken up in one turn. What is longer on its way, a tree
/// that was moved in or a great recovery, must not keep heartbeats and other roles waiting.
const DRAIN_TIME_MAX: Duration = Duration::from_millis(20);

/// Serves one tree to any number of downstreams.
pub struct Source<F> {
    path: PathBuf,
    pub(super) feed: F,
    pub(super) journal: Journal,
    pub(super) renames: RenameIndex,
    /// Where in a relay's journal its upstream's positions are.
    marks: Marks,
    reader: Reader,
    pub(super) node: NodeId,
    pub(super) downstreams: BTreeMap<LinkId, Downstream>,
    /// What is read for all downstreams that are level.
    lead: Option<Lead>,
    /// What downstreams must have been told of the nodes above, while that is known.
    pub(super) above: Option<(Vec<NodeId>, EpochId)>,
    /// The number by which a feed says that downstreams may not know of an unfinished file.
    pub(super) parts_untold: u64,
    pub(super) problems: Problems,
    /// Most jobs that are read between two drains of the feed.
    batch_jobs_max: usize,
    /// Whether the feed may have more than was taken up.
    has_backlog: bool,
    /// Whether records came in that the loop has not offered to every downstream yet.
    has_news: bool,
    /// The files whose content changes, while that is noted.
    changed: Option<HashSet<TreePath>>,
    /// Where a new epoch is to begin, until the journal could begin it.
    pub(super) reset: Option<Position>,
    started: Instant,
    /// Why nothing is sent at present.
    held: Option<String>,
    held_until: Instant,
    /// What was journaled in an earlier run and is told again.
    pub(super) again: Option<Again>,
    /// Whether the feed waits for a durable journal to keep what a restart goes on from.
    pub(super) owes_sync: bool,
}

impl Source<Watch> {
    /// Opens the source of the tree at `options.root`.
    pub fn open(options: SourceOptions) -> Result<Self, RoleError> {
        let path = &options.root;
        let fail = |what: &str, error: &dyn std::fmt::Display| {
            RoleError(format!("{}: {what}: {error}", path.display()))
        };
        let root = Root::open(path).map_err(|error| fail("cannot open the tree", &error))?;
        if options.lock_root {
            super::identity::lock(&root, path)?;
        }
        let mut identity = SourceIdentity::load(&options.state_dir, &root, options.accept_root)?;
        let mut journal = Journal::open(&options.state_dir.join("journal"), options.journal_bytes)
            .map_err(|error| RoleError(format!("the journal cannot be used: {error}")))?;
        identity.agree(&options.state_dir, journal.known_at_open())?;
        let watch = || {
            let watch_options = WatchOptions { rescan_interval: options.rescan_interval };
            let watched = Root::open(path).map_err(|error| fail("cannot open the tree", &error))?;
            let mut watch = Watch::new(watched, watch_options).map_err(|error| {
                fail("cannot watch the tree", &format!("{error}{}", super::watch_advice(&error)))
            })?;
            watch.keep_catalog(options.state_dir.clone());
            Ok(watch)
        };
        let (path, reader) = (options.root.clone(), Reader::new(root));
        let mut resumed = watch()?;
        let reason = match restart::go_on(&mut resumed, &journal, &identity, &options.state_dir) {
            Ok(Continued { replay, untold, again }) => {
                if options.accept_root {
                    resumed.accept_mounts();
                }
                let node = identity.node;
                journal.skip(1 + identity.epoch.random % SEQUENCES_SKIPPED_MAX);
                let mut source = Source::resume(path, resumed, journal, reader, node, replay);
                untold.iter().for_each(|path| Feed::mark(&mut source.feed, path));
                source.again = again;
                return Ok(source);
            }
            Err(Obstacle::FirstStart) => None,
            Err(Obstacle::NewEpoch(reason)) => Some(reason),
            Err(Obstacle::Hold(error)) if options.accept_root => Some(error.to_string()),
            Err(Obstacle::Hold(error)) => return Err(error),
        };
        drop(resumed);
        if let Some(reason) = reason {
            tracing::warn!("{reason}; a new epoch begins, and all replicas compare their trees");
        }
        Source::new(path, watch()?, journal, reader, identity)
    }
}

impl<F: SourceFeed> Source<F> {
    /// Returns a source that journals what `feed` brings. Continuity with an earlier run is
    /// never claimed, so a new epoch begins.
    pub fn new(
        path: PathBuf,
        feed: F,
        mut journal: Journal,
        reader: Reader,
        identity: SourceIdentity,
    ) -> Result<Self, RoleError> {
        let epoch = Epoch { id: identity.epoch, parent: None };
        journal
            .begin_epoch(identity.tree, epoch)
            .map_err(|error| RoleError(format!("the journal cannot be written: {error}")))?;
        Ok(Source::resume(path, feed, journal, reader, identity.node, Replay::default()))
    }

    /// Returns a source that goes on with a journal, of which `replay` is what there is to know.
    pub(super) fn resume(
        path: PathBuf,
        mut feed: F,
        journal: Journal,
        reader: Reader,
        node: NodeId,
        replay: Replay,
    ) -> Self {
        feed.start(journal.next_sequence());
        Source {
            path,
            feed,
            journal,
            renames: replay.renames,
            marks: replay.marks,
            reader,
            node,
            above: None,
            parts_untold: 0,
            lead: None,
            downstreams: BTreeMap::new(),
            problems: Problems::default(),
            batch_jobs_max: BATCH_JOBS_MAX,
            has_backlog: false,
            has_news: false,
            changed: None,
            reset: None,
            started: Instant::now(),
            held: None,
            held_until: Instant::now(),
            again: None,
            owes_sync: false,
        }
    }

    /// Returns the feed.
    pub fn feed(&mut self) -> &mut F {
        &mut self.feed
    }

    /// Has fewer jobs read at once, so that a test sees a source that lags behind a small tree as
    /// others do behind a great one.
    pub fn limit_batches(&mut self, jobs_max: usize) {
        self.batch_jobs_max = jobs_max;
    }

    /// Has the journal keep less than is sensible, so that a test sees cursors fall off it.
    pub fn limit_journal(&mut self, bytes_max: u64, segment_bytes: u64) {
        self.journal.limit(bytes_max, segment_bytes);
    }

    /// Brings the journal up to what the feed knows now, or as far as a turn goes. Returns
    /// whether states may be read and sent.
    pub(super) fn drain(&mut self, now: Instant) -> bool {
        let journaled = self.journal_events();
        // What a journal without room does not take waits for the next attempt.
        self.has_backlog &= journaled.is_ok();
        if self.held.is_some() && now < self.held_until {
            return false;
        }
        // Written before any message that names it leaves.
        let held = match journaled.and_then(|()| self.journal.commit()) {
            Ok(()) => self.feed.hold(),
            Err(error) => Some(format!("the journal cannot be written: {error}")),
        };
        if let Some(reason) = &held {
            if self.held.is_none() {
                tracing::error!("{reason}; nothing is sent until then");
            }
            self.held_until = now + RETRY;
        } else {
            if self.held.is_some() {
                tracing::info!("{}: going on", self.path.display());
            }
            if let Some((tree, epoch)) = self.journal.tree_and_epoch() {
                let sequence = self.journal.committed();
                self.feed.committed(Position { tree, epoch: epoch.id, sequence });
            }
            self.renames.drop_through(self.journal.floor());
            self.marks.drop_below(self.journal.floor());
            self.keep();
        }
        self.held = held;
        self.is_drained()
    }

    /// Returns whether the last drain reached the end, so that what was read before is true if
    /// no record speaks against it.
    fn is_drained(&self) -> bool {
        self.held.is_none() && !self.has_backlog && self.feed.is_settled()
    }

    /// Journals what the feed has, as far as the journal takes it: what waits in memory is
    /// bounded, and the feed keeps or finds again what it was not asked for (I7).
    fn journal_events(&mut self) -> Result<(), FileError> {
        let deadline = Instant::now() + DRAIN_TIME_MAX;
        self.has_backlog = true;
        while Instant::now() < deadline {
            if let Some(position) = self.reset {
                let epoch = Epoch { id: position.epoch, parent: None };
                self.start_over("its tree is compared with the upstream's");
                self.journal.begin_epoch(position.tree, epoch)?;
                self.renames = RenameIndex::new(self.journal.floor(), position.sequence);
                (self.marks, self.reset) = (Marks::default(), None);
            }
            if self.journal.buffered_bytes() >= BUFFERED_BYTES_MAX {
                self.journal.commit()?;
            }
            match self.feed.poll_event() {
                Some(FeedEvent::Record(record)) => {
                    self.has_news |= self.downstreams.len() > 1;
                    self.renames.push(&record);
                    if let Change::Through(mark) = record.change {
                        self.marks.push(record.sequence, mark);
                    }
                    self.problems.translate(&record.change);
                    self.journal.append(&record);
                    if let (Some(changed), Change::Dirty { path, what }) =
                        (&mut self.changed, record.change)
                        && what.covers(What::COMPARE)
                    {
                        changed.insert(path);
                    }
                }
                Some(FeedEvent::Reset(position)) => self.reset = Some(position),
                None if self.tell_again() => {}
                None => {
                    self.has_backlog = false;
                    break;
                }
            }
        }
        Ok(())
    }

    /// Returns what sessions must know; `None` while there is nothing to serve.
    fn state(&self) -> Option<SourceState> {
        let (tree, mut epoch) = self.journal.tree_and_epoch().filter(|_| self.reset.is_none())?;
        let (mut chain, mut relayed) = (Vec::new(), None);
        if let Some(standing) = self.feed.upstream() {
            let is_reached = |mark: &Mark| Some(mark.watermarks.applied) <= standing.applied;
            relayed = Some(Relayed {
                moved: standing.moved,
                applied: standing.applied,
                reached: standing.reached,
                origin: standing.origin,
                mark: self.marks.last_if_whole().filter(|(_, mark)| is_reached(mark)),
                after: None,
            });
            (chain, epoch) = (standing.chain.unwrap_or_default(), standing.epoch?);
        }
        chain.push(self.node);
        let (floor, head) = (self.journal.floor(), self.journal.committed());
        Some(SourceState { tree, chain, epoch, floor, head, clock: self.feed.clock(), relayed })
    }
}
