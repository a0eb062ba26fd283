//! Files with several names: a write through one is seen only in that name's directory, yet it
//! changes them all.
//!
//! Invariant: a place is in the group that `by_place` says, and in no other.

use std::collections::{BTreeMap, BTreeSet};

use rustc_hash::FxHashMap;

use super::ghosts::Ghosts;
use super::nodes::{NodeId, Place};
use crate::model::{Identity, Name, Timestamp};

/// The names of every multiply linked file, as far as they are known.
#[derive(Debug, Default)]
pub(super) struct Links {
    groups: FxHashMap<Identity, Group>,
    by_place: BTreeMap<Place, Identity>,
    ghosts: Ghosts,
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

impl Links {
    /// Notes that `place` is a name of `identity`, which has `count` names. Returns whether
    /// some of its names are not known and worth a search.
    pub fn note(&mut self, place: &Place, identity: Identity, count: u32) -> bool {
        if self.by_place.get(place).is_some_and(|known| *known != identity) {
            self.remove(place);
        }
        // The one name that is left may be written to by another that went.
        if count < 2 && !self.ghosts.has(identity) {
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

    /// Returns one of the names that are left of each file that had `place` as one of several.
    pub fn left_of(&self, place: &Place) -> impl Iterator<Item = &Place> {
        self.ghosts.files_at(place).filter_map(|identity| self.places(identity).next())
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
            self.ghosts.insert(place, identity);
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

    /// Forgets every name in a directory that is gone, of which events tell nothing since a
    /// moment.
    pub fn forget_directory(&mut self, gone: NodeId, identity: Identity, since: Timestamp) {
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
        self.ghosts.directory_goes(gone, identity, since);
    }

    /// Notes that a directory is watched as `node`. If it is one that was gone, returns since
    /// when, and a name of each file that may have been written to meanwhile by a name in it.
    pub fn directory_comes(
        &mut self,
        node: NodeId,
        identity: Identity,
    ) -> Option<(Timestamp, Vec<Place>)> {
        let (since, files) = self.ghosts.directory_comes(node, identity)?;
        let left = files.into_iter().filter_map(|file| self.places(file).next().cloned());
        Some((since, left.collect()))
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
