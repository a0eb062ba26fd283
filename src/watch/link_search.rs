//! Finding the other names of a file that just got another one.
//!
//! Only the count of a file's names is known of a name that is new, and of a file with one name
//! nothing was kept. So all directories are listed for its inode number, which needs no `stat` of
//! each entry: a few directories in each turn, and many new links in one pass.

use std::time::Instant;

use rustc_hash::FxHashSet;

use super::Watch;
use super::events::is_reserved;
use super::nodes::{NodeId, Place};
use super::scan::is_directory;
use crate::model::Identity;
use crate::model::What;
use crate::tree::reader::list_inodes;
use crate::tree::root::{identity_of, stat_at};

/// A pass through the directories.
#[derive(Debug)]
pub(super) struct LinkSearch {
    wanted: Vec<(Place, Identity)>,
    /// Those of which not all names were found yet.
    inodes: FxHashSet<u64>,
    /// Directories to be listed, the next one last.
    pending: Vec<NodeId>,
}

impl Watch {
    /// Has the other names of the file at `place` searched for.
    pub(super) fn find_links(&mut self, place: &Place, identity: Identity) {
        self.links_wanted.push((place.clone(), identity));
    }

    /// Goes on with a pass, or begins one if it is wanted.
    pub(super) fn search_links(&mut self, deadline: Instant) {
        let mut search = match self.link_search.take() {
            Some(search) => search,
            None => {
                let wanted = std::mem::take(&mut self.links_wanted);
                let mut pending: Vec<NodeId> = self.nodes.ids().collect();
                // The most likely directories first: those of the new names.
                pending.extend(wanted.iter().map(|(place, _)| place.directory));
                let inodes = wanted.iter().map(|(_, identity)| identity.inode).collect();
                LinkSearch { wanted, inodes, pending }
            }
        };
        while !search.inodes.is_empty()
            && let Some(directory) = search.pending.pop()
        {
            self.search_in(directory, &mut search.inodes);
            if Instant::now() >= deadline && !search.inodes.is_empty() {
                self.link_search = Some(search);
                return;
            }
        }
        for (place, identity) in search.wanted {
            self.links.note_searched(identity);
            if self.links.group_of(&place).nth(1).is_some()
                && let Some(path) = self.path_of(&place)
            {
                self.dirty(path, What::NAME);
            }
        }
    }

    fn search_in(&mut self, directory: NodeId, inodes: &mut FxHashSet<u64>) {
        let Some(path) = self.nodes.path(directory) else { return };
        let Ok(fd) = self.root.open_directory(&path) else { return };
        let mut names = Vec::new();
        let mut buffer = std::mem::take(&mut self.list_buffer);
        let _ = list_inodes(&fd, &mut buffer, |name, inode| {
            if inodes.contains(&inode) {
                names.push(name.to_vec());
            }
        });
        self.list_buffer = buffer;
        for name in names {
            let Ok(stat) = stat_at(&fd, &name) else { continue };
            let place = Place { directory, name };
            let identity = identity_of(&stat);
            if is_directory(&stat) || is_reserved(&place) {
                continue;
            }
            if !self.links.note(&place, identity, stat.stx_nlink) {
                inodes.remove(&identity.inode);
            }
        }
    }
}
