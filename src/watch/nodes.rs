//! The directories that are watched: nodes with parent links, so that a subtree moves in O(1).
//!
//! Invariants: a node's name leads to it in its parent's `children`, unless it is detached (its
//! rename is half seen); no two nodes have one watch descriptor or one identity.

use std::collections::HashMap;

use inotify::WatchDescriptor;
use rustc_hash::{FxHashMap, FxHashSet};

use crate::model::{Identity, Name, Timestamp, TreePath};

/// Number of a directory's node; never used again, so that what was queued for one that is gone
/// does not hit another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct NodeId(pub u64);

/// The root's node, which never goes.
pub(super) const ROOT: NodeId = NodeId(0);

/// The device of directories of which nothing but their place is known. No real one has it.
pub(super) const STRANGE: u64 = u64::MAX;

/// One directory.
#[derive(Debug)]
pub(super) struct Node {
    /// The root is its own parent.
    pub parent: NodeId,
    pub name: Box<[u8]>,
    pub identity: Identity,
    /// When its inode came to be, which tells it from a later one of the same number; all zero
    /// where the file system does not say.
    pub birth: Timestamp,
    /// Whether another file system, or another part of one, is mounted here.
    pub is_mount: bool,
    /// `None` when the kernel had no room for a watch, or took it away.
    pub watch: Option<WatchDescriptor>,
    // The names come from local users, who must not be able to choose collisions: SipHash.
    children: HashMap<Box<[u8]>, NodeId>,
}

/// All directories of a tree.
#[derive(Debug)]
pub(super) struct Nodes {
    nodes: FxHashMap<NodeId, Node>,
    next: u64,
    by_watch: FxHashMap<i32, NodeId>,
    by_identity: FxHashMap<Identity, NodeId>,
    /// Which directories came, moved or went, while that is noted.
    moved: Option<FxHashSet<NodeId>>,
}

impl Nodes {
    /// Returns the table of a tree of which only the root is known.
    pub fn new(root: Identity) -> Self {
        let node = Node {
            parent: ROOT,
            name: Box::default(),
            identity: root,
            birth: Timestamp::default(),
            is_mount: false,
            watch: None,
            children: HashMap::new(),
        };
        Nodes {
            nodes: FxHashMap::from_iter([(ROOT, node)]),
            next: 1,
            by_watch: FxHashMap::default(),
            by_identity: FxHashMap::from_iter([(root, ROOT)]),
            moved: None,
        }
    }

    pub fn get(&self, id: NodeId) -> Option<&Node> {
        self.nodes.get(&id)
    }

    fn get_mut(&mut self, id: NodeId) -> Option<&mut Node> {
        self.nodes.get_mut(&id)
    }

    pub fn ids(&self) -> impl Iterator<Item = NodeId> {
        self.nodes.keys().copied()
    }

    pub fn by_watch(&self, descriptor: i32) -> Option<NodeId> {
        self.by_watch.get(&descriptor).copied()
    }

    pub fn by_identity(&self, identity: Identity) -> Option<NodeId> {
        self.by_identity.get(&identity).copied()
    }

    pub fn child(&self, parent: NodeId, name: &[u8]) -> Option<NodeId> {
        self.get(parent)?.children.get(name).copied()
    }

    /// Returns the node of the directory at `path`.
    pub fn at(&self, path: &[u8]) -> Option<NodeId> {
        if path.is_empty() {
            return Some(ROOT);
        }
        path.split(|byte| *byte == b'/').try_fold(ROOT, |node, name| self.child(node, name))
    }

    /// Returns the first name on the way to `path` that is not known as a directory.
    pub fn first_unknown(&self, path: &[u8]) -> Option<Place> {
        let mut directory = ROOT;
        for name in path.split(|byte| *byte == b'/') {
            match self.child(directory, name) {
                Some(child) => directory = child,
                None => return Some(Place { directory, name: name.to_vec() }),
            }
        }
        None
    }

    /// Returns the path of a node, `None` if it is gone.
    pub fn path(&self, id: NodeId) -> Option<TreePath> {
        let mut names: Vec<&[u8]> = Vec::new();
        let mut at = id;
        while at != ROOT {
            let node = self.get(at)?;
            names.push(&node.name);
            at = node.parent;
        }
        names.reverse();
        TreePath::new(names.join(&b'/')).ok()
    }

    /// Returns whether `id` is `below` or an ancestor of it.
    pub fn is_above(&self, id: NodeId, below: NodeId) -> bool {
        let mut at = below;
        loop {
            if at == id {
                return true;
            }
            match self.get(at) {
                Some(node) if at != ROOT => at = node.parent,
                _ => return false,
            }
        }
    }

    /// Adds a directory; `identity` must be new, and nothing be known under the name.
    pub fn insert(
        &mut self,
        parent: NodeId,
        name: &[u8],
        identity: Identity,
        birth: Timestamp,
        is_mount: bool,
    ) -> NodeId {
        assert!(!self.by_identity.contains_key(&identity));
        assert!(self.child(parent, name).is_none());
        let name_owned = name.into();
        let (watch, children) = (None, HashMap::new());
        let node = Node { parent, name: name_owned, identity, birth, is_mount, watch, children };
        let id = NodeId(self.next);
        self.note_moved(id);
        self.next += 1;
        self.nodes.insert(id, node);
        self.by_identity.insert(identity, id);
        if let Some(parent) = self.get_mut(parent) {
            parent.children.insert(name.into(), id);
        }
        id
    }

    pub fn set_watch(&mut self, id: NodeId, watch: WatchDescriptor) {
        let descriptor = watch.get_watch_descriptor_id();
        assert!(self.by_watch.get(&descriptor).is_none_or(|owner| *owner == id));
        if let Some(node) = self.get_mut(id) {
            node.watch = Some(watch);
            self.by_watch.insert(descriptor, id);
        }
    }

    /// Notes when the root's inode came to be.
    pub fn set_root_birth(&mut self, birth: Timestamp) {
        if let Some(root) = self.get_mut(ROOT) {
            root.birth = birth;
        }
    }

    /// Forgets a watch that the kernel took away.
    pub fn forget_watch(&mut self, descriptor: i32) {
        let id = self.by_watch.remove(&descriptor);
        if let Some(node) = id.and_then(|id| self.get_mut(id)) {
            node.watch = None;
        }
    }

    /// Begins or ends to note which directories come, move or go, and returns those noted.
    pub fn watch_moves(&mut self, on: bool) -> FxHashSet<NodeId> {
        let moved = self.moved.take();
        self.moved = on.then(FxHashSet::default);
        moved.unwrap_or_default()
    }

    fn note_moved(&mut self, id: NodeId) {
        if let Some(moved) = &mut self.moved {
            moved.insert(id);
        }
    }

    /// Gives a directory an identity that no other has: what has its own now is another one.
    pub fn estrange(&mut self, id: NodeId) {
        let Some(node) = self.nodes.get_mut(&id) else { return };
        self.by_identity.remove(&node.identity);
        node.identity = Identity { device: STRANGE, inode: id.0 };
        self.by_identity.insert(node.identity, id);
    }

    /// Gives a directory the identity that it has now. Returns whether no other has it.
    pub fn identify(&mut self, id: NodeId, identity: Identity) -> bool {
        if self.by_identity.contains_key(&identity) {
            return false;
        }
        let Some(node) = self.nodes.get_mut(&id) else { return false };
        self.by_identity.remove(&node.identity);
        node.identity = identity;
        self.by_identity.insert(identity, id);
        true
    }

    /// Takes a directory from its name; it keeps its path until it is attached or dropped.
    pub fn detach(&mut self, parent: NodeId, name: &[u8]) -> Option<NodeId> {
        self.get_mut(parent)?.children.remove(name)
    }

    /// Puts a detached directory at another name, at which nothing is known.
    pub fn attach(&mut self, id: NodeId, parent: NodeId, name: &[u8]) {
        assert!(!self.is_above(id, parent), "a directory below itself");
        assert!(self.child(parent, name).is_none());
        self.note_moved(id);
        if let Some(node) = self.get_mut(id) {
            node.parent = parent;
            node.name = name.into();
        }
        if let Some(parent) = self.get_mut(parent) {
            parent.children.insert(name.into(), id);
        }
    }

    /// Forgets a directory and all below it. Returns the watches that must be removed and the
    /// directories that are gone.
    pub fn remove(&mut self, id: NodeId) -> (Vec<WatchDescriptor>, Vec<(NodeId, Identity)>) {
        assert!(id != ROOT);
        let (mut watches, mut gone) = (Vec::new(), Vec::new());
        if let Some((parent, name)) = self.get(id).map(|node| (node.parent, node.name.clone()))
            && self.child(parent, &name) == Some(id)
        {
            self.detach(parent, &name);
        }
        let mut pending = vec![id];
        while let Some(id) = pending.pop() {
            let Some(node) = self.nodes.remove(&id) else { continue };
            self.note_moved(id);
            pending.extend(node.children.values());
            self.by_identity.remove(&node.identity);
            if let Some(watch) = node.watch {
                self.by_watch.remove(&watch.get_watch_descriptor_id());
                watches.push(watch);
            }
            gone.push((id, node.identity));
        }
        (watches, gone)
    }

    /// Returns the names and nodes below a directory.
    pub fn children(&self, id: NodeId) -> impl Iterator<Item = (&[u8], NodeId)> {
        let children = self.get(id).map(|node| &node.children);
        children.into_iter().flatten().map(|(name, id)| (&name[..], *id))
    }
}

/// A name in a directory.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Place {
    pub directory: NodeId,
    pub name: Name,
}
