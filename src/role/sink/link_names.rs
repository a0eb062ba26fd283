//! The names of multiply linked files in a relay's replica, which its downstreams must be told
//! together, or they would tear the file apart.
//!
//! What is known is a hint: each name is looked at before it is told. It is learned from what the
//! upstream says; what was there before the process began is searched for in the tree when a file
//! turns up that has more names than are known, once and a little in each turn.

use std::collections::{BTreeMap, BTreeSet};
use std::mem::MaybeUninit;
use std::ops::Bound;
use std::time::Instant;

use rustc_hash::FxHashMap;
use rustix::fs::FileType;

use crate::model::{Change, Identity, TreePath};
use crate::tree::Root;
use crate::tree::metadata::file_type;
use crate::tree::reader::{is_absent, list_directory};
use crate::tree::root::{identity_of, stat_at};

/// See the module.
#[derive(Debug, Default)]
pub(super) struct LinkNames {
    by_path: BTreeMap<TreePath, Identity>,
    by_file: FxHashMap<Identity, BTreeSet<TreePath>>,
    /// Whether the tree was searched, or had nothing in it at the beginning.
    pub(super) is_complete: bool,
    /// Directories that a search has still to list.
    search: Option<Vec<TreePath>>,
}

impl LinkNames {
    /// Notes that `path` is a name of the file.
    pub fn note(&mut self, path: &TreePath, file: Identity) {
        if self.by_path.get(path) == Some(&file) {
            return;
        }
        self.forget(path);
        self.by_path.insert(path.clone(), file);
        self.by_file.entry(file).or_default().insert(path.clone());
    }

    /// Forgets one name.
    pub fn forget(&mut self, path: &TreePath) {
        let Some(file) = self.by_path.remove(path) else { return };
        if let Some(names) = self.by_file.get_mut(&file) {
            names.remove(path);
            if names.is_empty() {
                self.by_file.remove(&file);
            }
        }
    }

    /// Returns the known names of a file.
    pub fn of(&self, file: Identity) -> impl Iterator<Item = &TreePath> {
        self.by_file.get(&file).into_iter().flatten()
    }

    /// Follows a rename.
    pub fn follow(&mut self, change: &Change) {
        let Some((from, to)) = change.ends() else { return };
        if let Some(pending) = &mut self.search {
            // What moves from before the search to behind it would be missed.
            for path in pending.iter_mut() {
                *path = change.translate(path).unwrap_or(std::mem::take(path));
            }
            pending.push(to.clone());
            pending.push(from.clone());
        }
        let mut moved = self.take_below(from);
        let replaced = self.take_below(to);
        if matches!(change, Change::Exchange { .. }) {
            moved.extend(replaced);
        }
        for (path, file) in moved {
            if let Some(path) = change.translate(&path) {
                self.note(&path, file);
            }
        }
    }

    /// Takes out what is known at and below a path.
    fn take_below(&mut self, path: &TreePath) -> Vec<(TreePath, Identity)> {
        if self.by_path.is_empty() {
            return Vec::new();
        }
        let below =
            self.by_path.range::<[u8], _>((Bound::Included(path.as_bytes()), Bound::Unbounded));
        // Other names may sort between a directory and what is in it.
        let found: Vec<(TreePath, Identity)> = below
            .take_while(|(name, _)| name.as_bytes().starts_with(path.as_bytes()))
            .filter(|(name, _)| name.starts_with(path))
            .map(|(name, file)| (name.clone(), *file))
            .collect();
        found.iter().for_each(|(name, _)| self.forget(name));
        found
    }

    /// Has the tree searched if that was not done.
    pub fn want_search(&mut self) {
        if !self.is_complete && self.search.is_none() {
            self.search = Some(vec![TreePath::root()]);
        }
    }

    /// Returns whether a search is under way.
    pub fn is_searching(&self) -> bool {
        self.search.is_some()
    }

    /// Goes on with a search.
    pub fn search(&mut self, root: &Root, deadline: Instant) {
        let Some(mut pending) = self.search.take() else { return };
        let mut buffer = vec![MaybeUninit::uninit(); 64 << 10];
        loop {
            let Some(path) = pending.pop() else {
                self.is_complete = true;
                return;
            };
            let opened = root.open_directory(&path);
            let listed = opened.and_then(|fd| {
                list_directory(&fd, &mut buffer, |name, kind| {
                    let path = path.join(name);
                    if path.is_reserved() {
                        return Ok(());
                    }
                    if matches!(kind, FileType::Directory) {
                        pending.push(path);
                        return Ok(());
                    }
                    let stat = stat_at(&fd, name)?;
                    if file_type(&stat).is_dir() {
                        pending.push(path);
                    } else if stat.stx_nlink > 1 {
                        self.note(&path, identity_of(&stat));
                    }
                    Ok(())
                })
            });
            if let Err(error) = listed
                && !is_absent(&error)
            {
                // Its files' other names are told one by one; what is read of them is whole.
                tracing::warn!("{path}: {error}; hard links to files in it may be missed");
            }
            if Instant::now() >= deadline {
                break;
            }
        }
        self.search = Some(pending);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn path(text: &str) -> TreePath {
        TreePath::new(text).unwrap()
    }

    fn file(inode: u64) -> Identity {
        Identity { device: 1, inode }
    }

    fn names(links: &LinkNames, inode: u64) -> Vec<String> {
        links.of(file(inode)).map(|path| path.to_string()).collect()
    }

    #[test]
    fn names_follow_renames_of_directories_and_what_is_replaced_goes() {
        let mut links = LinkNames::default();
        for (name, inode) in [("d/a", 1), ("d.x", 1), ("e/b", 1), ("e/c", 2), ("d/c", 2)] {
            links.note(&path(name), file(inode));
        }
        links.follow(&Change::Rename { from: path("d"), to: path("f") });
        assert_eq!(names(&links, 1), ["d.x", "e/b", "f/a"]);
        links.follow(&Change::Exchange { a: path("e"), b: path("f/c") });
        assert_eq!(names(&links, 1), ["d.x", "f/a", "f/c/b"]);
        assert_eq!(names(&links, 2), ["e", "f/c/c"]);
        links.follow(&Change::Rename { from: path("e"), to: path("f") });
        assert_eq!((names(&links, 1).len(), names(&links, 2)), (1, vec!["f".to_string()]));
        links.note(&path("d.x"), file(2));
        assert_eq!(names(&links, 1), Vec::<String>::new());
    }

    #[test]
    fn a_search_finds_what_was_there_before_also_what_moves_meanwhile() {
        let scratch = tempfile::tempdir().unwrap();
        let at = |name: &str| scratch.path().join(name);
        for directory in ["a", "b", "b/c"] {
            std::fs::create_dir(at(directory)).unwrap();
        }
        std::fs::write(at("b/c/f"), "f").unwrap();
        std::fs::hard_link(at("b/c/f"), at("a/g")).unwrap();
        let root = Root::open(scratch.path()).unwrap();
        let mut links = LinkNames::default();
        links.want_search();
        let mut moves = 0;
        while links.is_searching() {
            links.search(&root, Instant::now() + Duration::from_micros(1));
            // To where the search has been, as often as it looks.
            if moves < 8 {
                let (from, to) = if moves % 2 == 0 { ("b/c", "a/c") } else { ("a/c", "b/c") };
                std::fs::rename(at(from), at(to)).unwrap();
                links.follow(&Change::Rename { from: path(from), to: path(to) });
                moves += 1;
            }
        }
        let identity = identity_of(&stat_at(&root, b"a/g").unwrap());
        let found: Vec<&TreePath> = links.of(identity).collect();
        assert!(found.contains(&&path("a/g")) && found.contains(&&path("b/c/f")), "{found:?}");
        assert!(links.is_complete);
    }
}
