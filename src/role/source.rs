//! A source: a feed, its journal, and any number of downstreams.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::os::fd::BorrowedFd;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use super::batch::{BATCH_JOBS_MAX, Batch};
use super::identity::SourceIdentity;
use super::options::SourceOptions;
use super::problems::Problems;
use super::relay::Replay;
use super::{FeedEvent, LinkError, LinkId, Peer, Received, Role, RoleError, SourceFeed};
use crate::journal::{Cursor, Journal, JournalError, ReadError};
use crate::model::limits::{HEARTBEAT_MS, RECORDS_READ_MAX};
use crate::model::{
    Change, Epoch, Mark, Marks, NodeId, Position, RenameIndex, Sequence, Timestamp, TreePath, What,
};
use crate::session::{Relayed, Sender, SourceState};
use crate::tree::{Reader, Root, StageReader};
use crate::watch::{Watch, WatchOptions, wall_clock};
use crate::wire::{
    DownstreamHello, Frame, FrameKind, Item, Message, Refusal, StageId, encode_message,
};

/// Time between two attempts while nothing may be sent.
const RETRY: Duration = Duration::from_millis(500);

/// Bytes of records at which they are written before more are taken up.
const BUFFERED_BYTES_MAX: usize = 1 << 20;

/// Longest time for which records are taken up in one turn. What is longer on its way, a tree
/// that was moved in or a great recovery, must not keep heartbeats and other roles waiting.
const DRAIN_TIME_MAX: Duration = Duration::from_millis(20);

/// Most batches in one turn that gave nothing to send.
const FILLS_MAX: u32 = 8;

/// Serves one tree to any number of downstreams.
pub struct Source<F> {
    path: PathBuf,
    pub(super) feed: F,
    journal: Journal,
    renames: RenameIndex,
    /// Where in a relay's journal its upstream's positions are.
    marks: Marks,
    reader: Reader,
    node: NodeId,
    pub(super) downstreams: BTreeMap<LinkId, Downstream>,
    /// The nodes above, the epoch, and what of unfinished files, as downstreams were told them.
    pub(super) standing: Option<(Vec<NodeId>, Option<Epoch>, u64)>,
    problems: Problems,
    /// Most jobs that are read between two drains of the feed.
    batch_jobs_max: usize,
    /// Whether the feed may have more than was taken up.
    has_backlog: bool,
    /// Whether records came in that the loop has not offered to every downstream yet.
    has_news: bool,
    /// The files whose content changes, while that is noted.
    changed: Option<HashSet<TreePath>>,
    /// Where a new epoch is to begin, until the journal could begin it.
    reset: Option<Position>,
    started: Instant,
    /// Why nothing is sent at present.
    held: Option<String>,
    held_until: Instant,
}

/// One downstream: a session, and what belongs to it.
pub(super) struct Downstream {
    pub(super) sender: Sender,
    cursor: Option<Cursor>,
    stages: HashMap<StageId, StageReader>,
    /// Encoded and not handed out.
    frames: VecDeque<Vec<u8>>,
    /// A hello that waits for the first scan, or until a relay is as far as its downstream.
    hello: Option<DownstreamHello>,
    /// Whether it was said that it waits.
    waits: bool,
    heartbeat_at: Instant,
    /// Why the connection is to be closed.
    pub(super) refusal: Option<Refusal>,
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
        let identity = SourceIdentity::load(&options.state_dir, &root, options.accept_root)?;
        let journal = Journal::open(&options.state_dir.join("journal"), options.journal_bytes)
            .map_err(|error| RoleError(format!("the journal cannot be used: {error}")))?;
        let watch_options = WatchOptions { rescan_interval: options.rescan_interval };
        let watched = Root::open(path).map_err(|error| fail("cannot open the tree", &error))?;
        let watch = Watch::new(watched, watch_options).map_err(|error| {
            fail("cannot watch the tree", &format!("{error}{}", super::watch_advice(&error)))
        })?;
        Source::new(options.root.clone(), watch, journal, Reader::new(root), identity)
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
            standing: None,
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
    fn journal_events(&mut self) -> Result<(), JournalError> {
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
                        && what.covers(What::CONTENT)
                    {
                        changed.insert(path);
                    }
                }
                Some(FeedEvent::Reset(position)) => self.reset = Some(position),
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
            (chain, epoch) = (standing.chain, standing.epoch?);
        }
        chain.push(self.node);
        let (floor, head) = (self.journal.floor(), self.journal.committed());
        Some(SourceState { tree, chain, epoch, floor, head, clock: self.feed.clock(), relayed })
    }

    /// Answers a hello that waits, if it can be answered now.
    fn greet(
        &mut self,
        link: LinkId,
        mut state: SourceState,
        now: Instant,
    ) -> Result<(), LinkError> {
        let Some(downstream) = self.downstreams.get_mut(&link) else { return Ok(()) };
        let Some(hello) = &downstream.hello else { return Ok(()) };
        if state.must_wait_for(hello) {
            if !std::mem::replace(&mut downstream.waits, true) {
                tracing::info!(
                    "{}: a downstream is ahead; it waits until the same is applied here",
                    self.path.display()
                );
            }
            return Ok(());
        }
        if let (Some(relayed), Some(marks)) = (&mut state.relayed, hello.watermarks) {
            relayed.after = self.marks.cursor(marks.applied);
        }
        let Some(hello) = downstream.hello.take() else { return Ok(()) };
        let answer = downstream
            .sender
            .handle_message(Message::DownstreamHello(hello), &state, &self.renames, now)
            .map_err(LinkError::Refuse)?;
        downstream.frames.extend(answer.as_ref().map(encode_message));
        Ok(())
    }

    /// Reads what `link` is to be sent next and turns it into frames. Returns whether there may
    /// be more to do at once, also if this gave no frame.
    fn fill(&mut self, link: LinkId, now: Instant) -> Result<bool, LinkError> {
        // One turn for all downstreams is enough for what takes several.
        if self.has_backlog || !self.drain(now) {
            return Ok(false);
        }
        let Some(state) = self.state() else { return Ok(false) };
        let (head, clock) = (state.head, state.clock);
        let applied = state.relayed.map(|relayed| relayed.applied);
        let reached = state.relayed.and_then(|relayed| relayed.reached);
        self.greet(link, state, now)?;
        let Some(downstream) = self.downstreams.get_mut(&link) else { return Ok(false) };
        if !downstream.sender.is_running() || downstream.refusal.is_some() {
            return Ok(false);
        }
        let Downstream { sender, cursor, stages, frames, .. } = downstream;
        if sender.has_fallen_off(&self.renames) {
            let reason = "more renames came than are kept for it".to_string();
            return Err(LinkError::Refuse(Refusal::StartOver(reason)));
        }
        let mut batch = Batch::new(self.batch_jobs_max);
        while let Some(rename) = sender.poll_rename(&self.renames) {
            batch.push(&rename);
            if batch.frame().len() >= crate::model::limits::FRAME_BYTES_TARGET {
                // More renames follow: nothing may be read before.
                let frame = std::mem::take(batch.frame()).finish();
                sender.handle_sent(frame.len(), true, now);
                frames.push_back(frame);
                return Ok(true);
            }
        }
        if sender.take_unfinished() {
            for path in self.feed.unfinished() {
                batch.push(&Item::Unfinished { path });
            }
        }
        if let Some(after) = sender.wants_records(head) {
            take_records(&self.journal, cursor, sender, after, head, applied)?;
        }
        sender.begin_batch(head, clock);
        sender.follow_relay(reached);
        batch.read(
            sender,
            stages,
            &mut self.reader,
            &mut self.feed,
            &self.renames,
            &mut self.problems,
        );
        let mut more = batch.read_chunk(sender, stages, &mut self.problems);
        if batch.has_jobs() {
            more = true;
            self.changed = Some(HashSet::new());
            self.drain(now);
        }
        let changed = self.changed.take().unwrap_or_default();
        let is_drained = self.is_drained();
        more &= is_drained;
        let Some(downstream) = self.downstreams.get_mut(&link) else { return Ok(false) };
        let Downstream { sender, stages, frames, .. } = downstream;
        batch.use_confirmed(sender, stages, &mut self.feed, is_drained, &changed, &self.renames);
        // What is not taken up yet is not known before any later moment.
        let clock = if is_drained { self.feed.clock() } else { clock };
        while let Some(item) = sender.poll_through(clock) {
            batch.push(&item);
        }
        for frame in batch.into_frames() {
            let frame = frame.finish();
            sender.handle_sent(frame.len(), true, now);
            frames.push_back(frame);
        }
        Ok(more)
    }
}

impl<F: SourceFeed> Role for Source<F> {
    fn descriptors(&self) -> Vec<BorrowedFd<'_>> {
        let own = self.feed.descriptor();
        let inner = self.feed.role().map(|role| role.descriptors());
        own.into_iter().chain(inner.into_iter().flatten()).collect()
    }

    fn handle_readable(&mut self, now: Instant) -> Result<(), RoleError> {
        match self.with_role(now, |role| role.handle_readable(now)) {
            Some(handled) => handled,
            None => {
                self.drain(now);
                Ok(())
            }
        }
    }

    fn wants_upstream(&self, now: Instant) -> bool {
        // What cannot be journaled must not be applied.
        self.held.is_none() && self.feed.role().is_some_and(|role| role.wants_upstream(now))
    }

    fn handle_connected(&mut self, link: LinkId, peer: Peer, now: Instant) {
        if peer == Peer::Upstream {
            self.with_role(now, |role| role.handle_connected(link, peer, now));
            return;
        }
        let downstream = Downstream {
            sender: Sender::new(now),
            cursor: None,
            stages: HashMap::new(),
            frames: VecDeque::new(),
            hello: None,
            waits: false,
            heartbeat_at: now + Duration::from_millis(HEARTBEAT_MS),
            refusal: None,
        };
        self.downstreams.insert(link, downstream);
    }

    fn handle_frame(
        &mut self,
        link: LinkId,
        frame: Frame<'_>,
        bytes: usize,
        now: Instant,
    ) -> Result<(), LinkError> {
        if !self.downstreams.contains_key(&link) {
            let handled = self.with_role(now, |role| role.handle_frame(link, frame, bytes, now));
            handled.unwrap_or(Ok(()))?;
            if self.journal.buffered_bytes() < BUFFERED_BYTES_MAX {
                return Ok(());
            }
            let reason = "what it applies cannot be journaled".to_string();
            return Err(LinkError::Refuse(Refusal::StartOver(reason)));
        }
        let refuse = |reason: String| LinkError::Refuse(Refusal::Protocol(reason));
        if frame.kind != FrameKind::Message {
            return Err(refuse("a downstream sends no items".into()));
        }
        let message = frame.message().map_err(|error| refuse(error.to_string()))?;
        let state = self.state();
        let Some(downstream) = self.downstreams.get_mut(&link) else { return Ok(()) };
        match message {
            Message::Bye(reason) => Err(LinkError::Refused(reason)),
            // Also while there is nothing to serve, or it would wait for itself for ever.
            Message::DownstreamHello(hello) if hello.node == self.node => {
                Err(LinkError::Refuse(Refusal::Cycle(hello.node)))
            }
            Message::DownstreamHello(hello) if !downstream.sender.is_running() => {
                downstream.hello = Some(hello);
                downstream.heartbeat_at = now + Duration::from_millis(HEARTBEAT_MS);
                Ok(())
            }
            message => {
                // It is greeted anew soon.
                let Some(state) = state else { return Ok(()) };
                let answer = downstream
                    .sender
                    .handle_message(message, &state, &self.renames, now)
                    .map_err(LinkError::Refuse)?;
                downstream.frames.extend(answer.as_ref().map(encode_message));
                Ok(())
            }
        }
    }

    fn handle_received(&mut self, link: LinkId, now: Instant) {
        if !self.downstreams.contains_key(&link)
            && let Some(role) = self.feed.role_mut()
        {
            role.handle_received(link, now);
        }
    }

    fn handle_drained(&mut self, link: LinkId, now: Instant) -> Result<(), LinkError> {
        if self.downstreams.contains_key(&link) {
            return Ok(());
        }
        self.with_role(now, |role| role.handle_drained(link, now)).unwrap_or(Ok(()))
    }

    fn check(&mut self, link: LinkId, now: Instant) -> Result<(), LinkError> {
        let Some(downstream) = self.downstreams.get_mut(&link) else {
            return self.feed.role_mut().map_or(Ok(()), |role| role.check(link, now));
        };
        downstream.refusal.take().map_or(Ok(()), |refusal| Err(LinkError::Refuse(refusal)))
    }

    fn poll_transmit(&mut self, link: LinkId, now: Instant) -> Result<Option<Vec<u8>>, LinkError> {
        let Some(downstream) = self.downstreams.get_mut(&link) else {
            return self.feed.role_mut().map_or(Ok(None), |role| role.poll_transmit(link, now));
        };
        if downstream.frames.is_empty() {
            let mut fills = 0;
            while self.fill(link, now)?
                && self.downstreams.get(&link).is_some_and(|link| link.frames.is_empty())
            {
                fills += 1;
                if fills == FILLS_MAX {
                    self.has_news = true; // The loop comes back at once, after the others.
                    break;
                }
            }
        }
        let downstream = self.downstreams.get_mut(&link);
        Ok(downstream.and_then(|downstream| downstream.frames.pop_front()))
    }

    fn handle_closed(&mut self, link: Option<LinkId>, reason: &str, now: Instant) {
        let left = link.and_then(|link| self.downstreams.remove(&link));
        if left.is_none() {
            self.with_role(now, |role| role.handle_closed(link, reason, now));
        }
        // Who never said hello was none.
        if left.is_some_and(|downstream| downstream.sender.is_running()) {
            tracing::info!("{}: a downstream left: {reason}", self.path.display());
        }
    }

    fn poll_timeout(&self) -> Option<Instant> {
        // A journal without room takes nothing up: its next attempt is what is waited for.
        let is_full = self.journal.buffered_bytes() >= BUFFERED_BYTES_MAX;
        let mut next = if is_full { None } else { self.feed.poll_timeout() };
        let role = self.feed.role().and_then(|role| role.poll_timeout());
        next = next.into_iter().chain(role).min();
        let mut at = |moment: Instant| next = Some(next.map_or(moment, |next| next.min(moment)));
        if self.has_news || self.has_backlog {
            at(self.started);
        }
        if self.held.is_some() {
            at(self.held_until);
        }
        if let Some(due) = self.problems.next_due() {
            at(due);
        }
        for downstream in self.downstreams.values() {
            if downstream.hello.is_some() {
                at(downstream.heartbeat_at);
            } else if downstream.refusal.is_none() {
                at(downstream.sender.poll_timeout());
            }
        }
        next
    }

    fn handle_timeout(&mut self, now: Instant) -> Result<(), RoleError> {
        for path in self.problems.due(now) {
            self.feed.mark(&path);
        }
        self.has_news = false;
        if self.feed.wants_journal_sync(now) {
            match self.journal.sync_later() {
                Ok(sync) => self.feed.handle_journal_sync(sync),
                Err(error) => tracing::error!("{error}; the checkpoint waits"),
            }
        }
        match self.with_role(now, |role| role.handle_timeout(now)) {
            Some(handled) => handled?,
            None => _ = self.drain(now),
        }
        let own = (self.journal.committed(), wall_clock());
        let (head, clock) = self.feed.upstream().map_or(own, |standing| standing.origin);
        for downstream in self.downstreams.values_mut() {
            downstream.keep_alive(head, clock, now);
        }
        Ok(())
    }

    fn received(&self) -> Option<Received> {
        self.feed.role()?.received()
    }

    fn shut_down(&mut self) -> Result<(), RoleError> {
        let now = Instant::now();
        self.feed.settle(now);
        self.drain(now);
        let failed = |error: &dyn std::fmt::Display| {
            RoleError(format!("the journal could not be written at the end: {error}"))
        };
        self.journal.close().map_err(|error| failed(&error))?;
        // What its checkpoint names is in the journal by now.
        self.feed.role_mut().map_or(Ok(()), |role| role.shut_down())
    }
}

impl Downstream {
    /// Queues a heartbeat if nothing was sent for a while, and notices a silent peer.
    fn keep_alive(&mut self, head: Sequence, clock: Timestamp, now: Instant) {
        let heartbeat = if self.hello.is_some() {
            let due = now >= self.heartbeat_at;
            Ok(due.then_some(Message::Heartbeat { head, clock }))
        } else {
            self.sender.poll_heartbeat(head, clock, now)
        };
        match heartbeat {
            Ok(None) => {}
            Ok(Some(heartbeat)) => {
                self.heartbeat_at = now + Duration::from_millis(HEARTBEAT_MS);
                let frame = encode_message(&heartbeat);
                self.sender.handle_sent(frame.len(), false, now);
                // One that a slow peer has not taken yet says the same.
                if self.frames.is_empty() {
                    self.frames.push_back(frame);
                }
            }
            Err(refusal) => self.refusal = Some(refusal),
        }
    }
}

/// Reads the journal on for a sender.
///
/// `applied` is how far a relay's tree is: marks of what it had once, and lost when the machine lost
/// power, come again.
fn take_records(
    journal: &Journal,
    cursor: &mut Option<Cursor>,
    sender: &mut Sender,
    after: Sequence,
    head: Sequence,
    applied: Option<Option<Sequence>>,
) -> Result<(), LinkError> {
    let fallen = || LinkError::Refuse(Refusal::StartOver("it fell off the journal".into()));
    if cursor.is_none() {
        *cursor = Some(journal.cursor(after).ok_or_else(fallen)?);
    }
    let Some(cursor) = cursor else { return Ok(()) };
    let mut records = Vec::new();
    match journal.read(cursor, RECORDS_READ_MAX, &mut records) {
        Ok(()) => {}
        Err(ReadError::Fallen { .. }) => return Err(fallen()),
        Err(error) => {
            let reason = format!("its journal cannot be read: {error}");
            return Err(LinkError::Refuse(Refusal::StartOver(reason)));
        }
    }
    let through = match records.last() {
        Some(last) if records.len() == RECORDS_READ_MAX => last.sequence,
        _ => head,
    };
    records.retain(|record| match record.change {
        Change::Through(mark) => applied.is_some_and(|now| Some(mark.watermarks.applied) <= now),
        _ => true,
    });
    sender.handle_records(records, through);
    Ok(())
}
