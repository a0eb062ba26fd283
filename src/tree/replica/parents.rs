//! The directories that entries are put into.
//!
//! The last one is kept open, for changes come in runs. What is kept is true as long as only
//! this replica changes the tree: whatever moves or removes a directory forgets it.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::{AtFlags, Mode, OFlags};
use rustix::io::Errno;

use super::Replica;
use super::error::{ApplyError, At};
use crate::model::TreePath;
use crate::tree::metadata::{chmod_handle, file_type, mode_bits};
use crate::tree::root::{open_beneath, stat_fd};
use crate::wire::Item;

/// An open directory.
#[derive(Debug)]
pub(super) struct Parent {
    /// Path of the directory, of which it is true that it is there, or will be when published.
    pub(super) path: Vec<u8>,
    /// Its descriptor.
    pub(super) fd: OwnedFd,
    /// Whether nobody sees it yet.
    pub(super) staged: bool,
    /// Whether nothing can be renamed into it from the stage: it is of another mount.
    foreign: AtomicBool,
}

impl Parent {
    pub(super) fn new(path: &[u8], fd: OwnedFd, staged: bool) -> Arc<Self> {
        Arc::new(Parent { path: path.to_vec(), fd, staged, foreign: AtomicBool::new(false) })
    }

    /// Returns the path of the entry `name` in it.
    pub(super) fn child(&self, name: &[u8]) -> Vec<u8> {
        let mut path = Vec::with_capacity(self.path.len() + 1 + name.len());
        path.extend_from_slice(&self.path);
        if !path.is_empty() {
            path.push(b'/');
        }
        path.extend_from_slice(name);
        path
    }

    pub(super) fn is_foreign(&self) -> bool {
        self.foreign.load(Ordering::Relaxed)
    }

    pub(super) fn set_foreign(&self) {
        self.foreign.store(true, Ordering::Relaxed);
    }
}

impl Replica {
    /// Opens the directory that `path` is in. Missing ones are made, as placeholders which
    /// the upstream is asked about.
    pub(super) fn parent(&mut self, path: &TreePath) -> Result<Arc<Parent>, ApplyError> {
        let Some((directory, _)) = path.split_bytes() else { return Ok(self.top.clone()) };
        match self.open_parent(directory).at(path, "open the directory of")? {
            Some(parent) => Ok(parent),
            None => self.make_parents(directory).at(path, "make the directory of"),
        }
    }

    /// Opens the directory that `path` is in, `None` if there is none.
    pub(super) fn parent_if_present(
        &mut self,
        path: &TreePath,
    ) -> Result<Option<Arc<Parent>>, ApplyError> {
        let Some((directory, _)) = path.split_bytes() else { return Ok(Some(self.top.clone())) };
        self.open_parent(directory).at(path, "open the directory of")
    }

    fn open_parent(&mut self, directory: &[u8]) -> io::Result<Option<Arc<Parent>>> {
        if directory.is_empty() {
            return Ok(Some(self.top.clone()));
        }
        if let Some(staged) = &self.staged
            && staged.parent.path == directory
        {
            return Ok(Some(staged.parent.clone()));
        }
        if let Some(cached) = &self.cached
            && cached.path == directory
        {
            return Ok(Some(cached.clone()));
        }
        match self.root.open_directory_bytes(directory) {
            Ok(fd) => {
                let parent = Parent::new(directory, fd, false);
                self.cached = Some(parent.clone());
                Ok(Some(parent))
            }
            Err(error) if leads_nowhere(&error) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Makes what is missing of `directory`, whatever is in the way of it.
    fn make_parents(&mut self, directory: &[u8]) -> io::Result<Arc<Parent>> {
        let mut current = self.top.clone();
        let mut made = false;
        for name in directory.split(|byte| *byte == b'/') {
            let flags = OFlags::RDONLY | OFlags::DIRECTORY;
            let path = current.child(name);
            let fd = match open_beneath(current.fd.as_fd(), name, flags) {
                Ok(fd) => fd,
                Err(error) if leads_nowhere(&error.into()) => {
                    self.touch(&current, None)?;
                    self.produce(&current, name, |fd, temporary, _| {
                        Ok(rustix::fs::mkdirat(fd, temporary, Mode::RWXU)?)
                    })?;
                    if !made && let Ok(path) = TreePath::new(&path[..]) {
                        self.owed.push((path, false));
                        made = true;
                    }
                    open_beneath(current.fd.as_fd(), name, flags)?
                }
                Err(error) => return Err(error.into()),
            };
            current = Parent::new(&path, fd, false);
        }
        self.cached = Some(current.clone());
        Ok(current)
    }

    /// Forgets what is kept of `path` and everything below it.
    pub(super) fn forget_under(&mut self, path: &[u8]) {
        self.pending.forget_under(path);
        self.cached = None;
    }

    /// Adds the permissions that we lack on directories of our own on the way to what `item`
    /// names. Returns whether there were any; they are taken back by a flush.
    pub(super) fn lift_for(&mut self, item: &Item) -> Result<bool, ApplyError> {
        let mut lifted = false;
        match item {
            Item::Rename { from: a, to: b, .. } | Item::Exchange { a, b, .. } => {
                lifted |= self.lift(a)?;
                lifted |= self.lift(b)?;
            }
            Item::State { path, links, .. } => {
                for path in links.iter().chain([path]) {
                    lifted |= self.lift(path)?;
                }
            }
            Item::Absent { path, .. } | Item::Names { path, .. } => lifted = self.lift(path)?,
            _ => {}
        }
        Ok(lifted)
    }

    /// As [`Replica::lift_for`], for `path` and the directories above it.
    pub(super) fn lift(&mut self, path: &TreePath) -> Result<bool, ApplyError> {
        let mut lifted = false;
        let ancestors: Vec<&[u8]> = path.self_and_ancestors().collect();
        for ancestor in ancestors.into_iter().rev() {
            let flags = OFlags::PATH | OFlags::DIRECTORY;
            let handle = match self.root.open_beneath_bytes(ancestor, flags) {
                Ok(handle) => handle,
                Err(error) if leads_nowhere(&error) => break,
                Err(error) => return Err(error).at(path, "open a directory of"),
            };
            let stat = stat_fd(&handle).at(path, "look at a directory of")?;
            let mode = mode_bits(&stat);
            if file_type(&stat).is_dir() && stat.stx_uid == self.owner.0 && mode & 0o700 != 0o700 {
                chmod_handle(&handle, mode | 0o700).at(path, "open up a directory of")?;
                self.pending.lift(ancestor, mode);
                lifted = true;
            }
        }
        Ok(lifted)
    }
}

/// Opens a handle on the entry `name` itself, `None` if there is none.
pub(super) fn open_handle(parent: &Parent, name: &[u8]) -> io::Result<Option<OwnedFd>> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    match rustix::fs::openat(&parent.fd, name, flags, Mode::empty()) {
        Ok(handle) => Ok(Some(handle)),
        Err(Errno::NOENT) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Returns the status of the entry `name` itself, `None` if there is none.
pub(super) fn stat_if_present(
    parent: &Parent,
    name: &[u8],
) -> io::Result<Option<rustix::fs::Statx>> {
    match crate::tree::root::stat_at(&parent.fd, name) {
        Ok(stat) => Ok(Some(stat)),
        Err(Errno::NOENT) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Whether a path could not be opened because it, or a directory on the way, is not there.
pub(super) fn leads_nowhere(error: &io::Error) -> bool {
    matches!(Errno::from_io_error(error), Some(Errno::NOENT | Errno::NOTDIR | Errno::LOOP))
}

/// Removes the entry `name`, which is no directory.
pub(super) fn unlink(directory: impl std::os::fd::AsFd, name: &[u8]) -> rustix::io::Result<()> {
    rustix::fs::unlinkat(directory, name, AtFlags::empty())
}
