//! Both ends' trees, in memory: one that users change and that notes what they did, and one that
//! items are applied to.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};

use mirror::model::limits::INLINE_BYTES_MAX;
use mirror::model::survey::{DirectoryHasher, walk_order};
use mirror::model::*;
use mirror::session::ReceiverState;
use mirror::wire::*;

/// What is at a path: a directory, or a version of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Node {
    Directory,
    File { version: u64, changed_at: i64 },
}

/// A tree by its paths, the root left out.
#[derive(Debug, Clone, Default)]
pub struct Tree(pub BTreeMap<TreePath, Node>);

impl Tree {
    pub fn get(&self, path: &TreePath) -> Option<Node> {
        if path.is_root() { Some(Node::Directory) } else { self.0.get(path).copied() }
    }

    pub fn take(&mut self, path: &TreePath) -> Vec<(TreePath, Node)> {
        let below: Vec<TreePath> =
            self.0.keys().filter(|known| known.starts_with(path)).cloned().collect();
        below.into_iter().filter_map(|key| self.0.remove_entry(&key)).collect()
    }

    pub fn put(&mut self, taken: Vec<(TreePath, Node)>, from: &TreePath, to: &TreePath) {
        for (path, node) in taken {
            if let Some(path) = path.rebase(from, to) {
                self.0.insert(path, node);
            }
        }
    }

    pub fn children(&self, path: &TreePath) -> Vec<Name> {
        let inside = |known: &&TreePath| known.parent().as_ref() == Some(path);
        self.0.keys().filter(inside).filter_map(|known| known.name().map(<[u8]>::to_vec)).collect()
    }

    /// The directories of a subtree, in the order of a walk.
    pub fn directories(&self, path: &TreePath) -> VecDeque<TreePath> {
        let is_directory = |(_, node): &(&TreePath, &Node)| **node == Node::Directory;
        let below = self.0.iter().filter(is_directory).map(|(path, _)| path.clone());
        let mut all: Vec<TreePath> = below.chain([TreePath::root()]).collect();
        all.retain(|known| known.starts_with(path));
        all.sort_by(|one, other| walk_order(one.as_bytes(), other.as_bytes()));
        all.into()
    }

    /// Digests a directory, and shows the files in it.
    pub fn survey(
        &self,
        path: TreePath,
        mut glance: impl FnMut(&TreePath, &[u8], Glance),
    ) -> Surveyed {
        let metadata =
            Metadata { mode: 0, uid: 0, gid: 0, mtime: Timestamp::default(), xattrs: Vec::new() };
        let mut hasher = DirectoryHasher::new(Lacks::NOTHING, metadata.clone());
        let names = self.children(&path);
        for name in &names {
            match self.get(&path.join(name)) {
                Some(Node::File { version, changed_at }) => {
                    let kind = Kind::Regular { size: size_of(version) };
                    hasher.entry(name, &kind, metadata.clone());
                    let ctime = Timestamp { seconds: changed_at, nanoseconds: 0 };
                    glance(&path, name, Glance { linked: None, ctime, is_regular: true });
                }
                _ => hasher.directory(name),
            }
        }
        Surveyed { path, digest: Some(hasher.finish()), entries: names.len() as u64 }
    }

    /// Everything but when it changed.
    pub fn content(&self) -> BTreeMap<TreePath, Option<u64>> {
        let version = |node: &Node| match node {
            Node::Directory => None,
            Node::File { version, .. } => Some(*version),
        };
        self.0.iter().map(|(path, node)| (path.clone(), version(node))).collect()
    }
}

/// The source: a tree, events that were not drained, a journal.
pub struct Home {
    pub tree: Tree,
    pub events: VecDeque<Change>,
    pub journal: Vec<Record>,
    pub renames: RenameIndex,
    pub version: u64,
    /// Versions that were moved with a directory above them, which does not change their time.
    pub carried: BTreeSet<u64>,
}

impl Home {
    pub fn dirty(&mut self, path: &TreePath, what: What) {
        self.events.push_back(Change::Dirty { path: path.clone(), what });
    }

    pub fn dirty_below(&mut self, path: &TreePath) {
        let below: Vec<TreePath> =
            self.tree.0.keys().filter(|known| known.starts_with(path)).cloned().collect();
        for path in below {
            self.dirty(&path, What::CONTENT);
        }
    }

    pub fn head(&self) -> Sequence {
        Sequence(self.journal.len() as u64)
    }

    pub fn drain(&mut self) {
        while let Some(change) = self.events.pop_front() {
            let sequence = self.head().next();
            self.renames.push(&Record::new(sequence, change.clone()));
            self.journal.push(Record::new(sequence, change));
        }
    }

    /// Lets users change the tree while nobody watches. What differs at a path afterwards, or may
    /// differ from what a downstream has there, has a time of change that says so: to find what was
    /// moved with a directory takes more than times.
    pub fn operate_unseen(&mut self, random: &mut fastrand::Rng, now: i64) {
        self.drain();
        let before = self.tree.content();
        for _ in 0..random.usize(..12) {
            self.operate(random, now);
        }
        self.events.clear();
        let carried = std::mem::take(&mut self.carried);
        for (path, node) in &mut self.tree.0 {
            if let Node::File { version, changed_at } = node
                && (before.get(path) != Some(&Some(*version)) || carried.contains(version))
            {
                *changed_at = now;
            }
        }
    }

    /// Puts what was taken at `from` where it is moved to. A file's time of change tells of that,
    /// and those of the files below a directory do not.
    fn put_moved(
        &mut self,
        taken: Vec<(TreePath, Node)>,
        from: &TreePath,
        to: &TreePath,
        now: i64,
    ) {
        for (path, node) in &taken {
            if let (Node::File { version, .. }, true) = (node, path != from) {
                self.carried.insert(*version);
            }
        }
        self.tree.put(taken, from, to);
        if let Some(Node::File { changed_at, .. }) = self.tree.0.get_mut(to) {
            *changed_at = now;
        }
    }

    pub fn operate(&mut self, random: &mut fastrand::Rng, now: i64) {
        let mut directories: Vec<TreePath> = vec![TreePath::root()];
        let is_directory = |(_, node): &(&TreePath, &Node)| **node == Node::Directory;
        directories.extend(self.tree.0.iter().filter(is_directory).map(|(path, _)| path.clone()));
        let place = |random: &mut fastrand::Rng| {
            let directory = random.choice(&directories).unwrap();
            directory.join(&[*random.choice(b"abc").unwrap()])
        };
        let path = place(random);
        let there = self.tree.get(&path);
        if path.names().count() > 5 {
            return;
        }
        self.version += 1;
        let file = Node::File { version: self.version, changed_at: now };
        match random.u8(..100) {
            0..30 if there != Some(Node::Directory) => {
                self.tree.0.insert(path.clone(), file);
                self.dirty(&path, What::CONTENT);
            }
            30..50 if there.is_none() => {
                self.tree.0.insert(path.clone(), Node::Directory);
                self.tree.0.insert(path.join(b"a"), file);
                self.dirty_below(&path);
            }
            50..62 if there.is_some() => {
                self.tree.take(&path);
                self.dirty(&path, What::CONTENT);
            }
            62..92 => {
                let to = place(random);
                let target = self.tree.get(&to);
                let fits = match (there, target) {
                    (Some(_), None) => true,
                    (Some(Node::File { .. }), Some(Node::File { .. })) => true,
                    (Some(Node::Directory), Some(Node::Directory)) => {
                        self.tree.children(&to).is_empty()
                    }
                    _ => false,
                };
                if !fits || to.is_related(&path) {
                    return;
                }
                self.tree.take(&to);
                let taken = self.tree.take(&path);
                self.put_moved(taken, &path, &to, now);
                self.events.push_back(Change::Rename { from: path.clone(), to: to.clone() });
                self.dirty(&path, What::CONTENT);
                self.dirty(&to, What::ATTRIBUTES);
            }
            92.. => {
                let other = place(random);
                let both = there.is_some() && self.tree.get(&other).is_some();
                if !both || other.is_related(&path) {
                    return;
                }
                let (a, b) = (self.tree.take(&path), self.tree.take(&other));
                self.put_moved(a, &path, &other, now);
                self.put_moved(b, &other, &path, now);
                self.events.push_back(Change::Exchange { a: path.clone(), b: other.clone() });
                self.dirty(&path, What::CONTENT);
                self.dirty(&other, What::CONTENT);
            }
            _ => {}
        }
    }
}

/// The replica: a tree and what outlives connections.
pub struct Replica {
    pub tree: Tree,
    pub state: ReceiverState,
    /// What came of each file on its way, where it was to go when it began.
    pub stages: HashMap<StageId, (TreePath, Option<u64>)>,
}

impl Replica {
    pub fn apply(&mut self, item: &Item, raw: &[u8]) -> Vec<(TreePath, bool)> {
        let mut needs = Vec::new();
        match item {
            Item::Rename { from, to, .. } => {
                let taken = self.tree.take(from);
                if taken.is_empty() {
                    return vec![(to.clone(), true)];
                }
                self.make_parents(to, &mut needs);
                self.tree.take(to);
                self.tree.put(taken, from, to);
            }
            Item::Exchange { a, b, .. } => {
                let (one, two) = (self.tree.take(a), self.tree.take(b));
                needs.extend(one.is_empty().then(|| (b.clone(), true)));
                needs.extend(two.is_empty().then(|| (a.clone(), true)));
                self.make_parents(a, &mut needs);
                self.make_parents(b, &mut needs);
                self.tree.put(one, a, b);
                self.tree.put(two, b, a);
            }
            Item::State { path, entry, content, .. } => {
                if path.is_root() {
                    return needs;
                }
                self.make_parents(path, &mut needs);
                if entry.is_directory() {
                    if self.tree.get(path) != Some(Node::Directory) {
                        self.tree.0.insert(path.clone(), Node::Directory);
                    }
                    return needs;
                }
                let own = match self.tree.get(path) {
                    Some(Node::File { version, .. }) => {
                        let size = size_of(version);
                        Some(version).filter(|_| entry.kind == Kind::Regular { size })
                    }
                    _ => None,
                };
                let version = match content {
                    Content::Inline { .. } => Some(number(raw)),
                    Content::Staged { stage, .. } => {
                        self.stages.remove(stage).and_then(|(_, version)| version)
                    }
                    Content::Keep | Content::Compare { digest: None } | Content::Linked => own,
                    Content::Compare { digest: Some(digest) } => {
                        own.filter(|version| digest[..8] == version.to_le_bytes())
                    }
                };
                match version {
                    Some(version) => {
                        self.tree.take(path);
                        self.tree.0.insert(path.clone(), Node::File { version, changed_at: 0 });
                    }
                    None => needs.push((path.clone(), true)),
                }
            }
            Item::Absent { path, .. } => _ = self.tree.take(path),
            Item::Names { path, names, .. } => {
                let names: BTreeSet<&[u8]> = names.iter().map(|name| &name[..]).collect();
                for name in self.tree.children(path) {
                    if !names.contains(&name[..]) {
                        self.tree.take(&path.join(&name));
                    }
                }
            }
            Item::StageOpen { stage, path, .. } => {
                self.stages.insert(*stage, (path.clone(), None));
            }
            Item::StageData { stage, .. } => {
                if let Some((_, version)) = self.stages.get_mut(stage) {
                    *version = Some(number(raw));
                }
            }
            Item::StageAbort { stage } => _ = self.stages.remove(stage),
            Item::Through { .. }
            | Item::Answered { .. }
            | Item::Digest { .. }
            | Item::Unfinished { .. } => {}
        }
        needs
    }

    pub fn make_parents(&mut self, path: &TreePath, needs: &mut Vec<(TreePath, bool)>) {
        let Some(parent) = path.parent() else { return };
        if self.tree.get(&parent) == Some(Node::Directory) {
            return;
        }
        self.make_parents(&parent, needs);
        self.tree.take(&parent);
        self.tree.0.insert(parent.clone(), Node::Directory);
        needs.push((parent, false));
    }
}

/// Every fifth version is big; that is all by which versions can be told apart but for content.
pub fn size_of(version: u64) -> u64 {
    if version.is_multiple_of(5) { INLINE_BYTES_MAX as u64 + 1 } else { 8 }
}

pub fn number(raw: &[u8]) -> u64 {
    raw.first_chunk().map_or(0, |bytes| u64::from_le_bytes(*bytes))
}
