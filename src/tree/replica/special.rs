//! Symbolic links, named pipes, sockets and devices.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use rustix::fs::{FileType, Mode};

use super::Replica;
use super::directory::exists;
use super::error::{ApplyError, At};
use super::links::Trust;
use super::parents::open_handle;
use super::place::handle_at;
use crate::model::{Entry, Kind, Timestamp, TreePath};
use crate::tree::metadata::{self, Later, Made, entry_kind};
use crate::tree::root::stat_fd;
use crate::wire::Content;

impl Replica {
    /// Makes `path` what `entry` says, which is neither a regular file nor a directory. If it is
    /// compared, `links` are all other names that it has; else they may be some of them.
    pub(super) fn put_special(
        &mut self,
        path: &TreePath,
        entry: &Entry,
        content: &Content,
        links: &[TreePath],
        parent_mtime: Option<Timestamp>,
    ) -> Result<(), ApplyError> {
        let mut parent = self.parent(path)?;
        let name = path.name().unwrap_or_default();
        let owner = self.made(0);
        if parent.staged {
            self.touch(&parent, parent_mtime).at(path, "keep the time of the directory of")?;
            match make(parent.fd.as_fd(), name, entry, owner, false) {
                Ok(refused) => {
                    self.refused += refused;
                    return Ok(());
                }
                Err(error) if exists(&error) => {
                    self.publish();
                    parent = self.parent(path)?;
                }
                Err(error) => return Err(error).at(path, "create"),
            }
        }
        if let Some(handle) = open_handle(&parent, name).at(path, "open")? {
            let stat = stat_fd(&handle).at(path, "look at")?;
            let target = || Ok(rustix::fs::readlinkat(&handle, "", [])?.into_bytes());
            // One that has names which it does not have upstream is made anew, apart from them.
            let is_apart = |replica: &mut Self| match content {
                Content::Compare { .. } => Ok(!replica.has_other_names(path, &stat, links)?),
                _ => Ok(stat.stx_nlink == 1 || !links.is_empty()),
            };
            if entry_kind(&stat, target).at(path, "look at")? == entry.kind && is_apart(self)? {
                if parent_mtime.is_some() {
                    self.touch(&parent, parent_mtime).at(path, "keep the time above")?;
                }
                let later = Later::default();
                self.refused += metadata::fix(handle.as_fd(), &stat, &entry.metadata, later)
                    .at(path, "set attributes of")?;
                return self.unite(path, entry, links, Trust::SameSize);
            }
        }
        self.touch(&parent, parent_mtime).at(path, "keep the time of the directory of")?;
        let mut refused = 0;
        self.produce(&parent, name, |directory, temporary, inherits| {
            refused += make(directory, temporary.as_bytes(), entry, owner, inherits)?;
            Ok(())
        })
        .at(path, "create")?;
        self.refused += refused;
        self.unite(path, entry, links, Trust::New)
    }
}

/// Creates the entry under a name where it is not in place. Returns how many attributes were
/// refused.
fn make(
    directory: BorrowedFd<'_>,
    name: &[u8],
    entry: &Entry,
    owner: Made,
    inherits: bool,
) -> io::Result<u64> {
    let wanted = &entry.metadata;
    let mode = Mode::from_raw_mode(wanted.mode & 0o777);
    let node = |kind, device| rustix::fs::mknodat(directory, name, kind, mode, device);
    let device = |major: u32, minor: u32| rustix::fs::makedev(major, minor);
    let mut suits = wanted.mode & 0o7000 == 0;
    match &entry.kind {
        Kind::Symlink { target } => {
            rustix::fs::symlinkat(&target[..], directory, name)?;
            suits = true;
        }
        Kind::Fifo => node(FileType::Fifo, 0)?,
        Kind::Socket => node(FileType::Socket, 0)?,
        Kind::CharDevice { major, minor } => {
            node(FileType::CharacterDevice, device(*major, *minor))?;
        }
        Kind::BlockDevice { major, minor } => {
            node(FileType::BlockDevice, device(*major, *minor))?;
        }
        Kind::Regular { .. } | Kind::Directory => return Err(rustix::io::Errno::INVAL.into()),
    }
    let settled = (|| {
        if suits
            && !inherits
            && wanted.xattrs.is_empty()
            && (wanted.uid, wanted.gid) == (owner.uid, owner.gid)
        {
            metadata::set_mtime_at(directory, name, wanted.mtime)?;
            return Ok(0);
        }
        let handle = handle_at(directory, name)?;
        metadata::fix(handle.as_fd(), &stat_fd(&handle)?, wanted, Later::default())
    })();
    if settled.is_err() {
        let _ = super::parents::unlink(directory, name);
    }
    settled
}
