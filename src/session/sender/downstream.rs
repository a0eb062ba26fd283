//! What the downstream says: its hello, its acknowledgements, its needs.

use std::time::Instant;

use super::super::walk::{Mode, Walk};
use super::{Sender, SourceState};
use crate::model::limits::*;
use crate::model::{RenameIndex, Timestamp, TreePath};
use crate::wire::message::VERSIONS;
use crate::wire::{DownstreamHello, Message, Plan, Refusal, UpstreamHello};

impl SourceState {
    /// Returns whether a downstream must be answered later: it has applied what this relay has not
    /// yet, or cannot know whether it has. To compare it with an older tree would set it back.
    pub fn must_wait_for(&self, hello: &DownstreamHello) -> bool {
        let Some(relayed) = &self.relayed else { return false };
        if hello.tree.is_some_and(|tree| tree != self.tree) || self.chain.contains(&hello.node) {
            return false; // It is refused.
        }
        // One that has nothing can be told what there is.
        let Some(applied) = relayed.applied else { return !hello.empty };
        let Some(marks) = hello.watermarks else { return false };
        if self.epoch.continues(&marks) {
            marks.moved > relayed.moved || marks.applied > applied
        } else {
            marks.epoch.counter > self.epoch.id.counter
        }
    }
}

impl Sender {
    /// Handles a message of the downstream and returns the answer, if there is one. `source`
    /// must be as of a drained watch.
    ///
    /// # Errors
    ///
    /// A [`Refusal`] to be sent as the last message.
    pub fn handle_message(
        &mut self,
        message: Message,
        source: &SourceState,
        renames: &RenameIndex,
        now: Instant,
    ) -> Result<Option<Message>, Refusal> {
        self.last_heard = now;
        match message {
            Message::DownstreamHello(hello) if !self.hello_done => {
                let answer = self.handle_hello(&hello, source, renames)?;
                Ok(Some(Message::UpstreamHello(answer)))
            }
            _ if !self.hello_done => Err(Refusal::Protocol("the first message is no hello".into())),
            Message::Ack { moved, applied, durable, handled_bytes } => {
                let was_sent = self.window.acknowledge(handled_bytes, now);
                if !was_sent || moved > self.moved || durable > applied {
                    return Err(Refusal::Protocol("acknowledged what was never sent".into()));
                }
                if let Some((sequence, clock)) = self.trusts
                    && applied >= sequence
                {
                    self.trusted_until.1 = clock;
                    self.trusts = None;
                }
                Ok(None)
            }
            Message::Need { id, path, content, moved } => {
                // Where it is now cannot be told; after another hello it can.
                if moved < self.moved.min(renames.origin_floor()) {
                    let reason = "it lags behind more renames than are kept for it".to_string();
                    return Err(Refusal::StartOver(reason));
                }
                let mut trusted_until = self.trusted_until.1;
                if path.is_root() {
                    // It may stand for more needs than the downstream tells one by one, some
                    // of which are for content that only looks equal.
                    trusted_until = self.trusted_until.0;
                    let answers = &mut self.answers;
                    self.walks.retain(|(_, walk)| {
                        answers.extend(walk.need.filter(|id| answers.back() != Some(id)));
                        walk.need.is_none()
                    });
                    let walks = &self.walks;
                    let is_kept = |number| walks.iter().any(|(walk, _)| *walk == number);
                    self.comparison.retain(is_kept);
                }
                if self.walks.len() > NEEDS_MAX * 2 || self.answers.len() > NEEDS_MAX * 16 {
                    return Err(Refusal::Protocol("too many needs at once".into()));
                }
                let mode = if content { Mode::Full } else { Mode::Compare { trusted_until } };
                let mut walk = Walk::new(mode, Some(id), path);
                // The path is as of what the downstream had applied; renames that are on their
                // way to it have moved the entry since, or some of what is below it.
                let sent = renames.after(moved).take_while(|(sequence, _)| *sequence <= self.moved);
                sent.for_each(|(_, change)| walk.follow(change));
                self.start_walk(walk);
                Ok(None)
            }
            Message::StageAbort { stage } => {
                self.handle_given_up(stage);
                Ok(None)
            }
            Message::Compared { range, differs } => {
                self.handle_compared(range, differs)?;
                Ok(None)
            }
            Message::DownstreamHello(_) => Err(Refusal::Protocol("a second hello".into())),
            Message::UpstreamHello(_) | Message::Heartbeat { .. } => {
                Err(Refusal::Protocol("a message of the wrong direction".into()))
            }
            Message::Bye(_) => Ok(None),
        }
    }

    fn handle_hello(
        &mut self,
        hello: &DownstreamHello,
        source: &SourceState,
        renames: &RenameIndex,
    ) -> Result<UpstreamHello, Refusal> {
        let version = VERSIONS.agree(hello.versions).ok_or(Refusal::Version(VERSIONS))?;
        if hello.tree.is_some_and(|tree| tree != source.tree) {
            return Err(Refusal::WrongTree(source.tree));
        }
        if source.chain.contains(&hello.node) {
            return Err(Refusal::Cycle(hello.node));
        }
        (self.hello_done, self.owes_unfinished) = (true, true);
        self.comparison.lacks = hello.lacks;
        // Another node's clock says nothing of the changes here.
        let is_here =
            hello.trusted_node.is_some() && hello.trusted_node.as_ref() == source.chain.last();
        let trusted_until = if is_here { hello.trusted_until } else { Timestamp::default() };
        self.trusted_until = (trusted_until, trusted_until);
        self.is_relay = source.relayed.is_some();
        let floor = source.floor.max(renames.floor());
        let plan = match (hello.watermarks, source.after(hello)) {
            (Some(marks), Some(after))
                if source.epoch.continues(&marks)
                    && floor <= after
                    && marks.applied <= marks.moved
                    && marks.moved <= source.moved()
                    && marks.moved >= renames.origin_floor() =>
            {
                self.moved = marks.moved;
                self.read_through = after;
                self.through_sent = Some(marks.applied);
                Plan::Resume
            }
            _ => {
                let moved = source.moved();
                self.moved = moved;
                self.read_through = source.head;
                // What the tree was when it was last marked is in it when all of it was walked.
                self.marks.extend(source.relayed.and_then(|relayed| relayed.mark));
                if hello.empty {
                    self.start_walk(Walk::new(Mode::Full, None, TreePath::root()));
                    Plan::Full { moved }
                } else {
                    let mode = Mode::Compare { trusted_until };
                    self.start_walk(Walk::new(mode, None, TreePath::root()));
                    Plan::Compare { moved }
                }
            }
        };
        let (head, clock) = source.origin();
        Ok(UpstreamHello {
            version,
            tree: source.tree,
            chain: source.chain.clone(),
            epoch: source.epoch,
            plan,
            head,
            clock,
        })
    }
}
