//! Every limit of the program, with its unit and its reason, in one place.

/// Largest frame, header included, in bytes. Bounds what a peer can make us buffer.
pub const FRAME_BYTES_MAX: usize = 1 << 20;

/// Size, in bytes, at which a frame of many small files is sent without waiting for more of them.
///
/// Large enough that system calls and checksums cost nothing beside creating the files, small
/// enough that the receiver works while the sender reads on.
pub const FRAME_BYTES_TARGET: usize = 256 << 10;

/// Largest file, in bytes, whose content travels inside its state; a larger one is staged.
pub const INLINE_BYTES_MAX: usize = 256 << 10;

/// Most bytes of a staged file in one message, so that small changes are never far behind.
pub const CHUNK_BYTES_MAX: usize = 256 << 10;

/// Largest file, in bytes, that is compared by a digest, and most bytes of files that a downstream
/// has to digest before it acknowledged some: neither end may be silent for long meanwhile, also
/// if its disk reads only some ten megabytes a second.
pub const DIGEST_BYTES_MAX: u64 = 64 << 20;

/// Most directories that are compared by one digest: so few that little is listed where they
/// differ, and so many that the digests of a whole tree are no more than some kilobytes.
pub const RANGE_DIRECTORIES_MAX: usize = 128;

/// Entries at which a range of directories ends, so that reading one takes a few milliseconds.
pub const RANGE_ENTRIES: u64 = 2048;

/// Bytes of paths at which a range of directories ends.
pub const RANGE_BYTES: usize = 32 << 10;

/// Most ranges whose comparison a downstream has not answered: what keeps both sides walking over
/// a long line, and bounds what both remember.
pub const RANGES_MAX: usize = 32;

/// Most bytes of paths that a downstream lists of a range that differs, before it leaves the rest
/// of it to another comparison. An equal range never has as many.
pub const LISTED_BYTES_MAX: usize = 2 * (RANGE_BYTES + PATH_BYTES_MAX);

/// Most directories in such a list, for the same reason.
pub const LISTED_MAX: usize = 64 * RANGE_DIRECTORIES_MAX;

/// Most entries that a downstream looks at beyond those that a range has upstream.
pub const LISTED_ENTRIES_MORE: u64 = 4096;

/// Most bytes sent and not yet acknowledged as handled, for one downstream, over a long line.
pub const WINDOW_BYTES_MAX: u64 = 8 << 20;

/// The same, where answers take no time: what keeps both sides busy and is still in the
/// processor's cache when it is used.
pub const WINDOW_BYTES_MIN: u64 = 2 << 20;

/// The same for each millisecond of the round trip: what a fast line carries meanwhile.
pub const WINDOW_BYTES_PER_MS: u64 = 512 << 10;

/// The part of the window, in bytes, that chunks of big files may fill.
pub const WINDOW_CHUNK_BYTES_MAX: u64 = 2 << 20;

/// Bytes handled after which a receiver acknowledges at once instead of by its timer.
pub const ACK_BYTES_MAX: u64 = 512 << 10;

/// Longest time, in milliseconds, for which a receiver keeps an acknowledgement back.
pub const ACK_MS_MAX: u64 = 20;

/// Most files staged at the same time for one downstream.
pub const TRANSFERS_MAX: usize = 4;

/// Times a big file that changes while it is read is begun anew before it is sent as read.
pub const TRANSFER_ATTEMPTS_MAX: u32 = 3;

/// Longest name of an entry, in bytes (`NAME_MAX`).
pub const NAME_BYTES_MAX: usize = 255;

/// Longest path from the root of a tree, in bytes. Not `PATH_MAX`, which bounds only one call.
pub const PATH_BYTES_MAX: usize = 64 << 10;

/// Longest part of a path that is handed to one system call, in bytes, below `PATH_MAX`.
pub const PATH_CALL_BYTES_MAX: usize = 4000;

/// Most bytes of names in one listing message; a larger directory is listed in several.
pub const NAMES_BYTES_MAX: usize = 128 << 10;

/// Most renames that a cursor may have ahead of it before it has fallen off the journal.
pub const RENAMES_MAX: usize = 65_536;

/// Most marks of a relay's journal that are kept in memory; beyond, every second one is left out.
pub const MARKS_MAX: usize = 8192;

/// Most marks that a relay's sender keeps back while a big file is on its way.
pub const MARKS_HELD_MAX: usize = 1024;

/// Most paths that a sender remembers as sent, to leave out records that are covered already.
pub const SENT_PATHS_MAX: usize = 65_536;

/// Most journal records that a sender takes up at once.
pub const RECORDS_READ_MAX: usize = 1024;

/// Most paths that a sink asks for one by one before it asks for the whole tree.
pub const NEEDS_MAX: usize = 4096;

/// Most entries of a source that cannot be read and are tried again from time to time.
pub const PROBLEMS_MAX: usize = 16_384;

/// Largest extended attribute value, in bytes (`XATTR_SIZE_MAX`).
pub const XATTR_BYTES_MAX: usize = 64 << 10;

/// Time between two heartbeats, in milliseconds.
pub const HEARTBEAT_MS: u64 = 2_000;

/// Time after which a silent peer is gone, in milliseconds.
pub const SILENCE_MS_MAX: u64 = 10_000;

/// Longest time for a connection's first message, in milliseconds.
pub const HANDSHAKE_MS_MAX: u64 = 5_000;

/// First and longest pause before connecting again, in milliseconds.
pub const BACKOFF_MS_MIN: u64 = 100;
/// See [`BACKOFF_MS_MIN`].
pub const BACKOFF_MS_MAX: u64 = 5_000;

/// Size of a journal when nothing else is asked for, in bytes: millions of records.
pub const JOURNAL_BYTES_DEFAULT: u64 = 256 << 20;

/// Smallest journal, in bytes; a smaller wish is taken as this, or a few long paths would fill it.
pub const JOURNAL_BYTES_MIN: u64 = 1 << 20;

/// Segments that a full journal is made of: what falls off at once is this part of it.
pub const JOURNAL_SEGMENTS: u64 = 16;

/// Most segments of a journal, whatever their size, for each unclean end leaves a short one.
pub const JOURNAL_SEGMENTS_MAX: usize = 1024;

/// Size at which the smallest segment is finished, in bytes.
pub const SEGMENT_BYTES_MIN: u64 = 64 << 10;

/// Size at which the largest segment is finished, in bytes. Each is synchronised when it is.
pub const SEGMENT_BYTES_MAX: u64 = 16 << 20;

/// Largest encoded record, in bytes: two paths and some numbers.
pub const RECORD_BYTES_MAX: usize = 2 * PATH_BYTES_MAX + 64;

/// Most sequences that are left out at a start of a source, one in so many of which is met by
/// accident; a billion starts use them up.
pub const SEQUENCES_SKIPPED_MAX: u64 = 1 << 34;

/// Sequences that are reserved durably at once, so that this costs nothing for each record.
pub const SEQUENCES_RESERVED: u64 = 65_536;

/// Most bytes of the journal's newest segment that are kept in memory for cursors at its head.
pub const JOURNAL_TAIL_BYTES_MAX: usize = 1 << 20;

/// Bytes that a cursor behind the tail reads from a segment at once.
pub const JOURNAL_BUFFER_BYTES: usize = 128 << 10;

/// Distance of two places of a segment that are indexed, in bytes: what a new cursor skips.
pub const JOURNAL_INDEX_BYTES: u64 = 64 << 10;

/// Largest state file, in bytes: a checkpoint with every need that a sink keeps, with room.
pub const STATE_FILE_BYTES_MAX: usize = 512 << 20;

const _: () = assert!(CHUNK_BYTES_MAX + PATH_BYTES_MAX + 4096 <= FRAME_BYTES_MAX);
const _: () =
    assert!(FRAME_BYTES_TARGET + INLINE_BYTES_MAX + 4 * PATH_BYTES_MAX <= FRAME_BYTES_MAX);
const _: () = assert!(NAMES_BYTES_MAX + PATH_BYTES_MAX + 4096 <= FRAME_BYTES_MAX);
const _: () = assert!(FRAME_BYTES_MAX as u64 <= WINDOW_CHUNK_BYTES_MAX);
const _: () = assert!(WINDOW_CHUNK_BYTES_MAX <= WINDOW_BYTES_MIN);
const _: () = assert!(WINDOW_BYTES_MIN <= WINDOW_BYTES_MAX);
const _: () =
    assert!(LISTED_BYTES_MAX + PATH_BYTES_MAX + 24 * LISTED_MAX + 4096 <= FRAME_BYTES_MAX);
const _: () = assert!(ACK_BYTES_MAX < WINDOW_CHUNK_BYTES_MAX);
const _: () = assert!(HEARTBEAT_MS * 2 < SILENCE_MS_MAX);
const _: () = assert!(JOURNAL_SEGMENTS * SEGMENT_BYTES_MIN <= JOURNAL_BYTES_MIN);
const _: () = assert!(4 * RECORD_BYTES_MAX as u64 <= JOURNAL_BYTES_MIN);
const _: () = assert!(RECORD_BYTES_MAX <= JOURNAL_TAIL_BYTES_MAX);
const _: () = assert!(NEEDS_MAX * (PATH_BYTES_MAX + 16) + 4096 <= STATE_FILE_BYTES_MAX);
