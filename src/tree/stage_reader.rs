//! Reading a big file chunk by chunk, truly (I3), with its holes left out.
//!
//! A file that changes meanwhile is read on: the stamps of the beginning and the end tell, and
//! whoever asked for it decides.

use std::io;
use std::os::fd::OwnedFd;

use rustix::buffer::{SpareCapacity, spare_capacity};
use rustix::fs::SeekFrom;
use rustix::io::Errno;

use super::reader::Stamp;
use super::root::stat_fd;
use crate::model::StageDigest;

/// A big file that is read chunk by chunk.
#[derive(Debug)]
pub struct StageReader {
    file: OwnedFd,
    stamp: Stamp,
    /// What is before it was read.
    offset: u64,
    /// From `offset` to here is data; equal to it where that was not asked for yet.
    data_end: u64,
    digest: StageDigest,
}

impl StageReader {
    /// Begins at the start of `file`, which had `stamp` when it was looked at.
    pub(super) fn new(file: OwnedFd, stamp: Stamp) -> Self {
        StageReader { file, stamp, offset: 0, data_end: 0, digest: StageDigest::default() }
    }

    /// Returns the size announced when the file was opened.
    pub fn size(&self) -> u64 {
        self.stamp.size()
    }

    /// Returns the stamp of the look it began with.
    pub fn stamp(&self) -> Stamp {
        self.stamp
    }

    /// Returns the offset and the length of the next chunk, of at most `bytes_max` bytes and
    /// behind any hole; `None` at the end.
    ///
    /// # Errors
    ///
    /// The system's; the file is to be given up, or begun anew.
    pub fn next_chunk(&mut self, bytes_max: usize) -> io::Result<Option<(u64, usize)>> {
        let end = self.stamp.size();
        if self.offset == self.data_end {
            let data = match rustix::fs::seek(&self.file, SeekFrom::Data(self.offset)) {
                Ok(data) => data.min(end),
                Err(Errno::NXIO) => end,
                Err(Errno::INVAL) => self.offset, // A file system without holes.
                Err(error) => return Err(error.into()),
            };
            let hole = match rustix::fs::seek(&self.file, SeekFrom::Hole(data)) {
                Ok(hole) => hole.min(end),
                Err(Errno::NXIO | Errno::INVAL) => end,
                Err(error) => return Err(error.into()),
            };
            (self.offset, self.data_end) = (data, hole);
        }
        let length = (self.data_end - self.offset).min(bytes_max as u64) as usize;
        Ok((self.offset < end).then_some((self.offset, length)))
    }

    /// Appends a chunk that [`StageReader::next_chunk`] told of. What a file that shrank
    /// meanwhile does not have is filled up, and the stamps will differ.
    ///
    /// # Errors
    ///
    /// The system's; `buffer` is as before.
    ///
    /// # Panics
    ///
    /// If the chunk is another one.
    pub fn read_chunk(&mut self, length: usize, buffer: &mut Vec<u8>) -> io::Result<()> {
        assert!(length as u64 <= self.data_end - self.offset, "a chunk that nobody told of");
        let (file, offset, start) = (&self.file, self.offset, buffer.len());
        append(buffer, length, |at, space| rustix::io::pread(file, space, offset + at as u64))?;
        self.digest.update(offset, &buffer[start..]);
        self.offset += length as u64;
        Ok(())
    }

    /// Returns the [`StageDigest`] of the file, if all of it was read.
    ///
    /// # Errors
    ///
    /// Those of [`StageReader::next_chunk`].
    pub fn digest(&mut self) -> io::Result<Option<[u8; 32]>> {
        let is_read = self.next_chunk(0)?.is_none();
        Ok(is_read.then(|| self.digest.finish(self.stamp.size())))
    }

    /// Begins anew with what the file is now.
    ///
    /// # Errors
    ///
    /// The system's; the file is to be given up.
    pub fn restart(&mut self) -> io::Result<()> {
        self.stamp = Stamp::of(&stat_fd(&self.file)?);
        (self.offset, self.data_end) = (0, 0);
        self.digest = StageDigest::default();
        Ok(())
    }

    /// Returns whether the file is as it was at the beginning.
    ///
    /// # Errors
    ///
    /// The system's.
    pub fn is_unchanged(&self) -> io::Result<bool> {
        Ok(Stamp::of(&stat_fd(&self.file)?) == self.stamp)
    }
}

/// Appends exactly `length` bytes: what `read` gives for a position and the space from there
/// on, into memory that nobody wrote to before, and zeros if it ends early. Returns whether
/// it did not.
pub(super) fn append(
    buffer: &mut Vec<u8>,
    length: usize,
    mut read: impl FnMut(usize, SpareCapacity<'_, u8>) -> rustix::io::Result<usize>,
) -> io::Result<bool> {
    let start = buffer.len();
    let end = start + length;
    buffer.reserve(length);
    let mut is_whole = true;
    while is_whole && buffer.len() < end {
        match read(buffer.len() - start, spare_capacity(buffer)) {
            Ok(count) => is_whole = count > 0,
            Err(Errno::INTR) => {}
            Err(error) => {
                buffer.truncate(start);
                return Err(error.into());
            }
        }
    }
    // There may have been more space, and more in a file that grew.
    buffer.resize(end, 0);
    Ok(is_whole)
}
