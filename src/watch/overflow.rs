//! After the event queue overflowed: looking for what changed, and only for that.

use inotify::EventMask;
use rustc_hash::FxHashSet;
use rustix::fs::FileType;

use super::nodes::{NodeId, Place, ROOT};
use super::scan::Look;
use super::{Watch, wall_clock};
use crate::model::{Change, TreePath, What};
use crate::tree::Identity;
use crate::tree::reader::list_directory;
use crate::tree::root::{stat_at, stat_fd};

/// A directory as the walk met it, parents before children.
struct Met {
    identity: Identity,
    parent: Identity,
    name: Vec<u8>,
}

/// Times that the walk is repeated because renames came in meanwhile.
const ATTEMPTS_MAX: u32 = 5;

impl Watch {
    /// Brings the nodes into agreement with the tree: directories that moved are found by
    /// identity and journaled as renames, what is new is discovered, what was not met is
    /// dropped, and every directory is looked through for changes since the queue was last
    /// known to be whole.
    pub(super) fn recover_overflow(&mut self) {
        let since = self.clock;
        tracing::warn!(
            "{}: the event queue overflowed; looking for what changed (raise \
             fs.inotify.max_queued_events if this repeats)",
            self.root.path().display()
        );
        let mut met = Vec::new();
        for _ in 0..ATTEMPTS_MAX {
            self.read_events();
            self.events.clear();
            self.overflowed = false;
            let began = wall_clock();
            met = self.meet_directories();
            self.read_events();
            let renamed = EventMask::MOVED_FROM | EventMask::MOVED_TO;
            if !self.overflowed && !self.events.iter().any(|event| event.mask.intersects(renamed)) {
                self.clock = self.clock.max(since.min(began));
                break;
            }
        }
        // Renames of which only a half was seen: those directories are found by identity.
        for half in std::mem::take(&mut self.halves) {
            let free = self.nodes.child(half.from.directory, &half.from.name).is_none();
            match half.node {
                Some(node) if free && self.nodes.get(half.from.directory).is_some() => {
                    self.nodes.attach(node, half.from.directory, &half.from.name);
                }
                Some(node) => self.drop_node(node),
                None => {}
            }
        }
        self.looks.retain(|look| matches!(look, Look::Root));
        let mut reached = FxHashSet::from_iter([ROOT]);
        for met in &met {
            let Some(parent) = self.nodes.by_identity(met.parent) else { continue };
            let place = Place { directory: parent, name: met.name.clone() };
            match self.nodes.by_identity(met.identity) {
                Some(node) => {
                    self.relink(node, &place);
                    match self.nodes.by_identity(met.identity) {
                        Some(node) => _ = reached.insert(node),
                        None => self.looks.push(Look::At(place)),
                    }
                }
                None => self.looks.push(Look::At(place)),
            }
        }
        let lost: Vec<NodeId> = self.nodes.ids().filter(|id| !reached.contains(id)).collect();
        for id in lost {
            if let Some(path) = self.nodes.path(id)
                && !self.held.keys().any(|held| self.nodes.is_above(*held, id))
            {
                self.dirty(path, What::CONTENT);
                self.drop_node(id);
            }
        }
        self.sweeps.clear();
        self.sweeps.extend(self.nodes.ids().map(|id| (id, since)));
    }

    /// Walks all directories, parents first.
    fn meet_directories(&mut self) -> Vec<Met> {
        let mut met = Vec::new();
        let mut pending = vec![TreePath::root()];
        let mut buffer = std::mem::take(&mut self.list_buffer);
        while let Some(path) = pending.pop() {
            let Ok(fd) = self.root.open_directory(&path) else { continue };
            let Ok(stat) = stat_fd(&fd) else { continue };
            let parent = Identity::of(&stat);
            let listed = list_directory(&fd, &mut buffer, |name, file_type| {
                if !matches!(file_type, FileType::Directory | FileType::Unknown)
                    || path.join(name).is_reserved()
                {
                    return Ok(());
                }
                let Ok(stat) = stat_at(&fd, name) else { return Ok(()) };
                if FileType::from_raw_mode(stat.stx_mode.into()) == FileType::Directory {
                    met.push(Met { identity: Identity::of(&stat), parent, name: name.to_vec() });
                    pending.push(path.join(name));
                }
                Ok(())
            });
            if let Err(error) = listed {
                tracing::warn!("{path}: {error}; it is left as it is downstream");
            }
        }
        self.list_buffer = buffer;
        met
    }

    /// Journals the rename that brought a known directory to where it was met.
    fn relink(&mut self, node: NodeId, to: &Place) {
        let Some(known) = self.nodes.get(node) else { return };
        let from = Place { directory: known.parent, name: known.name.to_vec() };
        if from == *to {
            return;
        }
        let (Some(from_path), Some(to_path)) = (self.path_of(&from), self.path_of(to)) else {
            return;
        };
        let occupant = self.nodes.child(to.directory, &to.name);
        let nested = self.nodes.is_above(node, to.directory)
            || occupant.is_some_and(|other| self.nodes.is_above(other, node));
        if nested {
            // Two directories changed places above and below each other. No one rename does
            // that; what moved is told anew.
            self.dirty(from_path, What::CONTENT);
            self.drop_node(node);
            return;
        }
        self.nodes.detach(from.directory, &from.name);
        let change = match occupant {
            Some(other) => {
                // It lives elsewhere or nowhere; in either case its turn comes.
                self.nodes.detach(to.directory, &to.name);
                self.nodes.attach(other, from.directory, &from.name);
                Change::Exchange { a: from_path.clone(), b: to_path.clone() }
            }
            None => Change::Rename { from: from_path.clone(), to: to_path.clone() },
        };
        self.nodes.attach(node, to.directory, &to.name);
        self.journal_move(change);
        self.dirty(from_path, What::CONTENT);
        self.dirty(to_path, What::CONTENT);
    }
}
