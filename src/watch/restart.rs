//! A restart: the recovery of an overflow whose directories come from the catalog.
//!
//! The directories are put where the journal's head has them. Then the walk of a recovery watches
//! each, finds those that moved by their identity and journals that; what is known of the others'
//! absence is kept, for files may have moved out of them. Then each directory is compared with its
//! listing in the catalog ([`compare`](super::compare)), and last, files that are missed at one
//! place and new at another are journaled as renames: if no event spoke of either meanwhile.

use std::collections::VecDeque;
use std::path::PathBuf;
use std::time::Instant;

use inotify::WatchDescriptor;
use rustc_hash::{FxHashMap, FxHashSet};

use super::Watch;
use super::compare::key_of;
use super::moves::{End, FileKey, Moves, Paired, Step, order};
use super::nodes::{NodeId, Place, ROOT, STRANGE};
use super::overflow::Recovery;
use crate::journal::FileError;
use crate::journal::catalog::{Catalog, Extent, TableDirectory};
use crate::model::limits::SENT_PATHS_MAX;
use crate::model::{Change, Identity, TreePath, What};
use crate::tree::metadata::timestamp;
use crate::tree::root::{identity_of, stat_fd};

/// Most live renames that are remembered while files are looked for.
const RENAMED_MAX: usize = 1024;

/// What is known of a restart while it goes on.
#[derive(Debug, Default)]
pub(super) struct Restart {
    /// The watches of the directories that were met, until they are known by their nodes.
    watches: FxHashMap<Identity, std::io::Result<WatchDescriptor>>,
    /// Directories in which the journal has renames and removals since they were listed: what is
    /// missed in them need not be what the replicas have.
    doubtful: FxHashSet<NodeId>,
    /// Directories that were met no more: where the replicas have them, and what was in them.
    lost: VecDeque<(TreePath, Extent)>,
    moves: Moves<Origin, (Place, What)>,
    /// Paths that events told of, and the ends of their renames: what is found there is not as it
    /// was when the restart began.
    named: FxHashSet<TreePath>,
    renamed: Vec<TreePath>,
    /// Whether too much happened to find files that moved.
    gave_up: bool,
    plan: Option<Plan>,
    renames: usize,
    /// Whether a file system that covers a known directory is what is mirrored from now on.
    pub accepts_mounts: bool,
}

/// Where a file was.
#[derive(Debug)]
pub(super) enum Origin {
    /// In a directory that is known.
    Place(Place),
    /// In one that is lost.
    Lost(TreePath),
}

/// What is to be journaled of the files that moved.
#[derive(Debug)]
struct Plan {
    groups: VecDeque<Vec<Step>>,
    /// The two ends of each, and what is to be told of the target.
    ends: Vec<(TreePath, TreePath, What)>,
    left: Vec<(TreePath, What)>,
}

/// Why a restart cannot go on from a catalog.
#[derive(Debug, thiserror::Error)]
pub enum RestartError {
    /// The catalog cannot be read.
    #[error(transparent)]
    Catalog(#[from] FileError),
    /// It is another tree's.
    #[error("{} is of another directory than this one", .0.display())]
    OtherRoot(PathBuf),
    /// A file system below the root is not there. This must not be taken for a removal.
    #[error(
        "{}: not the file system that was mirrored there at the last start (it is not mounted, or \
         was replaced)",
        .0.display()
    )]
    Mount(PathBuf),
}

impl Watch {
    /// Takes the directories from `catalog`, to go on with them.
    ///
    /// Call [`follow`](Self::follow) with what the journal holds since, then
    /// [`begin_restart`](Self::begin_restart).
    pub fn resume(&mut self, catalog: Catalog) -> Result<(), RestartError> {
        let mut table: FxHashMap<u64, TableDirectory> = FxHashMap::default();
        catalog.table(|entry| match entry.directory {
            Some(directory) => _ = table.insert(entry.number, directory),
            None => _ = table.remove(&entry.number),
        })?;
        let other_root = || RestartError::OtherRoot(catalog.path().to_path_buf());
        let own = stat_fd(&self.root).map_err(|_| other_root())?;
        let fsid = rustix::fs::fstatvfs(&self.root).map_err(|_| other_root())?.f_fsid;
        let root = table.remove(&0).ok_or_else(other_root)?;
        let known = catalog.summary().file_systems.first();
        if (root.inode, root.birth) != (own.stx_ino, timestamp(own.stx_btime))
            || (root.file_system, known) != (0, Some(&fsid))
        {
            return Err(other_root());
        }
        self.nodes.set_root_birth(root.birth);
        let mut below: FxHashMap<u64, Vec<u64>> = FxHashMap::default();
        for (number, directory) in &table {
            below.entry(directory.parent).or_default().push(*number);
        }
        let mut restart = Restart::default();
        let mut listings = FxHashMap::default();
        let mut note = |id, listing: Option<Extent>, is_stale| {
            listings.extend(listing.map(|extent| (id, extent)));
            if is_stale {
                restart.doubtful.insert(id);
            }
        };
        note(ROOT, root.listing, root.is_stale);
        let mut pending = vec![(0, ROOT)];
        while let Some((number, id)) = pending.pop() {
            for number in below.remove(&number).unwrap_or_default() {
                let Some(directory) = table.remove(&number) else { continue };
                let device = self.device_of(directory.file_system);
                let identity = Identity { device, inode: directory.inode };
                if self.nodes.by_identity(identity).is_some()
                    || self.nodes.child(id, &directory.name).is_some()
                {
                    continue;
                }
                let (birth, is_mount) = (directory.birth, directory.is_mount);
                let child = self.nodes.insert(id, &directory.name, identity, birth, is_mount);
                note(child, directory.listing, directory.is_stale);
                pending.push((number, child));
            }
        }
        if let Some(keeper) = &mut self.keeper {
            keeper.listings = listings;
            keeper.current = Some(catalog);
        }
        self.restart = Some(restart);
        Ok(())
    }

    /// Follows what the journal holds since the table of the catalog was written.
    pub fn follow(&mut self, change: &Change) {
        match change {
            Change::Rename { from, to } => {
                let moved = self.take_known(from);
                if let Some(displaced) = self.take_known(to) {
                    self.nodes.remove(displaced);
                }
                self.put_known(moved, to);
            }
            Change::Exchange { a, b } => {
                let (at_a, at_b) = (self.take_known(a), self.take_known(b));
                self.put_known(at_a, b);
                self.put_known(at_b, a);
            }
            Change::Dirty { path, what } if what.covers(What::COMPARE) && !path.is_root() => {
                // It may have been removed, and be another one by now. It is taken as new.
                if let Some(known) = self.take_known(path) {
                    self.nodes.remove(known);
                }
            }
            Change::Dirty { .. } | Change::Through(_) => {}
        }
    }

    /// Takes the directory at `path` from there. Whatever was at `path`, the listing that has it
    /// is not as the replicas have it any more.
    fn take_known(&mut self, path: &TreePath) -> Option<NodeId> {
        let (parent, name) = path.split_bytes()?;
        let parent = self.nodes.at(parent)?;
        if let Some(restart) = &mut self.restart {
            restart.doubtful.insert(parent);
        }
        self.nodes.detach(parent, name)
    }

    fn put_known(&mut self, id: Option<NodeId>, path: &TreePath) {
        let Some(id) = id else { return };
        let Some((parent, name)) = path.split_bytes() else { return };
        match self.nodes.at(parent) {
            Some(parent)
                if !self.nodes.is_above(id, parent) && self.nodes.child(parent, name).is_none() =>
            {
                self.nodes.attach(id, parent, name)
            }
            _ => _ = self.nodes.remove(id),
        }
    }

    /// Begins to look for what changed since. Everything found is journaled.
    ///
    /// # Errors
    ///
    /// [`RestartError::Mount`]: what is missing there would be taken for removed.
    pub fn begin_restart(&mut self) -> Result<(), RestartError> {
        self.find_mounts()?;
        if let Some(keeper) = &mut self.keeper {
            keeper.listings.retain(|id, _| self.nodes.get(*id).is_some());
        }
        self.uncompared.extend(self.nodes.ids());
        self.looks.clear();
        self.journals = true;
        self.recovery = Some(Recovery::new(self.clock, 1));
        Ok(())
    }

    /// Takes file systems that were mounted over known directories for what is mirrored there, as
    /// the user says that they are; without, what they cover is held.
    pub fn accept_mounts(&mut self) {
        if let Some(restart) = &mut self.restart {
            restart.accepts_mounts = true;
        }
    }

    /// Returns a device number for a file system of the catalog, which has another one at each
    /// boot: only the root's is known before the others are found.
    fn device_of(&self, file_system: u32) -> u64 {
        match file_system {
            0 => self.root_identity.device,
            other => STRANGE - 1 - u64::from(other),
        }
    }

    /// Looks whether each file system below the root is in its place, and learns its device
    /// number.
    fn find_mounts(&mut self) -> Result<(), RestartError> {
        let summary = self.keeper.as_ref().and_then(|keeper| keeper.current.as_ref());
        let file_systems = summary.map_or(Vec::new(), |it| it.summary().file_systems.clone());
        let known: FxHashMap<u64, u64> =
            (0..).map(|index| self.device_of(index)).zip(file_systems).collect();
        let mounts: Vec<NodeId> = self
            .nodes
            .ids()
            .filter(|id| self.nodes.get(*id).is_some_and(|it| it.is_mount))
            .collect();
        let mut devices: FxHashMap<u64, u64> = FxHashMap::default();
        devices.insert(self.root_identity.device, self.root_identity.device);
        for id in mounts {
            let (Some(node), Some(path)) = (self.nodes.get(id), self.nodes.path(id)) else {
                continue;
            };
            let found = self
                .root
                .open_directory(&path)
                .and_then(|fd| Ok((stat_fd(&fd)?, rustix::fs::fstatvfs(&fd)?.f_fsid)));
            let device = node.identity.device;
            match found {
                Ok((stat, fsid))
                    if known.get(&device) == Some(&fsid)
                        && stat.stx_ino == node.identity.inode
                        && timestamp(stat.stx_btime) == node.birth
                        && devices
                            .get(&device)
                            .is_none_or(|known| *known == identity_of(&stat).device) =>
                {
                    devices.insert(device, identity_of(&stat).device);
                }
                _ => {
                    let path = std::os::unix::ffi::OsStrExt::from_bytes(path.as_bytes());
                    let path: &std::ffi::OsStr = path;
                    return Err(RestartError::Mount(self.root.path().join(path)));
                }
            }
        }
        let strange: Vec<NodeId> = self.nodes.ids().filter(|id| *id != ROOT).collect();
        for id in strange {
            let Some(node) = self.nodes.get(id) else { continue };
            let (device, inode) = (node.identity.device, node.identity.inode);
            match devices.get(&device) {
                Some(found) if *found == device => {}
                Some(found) if self.nodes.identify(id, Identity { device: *found, inode }) => {}
                // Two that are one now, or of a file system of which no root was listed.
                _ => self.nodes.estrange(id),
            }
        }
        Ok(())
    }

    /// Watches a directory as soon as it is met at a restart, before it is listed.
    pub(super) fn watch_early(&mut self, identity: Identity, fd: &std::os::fd::OwnedFd) {
        if self.restart.is_some() {
            let watch = self.add_watch(fd);
            if let Some(restart) = &mut self.restart {
                restart.watches.insert(identity, watch);
            }
        }
    }

    /// Gives the watches to the directories that are known by now.
    pub(super) fn take_watches(&mut self, restart: &mut Restart) {
        for (identity, watch) in std::mem::take(&mut restart.watches) {
            match (self.nodes.by_identity(identity), watch) {
                (Some(id), Ok(watch)) => self.nodes.set_watch(id, watch),
                (Some(id), Err(error)) => self.is_unwatched(id, &error),
                (None, Ok(watch)) => _ = self.inotify.watches().remove(watch),
                (None, Err(_)) => {}
            }
        }
    }

    /// Keeps in mind what was in a directory that is lost: it may be elsewhere.
    pub(super) fn remember_lost(&self, id: NodeId, restart: &mut Restart) {
        if !restart.doubtful.contains(&id)
            && let Some(extent) = self.keeper.as_ref().and_then(|keeper| keeper.listings.get(&id))
            && let Some(path) = self.nodes.path(id)
        {
            restart.lost.push_back((path, *extent));
        }
    }

    /// No file can be said to have moved any more: events were lost.
    pub(super) fn doubt_moves(&mut self) {
        if let Some(restart) = &mut self.restart {
            restart.gave_up = true;
        }
    }

    /// Goes on with what comes after all comparisons; nothing is queued.
    pub(super) fn finish_restart(&mut self, deadline: Instant) {
        let Some(mut restart) = self.restart.take() else { return };
        while let Some((path, extent)) = restart.lost.pop_front() {
            self.miss_lost(&path, extent, &mut restart);
            if Instant::now() >= deadline {
                self.restart = Some(restart);
                return;
            }
        }
        let mut plan = match restart.plan.take() {
            Some(plan) => plan,
            None => self.plan(&mut restart),
        };
        while let Some(group) = plan.groups.pop_front() {
            self.tell_group(&group, &plan, &mut restart);
            if Instant::now() >= deadline {
                restart.plan = Some(plan);
                self.restart = Some(restart);
                return;
            }
        }
        while let Some((path, what)) = plan.left.pop() {
            self.dirty(path, what);
        }
        tracing::info!(
            "{}: compared with the catalog, going on in the same epoch ({} files were renamed)",
            self.root.path().display(),
            restart.renames
        );
    }

    /// Files in a lost directory are gone with it, or elsewhere.
    fn miss_lost(&self, path: &TreePath, extent: Extent, restart: &mut Restart) {
        let catalog = self.keeper.as_ref().and_then(|keeper| keeper.current.as_ref());
        let Some(Ok(listing)) = catalog.map(|catalog| catalog.listing(extent)) else { return };
        for file in listing.files {
            let device = self.root_identity.device;
            if let Some((key, End { size, mtime, .. })) =
                key_of(&file.stamp, device).filter(|_| !restart.gave_up)
            {
                let place = Origin::Lost(path.join(&file.name));
                // What finds no room is told by the removal of the directory.
                let _ = restart.moves.goes(key, End { place, size, mtime });
            }
        }
    }

    fn plan(&self, restart: &mut Restart) -> Plan {
        let Paired { pairs, gone, came } = std::mem::take(&mut restart.moves).pair();
        let path_of = |from: Origin| match from {
            Origin::Place(place) => self.path_of(&place),
            Origin::Lost(path) => Some(path),
        };
        let mut left: Vec<(TreePath, What)> = Vec::new();
        left.extend(gone.into_iter().filter_map(|from| match from {
            Origin::Place(place) => Some((self.path_of(&place)?, What::CONTENT)),
            Origin::Lost(_) => None,
        }));
        left.extend(
            came.into_iter().filter_map(|(place, what)| Some((self.path_of(&place)?, what))),
        );
        let mut ends = Vec::new();
        for (from, to) in pairs {
            let is_same = (from.size, from.mtime) == (to.size, to.mtime);
            let (place, _) = to.place;
            let (from, to) = (path_of(from.place), self.path_of(&place));
            let what = if is_same { What::COMPARE } else { What::CONTENT };
            match (from, to) {
                (Some(from), Some(to)) if !from.is_related(&to) => ends.push((from, to, what)),
                (from, to) => {
                    left.extend(from.map(|from| (from, What::CONTENT)));
                    left.extend(to.map(|to| (to, What::CONTENT)));
                }
            }
        }
        let moves: Vec<(TreePath, TreePath)> =
            ends.iter().map(|(from, to, _)| (from.clone(), to.clone())).collect();
        let groups = order(&moves);
        let ordered: FxHashSet<usize> =
            groups.iter().flatten().flat_map(|(_, completes)| completes).copied().collect();
        let unordered = (0..ends.len()).filter(|number| !ordered.contains(number));
        for (from, to, _) in unordered.map(|number| &ends[number]) {
            left.extend([(from.clone(), What::CONTENT), (to.clone(), What::CONTENT)]);
        }
        Plan { groups: groups.into(), ends, left }
    }

    /// Journals moves that depend on each other, if nothing was heard of any of their ends.
    fn tell_group(&mut self, group: &[Step], plan: &Plan, restart: &mut Restart) {
        let ends = || {
            let numbers = group.iter().flat_map(|(_, completes)| completes);
            numbers.map(|number| &plan.ends[*number])
        };
        // The names that are there only between two renames.
        let asides: Vec<&TreePath> = group
            .iter()
            .filter(|(_, completes)| completes.is_empty())
            .filter_map(|(change, _)| change.ends().map(|(_, aside)| aside))
            .collect();
        let is_free = |aside: &TreePath| {
            let name = aside.as_bytes().to_vec();
            self.identity_at(&Place { directory: ROOT, name }).is_none()
        };
        let is_true = !restart.gave_up
            && asides.iter().all(|aside| is_free(aside))
            && ends().all(|(from, to, _)| {
                [from, to].iter().all(|path| {
                    !restart.named.contains(*path)
                        && !restart.renamed.iter().any(|end| end.is_related(path))
                })
            });
        if is_true {
            restart.renames += ends().count();
            for (change, _) in group {
                self.journal_move(change.clone());
            }
            for aside in asides {
                self.dirty(aside.clone(), What::CONTENT);
            }
        }
        let targets: FxHashSet<&TreePath> = ends().map(|(_, to, _)| to).collect();
        for (from, to, what) in ends() {
            // Where another one came, that is told.
            if !targets.contains(from) {
                self.dirty(from.clone(), What::CONTENT);
            }
            self.dirty(to.clone(), if is_true { *what } else { What::CONTENT });
        }
    }
}

impl Restart {
    /// Notes what an event told.
    pub(super) fn note_dirty(&mut self, path: &TreePath, what: What) {
        if self.gave_up || !what.covers(What::NAME) {
            return;
        }
        self.named.insert(path.clone());
        self.gave_up = self.named.len() > SENT_PATHS_MAX;
    }

    /// Notes a rename that was seen as it happened.
    pub(super) fn note_move(&mut self, change: &Change) {
        if let Some((from, to)) = change.ends() {
            self.renamed.extend([from.clone(), to.clone()]);
            self.gave_up |= self.renamed.len() > RENAMED_MAX;
        }
    }

    /// Returns whether the journal spoke of what is in a directory since it was listed.
    pub(super) fn is_doubtful(&self, directory: NodeId) -> bool {
        self.doubtful.contains(&directory)
    }

    /// Notes that a file in a directory is missed. Returns `false` if it must be told at once.
    pub(super) fn misses(&mut self, place: &Place, file: (FileKey, End<()>)) -> bool {
        let (key, End { size, mtime, .. }) = file;
        if self.gave_up || self.doubtful.contains(&place.directory) {
            return false;
        }
        let place = Origin::Place(place.clone());
        self.moves.goes(key, End { place, size, mtime }).is_ok()
    }

    /// Notes that a file is where it was not. Returns `false` if it must be told at once.
    pub(super) fn meets(&mut self, place: &Place, what: What, file: (FileKey, End<()>)) -> bool {
        let (key, End { size, mtime, .. }) = file;
        let place = (place.clone(), what);
        !self.gave_up && self.moves.comes(key, End { place, size, mtime }).is_ok()
    }
}
