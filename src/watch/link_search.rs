//! Finding the other names of a file that just got another one.
//!
//! Only the count of a file's names is known of a name that is new, and of a file with one name
//! nothing was kept. So all directories are listed for its inode number, which needs no `stat` of
//! each entry: a few directories in each turn, and many new links in one pass.

use std::io;
use std::time::Instant;

use rustc_hash::FxHashSet;

use super::events::is_reserved;
use super::nodes::{NodeId, Place};
use super::scan::is_directory;
use super::{MISSED_INTERVAL, Watch};
use crate::model::Identity;
use crate::model::What;
use crate::tree::reader::{is_absent, list_inodes};
use crate::tree::root::{identity_of, stat_at};

/// A pass through the directories.
#[derive(Debug, Default)]
pub(super) struct LinkSearch {
    wanted: Vec<(Place, Identity)>,
    /// Those of which not all names were found yet.
    inodes: FxHashSet<u64>,
    /// Directories to be listed, the next one last.
    pending: Vec<NodeId>,
    /// Directories that could not be read.
    unread: Vec<NodeId>,
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
                // The most likely directories first: those of the new names, each once.
                let likely: FxHashSet<NodeId> =
                    wanted.iter().map(|(place, _)| place.directory).collect();
                let others = self.nodes.ids().filter(|id| !likely.contains(id));
                let pending: Vec<NodeId> = others.chain(likely.iter().copied()).collect();
                let inodes = wanted.iter().map(|(_, identity)| identity.inode).collect();
                LinkSearch { wanted, inodes, pending, unread: Vec::new() }
            }
        };
        while !search.inodes.is_empty()
            && let Some(directory) = search.pending.pop()
        {
            if let Err(error) = self.search_in(directory, &mut search.inodes)
                && !is_absent(&error)
            {
                search.unread.push(directory);
            }
            if Instant::now() >= deadline && !search.inodes.is_empty() {
                self.link_search = Some(search);
                return;
            }
        }
        for (place, identity) in &search.wanted {
            // Also if something could not be read: to search at each use until it can would let
            // nothing be sent. That part is searched again, later.
            if self.links.note_searched(*identity)
                && self.links.group_of(place).nth(1).is_some()
                && let Some(path) = self.path_of(place)
            {
                self.dirty(path, What::NAME);
            }
        }
        self.miss_links(search);
    }

    /// Has the directories that could not be read searched again for the names still unknown.
    fn miss_links(&mut self, mut search: LinkSearch) {
        search.wanted.retain(|(_, identity)| self.links.is_incomplete(*identity));
        if search.unread.is_empty() || search.wanted.is_empty() {
            return;
        }
        if !self.misses() {
            self.missed_at = Instant::now() + MISSED_INTERVAL;
        }
        let missed = self.links_missed.get_or_insert_default();
        let known: FxHashSet<Identity> = missed.wanted.iter().map(|(_, id)| *id).collect();
        search.wanted.retain(|(_, identity)| !known.contains(identity));
        missed.inodes.extend(search.wanted.iter().map(|(_, identity)| identity.inode));
        missed.wanted.append(&mut search.wanted);
        missed.pending.append(&mut search.unread);
        missed.pending.sort_unstable();
        missed.pending.dedup();
    }

    /// Notes the names in one directory of the files with these inode numbers.
    fn search_in(&mut self, directory: NodeId, inodes: &mut FxHashSet<u64>) -> io::Result<()> {
        let Some(path) = self.nodes.path(directory) else { return Ok(()) };
        let fd = self.root.open_directory(&path)?;
        let mut names = Vec::new();
        let mut buffer = std::mem::take(&mut self.list_buffer);
        let listed = list_inodes(&fd, &mut buffer, |name, inode| {
            if inodes.contains(&inode) {
                names.push(name.to_vec());
            }
        });
        self.list_buffer = buffer;
        let mut result = listed;
        for name in names {
            let stat = match stat_at(&fd, &name) {
                Ok(stat) => stat,
                Err(rustix::io::Errno::NOENT) => continue,
                Err(error) => {
                    result = Err(error.into());
                    continue;
                }
            };
            let place = Place { directory, name };
            let identity = identity_of(&stat);
            if is_directory(&stat) || is_reserved(&place) {
                continue;
            }
            if !self.links.note_found(&place, identity, stat.stx_nlink) {
                inodes.remove(&identity.inode);
            }
        }
        result
    }
}
