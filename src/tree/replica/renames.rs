//! Renames and exchanges: what the tree holds already changes its place, and nothing else.

use std::os::fd::AsFd;
use std::sync::Arc;

use rustix::fs::{RenameFlags, Statx};
use rustix::io::Errno;

use super::Replica;
use super::error::{ApplyError, At};
use super::marker::{Mark, Note};
use super::parents::{Parent, stat_if_present, unlink};
use super::place::is_other_mount;
use crate::model::{Sequence, TreePath};
use crate::tree::metadata::{file_type, timestamp};
use crate::tree::root::identity_of;

/// One end of a rename: its directory, if there is one, and what is there.
pub(super) struct End {
    parent: Option<Arc<Parent>>,
    pub(super) stat: Option<rustix::fs::Statx>,
}

impl Replica {
    /// Moves `from` to `to`, over whatever is there.
    pub(super) fn rename(
        &mut self,
        sequence: Sequence,
        from: &TreePath,
        to: &TreePath,
    ) -> Result<(), ApplyError> {
        let (source, target) = self.announce(sequence, false, from, to)?;
        if from == to {
            return Ok(());
        }
        if from.is_related(to) {
            // A directory cannot go into itself; what really happened is for the upstream.
            self.announce_doubt(from, to).at(from, "write the marker for")?;
            self.owed.extend([(from.clone(), false), (to.clone(), false)]);
            return Ok(());
        }
        let (Some(parent), Some(stat)) = (source.parent, source.stat) else {
            self.owed.push((to.clone(), true));
            return Ok(());
        };
        let name = from.name().unwrap_or_default();
        if target.stat.is_some_and(|there| identity_of(&there) == identity_of(&stat)) {
            // rename(2) does nothing between two names of one file.
            self.touch(&parent, None).at(from, "keep the time of the directory of")?;
            return unlink(&parent.fd, name).at(from, "remove");
        }
        let replaces = target.stat.is_some_and(|there| file_type(&there).is_file());
        if replaces && self.unfinished.may_be(&stat) {
            // A part must not replace a whole file (I2): that stays until the whole one comes.
            self.announce_doubt(from, to).at(from, "write the marker for")?;
            self.touch(&parent, None).at(from, "keep the time of the directory of")?;
            self.owed.push((to.clone(), true));
            self.unfinished.forget(&stat);
            return unlink(&parent.fd, name).at(from, "remove");
        }
        self.move_over(from, &parent, to)
    }

    /// Lets `a` and `b` change places.
    pub(super) fn exchange(
        &mut self,
        sequence: Sequence,
        a: &TreePath,
        b: &TreePath,
    ) -> Result<(), ApplyError> {
        let (first, second) = self.announce(sequence, true, a, b)?;
        if a == b {
            return Ok(());
        }
        if a.is_related(b) {
            self.announce_doubt(a, b).at(a, "write the marker for")?;
            self.owed.extend([(a.clone(), false), (b.clone(), false)]);
            return Ok(());
        }
        match (first, second) {
            (
                End { parent: Some(parent_a), stat: Some(stat_a) },
                End { parent: Some(parent_b), stat: Some(stat_b) },
            ) => {
                if self.unfinished.may_be(&stat_a) || self.unfinished.may_be(&stat_b) {
                    self.announce_doubt(a, b).at(a, "write the marker for")?;
                    self.owed.extend([(a.clone(), true), (b.clone(), true)]);
                    return Ok(());
                }
                self.swap((a, &parent_a, &stat_a), (b, &parent_b, &stat_b))
            }
            (End { parent: Some(parent), stat: Some(_) }, _) => {
                self.owed.push((a.clone(), true));
                self.move_over(a, &parent, b)
            }
            (_, End { parent: Some(parent), stat: Some(_) }) => {
                self.owed.push((b.clone(), true));
                self.move_over(b, &parent, a)
            }
            _ => {
                self.owed.extend([(a.clone(), true), (b.clone(), true)]);
                Ok(())
            }
        }
    }

    /// Looks at both ends and writes the marker.
    pub(super) fn announce(
        &mut self,
        sequence: Sequence,
        exchange: bool,
        from: &TreePath,
        to: &TreePath,
    ) -> Result<(End, End), ApplyError> {
        let (source, target) = (self.end(from)?, self.end(to)?);
        let note = Note {
            sequence,
            exchange,
            from: from.clone(),
            to: to.clone(),
            from_mark: source.stat.as_ref().map(Mark::of),
            to_mark: target.stat.as_ref().map(Mark::of),
        };
        let announced = self.marker.announce(self.control.as_fd(), note);
        announced.at(from, "write the marker for the rename of")?;
        Ok((source, target))
    }

    pub(super) fn end(&mut self, path: &TreePath) -> Result<End, ApplyError> {
        let parent = self.parent_if_present(path)?;
        let name = path.name().unwrap_or_default();
        let stat = match &parent {
            Some(parent) => stat_if_present(parent, name).at(path, "look at")?,
            None => None,
        };
        Ok(End { parent, stat })
    }

    fn move_over(
        &mut self,
        from: &TreePath,
        parent: &Parent,
        to: &TreePath,
    ) -> Result<(), ApplyError> {
        let name = from.name().unwrap_or_default();
        let target = self.parent(to)?;
        let new_name = to.name().unwrap_or_default();
        self.touch(parent, None).at(from, "keep the time of the directory of")?;
        self.touch(&target, None).at(to, "keep the time of the directory of")?;
        let go = || rustix::fs::renameat(&parent.fd, name, &target.fd, new_name);
        let mut gone = go();
        if matches!(gone, Err(Errno::ISDIR | Errno::NOTDIR | Errno::NOTEMPTY | Errno::EXIST)) {
            // The source's own tree had nothing at `to` in between either: rename(2) cannot do
            // this. Taking it away first leaves the rename undone if we are killed here.
            self.remove(&target, new_name).at(to, "remove")?;
            gone = go();
        }
        match gone.map_err(std::io::Error::from) {
            Ok(()) => {
                self.forget_under(to.as_bytes());
                self.pending.rename(from.as_bytes(), to.as_bytes());
                Ok(())
            }
            Err(error) if is_other_mount(&error) => {
                self.announce_doubt(from, to).at(from, "write the marker for")?;
                self.owed.push((to.clone(), true));
                self.remove(parent, name).at(from, "remove")?;
                Ok(())
            }
            Err(error) if Errno::from_io_error(&error) == Some(Errno::NOENT) => {
                self.owed.push((to.clone(), true));
                Ok(())
            }
            Err(error) => Err(error).at(from, "rename"),
        }
    }

    fn swap(
        &mut self,
        (a, parent_a, stat_a): (&TreePath, &Parent, &Statx),
        (b, parent_b, stat_b): (&TreePath, &Parent, &Statx),
    ) -> Result<(), ApplyError> {
        self.touch(parent_a, None).at(a, "keep the time of the directory of")?;
        self.touch(parent_b, None).at(b, "keep the time of the directory of")?;
        let swapped = rustix::fs::renameat_with(
            &parent_a.fd,
            a.name().unwrap_or_default(),
            &parent_b.fd,
            b.name().unwrap_or_default(),
            RenameFlags::EXCHANGE,
        );
        match swapped {
            Ok(()) => {
                self.cached = None;
                self.pending.exchange(a.as_bytes(), b.as_bytes());
                // An exchange on xfs writes to the directories themselves that change their
                // parents.
                for (path, stat) in [(a, stat_b), (b, stat_a)] {
                    if file_type(stat).is_dir() && parent_a.path != parent_b.path {
                        self.pending.disturb_from(path.as_bytes(), timestamp(stat.stx_mtime));
                    }
                }
                self.bound_pending();
                Ok(())
            }
            // Mounts between the two, or a file system that cannot exchange: as the tree has
            // both, asking for both is right, only slower.
            Err(Errno::XDEV | Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => {
                self.announce_doubt(a, b).at(a, "write the marker for")?;
                self.owed.extend([(a.clone(), true), (b.clone(), true)]);
                Ok(())
            }
            Err(error) => Err(error).at(a, "exchange"),
        }
    }
}
