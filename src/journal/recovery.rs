//! What is found in a journal's directory, and what of it can be used.
//!
//! Two kinds of loss are told apart. A crash leaves the *end* unfinished: the last segment's
//! records from some place on, or all of it. That is cut off, and the numbers that may have been
//! lost with it are skipped. Anything else (a hole in the middle, files that do not belong
//! together, a loss after a clean end) means that records are missing of which nobody knows, so
//! that nothing of the journal can be used: it is discarded. Nothing is removed for that until
//! a new epoch begins, and nothing at all if a file is of an unknown version.

use std::collections::VecDeque;
use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::FileExt;

use rustix::fs::{AtFlags, Dir, Mode, OFlags};
use serde::{Deserialize, Serialize};

use super::segment::{
    self, FrameError, FrameReader, HEADER_BYTES, Header, HeaderError, Segment, decode_record,
};
use super::state_file::{Directory, DirectoryRef, StateFile};
use super::{FileError, Recovery};
use crate::model::{Epoch, Sequence, TreeId};

/// What the file `reserved` holds: which numbers may be in use.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Reserved {
    pub(super) tree: TreeId,
    pub(super) epoch: Epoch,
    /// No number above this was given to a record.
    pub(super) through: Sequence,
    /// The last record, if the journal was closed since it was last written to.
    pub(super) closed: Option<Sequence>,
}

/// The file that reserves numbers.
pub(super) const RESERVED: StateFile = StateFile::new("reserved", 1);

/// What a directory held.
pub(super) struct Found {
    pub(super) recovery: Recovery,
    /// The journal's tree and epoch as far as they can be told, also if it is discarded.
    pub(super) known: Option<(TreeId, Epoch)>,
    /// The journal, unless it is new or discarded.
    pub(super) journal: Option<FoundJournal>,
}

/// A journal that can go on.
pub(super) struct FoundJournal {
    /// One at least.
    pub(super) segments: VecDeque<Segment>,
    /// The last segment's file, for writing.
    pub(super) writer: File,
    pub(super) reserved: Sequence,
}

/// Why a search ends before its end.
enum Stop {
    Error(FileError),
    Discard(String),
}

impl From<FileError> for Stop {
    fn from(error: FileError) -> Self {
        Stop::Error(error)
    }
}

/// Looks through `directory`, and cuts off what a crash left unfinished.
pub(super) fn recover(directory: &Directory) -> Result<Found, FileError> {
    let names = segment_names(directory)?;
    // All versions are looked at before anything is judged: nothing of a newer program's
    // journal may be taken for damage.
    let mut headers = Vec::with_capacity(names.len());
    for first in names {
        headers.push((first, read_header(directory, first)?));
    }
    let (reserved, damage) = match RESERVED.load::<Reserved>(directory) {
        Ok(reserved) => (reserved, None),
        Err(error @ FileError::Damaged { .. }) => (None, Some(error.to_string())),
        // Without this file the segments are of no use.
        Err(FileError::UnknownVersion { path, version, known, .. }) => {
            return Err(FileError::UnknownVersion { path, version, known, whole: "journal" });
        }
        Err(error) => return Err(error),
    };
    let newest = headers.iter().rev().find_map(|(_, header)| header.as_ref().ok());
    let known = match &reserved {
        Some(reserved) => Some((reserved.tree, reserved.epoch)),
        None => newest.map(|header| (header.tree, header.epoch)),
    };
    if headers.is_empty() && reserved.is_none() && damage.is_none() {
        return Ok(Found { recovery: Recovery::New, known: None, journal: None });
    }
    let outcome = match (damage, reserved) {
        (Some(damage), _) => Err(Stop::Discard(damage)),
        (None, None) => Err(Stop::Discard(format!(
            "{} is missing",
            directory.path().join(RESERVED.name()).display()
        ))),
        (None, Some(reserved)) => assemble(directory, headers, reserved),
    };
    match outcome {
        Ok((recovery, journal)) => Ok(Found { recovery, known, journal: Some(journal) }),
        Err(Stop::Error(error)) => Err(error),
        Err(Stop::Discard(reason)) => {
            tracing::warn!("the journal cannot be continued: {reason}");
            Ok(Found { recovery: Recovery::Discarded { reason }, known, journal: None })
        }
    }
}

/// Returns the first sequences of the segments in `directory`, sorted.
pub(super) fn segment_names(directory: &Directory) -> Result<Vec<Sequence>, FileError> {
    let error = |error| FileError::io(directory.path(), "list", error);
    let mut names = Vec::new();
    for entry in Dir::read_from(directory).map_err(error)? {
        let entry = entry.map_err(error)?;
        let name = OsString::from_vec(entry.file_name().to_bytes().to_vec());
        names.extend(segment::parse_file_name(&name));
    }
    names.sort_unstable();
    Ok(names)
}

/// Opens the segment that begins with `first`.
pub(super) fn open_segment(
    directory: &Directory,
    first: Sequence,
    flags: OFlags,
) -> io::Result<File> {
    let name = segment::file_name(first);
    let flags = flags | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let mode = Mode::RUSR | Mode::WUSR;
    Ok(File::from(rustix::fs::openat(directory, name, flags, mode)?))
}

fn read_header(
    directory: &Directory,
    first: Sequence,
) -> Result<Result<Header, HeaderError>, FileError> {
    let path = directory.path().join(segment::file_name(first));
    let file = open_segment(directory, first, OFlags::RDONLY)
        .map_err(|error| FileError::io(&path, "open", error))?;
    let mut bytes = [0; HEADER_BYTES];
    let mut filled = 0;
    while filled < bytes.len() {
        match file.read_at(&mut bytes[filled..], filled as u64) {
            Ok(0) => break,
            Ok(count) => filled += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(FileError::io(&path, "read", error)),
        }
    }
    match Header::decode(&bytes[..filled]) {
        Err(HeaderError::UnknownVersion(version)) => {
            let (known, whole) = (segment::VERSION, "journal");
            Err(FileError::UnknownVersion { path, version, known, whole })
        }
        decoded => Ok(decoded),
    }
}

/// Puts the segments together.
fn assemble(
    directory: &Directory,
    mut headers: Vec<(Sequence, Result<Header, HeaderError>)>,
    reserved: Reserved,
) -> Result<(Recovery, FoundJournal), Stop> {
    let path_of = |first: Sequence| directory.path().join(segment::file_name(first));
    // A last segment that a crash left without its header has no record in it. An epoch's only
    // segment is made durable before its first use: that one cannot be torn.
    if headers.len() > 1
        && let Some((first, Err(HeaderError::Torn))) = headers.last()
    {
        let path = path_of(*first);
        tracing::info!("removing {}, which was never written as a whole", path.display());
        rustix::fs::unlinkat(directory, segment::file_name(*first), AtFlags::empty())
            .map_err(|error| FileError::io(&path, "remove", error))?;
        DirectoryRef::from(directory).sync()?;
        headers.pop();
    }
    let count = headers.len();
    let mut segments: VecDeque<Segment> = VecDeque::with_capacity(count);
    let mut cut = false;
    for (number, (first, header)) in headers.into_iter().enumerate() {
        let path = path_of(first);
        let discard =
            |reason: &str| Stop::Discard(format!("{} is damaged: {reason}", path.display()));
        let header = match header {
            Ok(header) => header,
            Err(HeaderError::Damaged(reason)) => return Err(discard(reason)),
            Err(_) => return Err(discard("its header is incomplete")),
        };
        if header.first != first || header.base >= header.first {
            return Err(discard("its header does not agree with its name"));
        }
        if (header.tree, header.epoch) != (reserved.tree, reserved.epoch) {
            return Err(discard("it belongs to another epoch"));
        }
        if let Some(before) = segments.back()
            && before.last != header.base
        {
            return Err(Stop::Discard(format!(
                "records {} to {} are missing before {}",
                before.last.0.saturating_add(1),
                header.base,
                path.display()
            )));
        }
        let Scanned { segment, length, torn } = scan(directory, &header)?;
        if let Some(reason) = torn {
            if number + 1 < count {
                return Err(discard(&format!("{reason}, at byte {}", segment.length)));
            }
            tracing::info!(
                "cutting off {} unfinished bytes of {} at byte {}: {reason}",
                length - segment.length,
                path.display(),
                segment.length
            );
            cut = true;
        }
        segments.push_back(segment);
    }
    let Some(last) = segments.back() else {
        return Err(Stop::Discard(format!(
            "all segments are missing in {}",
            directory.path().display()
        )));
    };
    if last.last > reserved.through {
        return Err(Stop::Discard(format!(
            "{} is older than the records: they end at {}, it reserves numbers through {}",
            directory.path().join(RESERVED.name()).display(),
            last.last,
            reserved.through
        )));
    }
    if let Some(closed) = reserved.closed
        && closed != last.last
    {
        // A clean end leaves nothing unfinished: this is no crash's doing.
        return Err(Stop::Discard(format!(
            "{} is damaged: the journal was closed at record {closed} and ends at {}",
            path_of(last.first).display(),
            last.last
        )));
    }
    let path = path_of(last.first);
    let writer = open_segment(directory, last.first, OFlags::RDWR)
        .map_err(|error| FileError::io(&path, "open", error))?;
    if cut {
        // What is written next must not be followed by what was there before.
        writer.set_len(last.length).map_err(|error| FileError::io(&path, "truncate", error))?;
        writer.sync_all().map_err(|error| FileError::io(&path, "synchronise", error))?;
    }
    let recovery = if reserved.closed.is_some() { Recovery::Clean } else { Recovery::Unclean };
    Ok((recovery, FoundJournal { segments, writer, reserved: reserved.through }))
}

/// A segment as far as it is sound.
struct Scanned {
    segment: Segment,
    /// Length of its file, in bytes.
    length: u64,
    /// Why it is not sound to the file's end.
    torn: Option<&'static str>,
}

/// Reads all records of a segment.
fn scan(directory: &Directory, header: &Header) -> Result<Scanned, Stop> {
    let path = directory.path().join(segment::file_name(header.first));
    let discard = |reason: &str| Stop::Discard(format!("{} is damaged: {reason}", path.display()));
    let file = open_segment(directory, header.first, OFlags::RDONLY)
        .map_err(|error| FileError::io(&path, "open", error))?;
    let length = file.metadata().map_err(|error| FileError::io(&path, "read", error))?.len();
    let mut reader = FrameReader::new(file);
    let mut segment = Segment::new(header);
    while segment.length < length {
        let (payload, bytes) = match reader.frame_at(segment.length, length) {
            Ok(frame) => frame,
            Err(FrameError::Damaged(reason)) => {
                return Ok(Scanned { segment, length, torn: Some(reason) });
            }
            Err(FrameError::Io(error)) => {
                return Err(FileError::io(&path, "read", error).into());
            }
        };
        // The checksum agrees: a record that cannot be is no crash's doing.
        let record = decode_record(payload).map_err(|reason| discard(&reason))?;
        if record.sequence <= segment.last || record.sequence < header.first {
            return Err(discard("its sequences do not rise"));
        }
        segment.append(record.sequence, bytes);
    }
    Ok(Scanned { segment, length, torn: None })
}
