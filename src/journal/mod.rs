//! The journal: every record of an epoch, in order, in a bounded ring of segment files.
//!
//! A directory holds segments, named by their first sequence (the format is told in
//! `segment.rs`), and the file `reserved`, which says which numbers may be in use.
//!
//! What always holds:
//!
//! - `floor <= committed <= head < next`: records above `floor` and through `committed` are in
//!   the files, those above `committed` and through `head` in memory only.
//! - Each segment says which record was the last before it, so that a missing one is noticed.
//! - All segments but the last are on stable storage, with their names; of the last one, a
//!   crash may cost the end.
//! - A number is written to a segment only after `reserved` durably says that it may be in use.
//!   After an unclean end, numbering goes on above all of these, and a cursor that stands where
//!   records may have been lost is refused, so that no number ever means two records.
//! - A failed [`Journal::commit`] changes nothing that a repeated one would not overwrite: which
//!   record goes to which place of which segment is settled when it is appended.

mod cursor;
mod file_error;
mod recovery;
mod segment;

pub mod catalog;
pub mod checkpoint;
pub mod state_file;

use std::collections::VecDeque;
use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::fs::{DirBuilderExt, FileExt};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, OFlags};
use rustix::io::Errno;

use crate::model::limits::{
    JOURNAL_BYTES_MIN, JOURNAL_SEGMENTS, JOURNAL_SEGMENTS_MAX, PATH_BYTES_MAX, SEGMENT_BYTES_MAX,
    SEGMENT_BYTES_MIN, SEQUENCES_RESERVED,
};
use crate::model::{Change, Epoch, Record, Sequence, TreeId};

pub use catalog::Catalog;
pub use checkpoint::Checkpoint;
use cursor::Tail;
pub use cursor::{Cursor, ReadError};
pub use file_error::FileError;
use recovery::{FoundJournal, RESERVED, Reserved, open_segment, segment_names};
use segment::{HEADER_BYTES, Header, Segment, encode_frame, file_name};
pub use state_file::{Directory, DirectoryRef, StateFile};

/// The records of an epoch.
///
/// Call [`open`](Self::open); if [`tree_and_epoch`](Self::tree_and_epoch) is `None` then, call
/// [`begin_epoch`](Self::begin_epoch); then [`append`](Self::append) and
/// [`commit`](Self::commit), and at the end [`close`](Self::close). Dropped without that, it is
/// as after a crash.
#[derive(Debug)]
pub struct Journal {
    directory: Directory,
    /// Bytes that the segments may have together.
    bytes_max: u64,
    /// Length at which a segment is finished, in bytes.
    segment_bytes: u64,
    recovery: Recovery,
    /// What was found at opening, also if it was discarded.
    known: Option<(TreeId, Epoch)>,
    current: Option<(TreeId, Epoch)>,
    /// Counts epochs begun in this process, so that an older epoch's cursor is recognised.
    generation: u64,
    /// What is committed, oldest first. Empty if and only if there is no epoch.
    segments: VecDeque<Segment>,
    /// The file of the last of them.
    writer: Option<File>,
    /// Whether the names in the directory may not be durable.
    names_unsynced: bool,
    /// No number above this may be written.
    reserved: Sequence,
    head: Sequence,
    next: Sequence,
    /// Whether numbers from `head` to `next` may have been lost. The next record then begins a
    /// segment, for that is where this is written down.
    gap: bool,
    /// What is appended and not committed. At most the first one goes to a segment that is there.
    chunks: VecDeque<Chunk>,
    /// The buffer of a chunk that was committed, for the next one.
    spare: Vec<u8>,
    tail: Tail,
    /// How many bytes of the next writing succeed before the disk is full.
    #[cfg(test)]
    fault: Option<usize>,
}

impl Journal {
    /// Opens the journal in `directory`, or creates it, of at most `bytes_max` bytes.
    ///
    /// Less than [`JOURNAL_BYTES_MIN`] is taken as that. The unfinished end that a crash leaves
    /// is cut off. What else is wrong is told by [`recovery`](Self::recovery); the files stay
    /// as they are until [`begin_epoch`](Self::begin_epoch).
    ///
    /// # Errors
    ///
    /// The system refuses, or a file is of an unknown version; nothing was removed then.
    pub fn open(directory: &Path, bytes_max: u64) -> Result<Journal, FileError> {
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(directory)
            .map_err(|error| FileError::io(directory, "create", error))?;
        let directory = Directory::open(directory)?;
        let found = recovery::recover(&directory)?;
        let bytes_max = bytes_max.max(JOURNAL_BYTES_MIN);
        let mut journal = Journal {
            directory,
            bytes_max,
            segment_bytes: (bytes_max / JOURNAL_SEGMENTS)
                .clamp(SEGMENT_BYTES_MIN, SEGMENT_BYTES_MAX),
            recovery: found.recovery,
            known: found.known,
            current: None,
            generation: 0,
            segments: VecDeque::new(),
            writer: None,
            names_unsynced: true,
            reserved: Sequence(0),
            head: Sequence(0),
            next: Sequence(1),
            gap: false,
            chunks: VecDeque::new(),
            spare: Vec::new(),
            tail: Tail::default(),
            #[cfg(test)]
            fault: None,
        };
        if let Some(FoundJournal { segments, writer, reserved }) = found.journal {
            journal.current = journal.known;
            journal.segments = segments;
            journal.writer = Some(writer);
            journal.reserved = reserved;
            journal.head = journal.committed();
            journal.next = following(reserved.max(journal.head));
            journal.gap = reserved > journal.head;
            journal.tail.clear(journal.segments.back().map_or(0, |segment| segment.length));
            journal.drop_oldest(0)?;
        }
        Ok(journal)
    }

    /// Leaves `count` numbers out, which whoever was told of them then cannot go on from: as those
    /// that may have been lost in a crash.
    ///
    /// A journal that was put back from a copy gives numbers again that it gave before. If a
    /// random count is left out at each start, those of before are most likely among them.
    pub fn skip(&mut self, count: u64) {
        assert!(self.chunks.is_empty());
        if self.current.is_some() {
            self.next = Sequence(self.next.0.saturating_add(count));
            self.gap = true;
        }
    }

    /// Returns the directory that it is in.
    pub fn path(&self) -> &Path {
        self.directory.path()
    }

    /// Has the ring be smaller than any that [`open`](Self::open) makes, for tests.
    pub fn limit(&mut self, bytes_max: u64, segment_bytes: u64) {
        (self.bytes_max, self.segment_bytes) = (bytes_max, segment_bytes);
    }

    /// Returns whose records these are, `None` if there is no epoch to go on with. What a restart
    /// that continues an epoch by its catalog begins with.
    pub fn tree_and_epoch(&self) -> Option<(TreeId, Epoch)> {
        self.current
    }

    /// Returns what was found at opening.
    pub fn recovery(&self) -> &Recovery {
        &self.recovery
    }

    /// Returns the tree and the epoch that were found at opening, as far as they can be told,
    /// also if the journal was discarded: a new epoch must have a higher counter. For nodes whose
    /// identity does not know it, as a relay's.
    pub fn known_at_open(&self) -> Option<(TreeId, Epoch)> {
        self.known
    }

    /// Drops all records and begins `epoch`, durably.
    ///
    /// Numbers begin at 1 again, so `epoch` must be one that was never begun before.
    ///
    /// # Errors
    ///
    /// There may be no epoch at all then; it can be called again.
    pub fn begin_epoch(&mut self, tree: TreeId, epoch: Epoch) -> Result<(), FileError> {
        self.generation += 1;
        self.current = None;
        self.segments.clear();
        self.writer = None;
        self.chunks.clear();
        (self.head, self.next, self.gap) = (Sequence(0), Sequence(1), false);
        // The records go first: a crash in between leaves what is recognised as no epoch.
        for first in segment_names(&self.directory)? {
            self.remove(first)?;
        }
        self.sync_names()?;
        self.reserved = Sequence(0);
        let reserved = Reserved { tree, epoch, through: Sequence(0), closed: None };
        RESERVED.save(&self.directory, &reserved)?;
        let header = Header { tree, epoch, base: Sequence(0), first: Sequence(1), gap: false };
        self.create(&header, &header.encode())?;
        self.current = Some((tree, epoch));
        self.sync().inspect_err(|_| {
            self.current = None;
            self.segments.clear();
        })
    }

    /// Returns the number that the next record must have or exceed.
    pub fn next_sequence(&self) -> Sequence {
        self.next
    }

    /// Returns the last record appended, 0 at an epoch's beginning.
    pub fn head(&self) -> Sequence {
        self.head
    }

    /// Returns the last record committed: the last that a message may name.
    pub fn committed(&self) -> Sequence {
        self.segments.back().map_or(Sequence(0), |segment| segment.last)
    }

    /// Returns the last record that the ring has dropped: those above it are there.
    pub fn floor(&self) -> Sequence {
        self.segments.front().map_or(Sequence(0), |segment| segment.base)
    }

    /// Returns how many bytes are appended and not committed.
    ///
    /// Nothing bounds them but the caller, who must stop appending while commits fail.
    pub fn buffered_bytes(&self) -> usize {
        self.chunks.iter().map(|chunk| chunk.bytes.len()).sum()
    }

    /// Adds `record`, in memory only until [`commit`](Self::commit).
    ///
    /// # Panics
    ///
    /// If there is no epoch, the record's sequence is below [`next_sequence`](Self::next_sequence)
    /// or one of its paths is longer than a path may be.
    pub fn append(&mut self, record: &Record) {
        let (tree, epoch) = self.current.expect("an epoch must have begun");
        assert!(record.sequence >= self.next, "{} < {}", record.sequence, self.next);
        assert!(paths_fit(&record.change), "{:?} has a path that is too long", record.sequence);
        if self.chunks.is_empty() {
            let spare = std::mem::take(&mut self.spare);
            let segment = self.segments.back().expect("an epoch has a segment");
            self.chunks.push_back(Chunk::at_end_of(segment, spare));
        }
        let chunk = self.chunks.back_mut().expect("one was added");
        let start = chunk.bytes.len();
        let bytes = encode_frame(record, &mut chunk.bytes);
        let full = chunk.segment.last > chunk.segment.base
            && chunk.segment.length + bytes as u64 > self.segment_bytes;
        if full || self.gap {
            let frame = chunk.bytes.split_off(start);
            let header =
                Header { tree, epoch, base: self.head, first: record.sequence, gap: self.gap };
            if chunk.bytes.is_empty() {
                self.chunks.pop_back();
            }
            self.chunks.push_back(Chunk::of_new_segment(&header, frame));
            self.gap = false;
        }
        let chunk = self.chunks.back_mut().expect("one was added");
        chunk.segment.append(record.sequence, bytes);
        self.head = record.sequence;
        self.next = following(record.sequence);
    }

    /// Writes what is appended, without waiting until it is durable.
    ///
    /// Must succeed before a message that names these records leaves.
    ///
    /// # Errors
    ///
    /// What is not written stays in memory; the call can be repeated, also after more was
    /// appended.
    pub fn commit(&mut self) -> Result<(), FileError> {
        if self.chunks.is_empty() {
            return Ok(());
        }
        self.reserve(self.head)?;
        while let Some(mut chunk) = self.chunks.pop_front() {
            let written = self.write_chunk(&chunk);
            if written.is_err() {
                self.chunks.push_front(chunk);
                return written;
            }
            let segment = self.segments.back_mut().expect("an epoch has a segment");
            self.tail.push(segment.length, &chunk.bytes[chunk.records_at()..]);
            segment.last = chunk.segment.last;
            segment.length = chunk.segment.length;
            segment.indexed = chunk.segment.indexed;
            segment.index.append(&mut chunk.segment.index);
            self.spare = chunk.bytes;
        }
        // A great burst must not hold its memory for ever.
        self.spare.clear();
        self.spare.shrink_to(SPARE_BYTES_MAX);
        Ok(())
    }

    /// Waits until everything committed is on stable storage.
    ///
    /// An error is not remembered: should something be lost after all, the next opening
    /// recognises it by the checksums.
    pub fn sync(&mut self) -> Result<(), FileError> {
        self.sync_data()?;
        if self.names_unsynced {
            self.sync_names()?;
        }
        Ok(())
    }

    /// Returns what another thread can call in place of [`sync`](Self::sync), so that this one
    /// need not wait: a relay's journal must be durable before its checkpoint is.
    pub fn sync_later(&self) -> Result<PendingSync, FileError> {
        let path = self.writer_path();
        let error = |error| FileError::io(&path, "duplicate the descriptor of", error);
        let file = self.writer.as_ref().map(File::try_clone).transpose().map_err(error)?;
        let directory = self.directory.as_fd().try_clone_to_owned().map_err(error)?;
        let directory = Directory::new(directory, self.directory.path().to_path_buf());
        Ok(PendingSync { file, directory, path, through: self.committed() })
    }

    /// Commits, synchronises and marks the journal as ended cleanly, until more is appended.
    pub fn close(&mut self) -> Result<(), FileError> {
        self.commit()?;
        let Some((tree, epoch)) = self.current else { return Ok(()) };
        self.sync()?;
        // After an unclean end without a record since, the numbers skipped are still skipped.
        let through = if self.gap { self.reserved } else { self.head };
        let reserved = Reserved { tree, epoch, through, closed: Some(self.head) };
        RESERVED.save(&self.directory, &reserved)?;
        self.reserved = through;
        Ok(())
    }

    /// Reserves numbers through `sequence`, and more, durably.
    fn reserve(&mut self, sequence: Sequence) -> Result<(), FileError> {
        let Some((tree, epoch)) = self.current.filter(|_| sequence > self.reserved) else {
            return Ok(());
        };
        // The loop waits for it, 1 to 12 ms on ext4, once for 65,536 records.
        let through = Sequence(sequence.0.saturating_add(SEQUENCES_RESERVED));
        RESERVED.save(&self.directory, &Reserved { tree, epoch, through, closed: None })?;
        self.reserved = through;
        Ok(())
    }

    fn write_chunk(&mut self, chunk: &Chunk) -> Result<(), FileError> {
        let Some(header) = &chunk.header else {
            let segment = self.segments.back().expect("an epoch has a segment");
            let file = self.writer.as_ref().expect("an epoch has a segment");
            return self.write(file, segment.first, &chunk.bytes, segment.length);
        };
        // What is finished becomes durable now, or a power cut could leave a hole in the middle.
        // The loop waits for it: 10 ms for a segment of 16 MiB on the ext4 of a fast disk, 17 ms
        // beside a great copy there; a slow disk takes longer.
        self.sync_data()?;
        self.drop_oldest(self.segment_bytes.max(chunk.segment.length))?;
        self.sync_names()?;
        self.create(header, &chunk.bytes)
    }

    /// Makes a segment of `bytes`, which begin with its header, and writes to it from now on.
    fn create(&mut self, header: &Header, bytes: &[u8]) -> Result<(), FileError> {
        // What an attempt that failed has left there is overwritten.
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::TRUNC;
        let file = open_segment(&self.directory, header.first, flags)
            .map_err(|error| FileError::io(&self.path_of(header.first), "create", error))?;
        self.names_unsynced = true;
        self.write(&file, header.first, bytes, 0)?;
        self.writer = Some(file);
        self.segments.push_back(Segment::new(header));
        self.tail.clear(HEADER_BYTES as u64);
        Ok(())
    }

    /// Writes to the segment that begins with `first`.
    fn write(
        &self,
        file: &File,
        first: Sequence,
        bytes: &[u8],
        offset: u64,
    ) -> Result<(), FileError> {
        let failed = |error| FileError::io(&self.path_of(first), "write", error);
        #[cfg(test)]
        if let Some(count) = self.fault.filter(|count| *count < bytes.len()) {
            file.write_all_at(&bytes[..count], offset).expect("the part before the fault");
            return Err(failed(Errno::NOSPC.into()));
        }
        file.write_all_at(bytes, offset).map_err(failed)
    }

    /// Removes the oldest segments until `room` more bytes, and one more segment, fit.
    fn drop_oldest(&mut self, room: u64) -> Result<(), FileError> {
        let mut total: u64 = self.segments.iter().map(|segment| segment.length).sum();
        while self.segments.len() > 1
            && (total + room > self.bytes_max || self.segments.len() >= JOURNAL_SEGMENTS_MAX)
        {
            let oldest = &self.segments[0];
            let (first, length) = (oldest.first, oldest.length);
            self.remove(first)?;
            self.segments.pop_front();
            total -= length;
        }
        Ok(())
    }

    fn remove(&mut self, first: Sequence) -> Result<(), FileError> {
        self.names_unsynced = true;
        match rustix::fs::unlinkat(&self.directory, file_name(first), AtFlags::empty()) {
            // Already gone: it was to go.
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(error) => Err(FileError::io(&self.path_of(first), "remove", error)),
        }
    }

    fn sync_data(&self) -> Result<(), FileError> {
        let Some(writer) = &self.writer else { return Ok(()) };
        writer.sync_data().map_err(|error| FileError::io(&self.writer_path(), "synchronise", error))
    }

    fn sync_names(&mut self) -> Result<(), FileError> {
        DirectoryRef::from(&self.directory).sync()?;
        self.names_unsynced = false;
        Ok(())
    }

    fn path_of(&self, first: Sequence) -> PathBuf {
        self.directory.path().join(file_name(first))
    }

    fn writer_path(&self) -> PathBuf {
        self.segments.back().map_or(PathBuf::new(), |segment| self.path_of(segment.first))
    }
}

/// What [`Journal::open`] found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Recovery {
    /// Nothing: there was no journal.
    New,
    /// A journal that was closed, whole.
    Clean,
    /// A journal that was not closed. Its end may have been lost, so numbering goes on above all
    /// numbers that may have been in use.
    Unclean,
    /// A journal that cannot be continued.
    Discarded {
        /// What is wrong with which file.
        reason: String,
    },
}

/// A synchronisation that blocks whoever runs it, and not the journal.
#[derive(Debug)]
pub struct PendingSync {
    file: Option<File>,
    directory: Directory,
    path: PathBuf,
    through: Sequence,
}

impl PendingSync {
    /// Waits until everything that was committed when this was made is on stable storage, and
    /// returns the last record of it.
    pub fn run(self) -> Result<Sequence, FileError> {
        if let Some(file) = &self.file {
            file.sync_data().map_err(|error| FileError::io(&self.path, "synchronise", error))?;
        }
        DirectoryRef::from(&self.directory).sync()?;
        Ok(self.through)
    }
}

/// Records for one segment, encoded and not written.
#[derive(Debug)]
struct Chunk {
    /// The new segment that it begins, whose header is the first of `bytes` then.
    header: Option<Header>,
    bytes: Vec<u8>,
    /// The segment as it will be when this is written, but for its index, which has only what
    /// is added.
    segment: Segment,
}

impl Chunk {
    /// Returns an empty chunk that goes to the end of `segment`.
    fn at_end_of(segment: &Segment, buffer: Vec<u8>) -> Chunk {
        Chunk { header: None, bytes: buffer, segment: Segment { index: Vec::new(), ..*segment } }
    }

    /// Returns a chunk of one frame for a segment that is to be made.
    fn of_new_segment(header: &Header, frame: Vec<u8>) -> Chunk {
        let mut bytes = header.encode().to_vec();
        bytes.extend_from_slice(&frame);
        Chunk { header: Some(header.clone()), bytes, segment: Segment::new(header) }
    }

    /// Returns where in `bytes` the records begin.
    fn records_at(&self) -> usize {
        if self.header.is_some() { HEADER_BYTES } else { 0 }
    }
}

/// Returns the sequence after `sequence`; the last number of all has none, and stays.
fn following(sequence: Sequence) -> Sequence {
    Sequence(sequence.0.saturating_add(1))
}

/// Returns whether what `change` names can be read back.
fn paths_fit(change: &Change) -> bool {
    let fits = |path: &crate::model::TreePath| path.as_bytes().len() <= PATH_BYTES_MAX;
    match change {
        Change::Dirty { path, .. } => fits(path),
        Change::Rename { from, to } => fits(from) && fits(to),
        Change::Exchange { a, b } => fits(a) && fits(b),
        Change::Through(_) => true,
    }
}

/// Most memory that an empty buffer keeps, in bytes.
const SPARE_BYTES_MAX: usize = 256 << 10;

#[cfg(test)]
mod tests;
