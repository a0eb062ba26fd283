//! Files of which only a part may be here, for the source's was not finished when it was read.
//!
//! By a rename, a part could take the place of a whole file (I2). Which they are is not kept
//! over the end of the process: the upstream tells it at the beginning of each connection,
//! behind the renames that were missed. Until then any file may be a part.

use std::collections::HashMap;

use rustix::fs::Statx;

use super::Replica;
use super::error::ApplyError;
use crate::model::{Change, Identity, Timestamp, TreePath};
use crate::tree::metadata::{file_type, timestamp};
use crate::tree::root::{identity_of, stat_at};
use crate::wire::{Content, Item};

/// Most files that are remembered. Each is open for writing at the source.
const FILES_MAX: usize = 65_536;

/// See the module. Files are known by their inodes, so that renames need no attention, and by
/// their times of birth, for a part may go without a word and its inode's number be used again.
#[derive(Debug, Default)]
pub(super) struct Unfinished {
    ///
    /// With the name of each, as far as it is known, to tell others of it.
    files: HashMap<(Identity, Timestamp), TreePath>,
    /// Whether it was not told yet which they are.
    is_untold: bool,
    /// Whether there were too many to remember.
    is_overfull: bool,
}

impl Unfinished {
    /// Returns whether the file may be a part.
    pub fn may_be(&self, stat: &Statx) -> bool {
        file_type(stat).is_file()
            && (self.is_untold || self.is_overfull || self.files.contains_key(&born(stat)))
    }

    /// Forgets the file if the name at which it was seen, and now goes, is its only one.
    pub fn forget(&mut self, stat: &Statx) {
        if stat.stx_nlink == 1 {
            self.files.remove(&born(stat));
        }
    }

    fn note(&mut self, stat: &Statx, path: &TreePath) {
        self.is_overfull |= self.files.len() >= FILES_MAX;
        if file_type(stat).is_file() && !self.is_overfull {
            self.files.insert(born(stat), path.clone());
        }
    }

    fn follow(&mut self, change: &Change) {
        for path in self.files.values_mut() {
            *path = change.translate(path).unwrap_or(std::mem::take(path));
        }
    }
}

/// Returns which file a status is of, for all times where the file system knows births.
fn born(stat: &Statx) -> (Identity, Timestamp) {
    (identity_of(stat), timestamp(stat.stx_btime))
}

impl Replica {
    /// Says that a connection begins, at which it is told anew which files are unfinished.
    pub fn begin_connection(&mut self) {
        self.unfinished = Unfinished { is_untold: true, ..Unfinished::default() };
    }

    /// Notes what an item, which is about to be applied, says of unfinished files.
    pub(super) fn follow_unfinished(&mut self, item: &Item) -> Result<(), ApplyError> {
        match item {
            Item::Rename { from, to, .. } if !self.unfinished.files.is_empty() => {
                let (from, to) = (from.clone(), to.clone());
                self.unfinished.follow(&Change::Rename { from, to });
                return Ok(());
            }
            Item::Exchange { a, b, .. } if !self.unfinished.files.is_empty() => {
                self.unfinished.follow(&Change::Exchange { a: a.clone(), b: b.clone() });
                return Ok(());
            }
            Item::Rename { .. } | Item::Exchange { .. } => return Ok(()),
            Item::Unfinished { .. } => {}
            _ => self.unfinished.is_untold = false,
        }
        // What new content replaces is nobody's part any more.
        if let Item::State {
            path, content: Content::Inline { .. } | Content::Staged { .. }, ..
        }
        | Item::Absent { path, .. } = item
            && !self.unfinished.files.is_empty()
            && let Some(stat) = self.end(path)?.stat
        {
            self.unfinished.forget(&stat);
        }
        Ok(())
    }

    /// Notes that what is at `path` may be a part of a file.
    pub(super) fn note_unfinished(&mut self, path: &TreePath) -> Result<(), ApplyError> {
        if let Some(stat) = self.end(path)?.stat {
            self.unfinished.note(&stat, path);
        }
        Ok(())
    }

    /// Returns whether only a part of the file at `path` may be here.
    pub fn is_unfinished(&self, path: &TreePath) -> bool {
        let unfinished = &self.unfinished;
        if unfinished.files.is_empty() && !unfinished.is_untold && !unfinished.is_overfull {
            return false;
        }
        let Some((parent, name)) = path.split_bytes() else { return false };
        let stat = self.root.open_directory_bytes(parent);
        stat.and_then(|fd| Ok(stat_at(fd, name)?)).is_ok_and(|stat| unfinished.may_be(&stat))
    }

    /// Returns whether it was not told yet in this connection which they are.
    pub fn is_untold(&self) -> bool {
        self.unfinished.is_untold
    }

    /// Returns the files of which only a part may be here, by one name each.
    pub fn unfinished(&self) -> Vec<TreePath> {
        self.unfinished.files.values().cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tree::root::stat_fd;

    #[test]
    fn an_inode_that_is_used_again_is_another_file() {
        let file = tempfile::tempfile().unwrap();
        let stat = stat_fd(&file).unwrap();
        let mut unfinished = Unfinished::default();
        unfinished.note(&stat, &TreePath::root());
        assert!(unfinished.may_be(&stat));
        let mut other = stat;
        other.stx_btime.tv_nsec ^= 1;
        assert!(!unfinished.may_be(&other));
    }
}
