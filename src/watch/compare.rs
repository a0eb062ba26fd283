//! Comparing a directory with its listing in the catalog: what differs is told.

use std::cmp::Ordering;
use std::time::Instant;

use rustc_hash::FxHashSet;
use rustix::fs::FileType;

use super::events::is_reserved;
use super::keep::stamp;
use super::moves::{End, FileKey};
use super::nodes::{NodeId, Place};
use super::restart::Restart;
use super::scan::{Look, is_directory};
use super::{Watch, wall_clock};
use crate::journal::catalog::{Listing, Stamp};
use crate::model::{Identity, Name, Timestamp, What};
use crate::tree::reader::{is_absent, list_directory};
use crate::tree::root::{identity_of, stat_at, stat_fd};

/// An entry as it is found.
struct Found {
    name: Name,
    identity: Identity,
    links: u32,
    stamp: Stamp,
    is_directory: bool,
}

impl Watch {
    /// Compares a directory with its listing, for what changed while nobody watched. What it finds
    /// are hints as events are, so nothing has to be checked; those of files that moved are kept
    /// back until both ends are known.
    pub(super) fn compare(&mut self, id: NodeId) {
        if self.held.keys().any(|held| self.nodes.is_above(*held, id)) {
            return; // When it is back.
        }
        let was_missed = self.unread.remove(&id).is_some();
        let since = Timestamp::default();
        let known = self.nodes.get(id).map(|node| node.identity);
        let (Some(path), Some(identity)) = (self.nodes.path(id), known) else { return };
        let opened = self.root.open_directory(&path).and_then(|fd| Ok((stat_fd(&fd)?, fd)));
        let (fd, own) = match opened {
            Ok((own, fd)) if identity_of(&own) == identity => (fd, own),
            Err(error) if !is_absent(&error) => {
                return self.miss_changes(id, since, was_missed, &path, &error);
            }
            // It is on its way: an event or the look tells where it is, and it is compared there.
            Ok(_) | Err(_) => {
                self.sweeps.push_back((id, since));
                return self.look_again(id);
            }
        };
        let now = wall_clock();
        let (mut found, mut unread) = (Vec::new(), Vec::new());
        let mut buffer = std::mem::take(&mut self.list_buffer);
        let listed = list_directory(&fd, &mut buffer, |name, _| {
            match stat_at(&fd, name) {
                Ok(stat) => found.push(Found {
                    name: name.to_vec(),
                    identity: identity_of(&stat),
                    links: stat.stx_nlink,
                    stamp: stamp(&stat, now),
                    is_directory: is_directory(&stat),
                }),
                Err(rustix::io::Errno::NOENT) => {}
                Err(_) => unread.push(name.to_vec()),
            }
            Ok(())
        });
        self.list_buffer = buffer;
        if let Some(hook) = &mut self.on_listed {
            hook();
        }
        if let Err(error) = listed {
            return self.miss_changes(id, since, was_missed, &path, &error);
        }
        self.uncompared.remove(&id);
        let listing = self.known_listing(id);
        let own = stamp(&own, now);
        match &listing {
            None => {
                self.touch(id);
                self.dirty(path, What::CONTENT);
            }
            // Each name is told for itself.
            Some(listing) if !is_same(&listing.own, &own) => {
                self.touch(id);
                self.dirty(path, What::ATTRIBUTES);
            }
            Some(_) => {}
        }
        for name in &unread {
            let place = Place { directory: id, name: name.clone() };
            self.dirty_place(&place, What::CONTENT);
            self.looks.push(Look::At(place));
        }
        found.retain(|entry| !is_reserved(&Place { directory: id, name: entry.name.clone() }));
        found.sort_unstable_by(|one, other| one.name.cmp(&other.name));
        self.compare_directories(id, &found);
        for entry in found.iter().filter(|entry| entry.links > 1 && !entry.is_directory) {
            let place = Place { directory: id, name: entry.name.clone() };
            self.links.note(&place, entry.identity, entry.links);
        }
        self.compare_files(id, found, &unread, listing);
    }

    /// Returns what the catalog has of a directory, `None` if it has nothing.
    fn known_listing(&self, id: NodeId) -> Option<Listing> {
        let keeper = self.keeper.as_ref()?;
        let extent = keeper.listings.get(&id)?;
        match keeper.current.as_ref()?.listing(*extent) {
            Ok(listing) => Some(listing),
            Err(error) => {
                // It was sound when it was opened. What it does not say is told.
                tracing::error!("{error}");
                None
            }
        }
    }

    fn compare_directories(&mut self, id: NodeId, found: &[Found]) {
        let is_there = |name: &[u8]| {
            let at = found.binary_search_by(|entry| entry.name[..].cmp(name));
            at.is_ok_and(|at| found[at].is_directory)
        };
        let missing = self.nodes.children(id).map(|(name, _)| name).filter(|name| !is_there(name));
        let missing = missing.map(|name| Look::At(Place { directory: id, name: name.to_vec() }));
        self.looks.extend(missing.collect::<Vec<_>>());
        for entry in found.iter().filter(|entry| entry.is_directory) {
            let known = self.nodes.child(id, &entry.name).and_then(|node| self.nodes.get(node));
            if known.is_none_or(|known| known.identity != entry.identity) {
                self.looks.push(Look::At(Place { directory: id, name: entry.name.clone() }));
            }
        }
    }

    fn compare_files(
        &mut self,
        id: NodeId,
        found: Vec<Found>,
        unread: &[Name],
        listing: Option<Listing>,
    ) {
        let restart = self.restart.take();
        let is_told = restart.as_ref().is_some_and(|restart| restart.is_doubtful(id));
        let mut comparison = Comparison {
            // What no catalog says, and what the journal spoke of since, the replicas have mostly.
            what_is_new: if listing.is_some() && !is_told { What::CONTENT } else { What::COMPARE },
            restart,
            told: FxHashSet::default(),
        };
        let listed = listing.map(|listing| listing.files).unwrap_or_default();
        let mut listed = listed.into_iter().filter(|file| !unread.contains(&file.name)).peekable();
        let mut found = found.into_iter().filter(|entry| !entry.is_directory).peekable();
        loop {
            let order = match (listed.peek(), found.peek()) {
                (None, None) => break,
                (Some(_), None) => Ordering::Less,
                (None, Some(_)) => Ordering::Greater,
                (Some(listed), Some(found)) => listed.name.cmp(&found.name),
            };
            let before = if order.is_le() { listed.next() } else { None };
            let now = if order.is_ge() { found.next() } else { None };
            let name = before.as_ref().map(|listed| &listed.name);
            let Some(name) = name.or(now.as_ref().map(|found| &found.name)) else { break };
            let place = Place { directory: id, name: name.clone() };
            self.compare_file(place, before.map(|it| it.stamp), now, &mut comparison);
        }
        self.restart = comparison.restart;
    }

    /// Tells what differs at one name.
    fn compare_file(
        &mut self,
        place: Place,
        before: Option<Stamp>,
        now: Option<Found>,
        comparison: &mut Comparison,
    ) {
        let Comparison { what_is_new, restart, told } = comparison;
        if let (Some(before), Some(now)) = (&before, &now)
            && is_same(before, &now.stamp)
        {
            return;
        }
        self.touch(place.directory);
        // All names of a file at once, as in a sweep.
        if let Some(now) = &now
            && now.links > 1
            && !told.insert(now.identity)
            && before.is_none()
        {
            return;
        }
        if let (Some(before), Some(now)) = (&before, &now)
            && is_same_file(before, &now.stamp)
        {
            let is_content = !is_regular(before)
                || (before.size, before.mtime) != (now.stamp.size, now.stamp.mtime);
            let what = if is_content { *what_is_new } else { What::COMPARE };
            return self.tell_compared(&place, &now.stamp, what);
        }
        let device = self.nodes.get(place.directory).map_or(0, |node| node.identity.device);
        // A directory that moved there is there by a rename, which left nothing of the file.
        let is_covered = self.nodes.child(place.directory, &place.name).is_some();
        let is_missed = before.is_none_or(|before| {
            let file = key_of(&before, device).zip(restart.as_mut()).filter(|_| !is_covered);
            file.is_some_and(|(file, restart)| restart.misses(&place, file))
        });
        let is_met = now.as_ref().is_none_or(|now| {
            let file = key_of(&now.stamp, now.identity.device).zip(restart.as_mut());
            file.is_some_and(|(file, restart)| restart.meets(&place, *what_is_new, file))
        });
        if !is_missed || !is_met {
            let what = if before.is_some() || now.is_none() { What::CONTENT } else { *what_is_new };
            self.tell_compared(&place, &now.map_or(Stamp::default(), |now| now.stamp), what);
        }
    }

    fn tell_compared(&mut self, place: &Place, now: &Stamp, what: What) {
        // Written this moment, it may be half written: an event says when it is whole.
        let is_warm = is_regular(now) && now.mtime >= wall_clock().earlier_by_seconds(1);
        if !is_warm || !self.unsettled.touch(place.clone(), Instant::now()) {
            self.dirty_place(place, what);
        }
    }
}

/// What is the same for all names of a directory that is compared.
struct Comparison {
    /// What is told of a file that the catalog does not have, or has with another content.
    what_is_new: What,
    /// Where files that moved are remembered, while that is done.
    restart: Option<Restart>,
    /// Files of several names that were told of.
    told: FxHashSet<Identity>,
}

/// Returns whether nothing can have changed between the two stamps of one name.
fn is_same(before: &Stamp, now: &Stamp) -> bool {
    // Whether it was warm when it was listed matters; now, an event tells of what comes.
    *before == Stamp { is_warm: false, ..*now }
}

fn is_same_file(before: &Stamp, now: &Stamp) -> bool {
    const KIND: u32 = 0o170_000;
    (before.inode, before.birth, before.mode & KIND) == (now.inode, now.birth, now.mode & KIND)
}

fn is_regular(stamp: &Stamp) -> bool {
    FileType::from_raw_mode(stamp.mode) == FileType::RegularFile
}

/// Returns what a file is known by elsewhere: `None` for what is not worth it, has other names, or
/// is not told from another of the same inode number.
pub(super) fn key_of(stamp: &Stamp, device: u64) -> Option<(FileKey, End<()>)> {
    let is_known = is_regular(stamp) && !stamp.is_linked && stamp.birth != Timestamp::default();
    let identity = Identity { device, inode: stamp.inode };
    let end = End { place: (), size: stamp.size, mtime: stamp.mtime };
    is_known.then_some(((identity, stamp.birth), end))
}
