//! Reading the state of an entry, truly (I3) and without ever following a link.

use std::ffi::OsStr;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;

use rustix::fs::{FileType, Mode, OFlags, RawDir, SeekFrom, Statx};
use rustix::io::Errno;

use super::metadata::{entry_kind, metadata_of, read_xattrs, read_xattrs_at, timestamp};
use super::root::{Root, identity_of, open_beneath, stat_at, stat_fd};
use super::stage_reader::{StageReader, append};
use crate::model::path::check_name;
use crate::model::{Entry, Identity, Kind, Name, Timestamp, TreePath};

/// Reads states below one root.
#[derive(Debug)]
pub struct Reader {
    root: Root,
    /// The directory that was opened last: entries of one directory come one after another.
    directory: Option<OpenDirectory>,
    list_buffer: Vec<MaybeUninit<u8>>,
    /// Whether it was said that some attributes are not mirrored.
    left_out_said: bool,
    /// Called between the two halves of a look, so that tests can change the tree in that moment.
    #[cfg(test)]
    on_seen: Option<tests::Hook>,
}

/// Times that a path is looked at anew at once because something else is there than a moment
/// before.
const LOOKS_MAX: u32 = 8;

#[derive(Debug)]
struct OpenDirectory {
    path: Vec<u8>,
    fd: OwnedFd,
    holder: Holder,
}

/// The directory that holds an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Holder {
    /// Its inode.
    pub identity: Identity,
    /// Its modification time.
    pub mtime: Timestamp,
}

/// What is at a path.
#[derive(Debug)]
pub enum Seen {
    /// Nothing at `path`, which is the path asked for, or the first missing directory above it.
    Absent {
        /// Where nothing is.
        path: TreePath,
        /// The directory in which it is missing.
        holder: Option<Holder>,
    },
    /// This.
    Entry(Box<Opened>),
}

/// An entry whose attributes were read.
#[derive(Debug)]
pub struct Opened {
    /// Kind and attributes.
    pub entry: Entry,
    /// Its inode.
    pub identity: Identity,
    /// Time of its last change of any sort.
    pub ctime: Timestamp,
    /// How many names it has.
    pub links: u32,
    /// Whether some of its content is not allocated.
    pub has_holes: bool,
    /// The directory that holds it; `None` for the root.
    pub holder: Option<Holder>,
    /// The open file or directory, if it is one and could be opened.
    file: Option<OwnedFd>,
    stamp: Stamp,
}

/// What changes when a file's content does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stamp {
    identity: Identity,
    size: u64,
    mtime: Timestamp,
    ctime: Timestamp,
}

impl Stamp {
    /// Returns the size in bytes.
    pub(super) fn size(&self) -> u64 {
        self.size
    }

    /// Returns the file's inode.
    pub fn identity(&self) -> Identity {
        self.identity
    }

    /// Returns whether only attributes may have changed between the two.
    pub fn is_same_content(&self, other: &Stamp) -> bool {
        (self.identity, self.size, self.mtime) == (other.identity, other.size, other.mtime)
    }

    pub(super) fn of(stat: &Statx) -> Self {
        Stamp {
            identity: identity_of(stat),
            size: stat.stx_size,
            mtime: timestamp(stat.stx_mtime),
            ctime: timestamp(stat.stx_ctime),
        }
    }
}

impl Reader {
    /// Returns a reader of the tree below `root`.
    pub fn new(root: Root) -> Self {
        Reader {
            root,
            directory: None,
            list_buffer: vec![MaybeUninit::uninit(); 64 << 10],
            left_out_said: false,
            #[cfg(test)]
            on_seen: None,
        }
    }

    /// Returns the root.
    pub fn root(&self) -> &Root {
        &self.root
    }

    /// Forgets the open directory. To be called before each batch: a path means what it means
    /// now, and directories are renamed.
    pub fn forget(&mut self) {
        self.directory = None;
    }

    /// Looks at `path`; `open` says whether a regular file's content will be read.
    ///
    /// # Errors
    ///
    /// What keeps the entry from being read. That it comes or goes meanwhile does not, unless it
    /// does so again and again.
    pub fn look(&mut self, path: &TreePath, open: bool) -> io::Result<Seen> {
        for _ in 0..LOOKS_MAX {
            if let Some(seen) = self.look_once(path, open)? {
                return Ok(seen);
            }
            self.forget();
        }
        Err(io::Error::other("it comes and goes faster than it can be read"))
    }

    /// Returns `None` if something else is there than a moment before.
    fn look_once(&mut self, path: &TreePath, open: bool) -> io::Result<Option<Seen>> {
        let Some((parent, name)) = path.split_bytes() else {
            let fd = self.root.open_directory(path)?;
            let left_out = say_left_out(&mut self.left_out_said, path);
            return opened_directory(fd, None, left_out).map(|opened| Some(Seen::Entry(opened)));
        };
        if let Err(error) = self.enter(parent) {
            if is_absent(&error) {
                return self.first_missing(path);
            }
            return Err(error);
        }
        let Some(directory) = &self.directory else { return Err(Errno::NOENT.into()) };
        let holder = Some(directory.holder);
        let stat = match stat_at(&directory.fd, name) {
            Ok(stat) => stat,
            Err(Errno::NOENT) => return Ok(Some(Seen::Absent { path: path.clone(), holder })),
            Err(error) => return Err(error.into()),
        };
        #[cfg(test)]
        if let Some(hook) = &mut self.on_seen {
            hook.call();
        }
        let left_out = say_left_out(&mut self.left_out_said, path);
        match opened_entry(directory, name, stat, open, left_out) {
            Ok(opened) => Ok(Some(Seen::Entry(opened))),
            Err(error) => match stat_at(&directory.fd, name) {
                // Not by its inode alone: the number of one that went is given to the next.
                Ok(now) if (Stamp::of(&now), now.stx_mode) != (Stamp::of(&stat), stat.stx_mode) => {
                    Ok(None)
                }
                Err(Errno::NOENT) => Ok(None),
                _ => Err(error),
            },
        }
    }

    /// Lists an opened directory: names, sorted, with whether each is a directory. `None` if it
    /// was removed since it was opened.
    ///
    /// # Errors
    ///
    /// What keeps the directory from being read.
    pub fn list(&mut self, opened: &Opened) -> io::Result<Option<Vec<(Name, bool)>>> {
        let file = opened.file.as_ref().ok_or(Errno::NOTDIR)?;
        let mut names = Vec::new();
        let listed = list_directory(file, &mut self.list_buffer, |name, file_type| {
            let is_directory = match file_type {
                FileType::Unknown => stat_at(file, name).is_ok_and(|stat| {
                    FileType::from_raw_mode(stat.stx_mode.into()) == FileType::Directory
                }),
                known => known == FileType::Directory,
            };
            names.push((name.to_vec(), is_directory));
            Ok(())
        });
        match listed {
            Err(error) if is_absent(&error) => return Ok(None),
            listed => listed?,
        }
        names.sort_unstable();
        Ok(Some(names))
    }

    fn enter(&mut self, path: &[u8]) -> io::Result<()> {
        if self.directory.as_ref().is_some_and(|open| open.path == path) {
            return Ok(());
        }
        self.directory = None;
        let fd = self.root.open_directory_bytes(path)?;
        let holder = holder(&stat_fd(&fd)?);
        self.directory = Some(OpenDirectory { path: path.to_vec(), fd, holder });
        Ok(())
    }

    /// Finds the topmost directory of `path` that is missing; `None` if none is, or no more.
    fn first_missing(&mut self, path: &TreePath) -> io::Result<Option<Seen>> {
        let mut ancestors: Vec<&[u8]> = path.self_and_ancestors().collect();
        ancestors.pop(); // The root.
        for ancestor in ancestors.into_iter().rev() {
            let ancestor = TreePath::new(ancestor).map_err(|_| Errno::INVAL)?;
            let Some((parent, name)) = ancestor.split_bytes() else { continue };
            match self.enter(parent) {
                Ok(()) => {}
                Err(error) if is_absent(&error) => return Ok(None),
                Err(error) => return Err(error),
            }
            let Some(directory) = &self.directory else { return Ok(None) };
            let holder = Some(directory.holder);
            let is_directory = match stat_at(&directory.fd, name) {
                Ok(stat) => FileType::from_raw_mode(stat.stx_mode.into()) == FileType::Directory,
                Err(Errno::NOENT) => return Ok(Some(Seen::Absent { path: ancestor, holder })),
                Err(error) => return Err(error.into()),
            };
            if !is_directory {
                // What stands in the way has a record of its own; below it nothing can be.
                return Ok(Some(Seen::Absent { path: path.clone(), holder: None }));
            }
        }
        Ok(None)
    }
}

impl Opened {
    /// Appends the whole content to `buffer`. Returns whether the file stayed the same from the
    /// look to the end of the reading; if not, `buffer` has exactly the announced size all the
    /// same, for a caller who must send it as it was read.
    ///
    /// # Errors
    ///
    /// The system's, or `EBADF` if it was not opened for reading; what `buffer` has of the
    /// content then is of no use.
    pub fn read_whole(&self, buffer: &mut Vec<u8>) -> io::Result<bool> {
        let file = self.file.as_ref().ok_or(Errno::BADF)?;
        let size = self.stamp.size as usize;
        let whole = append(buffer, size, |_, space| rustix::io::read(file, space))?;
        Ok(whole && self.is_unchanged()?)
    }

    /// Returns whether the file is as it was when it was looked at.
    ///
    /// # Errors
    ///
    /// The system's, or `EBADF` if it was not opened for reading.
    pub fn is_unchanged(&self) -> io::Result<bool> {
        let file = self.file.as_ref().ok_or(Errno::BADF)?;
        Ok(Stamp::of(&stat_fd(file)?) == self.stamp)
    }

    /// Returns the stamp of the look.
    pub fn stamp(&self) -> Stamp {
        self.stamp
    }

    /// Returns the BLAKE3 of the content, of the announced size also in a file that grows, and
    /// whether the file stayed the same meanwhile.
    ///
    /// # Errors
    ///
    /// The system's, or `EBADF` if it was not opened for reading.
    pub fn digest(&self) -> io::Result<([u8; 32], bool)> {
        let file = self.file.as_ref().ok_or(Errno::BADF)?;
        let mut hasher = blake3::Hasher::new();
        let mut rest = self.stamp.size;
        let mut buffer = vec![0; usize::try_from(rest).unwrap_or(usize::MAX).min(256 << 10)];
        while rest > 0 {
            let want = buffer.len().min(usize::try_from(rest).unwrap_or(usize::MAX));
            match rustix::io::read(file, &mut buffer[..want]) {
                Ok(0) => break,
                Ok(count) => {
                    hasher.update(&buffer[..count]);
                    rest -= count as u64;
                }
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok((hasher.finalize().into(), self.is_unchanged()?))
    }

    /// Takes the open file for staging.
    ///
    /// # Errors
    ///
    /// `EBADF` if it was not opened for reading.
    pub fn into_stage(self) -> io::Result<StageReader> {
        let file = self.file.ok_or(Errno::BADF)?;
        Ok(StageReader::new(file, self.stamp))
    }
}

/// Returns what says, the first time, that an attribute of the entry at `path` is not mirrored:
/// where a host's security module has one on each file, once must do.
fn say_left_out<'a>(said: &'a mut bool, path: &'a TreePath) -> impl FnMut(&[u8]) + 'a {
    move |name| {
        if !std::mem::replace(said, true) {
            tracing::warn!(
                "{path}: the extended attribute {} is not mirrored, nor are others of a host's \
                 security modules and file systems; this is said once",
                name.escape_ascii()
            );
        }
    }
}

/// Opens the entry `name` of a directory, which has the status `stat`, and reads its attributes.
fn opened_entry(
    directory: &OpenDirectory,
    name: &[u8],
    stat: Statx,
    open: bool,
    left_out: impl FnMut(&[u8]),
) -> io::Result<Box<Opened>> {
    let holder = Some(directory.holder);
    let file_type = FileType::from_raw_mode(stat.stx_mode.into());
    if file_type == FileType::Directory {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW;
        let fd = open_beneath(directory.fd.as_fd(), name, flags)?;
        return opened_directory(fd, holder, left_out);
    }
    let file = match file_type {
        FileType::RegularFile if open => Some(open_quietly(directory.fd.as_fd(), name)?),
        _ => None,
    };
    // The status from before the content is read: what it is compared with afterwards.
    let stat = match &file {
        Some(file) => stat_fd(file)?,
        None => stat,
    };
    let xattrs = match &file {
        Some(file) => read_xattrs(file, left_out)?,
        None => read_xattrs_at(directory.fd.as_fd(), name, left_out)?,
    };
    let kind = entry_kind(&stat, || {
        let name = OsStr::from_bytes(name);
        Ok(rustix::fs::readlinkat(&directory.fd, name, Vec::new())?.into_bytes())
    })?;
    let has_holes = match (&kind, &file) {
        (Kind::Regular { size }, Some(file)) => has_holes(&stat, *size, file)?,
        _ => false,
    };
    Ok(Box::new(Opened {
        entry: Entry { kind, metadata: metadata_of(&stat, xattrs) },
        identity: identity_of(&stat),
        ctime: timestamp(stat.stx_ctime),
        links: stat.stx_nlink,
        has_holes,
        holder,
        file,
        stamp: Stamp::of(&stat),
    }))
}

fn opened_directory(
    fd: OwnedFd,
    holder: Option<Holder>,
    left_out: impl FnMut(&[u8]),
) -> io::Result<Box<Opened>> {
    let stat = stat_fd(&fd)?;
    let xattrs = read_xattrs(&fd, left_out)?;
    Ok(Box::new(Opened {
        entry: Entry { kind: Kind::Directory, metadata: metadata_of(&stat, xattrs) },
        identity: identity_of(&stat),
        ctime: timestamp(stat.stx_ctime),
        links: 1,
        has_holes: false,
        holder,
        file: Some(fd),
        stamp: Stamp::of(&stat),
    }))
}

/// Calls `each` with every name of a directory that was just opened, but not with `.` and `..`.
///
/// # Errors
///
/// What `each` returns, and what keeps the directory from being read; that nothing is there, if
/// it was removed since it was opened.
pub fn list_directory(
    fd: impl AsFd,
    buffer: &mut [MaybeUninit<u8>],
    mut each: impl FnMut(&[u8], FileType) -> io::Result<()>,
) -> io::Result<()> {
    let mut iterator = RawDir::new(fd, buffer);
    while let Some(entry) = iterator.next() {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        // A name that cannot be mirrored is `.` or `..`, or the file system is damaged.
        if check_name(name).is_ok() {
            each(name, entry.file_type())?;
        }
    }
    Ok(())
}

/// Calls `each` with every name and inode number, which costs no look at the inode.
///
/// # Errors
///
/// The system's; `each` was called for a part of the names then.
pub fn list_inodes(
    fd: impl AsFd,
    buffer: &mut [MaybeUninit<u8>],
    mut each: impl FnMut(&[u8], u64),
) -> io::Result<()> {
    let mut iterator = RawDir::new(fd, buffer);
    while let Some(entry) = iterator.next() {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if check_name(name).is_ok() {
            each(name, entry.ino());
        }
    }
    Ok(())
}

/// Returns whether an error says that nothing is there.
pub fn is_absent(error: &io::Error) -> bool {
    [Errno::NOENT, Errno::NOTDIR, Errno::LOOP]
        .iter()
        .any(|absent| error.raw_os_error() == Some(absent.raw_os_error()))
}

/// Opens a regular file without touching its access time where we may.
fn open_quietly(
    directory: std::os::fd::BorrowedFd<'_>,
    name: &[u8],
) -> rustix::io::Result<OwnedFd> {
    let name = OsStr::from_bytes(name);
    // Non-blocking, for it may have become a pipe since it was looked at.
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    match rustix::fs::openat(directory, name, flags | OFlags::NOATIME, Mode::empty()) {
        Err(Errno::PERM) => rustix::fs::openat(directory, name, flags, Mode::empty()),
        opened => opened,
    }
}

fn has_holes(stat: &Statx, size: u64, file: &OwnedFd) -> io::Result<bool> {
    if stat.stx_blocks * 512 >= size {
        return Ok(false);
    }
    // Fewer blocks than bytes may also mean that nothing was written back yet.
    match rustix::fs::seek(file, SeekFrom::Hole(0)) {
        Ok(hole) => {
            rustix::fs::seek(file, SeekFrom::Start(0))?;
            Ok(hole < size)
        }
        Err(Errno::INVAL | Errno::NXIO) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

fn holder(stat: &Statx) -> Holder {
    Holder { identity: identity_of(stat), mtime: timestamp(stat.stx_mtime) }
}

#[cfg(test)]
mod tests;
