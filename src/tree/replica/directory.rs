//! Directories: existing ones, and new ones that are filled before anybody sees them.
//!
//! A new directory is made in the stage. Items for entries in it are carried out there in
//! place, and those for single files elsewhere pass by it; any other item publishes it first, so
//! that at most one directory is staged and the tree is as the items before made it wherever
//! something is looked at.

use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use super::error::{ApplyError, At};
use super::parents::{Parent, open_handle};
use super::place::{Stage, handle_at, is_other_mount};
use super::{Problem, Replica};
use crate::model::{Entry, Kind, Timestamp, TreePath};
use crate::tree::metadata::{self, Later, Made, file_type, timestamp};
use crate::tree::root::stat_fd;
use crate::wire::{Content, Item};

/// A directory that is not in place yet.
#[derive(Debug)]
pub(super) struct StagedDirectory {
    path: TreePath,
    temporary: String,
    /// Its descriptor, as the parent of what is put into it.
    pub(super) parent: Arc<Parent>,
    /// What it will be; its time follows what later items say.
    pub(super) entry: Entry,
    /// Names that it is said to have and that have not come yet.
    pub(super) awaited: usize,
    /// Whether nothing was put into it yet.
    pub(super) is_empty: bool,
}

impl StagedDirectory {
    /// Returns whether the entry at `path` is directly in the directory.
    pub(super) fn holds(&self, path: &TreePath) -> bool {
        path.split_bytes().is_some_and(|(parent, _)| parent == self.parent.path)
    }

    /// Returns whether `item` finds what it must and leaves what it must while the directory is
    /// not in place: it concerns one entry in it, or one that has nothing to do with it, or
    /// nothing in the tree at all.
    pub(super) fn is_kept_by(&self, item: &Item) -> bool {
        let is_apart = |path: &TreePath| self.holds(path) || !self.path.is_related(path);
        match item {
            Item::State { path, entry, content, links, .. } => {
                is_apart(path)
                    && links.is_empty()
                    && !matches!(content, Content::Linked)
                    && !matches!(entry.kind, Kind::Directory)
            }
            Item::Absent { path, .. } => is_apart(path),
            Item::Unfinished { path } => self.holds(path),
            Item::Names { path, .. } => *path == self.path,
            Item::Rename { .. } | Item::Exchange { .. } => false,
            Item::StageOpen { .. }
            | Item::StageData { .. }
            | Item::StageAbort { .. }
            | Item::Through { .. }
            | Item::Answered { .. }
            | Item::Digest { .. } => true,
        }
    }
}

impl Replica {
    /// Returns whether the directory at `path` is the staged one.
    pub(super) fn is_staged(&self, path: &[u8]) -> bool {
        self.staged.as_ref().is_some_and(|staged| staged.parent.path == path)
    }

    /// Returns whether a directory is being built of which something is still to come. A flush
    /// would show it as it is.
    pub fn is_building(&self) -> bool {
        self.staged.as_ref().is_some_and(|staged| staged.awaited > 0)
    }

    /// Makes `path` a directory with the attributes of `entry`.
    pub(super) fn put_directory(
        &mut self,
        path: &TreePath,
        entry: &Entry,
        parent_mtime: Option<Timestamp>,
    ) -> Result<(), ApplyError> {
        if path.is_root() {
            let top = self.top.clone();
            return self.fix_directory(path, top.fd.as_fd(), entry);
        }
        let parent = self.parent(path)?;
        let name = path.name().unwrap_or_default();
        if let Some(handle) = open_handle(&parent, name).at(path, "open")? {
            let stat = stat_fd(&handle).at(path, "look at")?;
            if file_type(&stat).is_dir() {
                if parent_mtime.is_some() {
                    self.touch(&parent, parent_mtime).at(path, "keep the time above")?;
                }
                return self.fix_directory(path, handle.as_fd(), entry);
            }
        }
        // By the time that this one is shown, another entry may have brought a later time.
        self.touch(&parent, parent_mtime).at(path, "keep the time of the directory of")?;
        let other_mount = parent.is_foreign() || {
            let there = stat_fd(&parent.fd).at(path, "look at the directory of")?;
            (there.stx_dev_major, there.stx_dev_minor) != self.device
        };
        if other_mount {
            parent.set_foreign();
            return self.put_directory_beside(path, entry, &parent);
        }
        let temporary = self.stage_name();
        // Nobody else gets there; so it has its mode already, as most have one that we can use.
        let mode = Mode::from_raw_mode(entry.metadata.mode & 0o777) | Mode::RWXU;
        rustix::fs::mkdirat(&self.stage, &temporary, mode).at(path, "make")?;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd =
            rustix::fs::openat(&self.stage, &temporary, flags, Mode::empty()).at(path, "open")?;
        self.staged = Some(StagedDirectory {
            path: path.clone(),
            temporary,
            parent: Parent::new(path.as_bytes(), fd, true),
            entry: entry.clone(),
            awaited: 0,
            is_empty: true,
        });
        Ok(())
    }

    /// Puts the staged directory, if there is one, in place with all that is in it. One that
    /// cannot be is given up and becomes a problem, for it must not keep other entries waiting.
    pub(super) fn publish(&mut self) {
        let Some(staged) = self.staged.take() else { return };
        let mut result = self.try_publish(&staged);
        if result.as_ref().is_err_and(|error| !self.privileged && error.is_denied())
            && self.lift(&staged.path).is_ok_and(|lifted| lifted)
        {
            result = self.try_publish(&staged);
        }
        if let Err(error) = result {
            self.discard(&staged.temporary);
            self.problems.push(Problem { error, content: true });
        }
    }

    fn try_publish(&mut self, staged: &StagedDirectory) -> Result<(), ApplyError> {
        let path = &staged.path;
        let wanted = &staged.entry.metadata;
        let made = self.made(wanted.mode & 0o777 | 0o700);
        let fd = staged.parent.fd.as_fd();
        self.refused += metadata::settle_new(fd, wanted, made).at(path, "set attributes of")?;
        // A directory that changes its parent is written to: without the permission, later.
        let mode_later = wanted.mode & 0o200 == 0 && !self.privileged;
        if mode_later {
            rustix::fs::fchmod(fd, Mode::RWXU).at(path, "set the mode of")?;
        }
        let parent = self.parent(path)?;
        let name = path.name().unwrap_or_default();
        self.touch(&parent, None).at(path, "keep the time of the directory of")?;
        let placed = self.place_or_exchange(Stage::Own, &staged.temporary, &parent, name);
        let exchanged = match placed {
            Err(error) if is_other_mount(&error) => {
                // What is in it cannot move along: it must come again, into the new place.
                self.discard(&staged.temporary);
                parent.set_foreign();
                self.put_directory_beside(path, &staged.entry, &parent)?;
                self.owed.push((path.clone(), true));
                return Ok(());
            }
            placed => placed.at(path, "put into place")?,
        };
        if mode_later {
            rustix::fs::fchmod(fd, Mode::from_raw_mode(wanted.mode)).at(path, "set the mode of")?;
        }
        // An exchange on xfs writes to the directories themselves that change their parents.
        self.pending.know(path.as_bytes(), wanted.mtime, exchanged);
        self.bound_pending();
        Ok(())
    }

    /// Makes a directory where nothing can be renamed to from the stage.
    fn put_directory_beside(
        &mut self,
        path: &TreePath,
        entry: &Entry,
        parent: &Parent,
    ) -> Result<(), ApplyError> {
        let mut refused = 0;
        self.produce(parent, path.name().unwrap_or_default(), |directory, temporary, _| {
            rustix::fs::mkdirat(directory, temporary, Mode::RWXU)?;
            let handle = handle_at(directory, temporary.as_bytes())?;
            let stat = stat_fd(&handle)?;
            refused += metadata::fix(handle.as_fd(), &stat, &entry.metadata, Later::default())?;
            Ok(())
        })
        .at(path, "make")?;
        self.refused += refused;
        self.pending.know(path.as_bytes(), entry.metadata.mtime, false);
        self.bound_pending();
        Ok(())
    }

    fn fix_directory(
        &mut self,
        path: &TreePath,
        handle: std::os::fd::BorrowedFd<'_>,
        entry: &Entry,
    ) -> Result<(), ApplyError> {
        let wanted = &entry.metadata;
        let stat = stat_fd(handle).at(path, "look at")?;
        let lifted = self.pending.change_lifted_mode(path.as_bytes(), wanted.mode);
        let later = Later { mode: lifted, mtime: true };
        self.refused +=
            metadata::fix(handle, &stat, wanted, later).at(path, "set attributes of")?;
        let disturbed = timestamp(stat.stx_mtime) != wanted.mtime;
        self.pending.know(path.as_bytes(), wanted.mtime, disturbed);
        self.bound_pending();
        Ok(())
    }

    /// Returns what an entry of `mode` has that was made in the stage.
    pub(super) fn made(&self, mode: u32) -> Made {
        Made { uid: self.owner.0, gid: self.owner.1, mode }
    }
}

/// Whether a name could not be made because it is there already.
pub(super) fn exists(error: &io::Error) -> bool {
    Errno::from_io_error(error) == Some(Errno::EXIST)
}
