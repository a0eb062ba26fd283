//! Comparing what is known of directories with what is there, one directory at a time.
//!
//! A look watches first and lists second. It is used only if no rename came in meanwhile, so
//! what it finds is believed: nothing is queued that could explain it otherwise.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::Instant;

use inotify::WatchDescriptor;
use rustc_hash::FxHashSet;
use rustix::fs::{FileType, OFlags, Statx, StatxAttributes};

use super::events::is_reserved;
use super::nodes::{NodeId, Place, ROOT};
use super::{Event, Watch, wall_clock, watch_mask};
use crate::model::{Identity, Timestamp, TreePath, What};
use crate::tree::metadata::timestamp;
use crate::tree::reader::{is_absent, list_directory};
use crate::tree::root::{identity_of, open_beneath, stat_at, stat_fd};

/// A name to be looked at.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Look {
    /// The root itself.
    Root,
    /// This name.
    At(Place),
}

/// Coarse clocks and times that are set back make a moment uncertain by this much.
const CLOCK_SLACK_SECONDS: i64 = 2;

impl Watch {
    /// Has the name of a directory looked at when nothing is queued.
    pub(super) fn look_again(&mut self, id: NodeId) {
        let look = match self.nodes.get(id) {
            Some(node) if id != ROOT => {
                Look::At(Place { directory: node.parent, name: node.name.to_vec() })
            }
            _ => Look::Root,
        };
        if self.looks.last() != Some(&look) {
            self.looks.push(look);
        }
    }

    pub(super) fn look(&mut self, look: Look) {
        match look {
            Look::Root => {
                let was_missed = self.missed.remove(&Look::Root);
                match self.root.open_directory(&TreePath::root()) {
                    Ok(fd) if self.nodes.get(ROOT).is_some_and(|root| root.watch.is_none()) => {
                        self.discover(ROOT, None, fd, self.root_identity, Look::Root);
                    }
                    Ok(_) => {}
                    Err(error) => self.miss(Look::Root, was_missed, &TreePath::root(), &error),
                }
            }
            Look::At(place) => self.look_at(place),
        }
    }

    fn look_at(&mut self, place: Place) {
        let look = Look::At(place.clone());
        let was_missed = self.missed.remove(&look);
        // Without a path, the directory is gone from the tree.
        let Some(parent) = self.nodes.path(place.directory) else { return };
        if is_reserved(&place) || self.is_too_long(&parent.join(&place.name)) {
            return;
        }
        let known = self.nodes.get(place.directory).map(|node| node.identity);
        let directory = match self.root.open_directory(&parent) {
            Ok(directory) => directory,
            Err(error) if is_absent(&error) => return self.not_there(place.directory),
            Err(error) => return self.miss(look, was_missed, &parent, &error),
        };
        match stat_fd(&directory) {
            Ok(stat) if known == Some(identity_of(&stat)) => {}
            Ok(_) => return self.not_there(place.directory),
            Err(error) => return self.miss(look, was_missed, &parent, &error.into()),
        }
        let node = self.nodes.child(place.directory, &place.name);
        let path = parent.join(&place.name);
        let stat = match stat_at(&directory, &place.name) {
            Ok(stat) => Some(stat).filter(is_directory),
            Err(rustix::io::Errno::NOENT) => None,
            Err(error) => return self.miss(look, was_missed, &path, &error.into()),
        };
        let Some(stat) = stat else {
            if let Some(node) = node {
                self.drop_node(node);
                self.dirty_place(&place, What::CONTENT);
            }
            return;
        };
        let identity = identity_of(&stat);
        let elsewhere = self.nodes.by_identity(identity);
        let first = elsewhere.filter(|first| self.is_also_in_place(*first, &place));
        if let Some(first) = first {
            if self.may_have_moved() {
                return self.looks.push(look);
            }
            if !self.is_better_place(&place, &stat, first) {
                return self.hold_alias(place, first);
            }
            // It is known from here on, and the other place is held when it is looked at.
            self.look_again(first);
        }
        self.aliases.remove(&place);
        if let Some(node) = node
            && let Some(known) = self.nodes.get(node)
        {
            if known.identity == identity
                && (known.watch.is_some() || self.unwatched.contains(&node))
            {
                return;
            }
            if known.identity.device != identity.device {
                return self.hold_below(node);
            }
            self.drop_node(node);
        }
        if let Some(elsewhere) = elsewhere {
            if self.nodes.is_above(elsewhere, place.directory) {
                return; // A directory cannot be below itself: an event explains, later.
            }
            // Nothing is queued, so the listing is believed.
            if let Some(path) = self.nodes.path(elsewhere) {
                self.dirty(path, What::CONTENT);
            }
            self.drop_node(elsewhere);
        }
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW;
        let opened = open_beneath(std::os::fd::AsFd::as_fd(&directory), &place.name, flags);
        match opened {
            Ok(fd) if stat_fd(&fd).is_ok_and(|stat| identity_of(&stat) == identity) => {
                self.discover(place.directory, Some(&place.name), fd, identity, look);
            }
            Ok(_) => self.looks.push(look),
            Err(error) if is_absent(&error.into()) => self.dirty_place(&place, What::CONTENT),
            Err(error) => {
                self.dirty_place(&place, What::CONTENT);
                self.miss(look, was_missed, &path, &error.into());
            }
        }
    }

    /// What cannot be looked at stays as it is downstream (I8), and is looked at again.
    fn miss(&mut self, look: Look, was_missed: bool, path: &TreePath, error: &io::Error) {
        self.comes_again(was_missed, path, error);
        self.missed.insert(look);
    }

    /// As [`Watch::miss`], for the changes since a moment in a directory that is known.
    pub(super) fn miss_changes(
        &mut self,
        id: NodeId,
        since: Timestamp,
        was_missed: bool,
        path: &TreePath,
        error: &io::Error,
    ) {
        self.comes_again(was_missed, path, error);
        self.unread.insert(id, since);
    }

    fn comes_again(&mut self, was_missed: bool, path: &TreePath, error: &io::Error) {
        if !was_missed {
            tracing::warn!(
                "{path}: {error}; what is in it is left as it is downstream, and looked at again \
                 until it can be read"
            );
        }
        if !self.misses() {
            self.missed_at = Instant::now() + super::MISSED_INTERVAL;
        }
    }

    /// Watches and lists a directory that is new: the root, or `name` in `parent`. What is in
    /// it becomes dirty, and is looked at in turn.
    pub(super) fn discover(
        &mut self,
        parent: NodeId,
        name: Option<&[u8]>,
        fd: OwnedFd,
        identity: Identity,
        look: Look,
    ) {
        let watch = self.add_watch(&fd);
        let mut entries = Vec::new();
        let mut buffer = std::mem::take(&mut self.list_buffer);
        let listed = list_directory(&fd, &mut buffer, |name, _| {
            match stat_at(&fd, name) {
                Ok(stat) => entries.push((name.to_vec(), stat)),
                // It is gone: its event tells, or the listing it vanished from is repeated.
                Err(rustix::io::Errno::NOENT) => {}
                Err(error) => return Err(error.into()),
            }
            Ok(())
        });
        self.list_buffer = buffer;
        if let Some(hook) = &mut self.on_listed {
            hook();
        }
        let before = self.events.len();
        self.read_events();
        if self.events_lost || self.events.iter().skip(before).any(Event::moves_directory) {
            // It may not be where it was listed. Its watch goes, and it is looked at again.
            if let Ok(watch) = watch
                && self.nodes.by_watch(watch.get_watch_descriptor_id()).is_none()
            {
                let _ = self.inotify.watches().remove(watch);
            }
            self.looks.push(look);
            return;
        }
        let stat = stat_fd(&fd);
        let birth = stat.as_ref().map(|stat| timestamp(stat.stx_btime)).unwrap_or_default();
        let is_mount = stat.is_ok_and(|stat| self.is_mount(&stat, parent));
        let id = match name {
            Some(name) => self.nodes.insert(parent, name, identity, birth, is_mount),
            None => {
                self.nodes.set_root_birth(birth);
                ROOT
            }
        };
        self.touch(id);
        match watch {
            Ok(watch) => self.nodes.set_watch(id, watch),
            Err(error) => self.is_unwatched(id, &error),
        }
        let Some(path) = self.nodes.path(id) else { return };
        self.dirty(path.clone(), What::CONTENT);
        if let Err(error) = listed
            && !is_absent(&error)
        {
            // All that is in it is new. If it was removed meanwhile, an event tells.
            self.miss_changes(id, Timestamp::default(), false, &path, &error);
        }
        let mut directories = Vec::new();
        for (name, stat) in entries {
            let place = Place { directory: id, name };
            if is_reserved(&place) {
                continue;
            }
            if is_directory(&stat) {
                directories.push(Look::At(place));
                continue;
            }
            self.links.note(&place, identity_of(&stat), stat.stx_nlink);
            self.dirty(path.join(&place.name), What::CONTENT);
        }
        self.looks.extend(directories.into_iter().rev());
        if let Some((since, left)) = self.links.directory_comes(id, identity) {
            let since = since.earlier_by_seconds(CLOCK_SLACK_SECONDS);
            for left in left {
                if self.stat_of(&left).is_some_and(|stat| timestamp(stat.stx_ctime) >= since) {
                    self.dirty_place(&left, What::CONTENT);
                }
            }
        }
    }

    /// Returns whether a directory in `parent` is another file system's, or is mounted there.
    pub(super) fn is_mount(&self, stat: &Statx, parent: NodeId) -> bool {
        let device = self.nodes.get(parent).map(|parent| parent.identity.device);
        stat.stx_attributes.contains(StatxAttributes::MOUNT_ROOT)
            || device != Some(identity_of(stat).device)
    }

    pub(super) fn add_watch(&mut self, fd: &OwnedFd) -> io::Result<WatchDescriptor> {
        // By its descriptor: no path can lead elsewhere, and none is too long.
        let path = format!("/proc/self/fd/{}/.", fd.as_raw_fd());
        self.inotify.watches().add(path, watch_mask())
    }

    pub(super) fn is_unwatched(&mut self, id: NodeId, error: &io::Error) {
        if self.unwatched.is_empty() {
            let is_limit = error.raw_os_error() == Some(rustix::io::Errno::NOSPC.raw_os_error());
            let reason = if is_limit {
                "the limit of inotify watches is reached (raise it: sysctl \
                 fs.inotify.max_user_watches=1048576)"
            } else {
                &error.to_string()
            };
            tracing::warn!(
                "{}: not all directories can be watched: {reason}; until they can, the others are \
                 looked through every {} s or more (degraded)",
                self.root.path().display(),
                super::DEGRADED_INTERVAL.as_secs()
            );
            self.degraded_at = Instant::now() + super::DEGRADED_INTERVAL;
            self.degraded_since = wall_clock();
        }
        self.unwatched.insert(id);
    }

    /// Has what is listed together in the catalog compared together.
    pub(super) fn sort_sweeps(&mut self) {
        if let Some(keeper) = &self.keeper {
            let key = |(id, _): &(NodeId, Timestamp)| (keeper.listings.get(id).copied(), *id);
            self.sweeps.make_contiguous().sort_by_cached_key(key);
        }
    }

    /// A directory is not where it is known to be, and nothing is queued.
    fn not_there(&mut self, id: NodeId) {
        if id == ROOT {
            return; // Whether the root is in its place is asked elsewhere.
        }
        let Some(node) = self.nodes.get(id) else { return };
        let place = Place { directory: node.parent, name: node.name.to_vec() };
        self.looks.push(Look::At(place));
    }

    /// Looks through one directory for what changed since a moment, and for unknown or missing
    /// directories. What it finds are hints as events are, so nothing has to be checked.
    pub(super) fn sweep(&mut self, id: NodeId, since: Timestamp) {
        if self.uncompared.contains(&id) {
            return self.compare(id);
        }
        let missed_since = self.unread.remove(&id);
        let Some(path) = self.nodes.path(id) else { return };
        let Some(identity) = self.nodes.get(id).map(|node| node.identity) else { return };
        let unknown_since = missed_since.map_or(since, |missed| missed.min(since));
        let was_missed = missed_since.is_some();
        let since = unknown_since.earlier_by_seconds(CLOCK_SLACK_SECONDS);
        let opened = self.root.open_directory(&path);
        let (fd, stat) = match opened.and_then(|fd| Ok((stat_fd(&fd)?, fd))) {
            Ok((stat, fd)) => (fd, stat),
            Err(error) if is_absent(&error) => return self.look_again(id),
            Err(error) => return self.miss_changes(id, unknown_since, was_missed, &path, &error),
        };
        if identity_of(&stat) != identity {
            return self.look_again(id);
        }
        if self.unwatched.contains(&id)
            && let Ok(watch) = self.add_watch(&fd)
        {
            // There is room for it now.
            self.nodes.set_watch(id, watch);
            self.unwatched.remove(&id);
            if self.unwatched.is_empty() {
                tracing::info!("{}: all directories are watched", self.root.path().display());
            }
        }
        // By its ctime: the mtime can be set back after a name was removed.
        if timestamp(stat.stx_ctime) >= since {
            self.touch(id);
            self.dirty(path.clone(), What::CONTENT);
        }
        let (mut found, mut unread) = (Vec::new(), Vec::new());
        let mut buffer = std::mem::take(&mut self.list_buffer);
        let listed = list_directory(&fd, &mut buffer, |name, _| {
            match stat_at(&fd, name) {
                Ok(stat) => found.push((name.to_vec(), stat)),
                Err(rustix::io::Errno::NOENT) => {}
                Err(_) => unread.push(name.to_vec()),
            }
            Ok(())
        });
        self.list_buffer = buffer;
        match listed {
            Ok(()) => {}
            Err(error) if is_absent(&error) => return self.look_again(id),
            Err(error) => return self.miss_changes(id, unknown_since, was_missed, &path, &error),
        }
        for name in unread {
            // Who reads it, or looks at it if it is a directory, meets the error and comes again.
            let place = Place { directory: id, name };
            self.dirty_place(&place, What::CONTENT);
            self.looks.push(Look::At(place));
        }
        let directories: FxHashSet<&[u8]> = found
            .iter()
            .filter(|(_, stat)| is_directory(stat))
            .map(|(name, _)| &name[..])
            .collect();
        let known = self.nodes.children(id).map(|(name, _)| name);
        let missing = known.filter(|name| !directories.contains(name));
        let missing = missing.map(|name| Look::At(Place { directory: id, name: name.to_vec() }));
        self.looks.extend(missing.collect::<Vec<_>>());
        // All names of a file at once: to tell all of them for each would cost the square of
        // their number.
        let mut told = FxHashSet::default();
        for (name, stat) in &found {
            if timestamp(stat.stx_ctime) >= since && !is_directory(stat) {
                let place = Place { directory: id, name: name.clone() };
                if !is_reserved(&place) {
                    self.links.note(&place, identity_of(stat), stat.stx_nlink);
                }
            }
        }
        for (name, stat) in found {
            let place = Place { directory: id, name };
            if is_reserved(&place) {
                continue;
            }
            if is_directory(&stat) {
                let known = self.nodes.child(id, &place.name).and_then(|node| self.nodes.get(node));
                if known.is_none_or(|known| known.identity != identity_of(&stat)) {
                    self.looks.push(Look::At(place));
                }
            } else if timestamp(stat.stx_ctime) >= since
                && (stat.stx_nlink == 1 || told.insert(identity_of(&stat)))
            {
                // Written this moment, it may be half written: the event that says it is whole
                // may be lost, or still to come.
                self.touch(id);
                let is_warm = timestamp(stat.stx_mtime) >= wall_clock().earlier_by_seconds(1);
                if !is_warm || !self.unsettled.touch(place.clone(), Instant::now()) {
                    self.dirty_place(&place, What::CONTENT);
                }
            }
        }
    }
}

pub(super) fn is_directory(stat: &Statx) -> bool {
    FileType::from_raw_mode(stat.stx_mode.into()) == FileType::Directory
}
