//! Directories that are held as they are downstream: what is there now is not what was mirrored,
//! or is mirrored at another place.

use std::time::Instant;

use rustix::fs::{Statx, StatxAttributes};

use super::nodes::{NodeId, Place, ROOT};
use super::scan::Look;
use super::{Event, HELD_INTERVAL, Watch};
use crate::model::{Identity, Timestamp};
use crate::tree::reader::is_absent;

/// What is known of a directory where another file system appeared or vanished.
#[derive(Debug, Clone, Copy)]
pub(super) struct Held {
    /// When that was.
    pub since: Timestamp,
    /// Whether something below it was to be sent since.
    pub was_read: bool,
}

impl Watch {
    /// Another file system was mounted over a directory, or one was unmounted: what is there
    /// now is not what was mirrored, and its absence is no removal (I8).
    pub(super) fn hold_below(&mut self, id: NodeId) {
        if !self.hold_node(id) {
            return;
        }
        if let Some(path) = self.nodes.path(id) {
            tracing::error!(
                "{path}: a file system was mounted or unmounted here; it is held as it was \
                 downstream until that is undone (or restart the source with --accept-root to \
                 mirror what is there)"
            );
        }
    }

    /// Returns whether `id` was not held before.
    fn hold_node(&mut self, id: NodeId) -> bool {
        let is_new = !self.held.contains_key(&id);
        if is_new {
            self.held.insert(id, Held { since: self.clock, was_read: false });
            self.held_at = Instant::now() + HELD_INTERVAL;
        }
        is_new
    }

    /// Returns whether the directory `first`, which was just found at `place`, is at the place
    /// where it is known as well: a bind mount, or a second mount of its file system. To follow
    /// it there would take it from its place, to which the next look would take it back.
    pub(super) fn is_also_in_place(&self, first: NodeId, place: &Place) -> bool {
        let Some(node) = self.nodes.get(first) else { return false };
        let own = Place { directory: node.parent, name: node.name.to_vec() };
        own != *place && (first == ROOT || self.identity_at(&own) == Some(node.identity))
    }

    /// Returns whether a directory with the status `stat` is to be mirrored at `place`, and not at
    /// the one where `first` is known: rather where nothing is mounted. Listings have no order, so
    /// that the first scan prefers the lesser of two paths; what is mirrored already stays so.
    pub(super) fn is_better_place(&self, place: &Place, stat: &Statx, first: NodeId) -> bool {
        let Some(node) = self.nodes.get(first).filter(|_| first != ROOT) else { return false };
        let own = Place { directory: node.parent, name: node.name.to_vec() };
        let Some(own_stat) = self.stat_of(&own) else { return false };
        let is_mounted = |stat: &Statx| stat.stx_attributes.contains(StatxAttributes::MOUNT_ROOT);
        match (is_mounted(stat), is_mounted(&own_stat)) {
            (false, true) => true,
            (true, false) => false,
            _ => !self.journals && self.path_of(place) < self.path_of(&own),
        }
    }

    /// Returns whether a rename came in since the events were last handled, by which one
    /// directory may have been seen at two places.
    pub(super) fn may_have_moved(&mut self) -> bool {
        self.read_events();
        self.events_lost || self.events.iter().any(Event::moves_directory)
    }

    /// Holds the second of two places of one directory. Only the first one is mirrored, and has
    /// the watches.
    pub(super) fn hold_alias(&mut self, place: Place, first: NodeId) {
        let Some(identity) = self.nodes.get(first).map(|node| node.identity) else { return };
        let is_new = match self.nodes.child(place.directory, &place.name) {
            // What it covers is known, and stays as it is downstream.
            Some(covered) => self.hold_node(covered),
            None => self.aliases.insert(place.clone(), identity).is_none(),
        };
        if !is_new {
            return;
        }
        self.held_at = Instant::now() + HELD_INTERVAL;
        if let (Some(path), Some(first)) = (self.path_of(&place), self.nodes.path(first)) {
            tracing::warn!(
                "{path}: this directory is also at {first} (a bind mount, or its file system is \
                 mounted twice); it is mirrored there, and {path} is left as it is downstream \
                 until one of the two is gone"
            );
        }
    }

    /// Has the names looked at that lead no longer to a directory that is elsewhere as well.
    fn release_aliases(&mut self) {
        let aliases: Vec<(Place, Identity)> =
            self.aliases.iter().map(|(place, identity)| (place.clone(), *identity)).collect();
        for (place, identity) in aliases {
            let first = self.nodes.by_identity(identity);
            if self.identity_at(&place) == Some(identity)
                && first.is_some_and(|first| self.is_also_in_place(first, &place))
            {
                continue;
            }
            self.aliases.remove(&place);
            if let Some(path) = self.path_of(&place) {
                tracing::info!("{path}: it is at one place only, and mirrored");
            }
            self.looks.push(Look::At(place));
            if let Some(first) = first {
                self.look_again(first);
            }
        }
    }

    /// Looks whether held directories are back.
    pub(super) fn release_held(&mut self) {
        self.release_aliases();
        let held: Vec<(NodeId, Held)> = self.held.iter().map(|(id, held)| (*id, *held)).collect();
        for (id, held) in held {
            // What was to be sent and was not is not told by any time.
            let since = if held.was_read { Timestamp::default() } else { held.since };
            let Some(node) = self.nodes.get(id) else {
                self.held.remove(&id);
                continue;
            };
            let place = Place { directory: node.parent, name: node.name.to_vec() };
            if self.identity_at(&place) != Some(node.identity) {
                continue;
            }
            self.held.remove(&id);
            if let Some(path) = self.nodes.path(id) {
                tracing::info!("{path}: the file system is back");
            }
            let below: Vec<NodeId> =
                self.nodes.ids().filter(|node| self.nodes.is_above(id, *node)).collect();
            for node in below {
                // The watches went with the mount.
                let Some(path) = self.nodes.path(node) else { continue };
                let is_unwatched = self.nodes.get(node).is_some_and(|node| node.watch.is_none());
                match self.root.open_directory(&path).and_then(|fd| self.add_watch(&fd)) {
                    Ok(watch) if self.nodes.by_watch(watch.get_watch_descriptor_id()).is_none() => {
                        self.nodes.set_watch(node, watch);
                    }
                    // What is gone is found to be by the sweep.
                    Err(error) if is_unwatched && !is_absent(&error) => {
                        self.is_unwatched(node, &error);
                    }
                    // It was only hidden, and kept its watch; or the sweep finds another there.
                    Ok(_) | Err(_) => {}
                }
                self.sweeps.push_back((node, since));
            }
        }
    }
}
