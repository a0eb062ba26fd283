//! Frames that wait for their socket to take them.

use std::collections::VecDeque;
use std::io::{self, IoSlice, Write};

use super::limits::SLICES_MAX;
use crate::wire::EncodedFrame;

/// Frames in the order in which they leave.
///
/// Invariant: `written` is below the length of the first frame, and 0 when there is none;
/// `bytes` is what is left to write of all frames together.
#[derive(Debug, Default)]
pub(super) struct Outbox {
    frames: VecDeque<EncodedFrame>,
    written: usize,
    bytes: usize,
}

impl Outbox {
    /// Appends a frame.
    pub(super) fn push(&mut self, frame: EncodedFrame) {
        assert!(!frame.is_empty());
        self.bytes += frame.len();
        self.frames.push_back(frame);
    }

    /// Returns how many bytes are left to write.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Forgets all frames of which nothing was written yet, so that what is pushed next
    /// follows soon and still begins where a frame may begin.
    pub(super) fn forget_unbegun(&mut self) {
        self.frames.truncate(usize::from(self.written > 0));
        self.bytes = self.frames.front().map_or(0, |frame| frame.len() - self.written);
    }

    /// Writes until all is written and flushed, which returns `true`, or `writer` would block.
    pub(super) fn write_to(&mut self, writer: &mut impl Write) -> io::Result<bool> {
        while self.bytes > 0 {
            let mut slices = [IoSlice::new(&[]); SLICES_MAX];
            let mut count = 0;
            let mut skip = self.written;
            for (slice, frame) in slices.iter_mut().zip(&self.frames) {
                *slice = IoSlice::new(&frame[skip..]);
                skip = 0;
                count += 1;
            }
            match writer.write_vectored(&slices[..count]) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(written) => self.advance(written),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        match writer.flush() {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(false),
            Err(error) => Err(error),
        }
    }

    fn advance(&mut self, mut count: usize) {
        assert!(count <= self.bytes);
        self.bytes -= count;
        while let Some(front) = self.frames.front() {
            let rest = front.len() - self.written;
            if count < rest {
                self.written += count;
                return;
            }
            count -= rest;
            self.written = 0;
            self.frames.pop_front();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Takes `step` bytes at a time and would block after each `burst` of them.
    struct Trickle {
        taken: Vec<u8>,
        step: usize,
        burst: usize,
        left: usize,
    }

    impl Write for Trickle {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            if self.left == 0 {
                self.left = self.burst;
                return Err(io::ErrorKind::WouldBlock.into());
            }
            let count = bytes.len().min(self.step).min(self.left);
            self.taken.extend_from_slice(&bytes[..count]);
            self.left -= count;
            Ok(count)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn bytes_leave_in_order_however_they_are_taken() {
        for (step, burst) in [(1, 1), (2, 3), (5, 7), (100, 1000)] {
            let mut outbox = Outbox::default();
            let mut writer = Trickle { taken: Vec::new(), step, burst, left: burst };
            let mut expected = Vec::new();
            for length in 1..40u8 {
                let frame = vec![length; usize::from(length)];
                expected.extend_from_slice(&frame);
                outbox.push(frame.into());
                outbox.write_to(&mut writer).unwrap();
            }
            while !outbox.write_to(&mut writer).unwrap() {}
            assert_eq!(outbox.bytes(), 0);
            assert_eq!(writer.taken, expected, "step {step}, burst {burst}");
        }
    }

    #[test]
    fn a_frame_that_has_begun_is_finished_before_the_last_one() {
        let mut outbox = Outbox::default();
        for byte in 1..4 {
            outbox.push(vec![byte; 4].into());
        }
        let mut writer = Trickle { taken: Vec::new(), step: 6, burst: 2, left: 2 };
        assert!(!outbox.write_to(&mut writer).unwrap());
        outbox.forget_unbegun();
        assert_eq!(outbox.bytes(), 2);
        outbox.push(vec![9; 2].into());
        while !outbox.write_to(&mut writer).unwrap() {}
        assert_eq!(writer.taken, [1, 1, 1, 1, 9, 9]);
        outbox.push(vec![7; 2].into());
        outbox.forget_unbegun();
        assert_eq!(outbox.bytes(), 0);
    }
}
