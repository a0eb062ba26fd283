//! After events were lost, as when their queue overflowed, or nobody was there to hear them:
//! looking for what changed, and only for that.

use std::time::{Duration, Instant};

use rustc_hash::{FxHashMap, FxHashSet};
use rustix::fs::{FileType, StatxAttributes};

use super::nodes::{NodeId, Place, ROOT, STRANGE};
use super::restart::Restart;
use super::scan::Look;
use super::{Event, Watch};
use crate::model::{Change, Identity, Timestamp, TreePath, What};
use crate::tree::metadata::timestamp;
use crate::tree::reader::{is_absent, list_directory};
use crate::tree::root::{identity_of, stat_at, stat_fd};

/// A walk through all directories after an overflow, a few in each turn.
#[derive(Debug)]
pub(super) struct Recovery {
    /// The moment up to which nothing had been lost.
    since: Timestamp,
    /// Parents before children.
    met: Vec<Met>,
    /// Directories to go on with.
    pending: Vec<TreePath>,
    /// What could not be read. What is below was not met, and yet is not gone (I8).
    unread: Vec<TreePath>,
    /// Walks that were begun.
    attempts: u32,
}

/// A directory as the walk met it.
#[derive(Debug)]
struct Met {
    identity: Identity,
    birth: Timestamp,
    is_mount_root: bool,
    parent: Identity,
    name: Vec<u8>,
}

impl Recovery {
    /// Returns a walk for what changed since a moment.
    pub(super) fn new(since: Timestamp, attempts: u32) -> Recovery {
        let pending = vec![TreePath::root()];
        Recovery { since, met: Vec::new(), pending, unread: Vec::new(), attempts }
    }
}

/// Times that the walk is begun because renames came in meanwhile. Beyond, what they moved is
/// found by the sweeps, and told anew instead of renamed.
const ATTEMPTS_MAX: u32 = 5;

/// Time between two warnings of overflows, which may come one after another.
const SAID_INTERVAL: Duration = Duration::from_secs(60);

impl Watch {
    /// Notes that events were lost.
    pub(super) fn begin_recovery(&mut self) {
        // A look through the tree that was not at its end goes back further.
        let since = self.sweeps.iter().map(|(_, since)| *since).fold(self.clock, Timestamp::min);
        let since = self.recovery.as_ref().map_or(since, |recovery| since.min(recovery.since));
        self.events_lost = false;
        self.events.clear();
        self.looks.retain(|look| matches!(look, Look::Root));
        self.sweeps.clear();
        let overflowed = std::mem::take(&mut self.overflowed);
        let attempts = match &self.recovery {
            Some(recovery) => recovery.attempts + 1,
            None => {
                let now = Instant::now();
                if overflowed && self.overflow_said.is_none_or(|said| now >= said + SAID_INTERVAL) {
                    self.overflow_said = Some(now);
                    tracing::warn!(
                        "{}: the event queue overflowed; looking for what changed (if this \
                         repeats, raise it: sysctl fs.inotify.max_queued_events=1048576, and \
                         restart the source)",
                        self.root.path().display()
                    );
                }
                1
            }
        };
        self.abandon_catalog();
        self.doubt_moves();
        self.recovery = Some(Recovery::new(since, attempts));
    }

    /// Goes on with the walk, and at its end brings the nodes into agreement with the tree:
    /// directories that moved are found by identity and journaled as renames, what is new is
    /// discovered, what was not met is dropped, and every directory is to be looked through for
    /// changes since the queue was last known to be whole.
    ///
    /// What is reported meanwhile is found by those sweeps as well, so it is not kept; only
    /// renames make the walk untrue.
    pub(super) fn recover(&mut self, mut recovery: Recovery, deadline: Instant) {
        while let Some(path) = recovery.pending.pop() {
            self.meet(&path, &mut recovery);
            if Instant::now() >= deadline {
                break;
            }
        }
        self.read_events();
        let untrue = self.events_lost || self.events.iter().any(Event::moves_directory);
        self.events.clear();
        if untrue && recovery.attempts < ATTEMPTS_MAX {
            self.recovery = Some(recovery);
            self.begin_recovery();
        } else if !recovery.pending.is_empty() {
            self.events_lost = false;
            self.recovery = Some(recovery);
        } else {
            self.events_lost = false;
            let restart = self.restart.take();
            let restart = self.agree_with(&recovery, restart);
            self.restart = restart;
            self.sweeps.clear();
            self.sweeps.extend(self.nodes.ids().map(|id| (id, recovery.since)));
            self.sort_sweeps();
        }
    }

    /// Brings the nodes into agreement with what was met. At a restart, which is handed in and
    /// back, what is new is known from here on, and what is lost is kept in mind.
    fn agree_with(&mut self, recovery: &Recovery, mut restart: Option<Restart>) -> Option<Restart> {
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
        // An inode number is given to the next one that is made: that is another directory.
        for met in &recovery.met {
            if let Some(node) = self.nodes.by_identity(met.identity)
                && self.nodes.get(node).is_some_and(|known| known.birth != met.birth)
            {
                self.nodes.estrange(node);
            }
        }
        let places: FxHashMap<Identity, &Met> = match restart {
            Some(_) => recovery.met.iter().map(|met| (met.identity, met)).collect(),
            None => FxHashMap::default(),
        };
        let mut reached = FxHashSet::from_iter([ROOT]);
        for met in &recovery.met {
            let Some(parent) = self.nodes.by_identity(met.parent) else { continue };
            if !reached.contains(&parent) {
                continue; // What covers a directory is not in its place.
            }
            let place = Place { directory: parent, name: met.name.clone() };
            if let Some(covered) = self.nodes.child(parent, &met.name)
                && let Some(known) = self.nodes.get(covered)
                && known.identity.device != met.identity.device
                && known.identity.device != STRANGE
                && !restart.as_ref().is_some_and(|restart| restart.accepts_mounts)
            {
                self.hold_below(covered);
                continue;
            }
            if let Some(node) = self.nodes.by_identity(met.identity) {
                self.relink(node, &place);
            }
            match (self.nodes.by_identity(met.identity), &restart) {
                (Some(node), _) => _ = reached.insert(node),
                (None, None) => self.looks.push(Look::At(place)),
                (None, Some(_)) => {
                    self.make_way(&place, &places, &reached);
                    let is_mount = met.is_mount_root || met.identity.device != met.parent.device;
                    let (identity, birth) = (met.identity, met.birth);
                    let id = self.nodes.insert(parent, &met.name, identity, birth, is_mount);
                    self.uncompared.insert(id);
                    reached.insert(id);
                }
            }
        }
        let unread = recovery.unread.iter().filter_map(|path| self.nodes.at(path.as_bytes()));
        let spared: Vec<NodeId> = self.held.keys().copied().chain(unread).collect();
        let lost = self.nodes.ids().filter(|id| {
            !reached.contains(id) && !spared.iter().any(|spared| self.nodes.is_above(*spared, *id))
        });
        let lost: Vec<NodeId> = lost.collect();
        if let Some(restart) = &mut restart {
            lost.iter().for_each(|id| self.remember_lost(*id, restart));
        }
        for id in lost {
            if let Some(path) = self.nodes.path(id) {
                self.dirty(path, What::CONTENT);
                self.drop_node(id);
            }
        }
        if let Some(restart) = &mut restart {
            self.take_watches(restart);
        }
        restart
    }

    /// Sees to it that no directory is known at a place where a new one was met: what was there
    /// goes to where it was met itself, or out of the way until that can be told. If it was met
    /// nowhere it keeps its path, by which others are found to have moved out of it.
    fn make_way(
        &mut self,
        place: &Place,
        places: &FxHashMap<Identity, &Met>,
        reached: &FxHashSet<NodeId>,
    ) {
        let Some(occupant) = self.nodes.child(place.directory, &place.name) else { return };
        let identity = self.nodes.get(occupant).map(|node| node.identity);
        if let Some(met) = identity.and_then(|identity| places.get(&identity)) {
            let parent = self.nodes.by_identity(met.parent);
            let to = match parent.filter(|parent| reached.contains(parent)) {
                Some(directory) => Place { directory, name: met.name.clone() },
                None => Place { directory: ROOT, name: format!(".moving-{}", occupant.0).into() },
            };
            if parent == Some(to.directory) || self.identity_at(&to).is_none() {
                self.relink(occupant, &to);
            }
        }
        self.nodes.detach(place.directory, &place.name);
    }

    /// Lists the directories in one directory.
    fn meet(&mut self, path: &TreePath, recovery: &mut Recovery) {
        let opened = self.root.open_directory(path);
        let opened = opened.and_then(|fd| Ok((identity_of(&stat_fd(&fd)?), fd)));
        let (parent, fd) = match opened {
            Ok((parent, fd)) => {
                self.watch_early(parent, &fd);
                (parent, fd)
            }
            // It is gone, or somewhere else: what is below it counts as not met.
            Err(error) if is_absent(&error) => return,
            // The sweep that follows says so, and is repeated until it can be read.
            Err(_) => return recovery.unread.push(path.clone()),
        };
        let mut buffer = std::mem::take(&mut self.list_buffer);
        let listed = list_directory(&fd, &mut buffer, |name, file_type| {
            if !matches!(file_type, FileType::Directory | FileType::Unknown)
                || path.join(name).is_reserved()
            {
                return Ok(());
            }
            let stat = match stat_at(&fd, name) {
                Ok(stat) => stat,
                Err(rustix::io::Errno::NOENT) => return Ok(()),
                Err(_) => {
                    recovery.unread.push(path.join(name));
                    return Ok(());
                }
            };
            if FileType::from_raw_mode(stat.stx_mode.into()) == FileType::Directory {
                let identity = identity_of(&stat);
                let birth = timestamp(stat.stx_btime);
                let is_mount_root = stat.stx_attributes.contains(StatxAttributes::MOUNT_ROOT);
                let met = Met { identity, birth, is_mount_root, parent, name: name.to_vec() };
                recovery.met.push(met);
                recovery.pending.push(path.join(name));
            }
            Ok(())
        });
        self.list_buffer = buffer;
        if listed.is_err() {
            recovery.unread.push(path.clone());
        }
    }

    /// Journals the rename that brought a known directory to where it was met.
    fn relink(&mut self, node: NodeId, to: &Place) {
        let Some(known) = self.nodes.get(node) else { return };
        let from = Place { directory: known.parent, name: known.name.to_vec() };
        if from == *to {
            return;
        }
        if self.is_also_in_place(node, to) {
            // Met at its own place too, it did not move. A look holds the other one.
            self.looks.push(Look::At(to.clone()));
            return;
        }
        let (Some(from_path), Some(to_path)) = (self.path_of(&from), self.path_of(to)) else {
            return;
        };
        let occupant = self.nodes.child(to.directory, &to.name);
        let nested = self.nodes.is_above(node, to.directory)
            || to_path.starts_with(&from_path)
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
