//! Directories whose times, or lifted modes, are still to be set.
//!
//! Every change in a directory disturbs its time of modification, so the time that it must
//! have is remembered here and set when the changes are over. The map is bounded: beyond
//! [`DIRECTORIES_MAX`] the oldest is set early, and remembered anew if it is disturbed again.

use std::collections::HashMap;
use std::io;

use rustix::fs::OFlags;
use rustix::io::Errno;

use super::error::ApplyError;
use super::parents::Parent;
use super::{Problem, Replica};
use crate::model::{Timestamp, TreePath};
use crate::tree::metadata;
use crate::tree::root::stat_fd;

/// Most directories remembered.
pub(super) const DIRECTORIES_MAX: usize = 256;

/// What is to be set on one directory.
#[derive(Debug, Clone, Default)]
struct Pending {
    /// The time that it must have, if that is known.
    mtime: Option<Timestamp>,
    /// Whether it may have another one now.
    disturbed: bool,
    /// The mode that it must have again, if permissions were added for our own access.
    mode: Option<u32>,
    /// Order of insertion.
    number: u64,
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct PendingTimes {
    // Paths are chosen by a peer: the standard, keyed hash.
    directories: HashMap<Vec<u8>, Pending>,
    next_number: u64,
}

impl PendingTimes {
    /// Remembers `mtime` for the directory at `path`.
    pub(super) fn know(&mut self, path: &[u8], mtime: Timestamp, disturbed: bool) {
        let pending = self.entry(path);
        pending.mtime = Some(mtime);
        pending.disturbed |= disturbed;
    }

    /// Marks the directory as disturbed; `false` if its time is not known yet.
    fn disturb(&mut self, path: &[u8], given: Option<Timestamp>) -> bool {
        if let Some(given) = given {
            self.know(path, given, true);
            return true;
        }
        match self.directories.get_mut(path) {
            Some(pending) if pending.mtime.is_some() => {
                pending.disturbed = true;
                true
            }
            _ => false,
        }
    }

    /// Marks the directory as disturbed, which had `mtime` before unless another is known for it.
    pub(super) fn disturb_from(&mut self, path: &[u8], mtime: Timestamp) {
        if !self.disturb(path, None) {
            self.know(path, mtime, true);
        }
    }

    /// Remembers that the directory must have `mode` again, unless an older one is remembered.
    pub(super) fn lift(&mut self, path: &[u8], mode: u32) {
        self.entry(path).mode.get_or_insert(mode);
    }

    /// Replaces the mode that a lifted directory will have; `false` if it is not lifted.
    pub(super) fn change_lifted_mode(&mut self, path: &[u8], mode: u32) -> bool {
        match self.directories.get_mut(path) {
            Some(Pending { mode: Some(lifted), .. }) => {
                *lifted = mode;
                true
            }
            _ => false,
        }
    }

    /// Forgets the directory at `path` and all below it, for they are no longer there.
    pub(super) fn forget_under(&mut self, path: &[u8]) {
        if !self.directories.is_empty() {
            self.directories.retain(|key, _| below(key, path).is_none());
        }
    }

    /// Follows a rename; what is remembered at `to` must be forgotten before.
    pub(super) fn rename(&mut self, from: &[u8], to: &[u8]) {
        let moved: Vec<Vec<u8>> = self.keys_under(from);
        for key in moved {
            let pending = self.directories.remove(&key).unwrap_or_default();
            let mut path = to.to_vec();
            path.extend_from_slice(below(&key, from).unwrap_or_default());
            self.directories.insert(path, pending);
        }
    }

    /// Follows an exchange.
    pub(super) fn exchange(&mut self, a: &[u8], b: &[u8]) {
        // No path of the tree holds a NUL, so nothing is remembered there.
        let aside = b"\0";
        self.rename(a, aside);
        self.rename(b, a);
        self.rename(aside, b);
    }

    fn keys_under(&self, path: &[u8]) -> Vec<Vec<u8>> {
        self.directories.keys().filter(|key| below(key, path).is_some()).cloned().collect()
    }

    fn entry(&mut self, path: &[u8]) -> &mut Pending {
        if !self.directories.contains_key(path) {
            self.next_number += 1;
            let pending = Pending { number: self.next_number, ..Pending::default() };
            self.directories.insert(path.to_vec(), pending);
        }
        self.directories.entry(path.to_vec()).or_default()
    }

    fn oldest(&self) -> Option<Vec<u8>> {
        self.directories
            .iter()
            .min_by_key(|(_, pending)| pending.number)
            .map(|(key, _)| key.clone())
    }
}

impl Replica {
    /// Notes that the directory is about to be changed, so that it has the time `given`, or
    /// the one known for it, or the one that it has now, when the changes are over.
    pub(super) fn touch(&mut self, parent: &Parent, given: Option<Timestamp>) -> io::Result<()> {
        if parent.staged {
            if let (Some(given), Some(staged)) = (given, &mut self.staged) {
                staged.entry.metadata.mtime = given;
            }
            return Ok(());
        }
        if !self.pending.disturb(&parent.path, given) {
            let now = metadata::timestamp(stat_fd(&parent.fd)?.stx_mtime);
            self.pending.know(&parent.path, now, true);
        }
        self.bound_pending();
        Ok(())
    }

    /// Sets the oldest directories early while there are too many. One that cannot be set is
    /// for the upstream to tell again, and keeps no other waiting.
    pub(super) fn bound_pending(&mut self) {
        while self.pending.directories.len() > DIRECTORIES_MAX {
            let Some(oldest) = self.pending.oldest() else { break };
            self.settle(&oldest);
            self.pending.directories.remove(&oldest);
        }
    }

    /// Sets the times and modes of all directories; goes on after an error.
    pub(super) fn settle_all(&mut self) {
        let mut paths = self.pending.keys_under(b"");
        // A parent whose mode was lifted for us must stay open until its children are done.
        paths.sort_unstable_by_key(|path| std::cmp::Reverse(path.len()));
        for path in paths {
            self.settle(&path);
        }
    }

    /// Sets what is pending for one directory and forgets it; keeps it after an error.
    fn settle(&mut self, path: &[u8]) {
        let Some(pending) = self.pending.directories.remove(path) else { return };
        let Err(error) = self.set_pending(path, &pending) else { return };
        match Errno::from_io_error(&error) {
            // The directory went meanwhile.
            Some(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => return,
            // It was never ours.
            Some(Errno::PERM) if !self.privileged => return,
            _ => {}
        }
        self.pending.directories.insert(path.to_vec(), pending);
        let path = TreePath::new(path).unwrap_or_default();
        let error = ApplyError::new(&path, "set the time of", error);
        self.problems.push(Problem { error, content: false });
    }

    fn set_pending(&mut self, path: &[u8], pending: &Pending) -> io::Result<()> {
        if !pending.disturbed && pending.mode.is_none() {
            return Ok(());
        }
        let handle = self.root.open_beneath_bytes(path, OFlags::PATH | OFlags::DIRECTORY)?;
        if let (Some(mtime), true) = (pending.mtime, pending.disturbed) {
            metadata::set_mtime(&handle, mtime)?;
        }
        if let Some(mode) = pending.mode {
            metadata::chmod_handle(&handle, mode)?;
        }
        Ok(())
    }
}

/// Returns the part of `path` after `ancestor`, with its slash, if it is at or below it.
fn below<'a>(path: &'a [u8], ancestor: &[u8]) -> Option<&'a [u8]> {
    if ancestor.is_empty() {
        return Some(path);
    }
    let rest = path.strip_prefix(ancestor)?;
    (rest.is_empty() || rest[0] == b'/').then_some(rest)
}
