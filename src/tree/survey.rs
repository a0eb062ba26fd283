//! Walking a tree directory by directory, in order, and digesting each: both sides of a
//! comparison do this.
//!
//! What is found only chooses what is compared entry by entry, which is read anew then. So nothing
//! here must be of one moment: an entry that comes or goes meanwhile has a record of its own.
//! What cannot be read is said to be so, and never left out (I8).

use std::ffi::OsStr;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::time::Duration;

use rustix::fs::FileType;
use rustix::io::Errno;

use super::metadata::{NamedXattrs, entry_kind, file_type, metadata_of, read_xattrs, timestamp};
use super::reader::{is_absent, list_directory};
use super::root::{Root, identity_of, stat_at, stat_fd};
use crate::model::limits::{NAME_BYTES_MAX, PATH_BYTES_MAX};
use crate::model::path::{CONTROL_NAME, STAGE_PREFIX};
use crate::model::survey::{DirectoryHasher, walk_order};
use crate::model::{Glance, Kind, Lacks, Surveyed, TreePath};

/// Longest time for which a tree is surveyed in one turn: what changes, heartbeats and other roles
/// wait for it, and so does the other side, which surveys what is told at the end of a turn.
pub const SURVEY_TIME_MAX: Duration = Duration::from_millis(2);

/// Entries that are read between two looks at the time.
pub const STEP_ENTRIES: usize = 64;

/// Memory for what a system call tells of a directory.
const LIST_BUFFER_BYTES: usize = 64 << 10;

/// A walk through a subtree.
#[derive(Debug)]
pub struct Survey {
    path: TreePath,
    lacks: Lacks,
    /// Directories that are still to be visited, the next one last.
    pending: Vec<TreePath>,
    /// The last one that was visited, or where the survey began.
    reached: Option<TreePath>,
    current: Option<Directory>,
    buffer: Vec<MaybeUninit<u8>>,
}

/// What comes of a step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// A directory is done.
    Directory(Surveyed),
    /// There is more to do.
    More,
    /// Nothing is left, or nothing through the path that was given.
    End,
}

/// A directory that is being read.
#[derive(Debug)]
struct Directory {
    path: TreePath,
    fd: OwnedFd,
    hasher: DirectoryHasher,
    names: Names,
    /// Which of them is next.
    next: usize,
    is_unreadable: bool,
}

/// The names in a directory, sorted, without memory of its own for each.
#[derive(Debug, Default)]
struct Names {
    bytes: Vec<u8>,
    /// Where each one begins, its length, and whether it is a directory.
    entries: Vec<(usize, u8, FileType)>,
}

impl Names {
    fn push(&mut self, name: &[u8], file_type: FileType) {
        let length = u8::try_from(name.len()).expect("names are checked");
        self.entries.push((self.bytes.len(), length, file_type));
        self.bytes.extend_from_slice(name);
    }

    fn sort(&mut self) {
        let bytes = &self.bytes;
        let name = |(start, length, _): &(usize, u8, FileType)| {
            &bytes[*start..start + usize::from(*length)]
        };
        self.entries.sort_unstable_by(|one, other| name(one).cmp(name(other)));
    }

    fn get(&self, index: usize) -> Option<(&[u8], FileType)> {
        let (start, length, file_type) = *self.entries.get(index)?;
        Some((&self.bytes[start..start + usize::from(length)], file_type))
    }
}

const _: () = assert!(NAME_BYTES_MAX <= u8::MAX as usize);

impl Survey {
    /// Begins a walk through the subtree at `path`, behind the directory `after` if that is given:
    /// what lies before is passed by, whether it is there or not.
    pub fn new(root: &Root, path: &TreePath, after: Option<&TreePath>, lacks: Lacks) -> Self {
        let mut survey = Survey {
            path: path.clone(),
            lacks,
            pending: Vec::new(),
            reached: after.cloned(),
            current: None,
            buffer: vec![MaybeUninit::uninit(); LIST_BUFFER_BYTES],
        };
        match after {
            None => survey.pending.push(path.clone()),
            Some(after) => survey.pass(root, after),
        }
        survey
    }

    /// Returns whether this goes on where a walk through the subtree at `path` behind `after`
    /// would begin. It knows of no directory that came since where it has been; those have
    /// records.
    pub fn continues(&self, path: &TreePath, after: Option<&TreePath>, lacks: Lacks) -> bool {
        self.current.is_none()
            && self.lacks == lacks
            && self.path == *path
            && after.is_some()
            && self.reached.as_ref() == after
    }

    /// Says that everything through `through` was visited, also if the last directory there is
    /// before it.
    pub fn reach(&mut self, through: &TreePath) {
        self.reached = Some(through.clone());
    }

    /// Goes on, by `entries_max` entries at most, to the end of a directory; not beyond the
    /// directory `through`, if that is given. `glance` is called for each entry that is no
    /// directory, with the directory and the name.
    pub fn step(
        &mut self,
        root: &Root,
        through: Option<&TreePath>,
        entries_max: usize,
        mut glance: impl FnMut(&TreePath, &[u8], Glance),
    ) -> Step {
        let mut directory = match self.current.take() {
            Some(directory) => directory,
            None => {
                let is_beyond = |path: &TreePath| {
                    through.is_some_and(|through| {
                        walk_order(path.as_bytes(), through.as_bytes()).is_gt()
                    })
                };
                let Some(path) = self.pending.pop_if(|path| !is_beyond(path)) else {
                    return Step::End;
                };
                self.reached = Some(path.clone());
                match self.open(root, &path) {
                    Ok(directory) => directory,
                    // It went; what is there instead has a record.
                    Err(error) if is_absent(&error) => return Step::More,
                    Err(_) => {
                        return Step::Directory(Surveyed { path, digest: None, entries: 0 });
                    }
                }
            }
        };
        if !directory.read_some(entries_max, &mut glance) {
            self.current = Some(directory);
            return Step::More;
        }
        let Directory { path, hasher, names, is_unreadable, .. } = directory;
        self.push_directories(&path, &names, None);
        let digest = (!is_unreadable).then(|| hasher.finish());
        Step::Directory(Surveyed { path, digest, entries: names.entries.len() as u64 })
    }

    fn open(&mut self, root: &Root, path: &TreePath) -> io::Result<Directory> {
        let fd = root.open_directory(path)?;
        let mut is_unreadable = false;
        let xattrs = read_xattrs(&fd, |_| ()).unwrap_or_else(|_| {
            is_unreadable = true;
            Vec::new()
        });
        let hasher = DirectoryHasher::new(self.lacks, metadata_of(&stat_fd(&fd)?, xattrs));
        let names = self.list(&fd, path)?;
        Ok(Directory { path: path.clone(), fd, hasher, names, next: 0, is_unreadable })
    }

    fn list(&mut self, fd: &OwnedFd, path: &TreePath) -> io::Result<Names> {
        let mut names = Names::default();
        list_directory(fd, &mut self.buffer, |name, file_type| {
            let is_own = path.is_root() && name == CONTROL_NAME.as_bytes()
                || name.starts_with(STAGE_PREFIX.as_bytes());
            if is_own || path.as_bytes().len() + 1 + name.len() > PATH_BYTES_MAX {
                return Ok(()); // Neither side mirrors these.
            }
            let file_type = match file_type {
                FileType::Unknown => match stat_at(fd, name) {
                    Ok(stat) => self::file_type(&stat),
                    Err(Errno::NOENT) => return Ok(()),
                    Err(error) => return Err(error.into()),
                },
                known => known,
            };
            names.push(name, file_type);
            Ok(())
        })?;
        names.sort();
        Ok(names)
    }

    /// Has the directories in the one at `path` visited next, those after the name `after`.
    fn push_directories(&mut self, path: &TreePath, names: &Names, after: Option<&[u8]>) {
        let first = self.pending.len();
        for index in 0..names.entries.len() {
            if let Some((name, FileType::Directory)) = names.get(index)
                && after.is_none_or(|after| name > after)
            {
                self.pending.push(path.join(name));
            }
        }
        self.pending[first..].reverse();
    }

    /// Finds what is still to be visited behind `after`.
    fn pass(&mut self, root: &Root, after: &TreePath) {
        let mut way: Vec<&[u8]> = after
            .self_and_ancestors()
            .take_while(|above| above.len() >= self.path.as_bytes().len())
            .collect();
        while let Some(above) = way.pop() {
            let Ok(above) = TreePath::new(above) else { return };
            // What is missing has nothing below it, and of what cannot be read nobody knows.
            let Ok(fd) = root.open_directory(&above) else { return };
            let Ok(names) = self.list(&fd, &above) else { return };
            let next = way.last().and_then(|next| next.rsplit(|byte| *byte == b'/').next());
            self.push_directories(&above, &names, next);
        }
    }
}

impl Directory {
    /// Reads `entries_max` entries at most. Returns whether none is left.
    fn read_some(
        &mut self,
        entries_max: usize,
        glance: &mut impl FnMut(&TreePath, &[u8], Glance),
    ) -> bool {
        let mut xattrs = NamedXattrs::new(&self.fd);
        for _ in 0..entries_max {
            let Some((name, file_type)) = self.names.get(self.next) else { return true };
            self.next += 1;
            if file_type == FileType::Directory {
                self.hasher.directory(name);
                continue;
            }
            match read_entry(&self.fd, &mut xattrs, &mut self.hasher, name) {
                Ok(seen) => glance(&self.path, name, seen),
                Err(Errno::NOENT) => {}
                Err(_) => self.is_unreadable = true,
            }
        }
        false
    }
}

/// Adds an entry to the digest of its directory.
fn read_entry(
    directory: &OwnedFd,
    xattrs: &mut NamedXattrs,
    hasher: &mut DirectoryHasher,
    name: &[u8],
) -> rustix::io::Result<Glance> {
    let raw = |error: io::Error| Errno::from_io_error(&error).unwrap_or(Errno::IO);
    let stat = stat_at(directory, name)?;
    let target = || {
        let name = OsStr::from_bytes(name);
        Ok(rustix::fs::readlinkat(directory.as_fd(), name, Vec::new())?.into_bytes())
    };
    let kind = entry_kind(&stat, target).map_err(raw)?;
    let linked = stat.stx_nlink > 1 && kind != Kind::Directory;
    if kind == Kind::Directory {
        hasher.directory(name);
    } else if linked {
        hasher.linked(name, &kind);
    } else {
        hasher.entry(name, &kind, metadata_of(&stat, xattrs.read(name, |_| ()).map_err(raw)?));
    }
    Ok(Glance {
        linked: linked.then(|| identity_of(&stat)),
        ctime: timestamp(stat.stx_ctime),
        is_regular: matches!(kind, Kind::Regular { .. }),
    })
}

#[cfg(test)]
mod tests;
