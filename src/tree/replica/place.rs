//! Putting entries in place, and what was there out of the way.
//!
//! An entry is made under a name in `.mirror/stage` and renamed, so that readers see the old
//! one or the new one and never a part. Where that directory is of another mount than the
//! target, the stage is a reserved name beside the target. Directories that go are moved to
//! `.mirror/trash` at once and emptied later.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{AtFlags, Mode, OFlags, RenameFlags};
use rustix::io::Errno;

use super::Replica;
use super::names::list;
use super::parents::{Parent, unlink};
use crate::model::path::STAGE_PREFIX;
use crate::tree::metadata::{chmod_handle, mode_bits};
use crate::tree::root::stat_fd;

impl Replica {
    /// Lets `make` create an entry under a temporary name in the directory that it is given,
    /// then puts it at `name`. Its third argument is whether that directory is not ours, so
    /// that the entry may have inherited what it must not have; in ours it inherits nothing.
    pub(super) fn produce(
        &mut self,
        parent: &Parent,
        name: &[u8],
        mut make: impl FnMut(BorrowedFd<'_>, &str, bool) -> io::Result<()>,
    ) -> io::Result<()> {
        if !parent.is_foreign() {
            let temporary = self.stage_name();
            let result = make(self.stage.as_fd(), &temporary, false)
                .and_then(|()| self.place(Stage::Own, &temporary, parent, name));
            match result {
                Ok(()) => return Ok(()),
                Err(error) => {
                    self.discard(&temporary);
                    if !is_other_mount(&error) {
                        return Err(error);
                    }
                }
            }
            parent.set_foreign();
        }
        let temporary = self.beside_name();
        let result = make(parent.fd.as_fd(), &temporary, true)
            .and_then(|()| self.place(Stage::Beside, &temporary, parent, name));
        if result.is_err() {
            let _ = unlink(&parent.fd, temporary.as_bytes());
            let _ = rustix::fs::unlinkat(&parent.fd, &temporary, AtFlags::REMOVEDIR);
        }
        result
    }

    /// Renames `temporary` to `name`, over whatever is there.
    pub(super) fn place(
        &mut self,
        stage: Stage,
        temporary: &str,
        parent: &Parent,
        name: &[u8],
    ) -> io::Result<()> {
        self.place_or_exchange(stage, temporary, parent, name).map(drop)
    }

    /// As [`Replica::place`]; returns whether the two changed places for it.
    pub(super) fn place_or_exchange(
        &mut self,
        stage: Stage,
        temporary: &str,
        parent: &Parent,
        name: &[u8],
    ) -> io::Result<bool> {
        let from = match stage {
            Stage::Own => self.stage.as_fd(),
            Stage::Beside => parent.fd.as_fd(),
        };
        match rustix::fs::renameat(from, temporary, &parent.fd, name) {
            Ok(()) => return Ok(false),
            // A kind of entry that cannot be renamed over the one that is there.
            Err(Errno::ISDIR | Errno::NOTDIR | Errno::NOTEMPTY | Errno::EXIST) => {}
            Err(error) => return Err(error.into()),
        }
        let exchanged =
            rustix::fs::renameat_with(from, temporary, &parent.fd, name, RenameFlags::EXCHANGE);
        match exchanged {
            Ok(()) => {
                self.forget_under(&parent.child(name));
                match stage {
                    Stage::Own => self.dispose(self.stage.as_fd(), temporary.as_bytes())?,
                    Stage::Beside => self.dispose(parent.fd.as_fd(), temporary.as_bytes())?,
                }
                Ok(true)
            }
            // Not every file system can exchange: then there is a moment without the entry.
            Err(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => {
                self.remove(parent, name)?;
                let from = match stage {
                    Stage::Own => self.stage.as_fd(),
                    Stage::Beside => parent.fd.as_fd(),
                };
                rustix::fs::renameat(from, temporary, &parent.fd, name)?;
                Ok(false)
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Removes the entry `name` of `parent`, however much is below it. Returns whether there
    /// was one.
    pub(super) fn remove(&mut self, parent: &Parent, name: &[u8]) -> io::Result<bool> {
        match unlink(&parent.fd, name) {
            Ok(()) => return Ok(true),
            Err(Errno::NOENT) => return Ok(false),
            Err(Errno::ISDIR) => {}
            Err(error) => return Err(error.into()),
        }
        self.forget_under(&parent.child(name));
        self.dispose(parent.fd.as_fd(), name)?;
        Ok(true)
    }

    /// Removes an entry of any kind; a directory that holds entries goes to the trash.
    pub(super) fn dispose(&self, directory: BorrowedFd<'_>, name: &[u8]) -> io::Result<()> {
        match unlink(directory, name) {
            Ok(()) | Err(Errno::NOENT) => return Ok(()),
            Err(Errno::ISDIR) => {}
            Err(error) => return Err(error.into()),
        }
        match rustix::fs::unlinkat(directory, name, AtFlags::REMOVEDIR) {
            Ok(()) | Err(Errno::NOENT) => return Ok(()),
            Err(Errno::NOTEMPTY | Errno::EXIST) => {}
            Err(error) => return Err(error.into()),
        }
        let trash_name = self.unique_name("");
        let moved = rustix::fs::renameat(directory, name, &self.trash, &trash_name);
        match moved {
            Ok(()) => Ok(()),
            // A directory that moves is written to, which its own mode may forbid.
            Err(Errno::ACCESS) => {
                open_up(directory, name)?;
                Ok(rustix::fs::renameat(directory, name, &self.trash, &trash_name)?)
            }
            Err(Errno::XDEV) => remove_tree(directory, name),
            Err(error) => Err(error.into()),
        }
    }

    /// Removes a stage that came to nothing.
    pub(super) fn discard(&self, temporary: &str) {
        // What stays behind by an error is removed at the next start.
        let _ = self.dispose(self.stage.as_fd(), temporary.as_bytes());
    }

    /// Returns a name that is not in the stage.
    pub(super) fn stage_name(&self) -> String {
        format!("{:x}", self.next_number())
    }

    /// Returns a reserved name that is in no directory.
    pub(super) fn beside_name(&self) -> String {
        self.unique_name(STAGE_PREFIX)
    }
}

/// Where a temporary name is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stage {
    /// In `.mirror/stage`.
    Own,
    /// In the target's directory, which is of another mount.
    Beside,
}

/// Returns whether a rename failed because it would cross from one mount to another.
pub(super) fn is_other_mount(error: &io::Error) -> bool {
    Errno::from_io_error(error) == Some(Errno::XDEV)
}

/// Gives ourselves all permissions on the directory `name`, which is about to go.
pub(super) fn open_up(directory: BorrowedFd<'_>, name: &[u8]) -> io::Result<()> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let handle = rustix::fs::openat(directory, name, flags, Mode::empty())?;
    chmod_handle(&handle, mode_bits(&stat_fd(&handle)?) | 0o700)
}

/// Removes a directory and everything below it where it is, for a mount that has no trash.
///
/// The way down is kept open so far as [`DEPTH_MAX`] allows; what is deeper takes another round
/// from the top for each piece of that depth.
fn remove_tree(directory: BorrowedFd<'_>, name: &[u8]) -> io::Result<()> {
    loop {
        // Each with its name and the directories in it that are still to be removed; of what
        // is above the first there is no descriptor any more.
        let mut way: VecDeque<(OwnedFd, Vec<u8>, Vec<Vec<u8>>)> = VecDeque::new();
        let mut is_whole = true;
        let mut next = Some(name.to_vec());
        loop {
            let at = way.back().map_or(directory, |(fd, ..)| fd.as_fd());
            if let Some(name) = next.take() {
                let current = open_to_empty(at, &name)?;
                let mut below = Vec::new();
                for (entry, is_directory) in list(&current)? {
                    if is_directory {
                        below.push(entry);
                    } else {
                        unlink(&current, &entry)?;
                    }
                }
                way.push_back((current, name, below));
                if way.len() > DEPTH_MAX {
                    way.pop_front();
                    is_whole = false;
                }
            }
            let Some((_, _, below)) = way.back_mut() else { break };
            next = below.pop();
            if next.is_none()
                && let Some((_, done, _)) = way.pop_back()
                && (is_whole || !way.is_empty())
            {
                let at = way.back().map_or(directory, |(fd, ..)| fd.as_fd());
                rustix::fs::unlinkat(at, &done[..], AtFlags::REMOVEDIR)?;
            }
        }
        if is_whole {
            return Ok(());
        }
    }
}

/// Most directories that are open at the same time while a tree is removed in place.
const DEPTH_MAX: usize = 64;

/// Opens a directory that is about to go, whatever its mode says.
pub(super) fn open_to_empty(directory: BorrowedFd<'_>, name: &[u8]) -> io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    match rustix::fs::openat(directory, name, flags, Mode::empty()) {
        Err(Errno::ACCESS) => {
            open_up(directory, name)?;
            Ok(rustix::fs::openat(directory, name, flags, Mode::empty())?)
        }
        opened => Ok(opened?),
    }
}

/// Opens a handle on the temporary entry that a `make` of [`Replica::produce`] created.
pub(super) fn handle_at(directory: BorrowedFd<'_>, name: &[u8]) -> io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(rustix::fs::openat(directory, name, flags, Mode::empty())?)
}
