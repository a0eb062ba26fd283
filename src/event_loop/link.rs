//! One connection of a role: its socket, what came in, what waits to go out.

use std::io::{self, Read};
use std::time::{Duration, Instant};

use super::limits::{FAREWELL_BYTES_MAX, FAREWELL_TIME_MAX, OUTBOX_BYTES_FLUSH, OUTBOX_BYTES_MAX};
use super::outbox::Outbox;
use super::stream::Stream;
use crate::model::limits::HANDSHAKE_MS_MAX;
use crate::role::Peer;
use crate::transport::PublicKey;
use crate::wire::{EncodedFrame, FrameDecoder, Message, Refusal, encode_message};

/// A connection of a role, which knows it as soon as both ends know each other.
///
/// Readiness is edge-triggered: `readable` and `writable` hold from the event that says so
/// until the socket would block, and only then will there be another event.
#[derive(Debug)]
pub(super) struct Link {
    stream: Stream,
    /// Which end of it we are: what the peer is to the role.
    pub(super) peer: Peer,
    /// Where the peer is.
    pub(super) name: String,
    /// When it is given up, while the ends do not know each other.
    pub(super) handshake_until: Option<Instant>,
    /// The key that the peer has shown.
    pub(super) key: Option<PublicKey>,
    pub(super) decoder: FrameDecoder,
    outbox: Outbox,
    pub(super) readable: bool,
    pub(super) writable: bool,
    /// Whether a whole frame came from the peer.
    pub(super) has_spoken: bool,
    /// Why nothing can be written any more. What the peer sent before is still read, for its
    /// last frame says why.
    pub(super) broken: Option<String>,
}

impl Link {
    /// Takes a connected stream, of which nothing was read or written yet.
    pub(super) fn new(stream: Stream, peer: Peer, name: &str, now: Instant) -> Link {
        let handshake_until =
            stream.needs_handshake().then(|| now + Duration::from_millis(HANDSHAKE_MS_MAX));
        Link {
            stream,
            peer,
            name: name.to_string(),
            handshake_until,
            key: None,
            decoder: FrameDecoder::default(),
            outbox: Outbox::default(),
            readable: true,
            writable: true,
            has_spoken: false,
            broken: None,
        }
    }

    /// Returns whether the role knows of it.
    pub(super) fn is_open(&self) -> bool {
        self.handshake_until.is_none()
    }

    /// Goes on until both ends know each other. Returns whether they do.
    pub(super) fn shake_hands(&mut self) -> io::Result<bool> {
        let key = self.stream.handshake()?;
        if let Some(key) = key {
            self.key = key;
            self.handshake_until = None;
        } else {
            // The next event says when to go on.
            (self.readable, self.writable) = (false, false);
        }
        Ok(key.is_some())
    }

    /// Returns whether the role may be asked for another frame.
    pub(super) fn has_room(&self) -> bool {
        self.outbox.bytes() < OUTBOX_BYTES_MAX && self.broken.is_none() && self.is_open()
    }

    /// Returns how much waits for the socket.
    #[cfg(test)]
    pub(super) fn outbox_bytes(&self) -> usize {
        self.outbox.bytes()
    }

    /// Appends a frame, and writes if there is much already.
    pub(super) fn push(&mut self, frame: EncodedFrame) {
        self.outbox.push(frame);
        if self.outbox.bytes() >= OUTBOX_BYTES_FLUSH {
            self.flush();
        }
    }

    /// Writes what the socket takes.
    pub(super) fn flush(&mut self) {
        if !self.writable || self.broken.is_some() || !self.is_open() {
            return;
        }
        match self.outbox.write_to(&mut self.stream) {
            Ok(all) => self.writable = all,
            Err(error) => {
                self.broken = Some(format!("the connection is lost: {error}"));
                self.readable = true;
            }
        }
    }

    /// Reads once into the decoder; `None` if there is nothing to read at the moment.
    pub(super) fn read(&mut self) -> io::Result<Option<usize>> {
        loop {
            match self.stream.read(self.decoder.space()) {
                Ok(count) => {
                    self.decoder.received(count);
                    return Ok(Some(count));
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.readable = false;
                    return Ok(None);
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Gives the connection up after a last message.
    pub(super) fn into_farewell(mut self, refusal: &Refusal, now: Instant) -> Farewell {
        self.outbox.forget_unbegun();
        self.outbox.push(encode_message(&Message::Bye(refusal.clone())).into());
        Farewell {
            stream: self.stream,
            outbox: self.outbox,
            is_shut: false,
            discarded: 0,
            deadline: now + FAREWELL_TIME_MAX,
        }
    }
}

/// A connection that no role knows any more, whose last message is on its way.
///
/// It is not closed at once: a socket closed with unread bytes in it is reset, and a reset may
/// overtake the message that says why.
#[derive(Debug)]
pub(super) struct Farewell {
    stream: Stream,
    outbox: Outbox,
    is_shut: bool,
    discarded: usize,
    pub(super) deadline: Instant,
}

impl Farewell {
    /// Does what can be done now; returns whether the connection can be dropped.
    pub(super) fn advance(&mut self, now: Instant) -> bool {
        if now >= self.deadline {
            return true;
        }
        if !self.is_shut {
            match self.outbox.write_to(&mut self.stream) {
                Ok(true) => {
                    self.is_shut = true;
                    if self.stream.shut_down_write().is_err() {
                        return true;
                    }
                }
                Ok(false) => {}
                Err(_) => return true,
            }
        }
        let mut buffer = [0; 16 << 10];
        loop {
            match self.stream.read(&mut buffer) {
                Ok(0) => return true,
                Ok(count) => self.discarded += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return error.kind() != io::ErrorKind::WouldBlock,
            }
            if self.discarded > FAREWELL_BYTES_MAX {
                return true;
            }
        }
    }
}
