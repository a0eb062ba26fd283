//! Why a replica could not be opened, or an item not be applied.

use std::io;
use std::path::PathBuf;

use rustix::io::Errno;

use crate::model::TreePath;

/// Why a directory could not be opened as a replica.
#[derive(Debug, thiserror::Error)]
pub enum ReplicaError {
    /// Another process has it.
    #[error("{} is being written to by another process of this program", path.display())]
    Locked {
        /// The replica's root.
        path: PathBuf,
    },
    /// The system refused.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
}

impl ReplicaError {
    /// Returns whether the replica can be opened when its host is better.
    pub fn is_transient(&self) -> bool {
        matches!(self, ReplicaError::Io { source, .. } if is_transient(source))
    }
}

/// Returns whether an error is the host's: no room, no memory, a disk that fails.
fn is_transient(error: &io::Error) -> bool {
    matches!(
        Errno::from_io_error(error),
        Some(
            Errno::NOSPC
                | Errno::DQUOT
                | Errno::ROFS
                | Errno::IO
                | Errno::NOMEM
                | Errno::MFILE
                | Errno::NFILE
                | Errno::INTR
                | Errno::AGAIN
                | Errno::SHUTDOWN
                | Errno::UCLEAN
        )
    )
}

/// Why an item was not applied; the tree is as before it, or as after a part of it, and the
/// item may be applied again.
#[derive(Debug, thiserror::Error)]
#[error("cannot {action} {path}: {source}")]
pub struct ApplyError {
    /// The entry concerned.
    pub path: TreePath,
    /// What was tried.
    pub action: &'static str,
    /// Why it failed.
    pub source: io::Error,
    /// Whether no honest upstream says this.
    protocol: bool,
}

impl ApplyError {
    /// Returns an error of the system.
    pub fn new(path: &TreePath, action: &'static str, source: io::Error) -> Self {
        ApplyError { path: path.clone(), action, source, protocol: false }
    }

    /// Returns an error that no system call gave.
    pub fn because(path: &TreePath, action: &'static str, why: &'static str) -> Self {
        ApplyError::new(path, action, io::Error::new(io::ErrorKind::InvalidData, why))
    }

    /// Returns an error that ends the connection: what the upstream sent makes no sense.
    pub fn protocol(path: &TreePath, action: &'static str, why: &'static str) -> Self {
        ApplyError { protocol: true, ..ApplyError::because(path, action, why) }
    }

    /// Returns whether the upstream broke the protocol.
    pub fn is_protocol(&self) -> bool {
        self.protocol
    }

    /// Returns whether the same item may succeed later, when the host is better: it is a
    /// problem of the whole replica and not of this entry.
    pub fn is_transient(&self) -> bool {
        is_transient(&self.source)
    }

    /// Returns whether the disk is full or read-only, which is seen when it ends.
    pub fn wants_room(&self) -> bool {
        matches!(
            Errno::from_io_error(&self.source),
            Some(Errno::NOSPC | Errno::DQUOT | Errno::ROFS)
        )
    }

    /// Returns whether permissions are the reason.
    pub(super) fn is_denied(&self) -> bool {
        Errno::from_io_error(&self.source) == Some(Errno::ACCESS)
    }
}

/// What can still be written to the replica's file system.
#[derive(Debug, Clone, Copy)]
pub struct Room {
    total_bytes: u64,
    free_bytes: u64,
    free_inodes: u64,
    is_read_only: bool,
}

impl Room {
    pub(super) fn of(fd: impl std::os::fd::AsFd) -> io::Result<Room> {
        let stat = rustix::fs::fstatvfs(fd)?;
        Ok(Room {
            total_bytes: stat.f_blocks.saturating_mul(stat.f_frsize),
            free_bytes: stat.f_bavail.saturating_mul(stat.f_frsize),
            free_inodes: stat.f_favail,
            is_read_only: stat.f_flag.contains(rustix::fs::StatVfsMountFlags::RDONLY),
        })
    }

    /// Returns whether there is so much more than `before` that it is worth a try.
    pub fn is_more_than(&self, before: &Room) -> bool {
        let worth = (self.total_bytes / 256).clamp(1 << 20, 64 << 20);
        before.is_read_only && !self.is_read_only
            || self.free_bytes >= before.free_bytes.saturating_add(worth)
            || self.free_inodes > before.free_inodes && before.free_inodes < 16
    }
}

/// Puts a path and an action to a bare error.
pub(super) trait At<T> {
    fn at(self, path: &TreePath, action: &'static str) -> Result<T, ApplyError>;
}

impl<T, E: Into<io::Error>> At<T> for Result<T, E> {
    fn at(self, path: &TreePath, action: &'static str) -> Result<T, ApplyError> {
        self.map_err(|source| ApplyError::new(path, action, source.into()))
    }
}
