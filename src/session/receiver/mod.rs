//! The downstream's side of the connection to its upstream.
//!
//! [`ReceiverState`] outlives connections: watermarks and needs. [`Receiver`] is one
//! connection. The shell applies items to the tree and reports each with
//! [`Receiver::handle_applied`]; when the tree was flushed, [`Receiver::handle_flushed`] lets
//! the watermarks follow.

mod ranges;
mod state;

use std::time::{Duration, Instant};

use crate::model::limits::*;
use crate::model::{Change, Kind, Sequence, Timestamp, TreePath, Watermarks};
use crate::wire::message::VERSIONS;
use crate::wire::{Content, DownstreamHello, Item, Message, Plan, Refusal, StageId, UpstreamHello};
pub use ranges::Range;
use ranges::Ranges;
use state::Need;
pub use state::ReceiverState;

/// One connection to the upstream.
#[derive(Debug)]
pub struct Receiver {
    plan: Option<Plan>,
    epoch: Option<crate::model::EpochId>,
    moved: Sequence,
    /// The mark that counts once everything before it is flushed.
    through: Option<(Sequence, Timestamp)>,
    /// Stages that were given up here, which the upstream is still to be told.
    given_up: Vec<StageId>,
    ranges: Ranges,
    handled_bytes: u64,
    acked_bytes: u64,
    acked_marks: Option<(Sequence, Sequence, Sequence)>,
    last_ack: Instant,
    last_heard: Instant,
}

impl Receiver {
    /// Returns a receiver for a connection that was just made, and its hello.
    pub fn new(state: &mut ReceiverState, empty: bool, now: Instant) -> (Self, Message) {
        for need in &mut state.needs {
            need.asked = false;
        }
        let receiver = Receiver {
            plan: None,
            epoch: None,
            moved: state.watermarks.map_or(Sequence(0), |marks| marks.moved),
            through: None,
            given_up: Vec::new(),
            ranges: Ranges::default(),
            handled_bytes: 0,
            acked_bytes: 0,
            acked_marks: None,
            last_ack: now,
            last_heard: now,
        };
        let hello = DownstreamHello {
            versions: VERSIONS,
            node: state.node,
            tree: state.tree,
            watermarks: state.watermarks,
            trusted_until: if empty { Timestamp::default() } else { state.trusted_until },
            trusted_node: state.trusted_node,
            empty,
            lacks: state.lacks,
        };
        (receiver, Message::DownstreamHello(hello))
    }

    /// Handles a message of the upstream. Returns its hello's plan: before anything else is
    /// handled, a plan other than [`Plan::Resume`] must be noted durably, for from then on
    /// the tree is in an unknown state.
    ///
    /// # Errors
    ///
    /// A [`Refusal`] to be sent as the last message.
    pub fn handle_message(
        &mut self,
        state: &mut ReceiverState,
        message: Message,
        now: Instant,
    ) -> Result<Option<Plan>, Refusal> {
        self.handle_received(now);
        match message {
            Message::UpstreamHello(hello) if self.plan.is_none() => {
                self.handle_hello(state, hello).map(Some)
            }
            // A heartbeat may come before the hello: the source is scanning its tree.
            Message::Heartbeat { head, clock } => {
                state.origin = (head, clock);
                Ok(None)
            }
            Message::Bye(_) => Ok(None),
            _ if self.plan.is_none() => {
                Err(Refusal::Protocol("the first message is no hello".into()))
            }
            _ => Err(Refusal::Protocol("a message of the wrong direction".into())),
        }
    }

    fn handle_hello(
        &mut self,
        state: &mut ReceiverState,
        hello: UpstreamHello,
    ) -> Result<Plan, Refusal> {
        if hello.version < VERSIONS.oldest || hello.version > VERSIONS.newest {
            return Err(Refusal::Version(VERSIONS));
        }
        if state.tree.is_some_and(|tree| tree != hello.tree) {
            return Err(Refusal::WrongTree(hello.tree));
        }
        if hello.chain.contains(&state.node) {
            return Err(Refusal::Cycle(state.node));
        }
        match hello.plan {
            Plan::Resume => {
                let marks = state.watermarks.as_mut().filter(|marks| hello.epoch.continues(marks));
                let Some(marks) = marks else {
                    return Err(Refusal::Protocol("resumed in another epoch".into()));
                };
                marks.epoch = hello.epoch.id;
            }
            Plan::Compare { moved } | Plan::Full { moved } => {
                state.watermarks = None;
                state.durable = Sequence(0);
                // All is compared; by digest where something was missing, for `trusted_until`
                // is of before that.
                state.needs.clear();
                state.trusted_next = None;
                state.revision += 1;
                self.moved = moved;
            }
        }
        state.tree = Some(hello.tree);
        self.epoch = Some(hello.epoch.id);
        (state.chain, state.epoch) = (hello.chain, Some(hello.epoch));
        state.origin = (hello.head, hello.clock);
        self.plan = Some(hello.plan);
        Ok(hello.plan)
    }

    /// Returns whether the two sides have greeted each other.
    pub fn is_running(&self) -> bool {
        self.plan.is_some()
    }

    /// Returns through which rename the tree is, also while all else in it is unknown.
    pub fn moved(&self) -> Sequence {
        self.moved
    }

    /// Checks an item before it is applied. Returns `false` for what is not for the tree and is
    /// handled here already.
    ///
    /// # Errors
    ///
    /// A [`Refusal`] if no honest upstream sends this now.
    pub fn handle_item(&mut self, state: &mut ReceiverState, item: &Item) -> Result<bool, Refusal> {
        if self.plan.is_none() {
            return Err(Refusal::Protocol("items before the hello".into()));
        }
        match item {
            Item::Rename { sequence, .. } | Item::Exchange { sequence, .. } => {
                // I4: applied twice it would move what was created under the old name since.
                if *sequence <= self.moved {
                    return Err(Refusal::Protocol("a rename came twice".into()));
                }
                Ok(true)
            }
            Item::Through { sequence, clock, reached } => {
                if reached.is_some_and(|reached| reached < *sequence) {
                    return Err(Refusal::Protocol("a mark is ahead of what was sent".into()));
                }
                let before = state.watermarks.map(|marks| marks.applied);
                if before.is_some_and(|before| *sequence < before) {
                    return Err(Refusal::Protocol("a mark went back".into()));
                }
                self.through = Some((*sequence, *clock));
                Ok(false)
            }
            Item::Answered { id } => {
                state.needs.retain(|need| !(need.asked && need.id == *id));
                state.revision += 1;
                Ok(false)
            }
            Item::State { path, entry, content: Content::Keep, .. }
                if matches!(entry.kind, Kind::Regular { .. }) && state.awaits_content(path) =>
            {
                // What is there is not that file, and may have other names, which would get its
                // attributes as well. Both come by the need, or by this one if that has passed.
                state.need(path.clone(), true);
                Ok(false)
            }
            Item::Digest { .. } => self.ranges.handle_digest(item).map(|()| false),
            _ => Ok(true),
        }
    }

    /// Says that `item` was applied, and which subtrees are missing for it.
    pub fn handle_applied(
        &mut self,
        state: &mut ReceiverState,
        item: &Item,
        needs: Vec<(TreePath, bool)>,
    ) {
        let change = match item {
            Item::Rename { sequence, from, to } => {
                Some((*sequence, Change::Rename { from: from.clone(), to: to.clone() }))
            }
            Item::Exchange { sequence, a, b } => {
                Some((*sequence, Change::Exchange { a: a.clone(), b: b.clone() }))
            }
            _ => None,
        };
        if let Some((sequence, change)) = &change {
            self.moved = *sequence;
            if let Some(marks) = &mut state.watermarks {
                marks.moved = *sequence;
            }
            state.follow(change);
        }
        // During a reconcile the upstream compares both ends by itself. But what could not be moved
        // there is not at its new end, and what is there instead may only look equal: size and time
        // vouch for an entry where it was before. Who began with nothing has nothing like that.
        let is_compared = change.is_some() && self.is_reconciling(state);
        let is_full = matches!(self.plan, Some(Plan::Full { .. }));
        for (path, content) in needs {
            if !is_compared || content && !is_full {
                state.need(path, content);
            }
        }
    }

    /// Says that an item could not be applied, because of `path`; both are asked for again
    /// after a pause.
    pub fn handle_problem(
        &mut self,
        state: &mut ReceiverState,
        item: &Item,
        path: &TreePath,
        now: Instant,
    ) {
        self.handle_applied(state, item, Vec::new());
        if let Item::StageOpen { stage, .. } | Item::StageData { stage, .. } = item
            && self.given_up.len() < TRANSFERS_MAX
        {
            self.given_up.push(*stage);
        }
        let mut need = |path: &TreePath, content| {
            state.need_after_failure(path.clone(), content, now);
        };
        match item {
            Item::Rename { from: a, to: b, .. } | Item::Exchange { a, b, .. } => {
                need(a, true);
                need(b, true);
            }
            Item::Names { path, .. } => need(path, false),
            Item::State { path, entry, .. } => need(path, !entry.is_directory()),
            Item::Absent { path, .. }
            | Item::Unfinished { path }
            | Item::StageOpen { path, .. } => need(path, true),
            Item::StageData { .. }
            | Item::StageAbort { .. }
            | Item::Through { .. }
            | Item::Answered { .. }
            | Item::Digest { .. } => need(path, true),
        }
        // What is in the way may be another entry than the item's.
        need(path, false);
    }

    /// Says that everything applied so far is in place with its times: marks count from here.
    /// Files are trusted by size and time only when nothing is missing.
    pub fn handle_flushed(&mut self, state: &mut ReceiverState) {
        if let (Some((sequence, clock)), Some(epoch)) = (self.through.take(), self.epoch) {
            let moved = self.moved.max(sequence);
            self.moved = moved;
            state.watermarks = Some(Watermarks { epoch, moved, applied: sequence });
            state.trusted_next = Some((clock, state.chain.last().copied()));
        }
        if state.needs.is_empty()
            && let Some(next) = state.trusted_next.take()
        {
            (state.trusted_until, state.trusted_node) = next;
        }
    }

    /// Returns whether the tree is in an unknown state until the present comparison ends.
    pub fn is_reconciling(&self, state: &ReceiverState) -> bool {
        state.watermarks.is_none()
    }

    /// Says that bytes came in: over a slow link a frame takes longer than silence may last.
    pub fn handle_received(&mut self, now: Instant) {
        self.last_heard = now;
    }

    /// Says that a frame of items, `bytes` long with its header, was handled.
    pub fn handle_frame(&mut self, bytes: usize, now: Instant) {
        self.last_heard = now;
        self.handled_bytes += bytes as u64;
    }

    /// Returns the next message to the upstream.
    pub fn poll_message(&mut self, state: &mut ReceiverState, now: Instant) -> Option<Message> {
        self.plan?;
        if let Some(stage) = self.given_up.pop() {
            return Some(Message::StageAbort { stage });
        }
        if let Some(answer) = self.ranges.poll_answer() {
            return Some(answer);
        }
        let moved = self.moved;
        let due = |need: &&mut Need| !need.asked && need.not_before.is_none_or(|at| at <= now);
        if state.may_ask()
            && let Some(need) = state.needs.iter_mut().find(due)
        {
            need.asked = true;
            return Some(Message::Need {
                id: need.id,
                path: need.path.clone(),
                content: need.content,
                moved,
            });
        }
        if now < self.ack_due(state) {
            return None;
        }
        self.last_ack = now;
        self.acked_bytes = self.handled_bytes;
        self.acked_marks = Some(self.marks(state));
        let (moved, applied, durable) = self.marks(state);
        Some(Message::Ack { moved, applied, durable, handled_bytes: self.handled_bytes })
    }

    fn marks(&self, state: &ReceiverState) -> (Sequence, Sequence, Sequence) {
        let applied = state.watermarks.map_or(Sequence(0), |marks| marks.applied);
        (self.moved, applied, state.durable.min(applied))
    }

    fn ack_due(&self, state: &ReceiverState) -> Instant {
        if self.handled_bytes - self.acked_bytes >= ACK_BYTES_MAX {
            return self.last_ack;
        }
        let news = self.handled_bytes > self.acked_bytes
            || self.acked_marks.is_none_or(|acked| acked != self.marks(state));
        self.last_ack + Duration::from_millis(if news { ACK_MS_MAX } else { HEARTBEAT_MS })
    }

    /// Returns when something must be done although nothing happens.
    pub fn poll_timeout(&self, state: &ReceiverState) -> Instant {
        let silence = if self.plan.is_some() { SILENCE_MS_MAX } else { HANDSHAKE_MS_MAX };
        let silent = self.last_heard + Duration::from_millis(silence);
        if self.plan.is_none() {
            return silent;
        }
        let may_ask = state.may_ask();
        let waiting = state.needs.iter().filter(|need| !need.asked && may_ask);
        let retry = waiting.filter_map(|need| need.not_before);
        retry.fold(silent.min(self.ack_due(state)), Instant::min)
    }

    /// Returns whether the upstream has been silent for too long.
    pub fn is_silent(&self, now: Instant) -> bool {
        let silence = if self.plan.is_some() { SILENCE_MS_MAX } else { HANDSHAKE_MS_MAX };
        now >= self.last_heard + Duration::from_millis(silence)
    }
}

#[cfg(test)]
mod tests {
    use super::state::{NEEDS_ASKED_MAX, RETRY_MIN, is_comparison_of_all};
    use super::*;
    use crate::model::{Entry, Epoch, EpochId, Metadata, NodeId, TreeId};

    fn path(text: &str) -> TreePath {
        TreePath::new(text).unwrap()
    }

    fn time(seconds: i64) -> Timestamp {
        Timestamp { seconds, nanoseconds: 0 }
    }

    fn greet(state: &mut ReceiverState, plan: Plan, now: Instant) -> Receiver {
        greet_at(NodeId(1), state, plan, now)
    }

    fn greet_at(node: NodeId, state: &mut ReceiverState, plan: Plan, now: Instant) -> Receiver {
        let (mut receiver, _) = Receiver::new(state, false, now);
        let epoch = Epoch { id: EpochId { counter: 1, random: 1 }, parent: None };
        let hello = UpstreamHello {
            version: VERSIONS.newest,
            tree: TreeId(1),
            chain: vec![node],
            epoch,
            plan,
            head: Sequence(0),
            clock: time(0),
        };
        receiver.handle_message(state, Message::UpstreamHello(hello), now).unwrap();
        receiver
    }

    fn through(receiver: &mut Receiver, state: &mut ReceiverState, sequence: u64, clock: i64) {
        let (sequence, clock) = (Sequence(sequence), time(clock));
        let item = Item::Through { sequence, clock, reached: None };
        receiver.handle_item(state, &item).unwrap();
        receiver.handle_flushed(state);
    }

    #[test]
    fn attributes_are_not_given_to_a_file_that_waits_for_its_content() {
        let now = Instant::now();
        let mut state = ReceiverState::new(NodeId(2));
        let mut receiver = greet(&mut state, Plan::Compare { moved: Sequence(0) }, now);
        let (mode, uid, gid, mtime, xattrs) = (0o600, 0, 0, time(1), Vec::new());
        let metadata = Metadata { mode, uid, gid, mtime, xattrs };
        let keep = |name: &str, kind| Item::State {
            path: path(name),
            entry: Entry { kind, metadata: metadata.clone() },
            content: Content::Keep,
            links: Vec::new(),
            parent_mtime: None,
        };
        let file = keep("d/a", Kind::Regular { size: 5 });
        assert!(receiver.handle_item(&mut state, &file).unwrap());
        state.need(path("d"), true);
        assert_eq!(ask(&mut receiver, &mut state, now).len(), 1);
        // Its answer may be on the way already, with the attributes of before.
        assert!(!receiver.handle_item(&mut state, &file).unwrap());
        assert_eq!(ask(&mut receiver, &mut state, now)[0].1, path("d/a"));
        // Other kinds have no content that could be waited for.
        assert!(receiver.handle_item(&mut state, &keep("d/b", Kind::Directory)).unwrap());
        assert!(receiver.handle_item(&mut state, &keep("e", Kind::Regular { size: 5 })).unwrap());
    }

    /// Returns what is asked for at `now`.
    fn ask(
        receiver: &mut Receiver,
        state: &mut ReceiverState,
        now: Instant,
    ) -> Vec<(u64, TreePath)> {
        let mut asked = Vec::new();
        while let Some(message) = receiver.poll_message(state, now) {
            if let Message::Need { id, path, .. } = message {
                asked.push((id, path));
            }
        }
        asked
    }

    #[test]
    fn size_and_time_are_trusted_only_while_nothing_is_missing() {
        let now = Instant::now();
        let mut state = ReceiverState::new(NodeId(2));
        let mut receiver = greet(&mut state, Plan::Compare { moved: Sequence(0) }, now);
        through(&mut receiver, &mut state, 1, 10);
        assert_eq!(state.trusted_until, time(10));
        state.need(path("f"), true);
        through(&mut receiver, &mut state, 2, 20);
        assert_eq!(state.trusted_until, time(10));
        let (id, _) = ask(&mut receiver, &mut state, now).remove(0);
        receiver.handle_item(&mut state, &Item::Answered { id }).unwrap();
        receiver.handle_flushed(&mut state);
        assert_eq!(state.trusted_until, time(20));
        // A comparison forgets what is missing, and so must not trust it.
        state.need(path("f"), true);
        through(&mut receiver, &mut state, 3, 30);
        let mut receiver = greet(&mut state, Plan::Compare { moved: Sequence(3) }, now);
        receiver.handle_flushed(&mut state);
        assert_eq!((state.needs().count(), state.trusted_until), (0, time(20)));
    }

    /// Or files that another node changed before that moment of its own clock would be trusted.
    #[test]
    fn a_moment_is_of_the_clock_of_the_node_that_said_it() {
        let now = Instant::now();
        let mut state = ReceiverState::new(NodeId(2));
        let mut receiver = greet(&mut state, Plan::Compare { moved: Sequence(0) }, now);
        through(&mut receiver, &mut state, 1, 10);
        state.need(path("f"), true);
        through(&mut receiver, &mut state, 2, 20);
        // What was missing comes from another node, by position.
        let mut receiver = greet_at(NodeId(3), &mut state, Plan::Resume, now);
        let (id, _) = ask(&mut receiver, &mut state, now).remove(0);
        receiver.handle_item(&mut state, &Item::Answered { id }).unwrap();
        receiver.handle_flushed(&mut state);
        assert_eq!((state.trusted_until, state.trusted_node), (time(20), Some(NodeId(1))));
        through(&mut receiver, &mut state, 3, 15);
        assert_eq!((state.trusted_until, state.trusted_node), (time(15), Some(NodeId(3))));
    }

    #[test]
    fn what_fails_again_waits_longer_each_time() {
        let mut now = Instant::now();
        let mut state = ReceiverState::new(NodeId(2));
        let mut receiver = greet(&mut state, Plan::Compare { moved: Sequence(0) }, now);
        let item = Item::Absent { path: path("d/f"), parent_mtime: None };
        for seconds in [1, 2, 4, 8, 16, 32, 60, 60] {
            receiver.handle_problem(&mut state, &item, &path("d/f"), now);
            // What was asked before is answered after it failed again.
            let tried: Vec<u64> =
                state.needs.iter().filter(|it| it.asked).map(|it| it.id).collect();
            for id in tried {
                receiver.handle_item(&mut state, &Item::Answered { id }).unwrap();
            }
            let early = now + Duration::from_millis(seconds * 1000 - 1);
            assert_eq!(ask(&mut receiver, &mut state, early), [], "{seconds}");
            now += Duration::from_secs(seconds);
            assert_eq!(ask(&mut receiver, &mut state, now).len(), 1, "{seconds}");
        }
        let id = state.needs[0].id;
        receiver.handle_item(&mut state, &Item::Answered { id }).unwrap();
        receiver.handle_problem(&mut state, &item, &path("d/f"), now);
        assert_eq!(state.needs[0].pause, RETRY_MIN, "success forgets");
        state.retry();
        assert_eq!(ask(&mut receiver, &mut state, now).len(), 1);
    }

    #[test]
    fn a_problem_needs_the_item_and_what_is_in_its_way() {
        let now = Instant::now();
        let mut state = ReceiverState::new(NodeId(2));
        let mut receiver = greet(&mut state, Plan::Compare { moved: Sequence(0) }, now);
        let item = Item::Absent { path: path("f"), parent_mtime: None };
        receiver.handle_problem(&mut state, &item, &path("d"), now);
        let needs: Vec<_> = state.needs().map(|(path, content)| (path.clone(), content)).collect();
        assert_eq!(needs, [(path("f"), true), (path("d"), false)]);
    }

    #[test]
    fn the_upstream_is_told_of_a_stage_that_was_given_up() {
        let now = Instant::now();
        let mut state = ReceiverState::new(NodeId(2));
        let mut receiver = greet(&mut state, Plan::Compare { moved: Sequence(0) }, now);
        let stage = StageId(7);
        let item = Item::StageData { stage, offset: 0, length: 1 };
        receiver.handle_problem(&mut state, &item, &path("f"), now);
        let told = receiver.poll_message(&mut state, now);
        assert_eq!(told, Some(Message::StageAbort { stage }));
        assert_eq!(ask(&mut receiver, &mut state, now), []);
        // An upstream that takes nothing makes nothing grow.
        for number in 0..1000 {
            let item = Item::StageOpen { stage: StageId(number), size: 1, path: path("f") };
            receiver.handle_problem(&mut state, &item, &path("f"), now);
        }
        assert_eq!(receiver.given_up.len(), TRANSFERS_MAX);
    }

    #[test]
    fn only_so_many_needs_are_asked_at_once() {
        let now = Instant::now();
        let mut state = ReceiverState::new(NodeId(2));
        let mut receiver = greet(&mut state, Plan::Compare { moved: Sequence(0) }, now);
        for number in 0..NEEDS_MAX + 10 {
            state.need(path(&number.to_string()), true);
            ask(&mut receiver, &mut state, now);
        }
        let asked = state.needs.iter().filter(|need| need.asked).count();
        assert_eq!((asked, state.needs.len()), (NEEDS_ASKED_MAX, NEEDS_ASKED_MAX + 1));
        assert!(is_comparison_of_all(&state.needs[NEEDS_ASKED_MAX]));
    }
}
