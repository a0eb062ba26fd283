//! Random operations on a real tree, from a seed.
//!
//! The tree stays small and its names few, so that names are reused, collide and move all the
//! time: that is where mirrors go wrong. Nothing here waits or runs in another thread, so a
//! test may inject a step between any two of its own.

mod attributes;
mod contents;
mod names;
mod renames;

use std::collections::VecDeque;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, FileType, RenameFlags};

/// Does random operations under `root`, moving things to and from `outside`.
pub struct Operations {
    root: PathBuf,
    outside: PathBuf,
    rng: fastrand::Rng,
    privileged: bool,
    /// A file that is written to now and then, and closed some time.
    open: Option<File>,
    /// Files shortened by path, held open so that no close follows.
    truncated: Vec<File>,
    /// Makes contents and temporary names unique.
    serial: u64,
    steps: u64,
    /// Whether only what is there already changes and moves.
    is_steady: bool,
    /// Whether neither size nor time tell the versions of a file apart.
    hides_versions: bool,
    /// The paths that were worked on last: what is known of them is on its way.
    recent: VecDeque<PathBuf>,
    total_weight: u32,
    /// Levels of entries below the root.
    depth_max: usize,
    /// Above this, trees are removed until it is below again.
    entries_max: usize,
}

impl Operations {
    /// `outside` is a directory on the same file system as `root`.
    pub fn new(root: impl Into<PathBuf>, outside: impl Into<PathBuf>, seed: u64) -> Operations {
        Operations {
            root: root.into(),
            outside: outside.into(),
            rng: fastrand::Rng::with_seed(seed),
            privileged: super::machine::is_root(),
            open: None,
            truncated: Vec::new(),
            serial: 0,
            steps: 0,
            is_steady: false,
            hides_versions: false,
            recent: VecDeque::new(),
            total_weight: TABLE.iter().map(|(weight, _, _)| weight).sum(),
            depth_max: 5,
            entries_max: 120,
        }
    }

    /// Keeps the tree so small that two operations seldom have nothing to do with each other.
    pub fn crowd(&mut self) {
        (self.depth_max, self.entries_max) = (3, 10);
    }

    /// Changes and moves only what is there from now on. Who misses nothing asks for nothing, and
    /// so is not healed by the way.
    pub fn steady(&mut self) {
        self.is_steady = true;
        let steady = TABLE.iter().filter(|(_, name, _)| STEADY.contains(name));
        self.total_weight = steady.map(|(weight, _, _)| weight).sum();
    }

    /// Gives all files the same time from now on, and most the same size: who has the wrong
    /// version of one does not notice by chance.
    pub fn hide_versions(&mut self) {
        self.hides_versions = true;
    }

    /// Does one operation that succeeds and returns what it did; tries that failed are told
    /// too, since they may have left traces.
    pub fn step(&mut self) -> String {
        let told = self.try_step();
        if self.hides_versions {
            let then = std::time::UNIX_EPOCH + std::time::Duration::from_secs(1_000_000_000);
            for (path, kind) in self.entries() {
                let known = fs::symlink_metadata(&path).and_then(|metadata| metadata.modified());
                if kind == FileType::RegularFile && known.is_ok_and(|known| known != then) {
                    // Opened for reading, so that its close says nothing of its content.
                    let _ = File::open(&path).and_then(|file| file.set_modified(then));
                }
            }
        }
        told
    }

    fn try_step(&mut self) -> String {
        self.steps += 1;
        let mut told = format!("{}: ", self.steps);
        for _ in 0..50 {
            let (name, operation) = self.choose();
            match operation(self) {
                Ok(Some(what)) => return told + name + " " + &what,
                Ok(None) => {}
                Err(error) => told += &format!("({name}: {error}) "),
            }
        }
        told + "nothing worked"
    }

    /// Does `count` operations and returns what they did.
    pub fn run(&mut self, count: usize) -> Vec<String> {
        (0..count).map(|_| self.step()).collect()
    }

    /// Closes every file that is kept open.
    pub fn close(&mut self) {
        self.open = None;
        self.truncated.clear();
    }

    pub fn rng(&mut self) -> &mut fastrand::Rng {
        &mut self.rng
    }

    fn choose(&mut self) -> (&'static str, Operation) {
        if self.entries().len() > self.entries_max {
            return ("rm -r (too many)", Operations::remove_tree);
        }
        let mut pick = self.rng.u32(..self.total_weight);
        for &(weight, name, operation) in TABLE {
            if self.is_steady && !STEADY.contains(&name) {
                continue;
            }
            if pick < weight {
                return (name, operation);
            }
            pick -= weight;
        }
        unreachable!("weights add up to the total")
    }

    // Choosing what to work on.

    /// Returns all entries below the root, each with its kind, in an order that depends on
    /// names only.
    fn entries(&self) -> Vec<(PathBuf, FileType)> {
        fn descend(directory: &Path, found: &mut Vec<(PathBuf, FileType)>) {
            let Ok(list) = fs::read_dir(directory) else { return };
            let mut names: Vec<_> = list.flatten().map(|entry| entry.path()).collect();
            names.sort();
            for path in names {
                let Ok(metadata) = fs::symlink_metadata(&path) else { continue };
                let kind = FileType::from_raw_mode(metadata.mode());
                found.push((path.clone(), kind));
                if kind == FileType::Directory {
                    descend(&path, found);
                }
            }
        }
        let mut found = Vec::new();
        descend(&self.root, &mut found);
        found
    }

    fn any(&mut self) -> Option<PathBuf> {
        let all = self.entries();
        let chosen = self.rng.choice(all).map(|(path, _)| path);
        chosen.inspect(|path| self.remember(path))
    }

    fn existing(&mut self, kind: FileType) -> Option<PathBuf> {
        let all = self.entries().into_iter().filter(|&(_, found)| found == kind);
        let chosen = self.rng.choice(all.collect::<Vec<_>>()).map(|(path, _)| path);
        chosen.inspect(|path| self.remember(path))
    }

    fn remember(&mut self, path: &Path) {
        self.recent.truncate(RECENT_MAX - 1);
        self.recent.push_front(path.to_owned());
    }

    /// Returns one of the paths that were worked on last, if something is there.
    fn recent(&mut self) -> Option<PathBuf> {
        let path = self.rng.choice(self.recent.iter().cloned().collect::<Vec<_>>())?;
        fs::symlink_metadata(&path).is_ok().then_some(path)
    }

    fn file(&mut self) -> Option<PathBuf> {
        self.existing(FileType::RegularFile)
    }

    fn directory(&mut self) -> Option<PathBuf> {
        self.existing(FileType::Directory)
    }

    /// Returns a directory that may get entries: the root or one not too deep.
    fn parent(&mut self) -> PathBuf {
        let mut all = vec![self.root.clone()];
        let depth = |path: &Path| path.components().count();
        let depth_max = depth(&self.root) + self.depth_max - 1;
        all.extend(self.entries().into_iter().filter_map(|(path, kind)| {
            (kind == FileType::Directory && depth(&path) <= depth_max).then_some(path)
        }));
        self.rng.choice(all).expect("the root is there")
    }

    /// Returns a path that may exist or not.
    fn place(&mut self) -> PathBuf {
        let parent = self.parent();
        let path = parent.join(self.name());
        self.remember(&path);
        path
    }

    fn name(&mut self) -> &'static OsStr {
        // Unusual names are few, or they would be most of what is there.
        let name = match self.rng.u32(..40) {
            0 => UNUSUAL[self.rng.usize(..UNUSUAL.len())],
            _ => NAMES[self.rng.usize(..NAMES.len())],
        };
        OsStr::from_bytes(name)
    }

    fn content(&mut self) -> Vec<u8> {
        let length = match self.rng.u32(..20) {
            0 => 0,
            _ if self.hides_versions => 24,
            // Most are equally long, so that a stale one is not known by its size.
            1..=9 => 24,
            10..=11 => self.rng.usize(1..64),
            12..=18 => self.rng.usize(64..20_000),
            _ => self.rng.usize(20_000..70_000),
        };
        self.bytes(length)
    }

    /// Returns bytes that never come again, as far as the length allows.
    fn bytes(&mut self, length: usize) -> Vec<u8> {
        self.serial += 1;
        let mut bytes = format!("{}\n", self.serial).into_bytes();
        bytes.resize(length, 0);
        let filled = bytes.len().min(8);
        self.rng.fill(&mut bytes[filled..]);
        bytes
    }

    fn temporary(&mut self, directory: &Path) -> PathBuf {
        self.serial += 1;
        directory.join(format!(".tmp-{}", self.serial))
    }

    /// Returns a path as text, relative to the root.
    fn tell(&self, path: &Path) -> String {
        match path.strip_prefix(&self.root) {
            Ok(relative) => super::judge::show(relative.as_os_str().as_bytes()),
            Err(_) => format!("outside:{}", path.file_name().unwrap_or_default().display()),
        }
    }

    fn tell_two(&self, from: &Path, to: &Path) -> Done {
        Ok(Some(format!("{} → {}", self.tell(from), self.tell(to))))
    }
}

/// Returns an ACL as the kernel keeps it, with one named user.
pub fn acl(uid: u32, permissions: u16) -> Vec<u8> {
    const NO_ID: u32 = u32::MAX;
    let mut value = 2u32.to_le_bytes().to_vec();
    // user::rwx, user:UID:…, group::r-x, mask::rwx, other::r--
    let entries = [
        (1u16, 7, NO_ID),
        (2, permissions, uid),
        (4, 5, NO_ID),
        (0x10, 7, NO_ID),
        (0x20, 4, NO_ID),
    ];
    for (tag, permissions, id) in entries {
        value.extend(tag.to_le_bytes());
        value.extend(permissions.to_le_bytes());
        value.extend(id.to_le_bytes());
    }
    value
}

/// Exchanges two names in one call.
pub fn exchange(a: &Path, b: &Path) -> io::Result<()> {
    Ok(rustix::fs::renameat_with(CWD, a, CWD, b, RenameFlags::EXCHANGE)?)
}

/// Changes a file's length as truncate(2) does, as long as what it returns is kept: nothing
/// is closed after writing. (Neither std nor rustix has truncate(2) itself.)
#[must_use = "dropping this closes a file that was open for writing"]
pub fn truncate_by_path(path: &Path, length: u64) -> io::Result<File> {
    let file = open(path, File::options().write(true))?;
    file.set_len(length)?;
    Ok(file)
}

/// Opens a regular file; never a FIFO, which would block, nor what a symlink points at.
fn open(path: &Path, options: &mut fs::OpenOptions) -> io::Result<File> {
    match fs::symlink_metadata(path) {
        Ok(metadata) if metadata.is_file() => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Ok(_) => return Err(io::Error::other("not a regular file")),
        Err(error) => return Err(error),
    }
    options.open(path)
}

/// Removes whatever is at `path`.
pub fn remove(path: &Path) -> io::Result<()> {
    if fs::symlink_metadata(path)?.is_dir() {
        fs::remove_dir_all(path)
    } else {
        fs::remove_file(path)
    }
}

type Done = io::Result<Option<String>>;
type Operation = fn(&mut Operations) -> Done;

const TABLE: &[(u32, &str, Operation)] = &[
    (40, "create", Operations::create),
    (30, "rewrite", Operations::rewrite),
    (6, "write in the middle of", Operations::rewrite_in_the_middle),
    (12, "append", Operations::append),
    (10, "truncate", Operations::truncate),
    (20, "same size, same time", Operations::same_size_same_time),
    (25, "replace", Operations::replace),
    (6, "replace, same size and time", Operations::replace_same_size_and_time),
    (2, "big", Operations::big),
    (4, "sparse", Operations::sparse),
    (6, "long-open file", Operations::open_long),
    (10, "write to long-open file", Operations::write_to_open),
    (40, "rename", Operations::rename),
    (35, "rename directory", Operations::rename_directory),
    (8, "rename over directory", Operations::rename_over_directory),
    (12, "rename over file", Operations::rename_file_over),
    (20, "exchange", Operations::exchange),
    (10, "move there and back", Operations::move_there_and_back),
    (14, "write, rename, write", Operations::write_rename_write),
    (14, "write below and rename", Operations::write_below_and_rename),
    (30, "displace", Operations::displace),
    (8, "swap by a third name", Operations::swap_by_third),
    (16, "link", Operations::link),
    (12, "write by link", Operations::write_by_link),
    (20, "unlink", Operations::unlink),
    (12, "unlink and create", Operations::unlink_and_create),
    (8, "rm -r", Operations::remove_tree),
    (8, "rm -r and create", Operations::remove_tree_and_create),
    (30, "mkdir -p", Operations::make_directories),
    (8, "symlink", Operations::symlink),
    (4, "replace symlink", Operations::replace_symlink),
    (5, "special", Operations::special),
    (12, "change kind of", Operations::change_kind),
    (8, "move out", Operations::move_out),
    (10, "move in", Operations::move_in),
    (6, "move out and another in", Operations::move_out_and_in),
    (14, "chmod", Operations::chmod),
    (6, "chown", Operations::chown),
    (10, "utimes", Operations::utimes),
    (8, "setxattr", Operations::set_xattr),
    (5, "removexattr", Operations::remove_xattr),
    (5, "acl", Operations::set_acl),
];

/// Operations that bring nothing new.
const STEADY: &[&str] = &[
    "write in the middle of",
    "same size, same time",
    "rename",
    "rename directory",
    "rename over file",
    "exchange",
    "swap by a third name",
    "chmod",
];

const NAMES: &[&[u8]] = &[b"a", b"b", b"c", b"d"];
const UNUSUAL: &[&[u8]] = &[b"not\xffutf8", b"new\nline", b" ", b"-rf", b"\\", b"*?[", b"~a"];

/// Paths that are remembered.
const RECENT_MAX: usize = 6;

/// Shortened files held open at once.
const TRUNCATED_OPEN_MAX: usize = 100;
