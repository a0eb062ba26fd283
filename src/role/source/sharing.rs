//! Frames that are made once for many downstreams: each costs a place in a short log.
//!
//! See [`crate::session`] for who may share. The log is bounded: a downstream that is too slow for
//! it goes on alone, from where it is, and joins again when it is level.

use std::collections::VecDeque;
use std::time::Instant;

use super::super::{LinkError, LinkId, SourceFeed};
use super::Source;
use super::session::{Downstream, Session, Target};
use crate::session::Sender;
use crate::session::sender::Progress;
use crate::wire::EncodedFrame;

/// Most bytes of frames that are kept for the slower ones.
const LOG_BYTES_MAX: usize = 8 << 20;

/// What is read and encoded for all that follow it.
pub(super) struct Lead {
    pub session: Session,
    log: VecDeque<Shared>,
    /// The number of the log's first frame.
    first: u64,
    /// Bytes of the frames in the log.
    bytes: usize,
}

/// A frame of the log.
pub(super) struct Shared {
    pub frame: EncodedFrame,
    pub progress: Progress,
}

/// A downstream's place in the log.
#[derive(Debug)]
pub(super) struct Ride {
    /// The number of its next frame.
    pub next: u64,
    /// How far the last one brought it.
    pub progress: Progress,
    /// What its connection had carried when it began, and the lead's log.
    base: (u64, u64),
}

impl Lead {
    /// Returns a lead that begins where `sender` is.
    pub fn new(sender: &Sender, now: Instant) -> Lead {
        let session = Session::new(sender.lead(now));
        Lead { session, log: VecDeque::new(), first: 0, bytes: 0 }
    }

    /// Returns the place of a downstream that joins at the end.
    pub fn join(&self, sender: &Sender) -> Ride {
        let (sent, _) = sender.window_bytes();
        let (logged, _) = self.session.sender.window_bytes();
        let progress = self.session.sender.progress();
        Ride { next: self.first + self.log.len() as u64, progress, base: (sent, logged) }
    }

    /// Returns a frame of the log.
    pub fn get(&self, number: u64) -> Option<&Shared> {
        self.log.get(number.checked_sub(self.first)? as usize)
    }

    /// Takes what the session has made into the log. Returns whether there was anything.
    pub fn take_frames(&mut self, before: &Progress) -> bool {
        let last = self.session.sender.progress();
        let frames = std::mem::take(&mut self.session.frames);
        let count = frames.len();
        for (index, frame) in frames.into_iter().enumerate() {
            self.bytes += frame.capacity();
            let is_last = index + 1 == count;
            let progress = if is_last { last.clone() } else { before.before(&last) };
            self.log.push_back(Shared { frame, progress });
        }
        count > 0
    }

    /// Forgets frames that nobody needs, `oldest` being the least number that somebody does, and
    /// the oldest ones if there are too many. Returns the number of the first one left.
    pub fn trim(&mut self, oldest: u64) -> u64 {
        while !self.log.is_empty() && (self.first < oldest || self.bytes > LOG_BYTES_MAX) {
            let shared = self.log.pop_front();
            self.bytes -= shared.map_or(0, |shared| shared.frame.capacity());
            self.first += 1;
        }
        self.first
    }

    /// Tells the lead how far a downstream's acknowledgement is in the log.
    pub fn handle_ack(&mut self, ride: &Ride, handled_bytes: u64, now: Instant) {
        let (sent, logged) = ride.base;
        if let Some(handled) = handled_bytes.checked_sub(sent) {
            self.session.sender.handle_shared_ack(logged + handled, now);
        }
    }
}

impl<F: SourceFeed> Source<F> {
    /// Lets a downstream that is level share what is read for all that are, if there are others.
    pub(super) fn join(&mut self, link: LinkId, now: Instant) {
        if self.downstreams.len() < 2 {
            return;
        }
        let Some(downstream) = self.downstreams.get_mut(&link) else { return };
        let sender = &downstream.session.sender;
        let has_frames = !downstream.session.frames.is_empty();
        if downstream.ride.is_some() || has_frames || !sender.is_level() {
            return;
        }
        let lead = self.lead.get_or_insert_with(|| Lead::new(sender, now));
        if sender.is_level_with(&lead.session.sender) {
            downstream.ride = Some(lead.join(sender));
        }
    }

    /// Has a downstream go on alone, from where it is.
    pub(super) fn part(&mut self, link: LinkId, now: Instant) {
        let Some(downstream) = self.downstreams.get_mut(&link) else { return };
        let Some(ride) = downstream.ride.take() else { return };
        downstream.session.go_on_alone(ride.progress.stages(), now);
        self.trim(now);
    }

    /// Returns the next of the shared frames for a downstream that takes them.
    pub(super) fn poll_shared(
        &mut self,
        link: LinkId,
        now: Instant,
    ) -> Result<Option<EncodedFrame>, LinkError> {
        for is_last in [false, true] {
            let Some(downstream) = self.downstreams.get_mut(&link) else { return Ok(None) };
            let sender = &mut downstream.session.sender;
            let (Some(ride), Some(lead)) = (&mut downstream.ride, &self.lead) else {
                return Ok(None);
            };
            if sender.is_window_full() || downstream.refusal.is_some() {
                return Ok(None);
            }
            if let Some(shared) = lead.get(ride.next) {
                sender.handle_shared(shared.frame.len(), &shared.progress, now);
                (ride.next, ride.progress) = (ride.next + 1, shared.progress.clone());
                return Ok(Some(shared.frame.clone()));
            }
            if !is_last {
                self.read_shared(now)?;
            }
        }
        Ok(None)
    }

    /// Reads on for all that share.
    fn read_shared(&mut self, now: Instant) -> Result<(), LinkError> {
        let Some(lead) = &self.lead else { return Ok(()) };
        let before = lead.session.sender.progress();
        let filled = self.fill_some(Target::Lead, now);
        if filled.is_err() {
            // What it met, each of them meets by itself.
            let riders: Vec<LinkId> = self.downstreams.keys().copied().collect();
            riders.into_iter().for_each(|link| self.part(link, now));
            self.lead = None;
            return Ok(());
        }
        if let Some(lead) = &mut self.lead
            && lead.take_frames(&before)
        {
            self.trim(now);
        }
        Ok(())
    }

    /// Forgets shared frames that all have, and has those go on alone that are too slow for them.
    pub(super) fn trim(&mut self, now: Instant) {
        let Some(lead) = &mut self.lead else { return };
        let rides = self.downstreams.values().filter_map(|downstream| downstream.ride.as_ref());
        let Some(oldest) = rides.map(|ride| ride.next).min() else {
            self.lead = None;
            return;
        };
        let first = lead.trim(oldest);
        if first > oldest {
            let is_slow = |ride: &Ride| ride.next < first;
            let slow = |downstream: &Downstream| downstream.ride.as_ref().is_some_and(is_slow);
            let slow = self.downstreams.iter().filter(|(_, downstream)| slow(downstream));
            let slow: Vec<LinkId> = slow.map(|(link, _)| *link).collect();
            slow.into_iter().for_each(|link| self.part(link, now));
        }
    }
}
