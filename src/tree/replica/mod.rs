//! A directory that is made equal to an upstream's tree, item by item.
//!
//! What always holds, whatever the upstream sends and whenever the process is killed:
//!
//! - Nothing outside ROOT is touched: every directory is opened from ROOT's descriptor without
//!   following symbolic links, every last name by calls that do not follow either.
//! - A reader sees each file as one complete version or another. A file gets its content and
//!   attributes where nobody looks, and is renamed.
//! - Content that changes comes in a new inode.
//! - An item that failed may be applied again. What must be asked of the upstream because of
//!   it is handed out with the first item that succeeds.
//!
//! The replica's own files are in `ROOT/.mirror`: `lock`, `stage/` for what is not in place
//! yet, `trash/` for directories that are gone but not emptied, and the marker of the last
//! rename.

mod check;
mod directory;
mod error;
mod lacks;
mod links;
mod marker;
mod names;
mod parents;
mod place;
mod regular;
mod renames;
mod special;
mod stages;
mod times;
mod trash;
mod unfinished;

#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::{FlockOperation, Mode, OFlags};
use rustix::io::Errno;

pub use error::{ApplyError, ReplicaError, Room};
pub use marker::Moved;

use super::metadata;
use super::root::{Root, identity_of, open_beneath, stat_at, stat_fd};
use crate::model::path::CONTROL_NAME;
use crate::model::{Kind, TreePath};
use crate::wire::{Content, Item, StageId};
use directory::StagedDirectory;
use marker::Marker;
use names::list;
use parents::Parent;
use stages::StagedFile;
use times::PendingTimes;
use unfinished::Unfinished;

/// See the module.
#[derive(Debug)]
pub struct Replica {
    root: Root,
    /// `.mirror`.
    control: OwnedFd,
    /// Keeps other processes out for as long as it is open.
    _lock: OwnedFd,
    stage: OwnedFd,
    trash: OwnedFd,
    /// ROOT as the parent of what is in it.
    top: Arc<Parent>,
    /// The last other parent.
    cached: Option<Arc<Parent>>,
    staged: Option<StagedDirectory>,
    stages: HashMap<StageId, StagedFile>,
    pending: PendingTimes,
    marker: Marker,
    unfinished: Unfinished,
    /// What must be asked of the upstream.
    owed: Vec<(TreePath, bool)>,
    /// What failed besides the item at hand.
    problems: Vec<Problem>,
    last_number: AtomicU64,
    /// Tells names outside the stage from those of other processes before and after this one.
    run: u64,
    /// Device of ROOT.
    device: (u32, u32),
    /// Owner and group of what this process creates.
    owner: (u32, u32),
    privileged: bool,
    refused: u64,
}

/// What failed and is no item's own failure: a directory that could not be shown, a time that
/// could not be set.
#[derive(Debug)]
pub struct Problem {
    /// Where, and why.
    pub error: ApplyError,
    /// Whether content was lost with it, which must travel again; else a comparison finds what
    /// is missing.
    pub content: bool,
}

/// Where the replica is, compared with where it was opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// There.
    Here,
    /// The path of ROOT leads elsewhere or nowhere: it was renamed, replaced or unmounted.
    Away,
    /// ROOT is there, but what was opened in it as the replica's own is not.
    Stripped,
}

/// What came of an item.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Applied {
    /// Paths to ask the upstream about, and whether content must travel; else the subtree is
    /// compared. Empty but for what is missing here.
    pub needs: Vec<(TreePath, bool)>,
}

impl Replica {
    /// Opens the directory at `root` as a replica and keeps other processes from it.
    ///
    /// Makes `.mirror` if it is not there, removes what an earlier process left in the stage,
    /// and clears the process's umask, so that modes are what they are said to be.
    pub fn open(root: &Path) -> Result<Replica, ReplicaError> {
        let failed = |action| {
            move |source: io::Error| ReplicaError::Io { action, path: root.to_path_buf(), source }
        };
        rustix::process::umask(Mode::empty());
        let owner = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
        let tree = Root::open(root).map_err(failed("open"))?;
        let control = own_directory(tree.as_fd(), CONTROL_NAME, owner)
            .map_err(failed("make the directory .mirror in"))?;
        let lock = lock(&control).map_err(failed("lock"))?;
        let Some(lock) = lock else {
            return Err(ReplicaError::Locked { path: root.to_path_buf() });
        };
        let stage =
            own_directory(control.as_fd(), "stage", owner).map_err(failed("make the stage of"))?;
        let trash =
            own_directory(control.as_fd(), "trash", owner).map_err(failed("make the trash of"))?;
        let marker = Marker::find(control.as_fd()).map_err(failed("read the marker of"))?;
        let stat = stat_fd(&tree).map_err(|error| failed("look at")(error.into()))?;
        let mut run = [0; 8];
        rustix::rand::getrandom(&mut run, rustix::rand::GetRandomFlags::empty())
            .map_err(|error| failed("find a unique name for")(error.into()))?;
        let top = tree.as_fd().try_clone_to_owned().map_err(failed("open"))?;
        let replica = Replica {
            root: tree,
            control,
            _lock: lock,
            stage,
            trash,
            top: Parent::new(b"", top, false),
            cached: None,
            staged: None,
            stages: HashMap::new(),
            pending: PendingTimes::default(),
            marker,
            unfinished: Unfinished::default(),
            owed: Vec::new(),
            problems: Vec::new(),
            last_number: AtomicU64::new(0),
            run: u64::from_le_bytes(run),
            device: (stat.stx_dev_major, stat.stx_dev_minor),
            owner,
            privileged: owner.0 == 0,
            refused: 0,
        };
        replica.empty_stage().map_err(failed("empty the stage of"))?;
        Ok(replica)
    }

    /// Returns the root of the tree.
    pub fn root(&self) -> &Root {
        &self.root
    }

    /// Returns the descriptor of `.mirror`.
    pub fn control(&self) -> BorrowedFd<'_> {
        self.control.as_fd()
    }

    /// Returns how many owners and attributes could not be given, for want of privilege or
    /// because the file system does not hold them.
    pub fn refused(&self) -> u64 {
        self.refused
    }

    /// Looks whether the replica is still where it was opened.
    pub fn whereabouts(&self) -> Place {
        if !self.root.is_in_place().unwrap_or(false) {
            return Place::Away;
        }
        let own = [
            (self.root.as_fd(), CONTROL_NAME, &self.control),
            (self.control.as_fd(), "stage", &self.stage),
            (self.control.as_fd(), "trash", &self.trash),
        ];
        let is_gone = own.iter().any(|(parent, name, opened)| {
            match (stat_at(parent, name.as_bytes()), stat_fd(opened)) {
                (Ok(there), Ok(opened)) => identity_of(&there) != identity_of(&opened),
                (Err(error), _) => error == Errno::NOENT,
                (_, Err(_)) => false,
            }
        });
        if is_gone { Place::Stripped } else { Place::Here }
    }

    /// Returns what can still be written.
    pub fn room(&self) -> io::Result<Room> {
        Room::of(&self.control)
    }

    /// Returns whether the tree has nothing in it but `.mirror` and an empty `lost+found`.
    pub fn is_empty(&self) -> io::Result<bool> {
        for (name, is_directory) in list(self.root.open_directory(&TreePath::root())?)? {
            if name == CONTROL_NAME.as_bytes() {
                continue;
            }
            if name == b"lost+found" && is_directory {
                let flags = OFlags::RDONLY | OFlags::DIRECTORY;
                if list(open_beneath(self.root.as_fd(), &name, flags)?)?.is_empty() {
                    continue;
                }
            }
            return Ok(false);
        }
        Ok(true)
    }

    /// Returns the status of the entry at `path`, be it in place yet or not.
    pub fn stat(&mut self, path: &TreePath) -> Result<Option<rustix::fs::Statx>, ApplyError> {
        Ok(self.end(path)?.stat)
    }

    /// Applies one item, whose raw bytes are `raw`.
    ///
    /// [`Item::Through`], [`Item::Answered`] and [`Item::Digest`] are for the caller and do nothing
    /// here.
    ///
    /// # Errors
    ///
    /// [`ApplyError::is_protocol`] ends the connection; [`ApplyError::is_transient`] concerns
    /// the whole replica; any other one is this entry's problem.
    pub fn apply(&mut self, item: &Item, raw: &[u8]) -> Result<Applied, ApplyError> {
        check::item(item, raw.len())?;
        let mut result = self.apply_checked(item, raw);
        if result.as_ref().is_err_and(|error| !self.privileged && error.is_denied())
            && self.lift_for(item)?
        {
            result = self.apply_checked(item, raw);
        }
        if result.is_err() && matches!(item, Item::Rename { .. } | Item::Exchange { .. }) {
            self.marker.doubt();
        }
        result?;
        Ok(Applied { needs: std::mem::take(&mut self.owed) })
    }

    /// Publishes the staged directory and sets the times of changed directories.
    ///
    /// To be called when there is no more input for now, and before a watermark moves. What
    /// it may have to ask of the upstream comes with the next item, or by
    /// [`Replica::take_needs`]; what fails, by [`Replica::take_problems`].
    pub fn flush(&mut self) {
        self.publish();
        // The tree is anyone's between two bursts; what is kept is good for one.
        self.cached = None;
        self.settle_all();
    }

    /// Takes what a flush, or an item that failed, has to ask of the upstream.
    pub fn take_needs(&mut self) -> Vec<(TreePath, bool)> {
        std::mem::take(&mut self.owed)
    }

    /// Takes what failed besides the items that were applied since the last call.
    pub fn take_problems(&mut self) -> Vec<Problem> {
        std::mem::take(&mut self.problems)
    }

    fn apply_checked(&mut self, item: &Item, raw: &[u8]) -> Result<(), ApplyError> {
        if self.staged.as_ref().is_some_and(|staged| !staged.is_kept_by(item)) {
            self.publish();
        }
        if let (Some(staged), Item::State { path, .. } | Item::Absent { path, .. }) =
            (&mut self.staged, item)
            && staged.holds(path)
        {
            staged.awaited = staged.awaited.saturating_sub(1);
            staged.is_empty = false;
        }
        self.follow_unfinished(item)?;
        match item {
            Item::Rename { sequence, from, to } => self.rename(*sequence, from, to),
            Item::Exchange { sequence, a, b } => self.exchange(*sequence, a, b),
            Item::State { path, entry, content, links, parent_mtime } => {
                let (links, mtime) = (&links[..], *parent_mtime);
                match (&entry.kind, content) {
                    (Kind::Directory, _) => self.put_directory(path, entry, mtime),
                    (_, Content::Linked) => {
                        let first = links.first().unwrap_or(path);
                        self.put_linked(path, entry, first, mtime)
                    }
                    (Kind::Regular { .. }, Content::Inline { .. }) => {
                        self.put_inline(path, entry, raw, links, mtime)
                    }
                    (Kind::Regular { .. }, Content::Keep) => self.keep(path, entry, links, mtime),
                    (Kind::Regular { .. }, Content::Compare { digest }) => {
                        self.compare(path, entry, links, mtime, *digest)
                    }
                    (Kind::Regular { .. }, Content::Staged { stage, digest }) => {
                        self.put_staged(path, entry, (*stage, *digest), links, mtime)
                    }
                    (_, _) => self.put_special(path, entry, content, links, mtime),
                }
            }
            Item::Absent { path, parent_mtime } => self.absent(path, *parent_mtime),
            Item::Names { path, after, names, last } => self.names(path, after, names, *last),
            Item::StageOpen { stage, size, path } => self.stage_open(*stage, *size, path),
            Item::StageData { stage, offset, .. } => self.stage_data(*stage, *offset, raw),
            Item::StageAbort { stage } => {
                self.stage_abort(*stage);
                Ok(())
            }
            Item::Unfinished { path } => self.note_unfinished(path),
            Item::Through { .. } | Item::Answered { .. } | Item::Digest { .. } => Ok(()),
        }
    }

    /// Removes what an earlier process left behind.
    fn empty_stage(&self) -> io::Result<()> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let stage = rustix::fs::openat(&self.stage, ".", flags, Mode::empty())?;
        for (name, _) in list(stage)? {
            self.dispose(self.stage.as_fd(), &name)?;
        }
        Ok(())
    }

    /// Returns a number that was not returned before.
    fn next_number(&self) -> u64 {
        self.last_number.fetch_add(1, Ordering::Relaxed) + 1
    }

    /// Returns `prefix` with an ending that no other process's names have.
    fn unique_name(&self, prefix: &str) -> String {
        format!("{prefix}{:016x}-{:x}", self.run, self.next_number())
    }
}

/// Opens a directory of the replica's own, and makes it if it is not there. Nothing that is
/// created in it inherits anything: no ACL, no group.
fn own_directory(parent: BorrowedFd<'_>, name: &str, owner: (u32, u32)) -> io::Result<OwnedFd> {
    match rustix::fs::mkdirat(parent, name, Mode::RWXU) {
        Ok(()) | Err(Errno::EXIST) => {}
        Err(error) => return Err(error.into()),
    }
    let fd = open_beneath(parent, name.as_bytes(), OFlags::RDONLY | OFlags::DIRECTORY)?;
    metadata::clear_xattrs(&fd)?;
    let stat = stat_fd(&fd)?;
    if stat.stx_gid != owner.1 {
        let group = rustix::fs::Gid::from_raw(owner.1);
        match rustix::fs::fchown(&fd, None, Some(group)) {
            Ok(()) | Err(Errno::PERM) => {}
            Err(error) => return Err(error.into()),
        }
    }
    if metadata::mode_bits(&stat) != 0o700 {
        rustix::fs::fchmod(&fd, Mode::RWXU)?;
    }
    Ok(fd)
}

/// Takes the lock, `None` if another process has it.
fn lock(control: &OwnedFd) -> io::Result<Option<OwnedFd>> {
    // For reading: what is open for writing would keep the file system from being made read-only.
    let flags = OFlags::RDONLY | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let fd = rustix::fs::openat(control, "lock", flags, Mode::RUSR | Mode::WUSR)?;
    match rustix::fs::flock(&fd, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(Some(fd)),
        Err(Errno::WOULDBLOCK) => Ok(None),
        Err(error) => Err(error.into()),
    }
}
