//! Frames: a fixed header with two checksums, then a payload.
//!
//! ```text
//! offset  bytes  little-endian
//!      0      4  payload length
//!      4      1  kind (1: one message, 2: items)
//!      5      1  flags, 0
//!      6      2  reserved, 0
//!      8      4  CRC-32 of the payload
//!     12      4  CRC-32 of bytes 0 to 11
//! ```
//!
//! A payload is trusted only after both checksums agree, so that no length of a broken frame
//! is ever believed.

use std::ops::Range;
use std::sync::Arc;

use super::message::{Item, Message};
use crate::model::limits::{FRAME_BYTES_MAX, FRAME_BYTES_TARGET};

/// Length of a frame's header, in bytes.
pub const HEADER_BYTES: usize = 16;

/// Least space for bytes that come in: many small frames at once.
const READ_BYTES_MIN: usize = 64 << 10;

/// Memory for the items around the raw bytes of a frame.
const ROOM_BYTES: usize = 256;

/// What a frame's payload holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FrameKind {
    /// One [`Message`].
    Message,
    /// [`Item`]s, each followed by its raw bytes.
    Items,
}

/// A whole frame whose checksums agree.
#[derive(Debug, Clone, Copy)]
pub struct Frame<'a> {
    /// What the payload holds.
    pub kind: FrameKind,
    /// The payload.
    pub payload: &'a [u8],
}

impl<'a> Frame<'a> {
    /// Decodes the payload of a [`FrameKind::Message`].
    pub fn message(&self) -> Result<Message, FrameError> {
        let (message, rest) =
            postcard::take_from_bytes(self.payload).map_err(FrameError::Payload)?;
        if rest.is_empty() { Ok(message) } else { Err(FrameError::TrailingBytes) }
    }

    /// Iterates over the items of a [`FrameKind::Items`] with their raw bytes.
    pub fn items(&self) -> Items<'a> {
        Items { rest: self.payload }
    }
}

/// Items of one frame; after an error it ends.
#[derive(Debug)]
pub struct Items<'a> {
    rest: &'a [u8],
}

impl<'a> Iterator for Items<'a> {
    type Item = Result<(Item, &'a [u8]), FrameError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        let decoded = postcard::take_from_bytes::<Item>(self.rest)
            .map_err(FrameError::Payload)
            .and_then(|(item, rest)| {
                let (raw, rest) =
                    rest.split_at_checked(item.raw_bytes()).ok_or(FrameError::RawTooShort)?;
                Ok((item, raw, rest))
            });
        match decoded {
            Ok((item, raw, rest)) => {
                self.rest = rest;
                Some(Ok((item, raw)))
            }
            Err(error) => {
                self.rest = &[];
                Some(Err(error))
            }
        }
    }
}

/// Why bytes are not a frame. Each ends the connection.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    /// The header is damaged, or the peer speaks something else.
    #[error("the frame's header is damaged (or the peer does not speak this protocol)")]
    HeaderChecksum,
    /// The payload is damaged.
    #[error("the frame's payload is damaged")]
    PayloadChecksum,
    /// The frame is larger than any may be.
    #[error("a frame of {0} bytes is over the limit of {FRAME_BYTES_MAX}")]
    TooLong(usize),
    /// A kind or flag of a newer protocol.
    #[error("unknown frame kind {kind} or flags {flags}")]
    Unknown {
        /// The kind's number.
        kind: u8,
        /// The flags.
        flags: u8,
    },
    /// The payload is not what the kind says.
    #[error("undecodable payload: {0}")]
    Payload(postcard::Error),
    /// Something follows the message.
    #[error("bytes follow the message")]
    TrailingBytes,
    /// Raw bytes are announced that do not come.
    #[error("the item announces more bytes than the frame has")]
    RawTooShort,
}

/// Encodes a message as a frame.
pub fn encode_message(message: &Message) -> Vec<u8> {
    let frame = vec![0; HEADER_BYTES];
    let frame = postcard::to_extend(message, frame).expect("a message in memory can be encoded");
    seal(frame, FrameKind::Message)
}

/// A frame of items under construction.
///
/// Raw bytes are read from files straight into it, so content is copied once on its way from
/// the file to the socket.
#[derive(Debug)]
pub struct ItemsFrame {
    bytes: Vec<u8>,
}

/// A frame as it goes out, be it to one connection or to many.
pub type EncodedFrame = Arc<Vec<u8>>;

impl Default for ItemsFrame {
    fn default() -> Self {
        ItemsFrame { bytes: vec![0; HEADER_BYTES] }
    }
}

impl ItemsFrame {
    /// Returns an empty frame with memory for an item with `raw_bytes` raw bytes, and for the
    /// small items that may follow it.
    pub fn with_room(raw_bytes: usize) -> Self {
        let mut bytes = Vec::with_capacity(HEADER_BYTES + raw_bytes + ROOM_BYTES);
        bytes.resize(HEADER_BYTES, 0);
        ItemsFrame { bytes }
    }

    /// Appends an item; exactly [`Item::raw_bytes`] raw bytes must follow it.
    pub fn push(&mut self, item: &Item) {
        let bytes = std::mem::take(&mut self.bytes);
        self.bytes = postcard::to_extend(item, bytes).expect("an item in memory can be encoded");
    }

    /// The buffer, for appending so many raw bytes. Where those of a second item need more
    /// memory, it is as much as a whole frame takes, for more of their kind will follow.
    pub fn buffer(&mut self, raw_bytes: usize) -> &mut Vec<u8> {
        if self.bytes.capacity() - self.bytes.len() < raw_bytes {
            let is_first = self.bytes.len() < ROOM_BYTES;
            self.bytes.reserve(if is_first {
                raw_bytes
            } else {
                raw_bytes.max(FRAME_BYTES_TARGET)
            });
        }
        &mut self.bytes
    }

    /// Returns the length so far, header included, in bytes.
    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Returns whether nothing was appended.
    pub fn is_empty(&self) -> bool {
        self.bytes.len() == HEADER_BYTES
    }

    /// Takes back everything from `len` on.
    pub fn truncate(&mut self, len: usize) {
        assert!(len >= HEADER_BYTES);
        self.bytes.truncate(len);
    }

    /// Takes everything from `len` on into a frame of its own.
    pub fn split_off(&mut self, len: usize) -> ItemsFrame {
        assert!(len >= HEADER_BYTES);
        let mut frame = ItemsFrame::default();
        frame.bytes.extend_from_slice(&self.bytes[len..]);
        self.bytes.truncate(len);
        frame
    }

    /// Takes out `ranges`, which are rising and do not overlap.
    pub fn remove(&mut self, ranges: &[Range<usize>]) {
        for range in ranges.iter().rev() {
            self.bytes.drain(range.clone());
        }
    }

    /// Computes the checksums and returns the frame's bytes, in memory not much larger: it may
    /// wait for long until a slow peer takes it.
    pub fn finish(mut self) -> Vec<u8> {
        if self.bytes.capacity() > 2 * self.bytes.len() {
            self.bytes.shrink_to_fit();
        }
        seal(self.bytes, FrameKind::Items)
    }
}

/// Fills in the header in front of a payload.
fn seal(mut frame: Vec<u8>, kind: FrameKind) -> Vec<u8> {
    assert!(frame.len() <= FRAME_BYTES_MAX, "a frame of {} bytes", frame.len());
    let (header, payload) = frame.split_at_mut(HEADER_BYTES);
    header[0..4].copy_from_slice(&(payload.len() as u32).to_le_bytes());
    header[4] = match kind {
        FrameKind::Message => 1,
        FrameKind::Items => 2,
    };
    header[5..8].fill(0);
    header[8..12].copy_from_slice(&crc32fast::hash(payload).to_le_bytes());
    let checksum = crc32fast::hash(&header[..12]);
    header[12..16].copy_from_slice(&checksum.to_le_bytes());
    frame
}

/// Cuts a stream of bytes into frames.
///
/// Invariant: `start <= end <= buffer.len()`; bytes before `start` are used up, those from
/// `start` to `end` are received. Call [`space`](Self::space), then
/// [`received`](Self::received), then [`next_frame`](Self::next_frame) until it returns `None`.
#[derive(Debug)]
pub struct FrameDecoder {
    buffer: Vec<u8>,
    start: usize,
    end: usize,
}

impl Default for FrameDecoder {
    fn default() -> Self {
        // Most connections carry small frames only: the buffer grows when a frame needs it.
        FrameDecoder { buffer: vec![0; READ_BYTES_MIN], start: 0, end: 0 }
    }
}

impl FrameDecoder {
    /// Returns where to put bytes that come in; never empty.
    ///
    /// It ends behind the next frame's header if a great frame comes in: that one is used while
    /// the processor's cache has it, and nothing but a header has to move to the front for the
    /// one behind it.
    pub fn space(&mut self) -> &mut [u8] {
        let received = self.end - self.start;
        let mut wanted =
            self.frame_bytes().map_or(0, |bytes| bytes + HEADER_BYTES).max(READ_BYTES_MIN);
        if wanted <= received {
            wanted = received + READ_BYTES_MIN; // Frames that nobody asked for yet.
        }
        if self.start + wanted > self.buffer.len() {
            self.buffer.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, received);
        }
        if self.buffer.len() < wanted {
            self.buffer.resize(wanted, 0);
        }
        &mut self.buffer[self.end..self.start + wanted]
    }

    /// Says that `count` bytes were put into the space.
    pub fn received(&mut self, count: usize) {
        self.end += count;
        assert!(self.end <= self.buffer.len());
    }

    /// Takes in bytes that are in memory already.
    pub fn receive(&mut self, bytes: &[u8]) {
        let mut rest = bytes;
        while !rest.is_empty() {
            let space = self.space();
            let count = space.len().min(rest.len());
            space[..count].copy_from_slice(&rest[..count]);
            self.received(count);
            rest = &rest[count..];
        }
    }

    /// Returns the next whole frame and its length with header, `None` until more bytes are in.
    pub fn next_frame(&mut self) -> Result<Option<(Frame<'_>, usize)>, FrameError> {
        let received = &self.buffer[self.start..self.end];
        let Some(header) = received.first_chunk::<HEADER_BYTES>() else { return Ok(None) };
        let word = |at: usize| {
            u32::from_le_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]])
        };
        if crc32fast::hash(&header[..12]) != word(12) {
            return Err(FrameError::HeaderChecksum);
        }
        let length = HEADER_BYTES + word(0) as usize;
        if length > FRAME_BYTES_MAX {
            return Err(FrameError::TooLong(length));
        }
        let kind = match (header[4], header[5]) {
            (1, 0) => FrameKind::Message,
            (2, 0) => FrameKind::Items,
            (kind, flags) => return Err(FrameError::Unknown { kind, flags }),
        };
        let Some(payload) = received.get(HEADER_BYTES..length) else { return Ok(None) };
        if crc32fast::hash(payload) != word(8) {
            return Err(FrameError::PayloadChecksum);
        }
        let payload = self.start + HEADER_BYTES..self.start + length;
        self.start += length;
        Ok(Some((Frame { kind, payload: &self.buffer[payload] }, length)))
    }

    /// Returns the length of the frame that begins at `start`, if its header is in and sound.
    fn frame_bytes(&self) -> Option<usize> {
        let header = self.buffer[self.start..self.end].first_chunk::<HEADER_BYTES>()?;
        let length = u32::from_le_bytes([header[0], header[1], header[2], header[3]]) as usize;
        (length <= FRAME_BYTES_MAX - HEADER_BYTES).then_some(HEADER_BYTES + length)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Sequence, Timestamp, TreePath};

    fn heartbeat() -> Message {
        Message::Heartbeat { head: Sequence(7), clock: Timestamp::default() }
    }

    #[test]
    fn frames_survive_any_cutting() {
        let mut frame = ItemsFrame::default();
        let path = TreePath::new("a/b").unwrap();
        frame.push(&Item::Absent { path: path.clone(), parent_mtime: None });
        let stage = Item::StageData { stage: super::super::StageId(1), offset: 0, length: 300_000 };
        frame.push(&stage);
        frame.buffer(300_000).extend(std::iter::repeat_n(7, 300_000));
        let mut stream = encode_message(&heartbeat());
        stream.extend(frame.finish());
        stream.extend(encode_message(&heartbeat()));
        for step in [1, 3, 16, 17, 1000, 65_536, stream.len()] {
            let mut decoder = FrameDecoder::default();
            let mut seen = Vec::new();
            for piece in stream.chunks(step) {
                decoder.receive(piece);
                while let Some((frame, _)) = decoder.next_frame().unwrap() {
                    match frame.kind {
                        FrameKind::Message => seen.push(format!("{:?}", frame.message().unwrap())),
                        FrameKind::Items => {
                            for item in frame.items() {
                                let (item, raw) = item.unwrap();
                                assert!(raw.iter().all(|byte| *byte == 7));
                                seen.push(format!("{item:?} {}", raw.len()));
                            }
                        }
                    }
                }
            }
            assert_eq!(seen.len(), 4, "step {step}: {seen:?}");
        }
    }

    #[test]
    fn every_flipped_bit_is_noticed() {
        let bytes = encode_message(&heartbeat());
        for bit in 0..bytes.len() * 8 {
            let mut damaged = bytes.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            let mut decoder = FrameDecoder::default();
            decoder.receive(&damaged);
            assert!(decoder.next_frame().is_err(), "bit {bit}");
        }
    }

    #[test]
    fn a_path_out_of_the_tree_does_not_decode() {
        let good = TreePath::new("aa/b").unwrap();
        let bytes =
            encode_message(&Message::Need { id: 1, path: good, content: true, moved: Sequence(0) });
        let mut payload = bytes[HEADER_BYTES..].to_vec();
        let at = payload.windows(4).position(|window| window == b"aa/b").unwrap();
        payload[at..at + 2].copy_from_slice(b"..");
        let frame = Frame { kind: FrameKind::Message, payload: &payload };
        assert!(matches!(frame.message(), Err(FrameError::Payload(_))));
    }

    #[test]
    fn what_waits_to_be_sent_takes_little_more_memory_than_it_says() {
        for sizes in [&[150][..], &[150, 150], &[1000; 20], &[200_000, 60_000], &[5_000; 52]] {
            let mut frame = ItemsFrame::default();
            for size in sizes {
                let length = *size as u32;
                frame.push(&Item::StageData { stage: super::super::StageId(1), offset: 0, length });
                let end = frame.len() + size;
                frame.buffer(*size).resize(end, 7);
            }
            let bytes = frame.finish();
            assert!(bytes.capacity() <= 2 * bytes.len(), "{sizes:?}: {}", bytes.capacity());
        }
    }

    #[test]
    fn ranges_can_be_taken_out() {
        let mut frame = ItemsFrame::default();
        frame.buffer(6).extend(b"aabbcc");
        frame.remove(&[HEADER_BYTES..HEADER_BYTES + 2, HEADER_BYTES + 4..HEADER_BYTES + 6]);
        assert_eq!(&frame.finish()[HEADER_BYTES..], b"bb");
    }
}
