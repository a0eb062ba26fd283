//! The upstream's side of one connection.
//!
//! The shell calls [`Sender::poll_rename`] until it returns `None`, then takes a batch of
//! [`Job`]s with [`Sender::next_job`], reads each and asks [`Sender::content_for`] what to send
//! of it, drains the watch, and hands the batch to [`Sender::finish_batch`], which says which
//! of them must not be used. [`Sender::poll_through`] follows what was used.

mod digests;
mod downstream;
mod job;
mod marks;
mod shared;
mod staging;
mod window;

use std::collections::{HashMap, VecDeque};
use std::time::{Duration, Instant};

use crate::model::limits::*;
use crate::model::{
    Change, Epoch, Identity, Kind, Mark, NodeId, Record, RenameIndex, Sequence, Timestamp, TreeId,
    TreePath, What,
};
use crate::wire::{Content, DownstreamHello, Item, Message, Refusal};

use super::walk::{Mode, Reach, Walk};
use digests::Comparison;
pub use digests::SurveyTask;
pub use job::{BatchJob, Job, Look, Origin, Outcome, Travel};
pub use shared::Progress;
use staging::{Transfer, TransferPhase};
use window::Window;

/// What a sender must know of its source to answer a hello.
///
/// What a session says is in the numbers of the tree's own source, from whomever it is heard.
/// There, these are the journal's; a relay has numbers of its own for its journal, and marks in it
/// (see [`Mark`]).
#[derive(Debug, Clone)]
pub struct SourceState {
    /// The tree.
    pub tree: TreeId,
    /// The nodes from the origin to this one.
    pub chain: Vec<NodeId>,
    /// The epoch of the numbers of sessions.
    pub epoch: Epoch,
    /// Records above this are in the journal, by its own numbers.
    pub floor: Sequence,
    /// The journal's last record, by its own numbers.
    pub head: Sequence,
    /// This node's clock up to which no change is unknown.
    pub clock: Timestamp,
    /// What there is to know of a relay besides.
    pub relayed: Option<Relayed>,
}

/// What a sender must know of a relay.
#[derive(Debug, Clone, Copy)]
pub struct Relayed {
    /// Every rename through this is in the relay's tree.
    pub moved: Sequence,
    /// Every record through this is in the relay's tree; `None` while that is compared with its
    /// upstream's.
    pub applied: Option<Sequence>,
    /// The last record that the relay's journal may have told of, if that can be said.
    pub reached: Option<Sequence>,
    /// The origin's last record and clock, as far as they are known here.
    pub origin: (Sequence, Timestamp),
    /// The last mark if a downstream may take it for its own, and its place in the journal.
    pub mark: Option<(Sequence, Mark)>,
    /// After which place of the journal the downstream goes on that greets, `None` if the journal
    /// does not have that.
    pub after: Option<Sequence>,
}

impl SourceState {
    /// Returns through which rename the tree is that is read, in the numbers of sessions.
    fn moved(&self) -> Sequence {
        self.relayed.map_or(self.head, |relayed| relayed.moved)
    }

    /// Returns the origin's last record and clock, as far as they are known here.
    pub fn origin(&self) -> (Sequence, Timestamp) {
        self.relayed.map_or((self.head, self.clock), |relayed| relayed.origin)
    }

    /// Returns after which place of the journal a downstream goes on.
    fn after(&self, hello: &DownstreamHello) -> Option<Sequence> {
        let own = || hello.watermarks.map(|marks| marks.applied);
        self.relayed.map_or_else(own, |relayed| relayed.after)
    }
}

/// The state machine. See the module's documentation for the order of calls.
#[derive(Debug)]
pub struct Sender {
    hello_done: bool,
    /// Whether the downstream must still be told which of its files may be parts.
    owes_unfinished: bool,
    /// Renames through this are sent, in the numbers of sessions.
    moved: Sequence,
    /// Records through this were taken from the journal.
    read_through: Sequence,
    /// Taken from the journal and not sent yet, in order.
    records: VecDeque<Record>,
    walks: VecDeque<(u64, Walk)>,
    walk_next: u64,
    comparison: Comparison,
    transfers: Vec<Transfer>,
    stage_next: u64,
    /// Big files that wait until fewer are staged.
    deferred: VecDeque<Job>,
    /// States sent, with the journal's head when they were read: an earlier record of the same
    /// path has nothing to add. Cleared by every rename.
    sent: HashMap<TreePath, (Sequence, What)>,
    /// The journal's head when the present batch began.
    batch_head: Sequence,
    /// The source's clock at the same time.
    batch_clock: Timestamp,
    /// The last mark sent; `None` while the downstream has no position.
    through_sent: Option<Sequence>,
    /// The same, with this node's clock in it.
    mark_sent: Option<(Sequence, Timestamp)>,
    /// The last record that a state may have told of that was sent.
    reached: Sequence,
    /// The same of the relay's tree from which is read, if it can be said.
    relay_reached: Option<Sequence>,
    /// The last change of content that was left to a walk, which comes by later.
    left_to_walks: Sequence,
    /// Whether marks are those that the journal has, and not each place of it.
    is_relay: bool,
    /// The journal's marks that were taken up and not sent, with their places.
    marks: VecDeque<(Sequence, Mark)>,
    answers: VecDeque<u64>,
    window: Window,
    /// Bytes of files that the downstream has to digest, as far as it may not have done so, and
    /// the bytes sent before the last of them.
    digests: (u64, u64),
    /// Up to this moment of the source's clock, equal size and time mean equal content: as the
    /// downstream said in its hello, and as far as it acknowledged since.
    trusted_until: (Timestamp, Timestamp),
    /// A mark that was sent, and its clock. Others are left out until it is acknowledged.
    trusts: Option<(Sequence, Timestamp)>,
    last_sent: Instant,
    last_heard: Instant,
}

impl Sender {
    /// Returns a sender for a connection that was just accepted.
    pub fn new(now: Instant) -> Self {
        Sender {
            hello_done: false,
            owes_unfinished: false,
            moved: Sequence(0),
            read_through: Sequence(0),
            records: VecDeque::new(),
            walks: VecDeque::new(),
            walk_next: 0,
            comparison: Comparison::default(),
            transfers: Vec::new(),
            stage_next: 0,
            deferred: VecDeque::new(),
            sent: HashMap::new(),
            batch_head: Sequence(0),
            batch_clock: Timestamp::default(),
            through_sent: None,
            mark_sent: None,
            reached: Sequence(0),
            relay_reached: None,
            left_to_walks: Sequence(0),
            is_relay: false,
            marks: VecDeque::new(),
            answers: VecDeque::new(),
            window: Window::default(),
            digests: (0, 0),
            trusted_until: Default::default(),
            trusts: None,
            last_sent: now,
            last_heard: now,
        }
    }

    /// Returns whether the two sides have greeted each other.
    pub fn is_running(&self) -> bool {
        self.hello_done
    }

    /// Returns the next rename to send. Nothing may be read before this returns `None`.
    pub fn poll_rename(&mut self, renames: &RenameIndex) -> Option<Item> {
        if !self.hello_done {
            return None;
        }
        let (sequence, change) = renames.after(self.moved).next()?;
        self.moved = sequence;
        self.sent.clear();
        for transfer in &mut self.transfers {
            transfer.translate(change);
        }
        for job in &mut self.deferred {
            if let Some(path) = change.translate(&job.path) {
                job.path = path;
            }
        }
        let reconciles = self.is_reconciling();
        for (_, walk) in &mut self.walks {
            walk.follow(change);
        }
        self.follow_in_comparison(change);
        let (from, to) = change.ends()?;
        if reconciles {
            // The downstream may not have had what moved, or something else: both ends are
            // compared, with all below them.
            self.mark(from);
            self.mark(to);
        }
        Some(match change.clone() {
            Change::Rename { from, to } => Item::Rename { sequence, from, to },
            Change::Exchange { a, b } => Item::Exchange { sequence, a, b },
            Change::Dirty { .. } | Change::Through(_) => return None,
        })
    }

    /// Returns whether the downstream is to be told now which files are unfinished: once, behind
    /// the renames that it had missed and before anything else. It may have been killed since it
    /// was told, and until this comes it lets no rename replace a file.
    pub fn take_unfinished(&mut self) -> bool {
        std::mem::take(&mut self.owes_unfinished)
    }

    /// Returns whether renames that this downstream needs are not kept any more: it must start
    /// over.
    pub fn has_fallen_off(&self, renames: &RenameIndex) -> bool {
        self.hello_done && self.cursor() < renames.floor()
    }

    /// Returns after which sequence the shell should read the journal on, `None` if the sender
    /// has enough records.
    pub fn wants_records(&self, head: Sequence) -> Option<Sequence> {
        (self.hello_done && self.records.is_empty() && self.read_through < head)
            .then_some(self.read_through)
    }

    /// Takes up records of the journal that follow what was read; `through` is how far the
    /// journal was read, also where it ended in a gap.
    pub fn handle_records(&mut self, records: impl IntoIterator<Item = Record>, through: Sequence) {
        self.records.extend(records);
        assert!(through >= self.read_through);
        self.read_through = through;
    }

    /// Begins a batch of jobs: the watch was drained at `clock` and the journal's last record is
    /// `head`.
    pub fn begin_batch(&mut self, head: Sequence, clock: Timestamp) {
        (self.batch_head, self.batch_clock) = (head, clock);
        if self.window.handled_bytes() > self.digests.1 || self.window.in_flight_bytes() == 0 {
            self.digests.0 = 0;
        }
    }

    /// Says through which record the tree of a relay may be that is read, if that can be said.
    pub fn follow_relay(&mut self, reached: Option<Sequence>) {
        self.relay_reached = reached;
    }

    /// Returns the next path to read.
    pub fn next_job(&mut self, renames: &RenameIndex) -> Option<Job> {
        if !self.hello_done || self.window.is_full() {
            return None;
        }
        if let Some(transfer) =
            self.transfers.iter_mut().find(|transfer| transfer.phase == TransferPhase::Complete)
        {
            transfer.phase = TransferPhase::Committing;
            let (path, origin) = (transfer.path.clone(), Origin::Commit(transfer.stage));
            return Some(Job { path, what: What::CONTENT, origin });
        }
        if self.transfers.len() < TRANSFERS_MAX
            && let Some(job) = self.deferred.pop_front()
        {
            return Some(job);
        }
        if self.deferred.len() >= DEFERRED_MAX {
            return None;
        }
        // What the downstream has to digest it digests before it hears of more.
        let has_digests = self.digests.0 >= DIGEST_BYTES_MAX;
        let waits = |record: &Record| {
            has_digests
                && matches!(&record.change, Change::Dirty { what, .. }
                    if what.covers(What::COMPARE) && !what.covers(What::CONTENT))
        };
        while self.records.front().is_some_and(|record| !waits(record))
            && let Some(record) = self.records.pop_front()
        {
            let (path, what) = match &record.change {
                Change::Dirty { path, what } => (path, what),
                Change::Through(mark) => {
                    self.take_mark(record.sequence, *mark);
                    continue;
                }
                Change::Rename { .. } | Change::Exchange { .. } => continue,
            };
            let path = renames.translate(path, record.sequence);
            let sent = self.sent.get(&path).filter(|(head, _)| *head >= record.sequence);
            let Some(what) = sent.map_or(Some(*what), |(_, sent)| what.less(*sent)) else {
                continue;
            };
            if self.walks.iter().any(|(_, walk)| walk.need.is_none() && walk.will_visit(&path)) {
                if what.covers(What::COMPARE) {
                    self.left_to_walks = record.sequence;
                }
                continue;
            }
            return Some(Job { path, what, origin: Origin::Journal(record) });
        }
        // A walk goes on past big files, which take turns with what comes after them: reading them
        // is this side's work, and making small ones the other's.
        let is_reading = |transfer: &Transfer| transfer.phase == TransferPhase::Reading;
        let is_chunks_turn = self.window.in_flight_bytes() >= WINDOW_CHUNK_BYTES_MAX
            && self.transfers.iter().any(is_reading);
        if is_chunks_turn || self.deferred.len() >= DEFERRED_BY_WALKS_MAX {
            return None;
        }
        // A comparison's answers come back as needs: few are let out at once, so that their
        // number stays bounded.
        let waits =
            self.window.in_flight_bytes() > COMPARE_BYTES_MAX || self.digests.0 >= DIGEST_BYTES_MAX;
        for (number, walk) in &mut self.walks {
            if matches!(walk.mode, Mode::Compare { .. }) && waits {
                continue;
            }
            if let Some(path) = walk.pop() {
                return Some(Job { path, what: What::CONTENT, origin: Origin::Walk(*number) });
            }
        }
        None
    }

    /// Returns how many other names of a file matter for a job, at most. To look for all of them
    /// at each would cost the square of their number.
    pub fn links_max(&self, job: &Job, identity: Identity) -> usize {
        let Origin::Walk(number) = job.origin else {
            // A content is for all of them; a name is known to be one by any other.
            return if job.what.covers(What::COMPARE) { usize::MAX } else { 1 };
        };
        let walk = self.walks.iter().find(|(walk, _)| *walk == number).map(|(_, walk)| walk);
        // A walk of the whole tree sends each when it comes to it, but for what was told before it
        // came there; behind the first name, others are sent as names of the same.
        let wants_all = walk.is_none_or(|walk| {
            walk.need.is_some()
                || (!walk.sends_each() || walk.is_overtaken)
                    && walk.may_be_first_name(identity, &job.path)
        });
        if wants_all { usize::MAX } else { 0 }
    }

    /// Decides how the content of what was seen at a job's path travels.
    pub fn content_for(&mut self, job: &Job, look: &Look<'_>) -> Travel {
        if look.entry.is_directory() {
            return Travel::As(Content::Keep, Vec::new());
        }
        let is_regular = matches!(look.entry.kind, Kind::Regular { .. });
        if is_regular && self.absorb(job, look) {
            return Travel::Absorbed;
        }
        if look.is_linked {
            let others =
                self.walks.iter_mut().filter(|(walk, _)| job.origin != Origin::Walk(*walk));
            others.for_each(|(_, walk)| walk.is_overtaken = true);
        }
        let mut links = look.links.to_vec();
        if let Origin::Walk(number) = job.origin
            && let Some((_, walk)) = self.walks.iter_mut().find(|(walk, _)| *walk == number)
        {
            if walk.need.is_none()
                && look.is_linked
                && let Some(first) = walk.first_name(look.identity, &job.path)
            {
                // A big file that waits is not there for another name to be made of it.
                let waits = self.deferred.iter().any(|waiting| waiting.path == first);
                return if waits {
                    Travel::Later
                } else {
                    Travel::As(Content::Linked, vec![first])
                };
            }
            if walk.need.is_none() && walk.sends_each() {
                // What it has not come to is not there yet to be made a name of this file.
                links.retain(|link| !walk.will_visit(link));
            }
            if let (Mode::Compare { trusted_until }, Kind::Regular { size }) =
                (walk.mode, &look.entry.kind)
            {
                if look.ctime < trusted_until.earlier_by_seconds(2) {
                    return Travel::As(Content::Compare { digest: None }, links);
                }
                if *size > DIGEST_BYTES_MAX {
                    return self.stage(job, look);
                }
                self.digests = (self.digests.0 + size, self.window.sent_bytes());
                return Travel::Digest(links);
            }
        }
        let Kind::Regular { size } = look.entry.kind else {
            let is_all =
                self.links_max(job, look.identity) == usize::MAX && links.len() == look.links.len();
            let content = match job.origin {
                // It may have been another one until now, of which names are left downstream.
                _ if is_all => Content::Compare { digest: None },
                Origin::Walk(_) => Content::Keep,
                _ if links.is_empty() => Content::Keep,
                // Made anew, it would take this one name from the others.
                _ => Content::Linked,
            };
            return Travel::As(content, links);
        };
        if !job.what.covers(What::CONTENT) {
            if job.what.covers(What::COMPARE) && size <= DIGEST_BYTES_MAX {
                self.digests = (self.digests.0 + size, self.window.sent_bytes());
                return Travel::Digest(links);
            }
            if job.what.covers(What::COMPARE) {
                return self.stage(job, look);
            }
            if !job.what.covers(What::NAME) {
                return Travel::As(Content::Keep, links);
            }
            if !links.is_empty() {
                return Travel::As(Content::Linked, links);
            }
        }
        if size <= INLINE_BYTES_MAX as u64 && !look.has_holes {
            return Travel::Inline(links);
        }
        self.stage(job, look)
    }

    /// Has what is in a directory that a walk came to visited, as far as the walk goes: right
    /// behind it, files first and in this order, for the receiver builds a directory aside while
    /// its files come one after another. Each is confirmed for itself, and if the directory comes
    /// again, so do they.
    pub fn visit(&mut self, job: &Job, files: Vec<TreePath>, directories: Vec<TreePath>) {
        let Origin::Walk(number) = job.origin else { return };
        let Some((_, walk)) = self.walks.iter_mut().find(|(walk, _)| *walk == number) else {
            return;
        };
        let directories = match walk.reach {
            Reach::Digests => {
                self.comparison.begin(number, &job.path);
                return;
            }
            Reach::Directory => Vec::new(),
            Reach::Subtree => directories,
        };
        for child in files.into_iter().chain(directories).rev() {
            walk.push(child);
        }
    }

    /// Keeps a job until fewer files are staged; what comes behind it goes on.
    pub fn defer(&mut self, job: Job) {
        self.deferred.push_back(job);
    }

    /// Ends a batch. `jobs` are those read, in order; since then the watch was drained into
    /// `renames`, and `settled` says whether that told everything. Returns what becomes of each.
    pub fn finish_batch(
        &mut self,
        jobs: Vec<BatchJob>,
        settled: bool,
        renames: &RenameIndex,
    ) -> Vec<Outcome> {
        let moved = renames.after(self.moved).next().is_some();
        let lags = self.cursor() < self.batch_head;
        let mut outcomes = Vec::with_capacity(jobs.len());
        let mut again = Vec::new();
        for BatchJob { job, links, sent, outcome } in jobs {
            // A stage that was opened stays so: its path follows renames until the commit.
            let opened = outcome == Outcome::Staged && !matches!(job.origin, Origin::Commit(_));
            let comes_again = !opened
                && (!settled
                    || outcome == Outcome::Again
                    || moved && renames.touches(&job.path, self.moved));
            outcomes.push(if comes_again { Outcome::Again } else { outcome });
            if comes_again {
                again.push(job);
                continue;
            }
            self.reached = self.batch_head;
            let mut head = self.batch_head;
            match job.origin {
                Origin::Walk(number) => {
                    let Some((_, walk)) = self.walks.iter_mut().find(|(walk, _)| *walk == number)
                    else {
                        continue;
                    };
                    walk.in_hand -= 1;
                }
                Origin::Commit(stage) if outcome != Outcome::Staged => {
                    // Its content is of when the reading of it began.
                    head = self.transfer(stage).map_or(Sequence(0), |transfer| transfer.head);
                    self.end_transfer(stage, &links)
                }
                Origin::Commit(_) | Origin::Journal(_) | Origin::Again(_) => {}
            }
            if lags && outcome == Outcome::Used && self.sent.len() < SENT_PATHS_MAX {
                for link in links {
                    self.sent.insert(link, (head, What::BY_ANOTHER_NAME));
                }
                self.sent.extend(sent.map(|what| (job.path, (head, what))));
            }
        }
        self.put_back(again);
        if !lags {
            self.sent.clear();
        }
        self.collect_answers();
        outcomes
    }

    fn put_back(&mut self, jobs: Vec<Job>) {
        for job in jobs.into_iter().rev() {
            match job.origin {
                Origin::Journal(record) => self.records.push_front(record),
                Origin::Again(_) => self.deferred.push_front(job),
                Origin::Walk(number) => {
                    if let Some((_, walk)) = self.walks.iter_mut().find(|(walk, _)| *walk == number)
                    {
                        walk.in_hand -= 1;
                        walk.push(job.path);
                    }
                }
                Origin::Commit(stage) => {
                    // Not if it is read anew meanwhile.
                    if let Some(transfer) = self.transfer(stage)
                        && transfer.phase == TransferPhase::Committing
                    {
                        transfer.phase = TransferPhase::Complete;
                    }
                }
            }
        }
    }

    /// Returns through which sequence all records were taken up.
    fn cursor(&self) -> Sequence {
        self.records.front().map_or(self.read_through, |record| Sequence(record.sequence.0 - 1))
    }

    /// Returns whether the whole tree is on its way.
    pub fn is_reconciling(&self) -> bool {
        self.walks.iter().any(|(_, walk)| walk.need.is_none())
    }

    /// Returns whether there is nothing to send beyond what the journal may bring.
    pub fn is_idle(&self) -> bool {
        self.records.is_empty()
            && self.walks.is_empty()
            && self.transfers.is_empty()
            && self.deferred.is_empty()
    }

    /// Has the subtree at `path` compared before the walk of the whole tree ends.
    fn mark(&mut self, path: &TreePath) {
        let mode = Mode::Compare { trusted_until: self.trusted_until.1 };
        let is_mark = |walk: &Walk| {
            walk.need.is_none()
                && walk.reach != Reach::Directory
                && matches!(walk.mode, Mode::Compare { .. })
        };
        match self.walks.iter_mut().find(|(_, walk)| is_mark(walk)) {
            Some((_, walk)) if walk.will_visit(path) => {}
            Some((_, walk)) => walk.push(path.clone()),
            None => self.start_walk(Walk::new(mode, None, path.clone())),
        }
    }

    fn start_walk(&mut self, walk: Walk) {
        let walk = (self.walk_next, walk);
        self.walk_next += 1;
        // What the downstream misses goes before what it has not heard of yet.
        if walk.1.need.is_some() {
            let at = self.walks.iter().take_while(|(_, walk)| walk.need.is_some()).count();
            self.walks.insert(at, walk);
        } else {
            self.walks.push_back(walk);
        }
    }

    fn collect_answers(&mut self) {
        let mut done = Vec::new();
        let comparison = &self.comparison;
        self.walks.retain(|(number, walk)| {
            let is_done = walk.is_done() && !comparison.is_of(*number);
            if is_done {
                done.extend(walk.need);
            }
            !is_done
        });
        // Digests may have made further walks of one need.
        done.retain(|id| self.walks.iter().all(|(_, walk)| walk.need != Some(*id)));
        done.dedup();
        self.answers.extend(done);
    }

    /// Says that a frame of `bytes` was handed to the connection.
    pub fn handle_sent(&mut self, bytes: usize, is_items: bool, now: Instant) {
        self.last_sent = now;
        if is_items {
            self.window.send(bytes as u64, now);
        }
    }

    /// Returns when something must be done although nothing happens: a heartbeat, or giving the
    /// peer up.
    pub fn poll_timeout(&self) -> Instant {
        let silence = if self.hello_done { SILENCE_MS_MAX } else { HANDSHAKE_MS_MAX };
        let silent = self.last_heard + Duration::from_millis(silence);
        if self.hello_done {
            silent.min(self.last_sent + Duration::from_millis(HEARTBEAT_MS))
        } else {
            silent
        }
    }

    /// Returns a heartbeat if one is due.
    ///
    /// # Errors
    ///
    /// A [`Refusal`] if the peer has been silent for too long.
    pub fn poll_heartbeat(
        &mut self,
        head: Sequence,
        clock: Timestamp,
        now: Instant,
    ) -> Result<Option<Message>, Refusal> {
        let silence = if self.hello_done { SILENCE_MS_MAX } else { HANDSHAKE_MS_MAX };
        if now >= self.last_heard + Duration::from_millis(silence) {
            return Err(Refusal::Protocol("silent for too long".into()));
        }
        let due = self.hello_done && now >= self.last_sent + Duration::from_millis(HEARTBEAT_MS);
        Ok(due.then_some(Message::Heartbeat { head, clock }))
    }
}

/// Most bytes in flight at which a comparison goes on.
const COMPARE_BYTES_MAX: u64 = 64 << 10;

/// Most big files that wait for others before the records behind them wait as well.
const DEFERRED_MAX: usize = 1024;

/// Most of them when a walk goes on, so that there is room for those of records.
const DEFERRED_BY_WALKS_MAX: usize = 256;
