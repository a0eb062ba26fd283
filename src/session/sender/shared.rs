//! Senders that say the same: what one of them has to know to go on alone.
//!
//! Downstreams that have all that the journal holds are told the same from there on, so it is read
//! and encoded once, by a sender that serves no connection of its own, the *lead*. Each of them
//! needs to know of the lead's frames only how far they brought it: that is enough to go on alone
//! at any of them, as after a reconnect.

use std::time::Instant;

use super::Sender;
use crate::model::{Sequence, Timestamp};
use crate::wire::StageId;

/// Stages of a lead are numbered from here on, so that they are never those of a sender that
/// follows it.
const LEAD_STAGES: u64 = 1 << 48;

/// How far a sender has come with a frame.
#[derive(Debug, Clone)]
pub struct Progress {
    /// Every rename through this is sent, in the numbers of sessions.
    moved: Sequence,
    /// All that the journal has through here is sent.
    done: Sequence,
    /// The last mark that was sent, and this node's clock in it.
    mark: Option<(Sequence, Timestamp)>,
    /// The last record that a state may have told of that was sent.
    reached: Sequence,
    /// Big files of which only a part was sent.
    stages: Vec<StageId>,
}

impl Sender {
    /// Returns whether nothing is to be sent but what the journal will bring.
    pub fn is_level(&self) -> bool {
        self.hello_done
            && !self.owes_unfinished
            && self.is_idle()
            && self.answers.is_empty()
            && self.marks.is_empty()
            && self.reached <= self.read_through
            && self.through_sent.is_some()
    }

    /// Returns whether `self` and `lead` are at the same place, with nothing else to do.
    pub fn is_level_with(&self, lead: &Sender) -> bool {
        let place = |sender: &Sender| (sender.moved, sender.read_through, sender.through_sent);
        self.is_level() && lead.is_level() && place(self) == place(lead)
    }

    /// Returns a lead that begins where this sender, which must be level, is.
    pub fn lead(&self, now: Instant) -> Sender {
        assert!(self.is_level());
        Sender {
            hello_done: true,
            moved: self.moved,
            read_through: self.read_through,
            through_sent: self.through_sent,
            reached: self.reached,
            is_relay: self.is_relay,
            stage_next: LEAD_STAGES,
            ..Sender::new(now)
        }
    }

    /// Returns how far the sender has come.
    pub fn progress(&self) -> Progress {
        Progress {
            moved: self.moved,
            done: self.through(),
            mark: self.mark_sent,
            reached: self.reached,
            stages: self.transfers.iter().map(|transfer| transfer.stage).collect(),
        }
    }

    /// Says that a frame of the lead, `bytes` long, was handed to the connection, and how far it
    /// brought the downstream.
    pub fn handle_shared(&mut self, bytes: usize, progress: &Progress, now: Instant) {
        self.handle_sent(bytes, true, now);
        (self.moved, self.read_through) = (progress.moved, progress.done);
        self.reached = self.reached.max(progress.reached);
        if let Some((sequence, clock)) = progress.mark
            && self.through_sent.is_none_or(|sent| sent < sequence)
        {
            self.through_sent = Some(sequence);
            self.trusts.get_or_insert((sequence, clock));
        }
    }

    /// Tells a lead that its frames were handled through a byte by the first of those that follow.
    pub fn handle_shared_ack(&mut self, handled_bytes: u64, now: Instant) {
        self.window.acknowledge(handled_bytes, now);
    }

    /// Returns whether no more may be sent until the downstream acknowledges some of it.
    pub fn is_window_full(&self) -> bool {
        self.window.is_full()
    }

    /// Returns how many bytes of items were sent, and how many of them were acknowledged.
    pub fn window_bytes(&self) -> (u64, u64) {
        (self.window.sent_bytes(), self.window.handled_bytes())
    }
}

impl Progress {
    /// Returns a frame's progress if others of the same read follow: what it has of renames is
    /// sent, and big files may be begun, but nothing is done.
    pub fn before(&self, last: &Progress) -> Progress {
        let stages = self.stages.iter().chain(&last.stages).copied().collect();
        let (moved, reached) = (last.moved, last.reached);
        Progress { moved, reached, stages, ..self.clone() }
    }

    /// Returns the big files of which only a part was sent, which must be given up by a sender
    /// that goes on alone.
    pub fn stages(&self) -> &[StageId] {
        &self.stages
    }
}
