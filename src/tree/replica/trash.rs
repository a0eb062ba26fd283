//! Emptying the trash, a bounded piece at a time.
//!
//! A directory in the trash is emptied by moving the directories in it up into the trash, so
//! that no depth is ever descended into and one can stop after any entry.

use std::io;
use std::os::fd::AsFd;

use rustix::fs::{AtFlags, Mode, OFlags};
use rustix::io::Errno;

use super::Replica;
use super::names::list_some;
use super::parents::unlink;
use super::place::{open_to_empty, open_up};

impl Replica {
    /// Does a bounded piece of removing what is in the trash, about `entries_max` entries.
    /// Returns whether there is more that can be removed.
    pub fn empty_trash(&mut self, entries_max: usize) -> bool {
        match self.try_empty_trash(entries_max) {
            Ok(more) => more,
            Err(error) => {
                // It costs space and nothing else; the next start tries again.
                tracing::debug!("cannot empty the trash: {error}");
                false
            }
        }
    }

    fn try_empty_trash(&self, entries_max: usize) -> io::Result<bool> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let trash = rustix::fs::openat(&self.trash, ".", flags, Mode::empty())?;
        let mut left = entries_max.max(1);
        let mut progress = false;
        for (name, is_directory) in list_some(&trash, left)? {
            if left == 0 {
                break;
            }
            let removed = if is_directory {
                self.empty_directory(&name, &mut left)
            } else {
                left -= 1;
                unlink(&self.trash, &name).map_err(io::Error::from)
            };
            match removed {
                Ok(()) => progress = true,
                Err(error) => tracing::debug!("cannot remove {}: {error}", name.escape_ascii()),
            }
        }
        // Directories were moved up behind us; only another look tells. Without any progress
        // another turn would make none either.
        let trash = rustix::fs::openat(&self.trash, ".", flags, Mode::empty())?;
        Ok(progress && !list_some(&trash, 1)?.is_empty())
    }

    /// Removes what is in the directory `name` of the trash, as far as `left` entries go, and
    /// then itself if it is empty. At least one entry of the budget must be `left`, so that
    /// something goes in every turn.
    fn empty_directory(&self, name: &[u8], left: &mut usize) -> io::Result<()> {
        match rustix::fs::unlinkat(&self.trash, name, AtFlags::REMOVEDIR) {
            Err(Errno::NOTEMPTY | Errno::EXIST) => {}
            result => {
                *left -= 1;
                return Ok(result?);
            }
        }
        let directory = open_to_empty(self.trash.as_fd(), name)?;
        if open_up_needed(&directory) {
            open_up(self.trash.as_fd(), name)?;
        }
        let entries = list_some(&directory, *left + 1)?;
        for (entry, is_directory) in entries {
            if *left == 0 {
                return Ok(());
            }
            *left -= 1;
            if is_directory {
                self.dispose(directory.as_fd(), &entry)?;
            } else {
                unlink(&directory, &entry)?;
            }
        }
        Ok(rustix::fs::unlinkat(&self.trash, name, AtFlags::REMOVEDIR)?)
    }
}

/// Whether even its owner may not change the directory.
fn open_up_needed(directory: impl AsFd) -> bool {
    crate::tree::root::stat_fd(directory).is_ok_and(|stat| stat.stx_mode & 0o700 != 0o700)
}
