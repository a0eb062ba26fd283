//! What each event means.

use std::time::Instant;

use inotify::EventMask;
use rustix::fs::Statx;

use super::nodes::{NodeId, Place, ROOT};
use super::scan::Look;
use super::{Event, PAIR_WAIT, Watch};
use crate::model::path::{CONTROL_NAME, STAGE_PREFIX};
use crate::model::{Change, Identity, What};
use crate::tree::reader::is_absent;
use crate::tree::root::{identity_of, stat_at};

/// The first half of a rename whose second half has not come yet.
#[derive(Debug)]
pub(super) struct Half {
    pub cookie: u32,
    pub from: Place,
    /// The directory that moves, detached, if it is one that is known.
    pub node: Option<NodeId>,
    pub is_directory: bool,
    pub since: Instant,
    /// The drain that brought it.
    pub drain: u64,
}

impl Watch {
    /// Handles all events that were read, and first halves whose time is over.
    pub(super) fn handle_events(&mut self, now: Instant) {
        while let Some(event) = self.events.pop_front() {
            self.handle_event(event, now);
        }
        while self.halves.front().is_some_and(|half| now >= half.since + PAIR_WAIT) {
            if let Some(half) = self.halves.pop_front() {
                self.moved_out(half);
            }
        }
    }

    fn handle_event(&mut self, event: Event, now: Instant) {
        let mask = event.mask;
        if mask.contains(EventMask::IGNORED) {
            // The event of the parent says what became of the directory itself.
            self.nodes.forget_watch(event.watch);
            return;
        }
        // Events of a descriptor that was removed a moment ago still come.
        let Some(directory) = self.nodes.by_watch(event.watch) else { return };
        self.touch(directory);
        if event.name.is_empty() {
            return self.handle_self_event(directory, mask);
        }
        let place = Place { directory, name: event.name.into_vec() };
        let is_directory = mask.contains(EventMask::ISDIR);
        if is_reserved(&place) || self.is_too_long_name(&place.name) {
            // What is never mirrored is outside the tree, also when something is moved there.
            let half = self.halves.iter().position(|half| half.cookie == event.cookie);
            if mask.contains(EventMask::MOVED_TO)
                && let Some(half) = half.and_then(|index| self.halves.remove(index))
            {
                self.moved_out(half);
            }
            return;
        }
        if mask.contains(EventMask::MOVED_FROM) {
            let node = self.nodes.detach(directory, &place.name);
            let (cookie, drain) = (event.cookie, self.drains);
            self.halves.push_back(Half {
                cookie,
                from: place,
                node,
                is_directory,
                since: now,
                drain,
            });
        } else if mask.contains(EventMask::MOVED_TO) {
            let half = self.halves.iter().position(|half| half.cookie == event.cookie);
            match half.and_then(|index| self.halves.remove(index)) {
                Some(half) => self.moved(half, place, is_directory),
                None => self.appeared(place, is_directory, true),
            }
        } else if mask.contains(EventMask::CREATE) {
            self.appeared(place, is_directory, false);
        } else if mask.contains(EventMask::DELETE) {
            self.name_goes(&place);
            if let Some(node) = self.nodes.child(directory, &place.name) {
                self.drop_node(node);
            }
            self.dirty_place(&place, What::CONTENT);
        } else if mask.contains(EventMask::CLOSE_WRITE) {
            self.created.remove(&place);
            let mut unsettled = std::mem::take(&mut self.unsettled);
            let size = || self.stat_of(&place).map_or(0, |stat| stat.stx_size);
            let at_once = unsettled.close(&place, now, size);
            self.unsettled = unsettled;
            if at_once {
                self.dirty_written(&place, What::CONTENT);
            }
        } else if mask.contains(EventMask::MODIFY) {
            if !self.unsettled.touch(place.clone(), now) {
                self.dirty_written(&place, What::CONTENT);
            }
        } else if mask.contains(EventMask::ATTRIB) {
            self.dirty_written(&place, What::ATTRIBUTES);
            if is_directory && self.nodes.child(directory, &place.name).is_none() {
                self.looks.push(Look::At(place)); // It may be readable now.
            }
        }
    }

    fn handle_self_event(&mut self, directory: NodeId, mask: EventMask) {
        if mask.contains(EventMask::ATTRIB)
            && let Some(path) = self.nodes.path(directory)
        {
            self.dirty(path, What::ATTRIBUTES);
            // It may be readable now, and what is below it.
            let below = self.unread.iter().filter(|(id, _)| self.nodes.is_above(directory, **id));
            self.sweeps.extend(below.map(|(id, since)| (*id, *since)));
        }
        // Whether the root is in its place is asked before each use; below it, a file system
        // that goes leaves another directory at the name.
        if mask.contains(EventMask::UNMOUNT) {
            self.look_again(directory);
        }
    }

    /// What was at `place` is there no more. If it was written to and has other names, the rest
    /// of that is waited for no longer.
    fn name_goes(&mut self, place: &Place) {
        if self.unsettled.settle(place) {
            self.others_changed(place);
        }
        self.links.remove(place);
    }

    /// Something came to be at `place`, complete at once if it was moved there.
    fn appeared(&mut self, place: Place, is_directory: bool, complete: bool) {
        self.name_goes(&place);
        if is_directory {
            self.dirty_place(&place, What::CONTENT);
            self.looks.push(Look::At(place));
        } else if complete {
            self.dirty_place(&place, What::CONTENT);
        } else {
            // It may be open, and then is complete when it is closed; or a link, or special.
            self.created.insert(place);
        }
    }

    /// What was at `from` was moved out of the tree: its watches would go on reporting.
    fn moved_out(&mut self, half: Half) {
        if let Some(node) = half.node {
            self.drop_node(node);
        }
        self.name_goes(&half.from);
        self.dirty_place(&half.from, What::CONTENT);
    }

    fn moved(&mut self, half: Half, to: Place, is_directory: bool) {
        let Half { from, node, .. } = half;
        let (from_path, to_path) = (self.path_of(&from), self.path_of(&to));
        let (Some(from_path), Some(to_path)) = (from_path, to_path) else {
            // One end is in a directory that is gone from the tree meanwhile.
            if let Some(node) = node {
                self.drop_node(node);
            }
            for place in [from, to] {
                self.appeared(place, is_directory, true);
            }
            return;
        };
        if self.is_exchange(&from, &to, node) {
            self.events.drain(..2);
            let other = self.nodes.detach(to.directory, &to.name);
            for (node, place) in [(node, &to), (other, &from)] {
                if let Some(node) = node {
                    self.touch(node);
                    self.attach_or_drop(node, place);
                }
            }
            self.links.exchange(&from, &to);
            self.unsettled.exchange(&from, &to);
            self.journal_move(Change::Exchange { a: from_path, b: to_path });
            for place in [from, to] {
                self.dirty_place(&place, What::CONTENT);
                self.looks.push(Look::At(place));
            }
            return;
        }
        if let Some(displaced) = self.nodes.child(to.directory, &to.name) {
            self.drop_node(displaced);
        }
        if let Some(node) = node {
            self.touch(node);
            self.attach_or_drop(node, &to);
        }
        self.name_goes(&to);
        self.links.rename(&from, &to);
        self.unsettled.rename(&from, &to);
        if self.created.remove(&from) {
            self.created.insert(to.clone());
        }
        self.journal_move(Change::Rename { from: from_path, to: to_path });
        self.dirty_place(&from, What::CONTENT);
        // A change that was still to be found in the directory that it left would not be.
        let is_known = self.sweeps.is_empty()
            && self.restart.is_none()
            && !self.uncompared.contains(&from.directory)
            && !self.unread.contains_key(&from.directory);
        self.dirty_place(&to, if is_known { What::ATTRIBUTES } else { What::COMPARE });
        if is_directory {
            // Two halves that crossed with others can mislead; looking cannot.
            self.looks.push(Look::At(from));
            self.looks.push(Look::At(to));
        }
    }

    fn attach_or_drop(&mut self, node: NodeId, place: &Place) {
        if self.nodes.is_above(node, place.directory) || node == ROOT {
            self.drop_node(node); // Misled: the look that follows finds what is true.
        } else {
            self.nodes.attach(node, place.directory, &place.name);
        }
    }

    /// Returns whether the pair `from` → `to` is the first of two opposite ones, as
    /// RENAME_EXCHANGE makes them. For a directory, whose inode is known, a move there and back
    /// is told apart; for files it makes no difference, since both ends become dirty.
    fn is_exchange(&self, from: &Place, to: &Place, node: Option<NodeId>) -> bool {
        let (Some(back_from), Some(back_to)) = (self.events.front(), self.events.get(1)) else {
            return false;
        };
        let is_at = |event: &Event, mask: EventMask, place: &Place| {
            event.mask.contains(mask)
                && *event.name == *place.name
                && self.nodes.by_watch(event.watch) == Some(place.directory)
        };
        if back_from.cookie != back_to.cookie
            || !is_at(back_from, EventMask::MOVED_FROM, to)
            || !is_at(back_to, EventMask::MOVED_TO, from)
        {
            return false;
        }
        let known = node.and_then(|node| self.nodes.get(node)).map(|node| node.identity);
        match known {
            Some(known) => self.identity_at(from) != Some(known),
            // A move there and back over another file leaves but one of the two.
            None => self.identity_at(from).is_some() && self.identity_at(to).is_some(),
        }
    }

    /// Returns the inode at a place now.
    pub(super) fn identity_at(&self, place: &Place) -> Option<Identity> {
        self.stat_of(place).map(|stat| identity_of(&stat))
    }

    pub(super) fn stat_of(&self, place: &Place) -> Option<Statx> {
        let path = self.nodes.path(place.directory)?;
        let directory = self.root.open_directory(&path).ok()?;
        stat_at(&directory, &place.name).ok()
    }

    /// Decides what the entries are that appeared without an event that says they are complete.
    pub(super) fn handle_created(&mut self) {
        for place in std::mem::take(&mut self.created) {
            let Some(path) = self.path_of(&place) else { continue };
            let Some(parent) = self.nodes.path(place.directory) else { continue };
            let stat = self
                .root
                .open_directory(&parent)
                .and_then(|directory| Ok(stat_at(&directory, &place.name)?));
            let stat = match stat {
                Ok(stat) => stat,
                Err(error) => {
                    if !is_absent(&error) {
                        tracing::debug!("{path}: {error}");
                    }
                    self.dirty_place(&place, What::CONTENT);
                    continue;
                }
            };
            let is_regular = rustix::fs::FileType::from_raw_mode(stat.stx_mode.into())
                == rustix::fs::FileType::RegularFile;
            if is_regular && stat.stx_nlink > 1 {
                let identity = identity_of(&stat);
                if self.links.note(&place, identity, stat.stx_nlink) {
                    self.find_links(&place, identity);
                }
                self.dirty(path, What::NAME);
            } else if is_regular && stat.stx_size == 0 {
                // Just created and about to be written, it seems.
                if !self.unsettled.touch(place.clone(), Instant::now()) {
                    self.dirty_place(&place, What::CONTENT);
                }
            } else if is_regular {
                // Linked from a file without a name, and complete; or in its first write, of
                // which no event has come.
                self.unsettled.suspect(place.clone());
                self.dirty_place(&place, What::CONTENT);
            } else {
                self.dirty_place(&place, What::CONTENT);
            }
        }
    }
}

/// Returns whether a name is never mirrored. Nothing below such a name is watched.
pub(super) fn is_reserved(place: &Place) -> bool {
    place.directory == ROOT && place.name == CONTROL_NAME.as_bytes()
        || place.name.starts_with(STAGE_PREFIX.as_bytes())
}
