//! Files with several names: a write through one is seen only in that name's directory, yet it
//! changes them all.
//!
//! Invariant: a place is in the group that `by_place` says, and in no other.

use std::collections::{HashMap, HashSet};

use rustc_hash::FxHashMap;

use super::nodes::{NodeId, Place};
use crate::tree::Identity;

/// The names of every multiply linked file, as far as they are known.
#[derive(Debug, Default)]
pub(super) struct Links {
    groups: FxHashMap<Identity, Group>,
    by_place: HashMap<Place, Identity>,
}

#[derive(Debug, Default)]
struct Group {
    /// The inode's link count when it was seen last.
    count: u32,
    places: Vec<Place>,
    /// The count and the number of known names when all directories were searched last: some
    /// names may be outside of the tree, and are not searched for again.
    searched: (u32, usize),
}

impl Links {
    /// Notes that `place` is a name of `identity`, which has `count` names. Returns whether
    /// some of its names are not known and worth a search.
    pub fn note(&mut self, place: &Place, identity: Identity, count: u32) -> bool {
        if self.by_place.get(place).is_some_and(|known| *known != identity) {
            self.remove(place);
        }
        if count < 2 {
            self.remove(place);
            return false;
        }
        let group = self.groups.entry(identity).or_default();
        group.count = count;
        if !group.places.contains(place) {
            group.places.push(place.clone());
            self.by_place.insert(place.clone(), identity);
        }
        (group.places.len() as u32) < count && group.searched != (count, group.places.len())
    }

    /// Notes that all directories were searched for names of `identity`.
    pub fn note_searched(&mut self, identity: Identity) {
        if let Some(group) = self.groups.get_mut(&identity) {
            group.searched = (group.count, group.places.len());
        }
    }

    /// Returns all known names of the file that has `place` as one of several.
    pub fn group_of(&self, place: &Place) -> &[Place] {
        let identity = self.by_place.get(place);
        identity.map_or(&[], |identity| self.places(*identity))
    }

    /// Returns all known names of a file.
    pub fn places(&self, identity: Identity) -> &[Place] {
        self.groups.get(&identity).map_or(&[], |group| &group.places)
    }

    /// Forgets a name.
    pub fn remove(&mut self, place: &Place) {
        let Some(identity) = self.by_place.remove(place) else { return };
        if let Some(group) = self.groups.get_mut(&identity) {
            group.places.retain(|known| known != place);
            group.count = group.count.saturating_sub(1);
            if group.places.is_empty() {
                self.groups.remove(&identity);
            }
        }
    }

    /// Follows the rename of a name. What was known at `to` is forgotten.
    pub fn rename(&mut self, from: &Place, to: &Place) {
        self.remove(to);
        let Some(identity) = self.by_place.remove(from) else { return };
        self.by_place.insert(to.clone(), identity);
        if let Some(group) = self.groups.get_mut(&identity)
            && let Some(place) = group.places.iter_mut().find(|known| *known == from)
        {
            *place = to.clone();
        }
    }

    /// Lets two names change places.
    pub fn exchange(&mut self, a: &Place, b: &Place) {
        let (at_a, at_b) = (self.take(a), self.take(b));
        for (found, place) in [(at_a, b), (at_b, a)] {
            if let Some((identity, count)) = found {
                self.note(place, identity, count);
            }
        }
    }

    /// Forgets every name in directories that are gone.
    pub fn forget_directories(&mut self, gone: &[NodeId]) {
        if self.by_place.is_empty() {
            return;
        }
        let gone: HashSet<NodeId> = gone.iter().copied().collect();
        let places: Vec<Place> =
            self.by_place.keys().filter(|place| gone.contains(&place.directory)).cloned().collect();
        for place in &places {
            self.remove(place);
        }
    }

    fn take(&mut self, place: &Place) -> Option<(Identity, u32)> {
        let identity = *self.by_place.get(place)?;
        let count = self.groups.get(&identity)?.count;
        self.remove(place);
        Some((identity, count))
    }
}
