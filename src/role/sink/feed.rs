//! The sink as a feed: what makes a relay of it.
//!
//! What was applied becomes records, in the order of application. They are served once all of it
//! is in place, at a flush, behind which a mark says how far the upstream's records are. Renames
//! keep the upstream's numbers. Nobody else changes the tree, so that nothing is half seen but
//! between two flushes.

use std::collections::VecDeque;
use std::os::fd::BorrowedFd;
use std::time::{Duration, Instant};

use super::Sink;
use super::link_names::LinkNames;
use crate::journal::PendingSync;
use crate::model::feed::{Confirmation, Feed, FeedEvent, Progress, Standing};
use crate::model::{
    Change, Epoch, EpochId, Identity, Kind, Mark, Position, Record, Sequence, Timestamp, TreePath,
    Watermarks, What,
};
use crate::role::{Role, SourceFeed};
use crate::tree::root::identity_of;
use crate::watch::wall_clock;
use crate::wire::{Content, Item, Plan};

/// Longest time that one turn spends on the search for hard links.
const SEARCH_TIME_MAX: Duration = Duration::from_millis(5);

/// What a sink keeps for being a feed.
#[derive(Debug, Default)]
pub(super) struct Outlet {
    /// The number of the next record.
    next: Sequence,
    events: VecDeque<FeedEvent>,
    /// Every rename through this is in the tree, also while all else in it is unknown.
    moved: Sequence,
    /// Counts what may have told of unfinished files that downstreams do not know.
    untold: u64,
    /// What the last mark said.
    marked: Option<(Watermarks, Option<Sequence>, bool)>,
    /// The last record that was told of in the journal, if that can be said.
    reached: Option<Sequence>,
    /// Whether the journal goes on where the tree is.
    is_current: bool,
    /// The origin's head when the upstream first spoke to this process: only when that is applied
    /// again, nothing is in the tree any more that an earlier process did not journal.
    head_at_start: Option<Sequence>,
    links: LinkNames,
    /// What the journal's owner gave to be synchronised before the next checkpoint.
    pub(super) journal_sync: Option<PendingSync>,
}

/// What was found in a relay's journal at its start.
#[derive(Debug, Clone, Copy)]
pub struct JournalEnd {
    /// The last mark.
    pub mark: Mark,
    /// The last rename's number, of those behind the mark as well.
    pub moved: Sequence,
}

impl Outlet {
    fn push(&mut self, origin: Option<Sequence>, change: Change) {
        if !matches!(change, Change::Through(_)) {
            self.reached = None; // Until the upstream says of which records that may have been.
        }
        let record = Record { sequence: self.next, origin, change };
        self.next = self.next.next();
        self.events.push_back(FeedEvent::Record(record));
    }

    fn dirty(&mut self, path: &TreePath, what: What) {
        // A directory's names follow its state.
        if let Some(FeedEvent::Record(Record {
            change: Change::Dirty { path: last, what: known },
            ..
        })) = self.events.back_mut()
            && last == path
        {
            *known |= what;
            self.reached = None;
            return;
        }
        self.push(None, Change::Dirty { path: path.clone(), what });
    }

    /// Begins the journal anew at `position`.
    fn reset(&mut self, position: Position) {
        self.events.clear();
        self.events.push_back(FeedEvent::Reset(position));
        (self.next, self.marked, self.reached) = (Sequence(1), None, None);
        (self.moved, self.is_current) = (position.sequence, true);
    }
}

impl Sink {
    /// Makes this the feed of a relay whose journal ended so, if it has a journal. Returns whether
    /// that goes on; else it begins anew, and downstreams compare.
    pub(in crate::role) fn become_feed(&mut self, end: Option<JournalEnd>) -> bool {
        let mut outlet = Outlet { next: Sequence(1), ..Outlet::default() };
        outlet.links.is_complete = self.replica.is_empty().unwrap_or(false);
        let marks = self.state.watermarks;
        let goes_on = marks.zip(end).is_some_and(|(marks, end)| {
            let reached = end.mark.watermarks;
            // A rename that was done and is not journaled, or the reverse, would be missed or done
            // twice; and what is applied must be journaled, or nobody would hear of it.
            reached.epoch == marks.epoch
                && reached.moved.max(end.moved) >= marks.moved
                && end.moved <= marks.moved
                && reached.applied >= marks.applied
        });
        if goes_on {
            outlet.is_current = true;
        } else if let (Some(tree), Some(marks)) = (self.state.tree, marks) {
            outlet.reset(Position { tree, epoch: marks.epoch, sequence: marks.moved });
            outlet.reached = Some(marks.applied); // All else will be told of.
        }
        self.outlet = Some(outlet);
        if let (true, Some(end)) = (goes_on, end)
            && end.mark.is_whole
            && self.is_same_boot
            && let Some(marks) = &mut self.state.watermarks
        {
            // The process was killed, not the machine: what the journal says was in place still is.
            marks.moved = marks.moved.max(end.mark.watermarks.moved);
            marks.applied = end.mark.watermarks.applied;
        }
        if !goes_on {
            self.relay_position();
        }
        goes_on
    }

    /// Looks at an item that is about to be applied. Until the upstream has told which files may be
    /// parts, no rename may let one replace a whole file (I2). That holds for downstreams as well,
    /// and they greet anew, which has them told.
    pub(super) fn relay_untold(&mut self, item: &Item) {
        let Some(outlet) = &mut self.outlet else { return };
        let tells =
            matches!(item, Item::Rename { .. } | Item::Exchange { .. } | Item::Unfinished { .. });
        outlet.untold += u64::from(tells && self.replica.is_untold());
    }

    /// Records what an item did that was just applied.
    pub(super) fn relay(&mut self, item: &Item) {
        let Some(outlet) = &mut self.outlet else { return };
        if let Item::Rename { sequence, .. } | Item::Exchange { sequence, .. } = item {
            outlet.moved = *sequence;
        }
        match item {
            Item::Rename { sequence, from, to } => {
                let change = Change::Rename { from: from.clone(), to: to.clone() };
                outlet.links.follow(&change);
                outlet.push(Some(*sequence), change);
            }
            Item::Exchange { sequence, a, b } => {
                let change = Change::Exchange { a: a.clone(), b: b.clone() };
                outlet.links.follow(&change);
                outlet.push(Some(*sequence), change);
            }
            Item::State { path, entry, content, links, .. } => {
                let what = match content {
                    _ if entry.is_directory() => What::NAME,
                    Content::Keep if !matches!(entry.kind, Kind::Regular { .. }) => What::CONTENT,
                    Content::Keep if links.is_empty() => What::ATTRIBUTES,
                    Content::Keep | Content::Linked => What::NAME,
                    _ => What::CONTENT,
                };
                outlet.dirty(path, what);
                if !links.is_empty()
                    && let Ok(Some(stat)) = self.replica.stat(path)
                {
                    for name in links.iter().chain([path]) {
                        outlet.links.note(name, identity_of(&stat));
                    }
                }
            }
            Item::Through { reached, .. } => outlet.reached = *reached,
            Item::Absent { path, .. } | Item::Names { path, last: true, .. } => {
                outlet.dirty(path, What::CONTENT);
            }
            Item::Names { .. }
            | Item::StageOpen { .. }
            | Item::StageData { .. }
            | Item::StageAbort { .. }
            | Item::Answered { .. }
            | Item::Digest { .. }
            | Item::Unfinished { .. } => {}
        }
    }

    /// Follows the beginning of a connection. If the tree is to be compared, the journal begins
    /// anew: positions say nothing of the tree until that is over.
    pub(super) fn relay_hello(&mut self, plan: Plan) {
        let (Some(outlet), Some(tree)) = (&mut self.outlet, self.state.tree) else { return };
        let Some((_, receiver)) = &self.link else { return };
        outlet.head_at_start.get_or_insert(self.state.origin.0);
        if plan == Plan::Resume {
            // Everything above what is applied comes in this connection, whatever came before.
            outlet.reached = self.state.watermarks.map(|marks| marks.applied);
            return self.relay_position();
        }
        let epoch =
            self.state.epoch.map(|epoch| epoch.id).unwrap_or(EpochId { counter: 0, random: 0 });
        outlet.reset(Position { tree, epoch, sequence: receiver.moved() });
    }

    /// Writes a mark into the journal if there is news: everything before it is in place.
    pub(super) fn relay_position(&mut self) {
        let (Some(outlet), Some(watermarks)) = (&mut self.outlet, self.state.watermarks) else {
            return;
        };
        let is_whole = self.state.needs().next().is_none();
        let reached = outlet.reached;
        if outlet.marked == Some((watermarks, reached, is_whole)) {
            return;
        }
        outlet.marked = Some((watermarks, reached, is_whole));
        let is_journaled = outlet.head_at_start.is_some_and(|head| watermarks.applied >= head);
        let clock = if is_journaled { wall_clock() } else { Timestamp::default() };
        outlet.push(None, Change::Through(Mark { watermarks, clock, reached, is_whole }));
    }
}

impl Feed for Sink {
    fn poll_event(&mut self) -> Option<FeedEvent> {
        let outlet = self.outlet.as_mut()?;
        if outlet.links.is_searching() {
            outlet.links.search(self.replica.root(), Instant::now() + SEARCH_TIME_MAX);
        }
        outlet.events.pop_front()
    }

    fn committed(&mut self, _position: Position) {}

    fn start(&mut self, next: Sequence) {
        // One that begins the journal anew has said so already, and counts from there.
        if let Some(outlet) = &mut self.outlet
            && outlet.events.is_empty()
        {
            outlet.next = next;
        }
    }

    fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    fn is_settled(&self) -> bool {
        let searches = self.outlet.as_ref().is_none_or(|outlet| outlet.links.is_searching());
        !searches && self.flush_at.is_none()
    }

    fn poll_timeout(&self) -> Option<Instant> {
        let searches = self.outlet.as_ref().is_some_and(|outlet| outlet.links.is_searching());
        searches.then_some(self.started)
    }

    fn clock(&self) -> Timestamp {
        wall_clock()
    }

    fn links(
        &mut self,
        identity: Identity,
        count: u32,
        path: &TreePath,
        most: usize,
    ) -> Vec<TreePath> {
        let Some(outlet) = &mut self.outlet else { return Vec::new() };
        outlet.links.note(path, identity);
        let known: Vec<TreePath> = outlet.links.of(identity).cloned().collect();
        let (mut names, mut gone) = (Vec::new(), Vec::new());
        for name in known.into_iter().filter(|name| name != path) {
            if names.len() == most {
                return names;
            }
            match self.replica.stat(&name) {
                Ok(Some(stat)) if identity_of(&stat) == identity => names.push(name),
                _ => gone.push(name),
            }
        }
        gone.iter().for_each(|name| outlet.links.forget(name));
        if names.len() + 1 < count as usize {
            outlet.links.want_search();
        }
        names
    }

    fn confirm(&mut self, _path: &[u8], _identity: Identity) -> Confirmation {
        Confirmation::Known
    }

    fn progress(&self, path: &TreePath) -> Progress {
        if self.replica.is_unfinished(path) { Progress::Rested } else { Progress::Finished }
    }

    fn unfinished(&self) -> Vec<TreePath> {
        self.replica.unfinished()
    }

    fn mark(&mut self, path: &TreePath) {
        if let Some(outlet) = &mut self.outlet {
            outlet.dirty(path, What::CONTENT);
        }
    }

    fn hold(&mut self) -> Option<String> {
        self.is_away.then(|| format!("{}: it is not in its place", self.path.display()))
    }

    fn upstream(&self) -> Option<Standing> {
        let receiver = self.link.as_ref().map(|(_, receiver)| receiver);
        let receiver = receiver.filter(|receiver| receiver.is_running());
        let watermarks = self.state.watermarks;
        let known =
            self.state.epoch.or(watermarks.map(|marks| Epoch { id: marks.epoch, parent: None }));
        let outlet = self.outlet.as_ref();
        Some(Standing {
            chain: receiver.map(|_| self.state.chain.clone()),
            untold: outlet.map_or(0, |outlet| outlet.untold),
            epoch: known.filter(|_| outlet.is_some_and(|outlet| outlet.is_current)),
            moved: watermarks
                .map(|marks| marks.moved)
                .or(outlet.map(|outlet| outlet.moved))
                .unwrap_or_default(),
            applied: watermarks.map(|marks| marks.applied),
            reached: outlet.and_then(|outlet| outlet.reached),
            origin: self.state.origin,
        })
    }
}

impl SourceFeed for Sink {
    fn role(&self) -> Option<&dyn Role> {
        Some(self)
    }

    fn role_mut(&mut self) -> Option<&mut dyn Role> {
        Some(self)
    }

    fn settle(&mut self, now: Instant) {
        self.flush(now);
    }

    fn wants_journal_sync(&self, now: Instant) -> bool {
        self.is_checkpoint_due(now)
    }

    fn handle_journal_sync(&mut self, sync: PendingSync) {
        if let Some(outlet) = &mut self.outlet {
            outlet.journal_sync = Some(sync);
        }
    }
}
