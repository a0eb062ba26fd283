//! Which keys are let in, and which upstreams are known.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use super::key::PublicKey;
use crate::wire::url::HostPort;

/// A file of keys with a comment each is far smaller.
const FILE_BYTES_MAX: u64 = 4 << 20;

/// The keys that a source lets in: a line each, as `mirror key` prints it. Empty lines and those
/// that begin with `#` say nothing.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Authorized {
    peers: BTreeMap<PublicKey, ()>,
}

/// The keys of upstreams by their addresses: lines of `HOST:PORT mirror-ed25519 BASE64`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct KnownUpstreams {
    keys: BTreeMap<String, Vec<PublicKey>>,
}

/// Why a file of keys cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum PeersError {
    /// It cannot be read or written.
    #[error("cannot use {}: {reason}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Why not; no `source`, for the message has it already.
        reason: io::Error,
    },
    /// Others can let in whom they like.
    #[error(
        "{} can be written by others (mode {mode:04o}), who could let in anybody; chmod 600 it",
        path.display()
    )]
    Open {
        /// The file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// A line is not what it should be.
    #[error("{}, line {line}: {reason}", path.display())]
    Line {
        /// The file.
        path: PathBuf,
        /// Which line, from 1.
        line: usize,
        /// What is wrong with it.
        reason: String,
    },
}

impl Authorized {
    /// Reads the file; nobody is let in if there is none.
    ///
    /// # Errors
    ///
    /// If it cannot be read, others can write to it, or any line is wrong: to pass over a line
    /// might pass over a restriction.
    pub fn load(path: &Path) -> Result<Authorized, PeersError> {
        let mut peers = BTreeMap::new();
        each_line(path, |line| {
            let key: PublicKey = line.parse().map_err(|error| format!("{error}"))?;
            match peers.insert(key, ()) {
                None => Ok(()),
                Some(()) => Err("this key is there twice".to_string()),
            }
        })?;
        Ok(Authorized { peers })
    }

    /// Returns whether a peer with this key is let in.
    pub fn admits(&self, key: &PublicKey) -> bool {
        self.peers.contains_key(key)
    }

    /// Returns whether nobody is let in.
    pub fn is_empty(&self) -> bool {
        self.peers.is_empty()
    }
}

impl KnownUpstreams {
    /// Reads the file; nothing is known if there is none.
    ///
    /// # Errors
    ///
    /// If it cannot be read, others can write to it, or a line is wrong.
    pub fn load(path: &Path) -> Result<KnownUpstreams, PeersError> {
        let mut keys: BTreeMap<String, Vec<PublicKey>> = BTreeMap::new();
        each_line(path, |line| {
            let (host, key) = line.split_once(char::is_whitespace).unwrap_or((line, ""));
            let host: HostPort = host.parse().map_err(|error| format!("{error}"))?;
            let key = key.trim_start().parse().map_err(|error| format!("{error}"))?;
            keys.entry(host.to_string()).or_default().push(key);
            Ok(())
        })?;
        Ok(KnownUpstreams { keys })
    }

    /// Returns the keys that the upstream at this address may have.
    pub fn keys(&self, at: &HostPort) -> &[PublicKey] {
        self.keys.get(&at.to_string()).map_or(&[], Vec::as_slice)
    }

    /// Returns the line by which an upstream becomes known.
    pub fn line(at: &HostPort, key: &PublicKey) -> String {
        format!("{at} {key}")
    }

    /// Appends an upstream to the file.
    ///
    /// # Errors
    ///
    /// If it cannot be written.
    pub fn add(path: &Path, at: &HostPort, key: &PublicKey) -> Result<(), PeersError> {
        let write = || {
            let mut file = OpenOptions::new().append(true).create(true).mode(0o600).open(path)?;
            file.write_all(format!("{}\n", KnownUpstreams::line(at, key)).as_bytes())?;
            file.sync_all()
        };
        write().map_err(|reason| PeersError::Io { path: path.to_path_buf(), reason })
    }
}

/// Calls `each` with every line that says something.
fn each_line(
    path: &Path,
    mut each: impl FnMut(&str) -> Result<(), String>,
) -> Result<(), PeersError> {
    let error = |reason| PeersError::Io { path: path.to_path_buf(), reason };
    let file = match File::open(path) {
        Ok(file) => file,
        Err(reason) if reason.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(reason) => return Err(error(reason)),
    };
    let mode = file.metadata().map_err(error)?.mode() & 0o7777;
    if mode & 0o022 != 0 {
        return Err(PeersError::Open { path: path.to_path_buf(), mode });
    }
    let mut text = String::new();
    file.take(FILE_BYTES_MAX + 1).read_to_string(&mut text).map_err(error)?;
    if text.len() as u64 > FILE_BYTES_MAX {
        return Err(error(io::Error::other("it is larger than 4 MiB")));
    }
    for (index, line) in text.lines().enumerate() {
        let line = line.trim();
        if !line.is_empty() && !line.starts_with('#') {
            let wrong =
                |reason| PeersError::Line { path: path.to_path_buf(), line: index + 1, reason };
            each(line).map_err(wrong)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    const KEYS: [&str; 2] = [
        "mirror-ed25519 BwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwc=",
        "mirror-ed25519 CAgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAg=",
    ];

    fn file(text: &str) -> (tempfile::TempDir, PathBuf) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("peers");
        std::fs::write(&path, text).unwrap();
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o644)).unwrap();
        (directory, path)
    }

    #[test]
    fn only_the_keys_of_the_file_are_let_in() {
        let (_directory, path) = file(&format!("# ours\n\n  {} of b\n", KEYS[0]));
        let authorized = Authorized::load(&path).unwrap();
        assert!(authorized.admits(&KEYS[0].parse().unwrap()));
        assert!(!authorized.admits(&KEYS[1].parse().unwrap()));
        std::fs::remove_file(&path).unwrap();
        assert!(Authorized::load(&path).unwrap().is_empty());
    }

    #[test]
    fn a_file_with_one_wrong_line_lets_nobody_in() {
        for line in ["nonsense", "mirror-ed25519", "tree=/x", "ssh-ed25519 AAAA", KEYS[0]] {
            let (_directory, path) = file(&format!("{}\n{line}\n", KEYS[0]));
            let error = Authorized::load(&path).unwrap_err();
            assert!(matches!(error, PeersError::Line { line: 2, .. }), "{line}: {error}");
        }
    }

    #[test]
    fn a_file_that_others_can_write_lets_nobody_in() {
        let (_directory, path) = file(KEYS[0]);
        for mode in [0o664, 0o646] {
            std::fs::set_permissions(&path, PermissionsExt::from_mode(mode)).unwrap();
            assert!(matches!(Authorized::load(&path), Err(PeersError::Open { .. })));
        }
    }

    #[test]
    fn upstreams_are_known_by_their_addresses() {
        let (_directory, path) = file("");
        let at: HostPort = "backup.example".parse().unwrap();
        let [one, other] = KEYS.map(|key| key.parse().unwrap());
        KnownUpstreams::add(&path, &at, &one).unwrap();
        KnownUpstreams::add(&path, &at, &other).unwrap();
        let known = KnownUpstreams::load(&path).unwrap();
        assert_eq!(known.keys(&at), [one, other]);
        assert!(known.keys(&"backup.example:1".parse().unwrap()).is_empty());
    }
}
