//! Names that went while others of their files stayed. A program that has such a file open by one
//! goes on writing, and the events bear the name that went.
//!
//! Invariants: `files` are those of `names`, or were; each directory in `gone` has a name in
//! `names`. So one bound holds for all three.

use std::collections::BTreeSet;

use rustc_hash::{FxHashMap, FxHashSet};

use super::nodes::{NodeId, Place};
use crate::model::{Identity, Name, Timestamp};

/// Most names that went and are remembered.
const GHOSTS_MAX: usize = 4096;

/// The names that went, and which files had them.
#[derive(Debug, Default)]
pub(super) struct Ghosts {
    /// One name may have led to several files, one after another, that are all open.
    names: BTreeSet<(Place, Identity)>,
    files: FxHashSet<Identity>,
    /// Directories that went with such names in them. What events could not follow is found
    /// again by its identity, as a new node.
    gone: FxHashMap<Identity, Gone>,
}

#[derive(Debug, Clone, Copy)]
struct Gone {
    node: NodeId,
    since: Timestamp,
}

impl Ghosts {
    /// Remembers that `place` was a name of `file`.
    pub fn insert(&mut self, place: &Place, file: Identity) {
        if self.names.len() >= GHOSTS_MAX {
            *self = Ghosts::default();
        }
        self.names.insert((place.clone(), file));
        self.files.insert(file);
    }

    /// Returns whether `file` may be written to by a name that went.
    pub fn has(&self, file: Identity) -> bool {
        self.files.contains(&file)
    }

    /// Returns the files that had the name `place`.
    pub fn files_at(&self, place: &Place) -> impl Iterator<Item = Identity> {
        let first = (place.clone(), LEAST);
        let from_here = self.names.range(first..);
        from_here.take_while(move |(other, _)| other == place).map(|(_, file)| *file)
    }

    /// Notes that events tell nothing of a directory since a moment: it is gone, it seems.
    pub fn directory_goes(&mut self, node: NodeId, identity: Identity, since: Timestamp) {
        if self.names_in(node).next().is_some() {
            self.gone.insert(identity, Gone { node, since });
        }
    }

    /// Notes that a directory is watched as `node`. If it is one that was gone, returns since
    /// when, and the files that may have been written to meanwhile by names that were in it.
    pub fn directory_comes(
        &mut self,
        node: NodeId,
        identity: Identity,
    ) -> Option<(Timestamp, Vec<Identity>)> {
        let gone = self.gone.remove(&identity)?;
        let names: Vec<(Place, Identity)> = self.names_in(gone.node).cloned().collect();
        let files = names.iter().map(|(_, file)| *file).collect();
        for entry in names {
            self.names.remove(&entry);
            let (Place { name, .. }, file) = entry;
            self.names.insert((Place { directory: node, name }, file));
        }
        Some((gone.since, files))
    }

    fn names_in(&self, node: NodeId) -> impl Iterator<Item = &(Place, Identity)> {
        let first = (Place { directory: node, name: Name::new() }, LEAST);
        self.names.range(first..).take_while(move |(place, _)| place.directory == node)
    }
}

/// No identity is less.
const LEAST: Identity = Identity { device: 0, inode: 0 };
