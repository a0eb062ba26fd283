//! A sink: follows one upstream and makes a directory equal to its tree.

mod checkpoints;
mod comparing;
mod feed;
mod healing;
mod link_names;
mod open;

use std::collections::{BTreeMap, VecDeque};
use std::os::fd::BorrowedFd;
use std::path::PathBuf;
use std::time::{Duration, Instant};

pub use feed::JournalEnd;
use feed::Outlet;
pub use open::OpenError;

use super::checkpointer::Checkpointer;
use super::{LinkError, LinkId, Peer, Received, Role, RoleError};
use crate::model::limits::{BACKOFF_MS_MAX, BACKOFF_MS_MIN};
use crate::session::{Receiver, ReceiverState};
use crate::tree::Survey;
use crate::tree::replica::{Place, Replica, Room};
use crate::wire::{EncodedFrame, Frame, FrameKind, Item, Plan, RangeId, Refusal, encode_message};

/// Longest time for which directories' times and marks wait while the stream never pauses.
const FLUSH_INTERVAL: Duration = Duration::from_millis(500);

/// Most entries of the trash that are removed in one turn.
const TRASH_ENTRIES_MAX: usize = 256;

/// Keeps one directory equal to the upstream's tree.
pub struct Sink {
    path: PathBuf,
    replica: Replica,
    state: ReceiverState,
    link: Option<(LinkId, Receiver)>,
    /// Encoded messages to the upstream.
    frames: VecDeque<Vec<u8>>,
    connect_at: Instant,
    backoff: Duration,
    /// The last reason for having no upstream, so that it is said once.
    unreachable: Option<String>,
    flush_at: Option<Instant>,
    /// What is compared with the upstream's digests, for which range.
    survey: Option<(RangeId, Survey)>,
    checkpointer: Checkpointer,
    /// Why the last checkpoint failed, as it was said.
    checkpoint_failure: Option<String>,
    /// Errors that were said, by what failed: each once until a flush succeeds without.
    said: BTreeMap<(&'static str, i32), u64>,
    /// What room there was when it was too little, and when to look again.
    full: Option<(Room, Instant)>,
    /// When to look again whether ROOT is in place, and whether it was not.
    look_at: Instant,
    is_away: bool,
    has_trash: bool,
    started: Instant,
    adopts: bool,
    /// Whether the machine was not booted since the last checkpoint.
    is_same_boot: bool,
    /// What it does as the feed of a relay.
    outlet: Option<Outlet>,
    /// How far it is with the whole tree, while that is received.
    received: Option<Received>,
}

impl Sink {
    /// Returns what the sink knows of its position.
    pub fn state(&self) -> &ReceiverState {
        &self.state
    }

    fn apply(&mut self, item: &Item, raw: &[u8], now: Instant) -> Result<(), LinkError> {
        let Some((_, receiver)) = &mut self.link else { return Ok(()) };
        if !receiver.handle_item(&mut self.state, item).map_err(LinkError::Refuse)? {
            self.relay(item);
            return Ok(());
        }
        tracing::trace!("{item:?}");
        if let Some(received) = &mut self.received {
            received.entries += u64::from(matches!(item, Item::State { .. }));
            received.bytes += raw.len() as u64;
        }
        self.relay_untold(item);
        let Some((_, receiver)) = &mut self.link else { return Ok(()) };
        match self.replica.apply(item, raw) {
            Ok(applied) => {
                receiver.handle_applied(&mut self.state, item, applied.needs);
                self.relay(item);
            }
            Err(error) if error.is_protocol() => {
                return Err(LinkError::Refuse(Refusal::Protocol(error.to_string())));
            }
            Err(error) => {
                receiver.handle_problem(&mut self.state, item, &error.path, now);
                self.note(&error, now);
                // A rename counts as done all the same, and what failed of it is asked for.
                if matches!(item, Item::Rename { .. } | Item::Exchange { .. }) {
                    self.relay(item);
                }
            }
        }
        self.take_problems(now);
        Ok(())
    }

    fn flush(&mut self, now: Instant) {
        self.flush_at = None;
        self.flush_replica(now);
        if let Some((_, receiver)) = &mut self.link {
            receiver.handle_flushed(&mut self.state);
        }
        self.relay_position();
        if !self.said.is_empty() && self.state.needs().next().is_none() {
            self.said.clear();
            tracing::info!("{}: all problems are cured", self.path.display());
        }
        self.has_trash = true;
    }

    /// Puts everything in place; what cannot be is needed before any mark counts.
    fn flush_replica(&mut self, now: Instant) {
        self.replica.flush();
        for (path, content) in self.replica.take_needs() {
            self.state.need(path, content);
        }
        self.take_problems(now);
    }

    /// What the upstream refused ends the process if trying again cannot help.
    fn refused(&mut self, refusal: Refusal) -> LinkError {
        match refusal {
            Refusal::WrongTree(_) | Refusal::Version(_) | Refusal::Cycle(_) => self.fatal(refusal),
            Refusal::Protocol(_) | Refusal::ShuttingDown | Refusal::StartOver(_) => {
                LinkError::Refused(refusal)
            }
        }
    }

    fn fatal(&mut self, refusal: Refusal) -> LinkError {
        if self.adopts && matches!(refusal, Refusal::WrongTree(_)) {
            self.state.forget();
            return LinkError::Refuse(Refusal::StartOver("its tree is adopted".into()));
        }
        let advice = match &refusal {
            Refusal::WrongTree(_) => {
                "; check the address, or use --adopt to make this a replica of that tree"
            }
            Refusal::Version(_) => "; install the same version of mirror on both hosts",
            Refusal::Cycle(_) => "; choose another upstream",
            Refusal::Protocol(_) | Refusal::ShuttingDown | Refusal::StartOver(_) => {
                return LinkError::Refuse(refusal);
            }
        };
        RoleError(format!("{}: {refusal}{advice}", self.path.display())).into()
    }
}

impl Role for Sink {
    fn descriptors(&self) -> Vec<BorrowedFd<'_>> {
        vec![self.checkpointer.descriptor()]
    }

    fn handle_readable(&mut self, _now: Instant) -> Result<(), RoleError> {
        self.finish_checkpoint();
        Ok(())
    }

    fn wants_upstream(&self, now: Instant) -> bool {
        self.link.is_none() && now >= self.connect_at && !self.is_away
    }

    fn handle_connected(&mut self, link: LinkId, _peer: Peer, now: Instant) {
        self.frames.clear();
        self.survey = None;
        self.replica.begin_connection();
        if self.adopts && self.state.watermarks.is_none() {
            self.state.forget(); // Whatever it was a replica of, it becomes one of this.
        }
        // What cannot be tried, on a disk that is full or read-only, is not known to be lacked.
        self.state.lacks = self.replica.lacks().unwrap_or(self.state.lacks);
        let empty = self.state.watermarks.is_none() && self.replica.is_empty().unwrap_or(false);
        let (receiver, hello) = Receiver::new(&mut self.state, empty, now);
        self.link = Some((link, receiver));
        self.frames.push_back(encode_message(&hello));
    }

    fn handle_received(&mut self, link: LinkId, now: Instant) {
        if let Some((current, receiver)) = &mut self.link
            && *current == link
        {
            receiver.handle_received(now);
        }
    }

    fn handle_frame(
        &mut self,
        link: LinkId,
        frame: Frame<'_>,
        bytes: usize,
        now: Instant,
    ) -> Result<(), LinkError> {
        let refuse =
            |error: &dyn std::fmt::Display| LinkError::Refuse(Refusal::Protocol(error.to_string()));
        if self.link.as_ref().is_none_or(|(current, _)| *current != link) {
            return Ok(());
        }
        self.look_at_place(now)?;
        let Some((_, receiver)) = &mut self.link else { return Ok(()) };
        if frame.kind == FrameKind::Items {
            for item in frame.items() {
                let (item, raw) = item.map_err(|error| refuse(&error))?;
                self.apply(&item, raw, now)?;
            }
            if let Some((_, receiver)) = &mut self.link {
                receiver.handle_frame(bytes, now);
            }
            let flush_at = *self.flush_at.get_or_insert(now + FLUSH_INTERVAL);
            if now >= flush_at {
                self.flush(now);
                self.compare(now); // The stream may never pause.
            }
            return Ok(());
        }
        let message = frame.message().map_err(|error| refuse(&error))?;
        if let crate::wire::Message::Bye(refusal) = message {
            return Err(self.refused(refusal));
        }
        let plan = receiver.handle_message(&mut self.state, message, now);
        let plan = plan.map_err(|refusal| self.fatal(refusal))?;
        let Some(plan) = plan else { return Ok(()) };
        if plan != Plan::Resume {
            self.begin_reconcile().map_err(|reason| {
                // Once the disk has room again, another hello begins the same.
                LinkError::Refuse(Refusal::StartOver(reason))
            })?;
        }
        self.relay_hello(plan);
        self.backoff = Duration::from_millis(BACKOFF_MS_MIN);
        if self.unreachable.take().is_some() {
            tracing::info!("{}: connected to the upstream", self.path.display());
        }
        self.adopts = false;
        self.received = (plan != Plan::Resume).then(Received::default);
        let how = match plan {
            Plan::Resume => "resuming by position",
            Plan::Compare { .. } => "comparing the whole tree",
            Plan::Full { .. } => "receiving the whole tree",
        };
        tracing::info!("{}: {how}", self.path.display());
        Ok(())
    }

    fn handle_drained(&mut self, _link: LinkId, now: Instant) -> Result<(), LinkError> {
        // A directory is shown when it has all its files, if that does not take long.
        let waits = self.flush_at.is_none_or(|at| now < at && self.replica.is_building());
        if !waits {
            self.flush(now);
        }
        self.compare(now);
        // What came with a problem is asked for as long as that takes, and not waited for here.
        let is_whole = self.state.needs().next().is_none() || !self.said.is_empty();
        if self.state.watermarks.is_some() && is_whole && self.received.take().is_some() {
            tracing::info!("{}: it is as its upstream's", self.path.display());
        }
        Ok(())
    }

    fn check(&mut self, link: LinkId, now: Instant) -> Result<(), LinkError> {
        match &self.link {
            Some((current, receiver)) if *current == link && receiver.is_silent(now) => {
                Err(LinkError::Refuse(Refusal::Protocol("silent for too long".into())))
            }
            _ => Ok(()),
        }
    }

    fn poll_transmit(
        &mut self,
        link: LinkId,
        now: Instant,
    ) -> Result<Option<EncodedFrame>, LinkError> {
        let Some((current, receiver)) = &mut self.link else { return Ok(None) };
        if *current != link {
            return Ok(None);
        }
        if let Some(frame) = self.frames.pop_front() {
            return Ok(Some(frame.into()));
        }
        let message = receiver.poll_message(&mut self.state, now);
        Ok(message.map(|message| encode_message(&message).into()))
    }

    fn handle_closed(&mut self, link: Option<LinkId>, reason: &str, now: Instant) {
        if let (Some(closed), Some((current, _))) = (link, &self.link)
            && closed != *current
        {
            return;
        }
        if link.is_some() {
            // What was received whole is kept; its marks are not lost.
            self.flush(now);
            self.replica.drop_stages();
        }
        self.link = None;
        self.received = None;
        self.survey = None;
        self.flush_at = None;
        self.frames.clear();
        if self.unreachable.as_deref() != Some(reason) {
            tracing::warn!(
                "{}: no upstream ({reason}); trying again until there is",
                self.path.display()
            );
            self.unreachable = Some(reason.to_string());
        }
        self.connect_at = now + jittered(self.backoff, now);
        self.backoff = (self.backoff * 2).min(Duration::from_millis(BACKOFF_MS_MAX));
    }

    fn poll_timeout(&self) -> Option<Instant> {
        let mut next = match &self.link {
            Some((_, receiver)) => receiver.poll_timeout(&self.state),
            None if self.is_away => self.look_at,
            None => self.connect_at,
        };
        if let Some(flush_at) = self.flush_at {
            next = next.min(flush_at);
        }
        if let Some(marks) = self.state.watermarks
            && let Some(due) = self.checkpointer.due_at(marks, self.state.revision())
        {
            next = next.min(due);
        }
        if let Some((_, look_at)) = self.full {
            next = next.min(look_at);
        }
        if self.has_trash || self.may_compare() {
            next = next.min(self.started); // There is work now.
        }
        Some(next)
    }

    fn handle_timeout(&mut self, now: Instant) -> Result<(), RoleError> {
        if self.flush_at.is_some_and(|at| now >= at) {
            self.flush(now);
        }
        if self.is_away
            && let Err(LinkError::Role(error)) = self.look_at_place(now)
        {
            return Err(error);
        }
        self.compare(now);
        self.look_for_room(now);
        if self.has_trash {
            self.has_trash = self.replica.empty_trash(TRASH_ENTRIES_MAX);
        }
        self.finish_checkpoint();
        self.start_checkpoint(now);
        Ok(())
    }

    fn received(&self) -> Option<Received> {
        self.received
    }

    fn shut_down(&mut self) -> Result<(), RoleError> {
        self.checkpointer.cancel();
        self.flush_replica(Instant::now());
        if let Some((_, receiver)) = &mut self.link {
            receiver.handle_flushed(&mut self.state);
        }
        let Some(checkpoint) = self.checkpoint() else { return Ok(()) };
        let saved = self
            .ensure_marker(&checkpoint)
            .and_then(|()| Ok(rustix::fs::syncfs(self.replica.root())?))
            .map_err(|error| error.to_string())
            .and_then(|()| {
                checkpoint.save(self.replica.control()).map_err(|error| error.to_string())
            });
        match saved {
            Ok(()) => {}
            Err(error) if self.replica.whereabouts() == Place::Stripped => {
                return Err(RoleError(format!("{}: at the end: {error}", self.path.display())));
            }
            // What is on disk is true, only older.
            Err(error) => tracing::warn!(
                "{}: no checkpoint at the end: {error}; the next start resumes from the last one",
                self.path.display()
            ),
        }
        Ok(())
    }
}

/// Spreads the reconnects of many sinks over half of the pause.
fn jittered(pause: Duration, now: Instant) -> Duration {
    use std::hash::{BuildHasher, RandomState};
    let random = RandomState::new().hash_one(now) % 1000;
    pause / 2 + pause / 2 * random as u32 / 1000
}
