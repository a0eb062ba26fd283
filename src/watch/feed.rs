//! The watch as a feed: what a source asks it.

use std::os::fd::{AsFd, BorrowedFd};
use std::time::Instant;

use super::nodes::Place;
use super::{PAIR_WAIT, Watch, scan};
use crate::model::feed::{Confirmation, Feed, FeedEvent, Progress};
use crate::model::{Identity, Position, Sequence, Timestamp, TreePath, What};

impl Feed for Watch {
    fn poll_event(&mut self) -> Option<FeedEvent> {
        if self.records.is_empty() {
            self.work();
        }
        self.records.pop_front().map(FeedEvent::Record)
    }

    fn committed(&mut self, position: Position) {
        self.note_committed(position);
    }

    fn keep(&mut self, floor: Sequence, untold: &mut dyn FnMut() -> Vec<TreePath>) -> bool {
        self.keep_on(floor, untold)
    }

    fn end(&mut self) {
        self.end_catalog();
    }

    fn is_ending(&self) -> bool {
        self.ends_catalog()
    }

    fn start(&mut self, next: Sequence) {
        assert!(self.records.is_empty());
        self.next = next;
    }

    fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        Some(self.inotify.as_fd())
    }

    fn is_settled(&self) -> bool {
        self.journals
            && !self.halves.iter().any(|half| half.is_directory || half.drain == self.drains)
            && self.looks.is_empty()
            && !self.searches_links()
            && self.events.is_empty()
            && self.created.is_empty()
            && !self.events_lost
            && self.recovery.is_none()
            && self.restart.is_none()
    }

    fn poll_timeout(&self) -> Option<Instant> {
        let mut next = self.rescan_at;
        if let Some(due) = self.unsettled.next_due() {
            next = next.min(due);
        }
        if self.recovery.is_some() || self.events_lost {
            next = self.started; // There is work now.
        } else if let Some(half) = self.halves.front() {
            next = next.min(half.since + PAIR_WAIT);
        } else if !self.looks.is_empty()
            || !self.sweeps.is_empty()
            || !self.events.is_empty()
            || self.searches_links()
        {
            next = self.started; // There is work now.
        }
        if self.restart.is_some() && self.halves.is_empty() {
            next = self.started;
        }
        if let Some(due) = self.catalog_due() {
            next = next.min(due);
        }
        if !self.unwatched.is_empty() {
            next = next.min(self.degraded_at);
        }
        if self.misses() {
            next = next.min(self.missed_at);
        }
        if self.holds() {
            next = next.min(self.held_at);
        }
        Some(next)
    }

    fn clock(&self) -> Timestamp {
        self.clock
    }

    fn links(
        &mut self,
        identity: Identity,
        count: u32,
        path: &TreePath,
        most: usize,
    ) -> Vec<TreePath> {
        let Some((parent, name)) = path.split_bytes() else { return Vec::new() };
        let Some(directory) = self.nodes.at(parent) else { return Vec::new() };
        let place = Place { directory, name: name.to_vec() };
        if self.links.note(&place, identity, count) {
            self.find_links(&place, identity);
        }
        let (mut paths, mut gone) = (Vec::new(), Vec::new());
        for other in self.links.places(identity).filter(|other| **other != place) {
            if paths.len() == most {
                break;
            }
            // A name whose removal was lost in an overflow would come to life downstream.
            if self.identity_at(other) == Some(identity) {
                paths.extend(self.path_of(other));
            } else {
                gone.push(other.clone());
            }
        }
        gone.iter().for_each(|other| self.links.remove(other));
        paths
    }

    fn confirm(&mut self, path: &[u8], identity: Identity) -> Confirmation {
        let node = self.nodes.at(path);
        let unknown = if node.is_none() { self.nodes.first_unknown(path) } else { None };
        // What is mounted over a directory may have names in it that were never known.
        let nearest = node.or(unknown.as_ref().map(|place| place.directory));
        if let Some(nearest) = nearest
            && let Some((_, held)) =
                self.held.iter_mut().find(|(id, _)| self.nodes.is_above(**id, nearest))
        {
            held.was_read = true;
            return Confirmation::Held;
        }
        if unknown.as_ref().is_some_and(|place| self.aliases.contains_key(place)) {
            return Confirmation::Held;
        }
        let Some(node) = node else {
            // Should nothing that is queued explain it, a look does.
            if let Some(place) = unknown
                && self.missed.insert(scan::Look::At(place.clone()))
            {
                self.looks.push(scan::Look::At(place));
            }
            return Confirmation::Unknown;
        };
        if self.nodes.get(node).is_some_and(|node| node.identity == identity) {
            return Confirmation::Known;
        }
        self.look_again(node);
        Confirmation::Unknown
    }

    fn progress(&self, path: &TreePath) -> Progress {
        if self.unsettled.is_empty() {
            return Progress::Finished;
        }
        let Some((parent, name)) = path.split_bytes() else { return Progress::Finished };
        let Some(directory) = self.nodes.at(parent) else { return Progress::Finished };
        let place = Place { directory, name: name.to_vec() };
        // It may be written through another of its names.
        let others = self.links.group_of(&place);
        let progress = others.map(|other| self.unsettled.progress(other)).max();
        progress.unwrap_or(Progress::Finished).max(self.unsettled.progress(&place))
    }

    fn unfinished(&self) -> Vec<TreePath> {
        self.unsettled.places().filter_map(|place| self.path_of(place)).collect()
    }

    fn mark(&mut self, path: &TreePath) {
        self.dirty(path.clone(), What::CONTENT);
    }

    fn tell_again(&mut self, path: &TreePath, what: What) {
        self.dirty(path.clone(), what);
    }

    fn hold(&mut self) -> Option<String> {
        let reason = match self.root.is_in_place() {
            Ok(true) => {
                if std::mem::take(&mut self.root_lost) {
                    // It may have been changed where nothing is reported, as on another host.
                    self.events_lost = true;
                    tracing::info!(
                        "{}: the tree is back in its place; looking for what changed meanwhile",
                        self.root.path().display()
                    );
                }
                return None;
            }
            Ok(false) => "is not the directory that was watched (it was moved, unmounted or \
                          replaced); put it back, or restart with --accept-root to mirror what is \
                          there now"
                .to_string(),
            Err(error) => format!("cannot be looked at: {error}"),
        };
        self.root_lost = true;
        Some(format!("{}: {reason}", self.root.path().display()))
    }
}
