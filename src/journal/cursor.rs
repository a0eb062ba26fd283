//! Cursors: where in the journal a reader is.
//!
//! A cursor is of constant size whatever its lag: behind the tail it reads a segment through one
//! bounded buffer, at the head it reads the tail that the journal keeps in memory, and has no
//! buffer and no file.

use std::io;
use std::path::PathBuf;

use rustix::fs::OFlags;

use super::Journal;
use super::recovery::open_segment;
use super::segment::{
    Frame, FrameError, FrameReader, HEADER_BYTES, Segment, decode_record, sequence_of, split_frame,
};
use crate::model::limits::JOURNAL_TAIL_BYTES_MAX;
use crate::model::{Record, Sequence};

/// A place between two records of a journal. Moved by [`Journal::read`].
#[derive(Debug)]
pub struct Cursor {
    /// Everything through this was read, or is not wanted.
    after: Sequence,
    /// Which epoch of the journal it belongs to.
    generation: u64,
    /// The segment, by its first sequence.
    segment: Sequence,
    /// Where in it the next record begins, or one that is not wanted and comes before it.
    offset: u64,
    /// The segment's file and a piece of it, while the tail does not have what is next.
    reader: Option<FrameReader>,
}

impl Cursor {
    /// Returns the last record that was read, or what the cursor was made with.
    pub fn after(&self) -> Sequence {
        self.after
    }
}

impl Journal {
    /// Returns a cursor whose first record is the one after `after`.
    ///
    /// `None` if that cannot be said: the ring has dropped it, `after` lies ahead of the head, or
    /// among numbers whose records may have been lost in a crash.
    pub fn cursor(&self, after: Sequence) -> Option<Cursor> {
        if after < self.floor() || after > self.head {
            return None;
        }
        let planned = self.chunks.iter().filter(|chunk| chunk.header.is_some());
        let planned = planned.map(|chunk| &chunk.segment);
        let lost = |segment: &Segment| segment.gap && segment.base < after && after < segment.first;
        if self.segments.iter().chain(planned).any(lost) {
            return None;
        }
        // The last one that begins at or before `after`: the floor says that there is one.
        let number = self.segments.partition_point(|segment| segment.base <= after);
        let segment = self.segments.get(number.checked_sub(1)?)?;
        Some(Cursor {
            after,
            generation: self.generation,
            segment: segment.first,
            offset: segment.offset_after(after),
            reader: None,
        })
    }

    /// Appends committed records that follow the cursor to `records`, `count_max` at most, and
    /// moves the cursor behind them.
    ///
    /// Fewer come only if there are no more: then everything through
    /// [`committed`](Self::committed) was read. After an error, the cursor stands behind the
    /// last record that was appended.
    pub fn read(
        &self,
        cursor: &mut Cursor,
        count_max: usize,
        records: &mut Vec<Record>,
    ) -> Result<(), ReadError> {
        let fallen = |after| ReadError::Fallen { after, floor: self.floor() };
        if cursor.generation != self.generation {
            return Err(fallen(cursor.after));
        }
        let mut count_left = count_max;
        while count_left > 0 {
            let number = self.segments.partition_point(|segment| segment.first < cursor.segment);
            let segment = match self.segments.get(number) {
                Some(segment) if segment.first == cursor.segment => segment,
                _ => {
                    // Dropped, which is no loss to a cursor that had read it to its end.
                    *cursor = self.cursor(cursor.after).ok_or(fallen(cursor.after))?;
                    continue;
                }
            };
            if cursor.offset >= segment.length {
                cursor.reader = None;
                let Some(next) = self.segments.get(number + 1) else { break };
                (cursor.segment, cursor.offset) = (next.first, HEADER_BYTES as u64);
                continue;
            }
            let is_last = number + 1 == self.segments.len();
            let tail = if is_last { self.tail.at(cursor.offset) } else { None };
            let damaged = |reason: String| self.damaged(segment, &reason);
            let (payload, bytes) =
                self.next_frame(segment, cursor.offset, tail, &mut cursor.reader)?;
            let sequence = sequence_of(payload).map_err(|error| damaged(error.to_string()))?;
            if sequence > cursor.after {
                records.push(decode_record(payload).map_err(damaged)?);
                cursor.after = sequence;
                count_left -= 1;
            }
            cursor.offset += bytes as u64;
        }
        Ok(())
    }

    /// Returns the frame at `offset` of `segment` and its length, from `tail` if that is given.
    fn next_frame<'a>(
        &self,
        segment: &Segment,
        offset: u64,
        tail: Option<&'a [u8]>,
        reader: &'a mut Option<FrameReader>,
    ) -> Result<(&'a [u8], usize), ReadError> {
        if let Some(tail) = tail {
            *reader = None;
            return match split_frame(tail) {
                Frame::Whole { payload, bytes } => Ok((payload, bytes)),
                Frame::Short { .. } => Err(self.damaged(segment, "a record is cut off")),
                Frame::Damaged(reason) => Err(self.damaged(segment, reason)),
            };
        }
        let io_error = |source| ReadError::Io { path: self.path_of(segment.first), source };
        let reader = match reader {
            Some(reader) => reader,
            None => {
                let file = open_segment(&self.directory, segment.first, OFlags::RDONLY)
                    .map_err(io_error)?;
                reader.insert(FrameReader::new(file))
            }
        };
        reader.frame_at(offset, segment.length).map_err(|error| match error {
            FrameError::Damaged(reason) => self.damaged(segment, reason),
            FrameError::Io(source) => io_error(source),
        })
    }

    fn damaged(&self, segment: &Segment, reason: &str) -> ReadError {
        ReadError::Damaged { path: self.path_of(segment.first), reason: reason.to_string() }
    }
}

/// Why a cursor cannot be read on.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The ring has dropped what comes next, or the epoch has ended: reconcile.
    #[error("record {after} has fallen off the journal, which begins after {floor}")]
    Fallen {
        /// Where the cursor stands.
        after: Sequence,
        /// The last record that the ring has dropped.
        floor: Sequence,
    },
    /// The system refused; reading can be repeated.
    #[error("cannot read {}: {source}", path.display())]
    Io {
        /// Which file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// A segment is not as it was written: reconcile.
    #[error("{} is damaged: {reason}", path.display())]
    Damaged {
        /// Which file.
        path: PathBuf,
        /// How that shows.
        reason: String,
    },
}

/// The last bytes of the newest segment, as they are in its file.
///
/// Invariant: `bytes` end where the segment's committed bytes end, so an offset at or above
/// `start` where a record begins is in them.
#[derive(Debug, Default)]
pub(super) struct Tail {
    /// Offset of the first byte; in the middle of a record perhaps.
    start: u64,
    bytes: Vec<u8>,
}

impl Tail {
    /// Forgets everything: the newest segment is another one, of `length` bytes so far.
    pub(super) fn clear(&mut self, length: u64) {
        self.start = length;
        self.bytes.clear();
    }

    /// Adds what was written at the segment's end, `offset`.
    pub(super) fn push(&mut self, offset: u64, bytes: &[u8]) {
        assert_eq!(offset, self.start + self.bytes.len() as u64);
        let total = self.bytes.len() + bytes.len();
        if total <= JOURNAL_TAIL_BYTES_MAX {
            self.bytes.extend_from_slice(bytes);
            return;
        }
        // Down to half, so that bytes are seldom moved.
        let end = offset + bytes.len() as u64;
        let kept_new = bytes.len().min(JOURNAL_TAIL_BYTES_MAX / 2);
        let kept_old = (JOURNAL_TAIL_BYTES_MAX / 2 - kept_new).min(self.bytes.len());
        self.bytes.drain(..self.bytes.len() - kept_old);
        self.bytes.extend_from_slice(&bytes[bytes.len() - kept_new..]);
        self.start = end - self.bytes.len() as u64;
    }

    /// Returns the bytes from `offset` on, `None` if they are only in the file.
    fn at(&self, offset: u64) -> Option<&[u8]> {
        let skip = usize::try_from(offset.checked_sub(self.start)?).ok()?;
        self.bytes.get(skip..)
    }
}
