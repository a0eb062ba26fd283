//! Keeping the catalog: what a restart goes on from, written now and then, a little in each turn.
//!
//! A directory in which nothing happened since it was listed is copied from the old catalog, the
//! others are listed. A listing may be newer than what is journaled: so the catalog takes the place
//! of the old one only when everything that came before its last listing was read, journaled and
//! is durable.

use std::path::PathBuf;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustc_hash::{FxHashMap, FxHashSet};
use rustix::fs::Statx;

use super::events::is_reserved;
use super::nodes::{NodeId, Place, ROOT};
use super::scan::is_directory;
use super::{Watch, wall_clock};
use crate::journal::FileError;
use crate::journal::catalog::{
    Catalog, CatalogWriter, Extent, Finished, Listed, Listing, Stamp, Summary, TableDirectory,
    TableEntry,
};
use crate::model::{Position, Sequence, Timestamp, TreePath};
use crate::tree::metadata::timestamp;
use crate::tree::reader::list_directory;
use crate::tree::root::{identity_of, stat_at, stat_fd};

/// Time between two catalogs of a tree that changes, and between two attempts.
const INTERVAL: Duration = Duration::from_secs(600);

/// Records after which a catalog is written anew: a restart after a kill tells them again.
const RECORDS_MAX: u64 = 131_072;

/// Longest time of one turn, and the pause behind it, in which the tree is served.
const SLICE: Duration = Duration::from_millis(5);

/// Times that directories are listed again because something happened in them meanwhile.
const ROUNDS_MAX: u32 = 3;

/// A change within this time of a look may leave the times as they are: clocks tick each 10 ms at
/// the least, and some file systems keep whole seconds only.
const WARM_NANOSECONDS: u32 = 50_000_000;
const WARM_SECONDS: i64 = 2;

/// What is needed to keep a catalog.
#[derive(Debug)]
pub(super) struct Keeper {
    /// Where the catalog is.
    directory: PathBuf,
    /// Whose catalog it is, and how far the journal holds what was made; `None` until it was said.
    committed: Option<Position>,
    /// The catalog that is in place.
    pub current: Option<Catalog>,
    /// Where in it the directories' listings are.
    pub listings: FxHashMap<NodeId, Extent>,
    /// Directories in which something happened since they were listed.
    touched: FxHashSet<NodeId>,
    writing: Option<Writing>,
    /// The journal's ring has dropped this and what is before.
    floor: Sequence,
    /// Whether a catalog as of the end is wanted.
    ends: bool,
    /// When to go on, or to try again.
    next_at: Instant,
    /// Whether the last attempt failed.
    failed: bool,
    written_at: Instant,
}

impl Keeper {
    /// Returns the last record that the journal holds. What was made after it comes after it, so
    /// that to name it is never too much.
    fn head(&self) -> Sequence {
        self.committed.map_or(Sequence(0), |position| position.sequence)
    }
}

/// A catalog that is being written.
#[derive(Debug)]
struct Writing {
    position: Sequence,
    extents: FxHashMap<NodeId, Extent>,
    /// Directories in which something happened since they were listed for this catalog.
    touched: FxHashSet<NodeId>,
    /// Directories in which a change may not show: the next catalog lists them again.
    warm: FxHashSet<NodeId>,
    /// The file systems by their device numbers, and their identifiers.
    file_systems: Vec<(u64, u64)>,
    /// Whether it was begun as the one of the end.
    is_of_end: bool,
    step: Option<Step>,
}

#[derive(Debug)]
enum Step {
    /// Listings are written; the next directory last.
    Listings { writer: CatalogWriter, pending: Vec<NodeId>, round: u32 },
    /// The table is written. `drains` is how often the queue had been read at the last listing.
    Table { writer: CatalogWriter, pending: Vec<NodeId>, drains: u64 },
    /// The file waits for the journal to be durable.
    Written(Finished),
    /// A thread makes it durable and puts it in place.
    Installing(JoinHandle<Result<Catalog, FileError>>),
}

impl Watch {
    /// Has a catalog kept in `directory` from now on.
    pub fn keep_catalog(&mut self, directory: PathBuf) {
        let now = Instant::now();
        self.keeper = Some(Keeper {
            directory,
            committed: None,
            current: None,
            listings: FxHashMap::default(),
            touched: FxHashSet::default(),
            writing: None,
            floor: Sequence(0),
            ends: false,
            next_at: now,
            failed: false,
            written_at: now,
        });
    }

    /// Notes that something happened in a directory.
    pub(super) fn touch(&mut self, id: NodeId) {
        let Some(keeper) = &mut self.keeper else { return };
        keeper.touched.insert(id);
        if let Some(writing) = &mut keeper.writing {
            writing.touched.insert(id);
        }
    }

    /// Gives up a catalog that is being written: events were lost, so that what happened in the
    /// directories that it listed is not known.
    pub(super) fn abandon_catalog(&mut self) {
        if let Some(keeper) = &mut self.keeper
            && keeper.writing.as_ref().is_some_and(|writing| {
                matches!(writing.step, Some(Step::Listings { .. } | Step::Table { .. }))
            })
        {
            keeper.writing = None;
        }
    }

    /// Notes how far the journal holds what was made.
    pub(super) fn note_committed(&mut self, position: Position) {
        if let Some(keeper) = &mut self.keeper {
            keeper.committed = Some(position);
        }
    }

    /// Wants a catalog as of the end, if that is another one than there is.
    pub(super) fn end_catalog(&mut self) {
        if let Some(keeper) = &mut self.keeper {
            let head = keeper.head();
            let is_current = keeper.touched.is_empty()
                && keeper
                    .current
                    .as_ref()
                    .is_some_and(|current| current.summary().table_position == head);
            keeper.ends = !is_current;
            keeper.next_at = self.started;
        }
    }

    /// Returns whether a catalog as of the end is still to come.
    pub(super) fn ends_catalog(&self) -> bool {
        self.restart.is_none() && self.journals && self.keeper.as_ref().is_some_and(|it| it.ends)
    }

    /// Returns when the catalog has something to do.
    pub(super) fn catalog_due(&self) -> Option<Instant> {
        let keeper = self.keeper.as_ref().filter(|_| self.journals && self.restart.is_none())?;
        if keeper.writing.is_some() || keeper.current.is_none() {
            return Some(keeper.next_at);
        }
        let is_due = keeper.next_at.max(keeper.written_at + INTERVAL);
        (!keeper.touched.is_empty()).then_some(is_due)
    }

    /// Goes on with the catalog. Everything made so far is written to the journal, whose ring has
    /// dropped what is at or below `floor`. Returns whether it must be durable before the next
    /// call.
    pub(super) fn keep_on(
        &mut self,
        floor: Sequence,
        problems: &mut dyn FnMut() -> Vec<TreePath>,
    ) -> bool {
        let now = Instant::now();
        let Some(mut keeper) = self.keeper.take() else { return false };
        keeper.floor = floor;
        let may = self.journals && self.restart.is_none() && self.recovery.is_none();
        let waits = keeper.writing.is_some() || keeper.failed;
        if !may || keeper.committed.is_none() || !keeper.ends && waits && now < keeper.next_at {
            self.keeper = Some(keeper);
            return false;
        }
        let outcome = match keeper.writing.take() {
            Some(writing) => self.write_on(&mut keeper, writing, problems, now),
            None if self.wants_catalog(&keeper, now) => self.begin_catalog(&mut keeper),
            None => Ok(None),
        };
        let mut needs_sync = false;
        match outcome {
            Ok(writing) => {
                needs_sync = matches!(writing, Some(Writing { step: Some(Step::Written(_)), .. }));
                keeper.writing = writing;
                keeper.failed = false;
                keeper.next_at = Instant::now() + SLICE;
            }
            Err(error) => {
                tracing::warn!("{error}; without a catalog a restart compares whole trees");
                keeper.next_at = now + INTERVAL;
                (keeper.failed, keeper.ends) = (true, false);
            }
        }
        self.keeper = Some(keeper);
        needs_sync
    }

    fn wants_catalog(&self, keeper: &Keeper, now: Instant) -> bool {
        let Some(current) = keeper.current.as_ref().filter(|_| !keeper.ends) else { return true };
        let (position, head) = (current.summary().position.0, keeper.head().0);
        let floor = keeper.floor.0;
        // Before the ring drops it: what is left of it is a quarter of the ring at most.
        let is_old = floor > 0 && position.saturating_sub(floor) < head.saturating_sub(floor) / 4;
        is_old
            || head.saturating_sub(position) >= RECORDS_MAX
            || !keeper.touched.is_empty() && now >= keeper.written_at + INTERVAL
    }

    fn begin_catalog(&mut self, keeper: &mut Keeper) -> Result<Option<Writing>, FileError> {
        let writer = CatalogWriter::create(&keeper.directory)?;
        Ok(Some(Writing {
            position: keeper.head(),
            extents: FxHashMap::default(),
            touched: FxHashSet::default(),
            warm: FxHashSet::default(),
            file_systems: Vec::new(),
            is_of_end: keeper.ends,
            step: Some(Step::Listings { writer, pending: vec![ROOT], round: 0 }),
        }))
    }

    /// Goes on for one slice. Returns `None` when the catalog is in place.
    fn write_on(
        &mut self,
        keeper: &mut Keeper,
        mut writing: Writing,
        problems: &mut dyn FnMut() -> Vec<TreePath>,
        now: Instant,
    ) -> Result<Option<Writing>, FileError> {
        let deadline = now + SLICE * if keeper.ends { 10 } else { 1 };
        let step = match writing.step.take() {
            Some(Step::Listings { mut writer, mut pending, mut round }) => {
                while let Some(id) = pending.pop() {
                    self.write_listing(keeper, &mut writing, &mut writer, id)?;
                    if round == 0 {
                        pending.extend(self.nodes.children(id).map(|(_, child)| child));
                    }
                    if Instant::now() >= deadline {
                        break;
                    }
                }
                if pending.is_empty() && round < ROUNDS_MAX {
                    round += 1;
                    pending
                        .extend(writing.touched.iter().filter(|id| self.nodes.get(**id).is_some()));
                }
                if pending.is_empty() || round == ROUNDS_MAX {
                    self.nodes.watch_moves(true);
                    Step::Table { writer, pending: vec![ROOT], drains: self.drains }
                } else {
                    Step::Listings { writer, pending, round }
                }
            }
            Some(Step::Table { mut writer, mut pending, drains }) => {
                while let Some(id) = pending.pop() {
                    writer.table_entry(&self.table_entry(&mut writing, id))?;
                    pending.extend(self.nodes.children(id).map(|(_, child)| child));
                    if Instant::now() >= deadline {
                        break;
                    }
                }
                if pending.is_empty() && self.drains > drains && self.has_told_all() {
                    for id in self.nodes.watch_moves(false) {
                        writer.table_entry(&self.table_entry(&mut writing, id))?;
                    }
                    Step::Written(writer.finish(&self.summary(keeper, &writing, problems()))?)
                } else {
                    Step::Table { writer, pending, drains }
                }
            }
            Some(Step::Written(finished)) => {
                let installing = std::thread::Builder::new().name("catalog".into());
                let installing = installing.spawn(move || finished.install());
                let failed = |error| FileError::io(&keeper.directory, "start a thread for", error);
                Step::Installing(installing.map_err(failed)?)
            }
            Some(Step::Installing(thread)) if keeper.ends || thread.is_finished() => {
                let catalog = thread
                    .join()
                    .map_err(|_| FileError::damaged(&keeper.directory, "its thread panicked"))??;
                let (head, directories) = (catalog.summary().table_position, writing.extents.len());
                tracing::debug!(
                    "{}: the catalog has {directories} directories as of {head}",
                    self.root.path().display()
                );
                keeper.current = Some(catalog);
                keeper.listings = writing.extents;
                // At the end one is enough: what came later is found by its times.
                keeper.ends &= !writing.is_of_end && !writing.touched.is_empty();
                keeper.touched = writing.touched;
                keeper.touched.extend(writing.warm);
                keeper.written_at = now;
                return Ok(None);
            }
            Some(step @ Step::Installing(_)) => step,
            None => return Ok(None),
        };
        writing.step = Some(step);
        Ok(Some(writing))
    }

    /// Returns whether everything that was read of the queue is told.
    fn has_told_all(&self) -> bool {
        use crate::model::feed::Feed;
        self.is_settled()
            && self.halves.is_empty()
            && self.sweeps.is_empty()
            && self.batch.is_empty()
            && self.records.is_empty()
    }

    fn write_listing(
        &mut self,
        keeper: &mut Keeper,
        writing: &mut Writing,
        writer: &mut CatalogWriter,
        id: NodeId,
    ) -> Result<(), FileError> {
        let Some(node) = self.nodes.get(id) else { return Ok(()) };
        let was_touched = writing.touched.remove(&id);
        if !was_touched && writing.extents.contains_key(&id) {
            return Ok(());
        }
        let device = node.identity.device;
        let known = keeper.listings.get(&id).copied();
        // What is not compared yet is not known to be told: what the old catalog says is.
        let is_compared = !self.uncompared.contains(&id);
        let is_current = !is_compared || !was_touched && !keeper.touched.contains(&id);
        if let (Some(extent), Some(current), true) = (known, &keeper.current, is_current) {
            let copied = writer.copy(current, extent)?;
            writing.extents.insert(id, copied);
        } else if is_compared && !self.is_in_doubt(id) {
            match self.list_for_catalog(id) {
                Some((listing, is_warm)) => {
                    let extent = writer.listing(&listing)?;
                    writing.extents.insert(id, extent);
                    if is_warm {
                        writing.warm.insert(id);
                    }
                }
                None => _ = writing.extents.remove(&id),
            }
        } else {
            writing.extents.remove(&id);
        }
        if !writing.file_systems.iter().any(|(known, _)| *known == device)
            && let Some(path) = self.nodes.path(id)
            && let Ok(fd) = self.root.open_directory(&path)
            && stat_fd(&fd).is_ok_and(|stat| identity_of(&stat).device == device)
            && let Ok(stat) = rustix::fs::fstatvfs(&fd)
        {
            writing.file_systems.push((device, stat.f_fsid));
        }
        Ok(())
    }

    /// Returns whether changes in a directory may be unknown.
    fn is_in_doubt(&self, id: NodeId) -> bool {
        self.unwatched.contains(&id)
            || self.unread.contains_key(&id)
            || self.held.keys().any(|held| self.nodes.is_above(*held, id))
    }

    /// Lists a directory. `None` if it cannot be read: then nothing is known of what is in it.
    fn list_for_catalog(&mut self, id: NodeId) -> Option<(Listing, bool)> {
        let path = self.nodes.path(id)?;
        let fd = self.root.open_directory(&path).ok()?;
        let now = wall_clock();
        let stat = stat_fd(&fd).ok()?;
        if identity_of(&stat) != self.nodes.get(id)?.identity {
            return None;
        }
        let own = stamp(&stat, now);
        let (mut files, mut is_warm) = (Vec::new(), own.is_warm);
        let mut buffer = std::mem::take(&mut self.list_buffer);
        let listed = list_directory(&fd, &mut buffer, |name, _| {
            let stat = match stat_at(&fd, name) {
                Ok(stat) => stat,
                Err(rustix::io::Errno::NOENT) => return Ok(()),
                Err(error) => return Err(error.into()),
            };
            let place = Place { directory: id, name: name.to_vec() };
            if !is_directory(&stat) && !is_reserved(&place) {
                let stamp = stamp(&stat, now);
                is_warm |= stamp.is_warm;
                files.push(Listed { name: place.name, stamp });
            }
            Ok(())
        });
        self.list_buffer = buffer;
        listed.ok()?;
        files.sort_unstable_by(|one, other| one.name.cmp(&other.name));
        Some((Listing { own, files }, is_warm))
    }

    fn table_entry(&self, writing: &mut Writing, id: NodeId) -> TableEntry {
        let directory = self.nodes.get(id).map(|node| {
            let device = node.identity.device;
            let known = writing.file_systems.iter().position(|(known, _)| *known == device);
            TableDirectory {
                parent: node.parent.0,
                name: node.name.to_vec(),
                // One that is not known is none of those, so that its mount is not found again.
                file_system: known.map_or(u32::MAX, |index| index as u32),
                inode: node.identity.inode,
                birth: node.birth,
                is_mount: node.is_mount,
                listing: writing.extents.get(&id).copied(),
                is_stale: writing.touched.contains(&id),
            }
        });
        TableEntry { number: id.0, directory }
    }

    fn summary(&self, keeper: &Keeper, writing: &Writing, mut untold: Vec<TreePath>) -> Summary {
        let position = keeper.committed.expect("it was said before");
        untold.extend(self.unsettled.waiting().filter_map(|place| self.path_of(place)));
        Summary {
            tree: position.tree,
            epoch: position.epoch,
            position: writing.position,
            table_position: keeper.head(),
            file_systems: writing.file_systems.iter().map(|(_, id)| *id).collect(),
            untold,
        }
    }
}

/// Returns the stamp of a status that was read at `now`, or later.
pub(super) fn stamp(stat: &Statx, now: Timestamp) -> Stamp {
    let ctime = timestamp(stat.stx_ctime);
    Stamp {
        inode: stat.stx_ino,
        birth: timestamp(stat.stx_btime),
        mode: stat.stx_mode.into(),
        size: stat.stx_size,
        mtime: timestamp(stat.stx_mtime),
        ctime,
        is_linked: stat.stx_nlink > 1,
        is_warm: is_warm(ctime, now),
    }
}

/// Returns whether a change after `now` may leave this time of change as it is.
fn is_warm(ctime: Timestamp, now: Timestamp) -> bool {
    if ctime.nanoseconds == 0 {
        return ctime >= now.earlier_by_seconds(WARM_SECONDS);
    }
    let then = match now.nanoseconds.checked_sub(WARM_NANOSECONDS) {
        Some(nanoseconds) => Timestamp { nanoseconds, ..now },
        None => Timestamp {
            seconds: now.seconds - 1,
            nanoseconds: now.nanoseconds + 1_000_000_000 - WARM_NANOSECONDS,
        },
    };
    ctime >= then
}
