//! Files with several names: a write through one is seen only in that name's directory, yet it
//! changes them all.
//!
//! Invariant: a place is in the group that `by_place` says, and in no other.

use std::collections::{BTreeMap, BTreeSet};

use rustc_hash::FxHashMap;

use super::nodes::{NodeId, Place};
use crate::model::Identity;
use crate::model::Name;

/// The names of every multiply linked file, as far as they are known.
#[derive(Debug, Default)]
pub(super) struct Links {
    groups: FxHashMap<Identity, Group>,
    by_place: BTreeMap<Place, Identity>,
    /// Names that went while others stayed. A program that has the file open by one of them goes
    /// on writing, and its events bear that name.
    ghosts: BTreeMap<Place, Identity>,
}

#[derive(Debug, Default)]
struct Group {
    /// The inode's link count when it was seen last.
    count: u32,
    places: BTreeSet<Place>,
    /// A name that no event told of, so that it was there before those that one did: downstream
    /// as well, where a new name is made from it.
    elder: Option<Place>,
    /// The count and the number of known names when all directories were searched last: some
    /// names may be outside of the tree, and are not searched for again.
    searched: (u32, usize),
}

impl Group {
    fn forget(&mut self, place: &Place) {
        self.places.remove(place);
        self.elder.take_if(|elder| elder == place);
    }
}

/// Most names that went and are remembered.
const GHOSTS_MAX: usize = 4096;

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
        if group.places.insert(place.clone()) {
            self.by_place.insert(place.clone(), identity);
        }
        (group.places.len() as u32) < count && group.searched != (count, group.places.len())
    }

    /// As [`Links::note`], for a name that a search found.
    pub fn note_found(&mut self, place: &Place, identity: Identity, count: u32) -> bool {
        let is_news = self.by_place.get(place) != Some(&identity);
        let wants_more = self.note(place, identity, count);
        if is_news && let Some(group) = self.groups.get_mut(&identity) {
            group.elder = Some(place.clone());
        }
        wants_more
    }

    /// Notes that all directories were searched for names of `identity`. Returns whether that
    /// tells anything new since the last search.
    pub fn note_searched(&mut self, identity: Identity) -> bool {
        let Some(group) = self.groups.get_mut(&identity) else { return false };
        let searched = (group.count, group.places.len());
        std::mem::replace(&mut group.searched, searched) != searched
    }

    /// Returns whether names of `identity` are not known.
    pub fn is_incomplete(&self, identity: Identity) -> bool {
        let group = self.groups.get(&identity);
        group.is_some_and(|group| (group.places.len() as u32) < group.count)
    }

    /// Returns all known names of the file that has `place` as one of several.
    pub fn group_of(&self, place: &Place) -> impl Iterator<Item = &Place> {
        self.by_place.get(place).into_iter().flat_map(|identity| self.places(*identity))
    }

    /// Returns the names that are left of a file that had `place` as one of several.
    pub fn left_of(&self, place: &Place) -> impl Iterator<Item = &Place> {
        self.ghosts.get(place).into_iter().flat_map(|identity| self.places(*identity))
    }

    /// Returns all known names of a file, one that was there before others first.
    pub fn places(&self, identity: Identity) -> impl Iterator<Item = &Place> {
        self.groups.get(&identity).into_iter().flat_map(|group| {
            let others = group.places.iter().filter(|place| group.elder.as_ref() != Some(place));
            group.elder.iter().chain(others)
        })
    }

    /// Forgets a name that is there no more.
    pub fn remove(&mut self, place: &Place) {
        let Some(identity) = self.by_place.remove(place) else { return };
        let Some(group) = self.groups.get_mut(&identity) else { return };
        group.forget(place);
        group.count = group.count.saturating_sub(1);
        if group.places.is_empty() {
            self.groups.remove(&identity);
        } else {
            if self.ghosts.len() >= GHOSTS_MAX {
                self.ghosts.clear();
            }
            self.ghosts.insert(place.clone(), identity);
        }
    }

    /// Follows the rename of a name. What was known at `to` is forgotten.
    pub fn rename(&mut self, from: &Place, to: &Place) {
        self.remove(to);
        if let Some(identity) = self.take(from) {
            self.put(to, identity);
        }
    }

    /// Lets two names change places.
    pub fn exchange(&mut self, a: &Place, b: &Place) {
        let (at_a, at_b) = (self.take(a), self.take(b));
        for (identity, to) in [(at_a, b), (at_b, a)] {
            if let Some(identity) = identity {
                self.put(to, identity);
            }
        }
    }

    /// Forgets every name in a directory that is gone.
    pub fn forget_directory(&mut self, gone: NodeId) {
        let first = Place { directory: gone, name: Name::new() };
        let places: Vec<Place> = self
            .by_place
            .range(first..)
            .map(|(place, _)| place)
            .take_while(|place| place.directory == gone)
            .cloned()
            .collect();
        for place in &places {
            self.remove(place);
        }
    }

    /// Takes a name away that [`Links::put`] brings back elsewhere.
    fn take(&mut self, place: &Place) -> Option<Identity> {
        let identity = self.by_place.remove(place)?;
        if let Some(group) = self.groups.get_mut(&identity) {
            group.forget(place);
        }
        Some(identity)
    }

    fn put(&mut self, place: &Place, identity: Identity) {
        self.by_place.insert(place.clone(), identity);
        self.groups.entry(identity).or_default().places.insert(place.clone());
    }
}
