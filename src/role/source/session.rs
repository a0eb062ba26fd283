//! Serving one downstream: its session, and what is read for it.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::time::{Duration, Instant};

use super::super::batch::{Batch, NumberedSurvey};
use super::super::restart;
use super::super::{LinkError, LinkId, SourceFeed};
use super::Source;
use super::sharing::{Lead, Ride};
use crate::journal::{Cursor, Journal, ReadError};
use crate::model::limits::{HEARTBEAT_MS, RECORDS_READ_MAX};
use crate::model::{Change, EpochId, NodeId, Sequence, Timestamp};
use crate::session::{Sender, SourceState};
use crate::tree::StageReader;
use crate::wire::{DownstreamHello, EncodedFrame, Item, Message, Refusal, StageId, encode_message};

/// Most batches in one turn that gave nothing to send.
const FILLS_MAX: u32 = 8;

/// A sender, and what it takes to read for it.
pub(super) struct Session {
    pub(super) sender: Sender,
    cursor: Option<Cursor>,
    stages: HashMap<StageId, StageReader>,
    /// What is compared by digests at present.
    survey: Option<NumberedSurvey>,
    /// Encoded and not handed out.
    pub(super) frames: VecDeque<EncodedFrame>,
}

impl Session {
    pub(super) fn new(sender: Sender) -> Session {
        Session {
            sender,
            cursor: None,
            stages: HashMap::new(),
            survey: None,
            frames: VecDeque::new(),
        }
    }

    /// Goes on behind shared frames: reads the journal from there, and gives up the big files
    /// that were on their way.
    pub(super) fn go_on_alone(&mut self, stages: &[StageId], now: Instant) {
        self.cursor = None;
        let mut batch = Batch::new(0);
        for stage in stages {
            batch.push(&Item::StageAbort { stage: *stage });
        }
        for frame in batch.into_frames() {
            let frame = frame.finish();
            self.sender.handle_sent(frame.len(), true, now);
            self.frames.push_back(frame.into());
        }
    }
}

/// Seconds after which a downstream does not wait any more for what the origin, which is heard of,
/// does not have: several heartbeats.
const AHEAD_S_MAX: i64 = 10;

/// Whom something is read for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Target {
    /// One downstream.
    Link(LinkId),
    /// All that are at the same place.
    Lead,
}

/// One downstream.
pub(in crate::role) struct Downstream {
    pub(super) session: Session,
    /// The nodes above and the epoch, as it was told them.
    pub(in crate::role) told: Option<(Vec<NodeId>, EpochId)>,
    /// Its place among the frames that are made for several, while it takes those.
    pub(super) ride: Option<Ride>,
    /// A hello that waits for the first scan, or until a relay is as far as its downstream.
    pub(super) hello: Option<DownstreamHello>,
    /// The origin's clock when it was said that it waits.
    pub(super) waits_since: Option<Timestamp>,
    pub(super) heartbeat_at: Instant,
    /// Why the connection is to be closed.
    pub(super) refusal: Option<Refusal>,
}

impl<F: SourceFeed> Source<F> {
    /// Answers a hello that waits, if it can be answered now.
    fn greet(
        &mut self,
        link: LinkId,
        mut state: SourceState,
        now: Instant,
    ) -> Result<(), LinkError> {
        let Some(downstream) = self.downstreams.get_mut(&link) else { return Ok(()) };
        let Some(hello) = &mut downstream.hello else { return Ok(()) };
        if state.must_wait_for(hello) {
            let (head, clock) = state.origin();
            let position = hello.watermarks.map(|marks| marks.applied.max(marks.moved));
            let since = *downstream.waits_since.get_or_insert_with(|| {
                tracing::info!(
                    "{}: a downstream is ahead, at {}; it waits until the same is applied here",
                    self.path.display(),
                    position.unwrap_or_default()
                );
                clock
            });
            // By its clock the origin was heard of lately: it has never got as far.
            let is_lost = position.is_some_and(|position| position > head)
                && clock.earlier_by_seconds(AHEAD_S_MAX) >= since;
            if !is_lost {
                return Ok(());
            }
            tracing::warn!(
                "{}: a downstream is at {}, where its source has never been, which is at {head}: \
                 that was put back from an older copy; the downstream compares its tree",
                self.path.display(),
                position.unwrap_or_default()
            );
            hello.watermarks = None;
            if state.must_wait_for(hello) {
                return Ok(());
            }
        }
        if let (Some(relayed), Some(marks)) = (&mut state.relayed, hello.watermarks) {
            relayed.after = self.marks.cursor(marks.applied);
        }
        let Some(mut hello) = downstream.hello.take() else { return Ok(()) };
        if state.relayed.is_none() {
            restart::forget_lost_position(&mut hello, &self.journal);
        }
        downstream.told = Some((state.chain.clone(), state.epoch.id));
        let session = &mut downstream.session;
        let answer = session
            .sender
            .handle_message(Message::DownstreamHello(hello), &state, &self.renames, now)
            .map_err(LinkError::Refuse)?;
        session.frames.extend(answer.map(|answer| encode_message(&answer).into()));
        Ok(())
    }

    pub(super) fn session(&mut self, target: Target) -> Option<&mut Session> {
        session_of(&mut self.downstreams, &mut self.lead, target)
    }

    /// Reads what `target` is to be sent next and turns it into frames. Returns whether there may
    /// be more to do at once, also if this gave no frame.
    pub(super) fn fill(&mut self, target: Target, now: Instant) -> Result<bool, LinkError> {
        // One turn for all downstreams is enough for what takes several.
        if self.has_backlog || !self.drain(now) {
            return Ok(false);
        }
        let Some(state) = self.state() else { return Ok(false) };
        let (head, clock) = (state.head, state.clock);
        let applied = state.relayed.map(|relayed| relayed.applied);
        let reached = state.relayed.and_then(|relayed| relayed.reached);
        if let Target::Link(link) = target {
            self.greet(link, state, now)?;
            let refused = |downstream: &Downstream| downstream.refusal.is_some();
            if self.downstreams.get(&link).is_none_or(refused) {
                return Ok(false);
            }
        }
        let session = session_of(&mut self.downstreams, &mut self.lead, target);
        let Some(Session { sender, cursor, stages, survey, frames }) = session else {
            return Ok(false);
        };
        if !sender.is_running() {
            return Ok(false);
        }
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
                frames.push_back(frame.into());
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
        more |= batch.survey(sender, survey, self.reader.root());
        if batch.has_jobs() {
            more = true;
            self.changed = Some(HashSet::new());
            self.drain(now);
        }
        let changed = self.changed.take().unwrap_or_default();
        let is_drained = self.is_drained();
        more &= is_drained;
        let session = session_of(&mut self.downstreams, &mut self.lead, target);
        let Some(Session { sender, stages, frames, .. }) = session else { return Ok(false) };
        batch.use_confirmed(sender, stages, &mut self.feed, is_drained, &changed, &self.renames);
        // What is not taken up yet is not known before any later moment.
        let clock = if is_drained { self.feed.clock() } else { clock };
        while let Some(item) = sender.poll_through(clock) {
            batch.push(&item);
        }
        for frame in batch.into_frames() {
            let frame = frame.finish();
            sender.handle_sent(frame.len(), true, now);
            frames.push_back(frame.into());
        }
        Ok(more)
    }

    /// Fills until there is a frame, within bounds.
    pub(super) fn fill_some(&mut self, target: Target, now: Instant) -> Result<(), LinkError> {
        let mut fills = 0;
        while self.fill(target, now)?
            && self.session(target).is_some_and(|session| session.frames.is_empty())
        {
            fills += 1;
            if fills == FILLS_MAX {
                self.has_news = true; // The loop comes back at once, after the others.
                break;
            }
        }
        Ok(())
    }
}

impl Downstream {
    /// Returns a downstream that was just accepted.
    pub(super) fn new(now: Instant) -> Downstream {
        Downstream {
            session: Session::new(Sender::new(now)),
            told: None,
            ride: None,
            hello: None,
            waits_since: None,
            heartbeat_at: now + Duration::from_millis(HEARTBEAT_MS),
            refusal: None,
        }
    }

    /// Has a downstream that was answered greet anew.
    pub(in crate::role) fn start_over(&mut self, reason: &str) {
        if self.session.sender.is_running() {
            self.refusal.get_or_insert(Refusal::StartOver(reason.to_string()));
        }
    }

    /// Queues a heartbeat if nothing was sent for a while, and notices a silent peer.
    pub(super) fn keep_alive(&mut self, head: Sequence, clock: Timestamp, now: Instant) {
        let heartbeat = if self.hello.is_some() {
            let due = now >= self.heartbeat_at;
            Ok(due.then_some(Message::Heartbeat { head, clock }))
        } else {
            self.session.sender.poll_heartbeat(head, clock, now)
        };
        match heartbeat {
            Ok(None) => {}
            Ok(Some(heartbeat)) => {
                self.heartbeat_at = now + Duration::from_millis(HEARTBEAT_MS);
                let frame = encode_message(&heartbeat);
                self.session.sender.handle_sent(frame.len(), false, now);
                // One that a slow peer has not taken yet says the same.
                if self.session.frames.is_empty() {
                    self.session.frames.push_back(frame.into());
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

fn session_of<'a>(
    downstreams: &'a mut BTreeMap<LinkId, Downstream>,
    lead: &'a mut Option<Lead>,
    target: Target,
) -> Option<&'a mut Session> {
    match target {
        Target::Link(link) => downstreams.get_mut(&link).map(|downstream| &mut downstream.session),
        Target::Lead => lead.as_mut().map(|lead| &mut lead.session),
    }
}
