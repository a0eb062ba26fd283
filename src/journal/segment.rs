//! One segment file: its header, its records, and how both are read back.
//!
//! ```text
//! offset  bytes  little-endian
//!      0      8  magic, "mirrorJ\n"
//!      8      4  format version
//!     12      4  CRC-32 of bytes 0 to 11, in this place in every version
//!     16     16  tree id
//!     32      8  epoch: counter
//!     40      8  epoch: random
//!     48      8  flags: 1 the epoch has a parent, 2 numbers were skipped (see `gap`)
//!     56      8  parent epoch: counter
//!     64      8  parent epoch: random
//!     72      8  parent epoch: last sequence shared
//!     80      8  base: sequence of the last record before this segment
//!     88      8  first: no record of this segment has a lower sequence
//!     96      4  reserved, 0
//!    100      4  CRC-32 of bytes 0 to 99
//!    104         records, each:
//!                  4  length n of the encoded record, above 0
//!                  4  CRC-32 of the four length bytes and the encoded record
//!                  n  the record, postcard
//! ```
//!
//! The length is part of the checksum, and never 0, so that a hole of zeros is no record.

use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;

use crate::model::limits::{JOURNAL_BUFFER_BYTES, JOURNAL_INDEX_BYTES, RECORD_BYTES_MAX};
use crate::model::{Epoch, EpochId, Record, Sequence, TreeId};

/// What a segment says of itself and of its place in the journal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) tree: TreeId,
    pub(super) epoch: Epoch,
    /// The last record before this segment, 0 if there was none.
    pub(super) base: Sequence,
    /// Names the file; no record in it has a lower sequence.
    pub(super) first: Sequence,
    /// Whether records between `base` and `first` may have been handed out and lost: who stands
    /// there stands where this journal cannot continue.
    pub(super) gap: bool,
}

/// Why bytes are not the header of a segment.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum HeaderError {
    /// It was never written as a whole, as a crash leaves it.
    Torn,
    /// A sound beginning, and not this program's.
    UnknownVersion(u32),
    /// It was written and is not as it was.
    Damaged(&'static str),
}

impl Header {
    pub(super) fn encode(&self) -> [u8; HEADER_BYTES] {
        let mut bytes = [0; HEADER_BYTES];
        let mut put = |at: usize, part: &[u8]| bytes[at..at + part.len()].copy_from_slice(part);
        let (parent, shared) =
            self.epoch.parent.unwrap_or((EpochId { counter: 0, random: 0 }, Sequence(0)));
        let flags = if self.epoch.parent.is_some() { FLAG_PARENT } else { 0 }
            | if self.gap { FLAG_GAP } else { 0 };
        put(0, &MAGIC);
        put(8, &VERSION.to_le_bytes());
        put(16, &self.tree.0.to_le_bytes());
        put(32, &self.epoch.id.counter.to_le_bytes());
        put(40, &self.epoch.id.random.to_le_bytes());
        put(48, &flags.to_le_bytes());
        put(56, &parent.counter.to_le_bytes());
        put(64, &parent.random.to_le_bytes());
        put(72, &shared.0.to_le_bytes());
        put(80, &self.base.0.to_le_bytes());
        put(88, &self.first.0.to_le_bytes());
        let checksum = crc32fast::hash(&bytes[..12]);
        bytes[12..16].copy_from_slice(&checksum.to_le_bytes());
        let checksum = crc32fast::hash(&bytes[..100]);
        bytes[100..104].copy_from_slice(&checksum.to_le_bytes());
        bytes
    }

    /// Decodes the first bytes of a segment file, all that there are if they are fewer.
    pub(super) fn decode(bytes: &[u8]) -> Result<Header, HeaderError> {
        // The version first: all that is known of a newer version's header is where it stands.
        if let Some(prefix) = bytes.first_chunk::<16>()
            && prefix[..8] == MAGIC
            && crc32fast::hash(&prefix[..12]) == word(prefix, 12)
            && word(prefix, 8) != VERSION
        {
            return Err(HeaderError::UnknownVersion(word(prefix, 8)));
        }
        let Some(bytes) = bytes.first_chunk::<HEADER_BYTES>() else {
            return Err(HeaderError::Torn);
        };
        if bytes.iter().all(|byte| *byte == 0) {
            // After a power cut a file may have its length without having its content.
            return Err(HeaderError::Torn);
        }
        if bytes[..8] != MAGIC {
            return Err(HeaderError::Damaged("it does not begin as a segment does"));
        }
        if crc32fast::hash(&bytes[..12]) != word(bytes, 12)
            || crc32fast::hash(&bytes[..100]) != word(bytes, 100)
        {
            return Err(HeaderError::Damaged("its header's checksum does not agree"));
        }
        let flags = long(bytes, 48);
        if flags & !(FLAG_PARENT | FLAG_GAP) != 0 {
            return Err(HeaderError::Damaged("its header has unknown flags"));
        }
        let parent = EpochId { counter: long(bytes, 56), random: long(bytes, 64) };
        let tree = u128::from(long(bytes, 16)) | u128::from(long(bytes, 24)) << 64;
        Ok(Header {
            tree: TreeId(tree),
            epoch: Epoch {
                id: EpochId { counter: long(bytes, 32), random: long(bytes, 40) },
                parent: (flags & FLAG_PARENT != 0).then_some((parent, Sequence(long(bytes, 72)))),
            },
            base: Sequence(long(bytes, 80)),
            first: Sequence(long(bytes, 88)),
            gap: flags & FLAG_GAP != 0,
        })
    }
}

/// A segment as far as it is committed.
///
/// Invariant: `base <= last`, and `last == base` if it has no record; `index` rises in both.
#[derive(Debug)]
pub(super) struct Segment {
    pub(super) base: Sequence,
    pub(super) first: Sequence,
    pub(super) gap: bool,
    /// The last record in it, `base` if there is none.
    pub(super) last: Sequence,
    /// Bytes that are committed, the header's included.
    pub(super) length: u64,
    /// Where some of the records begin, so that a cursor need not read all before it.
    pub(super) index: Vec<(Sequence, u64)>,
    /// The last place of the index, the end of the header if there is none.
    pub(super) indexed: u64,
}

impl Segment {
    /// Returns a segment of which only the header is written.
    pub(super) fn new(header: &Header) -> Segment {
        Segment {
            base: header.base,
            first: header.first,
            gap: header.gap,
            last: header.base,
            length: HEADER_BYTES as u64,
            index: Vec::new(),
            indexed: HEADER_BYTES as u64,
        }
    }

    /// Counts a record of `bytes` at the segment's end.
    pub(super) fn append(&mut self, sequence: Sequence, bytes: usize) {
        if self.length - self.indexed >= JOURNAL_INDEX_BYTES {
            self.index.push((sequence, self.length));
            self.indexed = self.length;
        }
        self.last = sequence;
        self.length += bytes as u64;
    }

    /// Returns an offset at or before the first record above `after`, not far before it.
    pub(super) fn offset_after(&self, after: Sequence) -> u64 {
        if after >= self.last {
            return self.length;
        }
        match self.index.partition_point(|(sequence, _)| *sequence <= after) {
            0 => HEADER_BYTES as u64,
            above => self.index[above - 1].1,
        }
    }
}

/// Returns the name of the segment that begins with `first`.
pub(super) fn file_name(first: Sequence) -> String {
    format!("{:016x}{SUFFIX}", first.0)
}

/// Returns which segment `name` names, `None` if it is none's name.
pub(super) fn parse_file_name(name: &OsStr) -> Option<Sequence> {
    let digits = name.as_bytes().strip_suffix(SUFFIX.as_bytes())?;
    let first = u64::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?;
    // Other spellings of the number ("+1", "A") are not names that are given here.
    (file_name(Sequence(first)).as_bytes() == name.as_bytes()).then_some(Sequence(first))
}

/// Appends `record` to `bytes`, framed, and returns the frame's length.
///
/// # Panics
///
/// If it is longer than [`RECORD_BYTES_MAX`], which its paths' limit rules out.
pub(super) fn encode_frame(record: &Record, bytes: &mut Vec<u8>) -> usize {
    let start = bytes.len();
    bytes.extend_from_slice(&[0; FRAME_HEADER_BYTES]);
    *bytes = postcard::to_extend(record, std::mem::take(bytes))
        .expect("a record in memory can be encoded");
    let (header, payload) = bytes[start..].split_at_mut(FRAME_HEADER_BYTES);
    assert!(payload.len() <= RECORD_BYTES_MAX, "a record of {} bytes", payload.len());
    let length = (payload.len() as u32).to_le_bytes();
    header[..4].copy_from_slice(&length);
    header[4..].copy_from_slice(&frame_checksum(length, payload).to_le_bytes());
    bytes.len() - start
}

/// What the bytes at a frame's place are.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Frame<'a> {
    /// A frame whose checksum agrees, and its length.
    Whole { payload: &'a [u8], bytes: usize },
    /// The beginning of a frame of `needed` bytes, or of that many at least.
    Short { needed: usize },
    /// No frame.
    Damaged(&'static str),
}

/// Takes the frame that `bytes` begin with.
pub(super) fn split_frame(bytes: &[u8]) -> Frame<'_> {
    let Some((header, rest)) = bytes.split_first_chunk::<FRAME_HEADER_BYTES>() else {
        return Frame::Short { needed: FRAME_HEADER_BYTES };
    };
    let length = word(header, 0) as usize;
    if length == 0 || length > RECORD_BYTES_MAX {
        return Frame::Damaged("a record's length cannot be");
    }
    let Some(payload) = rest.get(..length) else {
        return Frame::Short { needed: FRAME_HEADER_BYTES + length };
    };
    if frame_checksum((length as u32).to_le_bytes(), payload) != word(header, 4) {
        return Frame::Damaged("a record's checksum does not agree");
    }
    Frame::Whole { payload, bytes: FRAME_HEADER_BYTES + length }
}

/// Returns the sequence of an encoded record without decoding the rest of it.
pub(super) fn sequence_of(payload: &[u8]) -> Result<Sequence, postcard::Error> {
    // A record's first field, and a newtype is encoded as what it holds.
    Ok(postcard::take_from_bytes::<Sequence>(payload)?.0)
}

/// Decodes a record that is nothing but `payload`.
pub(super) fn decode_record(payload: &[u8]) -> Result<Record, String> {
    match postcard::take_from_bytes(payload) {
        Ok((record, [])) => Ok(record),
        Ok(_) => Err("bytes follow a record within its frame".to_string()),
        Err(error) => Err(format!("a record cannot be decoded: {error}")),
    }
}

/// Reads frames from a segment file one after the other, through a bounded buffer.
#[derive(Debug)]
pub(super) struct FrameReader {
    file: File,
    buffer: Vec<u8>,
    /// Offset of the buffer's first byte in the file.
    start: u64,
}

/// Why there is no frame at an offset.
#[derive(Debug)]
pub(super) enum FrameError {
    /// The system refused to read.
    Io(io::Error),
    /// The file has no sound frame there.
    Damaged(&'static str),
}

impl FrameReader {
    pub(super) fn new(file: File) -> Self {
        FrameReader { file, buffer: Vec::new(), start: 0 }
    }

    /// Returns the payload and the length of the frame at `offset`, of which the file's first
    /// `limit` bytes must hold all.
    pub(super) fn frame_at(
        &mut self,
        offset: u64,
        limit: u64,
    ) -> Result<(&[u8], usize), FrameError> {
        let range = self.frame_range(offset, limit)?;
        let bytes = FRAME_HEADER_BYTES + range.len();
        Ok((&self.buffer[range], bytes))
    }

    fn frame_range(&mut self, offset: u64, limit: u64) -> Result<Range<usize>, FrameError> {
        let mut needed = FRAME_HEADER_BYTES;
        loop {
            let at = offset.checked_sub(self.start).and_then(|at| usize::try_from(at).ok());
            if let Some(at) = at.filter(|at| at + needed <= self.buffer.len()) {
                match split_frame(&self.buffer[at..]) {
                    Frame::Whole { payload, .. } => {
                        let start = at + FRAME_HEADER_BYTES;
                        return Ok(start..start + payload.len());
                    }
                    Frame::Damaged(reason) => return Err(FrameError::Damaged(reason)),
                    Frame::Short { needed: more } => needed = more,
                }
            }
            if limit.saturating_sub(offset) < needed as u64 {
                return Err(FrameError::Damaged("a record is cut off"));
            }
            let have = at.map_or(0, |at| self.buffer.len().saturating_sub(at));
            if have < needed {
                self.fill(offset, limit, needed)?;
            }
        }
    }

    /// Reads anew from `offset` on, `needed` bytes at least.
    fn fill(&mut self, offset: u64, limit: u64, needed: usize) -> Result<(), FrameError> {
        let wanted = (limit - offset).min(needed.max(JOURNAL_BUFFER_BYTES) as u64) as usize;
        self.buffer.resize(wanted, 0);
        self.start = offset;
        let mut filled = 0;
        while filled < wanted {
            match self.file.read_at(&mut self.buffer[filled..], offset + filled as u64) {
                Ok(0) => break,
                Ok(count) => filled += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    self.buffer.clear();
                    return Err(FrameError::Io(error));
                }
            }
        }
        self.buffer.truncate(filled);
        if filled < needed { Err(FrameError::Damaged("a record is cut off")) } else { Ok(()) }
    }
}

fn frame_checksum(length: [u8; 4], payload: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&length);
    hasher.update(payload);
    hasher.finalize()
}

fn word(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

fn long(bytes: &[u8], at: usize) -> u64 {
    u64::from(word(bytes, at)) | u64::from(word(bytes, at + 4)) << 32
}

/// Length of a segment's header, in bytes.
pub(super) const HEADER_BYTES: usize = 104;
/// Version of a segment's format.
pub(super) const VERSION: u32 = 1;
/// Length of what stands before each record, in bytes.
const FRAME_HEADER_BYTES: usize = 8;
const MAGIC: [u8; 8] = *b"mirrorJ\n";
const SUFFIX: &str = ".segment";
const FLAG_PARENT: u64 = 1;
const FLAG_GAP: u64 = 2;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Change, TreePath};

    fn header() -> Header {
        Header {
            tree: TreeId(u128::MAX / 3),
            epoch: Epoch {
                id: EpochId { counter: 9, random: 8 },
                parent: Some((EpochId { counter: 8, random: u64::MAX }, Sequence(4))),
            },
            base: Sequence(5),
            first: Sequence(77),
            gap: true,
        }
    }

    #[test]
    fn headers_come_back_and_no_flipped_bit_passes() {
        let header = header();
        let bytes = header.encode();
        assert_eq!(Header::decode(&bytes), Ok(header.clone()));
        let plain = Header { epoch: Epoch { parent: None, ..header.epoch }, gap: false, ..header };
        assert_eq!(Header::decode(&plain.encode()), Ok(plain));
        for bit in 0..bytes.len() * 8 {
            let mut damaged = bytes;
            damaged[bit / 8] ^= 1 << (bit % 8);
            let error = Header::decode(&damaged).unwrap_err();
            assert!(matches!(error, HeaderError::Damaged(_)), "bit {bit}: {error:?}");
        }
        for length in 0..bytes.len() {
            assert_eq!(Header::decode(&bytes[..length]), Err(HeaderError::Torn));
        }
    }

    #[test]
    fn a_newer_version_is_known_by_its_first_bytes_alone() {
        let mut bytes = header().encode();
        bytes[8..12].copy_from_slice(&2_u32.to_le_bytes());
        let checksum = crc32fast::hash(&bytes[..12]);
        bytes[12..16].copy_from_slice(&checksum.to_le_bytes());
        assert_eq!(Header::decode(&bytes[..16]), Err(HeaderError::UnknownVersion(2)));
    }

    #[test]
    fn names_are_numbers_in_one_spelling() {
        for first in [0, 1, 0xabc, u64::MAX] {
            let name = file_name(Sequence(first));
            assert_eq!(parse_file_name(OsStr::new(&name)), Some(Sequence(first)));
        }
        for name in ["1.segment", "000000000000000A.segment", "reserved", "", ".segment"] {
            assert_eq!(parse_file_name(OsStr::new(name)), None, "{name}");
        }
    }

    #[test]
    fn a_hole_is_no_record_and_the_longest_record_is_one() {
        assert!(matches!(split_frame(&[0; 64]), Frame::Damaged(_)));
        let long = vec![vec![b'n'; 255]; 256].join(&b'/');
        let path = TreePath::new(long).unwrap();
        let change = Change::Rename { from: path.clone(), to: path };
        let record =
            Record { sequence: Sequence(u64::MAX), origin: Some(Sequence(u64::MAX)), change };
        let mut bytes = Vec::new();
        assert_eq!(encode_frame(&record, &mut bytes), bytes.len());
        let Frame::Whole { payload, .. } = split_frame(&bytes) else { panic!() };
        assert_eq!(sequence_of(payload).unwrap(), record.sequence);
        assert_eq!(decode_record(payload).unwrap(), record);
        for length in 0..bytes.len() {
            assert!(matches!(split_frame(&bytes[..length]), Frame::Short { .. }));
        }
    }
}
