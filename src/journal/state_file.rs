//! State files: small, checksummed, versioned, replaced durably and as a whole.
//!
//! ```text
//! offset   bytes  little-endian
//!      0       8  magic, "mirrorS\n"
//!      8      16  kind: the file's name, filled up with zeros
//!     24       4  version of the payload's format
//!     28       4  payload length
//!     32       n  payload, postcard
//! 32 + n       4  CRC-32 of everything before
//! ```
//!
//! What always holds: under its name a state file is absent, the old one or the new one, and
//! after [`StateFile::save`] returned it is the new one, also after a power cut. This envelope
//! is the same for all versions, so that a newer program's file is told from a damaged one.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, Mode, OFlags};
use rustix::io::Errno;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::FileError;
use crate::model::limits::STATE_FILE_BYTES_MAX;

/// Replaces the state file `name` in the directory at `path`; see [`StateFile::save`].
pub fn save(
    path: &Path,
    name: &'static str,
    version: u16,
    value: &impl Serialize,
) -> Result<(), FileError> {
    StateFile::new(name, version).save(&Directory::open(path)?, value)
}

/// Returns what the state file `name` in the directory at `path` holds, `None` if there is no
/// such file.
pub fn load<T: DeserializeOwned>(
    path: &Path,
    name: &'static str,
    version: u16,
) -> Result<Option<T>, FileError> {
    StateFile::new(name, version).load(&Directory::open(path)?)
}

/// The name and the format of one kind of state file.
#[derive(Debug, Clone, Copy)]
pub struct StateFile {
    name: &'static str,
    version: u16,
}

impl StateFile {
    /// Returns the state file `name`, whose payload has the format `version`.
    ///
    /// # Panics
    ///
    /// If the name does not fit into the file, where it stands too, so that a file under
    /// another's name is not misread.
    pub const fn new(name: &'static str, version: u16) -> StateFile {
        assert!(!name.is_empty() && name.len() <= KIND_BYTES);
        StateFile { name, version }
    }

    /// Returns the file's name.
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// Replaces the file by one that holds `value`, durably.
    ///
    /// # Errors
    ///
    /// The file is the old one or the new one then; saving again is safe.
    ///
    /// # Panics
    ///
    /// If `value` takes more than [`STATE_FILE_BYTES_MAX`], which no caller's limits allow.
    pub fn save<'a>(
        &self,
        directory: impl Into<DirectoryRef<'a>>,
        value: &impl Serialize,
    ) -> Result<(), FileError> {
        let directory = directory.into();
        let bytes = self.encode(value);
        // A fixed name: what a crash leaves behind is replaced, and never grows in number.
        let temporary = format!("{}.new", self.name);
        let io_error = |action, source: io::Error| directory.error(&temporary, action, source);
        match rustix::fs::unlinkat(directory.fd, &temporary, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(error) => return Err(io_error("remove", error.into())),
        }
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        let mode = Mode::RUSR | Mode::WUSR;
        let fd = rustix::fs::openat(directory.fd, &temporary, flags, mode)
            .map_err(|error| io_error("create", error.into()))?;
        let mut file = File::from(fd);
        file.write_all(&bytes).map_err(|error| io_error("write", error))?;
        file.sync_data().map_err(|error| io_error("synchronise", error))?;
        rustix::fs::renameat(directory.fd, &temporary, directory.fd, self.name)
            .map_err(|error| directory.error(self.name, "replace", error.into()))?;
        directory.sync()
    }

    /// Returns what the file holds, `None` if there is no such file.
    pub fn load<'a, T: DeserializeOwned>(
        &self,
        directory: impl Into<DirectoryRef<'a>>,
    ) -> Result<Option<T>, FileError> {
        let directory = directory.into();
        // Non-blocking, for under this name could be a pipe, which would be waited for.
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let fd = match rustix::fs::openat(directory.fd, self.name, flags, Mode::empty()) {
            Ok(fd) => fd,
            Err(Errno::NOENT) => return Ok(None),
            Err(error) => return Err(directory.error(self.name, "open", error.into())),
        };
        let damaged = |reason| FileError::damaged(&directory.path_of(self.name), reason);
        let file = File::from(fd);
        let metadata =
            file.metadata().map_err(|error| directory.error(self.name, "read", error))?;
        if !metadata.is_file() {
            return Err(damaged("it is not a regular file".to_string()));
        }
        let mut bytes = Vec::new();
        // One byte more than may be, so that a longer file is seen as such.
        file.take(STATE_FILE_BYTES_MAX as u64 + 1)
            .read_to_end(&mut bytes)
            .map_err(|error| directory.error(self.name, "read", error))?;
        match self.decode(&bytes) {
            Ok(value) => Ok(Some(value)),
            Err(DecodeError::Damaged(reason)) => Err(damaged(reason)),
            Err(DecodeError::UnknownVersion(version)) => Err(FileError::UnknownVersion {
                path: directory.path_of(self.name),
                version,
                known: self.version.into(),
                whole: "file",
            }),
        }
    }

    fn kind(&self) -> [u8; KIND_BYTES] {
        let mut kind = [0; KIND_BYTES];
        kind[..self.name.len()].copy_from_slice(self.name.as_bytes());
        kind
    }

    fn encode(&self, value: &impl Serialize) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(256);
        bytes.extend_from_slice(&MAGIC);
        bytes.extend_from_slice(&self.kind());
        bytes.extend_from_slice(&u32::from(self.version).to_le_bytes());
        bytes.extend_from_slice(&[0; 4]);
        let mut bytes =
            postcard::to_extend(value, bytes).expect("plain data in memory can be encoded");
        assert!(bytes.len() + TRAILER_BYTES <= STATE_FILE_BYTES_MAX, "{} is too long", self.name);
        let length = (bytes.len() - HEADER_BYTES) as u32;
        bytes[28..32].copy_from_slice(&length.to_le_bytes());
        let checksum = crc32fast::hash(&bytes);
        bytes.extend_from_slice(&checksum.to_le_bytes());
        bytes
    }

    fn decode<T: DeserializeOwned>(&self, bytes: &[u8]) -> Result<T, DecodeError> {
        let damaged = |reason: &str| DecodeError::Damaged(reason.to_string());
        if bytes.len() > STATE_FILE_BYTES_MAX {
            return Err(damaged("it is longer than any state file"));
        }
        let Some((body, trailer)) = bytes.split_last_chunk::<TRAILER_BYTES>() else {
            return Err(damaged("it is too short"));
        };
        let Some((header, payload)) = body.split_first_chunk::<HEADER_BYTES>() else {
            return Err(damaged("it is too short"));
        };
        if header[..8] != MAGIC {
            return Err(damaged("it does not begin as a state file does"));
        }
        if crc32fast::hash(body) != u32::from_le_bytes(*trailer) {
            return Err(damaged("its checksum does not agree"));
        }
        // From here on the file is as it was written: what is strange is from another program.
        if header[8..24] != self.kind() {
            return Err(damaged("it is another kind of state file under this name"));
        }
        let word = |at: usize| {
            u32::from_le_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]])
        };
        if word(24) != u32::from(self.version) {
            return Err(DecodeError::UnknownVersion(word(24)));
        }
        if word(28) as usize != payload.len() {
            return Err(damaged("its length does not agree"));
        }
        match postcard::take_from_bytes(payload) {
            Ok((value, [])) => Ok(value),
            Ok(_) => Err(damaged("bytes follow what it should hold")),
            Err(error) => Err(DecodeError::Damaged(format!("undecodable: {error}"))),
        }
    }
}

/// A directory that holds state, open, with the name that errors give it.
#[derive(Debug)]
pub struct Directory {
    fd: OwnedFd,
    path: PathBuf,
}

impl Directory {
    /// Opens the directory at `path`, which must be there.
    pub fn open(path: &Path) -> Result<Directory, FileError> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let fd = rustix::fs::open(path, flags, Mode::empty())
            .map_err(|error| FileError::io(path, "open", error))?;
        Ok(Directory::new(fd, path.to_path_buf()))
    }

    /// Takes `fd`, an open directory; `path` is only what errors call it.
    pub fn new(fd: OwnedFd, path: PathBuf) -> Directory {
        Directory { fd, path }
    }

    /// Returns what errors call the directory.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl AsFd for Directory {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// An open directory on loan: a [`Directory`], or a descriptor alone.
#[derive(Debug, Clone, Copy)]
pub struct DirectoryRef<'a> {
    fd: BorrowedFd<'a>,
    path: Option<&'a Path>,
}

impl DirectoryRef<'_> {
    /// Makes the names in the directory durable as they are.
    pub fn sync(&self) -> Result<(), FileError> {
        rustix::fs::fsync(self.fd)
            .map_err(|error| FileError::io(&self.path(), "synchronise", error))
    }

    /// Returns what errors call the directory.
    fn path(&self) -> PathBuf {
        match self.path {
            Some(path) => path.to_path_buf(),
            // Only for the message, and only the kernel knows.
            None => std::fs::read_link(format!("/proc/self/fd/{}", self.fd.as_raw_fd()))
                .unwrap_or_default(),
        }
    }

    fn path_of(&self, name: &str) -> PathBuf {
        self.path().join(name)
    }

    fn error(&self, name: &str, action: &'static str, source: io::Error) -> FileError {
        FileError::io(&self.path_of(name), action, source)
    }
}

impl<'a> From<&'a Directory> for DirectoryRef<'a> {
    fn from(directory: &'a Directory) -> Self {
        DirectoryRef { fd: directory.fd.as_fd(), path: Some(&directory.path) }
    }
}

impl<'a> From<BorrowedFd<'a>> for DirectoryRef<'a> {
    fn from(fd: BorrowedFd<'a>) -> Self {
        DirectoryRef { fd, path: None }
    }
}

enum DecodeError {
    Damaged(String),
    UnknownVersion(u32),
}

const MAGIC: [u8; 8] = *b"mirrorS\n";
const KIND_BYTES: usize = 16;
const HEADER_BYTES: usize = 32;
const TRAILER_BYTES: usize = 4;

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: StateFile = StateFile::new("thing", 3);

    #[test]
    fn what_is_saved_is_loaded_and_absence_is_not_an_error() {
        let temporary = tempfile::tempdir().unwrap();
        let directory = Directory::open(temporary.path()).unwrap();
        assert_eq!(FILE.load::<String>(&directory).unwrap(), None);
        // What a crash left behind is in nobody's way.
        std::fs::write(temporary.path().join("thing.new"), "half").unwrap();
        for text in ["one", "another, longer one", ""] {
            FILE.save(&directory, &text).unwrap();
            assert_eq!(FILE.load::<String>(&directory).unwrap().as_deref(), Some(text));
        }
        assert_eq!(std::fs::read_dir(temporary.path()).unwrap().count(), 1);
    }

    #[test]
    fn every_flipped_bit_and_every_cut_is_damage() {
        let temporary = tempfile::tempdir().unwrap();
        let directory = Directory::open(temporary.path()).unwrap();
        FILE.save(&directory, &(7_u64, "text")).unwrap();
        let path = temporary.path().join("thing");
        let bytes = std::fs::read(&path).unwrap();
        for bit in 0..bytes.len() * 8 {
            let mut damaged = bytes.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            std::fs::write(&path, damaged).unwrap();
            let error = FILE.load::<(u64, String)>(&directory).unwrap_err();
            assert!(matches!(error, FileError::Damaged { .. }), "bit {bit}: {error}");
        }
        for length in 0..bytes.len() {
            std::fs::write(&path, &bytes[..length]).unwrap();
            let error = FILE.load::<(u64, String)>(&directory).unwrap_err();
            assert!(matches!(error, FileError::Damaged { .. }), "cut at {length}: {error}");
        }
    }

    #[test]
    fn another_version_or_kind_is_named_and_left_alone() {
        let temporary = tempfile::tempdir().unwrap();
        let directory = Directory::open(temporary.path()).unwrap();
        StateFile::new("thing", 4).save(&directory, &1_u8).unwrap();
        let error = FILE.load::<u8>(directory.as_fd()).unwrap_err();
        assert!(matches!(error, FileError::UnknownVersion { version: 4, .. }), "{error}");
        let path = temporary.path().canonicalize().unwrap().join("thing");
        let named = format!("{} has format version 4", path.display());
        assert!(error.to_string().starts_with(&named), "{error}");
        save(temporary.path(), "other", 3, &1_u8).unwrap();
        assert_eq!(load::<u8>(temporary.path(), "other", 3).unwrap(), Some(1));
        std::fs::rename(temporary.path().join("other"), &path).unwrap();
        let error = FILE.load::<u8>(&directory).unwrap_err();
        assert!(matches!(error, FileError::Damaged { .. }), "{error}");
    }

    #[test]
    fn a_directory_a_link_or_a_pipe_in_its_place_is_an_error() {
        let temporary = tempfile::tempdir().unwrap();
        let directory = Directory::open(temporary.path()).unwrap();
        let path = temporary.path().join("thing");
        std::fs::create_dir(&path).unwrap();
        assert!(FILE.load::<u8>(&directory).is_err());
        std::fs::remove_dir(&path).unwrap();
        std::os::unix::fs::symlink("elsewhere", &path).unwrap();
        assert!(FILE.load::<u8>(&directory).is_err());
        std::fs::remove_file(&path).unwrap();
        rustix::fs::mkfifoat(&directory, "thing", Mode::RUSR).unwrap();
        assert!(FILE.load::<u8>(&directory).is_err());
    }
}
