//! Each rule of the replica, on a real file system.

mod directories;
mod files;
mod kinds;
mod mounts;
mod rename_rules;
mod safety;
mod speed;

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use tempfile::TempDir;

use super::{Applied, ApplyError, Replica};
use crate::model::{Entry, Kind, Metadata, Sequence, Timestamp, TreePath, Xattr};
use crate::wire::{Content, Item, StageId};

/// A replica in a directory of its own.
struct Fixture {
    replica: Replica,
    directory: TempDir,
}

impl Fixture {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let replica = Replica::open(directory.path()).unwrap();
        Fixture { replica, directory }
    }

    /// Ends the replica as a kill would, and opens it again.
    fn reopen(self) -> Self {
        let Fixture { replica, directory } = self;
        drop(replica);
        let replica = Replica::open(directory.path()).unwrap();
        Fixture { replica, directory }
    }

    fn path(&self, path: &str) -> PathBuf {
        self.directory.path().join(path)
    }

    fn apply(&mut self, item: Item, raw: &[u8]) -> Vec<(TreePath, bool)> {
        self.try_apply(item, raw).unwrap().needs
    }

    fn try_apply(&mut self, item: Item, raw: &[u8]) -> Result<Applied, ApplyError> {
        self.replica.apply(&item, raw)
    }

    /// Applies an item that must need nothing.
    fn done(&mut self, item: Item, raw: &[u8]) {
        assert_eq!(self.apply(item, raw), Vec::new());
    }

    fn file(&mut self, at: &str, content: &[u8]) {
        let entry = regular(content.len() as u64);
        self.done(inline(at, entry, content), content);
    }

    fn directory(&mut self, at: &str) {
        self.done(state(at, directory(10)), b"");
    }

    fn flush(&mut self) {
        self.replica.flush();
        let problems = self.replica.take_problems();
        assert!(problems.is_empty(), "{problems:?}");
    }

    /// Flushes when there is one problem, and asserts which.
    fn flush_with_problem(&mut self, at: &str, content: bool) {
        self.replica.flush();
        let problems = self.replica.take_problems();
        let found: Vec<_> = problems.iter().map(|it| (it.error.path.clone(), it.content)).collect();
        let bytes = at.as_bytes().to_vec();
        let path = TreePath::new(bytes).unwrap_or_default(); // As a name that is too long.
        assert_eq!(found, [(path, content)]);
    }

    fn read(&self, path: &str) -> Vec<u8> {
        std::fs::read(self.path(path)).unwrap()
    }

    fn stat(&self, path: &str) -> std::fs::Metadata {
        std::fs::symlink_metadata(self.path(path)).unwrap()
    }

    fn exists(&self, path: &str) -> bool {
        std::fs::symlink_metadata(self.path(path)).is_ok()
    }

    fn mtime(&self, path: &str) -> i64 {
        self.stat(path).mtime()
    }

    /// Nothing is left over in the replica's own directories.
    fn assert_clean(&self) {
        assert_eq!(names(&self.path(".mirror/stage")), Vec::<String>::new());
    }
}

fn names(directory: &Path) -> Vec<String> {
    let mut names: Vec<String> = std::fs::read_dir(directory)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

fn path(text: &str) -> TreePath {
    TreePath::new(text).unwrap()
}

fn metadata(mode: u32, seconds: i64) -> Metadata {
    Metadata {
        mode,
        uid: rustix::process::geteuid().as_raw(),
        gid: rustix::process::getegid().as_raw(),
        mtime: Timestamp { seconds, nanoseconds: 123_456_789 },
        xattrs: Vec::new(),
    }
}

fn regular(size: u64) -> Entry {
    Entry { kind: Kind::Regular { size }, metadata: metadata(0o644, 5) }
}

fn directory(seconds: i64) -> Entry {
    Entry { kind: Kind::Directory, metadata: metadata(0o755, seconds) }
}

fn symlink(target: &[u8]) -> Entry {
    Entry { kind: Kind::Symlink { target: target.to_vec() }, metadata: metadata(0o777, 6) }
}

fn state(at: &str, entry: Entry) -> Item {
    state_of(path(at), entry, Content::Keep, &[])
}

fn state_of(path: TreePath, entry: Entry, content: Content, links: &[&str]) -> Item {
    let links = links.iter().map(|link| self::path(link)).collect();
    Item::State { path, entry, content, links, parent_mtime: None }
}

fn inline(at: &str, entry: Entry, content: &[u8]) -> Item {
    state_of(path(at), entry, Content::Inline { length: content.len() as u32 }, &[])
}

fn absent(at: &str) -> Item {
    Item::Absent { path: path(at), parent_mtime: None }
}

fn rename(sequence: u64, from: &str, to: &str) -> Item {
    Item::Rename { sequence: Sequence(sequence), from: path(from), to: path(to) }
}

fn exchange(sequence: u64, a: &str, b: &str) -> Item {
    Item::Exchange { sequence: Sequence(sequence), a: path(a), b: path(b) }
}

/// The digest of a staged file of which these chunks came.
fn digest_of(size: u64, chunks: &[(u64, &[u8])]) -> [u8; 32] {
    let mut digest = crate::model::StageDigest::default();
    for (offset, raw) in chunks {
        digest.update(*offset, raw);
    }
    digest.finish(size)
}

fn seconds(seconds: i64) -> Timestamp {
    Timestamp { seconds, nanoseconds: 0 }
}

fn xattr(name: &str, value: &[u8]) -> Xattr {
    Xattr { name: name.as_bytes().to_vec(), value: value.to_vec() }
}

fn xattrs_of(path: &Path) -> Vec<Xattr> {
    crate::tree::metadata::read_xattrs(std::fs::File::open(path).unwrap(), |_| ()).unwrap()
}

/// An ACL that gives user `uid` read permission besides `rw-r--r--`, as the kernel stores it.
fn acl(uid: u32) -> Vec<u8> {
    let mut bytes = 2u32.to_le_bytes().to_vec();
    let none = u32::MAX;
    for (tag, permissions, id) in
        [(1u16, 6u16, none), (2, 4, uid), (4, 4, none), (0x10, 4, none), (0x20, 4, none)]
    {
        bytes.extend_from_slice(&tag.to_le_bytes());
        bytes.extend_from_slice(&permissions.to_le_bytes());
        bytes.extend_from_slice(&id.to_le_bytes());
    }
    bytes
}

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}
