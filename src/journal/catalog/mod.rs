//! The catalog: a listing of the tree as of a position, on disk, which a restarted source
//! compares with what it finds.
//!
//! ```text
//! header    8 magic "mirrorC\n", 4 version, 4 CRC-32 of these, little-endian as all numbers
//! listings  a frame for each directory: its own status, its files sorted by name
//! table     frames of directories: number, parent's number, name, identity, where the listing is
//! summary   a frame: whose catalog this is, as of which records
//! trailer   8 offset of the table, 8 offset of the summary, 4 CRC-32 of everything before,
//!           8 magic "catalog\n"
//! ```
//!
//! A frame is the length of its payload, its CRC-32, and the payload. In the table a later entry
//! replaces an earlier one of the same number, so that a writer that works in slices can tell at
//! the end what moved meanwhile.
//!
//! What always holds: under its name a catalog is absent, the old one or the new one, whole; it is
//! written beside it, synchronised, and renamed. [`Catalog::open`] reads all of it once and
//! believes nothing before every checksum agreed, so that what is damaged is never half used.

mod encoding;
mod writer;

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::FileError;
use crate::model::{EpochId, Name, Sequence, Timestamp, TreeId, TreePath};
use encoding::Decoder;
pub use writer::{CatalogWriter, Finished};

/// The catalog's file, in the state directory.
pub const CATALOG_NAME: &str = "catalog";

const VERSION: u32 = 1;
const MAGIC: [u8; 8] = *b"mirrorC\n";
const END_MAGIC: [u8; 8] = *b"catalog\n";
const HEADER_BYTES: usize = 16;
const TRAILER_BYTES: usize = 28;
const FRAME_HEADER_BYTES: usize = 8;

/// The status of an entry, as far as a change of any sort shows in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Stamp {
    /// Inode number.
    pub inode: u64,
    /// When the inode came to be; all zero where the file system does not say.
    pub birth: Timestamp,
    /// Kind and permissions, as `st_mode` has them.
    pub mode: u32,
    /// Length in bytes.
    pub size: u64,
    /// Time of the last change of content.
    pub mtime: Timestamp,
    /// Time of the last change of any sort.
    pub ctime: Timestamp,
    /// Whether the file has other names.
    pub is_linked: bool,
    /// Whether it changed so short a time before it was looked at that a later change may have
    /// left all of this the same. It agrees with nothing.
    pub is_warm: bool,
}

/// A file in a listing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listed {
    /// Its name.
    pub name: Name,
    /// Its status.
    pub stamp: Stamp,
}

/// A directory's own status and what is in it, but for directories: those are in the table.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Listing {
    /// The directory itself.
    pub own: Stamp,
    /// What is in it, sorted by name.
    pub files: Vec<Listed>,
}

/// Where in the file a listing is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Extent {
    /// Where its frame begins.
    pub offset: u64,
    /// Length of its payload.
    pub length: u32,
}

/// A directory in the table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TableEntry {
    /// Names it within this file; the root has 0.
    pub number: u64,
    /// The rest, `None` for one that is gone.
    pub directory: Option<TableDirectory>,
}

/// What the table says of a directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TableDirectory {
    /// The directory that holds it; the root holds itself.
    pub parent: u64,
    /// Its name there, empty for the root.
    pub name: Name,
    /// Index of its file system in [`Summary::file_systems`].
    pub file_system: u32,
    /// Its inode number.
    pub inode: u64,
    /// When the inode came to be; all zero where the file system does not say.
    pub birth: Timestamp,
    /// Whether another file system, or another part of one, is mounted here.
    pub is_mount: bool,
    /// Its listing, `None` if what is in it was not known.
    pub listing: Option<Extent>,
    /// Whether the listing is older than the table.
    pub is_stale: bool,
}

/// Whose catalog this is, and as of when.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Summary {
    /// Which tree.
    pub tree: TreeId,
    /// Which run of watching.
    pub epoch: EpochId,
    /// The journal's head when the scan began: nothing that was recorded up to here is newer than
    /// what is listed.
    pub position: Sequence,
    /// The journal's head when the table was finished: it has the names as of this record.
    pub table_position: Sequence,
    /// The identifiers (`f_fsid`) of the file systems, the root's first.
    pub file_systems: Vec<u64>,
    /// Entries whose last change was listed and not sent: it could not be read, or was not at its
    /// end.
    pub untold: Vec<TreePath>,
}

/// A catalog on disk, verified.
#[derive(Debug)]
pub struct Catalog {
    file: File,
    path: PathBuf,
    summary: Summary,
    table_offset: u64,
    summary_offset: u64,
}

impl Catalog {
    /// Opens the catalog in `directory` and verifies all of it; `None` if there is none.
    pub fn open(directory: &Path) -> Result<Option<Catalog>, FileError> {
        let path = directory.join(CATALOG_NAME);
        match File::open(&path) {
            Ok(file) => Catalog::verify(file, path).map(Some),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(FileError::io(&path, "open", error)),
        }
    }

    fn verify(file: File, path: PathBuf) -> Result<Catalog, FileError> {
        let failed = |error| FileError::io(&path, "read", error);
        let damaged = |reason: &str| FileError::damaged(&path, reason);
        let length = file.metadata().map_err(failed)?.len();
        if length < (HEADER_BYTES + TRAILER_BYTES) as u64 {
            return Err(damaged("it is too short"));
        }
        let mut header = [0; HEADER_BYTES];
        file.read_exact_at(&mut header, 0).map_err(failed)?;
        if header[..8] != MAGIC {
            return Err(damaged("it does not begin as a catalog does"));
        }
        if crc32fast::hash(&header[..12]) != word(&header[12..]) {
            return Err(damaged("the checksum of its header does not agree"));
        }
        let version = word(&header[8..12]);
        if version != VERSION {
            let whole = "file";
            return Err(FileError::UnknownVersion { path, version, known: VERSION, whole });
        }
        let mut trailer = [0; TRAILER_BYTES];
        file.read_exact_at(&mut trailer, length - TRAILER_BYTES as u64).map_err(failed)?;
        if trailer[20..] != END_MAGIC {
            return Err(damaged("it has no end"));
        }
        let mut hasher = crc32fast::Hasher::new();
        let (mut offset, end) = (0, length - 12);
        let mut buffer = vec![0; 256 << 10];
        while offset < end {
            let wanted = buffer.len().min((end - offset) as usize);
            file.read_exact_at(&mut buffer[..wanted], offset).map_err(failed)?;
            hasher.update(&buffer[..wanted]);
            offset += wanted as u64;
        }
        if hasher.finalize() != word(&trailer[16..20]) {
            return Err(damaged("its checksum does not agree"));
        }
        let long = |at: usize| u64::from_le_bytes(trailer[at..at + 8].try_into().expect("8 bytes"));
        let (table_offset, summary_offset) = (long(0), long(8));
        let mut catalog = Catalog {
            file,
            path: path.clone(),
            summary: Summary {
                tree: TreeId(0),
                epoch: EpochId { counter: 0, random: 0 },
                position: Sequence(0),
                table_position: Sequence(0),
                file_systems: Vec::new(),
                untold: Vec::new(),
            },
            table_offset,
            summary_offset,
        };
        let (payload, _) = catalog.frame(summary_offset)?;
        catalog.summary = postcard::from_bytes(&payload)
            .map_err(|error| damaged(&format!("its summary is undecodable: {error}")))?;
        Ok(catalog)
    }

    /// Returns whose catalog this is, and as of when.
    pub fn summary(&self) -> &Summary {
        &self.summary
    }

    /// Returns where the file is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Calls `each` with the entries of the table, in order.
    pub fn table(&self, mut each: impl FnMut(TableEntry)) -> Result<(), FileError> {
        let mut offset = self.table_offset;
        while offset < self.summary_offset {
            let (payload, next) = self.frame(offset)?;
            let mut decoder = Decoder::new(&payload);
            while !decoder.is_empty() {
                each(decoder.table_entry().ok_or_else(|| self.undecodable())?);
            }
            offset = next;
        }
        Ok(())
    }

    /// Returns a directory's listing.
    pub fn listing(&self, extent: Extent) -> Result<Listing, FileError> {
        let payload = self.payload(extent)?;
        Decoder::new(&payload).listing().ok_or_else(|| self.undecodable())
    }

    /// Returns a listing as it is in the file.
    fn payload(&self, extent: Extent) -> Result<Vec<u8>, FileError> {
        let (payload, _) = self.frame(extent.offset)?;
        if payload.len() != extent.length as usize {
            return Err(self.damaged("a listing is not where it should be"));
        }
        Ok(payload)
    }

    /// Returns the payload of the frame at `offset` and where the next one begins.
    fn frame(&self, offset: u64) -> Result<(Vec<u8>, u64), FileError> {
        let failed = |error| FileError::io(&self.path, "read", error);
        let mut header = [0; FRAME_HEADER_BYTES];
        self.file.read_exact_at(&mut header, offset).map_err(failed)?;
        let length = word(&header);
        let start = offset + FRAME_HEADER_BYTES as u64;
        let end = start.saturating_add(length.into());
        // A length that is not what was written must not be believed as one.
        if end > self.file.metadata().map_err(failed)?.len() {
            return Err(self.damaged("a part of it is longer than the whole"));
        }
        let mut payload = vec![0; length as usize];
        self.file.read_exact_at(&mut payload, start).map_err(failed)?;
        if crc32fast::hash(&payload) != word(&header[4..]) {
            return Err(self.damaged("a checksum does not agree"));
        }
        Ok((payload, end))
    }

    fn undecodable(&self) -> FileError {
        self.damaged("a part of it is undecodable")
    }

    fn damaged(&self, reason: &str) -> FileError {
        FileError::damaged(&self.path, reason)
    }
}

fn word(bytes: &[u8]) -> u32 {
    u32::from_le_bytes(bytes[..4].try_into().expect("4 bytes"))
}

#[cfg(test)]
mod tests;
