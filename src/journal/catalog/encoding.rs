//! How the parts of a catalog are written: numbers in groups of seven bits, times and inodes as
//! differences from what stands before them, names without the part that they share.

use super::{Extent, Listed, Listing, Stamp, TableDirectory, TableEntry};
use crate::model::limits::NAME_BYTES_MAX;
use crate::model::path::check_name;
use crate::model::{Name, Timestamp};

// Flags of a file in a listing.
const IS_LINKED: u8 = 1;
const IS_WARM: u8 = 2;
const MTIME_IS_CTIME: u8 = 4;
const BIRTH_IS_CTIME: u8 = 8;
const BIRTH_IS_MTIME: u8 = 16;

// Flags of a directory in the table.
const IS_MOUNT: u8 = 1;
const HAS_LISTING: u8 = 2;
const IS_STALE: u8 = 4;
const IS_GONE: u8 = 8;

/// Appends a listing.
pub(super) fn put_listing(listing: &Listing, bytes: &mut Vec<u8>) {
    let mut before = Stamp::default();
    put_stamp(&listing.own, &before, bytes);
    before = listing.own;
    put_number(listing.files.len() as u64, bytes);
    let mut name: &[u8] = b"";
    for file in &listing.files {
        let shared = name.iter().zip(&file.name).take_while(|(one, other)| one == other).count();
        put_number(shared as u64, bytes);
        put_bytes(&file.name[shared..], bytes);
        put_stamp(&file.stamp, &before, bytes);
        (name, before) = (&file.name, file.stamp);
    }
}

/// Appends an entry of the table.
pub(super) fn put_table_entry(entry: &TableEntry, bytes: &mut Vec<u8>) {
    put_number(entry.number, bytes);
    let Some(directory) = &entry.directory else { return bytes.push(IS_GONE) };
    let mut flags = 0;
    for (flag, is_set) in [
        (IS_MOUNT, directory.is_mount),
        (HAS_LISTING, directory.listing.is_some()),
        (IS_STALE, directory.is_stale),
    ] {
        flags |= if is_set { flag } else { 0 };
    }
    bytes.push(flags);
    put_number(directory.parent, bytes);
    put_bytes(&directory.name, bytes);
    put_number(directory.file_system.into(), bytes);
    put_number(directory.inode, bytes);
    put_time(directory.birth, Timestamp::default(), bytes);
    if let Some(extent) = directory.listing {
        put_number(extent.offset, bytes);
        put_number(extent.length.into(), bytes);
    }
}

fn put_stamp(stamp: &Stamp, before: &Stamp, bytes: &mut Vec<u8>) {
    let mut flags = 0;
    for (flag, is_set) in [
        (IS_LINKED, stamp.is_linked),
        (IS_WARM, stamp.is_warm),
        (MTIME_IS_CTIME, stamp.mtime == stamp.ctime),
        (BIRTH_IS_CTIME, stamp.birth == stamp.ctime),
        (BIRTH_IS_MTIME, stamp.birth == stamp.mtime),
    ] {
        flags |= if is_set { flag } else { 0 };
    }
    bytes.push(flags);
    put_difference(stamp.inode, before.inode, bytes);
    put_number(stamp.mode.into(), bytes);
    put_number(stamp.size, bytes);
    put_time(stamp.ctime, before.ctime, bytes);
    if stamp.mtime != stamp.ctime {
        put_time(stamp.mtime, before.mtime, bytes);
    }
    if stamp.birth != stamp.ctime && stamp.birth != stamp.mtime {
        put_time(stamp.birth, before.birth, bytes);
    }
}

fn put_time(time: Timestamp, before: Timestamp, bytes: &mut Vec<u8>) {
    put_difference(time.seconds as u64, before.seconds as u64, bytes);
    put_number(time.nanoseconds.into(), bytes);
}

/// Appends the difference of two numbers, the small ones of either sign in few bytes.
fn put_difference(number: u64, before: u64, bytes: &mut Vec<u8>) {
    let difference = number.wrapping_sub(before) as i64;
    put_number(((difference << 1) ^ (difference >> 63)) as u64, bytes);
}

fn put_number(mut number: u64, bytes: &mut Vec<u8>) {
    while number >= 0x80 {
        bytes.push(number as u8 | 0x80);
        number >>= 7;
    }
    bytes.push(number as u8);
}

fn put_bytes(value: &[u8], bytes: &mut Vec<u8>) {
    put_number(value.len() as u64, bytes);
    bytes.extend_from_slice(value);
}

/// Takes parts of a catalog from bytes. Each call returns `None` if it finds what was never
/// written.
pub(super) struct Decoder<'a> {
    bytes: &'a [u8],
}

impl<'a> Decoder<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Decoder { bytes }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// Takes a listing, which is all that is left.
    pub(super) fn listing(&mut self) -> Option<Listing> {
        let own = self.stamp(&Stamp::default())?;
        let count = self.number()? as usize;
        // Each takes some bytes: a count that is too great must not take memory for itself.
        let mut files: Vec<Listed> = Vec::with_capacity(count.min(self.bytes.len()));
        for _ in 0..count {
            let last = files.last();
            let shared = self.number()? as usize;
            let mut name = last.map_or(&b""[..], |last| &last.name).get(..shared)?.to_vec();
            name.extend_from_slice(self.byte_string()?);
            if check_name(&name).is_err() || last.is_some_and(|last| last.name >= name) {
                return None;
            }
            let stamp = self.stamp(last.map_or(&own, |last| &last.stamp))?;
            files.push(Listed { name, stamp });
        }
        self.is_empty().then_some(Listing { own, files })
    }

    /// Takes an entry of the table.
    pub(super) fn table_entry(&mut self) -> Option<TableEntry> {
        let number = self.number()?;
        let flags = self.byte()?;
        if flags == IS_GONE {
            return Some(TableEntry { number, directory: None });
        }
        let parent = self.number()?;
        let name: Name = self.byte_string()?.to_vec();
        if (number == 0) != name.is_empty() || number != 0 && check_name(&name).is_err() {
            return None;
        }
        let file_system = u32::try_from(self.number()?).ok()?;
        let inode = self.number()?;
        let birth = self.time(Timestamp::default())?;
        let listing = match flags & HAS_LISTING {
            0 => None,
            _ => {
                let (offset, length) = (self.number()?, self.number()?);
                Some(Extent { offset, length: u32::try_from(length).ok()? })
            }
        };
        let directory = TableDirectory {
            parent,
            name,
            file_system,
            inode,
            birth,
            is_mount: flags & IS_MOUNT != 0,
            listing,
            is_stale: flags & IS_STALE != 0,
        };
        Some(TableEntry { number, directory: Some(directory) })
    }

    fn stamp(&mut self, before: &Stamp) -> Option<Stamp> {
        let flags = self.byte()?;
        let inode = self.difference(before.inode)?;
        let mode = u32::try_from(self.number()?).ok()?;
        let size = self.number()?;
        let ctime = self.time(before.ctime)?;
        let mtime = match flags & MTIME_IS_CTIME {
            0 => self.time(before.mtime)?,
            _ => ctime,
        };
        let birth = match (flags & BIRTH_IS_CTIME, flags & BIRTH_IS_MTIME) {
            (0, 0) => self.time(before.birth)?,
            (0, _) => mtime,
            (_, _) => ctime,
        };
        let (is_linked, is_warm) = (flags & IS_LINKED != 0, flags & IS_WARM != 0);
        Some(Stamp { inode, birth, mode, size, mtime, ctime, is_linked, is_warm })
    }

    fn time(&mut self, before: Timestamp) -> Option<Timestamp> {
        let seconds = self.difference(before.seconds as u64)? as i64;
        Some(Timestamp { seconds, nanoseconds: u32::try_from(self.number()?).ok()? })
    }

    fn difference(&mut self, before: u64) -> Option<u64> {
        let folded = self.number()?;
        let difference = (folded >> 1) as i64 ^ -((folded & 1) as i64);
        Some(before.wrapping_add(difference as u64))
    }

    fn number(&mut self) -> Option<u64> {
        let mut number = 0;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            number |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                return Some(number);
            }
        }
        None
    }

    fn byte_string(&mut self) -> Option<&'a [u8]> {
        let length = self.number()? as usize;
        if length > NAME_BYTES_MAX {
            return None;
        }
        let (taken, rest) = self.bytes.split_at_checked(length)?;
        self.bytes = rest;
        Some(taken)
    }

    fn byte(&mut self) -> Option<u8> {
        let (first, rest) = self.bytes.split_first()?;
        self.bytes = rest;
        Some(*first)
    }
}
