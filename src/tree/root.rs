//! The root of a tree, and how everything below it is reached.

use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, Mode, OFlags, ResolveFlags, StatxFlags};

use crate::model::limits::PATH_CALL_BYTES_MAX;
use crate::model::{Identity, TreePath};

/// The descriptor of a tree's root directory.
#[derive(Debug)]
pub struct Root {
    fd: OwnedFd,
    path: PathBuf,
}

impl Root {
    /// Opens the directory at `path`.
    pub fn open(path: &Path) -> io::Result<Root> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let fd = rustix::fs::open(path, flags, Mode::empty())?;
        Ok(Root { fd, path: path.to_path_buf() })
    }

    /// Returns the path that the root was opened by.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Returns the root's own identity.
    pub fn identity(&self) -> io::Result<Identity> {
        Ok(identity_of(&stat_fd(&self.fd)?))
    }

    /// Returns whether the path that the root was opened by still leads to it.
    pub fn is_in_place(&self) -> io::Result<bool> {
        let there = rustix::fs::statx(
            rustix::fs::CWD,
            &self.path,
            AtFlags::empty(),
            StatxFlags::BASIC_STATS,
        );
        match there {
            Ok(there) => Ok(identity_of(&there) == self.identity()?),
            Err(rustix::io::Errno::NOENT | rustix::io::Errno::NOTDIR) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    /// Opens the directory at `path` for reading, however deep it is.
    pub fn open_directory(&self, path: &TreePath) -> io::Result<OwnedFd> {
        self.open_directory_bytes(path.as_bytes())
    }

    /// As [`Root::open_directory`]; `path` is the bytes of a [`TreePath`].
    pub fn open_directory_bytes(&self, path: &[u8]) -> io::Result<OwnedFd> {
        self.open_beneath_bytes(path, OFlags::RDONLY | OFlags::DIRECTORY)
    }

    /// Opens the entry at `path`, however deep it is, with `flags` for its last name.
    pub fn open_beneath_bytes(&self, path: &[u8], flags: OFlags) -> io::Result<OwnedFd> {
        let mut rest = path;
        let mut directory: Option<OwnedFd> = None;
        loop {
            // One system call takes a path below PATH_MAX only: a longer one goes in pieces.
            let (piece, after) = if rest.len() <= PATH_CALL_BYTES_MAX {
                (rest, None)
            } else {
                let slash = rest[..PATH_CALL_BYTES_MAX]
                    .iter()
                    .rposition(|byte| *byte == b'/')
                    .ok_or(rustix::io::Errno::NAMETOOLONG)?;
                (&rest[..slash], Some(&rest[slash + 1..]))
            };
            let piece = if piece.is_empty() { &b"."[..] } else { piece };
            let at = directory.as_ref().map_or(self.fd.as_fd(), AsFd::as_fd);
            let Some(after) = after else { return Ok(open_beneath(at, piece, flags)?) };
            // On the way only search permission is needed, as within one call.
            directory = Some(open_beneath(at, piece, OFlags::PATH | OFlags::DIRECTORY)?);
            rest = after;
        }
    }
}

impl AsFd for Root {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// Opens `path` below `directory`: no symbolic link is followed, nothing above is reached.
pub fn open_beneath(
    directory: BorrowedFd<'_>,
    path: &[u8],
    flags: OFlags,
) -> rustix::io::Result<OwnedFd> {
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    loop {
        let opened = rustix::fs::openat2(
            directory,
            OsStr::from_bytes(path),
            flags | OFlags::CLOEXEC,
            Mode::empty(),
            resolve,
        );
        match opened {
            // The kernel could not rule out that a rename led outside meanwhile: try again.
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => {}
            opened => return opened,
        }
    }
}

/// Returns the status of an open file, birth time included where the file system has it.
pub fn stat_fd(fd: impl AsFd) -> rustix::io::Result<rustix::fs::Statx> {
    rustix::fs::statx(fd, "", AtFlags::EMPTY_PATH, StatxFlags::BASIC_STATS | StatxFlags::BTIME)
}

/// Returns which file a status is of.
pub fn identity_of(stat: &rustix::fs::Statx) -> Identity {
    let device = u64::from(stat.stx_dev_major) << 32 | u64::from(stat.stx_dev_minor);
    Identity { device, inode: stat.stx_ino }
}

/// Returns the status of the entry `name` itself, a symbolic link's own for one.
pub fn stat_at(directory: impl AsFd, name: &[u8]) -> rustix::io::Result<rustix::fs::Statx> {
    rustix::fs::statx(
        directory,
        OsStr::from_bytes(name),
        AtFlags::SYMLINK_NOFOLLOW,
        StatxFlags::BASIC_STATS | StatxFlags::BTIME,
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reaches_depths_beyond_path_max_and_never_leaves() {
        let temporary = tempfile::tempdir().unwrap();
        let root = Root::open(temporary.path()).unwrap();
        let name = "d".repeat(200);
        let mut path = TreePath::root();
        for _ in 0..40 {
            let parent = root.open_directory(&path).unwrap();
            rustix::fs::mkdirat(&parent, name.as_str(), Mode::RWXU).unwrap();
            path = path.join(name.as_bytes());
        }
        assert!(path.as_bytes().len() > 8000);
        root.open_directory(&path).unwrap();
        std::os::unix::fs::symlink("/", temporary.path().join("out")).unwrap();
        let out = root.open_directory(&TreePath::new("out/etc").unwrap()).unwrap_err();
        assert_eq!(out.raw_os_error(), Some(rustix::io::Errno::LOOP.raw_os_error()));
    }
}
