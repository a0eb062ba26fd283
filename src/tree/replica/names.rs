//! Entries that are no longer there, one by one or by a directory's list of names.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::AsFd;

use rustix::fs::{AtFlags, FileType, Mode, OFlags, RawDir, StatxFlags};

use super::Replica;
use super::error::{ApplyError, At};
use super::parents::{Parent, leads_nowhere};
use crate::model::path::CONTROL_NAME;
use crate::model::path::check_name;
use crate::model::{Timestamp, TreePath};
use crate::tree::metadata::file_type;

impl Replica {
    /// Sees to it that nothing is at `path`.
    pub(super) fn absent(
        &mut self,
        path: &TreePath,
        parent_mtime: Option<Timestamp>,
    ) -> Result<(), ApplyError> {
        let Some(parent) = self.parent_if_present(path)? else { return Ok(()) };
        let name = path.name().unwrap_or_default();
        self.touch(&parent, parent_mtime).at(path, "keep the time of the directory of")?;
        self.remove(&parent, name).at(path, "remove")?;
        Ok(())
    }

    /// Removes from the directory at `path` the entries after `after`, through the last of
    /// `names` or to the end if that is the `last` list, which are not among `names`.
    pub(super) fn names(
        &mut self,
        path: &TreePath,
        after: &[u8],
        names: &[serde_bytes::ByteBuf],
        last: bool,
    ) -> Result<(), ApplyError> {
        let fd = match &mut self.staged {
            Some(staged) if staged.parent.path == path.as_bytes() => {
                staged.awaited += names.len();
                if staged.is_empty {
                    return Ok(()); // As a new directory is, nearly always.
                }
                let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
                rustix::fs::openat(&staged.parent.fd, ".", flags, Mode::empty())
                    .map_err(io::Error::from)
            }
            _ => self.root.open_directory(path),
        };
        let fd = match fd {
            Ok(fd) => fd,
            Err(error) if leads_nowhere(&error) => return Ok(()),
            Err(error) => return Err(error).at(path, "open"),
        };
        let mut surplus = surplus(list(&fd).at(path, "list")?, after, names, last);
        surplus.retain(|name| !(path.is_root() && name == CONTROL_NAME.as_bytes()));
        if surplus.is_empty() {
            return Ok(());
        }
        let staged = self.is_staged(path.as_bytes());
        let parent = Parent::new(path.as_bytes(), fd, staged);
        self.touch(&parent, None).at(path, "keep the time of")?;
        let mut first = Ok(());
        for name in surplus {
            let removed = self.remove(&parent, &name).at(&path.join(&name), "remove");
            first = first.and(removed.map(|_| ()));
        }
        first
    }
}

/// Returns those of the `listed` names after `after`, through the last of `names` or to the end,
/// that are not among `names`. A name that no path can have (vfat and others have longer ones)
/// never came from a source, and is left alone.
fn surplus(
    listed: Vec<(Vec<u8>, bool)>,
    after: &[u8],
    names: &[serde_bytes::ByteBuf],
    last: bool,
) -> Vec<Vec<u8>> {
    let through = names.last().map_or(&b""[..], |name| name);
    listed
        .into_iter()
        .map(|(name, _)| name)
        .filter(|name| &name[..] > after && (last || &name[..] <= through))
        .filter(|name| check_name(name).is_ok())
        .filter(|name| names.binary_search_by(|other| other[..].cmp(name)).is_err())
        .collect()
}

/// Returns the names in a directory that was just opened, and whether each is a directory.
pub(super) fn list(directory: impl AsFd) -> io::Result<Vec<(Vec<u8>, bool)>> {
    list_some(directory, usize::MAX)
}

/// As [`list`], but at most `entries_max` of them.
pub(super) fn list_some(
    directory: impl AsFd,
    entries_max: usize,
) -> io::Result<Vec<(Vec<u8>, bool)>> {
    let directory = directory.as_fd();
    let mut buffer = [MaybeUninit::uninit(); 32 << 10];
    let mut entries = RawDir::new(directory, &mut buffer);
    let mut names = Vec::new();
    while let Some(entry) = entries.next() {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if matches!(name, b"." | b"..") {
            continue;
        }
        let kind = match entry.file_type() {
            FileType::Unknown => {
                let flags = AtFlags::SYMLINK_NOFOLLOW;
                match rustix::fs::statx(directory, name, flags, StatxFlags::TYPE) {
                    Ok(stat) => file_type(&stat),
                    Err(rustix::io::Errno::NOENT) => continue,
                    Err(error) => return Err(error.into()),
                }
            }
            kind => kind,
        };
        names.push((name.to_vec(), kind.is_dir()));
        if names.len() >= entries_max {
            break;
        }
    }
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_that_no_path_can_have_is_not_surplus() {
        let long = vec![b'n'; 765];
        let listed = ["a", "b", "c"].map(|name| (name.as_bytes().to_vec(), false));
        let listed = listed.into_iter().chain([(long, false)]).collect();
        let names = [serde_bytes::ByteBuf::from("b")];
        assert_eq!(surplus(listed, b"", &names, true), [b"a", b"c"]);
    }
}
