//! How much may be on its way to a downstream.

use std::time::{Duration, Instant};

use crate::model::limits::{WINDOW_BYTES_MAX, WINDOW_BYTES_MIN, WINDOW_BYTES_PER_MS};

/// Bytes of items that were sent and not acknowledged as handled, and how many there may be.
///
/// What waits between two processes of one machine falls out of the processor's cache before it
/// is used, and what is on its way over a long line must be more than the downstream needs until
/// the answer is back: so the window follows the shortest round trip that was seen.
#[derive(Debug, Default)]
pub(super) struct Window {
    sent_bytes: u64,
    handled_bytes: u64,
    /// `sent_bytes` when a frame had been sent, and when that was, until it is acknowledged.
    probe: Option<(u64, Instant)>,
    round_trip: Option<Duration>,
}

impl Window {
    /// Notes that a frame of items was sent.
    pub fn send(&mut self, bytes: u64, now: Instant) {
        self.sent_bytes += bytes;
        self.probe.get_or_insert((self.sent_bytes, now));
    }

    /// Notes that all through `handled_bytes` are acknowledged. Returns `false` if they were
    /// never sent.
    pub fn acknowledge(&mut self, handled_bytes: u64, now: Instant) -> bool {
        if handled_bytes > self.sent_bytes {
            return false;
        }
        self.handled_bytes = self.handled_bytes.max(handled_bytes);
        if let Some((_, sent)) = self.probe.take_if(|(bytes, _)| *bytes <= handled_bytes) {
            let took = now.saturating_duration_since(sent);
            self.round_trip = Some(self.round_trip.map_or(took, |known| known.min(took)));
        }
        true
    }

    /// Returns how many bytes were sent in all.
    pub fn sent_bytes(&self) -> u64 {
        self.sent_bytes
    }

    /// Returns how many bytes were acknowledged in all.
    pub fn handled_bytes(&self) -> u64 {
        self.handled_bytes
    }

    /// Returns how many bytes are on their way.
    pub fn in_flight_bytes(&self) -> u64 {
        self.sent_bytes - self.handled_bytes
    }

    /// Returns whether nothing more may be sent.
    pub fn is_full(&self) -> bool {
        let round_trip = self.round_trip.unwrap_or_default().as_micros() as u64;
        let carried = round_trip.saturating_mul(WINDOW_BYTES_PER_MS) / 1000;
        self.in_flight_bytes() >= carried.clamp(WINDOW_BYTES_MIN, WINDOW_BYTES_MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Sends until the window is full, and returns how much that was.
    fn fill(window: &mut Window, now: Instant) -> u64 {
        let before = window.in_flight_bytes();
        while !window.is_full() {
            window.send(64 << 10, now);
        }
        window.in_flight_bytes() - before
    }

    #[test]
    fn it_follows_the_shortest_round_trip() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let mut window = Window::default();
        assert_eq!(fill(&mut window, at(0)), WINDOW_BYTES_MIN);
        assert!(window.acknowledge(WINDOW_BYTES_MIN, at(1000)));
        assert_eq!(fill(&mut window, at(1000)), WINDOW_BYTES_MAX);
        assert!(window.acknowledge(window.sent_bytes(), at(1006)));
        let shorter = 6 * WINDOW_BYTES_PER_MS;
        assert_eq!(fill(&mut window, at(1006)), shorter);
        // A part of a frame says nothing, and a later one that took longer neither.
        assert!(window.acknowledge(window.sent_bytes() - shorter + 1, at(1007)));
        assert!(window.acknowledge(window.sent_bytes(), at(2000)));
        assert_eq!(fill(&mut window, at(2000)), shorter);
        assert!(window.acknowledge(window.sent_bytes(), at(2000)));
        assert_eq!(fill(&mut window, at(2000)), WINDOW_BYTES_MIN);
    }

    #[test]
    fn what_was_never_sent_is_not_acknowledged() {
        let mut window = Window::default();
        window.send(10, Instant::now());
        assert!(!window.acknowledge(11, Instant::now()));
        assert!(window.acknowledge(10, Instant::now()));
        assert!(window.acknowledge(3, Instant::now()), "an old one comes late");
        assert_eq!(window.in_flight_bytes(), 0);
    }
}
