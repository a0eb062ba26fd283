//! A source: a feed, its journal, and any number of downstreams.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::os::fd::BorrowedFd;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use super::batch::{BATCH_JOBS_MAX, Batch};
use super::identity::SourceIdentity;
use super::options::SourceOptions;
use super::problems::Problems;
use super::{Feed, FeedEvent, LinkError, LinkId, Role, RoleError};
use crate::journal::{Cursor, Journal, JournalError, ReadError};
use crate::model::limits::{HEARTBEAT_MS, RECORDS_READ_MAX};
use crate::model::{Change, Epoch, Position, RenameIndex, Sequence, Timestamp, TreePath, What};
use crate::session::{Sender, SourceState};
use crate::tree::{Reader, Root, StageReader};
use crate::watch::{Watch, WatchOptions, wall_clock};
use crate::wire::{Frame, FrameKind, Item, Message, Refusal, StageId, encode_message};

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
    feed: F,
    journal: Journal,
    renames: RenameIndex,
    reader: Reader,
    identity: SourceIdentity,
    epoch: Epoch,
    downstreams: BTreeMap<LinkId, Downstream>,
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
struct Downstream {
    sender: Sender,
    cursor: Option<Cursor>,
    stages: HashMap<StageId, StageReader>,
    /// Encoded and not handed out.
    frames: VecDeque<Vec<u8>>,
    /// A hello that waits for the first scan.
    hello: Option<Message>,
    heartbeat_at: Instant,
    /// Why the connection is to be closed.
    refusal: Option<Refusal>,
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
        let journal = Journal::open(&options.state_dir.join("journal"), options.journal_bytes)
            .map_err(|error| RoleError(format!("the journal cannot be used: {error}")))?;
        identity.agree(&options.state_dir, journal.known_at_open())?;
        let watch_options = WatchOptions { rescan_interval: options.rescan_interval };
        let watched = Root::open(path).map_err(|error| fail("cannot open the tree", &error))?;
        let watch = Watch::new(watched, watch_options).map_err(|error| {
            fail("cannot watch the tree", &format!("{error}{}", super::watch_advice(&error)))
        })?;
        Source::new(options.root.clone(), watch, journal, Reader::new(root), identity)
    }
}

impl<F: Feed> Source<F> {
    /// Returns a source that journals what `feed` brings. Continuity with an earlier run is
    /// never claimed, so a new epoch begins.
    pub fn new(
        path: PathBuf,
        mut feed: F,
        mut journal: Journal,
        reader: Reader,
        identity: SourceIdentity,
    ) -> Result<Self, RoleError> {
        let epoch = Epoch { id: identity.epoch, parent: None };
        journal
            .begin_epoch(identity.tree, epoch)
            .map_err(|error| RoleError(format!("the journal cannot be written: {error}")))?;
        feed.start(journal.next_sequence());
        let renames = RenameIndex::new(journal.floor(), journal.floor());
        Ok(Source {
            path,
            feed,
            journal,
            renames,
            reader,
            identity,
            epoch,
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
        })
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

    /// Brings the journal up to what the feed knows now, or as far as a turn goes. Returns
    /// whether states may be read and sent.
    fn drain(&mut self, now: Instant) -> bool {
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
            let position = Position {
                tree: self.identity.tree,
                epoch: self.epoch.id,
                sequence: self.journal.committed(),
            };
            self.feed.committed(position);
            self.renames.drop_through(self.journal.floor());
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
                self.journal.begin_epoch(position.tree, epoch)?;
                self.renames = RenameIndex::new(self.journal.floor(), self.journal.floor());
                (self.epoch, self.reset) = (epoch, None);
            }
            if self.journal.buffered_bytes() >= BUFFERED_BYTES_MAX {
                self.journal.commit()?;
            }
            match self.feed.poll_event() {
                Some(FeedEvent::Record(record)) => {
                    self.has_news |= self.downstreams.len() > 1;
                    self.renames.push(&record);
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

    fn state(&self) -> SourceState {
        SourceState {
            tree: self.identity.tree,
            chain: vec![self.identity.node],
            epoch: self.epoch,
            floor: self.journal.floor(),
            head: self.journal.committed(),
            clock: self.feed.clock(),
            relayed: None,
        }
    }

    /// Reads what `link` is to be sent next and turns it into frames. Returns whether there may
    /// be more to do at once, also if this gave no frame.
    fn fill(&mut self, link: LinkId, now: Instant) -> Result<bool, LinkError> {
        // One turn for all downstreams is enough for what takes several.
        if self.has_backlog || !self.drain(now) {
            return Ok(false);
        }
        let state = self.state();
        let Some(downstream) = self.downstreams.get_mut(&link) else { return Ok(false) };
        if let Some(hello) = downstream.hello.take() {
            let answer = downstream
                .sender
                .handle_message(hello, &state, &self.renames, now)
                .map_err(LinkError::Refuse)?;
            downstream.frames.extend(answer.as_ref().map(encode_message));
        }
        if !downstream.sender.is_running() {
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
        if let Some(after) = sender.wants_records(state.head) {
            take_records(&self.journal, cursor, sender, after, state.head)?;
        }
        sender.begin_batch(state.head, state.clock);
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
        let clock = if is_drained { self.feed.clock() } else { state.clock };
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

impl<F: Feed> Role for Source<F> {
    fn descriptors(&self) -> Vec<BorrowedFd<'_>> {
        self.feed.descriptor().into_iter().collect()
    }

    fn handle_readable(&mut self, now: Instant) -> Result<(), RoleError> {
        self.drain(now);
        Ok(())
    }

    fn wants_upstream(&self, _now: Instant) -> bool {
        false
    }

    fn handle_connected(&mut self, link: LinkId, now: Instant) {
        let downstream = Downstream {
            sender: Sender::new(now),
            cursor: None,
            stages: HashMap::new(),
            frames: VecDeque::new(),
            hello: None,
            heartbeat_at: now + Duration::from_millis(HEARTBEAT_MS),
            refusal: None,
        };
        self.downstreams.insert(link, downstream);
    }

    fn handle_frame(
        &mut self,
        link: LinkId,
        frame: Frame<'_>,
        _bytes: usize,
        now: Instant,
    ) -> Result<(), LinkError> {
        let refuse = |reason: String| LinkError::Refuse(Refusal::Protocol(reason));
        if frame.kind != FrameKind::Message {
            return Err(refuse("a downstream sends no items".into()));
        }
        let message = frame.message().map_err(|error| refuse(error.to_string()))?;
        let state = self.state();
        let Some(downstream) = self.downstreams.get_mut(&link) else { return Ok(()) };
        match message {
            Message::Bye(reason) => Err(LinkError::Refused(reason)),
            Message::DownstreamHello(_) if !downstream.sender.is_running() => {
                downstream.hello = Some(message);
                downstream.heartbeat_at = now + Duration::from_millis(HEARTBEAT_MS);
                Ok(())
            }
            message => {
                let answer = downstream
                    .sender
                    .handle_message(message, &state, &self.renames, now)
                    .map_err(LinkError::Refuse)?;
                downstream.frames.extend(answer.as_ref().map(encode_message));
                Ok(())
            }
        }
    }

    fn handle_drained(&mut self, _link: LinkId, _now: Instant) -> Result<(), LinkError> {
        Ok(())
    }

    fn check(&mut self, link: LinkId, _now: Instant) -> Result<(), LinkError> {
        let downstream = self.downstreams.get_mut(&link);
        let refusal = downstream.and_then(|downstream| downstream.refusal.take());
        refusal.map_or(Ok(()), |refusal| Err(LinkError::Refuse(refusal)))
    }

    fn poll_transmit(&mut self, link: LinkId, now: Instant) -> Result<Option<Vec<u8>>, LinkError> {
        let Some(downstream) = self.downstreams.get_mut(&link) else { return Ok(None) };
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

    fn handle_closed(&mut self, link: Option<LinkId>, reason: &str, _now: Instant) {
        let left = link.and_then(|link| self.downstreams.remove(&link));
        // Who never said hello was none.
        if left.is_some_and(|downstream| downstream.sender.is_running()) {
            tracing::info!("{}: a downstream left: {reason}", self.path.display());
        }
    }

    fn poll_timeout(&self) -> Option<Instant> {
        // A journal without room takes nothing up: its next attempt is what is waited for.
        let is_full = self.journal.buffered_bytes() >= BUFFERED_BYTES_MAX;
        let mut next = if is_full { None } else { self.feed.poll_timeout() };
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
        self.drain(now);
        let (head, clock) = (self.journal.committed(), wall_clock());
        for downstream in self.downstreams.values_mut() {
            downstream.keep_alive(head, clock, now);
        }
        Ok(())
    }

    fn shut_down(&mut self) -> Result<(), RoleError> {
        let failed = |error: &dyn std::fmt::Display| {
            RoleError(format!("the journal could not be written at the end: {error}"))
        };
        self.journal.close().map_err(|error| failed(&error))
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
fn take_records(
    journal: &Journal,
    cursor: &mut Option<Cursor>,
    sender: &mut Sender,
    after: Sequence,
    head: Sequence,
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
    sender.handle_records(records, through);
    Ok(())
}
