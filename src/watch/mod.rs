//! Capture: inotify's events become records.
//!
//! Events are hints that a name is dirty; what is there is read later, by a sender. Only
//! renames are taken literally, and confirmed by looking. What inotify does to the careless is
//! met here:
//!
//! - A directory is watched first and listed second, or what happens between is lost
//!   (`scan`). A listing is used only if no rename came in meanwhile.
//! - Watches follow directories through renames: `nodes` have parent links, not paths.
//! - The two halves of a rename need not be adjacent: the first waits detached for the second,
//!   and states are not read meanwhile. Alone it was a move out of the tree (`events`).
//! - A file is sent when it is closed; one that stays open, or is truncated by path, after a
//!   short rest (`unsettled`).
//! - The names of a multiply linked file become dirty together (`links`).
//! - After an overflow only what changed is looked for (`overflow`).
//!
//! A restart is an overflow of which the directories are known from the catalog (`restart`), and in
//! which each is compared with what the catalog has of it (`compare`). The catalog is kept while
//! the tree is watched (`keep`).

mod compare;
mod events;
mod feed;
mod ghosts;
mod held;
mod keep;
mod link_search;
mod links;
mod moves;
mod nodes;
mod overflow;
mod restart;
mod scan;
mod unsettled;

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::io;
use std::mem::MaybeUninit;
use std::time::{Duration, Instant};

use inotify::{EventMask, Inotify, WatchMask};
use rustc_hash::FxHashSet;

use crate::model::limits::{NAME_BYTES_MAX, PATH_BYTES_MAX};
use crate::model::path::check_name;
use crate::model::{Change, Identity, Record, Sequence, Timestamp, TreePath, What};
use crate::tree::Root;
use crate::tree::metadata::timestamp;
use links::Links;
use nodes::{NodeId, Nodes, Place, ROOT};
pub use restart::RestartError;
use unsettled::Unsettled;

/// Longest time that the second half of a rename is waited for.
const PAIR_WAIT: Duration = Duration::from_millis(3);

/// Longest time that one call spends on listing directories.
const TURN: Duration = Duration::from_millis(5);

/// Time after which an unwatched part of the tree is looked through again, at the least.
const DEGRADED_INTERVAL: Duration = Duration::from_secs(1);

/// Time between two looks at a directory whose file system was mounted or unmounted.
const HELD_INTERVAL: Duration = Duration::from_secs(1);

/// Time between two looks at what could not be looked at.
const MISSED_INTERVAL: Duration = Duration::from_secs(10);

/// Age of a write, in seconds, up to which its event may be late.
const GHOST_SECONDS: i64 = 10;

/// The events that are asked for, for every directory.
fn watch_mask() -> WatchMask {
    WatchMask::CREATE
        | WatchMask::DELETE
        | WatchMask::MOVED_FROM
        | WatchMask::MOVED_TO
        | WatchMask::CLOSE_WRITE
        | WatchMask::MODIFY
        | WatchMask::ATTRIB
        | WatchMask::ONLYDIR
        | WatchMask::DONT_FOLLOW
}

/// An event as inotify reported it.
#[derive(Debug, Clone)]
struct Event {
    watch: i32,
    mask: EventMask,
    cookie: u32,
    name: Box<[u8]>,
}

impl Event {
    /// Returns whether a directory that was listed may be elsewhere now.
    fn moves_directory(&self) -> bool {
        self.mask.intersects(EventMask::MOVED_FROM | EventMask::MOVED_TO)
            && self.mask.contains(EventMask::ISDIR)
    }
}

/// Options of a watch.
#[derive(Debug, Clone)]
pub struct WatchOptions {
    /// Time between two looks through the whole tree for what raises no event.
    pub rescan_interval: Duration,
}

/// The watch of a tree: the feed of a source.
pub struct Watch {
    root: Root,
    root_identity: Identity,
    inotify: Inotify,
    event_buffer: Vec<u8>,
    list_buffer: Vec<MaybeUninit<u8>>,
    /// Read and not handled yet.
    events: VecDeque<Event>,
    /// Whether events were lost, so that the tree must be looked through.
    events_lost: bool,
    /// Whether that is because the kernel's queue overflowed, and was not said yet.
    overflowed: bool,
    /// How often the queue was read to its end.
    drains: u64,
    /// The walk that an overflow made necessary, while it goes on.
    recovery: Option<overflow::Recovery>,
    /// What is known of a restart, until everything was compared with the catalog.
    restart: Option<restart::Restart>,
    /// Directories that are still to be compared with it.
    uncompared: FxHashSet<NodeId>,
    /// What a restart will go on from.
    keeper: Option<keep::Keeper>,
    overflow_said: Option<Instant>,
    too_long_said: bool,
    long_name_said: bool,
    nodes: Nodes,
    links: Links,
    /// Files of which other names are searched for next, and the search that goes on.
    links_wanted: Vec<(Place, Identity)>,
    link_search: Option<link_search::LinkSearch>,
    /// What is left to be searched, in directories that could not be read.
    links_missed: Option<link_search::LinkSearch>,
    unsettled: Unsettled,
    /// First halves of renames, in the order they came.
    halves: VecDeque<events::Half>,
    /// Names that may be or have been directories, to be compared with the nodes when nothing
    /// is queued; the last one first.
    looks: Vec<scan::Look>,
    /// Entries that appeared and were not yet said to be complete.
    created: BTreeSet<Place>,
    /// Directories to be looked through for changes since a moment.
    sweeps: VecDeque<(NodeId, Timestamp)>,
    /// Directories without a watch, for want of room.
    unwatched: FxHashSet<NodeId>,
    /// Directories where another file system appeared or vanished.
    held: HashMap<NodeId, held::Held>,
    /// Names that lead to a directory that is known, and still is, elsewhere.
    aliases: BTreeMap<Place, Identity>,
    /// Dirty paths since the last rename, in order, each once.
    batch: Vec<(TreePath, What)>,
    batch_index: HashMap<TreePath, usize>,
    records: VecDeque<Record>,
    next: Sequence,
    /// Whether what is found is journaled; not while the tree is scanned for the first time.
    journals: bool,
    /// The wall clock when the queue was last seen empty.
    clock: Timestamp,
    options: WatchOptions,
    rescan_at: Instant,
    rescanned: Timestamp,
    degraded_at: Instant,
    degraded_since: Timestamp,
    held_at: Instant,
    /// Names that could not be looked at, or were read and are not known: looked at again.
    missed: BTreeSet<scan::Look>,
    /// Directories that could not be looked through, and since when: looked through again.
    unread: BTreeMap<NodeId, Timestamp>,
    missed_at: Instant,
    root_lost: bool,
    started: Instant,
    /// Called between the listing of a directory and the check of that listing, so that tests
    /// can change the tree in that moment.
    on_listed: Option<Box<dyn FnMut()>>,
}

impl Watch {
    /// Begins to watch the tree at `root`; the first scan is done by
    /// [`poll_event`](crate::model::feed::Feed::poll_event).
    pub fn new(root: Root, options: WatchOptions) -> io::Result<Watch> {
        let root_identity = root.identity()?;
        let now = Instant::now();
        let clock = wall_clock();
        let mut watch = Watch {
            inotify: Inotify::init()?,
            event_buffer: vec![0; 64 << 10],
            list_buffer: vec![MaybeUninit::uninit(); 64 << 10],
            events: VecDeque::new(),
            events_lost: false,
            overflowed: false,
            drains: 0,
            recovery: None,
            restart: None,
            uncompared: FxHashSet::default(),
            keeper: None,
            overflow_said: None,
            too_long_said: false,
            long_name_said: false,
            nodes: Nodes::new(root_identity),
            links: Links::default(),
            links_wanted: Vec::new(),
            link_search: None,
            links_missed: None,
            unsettled: Unsettled::default(),
            halves: VecDeque::new(),
            looks: Vec::new(),
            created: BTreeSet::new(),
            sweeps: VecDeque::new(),
            unwatched: FxHashSet::default(),
            held: HashMap::new(),
            aliases: BTreeMap::new(),
            batch: Vec::new(),
            batch_index: HashMap::new(),
            records: VecDeque::new(),
            next: Sequence(1),
            journals: false,
            clock,
            rescan_at: now + options.rescan_interval,
            rescanned: clock,
            degraded_at: now,
            degraded_since: clock,
            held_at: now,
            missed: BTreeSet::new(),
            unread: BTreeMap::new(),
            missed_at: now,
            root_lost: false,
            started: now,
            on_listed: None,
            options,
            root,
            root_identity,
        };
        watch.looks.push(scan::Look::Root);
        Ok(watch)
    }

    /// Sets what is called between the listing of a directory and the check of that listing.
    #[doc(hidden)]
    pub fn on_listed(&mut self, hook: Box<dyn FnMut()>) {
        self.on_listed = Some(hook);
    }

    /// Looks through the whole tree now, as it is done each rescan interval, for what raised no
    /// event.
    pub fn rescan(&mut self) {
        self.rescan_at = self.started;
    }

    /// Loses every event that inotify has, as when its queue overflows.
    #[doc(hidden)]
    pub fn lose_events(&mut self) {
        self.read_events();
        self.events.clear();
        self.events_lost = true;
    }

    /// Reads what inotify has, until there is nothing more.
    fn read_events(&mut self) {
        self.drains += 1;
        loop {
            match self.inotify.read_events(&mut self.event_buffer) {
                Ok(events) => {
                    for event in events {
                        let event = Event {
                            watch: event.wd.get_watch_descriptor_id(),
                            mask: event.mask,
                            cookie: event.cookie,
                            name: event.name.map_or(Box::default(), |name| {
                                std::os::unix::ffi::OsStrExt::as_bytes(name).into()
                            }),
                        };
                        if event.mask.contains(EventMask::Q_OVERFLOW) {
                            (self.events_lost, self.overflowed) = (true, true);
                        } else if !repeats_last(&self.events, &event) {
                            self.events.push_back(event);
                        }
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    // Nothing is known any more of what happens: as after an overflow, all is
                    // looked through.
                    tracing::error!("reading inotify events: {error}; looking through the tree");
                    self.events_lost = true;
                    return;
                }
            }
        }
    }

    /// Handles everything that is there, within bounds.
    fn work(&mut self) {
        let now = Instant::now();
        let deadline = now + TURN;
        self.due(now);
        loop {
            let drained = wall_clock();
            self.read_events();
            if self.events_lost {
                self.begin_recovery();
            }
            if let Some(recovery) = self.recovery.take() {
                self.recover(recovery, deadline);
                if self.recovery.is_some() && Instant::now() >= deadline {
                    break;
                }
                continue;
            }
            self.handle_events(now);
            if self.halves.iter().any(|half| half.is_directory) {
                break; // The other half of a rename is on its way, or its time runs out.
            }
            self.handle_created();
            let is_idle = self.looks.is_empty() && self.sweeps.is_empty() && !self.searches_links();
            if is_idle && self.restart.is_some() {
                if self.halves.is_empty() {
                    self.finish_restart(deadline);
                }
                if self.restart.is_some() {
                    break;
                }
                continue;
            }
            if is_idle {
                self.clock = drained;
                self.journals = true;
                break;
            }
            if Instant::now() >= deadline {
                break;
            }
            if let Some(look) = self.looks.pop() {
                self.look(look);
            } else if self.searches_links() {
                self.search_links(deadline);
            } else if let Some((node, since)) = self.sweeps.pop_front() {
                self.sweep(node, since);
            }
        }
        self.flush_batch();
    }

    fn misses(&self) -> bool {
        !self.missed.is_empty() || !self.unread.is_empty() || self.links_missed.is_some()
    }

    fn holds(&self) -> bool {
        !self.held.is_empty() || !self.aliases.is_empty()
    }

    fn searches_links(&self) -> bool {
        self.link_search.is_some() || !self.links_wanted.is_empty()
    }

    /// Starts what is due by time.
    fn due(&mut self, now: Instant) {
        for place in self.unsettled.due(now) {
            self.dirty_written(&place, What::CONTENT);
        }
        let idle = self.looks.is_empty() && self.sweeps.is_empty() && self.recovery.is_none();
        if idle && now >= self.rescan_at {
            let since = std::mem::replace(&mut self.rescanned, wall_clock());
            self.sweeps.extend(self.nodes.ids().map(|id| (id, since)));
            self.rescan_at = now + self.options.rescan_interval;
        }
        if idle && !self.unwatched.is_empty() && now >= self.degraded_at {
            let since = std::mem::replace(&mut self.degraded_since, wall_clock());
            self.sweeps.extend(self.unwatched.iter().map(|id| (*id, since)));
            // A pass over many directories must not become all that is done.
            let pause =
                DEGRADED_INTERVAL.max(Duration::from_micros(500) * self.unwatched.len() as u32);
            self.degraded_at = now + pause;
        }
        if self.misses() && now >= self.missed_at {
            let count = self.missed.len() + self.unread.len();
            self.missed_at = now + MISSED_INTERVAL.max(Duration::from_millis(1) * count as u32);
            self.looks.extend(self.missed.iter().cloned());
            self.sweeps.extend(self.unread.iter().map(|(id, since)| (*id, *since)));
            if self.link_search.is_none() {
                self.link_search = self.links_missed.take();
            }
        }
        if self.holds() && now >= self.held_at {
            self.held_at = now + HELD_INTERVAL;
            self.release_held();
        }
    }

    /// Notes that something wrote to a file by the name `place`, which may be gone since.
    fn dirty_written(&mut self, place: &Place, what: What) {
        self.dirty_place(place, what);
        self.dirty_left(place, what);
    }

    /// As [`Watch::dirty_written`], for the files only that had the name `place` once.
    fn dirty_left(&mut self, place: &Place, what: What) {
        let left: Vec<Place> = self.links.left_of(place).cloned().collect();
        // Or it was a new file of that name: then the old one was not written to just now.
        let just_now = wall_clock().earlier_by_seconds(GHOST_SECONDS);
        for left in left {
            if self.stat_of(&left).is_some_and(|stat| timestamp(stat.stx_mtime) >= just_now) {
                self.dirty_place(&left, what);
            }
        }
    }

    /// Notes that the content of the file that had the name `place` changed, for its others.
    fn others_changed(&mut self, place: &Place) {
        let others: Vec<Place> =
            self.links.group_of(place).filter(|other| *other != place).cloned().collect();
        for path in others.iter().filter_map(|other| self.path_of(other)).collect::<Vec<_>>() {
            self.dirty(path, What::CONTENT);
        }
        self.dirty_left(place, What::CONTENT);
    }

    /// Notes that the entry at `place` changed, and with a multiply linked file all its names.
    fn dirty_place(&mut self, place: &Place, what: What) {
        let group: Vec<Place> = self.links.group_of(place).cloned().collect();
        for place in group.iter().chain([place]) {
            self.touch(place.directory);
            if let Some(path) = self.path_of(place) {
                self.dirty(path, what);
            }
        }
    }

    fn path_of(&self, place: &Place) -> Option<TreePath> {
        let path = self.nodes.path(place.directory)?.join(&place.name);
        (path.as_bytes().len() <= PATH_BYTES_MAX).then_some(path)
    }

    fn dirty(&mut self, path: TreePath, what: What) {
        if !self.journals || path.is_reserved() {
            return;
        }
        if self.is_too_long(&path) {
            return;
        }
        if let Some(restart) = &mut self.restart {
            restart.note_dirty(&path, what);
        }
        match self.batch_index.get(&path) {
            Some(index) => self.batch[*index].1 |= what,
            None => {
                self.batch_index.insert(path.clone(), self.batch.len());
                self.batch.push((path, what));
            }
        }
    }

    /// Returns whether no message could hold `path`, and says so once.
    fn is_too_long(&mut self, path: &TreePath) -> bool {
        let is_too_long = path.as_bytes().len() > PATH_BYTES_MAX;
        if is_too_long && !std::mem::replace(&mut self.too_long_said, true) {
            tracing::warn!(
                "{}: paths of more than {PATH_BYTES_MAX} bytes are not mirrored; the first one \
                 begins with {}",
                self.root.path().display(),
                path.as_bytes()[..100].escape_ascii()
            );
        }
        is_too_long
    }

    /// Returns whether no path can have `name`, and says so once: some file systems have names of
    /// up to 765 bytes. Listings leave them out.
    fn is_too_long_name(&mut self, name: &[u8]) -> bool {
        let is_too_long = check_name(name).is_err();
        if is_too_long && !std::mem::replace(&mut self.long_name_said, true) {
            tracing::warn!(
                "{}: names of more than {NAME_BYTES_MAX} bytes are not mirrored; the first one \
                 begins with {}",
                self.root.path().display(),
                name[..name.len().min(100)].escape_ascii()
            );
        }
        is_too_long
    }

    /// Journals a rename, behind what became dirty before it.
    fn journal_move(&mut self, change: Change) {
        if let Some(restart) = &mut self.restart {
            restart.note_move(&change);
        }
        self.flush_batch();
        self.push_record(change);
    }

    fn flush_batch(&mut self) {
        self.batch_index.clear();
        for (path, what) in std::mem::take(&mut self.batch) {
            self.push_record(Change::Dirty { path, what });
        }
    }

    fn push_record(&mut self, change: Change) {
        if self.journals {
            tracing::trace!("{}: {change:?}", self.next.0);
            self.records.push_back(Record::new(self.next, change));
            self.next = self.next.next();
        }
    }

    /// Forgets a directory and all below it, with its watches.
    fn drop_node(&mut self, id: NodeId) {
        if id == ROOT {
            return;
        }
        let (watches, gone) = self.nodes.remove(id);
        for watch in watches {
            // It fails if the directory is gone, and its watch with it.
            let _ = self.inotify.watches().remove(watch);
        }
        let ids = gone.iter().map(|(id, _)| *id).collect();
        for place in self.unsettled.forget_directories(&ids) {
            self.others_changed(&place);
        }
        for (id, identity) in gone {
            self.held.remove(&id);
            self.unwatched.remove(&id);
            self.unread.remove(&id);
            self.uncompared.remove(&id);
            self.links.forget_directory(id, identity, self.clock);
        }
    }
}

/// Returns the wall clock as file systems see it: coarse, and never ahead of their times.
pub fn wall_clock() -> Timestamp {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::RealtimeCoarse);
    Timestamp { seconds: now.tv_sec, nanoseconds: now.tv_nsec as u32 }
}

/// Returns whether `event` says again what the last one said.
fn repeats_last(events: &VecDeque<Event>, event: &Event) -> bool {
    event.mask == EventMask::MODIFY
        && events.back().is_some_and(|last| {
            last.mask == event.mask && last.watch == event.watch && last.name == event.name
        })
}

#[cfg(test)]
mod tests;
