//! Files that were written to and not closed: sent after a short rest, at a bounded rate. So are
//! files that are written and closed again and again, each time of which alone would be complete.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use rustc_hash::FxHashSet;

use super::nodes::{NodeId, Place};
use crate::model::feed::Progress;

/// A file at rest this long is sent although it is open.
const REST: Duration = Duration::from_millis(50);

/// A file that never rests is sent this often.
const AGE_MAX: Duration = Duration::from_secs(1);

/// A file closed more often than this within [`AGE_MAX`] after writing is sent as if it stayed
/// open: a file that is written without a pause must not take all of a link.
const CLOSINGS_MAX: u32 = 32;

/// As [`CLOSINGS_MAX`], for the content that these closings would send, in bytes.
const CLOSINGS_BYTES_MAX: u64 = 16 << 20;

/// Most files whose closings are counted, each for a while.
const CLOSINGS_FILES_MAX: usize = 4096;

/// Most files waited for; beyond, the oldest knowledge is given up by sending at once.
const FILES_MAX: usize = 65_536;

/// The files that were written to and not closed.
///
/// They stay here after they were sent, until they are closed: what was sent may be a part, and
/// must not replace another file by a rename (I2).
#[derive(Debug, Default)]
pub(super) struct Unsettled {
    files: HashMap<Place, Times>,
    /// No file is due before this; `None` if none is waited for.
    earliest: Option<Instant>,
    closings: HashMap<Place, Closings>,
}

/// How often a file was closed after writing of late.
#[derive(Debug, Clone, Copy)]
struct Closings {
    /// What is counted is since then.
    since: Instant,
    count: u32,
    bytes: u64,
    /// Whether there were too many in the time before.
    was_hot: bool,
}

impl Closings {
    fn is_hot(self) -> bool {
        self.count > CLOSINGS_MAX || (self.count > 1 && self.bytes > CLOSINGS_BYTES_MAX)
    }
}

#[derive(Debug, Clone, Copy)]
struct Times {
    /// When the burst of writes began that is waited for, and the last of them; `None` when the
    /// file was sent at rest.
    burst: Option<(Instant, Instant)>,
    /// Whether the burst took so long that the file is sent as it is read.
    restless: bool,
    /// Whether it was closed since it was last written to, and only its rate is bounded.
    closed: bool,
}

impl Times {
    const NONE: Times = Times { burst: None, restless: false, closed: false };

    fn due(self) -> Option<Instant> {
        self.burst.map(|(first, last)| (last + REST).min(first + AGE_MAX))
    }
}

impl Unsettled {
    /// Returns whether no file is known to be open.
    pub fn is_empty(&self) -> bool {
        self.files.is_empty()
    }

    /// Notes a write. Returns `false` if there is no room to wait for the file's rest.
    pub fn touch(&mut self, place: Place, now: Instant) -> bool {
        if !self.has_room_for(&place) {
            return false;
        }
        let times = self.files.entry(place).or_insert(Times::NONE);
        match &mut times.burst {
            Some((_, last)) => *last = now,
            None => *times = Times { burst: Some((now, now)), ..Times::NONE },
        }
        times.closed = false;
        self.earliest = self.earliest.into_iter().chain(times.due()).min();
        true
    }

    /// Notes a file that is sent as it is, and perhaps is still being written.
    pub fn suspect(&mut self, place: Place) {
        if self.has_room_for(&place) {
            self.files.entry(place).or_insert(Times::NONE);
        }
    }

    fn has_room_for(&mut self, place: &Place) -> bool {
        if self.files.len() >= FILES_MAX && !self.files.contains_key(place) {
            // Those at rest are forgotten first; most are logs.
            self.files.retain(|_, times| times.burst.is_some());
        }
        self.files.len() < FILES_MAX || self.files.contains_key(place)
    }

    /// Notes that a file was closed after writing; `size` tells how long it is. Returns whether it
    /// is to be sent at once; else it was closed too often of late, and is due in its time.
    pub fn close(&mut self, place: &Place, now: Instant, size: impl FnOnce() -> u64) -> bool {
        if self.closings.len() >= CLOSINGS_FILES_MAX && !self.closings.contains_key(place) {
            self.closings.retain(|_, closings| now < closings.since + AGE_MAX);
            if self.closings.len() >= CLOSINGS_FILES_MAX {
                self.closings.clear();
            }
        }
        let fresh = Closings { since: now, count: 0, bytes: 0, was_hot: false };
        let closings = self.closings.entry(place.clone()).or_insert(fresh);
        let age = now.saturating_duration_since(closings.since);
        if age >= AGE_MAX {
            *closings = Closings { was_hot: age < 2 * AGE_MAX && closings.is_hot(), ..fresh };
        }
        closings.count += 1;
        if closings.count > 1 && !closings.was_hot && !closings.is_hot() {
            closings.bytes = closings.bytes.saturating_add(size());
        }
        if !closings.was_hot && !closings.is_hot() || !self.touch(place.clone(), now) {
            self.settle(place);
            return true;
        }
        if let Some(times) = self.files.get_mut(place) {
            times.closed = true;
        }
        false
    }

    /// Forgets a file, which was closed or removed. Returns whether its rest was waited for.
    pub fn settle(&mut self, place: &Place) -> bool {
        !self.files.is_empty()
            && self.files.remove(place).is_some_and(|times| times.burst.is_some())
    }

    /// Follows a rename.
    pub fn rename(&mut self, from: &Place, to: &Place) {
        self.settle(to);
        if let Some(times) = self.files.remove(from) {
            self.files.insert(to.clone(), times);
        }
    }

    /// Follows an exchange.
    pub fn exchange(&mut self, a: &Place, b: &Place) {
        let (at_a, at_b) = (self.files.remove(a), self.files.remove(b));
        self.files.extend(at_a.map(|times| (b.clone(), times)));
        self.files.extend(at_b.map(|times| (a.clone(), times)));
    }

    /// Forgets everything in directories that are gone. Returns the files whose rest was waited
    /// for.
    pub fn forget_directories(&mut self, gone: &FxHashSet<NodeId>) -> Vec<Place> {
        self.closings.retain(|place, _| !gone.contains(&place.directory));
        if self.files.is_empty() {
            return Vec::new();
        }
        let gone = self.files.extract_if(|place, _| gone.contains(&place.directory));
        gone.filter(|(_, times)| times.burst.is_some()).map(|(place, _)| place).collect()
    }

    /// Returns the files that have rested, or have not for too long, each once.
    pub fn due(&mut self, now: Instant) -> Vec<Place> {
        if self.earliest.is_none_or(|due| due > now) {
            return Vec::new();
        }
        let mut due = Vec::new();
        for (place, times) in &mut self.files {
            let Some((_, last)) = times.burst.filter(|_| times.due().is_some_and(|at| at <= now))
            else {
                continue;
            };
            due.push(place.clone());
            let rested = last + REST <= now;
            times.burst = (!rested).then_some((now, last));
            times.restless = !rested;
        }
        // What is closed and at rest is whole.
        self.files.retain(|_, times| times.burst.is_some() || !times.closed);
        self.earliest = self.files.values().filter_map(|times| times.due()).min();
        due
    }

    /// Returns how far the writing of a file is.
    pub fn progress(&self, place: &Place) -> Progress {
        match self.files.get(place) {
            None => Progress::Finished,
            Some(Times { burst: None, .. }) => Progress::Rested,
            Some(Times { restless: true, .. }) => Progress::Restless,
            Some(_) => Progress::Writing,
        }
    }

    /// Returns the files, wherever their names are known.
    pub fn places(&self) -> impl Iterator<Item = &Place> {
        self.files.keys()
    }

    /// Returns the files whose rest is waited for, so that their last change is not told.
    pub fn waiting(&self) -> impl Iterator<Item = &Place> {
        let waiting = self.files.iter().filter(|(_, times)| times.burst.is_some());
        waiting.map(|(place, _)| place)
    }

    /// Returns a moment before which nothing is due.
    pub fn next_due(&self) -> Option<Instant> {
        if self.files.is_empty() { None } else { self.earliest }
    }
}
