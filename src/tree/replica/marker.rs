//! The marker that tells after a crash whether the last rename was done.
//!
//! `.mirror/moved-SEQUENCE-INODE` is written and renamed to this name before each rename of
//! the tree. It holds what the rename was to do and what was at both ends. Nothing else
//! changes the tree between the two, so the rename was not done exactly if its first end is
//! still what the marker says, the time of its last status change included.
//!
//! What always holds: beside a checkpoint with a position there is a marker, and it says which
//! file it is. One that is missing, damaged, or put back from a copy cannot tell how far the
//! renames are, and to repeat one could move what is elsewhere by now: the tree is compared then.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::BorrowedFd;
use std::os::unix::fs::FileExt;

use rustix::fs::{Mode, OFlags};
use serde::{Deserialize, Serialize};

use super::Replica;
use super::names::list;
use super::parents::{leads_nowhere, stat_if_present, unlink};
use crate::model::limits::PATH_BYTES_MAX;
use crate::model::path::CONTROL_NAME;
use crate::model::{Sequence, Timestamp, TreePath};
use crate::tree::metadata::timestamp;
use crate::tree::root::stat_fd;

/// What is true of the renames after a crash.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Moved {
    /// Every rename through this is done, and none after it.
    Through(Sequence),
    /// Nothing can be said: the tree must be compared.
    Unknown,
    /// Nor can anything be said, for the marker is not what was written, which this tells.
    Lost(String),
}

/// What identifies an entry across a rename.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Mark {
    pub(super) inode: u64,
    changed: Timestamp,
}

impl Mark {
    pub(super) fn of(stat: &rustix::fs::Statx) -> Self {
        Mark { inode: stat.stx_ino, changed: timestamp(stat.stx_ctime) }
    }
}

/// What the marker file holds.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Note {
    pub(super) sequence: Sequence,
    pub(super) exchange: bool,
    pub(super) from: TreePath,
    pub(super) to: TreePath,
    /// What was at `from`.
    pub(super) from_mark: Option<Mark>,
    /// What was at `to`.
    pub(super) to_mark: Option<Mark>,
}

/// The marker's file.
#[derive(Debug)]
struct MarkerFile {
    /// Open for writing during a run of renames, and no longer: that would keep the file system
    /// from being made read-only.
    file: Option<File>,
    name: String,
    own: Own,
}

/// Which file a marker is, so that a copy of it is told from it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct Own {
    inode: u64,
    /// Zero where the file system does not know it.
    born: Timestamp,
}

impl Own {
    fn of(file: &File) -> io::Result<Own> {
        let stat = stat_fd(file)?;
        Ok(Own { inode: stat.stx_ino, born: timestamp(stat.stx_btime) })
    }
}

/// The marker file, once there is one.
#[derive(Debug, Default)]
pub(super) struct Marker {
    open: Option<MarkerFile>,
    /// What was announced last.
    announced: Sequence,
    /// A rename that was not done as it was told, while no checkpoint says what is needed for
    /// it: until then, markers of later renames claim nothing either.
    doubt: Option<Sequence>,
}

impl Marker {
    /// Finds the marker that an earlier process left.
    pub(super) fn find(control: BorrowedFd<'_>) -> io::Result<Marker> {
        let mut found: Option<(Sequence, String)> = None;
        for (name, _) in list(reopen(control)?)? {
            let Some((sequence, name)) = parse(&name) else { continue };
            if found.as_ref().is_none_or(|(highest, _)| *highest < sequence) {
                found = Some((sequence, name));
            }
        }
        let Some((_, name)) = found else { return Ok(Marker::default()) };
        let own = Own::of(&open(control, &name, OFlags::RDONLY)?)?;
        Ok(Marker { open: Some(MarkerFile { file: None, name, own }), ..Marker::default() })
    }

    /// Makes a marker if there is none, which says that no rename above `moved` was begun.
    fn ensure(&mut self, control: BorrowedFd<'_>, moved: Sequence) -> io::Result<()> {
        if let Some(MarkerFile { file, .. }) = &mut self.open {
            *file = None;
            return Ok(());
        }
        let root = TreePath::root();
        let (from, to) = (root.clone(), root);
        let (sequence, exchange) = (moved, false);
        self.write(
            control,
            &Note { sequence, exchange, from, to, from_mark: None, to_mark: None },
        )?;
        if let Some(MarkerFile { file, .. }) = &mut self.open {
            *file = None;
        }
        Ok(())
    }

    /// Says that the rename in `note` comes next.
    pub(super) fn announce(&mut self, control: BorrowedFd<'_>, mut note: Note) -> io::Result<()> {
        self.announced = note.sequence;
        if self.doubt.is_some() {
            note = Note { exchange: false, from_mark: None, to_mark: None, ..note };
        }
        self.write(control, &note)
    }

    fn write(&mut self, control: BorrowedFd<'_>, note: &Note) -> io::Result<()> {
        let known = match self.open.take() {
            Some(MarkerFile { file: None, name, own }) => {
                match open(control, &name, OFlags::RDWR) {
                    Ok(file) => Some((Own::of(&file)?, file, name)),
                    // Lost while we run; another one is made.
                    Err(error) if error.kind() == io::ErrorKind::NotFound => None,
                    Err(error) => {
                        self.open = Some(MarkerFile { file: None, name, own });
                        return Err(error);
                    }
                }
            }
            Some(MarkerFile { file: Some(file), name, own }) => Some((own, file, name)),
            None => None,
        };
        let (own, file, name) = match known {
            Some(known) => known,
            None => {
                let flags = OFlags::RDWR | OFlags::CREATE | OFlags::TRUNC | OFlags::CLOEXEC;
                let mode = Mode::RUSR | Mode::WUSR;
                let fd = rustix::fs::openat(control, NEW_NAME, flags, mode)?;
                let file = File::from(fd);
                let own = Own::of(&file)?;
                (own, file, NEW_NAME.to_owned())
            }
        };
        let payload = postcard::to_stdvec(&(own, note)).map_err(io::Error::other)?;
        let mut bytes = Vec::with_capacity(HEADER_BYTES + payload.len());
        bytes.extend_from_slice(&(payload.len() as u32).to_le_bytes());
        bytes.extend_from_slice(&crc32fast::hash(&payload).to_le_bytes());
        bytes.extend_from_slice(&payload);
        let next = format!("{PREFIX}{}-{}", note.sequence.0, note.from_mark.map_or(0, |m| m.inode));
        let written = file
            .write_all_at(&bytes, 0)
            .and_then(|()| Ok(rustix::fs::renameat(control, &name, control, &next)?));
        let name = if written.is_ok() { next } else { name };
        self.open = Some(MarkerFile { file: Some(file), name, own });
        written
    }

    /// Notes that the rename announced last is not done as it was told.
    pub(super) fn doubt(&mut self) {
        self.doubt = Some(self.announced);
    }

    /// Returns the sequence that the marker's name tells, and what it holds if that belongs
    /// to the name; or why there is no marker that is as it was written.
    fn read(
        &self,
        control: BorrowedFd<'_>,
    ) -> io::Result<Result<(Sequence, Option<Note>), String>> {
        let lost = |what: &str| Ok(Err(format!("{CONTROL_NAME}/{what}")));
        let Some(MarkerFile { name, own, .. }) = &self.open else {
            return lost(&format!("{PREFIX}…, the marker of the last rename, is missing"));
        };
        let Some((sequence, _)) = parse(name.as_bytes()) else { return lost(name) };
        let mut bytes = Vec::new();
        // Two paths and a few numbers; more is not ours.
        let file = open(control, name, OFlags::RDONLY)?;
        file.take(4 * PATH_BYTES_MAX as u64).read_to_end(&mut bytes)?;
        let Some((written, note)) = decode(&bytes) else {
            return lost(&format!("{name}, the marker of the last rename, is damaged"));
        };
        if written != *own {
            return lost(&format!("{name}, the marker of the last rename, is a copy"));
        }
        Ok(Ok((sequence, Some(note).filter(|note| note.sequence == sequence))))
    }

    fn remove(&mut self, control: BorrowedFd<'_>) -> io::Result<()> {
        self.doubt = None;
        match self.open.take() {
            None => Ok(()),
            Some(MarkerFile { name, .. }) => match unlink(control, name.as_bytes()) {
                Ok(()) | Err(rustix::io::Errno::NOENT) => Ok(()),
                Err(error) => Err(error.into()),
            },
        }
    }
}

impl Replica {
    /// Returns through which sequence the renames are done, given what the checkpoint says.
    pub fn recover_moved(&mut self, checkpoint_moved: Sequence) -> io::Result<Moved> {
        let (sequence, note) = match self.marker.read(rustix::fd::AsFd::as_fd(&self.control))? {
            Ok(read) => read,
            Err(reason) => return Ok(Moved::Lost(reason)),
        };
        if sequence <= checkpoint_moved {
            return Ok(Moved::Through(checkpoint_moved));
        }
        let Some(note) = note else { return Ok(Moved::Unknown) };
        // Of an exchange with one end missing, the other end is what moved.
        let (first, second, mark) = match (note.from_mark, note.to_mark) {
            (Some(mark), _) => (&note.from, &note.to, mark),
            (None, Some(mark)) if note.exchange => (&note.to, &note.from, mark),
            // Nothing moved, and what was asked for instead was lost with the process.
            _ => return Ok(Moved::Unknown),
        };
        let (there, elsewhere) = (self.mark_at(first)?, self.mark_at(second)?);
        let before = Moved::Through(Sequence(sequence.0.saturating_sub(1)));
        Ok(match there {
            Some(there) if there == mark => before,
            // Its number again, but changed since: a new file may have been given the number.
            Some(there) if there.inode == mark.inode => match elsewhere {
                Some(elsewhere) if elsewhere.inode == mark.inode => before,
                _ => Moved::Unknown,
            },
            _ => Moved::Through(sequence),
        })
    }

    /// Makes a marker if there is none. To be called before a checkpoint is made durable that has
    /// a position, with how far its renames are.
    pub fn ensure_marker(&mut self, moved: Sequence) -> io::Result<()> {
        self.marker.ensure(rustix::fd::AsFd::as_fd(&self.control), moved)
    }

    /// Says that a checkpoint with all needs is durable, of after the renames through `moved`.
    pub fn handle_checkpoint(&mut self, moved: Sequence) {
        self.marker.doubt.take_if(|doubt| *doubt <= moved);
    }

    /// Says durably that the rename announced last is not done as it was told: what is needed
    /// instead would be lost with the process.
    pub(super) fn announce_doubt(&mut self, from: &TreePath, to: &TreePath) -> io::Result<()> {
        self.marker.doubt();
        let note = Note {
            sequence: self.marker.announced,
            exchange: false,
            from: from.clone(),
            to: to.clone(),
            from_mark: None,
            to_mark: None,
        };
        self.marker.announce(rustix::fd::AsFd::as_fd(&self.control), note)
    }

    /// Removes the marker: a new epoch's sequences say nothing about the old ones.
    pub fn forget_moved(&mut self) -> io::Result<()> {
        self.marker.remove(rustix::fd::AsFd::as_fd(&self.control))
    }

    fn mark_at(&mut self, path: &TreePath) -> io::Result<Option<Mark>> {
        let Some((directory, name)) = path.split() else { return Ok(None) };
        let fd = match self.root.open_directory(&directory) {
            Ok(fd) => fd,
            Err(error) if leads_nowhere(&error) => return Ok(None),
            Err(error) => return Err(error),
        };
        let parent = super::parents::Parent::new(directory.as_bytes(), fd, false);
        Ok(stat_if_present(&parent, name)?.map(|stat| Mark::of(&stat)))
    }
}

fn open(control: BorrowedFd<'_>, name: &str, access: OFlags) -> io::Result<File> {
    let flags = access | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(File::from(rustix::fs::openat(control, name, flags, Mode::empty())?))
}

fn reopen(directory: BorrowedFd<'_>) -> io::Result<rustix::fd::OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    Ok(rustix::fs::openat(directory, ".", flags, Mode::empty())?)
}

/// Returns the sequence in a marker's name, and the name.
fn parse(name: &[u8]) -> Option<(Sequence, String)> {
    let name = std::str::from_utf8(name).ok()?;
    let (sequence, inode) = name.strip_prefix(PREFIX)?.split_once('-')?;
    inode.parse::<u64>().ok()?;
    Some((Sequence(sequence.parse().ok()?), name.to_owned()))
}

fn decode(bytes: &[u8]) -> Option<(Own, Note)> {
    let (header, rest) = bytes.split_at_checked(HEADER_BYTES)?;
    let length = u32::from_le_bytes(header[..4].try_into().ok()?) as usize;
    let payload = rest.get(..length)?;
    let checksum = u32::from_le_bytes(header[4..].try_into().ok()?);
    if crc32fast::hash(payload) != checksum {
        return None;
    }
    postcard::from_bytes(payload).ok()
}

const PREFIX: &str = "moved-";
const NEW_NAME: &str = "moved";
const HEADER_BYTES: usize = 8;
