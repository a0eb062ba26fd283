//! Where a role keeps its state, and that nobody else does.

use std::ffi::OsString;
use std::fs::{DirBuilder, File, OpenOptions};
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::FlockOperation;

/// Longest name of a state directory, in bytes; below `NAME_MAX`, with room for a digest.
const NAME_BYTES_MAX: usize = 200;

/// A state directory that is this process's own while this value lives.
#[derive(Debug)]
pub struct StateDir {
    _lock: File,
}

/// Why a state directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StateDirError {
    /// It cannot be made, read or locked.
    #[error(
        "cannot use the state directory {}: {reason}; choose another by --state-dir",
        path.display()
    )]
    Io {
        /// The directory.
        path: PathBuf,
        /// Why not; no `source`, for the message has it already.
        reason: io::Error,
    },
    /// Another process holds it.
    #[error(
        "the state directory {} is in use by another mirror process; end that one, or give \
         this one its own by --state-dir", path.display()
    )]
    Locked {
        /// The directory.
        path: PathBuf,
    },
    /// Anybody could put anything there.
    #[error(
        "the state directory {} can be written by everybody; use one of your own, or \
         chmod 700 it", path.display()
    )]
    Open {
        /// The directory.
        path: PathBuf,
    },
    /// A replica cannot be made.
    #[error(
        "cannot make the directory {}: {reason}; make it, or choose another", path.display()
    )]
    Replica {
        /// The directory.
        path: PathBuf,
        /// Why not; no `source`, for the message has it already.
        reason: io::Error,
    },
}

impl StateDir {
    /// Makes the directory if it is missing, and locks it.
    pub fn lock(path: &Path) -> Result<StateDir, StateDirError> {
        create(path)?;
        let error = |reason| StateDirError::Io { path: path.to_path_buf(), reason };
        let mode = path.metadata().map_err(error)?.permissions().mode();
        // One that was there before keeps its mode: it may be anything, /tmp too.
        if mode & 0o002 != 0 {
            return Err(StateDirError::Open { path: path.to_path_buf() });
        }
        let lock = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .open(path.join("lock"))
            .map_err(error)?;
        match rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(StateDir { _lock: lock }),
            Err(rustix::io::Errno::WOULDBLOCK) => {
                Err(StateDirError::Locked { path: path.to_path_buf() })
            }
            Err(reason) => Err(error(reason.into())),
        }
    }
}

/// Makes a state directory, and those above it, for this user only.
pub fn create(path: &Path) -> Result<(), StateDirError> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .map_err(|reason| StateDirError::Io { path: path.to_path_buf(), reason })
}

/// Makes the directory that becomes a replica, if it is missing.
pub fn create_replica(path: &Path) -> Result<(), StateDirError> {
    std::fs::create_dir_all(path)
        .map_err(|reason| StateDirError::Replica { path: path.to_path_buf(), reason })
}

/// Returns the name of the state directory of the tree at `root`, an absolute path.
///
/// The name is what `systemd-escape --path` makes of the path, so that a unit's instance name
/// leads to it. A path too long for one name is cut, and told from others by a digest.
pub fn name_of(root: &Path) -> OsString {
    let escaped = escape_path(root.as_os_str().as_bytes());
    if escaped.len() <= NAME_BYTES_MAX {
        return OsString::from(escaped);
    }
    let digest = blake3::hash(root.as_os_str().as_bytes()).to_hex();
    OsString::from(format!("{}-{}", &escaped[..NAME_BYTES_MAX], &digest[..16]))
}

/// Escapes an absolute path as `systemd-escape --path` does: slashes become dashes, everything
/// but letters, digits, `:`, `_` and `.` its number, and a leading dot too.
fn escape_path(path: &[u8]) -> String {
    let names: Vec<&[u8]> =
        path.split(|byte| *byte == b'/').filter(|name| !name.is_empty()).collect();
    if names.is_empty() {
        return "-".to_string();
    }
    let mut escaped = String::new();
    for (index, byte) in names.join(&b'/').into_iter().enumerate() {
        match byte {
            b'/' => escaped.push('-'),
            b'.' if index == 0 => escaped.push_str("\\x2e"),
            b':' | b'_' | b'.' => escaped.push(byte.into()),
            _ if byte.is_ascii_alphanumeric() => escaped.push(byte.into()),
            _ => escaped.push_str(&format!("\\x{byte:02x}")),
        }
    }
    escaped
}

/// Returns the real path of `path`, of which the last names need not exist yet.
pub fn real_path(path: &Path) -> io::Result<PathBuf> {
    let mut existing = std::path::absolute(path)?;
    let mut missing = Vec::new();
    loop {
        match existing.canonicalize() {
            Ok(real) => return Ok(missing.iter().rev().fold(real, |path, name| path.join(name))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                // A name of `..` below a missing directory leads nowhere that we could know.
                let Some(name) = existing.file_name() else { return Err(error) };
                missing.push(OsString::from_vec(name.as_bytes().to_vec()));
                existing.pop();
            }
            Err(error) => return Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escapes_as_systemd_does() {
        // The right column is what systemd-escape --path printed.
        for (path, escaped) in [
            ("/", "-"),
            ("/srv/site", "srv-site"),
            ("/srv//site/", "srv-site"),
            ("/home/me/a-b c", r"home-me-a\x2db\x20c"),
            ("/.hidden/.x", r"\x2ehidden-.x"),
            ("/a_b:c.d", "a_b:c.d"),
            ("/ä@+\\", r"\xc3\xa4\x40\x2b\x5c"),
        ] {
            assert_eq!(escape_path(path.as_bytes()), escaped, "{path}");
        }
        assert_eq!(escape_path(b"/\xff"), r"\xff");
    }

    #[test]
    fn long_paths_have_names_of_their_own() {
        let one = PathBuf::from(format!("/{}/1", "long/".repeat(100)));
        let two = PathBuf::from(format!("/{}/2", "long/".repeat(100)));
        assert!(name_of(&one).len() < 255);
        assert_ne!(name_of(&one), name_of(&two));
    }

    #[test]
    fn a_second_holder_is_refused() {
        let temporary = tempfile::tempdir().unwrap();
        let path = temporary.path().join("a/b");
        let held = StateDir::lock(&path).unwrap();
        assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o700);
        assert!(matches!(StateDir::lock(&path), Err(StateDirError::Locked { .. })));
        drop(held);
        StateDir::lock(&path).unwrap();
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o777)).unwrap();
        assert!(matches!(StateDir::lock(&path), Err(StateDirError::Open { .. })));
    }

    #[test]
    fn real_paths_of_what_is_not_there_yet() {
        let temporary = tempfile::tempdir().unwrap();
        let real = temporary.path().canonicalize().unwrap();
        std::os::unix::fs::symlink(&real, real.join("link")).unwrap();
        assert_eq!(real_path(&real.join("link/x/y")).unwrap(), real.join("x/y"));
    }
}
