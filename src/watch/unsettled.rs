//! Files that were written to and not closed: sent after a short rest, at a bounded rate.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use super::nodes::{NodeId, Place};

/// A file at rest this long is sent although it is open.
const REST: Duration = Duration::from_millis(50);

/// A file that never rests is sent this often.
const AGE_MAX: Duration = Duration::from_secs(1);

/// Most files waited for; beyond, the oldest knowledge is given up by sending at once.
const FILES_MAX: usize = 65_536;

/// The files that were written to and not closed.
#[derive(Debug, Default)]
pub(super) struct Unsettled {
    files: HashMap<Place, Times>,
    /// No file is due before this.
    earliest: Option<Instant>,
}

#[derive(Debug, Clone, Copy)]
struct Times {
    first: Instant,
    last: Instant,
    /// Whether it was open for so long that it is sent as it is read.
    restless: bool,
}

impl Times {
    fn due(self) -> Instant {
        (self.last + REST).min(self.first + AGE_MAX)
    }
}

impl Unsettled {
    /// Notes a write. Returns `false` if there is no room to wait for the file's rest.
    pub fn touch(&mut self, place: Place, now: Instant) -> bool {
        if self.files.len() >= FILES_MAX && !self.files.contains_key(&place) {
            return false;
        }
        let times =
            self.files.entry(place).or_insert(Times { first: now, last: now, restless: false });
        times.last = now;
        let due = times.due();
        self.earliest = Some(self.earliest.map_or(due, |earliest| earliest.min(due)));
        true
    }

    /// Forgets a file, which was closed or removed.
    pub fn settle(&mut self, place: &Place) {
        if !self.files.is_empty() {
            self.files.remove(place);
        }
    }

    /// Follows a rename.
    pub fn rename(&mut self, from: &Place, to: &Place) {
        self.settle(to);
        if let Some(times) = self.files.remove(from) {
            self.files.insert(to.clone(), times);
        }
    }

    /// Forgets everything in directories that are gone.
    pub fn forget_directories(&mut self, gone: &[NodeId]) {
        if !self.files.is_empty() {
            self.files.retain(|place, _| !gone.contains(&place.directory));
        }
    }

    /// Takes out the files that have rested, or have not for too long.
    pub fn due(&mut self, now: Instant) -> Vec<Place> {
        if self.next_due().is_none_or(|due| due > now) {
            return Vec::new();
        }
        let mut due = Vec::new();
        self.files.retain(|place, times| {
            if times.due() > now {
                return true;
            }
            due.push(place.clone());
            let rested = times.last + REST <= now;
            (times.first, times.restless) = (now, true);
            !rested
        });
        self.earliest = self.files.values().map(|times| times.due()).min();
        due
    }

    /// Returns whether a file is being written at present, and not for so long that it must be
    /// sent all the same. What is read of it now is a part (I2).
    pub fn is_being_written(&self, place: &Place) -> bool {
        self.files.get(place).is_some_and(|times| !times.restless)
    }

    /// Returns a moment before which nothing is due.
    pub fn next_due(&self) -> Option<Instant> {
        if self.files.is_empty() { None } else { self.earliest }
    }
}
