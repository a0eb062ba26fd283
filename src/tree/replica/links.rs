//! The several names of one file: they must end as one inode.

use std::os::fd::AsFd;

use rustix::fs::{AtFlags, Statx};

use super::Replica;
use super::error::{ApplyError, At};
use super::parents::{Parent, open_handle, stat_if_present, unlink};
use crate::model::{Entry, Kind, Timestamp, TreePath};
use crate::tree::metadata::{self, Later, entry_kind, file_type, timestamp};
use crate::tree::root::{identity_of, stat_fd};

/// What is known of the file whose names are to be united.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Trust {
    /// Its content just came, so that it replaces whatever its other names are.
    New,
    /// It was here, so that it replaces only what might be the same.
    SameSize,
}

impl Replica {
    /// Makes every one of `links` a name of the file at `path`.
    pub(super) fn unite(
        &mut self,
        path: &TreePath,
        entry: &Entry,
        links: &[TreePath],
        trust: Trust,
    ) -> Result<(), ApplyError> {
        if links.is_empty() {
            return Ok(());
        }
        for link in links.iter().filter(|link| *link != path) {
            let parent = self.parent(path)?;
            let name = path.name().unwrap_or_default();
            let Some(file) = stat_if_present(&parent, name).at(path, "look at")? else {
                self.owed.push((path.clone(), true));
                return Ok(());
            };
            let there = self.parent(link)?;
            let link_name = link.name().unwrap_or_default();
            if let Some(stat) = stat_if_present(&there, link_name).at(link, "look at")? {
                if identity_of(&stat) == identity_of(&file) {
                    continue;
                }
                let same = file_type(&stat) == file_type(&file)
                    && match entry.kind {
                        Kind::Regular { size } => stat.stx_size == size,
                        _ => true,
                    };
                if trust == Trust::SameSize && !same {
                    self.owed.push((link.clone(), true));
                    continue;
                }
            }
            self.touch(&there, None).at(link, "keep the time of the directory of")?;
            self.link(&parent, name, &there, link_name).at(link, "link")?;
        }
        Ok(())
    }

    /// Returns whether the file at `path`, whose status is `stat`, has more names than this and
    /// `links`: then it was united with a file that is another one upstream.
    pub(super) fn has_other_names(
        &mut self,
        path: &TreePath,
        stat: &Statx,
        links: &[TreePath],
    ) -> Result<bool, ApplyError> {
        if stat.stx_nlink == 1 {
            return Ok(false);
        }
        let mut known = 1;
        for link in links.iter().filter(|link| *link != path) {
            let Some(there) = self.parent_if_present(link)? else { continue };
            let found = stat_if_present(&there, link.name().unwrap_or_default());
            let found = found.at(link, "look at")?.map(|found| identity_of(&found));
            known += u32::from(found == Some(identity_of(stat)));
        }
        Ok(stat.stx_nlink > known)
    }

    /// Makes `path` another name of `first`.
    pub(super) fn put_linked(
        &mut self,
        path: &TreePath,
        entry: &Entry,
        first: &TreePath,
        parent_mtime: Option<Timestamp>,
    ) -> Result<(), ApplyError> {
        let source = self.parent_if_present(first)?;
        let name = first.name().unwrap_or_default();
        let handle = match &source {
            Some(source) => open_handle(source, name).at(first, "open")?,
            None => None,
        };
        let (Some(source), Some(handle)) = (source, handle) else {
            self.owed.push((path.clone(), true));
            return Ok(());
        };
        let stat = stat_fd(&handle).at(first, "look at")?;
        let kind = entry_kind(&stat, || Ok(rustix::fs::readlinkat(&handle, "", [])?.into_bytes()))
            .at(first, "look at")?;
        if kind != entry.kind {
            self.owed.push((path.clone(), true));
            return Ok(());
        }
        let is_regular = matches!(kind, Kind::Regular { .. });
        if is_regular && timestamp(stat.stx_mtime) != entry.metadata.mtime {
            // As for attributes alone: a new time must not vouch for old content.
            self.owed.push((path.clone(), false));
            return Ok(());
        }
        self.refused += metadata::fix(handle.as_fd(), &stat, &entry.metadata, Later::default())
            .at(first, "set attributes of")?;
        let parent = self.parent(path)?;
        let own_name = path.name().unwrap_or_default();
        let present = stat_if_present(&parent, own_name).at(path, "look at")?;
        if present.is_some_and(|present| identity_of(&present) == identity_of(&stat)) {
            if parent_mtime.is_some() {
                self.touch(&parent, parent_mtime).at(path, "keep the time above")?;
            }
            return Ok(());
        }
        self.touch(&parent, parent_mtime).at(path, "keep the time of the directory of")?;
        self.link(&source, name, &parent, own_name).at(path, "link")
    }

    /// Makes `link_name` a name of the file `name`, over whatever has it.
    fn link(
        &mut self,
        parent: &Parent,
        name: &[u8],
        there: &Parent,
        link_name: &[u8],
    ) -> std::io::Result<()> {
        let mut left_behind = None;
        self.produce(there, link_name, |directory, temporary, beside| {
            rustix::fs::linkat(&parent.fd, name, directory, temporary, AtFlags::empty())?;
            left_behind = Some((temporary.to_owned(), beside));
            Ok(())
        })?;
        // RACE: if someone made the two names one inode meanwhile, the rename did nothing and
        // left its source; it must not stay.
        if let Some((temporary, beside)) = left_behind {
            let directory = if beside { there.fd.as_fd() } else { self.stage.as_fd() };
            let _ = unlink(directory, temporary.as_bytes());
        }
        Ok(())
    }
}
