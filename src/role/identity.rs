//! Who a node is, kept in its state directory: the tree's id, the node's, and which root.

use std::os::fd::AsFd;
use std::path::Path;

use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};

use super::RoleError;
use crate::journal::{FileError, state_file};
use crate::model::path::CONTROL_NAME;
use crate::model::{Epoch, EpochId, NodeId, TreeId};
use crate::tree::Root;
use crate::tree::root::stat_fd;

/// A source's identity.
#[derive(Debug, Clone, Copy)]
pub struct SourceIdentity {
    /// The tree that it is the origin of.
    pub tree: TreeId,
    /// Itself.
    pub node: NodeId,
    /// The epoch that begins now.
    pub epoch: EpochId,
    root: RootIdentity,
}

/// The identity as it is stored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Stored {
    tree: TreeId,
    node: NodeId,
    epoch_counter: u64,
    root: RootIdentity,
}

/// What tells a root from another directory at the same path, across restarts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct RootIdentity {
    file_system: u64,
    inode: u64,
    birth_seconds: i64,
    birth_nanoseconds: u32,
}

const KIND: &str = "tree";
const VERSION: u16 = 1;

impl SourceIdentity {
    /// Loads the identity from the state directory, makes it at the first start, and counts the
    /// epoch on.
    ///
    /// # Errors
    ///
    /// If the directory at the root's path is another one than at the last start, unless
    /// `accept_root`: replicas would take what it lacks for removals.
    pub fn load(state_dir: &Path, root: &Root, accept_root: bool) -> Result<Self, RoleError> {
        let fail =
            |error: &dyn std::fmt::Display| RoleError(format!("{}: {error}", state_dir.display()));
        let here = root_identity(root).map_err(|error| fail(&error))?;
        let before: Option<Stored> =
            state_file::load(state_dir, KIND, VERSION).map_err(|error| {
                RoleError(error.with_advice(
                    "put it back from a copy, or remove it: then this is a new tree, which each \
                     of its sinks must be started with --adopt to follow",
                ))
            })?;
        let mut stored = match before {
            Some(stored) if stored.root != here && !accept_root => {
                return Err(RoleError(format!(
                    "{}: not the directory that was mirrored at the last start (it was replaced, \
                     or its file system is not mounted); put it back, or start with --accept-root \
                     to mirror what is there now",
                    root.path().display()
                )));
            }
            Some(stored) => stored,
            None => Stored {
                tree: TreeId(random_u128()?),
                node: NodeId(random_u128()?),
                epoch_counter: 0,
                root: here,
            },
        };
        stored.epoch_counter += 1;
        stored.root = here;
        let random = random_u128()? as u64;
        let epoch = EpochId { counter: stored.epoch_counter, random };
        let (tree, node, root) = (stored.tree, stored.node, stored.root);
        let identity = SourceIdentity { tree, node, epoch, root };
        identity.save(state_dir)?;
        Ok(identity)
    }

    /// Compares what the identity's file said with what the journal beside it is of, says what
    /// was lost, and counts the epoch above all that may have been before.
    ///
    /// # Errors
    ///
    /// If a higher epoch cannot be saved.
    pub fn agree(
        &mut self,
        state_dir: &Path,
        journal: Option<(TreeId, Epoch)>,
    ) -> Result<(), RoleError> {
        let file = state_dir.join(KIND);
        match journal {
            None if self.epoch.counter > 1 => tracing::warn!(
                "{}: there is no journal any more; another is begun, and replicas are compared",
                state_dir.join("journal").display()
            ),
            Some((tree, _)) if tree != self.tree => tracing::warn!(
                "{}: not of the tree that the journal beside it is of, or made anew; replicas of \
                 that tree must be started with --adopt to follow this one",
                file.display()
            ),
            Some((_, epoch)) if epoch.id.counter >= self.epoch.counter => {
                tracing::warn!(
                    "{}: older than the journal beside it; epochs are counted on from {}",
                    file.display(),
                    epoch.id.counter
                );
                self.epoch.counter = epoch.id.counter + 1;
                self.save(state_dir)?;
            }
            _ => {}
        }
        Ok(())
    }

    fn save(&self, state_dir: &Path) -> Result<(), RoleError> {
        let &SourceIdentity { tree, node, epoch, root } = self;
        let stored = Stored { tree, node, epoch_counter: epoch.counter, root };
        state_file::save(state_dir, KIND, VERSION, &stored)
            .map_err(|error| RoleError(error.to_string()))
    }
}

/// Loads or makes the id of a sink's node.
pub(super) fn load_node(state_dir: &Path) -> Result<NodeId, RoleError> {
    let failed = |error: FileError| {
        RoleError(error.with_advice("remove it, and another is made, which costs nothing"))
    };
    if let Some(node) = state_file::load(state_dir, "node", VERSION).map_err(failed)? {
        return Ok(node);
    }
    let node = NodeId(random_u128()?);
    state_file::save(state_dir, "node", VERSION, &node).map_err(failed)?;
    tracing::info!("{}: this node is {node} from now on", state_dir.join("node").display());
    Ok(node)
}

/// Locks a source's root, or a sink's, against a second role, without writing to it.
pub(super) fn lock(root: &Root, path: &Path) -> Result<(), RoleError> {
    match flock(root, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(()),
        Err(rustix::io::Errno::WOULDBLOCK) => Err(RoleError(format!(
            "{}: another process serves or replicates this tree; stop it first",
            path.display()
        ))),
        // A file system without locks: the state directory's lock must do.
        Err(_) => Ok(()),
    }
}

/// Keeps a directory for a sink while this value lives.
#[derive(Debug)]
pub struct Claim {
    _root: Root,
}

impl Claim {
    /// Claims `path`, an absolute and real path, for a sink.
    ///
    /// # Errors
    ///
    /// If a process serves or replicates it, or a directory above it: of a tree that is served
    /// nothing may be written by us, and what is inside a replica is the upstream's to change.
    /// A role further down is not noticed: to find one would take a walk through the tree.
    pub fn of_sink(path: &Path) -> Result<Claim, RoleError> {
        for above in path.ancestors().skip(1) {
            // Only what others have locked for themselves says no; what cannot be opened cannot
            // be asked. The lock ends with the descriptor.
            let Ok(directory) = Root::open(above) else { continue };
            if is_locked(&directory) {
                return Err(RoleError(format!(
                    "{}: it lies inside {}, which another process serves or replicates; choose a \
                     directory outside of it, or stop that process first",
                    path.display(),
                    above.display()
                )));
            }
        }
        let fail = |error| RoleError(format!("{}: cannot open it: {error}", path.display()));
        let root = Root::open(path).map_err(fail)?;
        lock(&root, path)?;
        Ok(Claim { _root: root })
    }
}

/// Refuses to serve a running replica or a part of one: it is its sink's to change, and a tree
/// would become its own upstream if it led back.
pub fn refuse_replica(path: &Path) -> Result<(), RoleError> {
    for replica in path.ancestors() {
        let Ok(lock) = std::fs::File::open(replica.join(CONTROL_NAME).join("lock")) else {
            continue;
        };
        if is_locked(&lock) {
            return Err(RoleError(format!(
                "{}: {} is a replica that another process keeps; let sinks follow its source \
                 itself, or stop that process first",
                path.display(),
                replica.display()
            )));
        }
    }
    Ok(())
}

/// Returns whether another descriptor holds the lock.
fn is_locked(descriptor: impl AsFd) -> bool {
    let locked = flock(descriptor, FlockOperation::NonBlockingLockShared);
    locked == Err(rustix::io::Errno::WOULDBLOCK)
}

/// Returns the id of this boot of the machine.
pub(super) fn boot_id() -> u128 {
    let text = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    u128::from_str_radix(&text.trim().replace('-', ""), 16).unwrap_or_default()
}

fn root_identity(root: &Root) -> std::io::Result<RootIdentity> {
    let stat = stat_fd(root)?;
    Ok(RootIdentity {
        // Unlike a device number it stays the same when the machine boots again.
        file_system: rustix::fs::fstatvfs(root)?.f_fsid,
        inode: stat.stx_ino,
        birth_seconds: stat.stx_btime.tv_sec,
        birth_nanoseconds: stat.stx_btime.tv_nsec,
    })
}

fn random_u128() -> Result<u128, RoleError> {
    let mut bytes = [0; 16];
    let mut filled = 0;
    while filled < bytes.len() {
        let flags = rustix::rand::GetRandomFlags::empty();
        filled += rustix::rand::getrandom(&mut bytes[filled..], flags)
            .map_err(|error| RoleError(format!("no random numbers: {error}")))?;
    }
    Ok(u128::from_le_bytes(bytes))
}
