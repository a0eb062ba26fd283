//! Regular files: new content always in a new inode, attributes of present content in place.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{Mode, OFlags, Statx};
use rustix::io::Errno;

use super::Replica;
use super::directory::exists;
use super::error::{ApplyError, At};
use super::links::Trust;
use super::parents::{Parent, open_handle, unlink};
use crate::model::{Entry, Kind, Metadata, Timestamp, TreePath};
use crate::tree::metadata::{self, Later, Made, clear_xattrs, file_type, timestamp};
use crate::tree::root::stat_fd;

impl Replica {
    /// Makes `path` a file of the content `raw`, and all of `links` names of it.
    pub(super) fn put_inline(
        &mut self,
        path: &TreePath,
        entry: &Entry,
        raw: &[u8],
        links: &[TreePath],
        parent_mtime: Option<Timestamp>,
    ) -> Result<(), ApplyError> {
        let mut parent = self.parent(path)?;
        let name = path.name().unwrap_or_default();
        let wanted = &entry.metadata;
        let (owner, privileged) = (self.made(0), self.privileged);
        self.touch(&parent, parent_mtime).at(path, "keep the time of the directory of")?;
        if parent.staged {
            let create = |fd, name| create(fd, name, wanted, raw, owner, privileged, false);
            match create(parent.fd.as_fd(), name) {
                Ok(refused) => {
                    self.refused += refused;
                    return Ok(());
                }
                // Told twice while nobody could see it: the second one replaces the first.
                Err(error) if exists(&error) => {
                    self.publish();
                    parent = self.parent(path)?;
                    self.touch(&parent, parent_mtime).at(path, "keep the time above")?;
                }
                Err(error) => return Err(error).at(path, "create"),
            }
        }
        let mut refused = 0;
        self.produce(&parent, name, |directory, temporary, inherits| {
            let temporary = temporary.as_bytes();
            refused += create(directory, temporary, wanted, raw, owner, privileged, inherits)?;
            Ok(())
        })
        .at(path, "create")?;
        self.refused += refused;
        self.unite(path, entry, links, Trust::New)
    }

    /// Sets the attributes of the file at `path`, whose content did not change, and unites its
    /// names. A new time would vouch for the content ever after: that is compared first.
    pub(super) fn keep(
        &mut self,
        path: &TreePath,
        entry: &Entry,
        links: &[TreePath],
        parent_mtime: Option<Timestamp>,
    ) -> Result<(), ApplyError> {
        let mtime = entry.metadata.mtime;
        self.fix_if(path, entry, links, parent_mtime, |_, _, _, stat| {
            Ok(if timestamp(stat.stx_mtime) == mtime { Here::Current } else { Here::Unknown })
        })
    }

    /// Sets the attributes of the file at `path` and unites its names, if `is_current` says
    /// that its content is what it must be; else asks for it.
    fn fix_if(
        &mut self,
        path: &TreePath,
        entry: &Entry,
        links: &[TreePath],
        parent_mtime: Option<Timestamp>,
        is_current: impl FnOnce(&mut Self, &Parent, &[u8], &Statx) -> Result<Here, ApplyError>,
    ) -> Result<(), ApplyError> {
        let Kind::Regular { size } = entry.kind else { return Ok(()) };
        let parent = self.parent(path)?;
        let name = path.name().unwrap_or_default();
        if parent_mtime.is_some() {
            self.touch(&parent, parent_mtime).at(path, "keep the time of the directory of")?;
        }
        let current = match open_handle(&parent, name).at(path, "open")? {
            None => None,
            Some(handle) => {
                let stat = stat_fd(&handle).at(path, "look at")?;
                let here = if file_type(&stat).is_file() && stat.stx_size == size {
                    is_current(self, &parent, name, &stat)?
                } else {
                    Here::Other
                };
                if here == Here::Unknown {
                    self.owed.push((path.clone(), false));
                    return Ok(());
                }
                (here == Here::Current).then_some((handle, stat))
            }
        };
        let Some((handle, stat)) = current else {
            self.owed.push((path.clone(), true));
            return Ok(());
        };
        let later = Later::default();
        self.refused += metadata::fix(handle.as_fd(), &stat, &entry.metadata, later)
            .at(path, "set attributes of")?;
        self.unite(path, entry, links, Trust::SameSize)
    }

    /// As [`Replica::keep`], for content that must agree in `digest`, or in time if none is
    /// given.
    pub(super) fn compare(
        &mut self,
        path: &TreePath,
        entry: &Entry,
        links: &[TreePath],
        parent_mtime: Option<Timestamp>,
        digest: Option<[u8; 32]>,
    ) -> Result<(), ApplyError> {
        let mtime = entry.metadata.mtime;
        self.fix_if(path, entry, links, parent_mtime, |replica, parent, name, stat| {
            // A file with names that the source's does not have must be parted from them.
            let is_current = !replica.has_other_names(path, stat, links)?
                && match digest {
                    None => timestamp(stat.stx_mtime) == mtime,
                    Some(digest) => {
                        digest_of(parent, name, stat.stx_size).at(path, "read")? == digest
                    }
                };
            Ok(if is_current { Here::Current } else { Here::Other })
        })
    }
}

/// What is known of a present file's content.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Here {
    /// It is what it must be.
    Current,
    /// It may be; only a digest tells.
    Unknown,
    /// It is not.
    Other,
}

/// Creates a file that is not in place, with all its attributes. `inherits` tells whether the
/// directory may give it some of its own. Returns how many attributes were refused.
fn create(
    directory: BorrowedFd<'_>,
    name: &[u8],
    wanted: &Metadata,
    raw: &[u8],
    owner: Made,
    privileged: bool,
    inherits: bool,
) -> io::Result<u64> {
    // The mode at creation is final where neither a change of owner nor attributes follow;
    // setuid and setgid never are, for writing may take them away. Where others could look
    // into the directory, nobody else may open what is not finished.
    let attributes = !wanted.xattrs.is_empty() && !privileged;
    let mode = if inherits || attributes { 0o600 } else { wanted.mode & 0o777 };
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let fd = rustix::fs::openat(directory, name, flags, Mode::from_raw_mode(mode))?;
    let filled = fill(fd, wanted, raw, Made { mode, ..owner }, inherits);
    if filled.is_err() {
        // A part of a file must not be taken for the whole when this is tried again.
        let _ = unlink(directory, name);
    }
    filled
}

fn fill(fd: OwnedFd, wanted: &Metadata, raw: &[u8], made: Made, inherits: bool) -> io::Result<u64> {
    let mut file = File::from(fd);
    file.write_all(raw)?;
    settle_file(file.as_fd(), wanted, made, inherits)
}

/// Sets the attributes of a new file that is not in place.
pub(super) fn settle_file(
    fd: BorrowedFd<'_>,
    wanted: &Metadata,
    made: Made,
    inherits: bool,
) -> io::Result<u64> {
    if !inherits {
        return metadata::settle_new(fd, wanted, made);
    }
    clear_xattrs(fd)?;
    let stat = stat_fd(fd)?;
    let mode = metadata::mode_bits(&stat);
    metadata::settle_new(fd, wanted, Made { uid: stat.stx_uid, gid: stat.stx_gid, mode })
}

/// Returns the BLAKE3 digest of the file `name`, which was `size` bytes long; if it is longer by
/// now, that of more.
fn digest_of(parent: &Parent, name: &[u8], size: u64) -> io::Result<[u8; 32]> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let fd = match rustix::fs::openat(&parent.fd, name, flags, Mode::empty()) {
        // Its mode keeps even us, its owner, from reading: let the content come again.
        Err(Errno::ACCESS) => return Ok([0; 32]),
        opened => opened?,
    };
    let mut hasher = blake3::Hasher::new();
    hasher.update_reader(File::from(fd).take(size.saturating_add(1)))?;
    Ok(*hasher.finalize().as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_grows_is_digested_so_far_that_it_shows() {
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("f"), [7; 100]).unwrap();
        let parent = Parent::new(b"", File::open(directory.path()).unwrap().into(), false);
        let digest = |size| digest_of(&parent, b"f", size).unwrap();
        let hash = |size| <[u8; 32]>::from(blake3::hash(&[7; 100][..size]));
        assert_eq!((digest(100), digest(200)), (hash(100), hash(100)));
        assert_eq!(digest(10), hash(11));
    }
}
