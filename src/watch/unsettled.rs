//! Files that were written to and not closed: sent after a short rest, at a bounded rate.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use rustc_hash::FxHashSet;

use super::nodes::{NodeId, Place};
use crate::model::feed::Progress;

/// A file at rest this long is sent although it is open.
const REST: Duration = Duration::from_millis(50);

/// A file that never rests is sent this often.
const AGE_MAX: Duration = Duration::from_secs(1);

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
}

#[derive(Debug, Clone, Copy)]
struct Times {
    /// When the burst of writes began that is waited for, and the last of them; `None` when the
    /// file was sent at rest.
    burst: Option<(Instant, Instant)>,
    /// Whether the burst took so long that the file is sent as it is read.
    restless: bool,
}

impl Times {
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
        let times = self.files.entry(place).or_insert(Times { burst: None, restless: false });
        match &mut times.burst {
            Some((_, last)) => *last = now,
            None => *times = Times { burst: Some((now, now)), restless: false },
        }
        self.earliest = self.earliest.into_iter().chain(times.due()).min();
        true
    }

    /// Notes a file that is sent as it is, and perhaps is still being written.
    pub fn suspect(&mut self, place: Place) {
        if self.has_room_for(&place) {
            self.files.entry(place).or_insert(Times { burst: None, restless: false });
        }
    }

    fn has_room_for(&mut self, place: &Place) -> bool {
        if self.files.len() >= FILES_MAX && !self.files.contains_key(place) {
            // Those at rest are forgotten first; most are logs.
            self.files.retain(|_, times| times.burst.is_some());
        }
        self.files.len() < FILES_MAX || self.files.contains_key(place)
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
