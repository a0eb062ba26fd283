//! Refuses what no honest upstream sends, before anything is touched.
//!
//! What passes can be handed to the system as it is: no reserved name, no number that the
//! system or a library gives a meaning of its own, no length that disagrees with its bytes.

use crate::model::limits::XATTR_BYTES_MAX;
use crate::model::{Entry, Kind, TreePath};
use crate::tree::replica::ApplyError;
use crate::wire::{Content, Item};

/// Checks `item`, whose raw bytes are `raw_bytes` in number.
pub(super) fn item(item: &Item, raw_bytes: usize) -> Result<(), ApplyError> {
    match item {
        Item::Rename { from, to, .. } => {
            inner_path(from)?;
            inner_path(to)
        }
        Item::Exchange { a, b, .. } => {
            inner_path(a)?;
            inner_path(b)
        }
        Item::Unfinished { path } => inner_path(path),
        Item::Absent { path, parent_mtime } => {
            inner_path(path)?;
            time_is_valid(path, parent_mtime.map(|time| time.nanoseconds))
        }
        Item::Names { path, .. } | Item::StageOpen { path, .. } => any_path(path),
        Item::State { path, entry, content, links, parent_mtime } => {
            any_path(path)?;
            time_is_valid(path, parent_mtime.map(|time| time.nanoseconds))?;
            state(path, entry, content, links, raw_bytes)
        }
        Item::StageData { length, .. } if *length as usize != raw_bytes => {
            Err(refuse(&TreePath::root(), "a chunk of another length than it says"))
        }
        Item::StageData { .. }
        | Item::StageAbort { .. }
        | Item::Through { .. }
        | Item::Answered { .. }
        | Item::Digest { .. } => Ok(()),
    }
}

fn state(
    path: &TreePath,
    entry: &Entry,
    content: &Content,
    links: &[TreePath],
    raw_bytes: usize,
) -> Result<(), ApplyError> {
    for link in links {
        inner_path(link)?;
    }
    let metadata = &entry.metadata;
    time_is_valid(path, Some(metadata.mtime.nanoseconds))?;
    if metadata.mode > 0o7777 {
        return Err(refuse(path, "a mode with bits that are not permissions"));
    }
    if metadata.uid == u32::MAX || metadata.gid == u32::MAX {
        return Err(refuse(path, "an owner that stands for none"));
    }
    for xattr in &metadata.xattrs {
        if xattr.name.is_empty() || xattr.name.contains(&0) || xattr.value.len() > XATTR_BYTES_MAX {
            return Err(refuse(path, "an extended attribute that cannot be"));
        }
    }
    match (&entry.kind, content) {
        (Kind::Regular { size }, Content::Inline { length }) => {
            if *length as usize != raw_bytes || u64::from(*length) != *size {
                return Err(refuse(path, "content of another length than it says"));
            }
        }
        (Kind::Regular { .. }, _) | (_, Content::Keep | Content::Compare { .. }) => {}
        (Kind::Directory, _) => return Err(refuse(path, "a directory with content")),
        (_, Content::Linked) => {}
        (_, _) => return Err(refuse(path, "content of what is no regular file")),
    }
    if matches!(content, Content::Linked) && links.is_empty() {
        return Err(refuse(path, "another name of nothing"));
    }
    if let Kind::Symlink { target } = &entry.kind
        && (target.is_empty() || target.contains(&0))
    {
        return Err(refuse(path, "a symbolic link that cannot be"));
    }
    if path.is_root() && (!entry.is_directory() || !links.is_empty()) {
        return Err(refuse(path, "a root that is no directory"));
    }
    if entry.is_directory() && !links.is_empty() {
        return Err(refuse(path, "a directory of several names"));
    }
    Ok(())
}

fn inner_path(path: &TreePath) -> Result<(), ApplyError> {
    if path.is_root() {
        return Err(refuse(path, "the root in the place of an entry"));
    }
    any_path(path)
}

fn any_path(path: &TreePath) -> Result<(), ApplyError> {
    if path.is_reserved() {
        return Err(refuse(path, "a name that is reserved for replicas"));
    }
    Ok(())
}

fn time_is_valid(path: &TreePath, nanoseconds: Option<u32>) -> Result<(), ApplyError> {
    // Above a second, the system takes some values as "now" and "leave as it is".
    if nanoseconds.is_some_and(|nanoseconds| nanoseconds >= 1_000_000_000) {
        return Err(refuse(path, "a time that cannot be"));
    }
    Ok(())
}

fn refuse(path: &TreePath, why: &'static str) -> ApplyError {
    ApplyError::protocol(path, "accept", why)
}
