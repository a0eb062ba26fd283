//! Reading and setting what a replica preserves besides content.
//!
//! Existing entries are reached by *handles*: descriptors opened with `O_PATH`, which need no
//! permission on the entry, never block on a FIFO and stand for a symbolic link itself. What
//! the kernel refuses on a handle is done through its name in `/proc/self/fd`.
//!
//! Owners and attributes that the kernel refuses to an unprivileged process, or that the file
//! system cannot hold, are counted and otherwise passed over: they are differences, not errors.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use rustix::fs::{
    AtFlags, FileType, Gid, Mode, Statx, StatxTimestamp, Timespec, Timestamps, UTIME_OMIT, Uid,
    XattrFlags,
};
use rustix::io::Errno;

use super::working_directory::Stay;
use crate::model::limits::XATTR_BYTES_MAX;
use crate::model::{Kind, Metadata, Timestamp, Xattr};

/// Returns the moment that a `statx` answer names.
pub fn timestamp(time: StatxTimestamp) -> Timestamp {
    Timestamp { seconds: time.tv_sec, nanoseconds: time.tv_nsec }
}

/// Returns the permission bits of a `statx` answer, setuid, setgid and sticky included.
pub fn mode_bits(stat: &Statx) -> u32 {
    u32::from(stat.stx_mode) & 0o7777
}

/// Returns the type of the entry that a `statx` answer describes.
pub fn file_type(stat: &Statx) -> FileType {
    FileType::from_raw_mode(stat.stx_mode.into())
}

/// Returns what the entry is; `target` is asked for what a symbolic link says.
pub fn entry_kind(stat: &Statx, target: impl FnOnce() -> io::Result<Vec<u8>>) -> io::Result<Kind> {
    let (major, minor) = (stat.stx_rdev_major, stat.stx_rdev_minor);
    Ok(match file_type(stat) {
        FileType::RegularFile => Kind::Regular { size: stat.stx_size },
        FileType::Directory => Kind::Directory,
        FileType::Symlink => Kind::Symlink { target: target()? },
        FileType::Fifo => Kind::Fifo,
        FileType::Socket => Kind::Socket,
        FileType::CharacterDevice => Kind::CharDevice { major, minor },
        FileType::BlockDevice => Kind::BlockDevice { major, minor },
        FileType::Unknown => return Err(io::Error::other("an entry of unknown kind")),
    })
}

/// Returns whether the extended attribute `name` is part of what a replica preserves.
///
/// Attributes of the host's own security modules stay its own, and so do those by which an
/// overlay file system marks what it hides.
pub fn is_mirrored(name: &[u8]) -> bool {
    name.starts_with(b"user.")
        || name == ACL_ACCESS
        || name == ACL_DEFAULT
        || name == b"security.capability"
        || name.starts_with(b"trusted.")
            && !name.starts_with(b"trusted.overlay.")
            && !is_acl_of_xfs(name)
}

/// Returns whether this is how xfs shows root an ACL a second time: mirrored as the ACL that it
/// is, and gone with it.
fn is_acl_of_xfs(name: &[u8]) -> bool {
    name.starts_with(b"trusted.SGI_ACL_")
}

/// Reads the mirrored attributes of an open file or directory, sorted by name; `left_out` is
/// called with the names of the others.
///
/// # Errors
///
/// What keeps the attributes from being read.
pub fn read_xattrs(fd: impl AsFd, left_out: impl FnMut(&[u8])) -> io::Result<Vec<Xattr>> {
    let fd = fd.as_fd();
    read_with(
        left_out,
        |buffer| rustix::fs::flistxattr(fd, buffer),
        |name, buffer| rustix::fs::fgetxattr(fd, name, buffer),
    )
}

/// As [`read_xattrs`], of the entry `name` itself.
///
/// # Errors
///
/// What keeps the attributes from being read.
pub fn read_xattrs_at(
    directory: impl AsFd,
    name: &[u8],
    left_out: impl FnMut(&[u8]),
) -> io::Result<Vec<Xattr>> {
    NamedXattrs::new(directory).read(name, left_out)
}

/// Reads the mirrored attributes of many entries of one directory, by their names. It is the
/// thread's working directory meanwhile.
#[derive(Debug)]
pub struct NamedXattrs {
    /// What leads to the directory, and then the name of an entry.
    path: Vec<u8>,
    directory_bytes: usize,
    _stay: Option<Stay>,
}

impl NamedXattrs {
    /// Returns what reads in this directory, which must stay open.
    pub fn new(directory: impl AsFd) -> Self {
        let stay = Stay::begin(&directory);
        let path = match stay {
            Some(_) => Vec::new(),
            None => format!("{}/", descriptor_path(directory.as_fd())).into_bytes(),
        };
        NamedXattrs { directory_bytes: path.len(), path, _stay: stay }
    }

    /// As [`read_xattrs`], of the entry `name` itself. It costs no memory if there are none.
    ///
    /// # Errors
    ///
    /// What keeps the attributes from being read.
    pub fn read(&mut self, name: &[u8], left_out: impl FnMut(&[u8])) -> io::Result<Vec<Xattr>> {
        self.path.truncate(self.directory_bytes);
        self.path.extend_from_slice(name);
        let path = &self.path[..];
        read_with(
            left_out,
            |buffer| rustix::fs::llistxattr(path, buffer),
            |name, buffer| rustix::fs::lgetxattr(path, name, buffer),
        )
    }
}

/// Returns the metadata that a `statx` answer names, with these attributes.
pub fn metadata_of(stat: &Statx, xattrs: Vec<Xattr>) -> Metadata {
    Metadata {
        mode: mode_bits(stat),
        uid: stat.stx_uid,
        gid: stat.stx_gid,
        mtime: timestamp(stat.stx_mtime),
        xattrs,
    }
}

/// Reads the mirrored attributes of the entry behind a handle, sorted by name.
pub fn read_xattrs_handle(handle: impl AsFd) -> io::Result<Vec<Xattr>> {
    let path = descriptor_path(handle.as_fd());
    read_with(
        |_| (),
        |buffer| rustix::fs::listxattr(&path[..], buffer),
        |name, buffer| rustix::fs::getxattr(&path[..], name, buffer),
    )
}

/// What a new entry has from its creation.
#[derive(Debug, Clone, Copy)]
pub struct Made {
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Permission bits.
    pub mode: u32,
}

/// Gives an open file or directory that was created a moment ago, and has no attributes yet,
/// those that are `wanted`. Returns how many were refused.
pub fn settle_new(fd: BorrowedFd<'_>, wanted: &Metadata, made: Made) -> io::Result<u64> {
    let mut refused = 0;
    let mut mode = wanted.mode;
    let mut chmod = mode != made.mode;
    if (wanted.uid, wanted.gid) != (made.uid, made.gid) {
        let given = give_owner(fd, wanted.uid, wanted.gid)?;
        refused += given.refused();
        mode = given.allowed_mode(mode);
        // A change of owner takes setuid and setgid away, so these come after it.
        chmod = mode != made.mode;
    }
    for xattr in wanted.xattrs.iter().filter(|xattr| is_mirrored(&xattr.name)) {
        let set = rustix::fs::fsetxattr(fd, &xattr.name[..], &xattr.value, XattrFlags::empty());
        refused += tolerate(fd, set)?;
        chmod |= xattr.name == ACL_ACCESS;
    }
    if chmod {
        rustix::fs::fchmod(fd, Mode::from_raw_mode(mode))?;
    }
    rustix::fs::futimens(fd, &times(wanted.mtime))?;
    Ok(refused)
}

/// Which attributes [`fix`] leaves alone because they are set later.
#[derive(Debug, Clone, Copy, Default)]
pub struct Later {
    /// Permission bits.
    pub mode: bool,
    /// Time of modification.
    pub mtime: bool,
}

/// Changes what differs from `wanted` in the existing entry behind `handle`, whose status is
/// `stat`. Returns how many attributes were refused.
pub fn fix(
    handle: BorrowedFd<'_>,
    stat: &Statx,
    wanted: &Metadata,
    later: Later,
) -> io::Result<u64> {
    let mut refused = 0;
    let mut mode = wanted.mode;
    let is_symlink = file_type(stat) == FileType::Symlink;
    let mut chmod = mode != mode_bits(stat);
    if (wanted.uid, wanted.gid) != (stat.stx_uid, stat.stx_gid) {
        let given = give_owner(handle, wanted.uid, wanted.gid)?;
        refused += given.refused();
        mode = given.allowed_mode(mode);
        // Setuid and setgid went with the old owner.
        chmod = mode != mode_bits(stat) || mode & 0o6000 != 0;
    }
    let fixed = match fix_xattrs(handle, wanted) {
        // Its own mode may keep even the owner from the attributes.
        Err(error) if Errno::from_io_error(&error) == Some(Errno::ACCESS) && !is_symlink => {
            chmod_handle(handle, mode_bits(stat) | 0o600)?;
            chmod = true;
            fix_xattrs(handle, wanted)?
        }
        fixed => fixed?,
    };
    refused += fixed.refused;
    if (chmod || fixed.acl_set) && !later.mode && !is_symlink {
        chmod_handle(handle, mode)?;
    }
    if timestamp(stat.stx_mtime) != wanted.mtime && !later.mtime {
        set_mtime(handle, wanted.mtime)?;
    }
    Ok(refused)
}

/// Sets the permission bits of the entry behind a handle, which is no symbolic link.
pub fn chmod_handle(handle: impl AsFd, mode: u32) -> io::Result<()> {
    let path = descriptor_path(handle.as_fd());
    Ok(rustix::fs::chmod(&path[..], Mode::from_raw_mode(mode))?)
}

/// Sets the time of modification of the entry behind a handle.
pub fn set_mtime(handle: impl AsFd, mtime: Timestamp) -> io::Result<()> {
    Ok(rustix::fs::utimensat(handle, "", &times(mtime), AtFlags::EMPTY_PATH)?)
}

/// Sets the time of modification of the entry `name` itself.
pub fn set_mtime_at(directory: impl AsFd, name: &[u8], mtime: Timestamp) -> io::Result<()> {
    Ok(rustix::fs::utimensat(directory, name, &times(mtime), AtFlags::SYMLINK_NOFOLLOW)?)
}

/// Removes every mirrored attribute, such as an ACL that the parent's default made it inherit.
pub fn clear_xattrs(fd: impl AsFd) -> io::Result<()> {
    let fd = fd.as_fd();
    for xattr in read_xattrs(fd, |_| ())? {
        tolerate(fd, rustix::fs::fremovexattr(fd, &xattr.name[..]))?;
    }
    Ok(())
}

/// Which halves of an owner were given.
#[derive(Debug, Clone, Copy)]
struct Given {
    uid: bool,
    gid: bool,
}

impl Given {
    fn refused(self) -> u64 {
        u64::from(!self.uid) + u64::from(!self.gid)
    }

    /// A program must not run with the rights of an owner that it was never meant to have.
    fn allowed_mode(self, mode: u32) -> u32 {
        let mut mode = mode;
        if !self.uid {
            mode &= !0o4000;
        }
        if !self.gid {
            mode &= !0o2000;
        }
        mode
    }
}

fn give_owner(fd: BorrowedFd<'_>, uid: u32, gid: u32) -> io::Result<Given> {
    let (uid, gid) = (Uid::from_raw(uid), Gid::from_raw(gid));
    let change = |uid, gid| rustix::fs::chownat(fd, "", uid, gid, AtFlags::EMPTY_PATH);
    // EINVAL: the number means nothing in this user namespace.
    match change(Some(uid), Some(gid)) {
        Ok(()) => Ok(Given { uid: true, gid: true }),
        Err(Errno::PERM | Errno::INVAL) => {
            let mut given = Given { uid: false, gid: false };
            match change(None, Some(gid)) {
                Ok(()) => given.gid = true,
                Err(Errno::PERM | Errno::INVAL) => {}
                Err(error) => return Err(error.into()),
            }
            let now = crate::tree::root::stat_fd(fd)?;
            given.uid = now.stx_uid == uid.as_raw();
            given.gid |= now.stx_gid == gid.as_raw();
            Ok(given)
        }
        Err(error) => Err(error.into()),
    }
}

struct FixedXattrs {
    refused: u64,
    acl_set: bool,
}

fn fix_xattrs(handle: BorrowedFd<'_>, wanted: &Metadata) -> io::Result<FixedXattrs> {
    let mut fixed = FixedXattrs { refused: 0, acl_set: false };
    let present = read_xattrs_handle(handle)?;
    if present.is_empty() && wanted.xattrs.is_empty() {
        return Ok(fixed);
    }
    let path = descriptor_path(handle);
    for xattr in &present {
        if !wanted.xattrs.iter().any(|other| other.name == xattr.name) {
            let removed = rustix::fs::removexattr(&path[..], &xattr.name[..]);
            fixed.refused += tolerate(handle, removed)?;
        }
    }
    for xattr in wanted.xattrs.iter().filter(|xattr| is_mirrored(&xattr.name)) {
        if !present.contains(xattr) {
            let set =
                rustix::fs::setxattr(&path[..], &xattr.name[..], &xattr.value, XattrFlags::empty());
            fixed.refused += tolerate(handle, set)?;
            fixed.acl_set |= xattr.name == ACL_ACCESS;
        }
    }
    Ok(fixed)
}

/// Counts a refusal that says that this process or file system cannot hold the attribute.
fn tolerate(fd: BorrowedFd<'_>, result: rustix::io::Result<()>) -> io::Result<u64> {
    match result {
        Ok(()) | Err(Errno::NODATA) => Ok(0),
        Err(Errno::PERM | Errno::OPNOTSUPP | Errno::TOOBIG | Errno::RANGE) => Ok(1),
        // Many hold only so much for one entry, and say the same as when all is full.
        Err(Errno::NOSPC) if has_room(fd) => Ok(1),
        Err(error) => Err(error.into()),
    }
}

/// Whether there is room for any attribute on the file system, so that its lack is the entry's.
fn has_room(fd: BorrowedFd<'_>) -> bool {
    rustix::fs::fstatvfs(fd)
        .is_ok_and(|stat| stat.f_bavail.saturating_mul(stat.f_frsize) >= 4 * XATTR_BYTES_MAX as u64)
}

fn read_with(
    mut left_out: impl FnMut(&[u8]),
    mut list: impl FnMut(&mut [u8]) -> rustix::io::Result<usize>,
    mut get: impl FnMut(&[u8], &mut [u8]) -> rustix::io::Result<usize>,
) -> io::Result<Vec<Xattr>> {
    let mut small = [0; 1024];
    let large;
    let names = match list(&mut small) {
        Ok(0) | Err(Errno::OPNOTSUPP) => return Ok(Vec::new()),
        Ok(length) => &small[..length],
        Err(Errno::RANGE) => {
            let mut buffer = vec![0; XATTR_BYTES_MAX];
            let length = list(&mut buffer)?;
            buffer.truncate(length);
            large = buffer;
            &large[..]
        }
        Err(error) => return Err(error.into()),
    };
    let mut xattrs = Vec::new();
    for name in names.split(|byte| *byte == 0).filter(|name| !name.is_empty()) {
        if !is_mirrored(name) {
            if !is_acl_of_xfs(name) {
                left_out(name);
            }
            continue;
        }
        let mut small = [0; 1024];
        let value = match get(name, &mut small) {
            Ok(length) => small[..length].to_vec(),
            Err(Errno::RANGE) => {
                let mut buffer = vec![0; XATTR_BYTES_MAX];
                let length = get(name, &mut buffer)?;
                buffer.truncate(length);
                buffer
            }
            // It went between the two calls.
            Err(Errno::NODATA | Errno::OPNOTSUPP) => continue,
            Err(error) => return Err(error.into()),
        };
        xattrs.push(Xattr { name: name.to_vec(), value });
    }
    xattrs.sort_unstable();
    Ok(xattrs)
}

fn times(mtime: Timestamp) -> Timestamps {
    Timestamps {
        last_access: Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT },
        last_modification: Timespec { tv_sec: mtime.seconds, tv_nsec: mtime.nanoseconds.into() },
    }
}

fn descriptor_path(fd: BorrowedFd<'_>) -> String {
    format!("/proc/self/fd/{}", fd.as_raw_fd())
}

const ACL_ACCESS: &[u8] = b"system.posix_acl_access";
const ACL_DEFAULT: &[u8] = b"system.posix_acl_default";
