//! Why a file that holds state cannot be used: a state file, the catalog, one of the journal.

use std::io;
use std::path::{Path, PathBuf};

/// Why a file that holds state cannot be read or written.
///
/// What is damaged and what is another version's are told apart, as nobody may take a newer
/// program's file for damage and begin anew without it.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// The system refused; the file may be sound.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        /// Which file or directory.
        path: PathBuf,
        /// What was tried.
        action: &'static str,
        /// Why not.
        source: io::Error,
    },
    /// The file is not what was written.
    #[error("{} is damaged: {reason}", path.display())]
    Damaged {
        /// Which file.
        path: PathBuf,
        /// How that shows.
        reason: String,
    },
    /// The file is sound and another version's; it is neither read nor removed.
    #[error(
        "{} has format version {version}, this program reads version {known}; \
         use the program that wrote it, or move the {whole} away",
        path.display()
    )]
    UnknownVersion {
        /// Which file.
        path: PathBuf,
        /// The version it has.
        version: u32,
        /// The version that this program reads.
        known: u32,
        /// What is of use only together: the file, or the journal that it is a part of.
        whole: &'static str,
    },
}

impl FileError {
    /// Returns the error of an `action` at `path` that the system refused.
    pub fn io(path: &Path, action: &'static str, source: impl Into<io::Error>) -> FileError {
        FileError::Io { path: path.to_path_buf(), action, source: source.into() }
    }

    /// Returns the error of a file at `path` that is not what was written.
    pub fn damaged(path: &Path, reason: impl Into<String>) -> FileError {
        FileError::Damaged { path: path.to_path_buf(), reason: reason.into() }
    }

    /// Returns the error as a line that ends with what to do: with `advice` for a damaged file,
    /// of which only its user knows what it costs to be without.
    pub fn with_advice(&self, advice: &str) -> String {
        match self {
            FileError::Damaged { .. } => format!("{self}; {advice}"),
            FileError::Io { .. } | FileError::UnknownVersion { .. } => self.to_string(),
        }
    }
}
