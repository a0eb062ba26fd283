//! Files with several names: a write through one is seen only in that name's directory, yet it
//! changes them all.
//!
//! Invariant: a place is in the group that `by_place` says, by the age that it says, and in no
//! other.

use std::collections::BTreeMap;

use rustc_hash::FxHashMap;

use super::ghosts::Ghosts;
use super::nodes::{NodeId, Place};
use crate::model::{Identity, Name, Timestamp};

/// The names of every multiply linked file, as far as they are known.
#[derive(Debug, Default)]
pub(super) struct Links {
    groups: FxHashMap<Identity, Group>,
    by_place: BTreeMap<Place, (Identity, Age)>,
    /// The least and the greatest age that were given.
    ages: (Age, Age),
    ghosts: Ghosts,
}

/// Orders the names of a file: what was there before is less.
type Age = i64;

#[derive(Debug, Default)]
struct Group {
    /// The inode's link count when it was seen last.
    count: u32,
    /// The oldest first, for that is the one that is downstream the most surely: a new name is
    /// made there from it.
    places: BTreeMap<Age, Place>,
    /// The count and the number of known names when all directories were searched last: some
    /// names may be outside of the tree, and are not searched for again.
    searched: (u32, usize),
}

impl Links {
    /// Notes that `place` is a name of `identity`, which has `count` names. Returns whether
    /// some of its names are not known and worth a search.
    pub fn note(&mut self, place: &Place, identity: Identity, count: u32) -> bool {
        self.ages.1 += 1;
        self.note_as(place, identity, count, self.ages.1)
    }

    /// As [`Links::note`], for a name that a search found: no event told of it, so that it was
    /// there before those of which one did.
    pub fn note_found(&mut self, place: &Place, identity: Identity, count: u32) -> bool {
        self.ages.0 -= 1;
        self.note_as(place, identity, count, self.ages.0)
    }

    /// Notes a name, of this age if it is not known yet.
    fn note_as(&mut self, place: &Place, identity: Identity, count: u32, age: Age) -> bool {
        if self.by_place.get(place).is_some_and(|(known, _)| *known != identity) {
            self.remove(place);
        }
        // The one name that is left may be written to by another that went.
        if count < 2 && !self.ghosts.has(identity) {
            self.remove(place);
            return false;
        }
        let group = self.groups.entry(identity).or_default();
        group.count = count;
        if !self.by_place.contains_key(place) {
            self.by_place.insert(place.clone(), (identity, age));
            group.places.insert(age, place.clone());
        }
        (group.places.len() as u32) < count && group.searched != (count, group.places.len())
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
        self.by_place.get(place).into_iter().flat_map(|(identity, _)| self.places(*identity))
    }

    /// Returns one of the names that are left of each file that had `place` as one of several.
    pub fn left_of(&self, place: &Place) -> impl Iterator<Item = &Place> {
        self.ghosts.files_at(place).filter_map(|identity| self.places(identity).next())
    }

    /// Returns all known names of a file, the oldest first.
    pub fn places(&self, identity: Identity) -> impl Iterator<Item = &Place> {
        self.groups.get(&identity).into_iter().flat_map(|group| group.places.values())
    }

    /// Forgets a name that is there no more.
    pub fn remove(&mut self, place: &Place) {
        let Some((identity, age)) = self.by_place.remove(place) else { return };
        let Some(group) = self.groups.get_mut(&identity) else { return };
        group.places.remove(&age);
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
        if let Some(known) = self.take(from) {
            self.put(to, known);
        }
    }

    /// Lets two names change places.
    pub fn exchange(&mut self, a: &Place, b: &Place) {
        let (at_a, at_b) = (self.take(a), self.take(b));
        for (known, to) in [(at_a, b), (at_b, a)] {
            if let Some(known) = known {
                self.put(to, known);
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
    fn take(&mut self, place: &Place) -> Option<(Identity, Age)> {
        let (identity, age) = self.by_place.remove(place)?;
        if let Some(group) = self.groups.get_mut(&identity) {
            group.places.remove(&age);
        }
        Some((identity, age))
    }

    fn put(&mut self, place: &Place, (identity, age): (Identity, Age)) {
        self.by_place.insert(place.clone(), (identity, age));
        self.groups.entry(identity).or_default().places.insert(age, place.clone());
    }
}

#[cfg(test)]
mod tests {
    use super::super::nodes::ROOT;
    use super::*;

    #[test]
    fn a_new_name_is_made_from_the_oldest_one() {
        let mut links = Links::default();
        let file = Identity { device: 1, inode: 7 };
        let place = |name: &str| Place { directory: ROOT, name: name.into() };
        let oldest = |links: &Links| links.places(file).next().cloned();
        for (count, name) in [(2, "z"), (3, "b"), (4, "a")] {
            links.note(&place(name), file, count);
        }
        links.note(&place("z"), file, 4);
        assert_eq!(oldest(&links), Some(place("z")));
        links.rename(&place("z"), &place("y"));
        assert_eq!(oldest(&links), Some(place("y")));
        links.remove(&place("y"));
        assert_eq!(oldest(&links), Some(place("b")));
        links.note_found(&place("c"), file, 4);
        assert_eq!(oldest(&links), Some(place("c")));
        links.exchange(&place("c"), &place("a"));
        assert_eq!(links.places(file).cloned().collect::<Vec<_>>(), ["a", "b", "c"].map(place));
    }
}
