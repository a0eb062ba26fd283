//! Random operations on a real tree, from a seed.
//!
//! The tree stays small and its names few, so that names are reused, collide and move all the
//! time: that is where mirrors go wrong. Nothing here waits or runs in another thread, so a
//! test may inject a step between any two of its own.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, Seek as _, SeekFrom, Write as _};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{FileExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use rustix::fs::{
    AtFlags, CWD, FileType, Gid, Mode, RenameFlags, Timespec, Timestamps, Uid, XattrFlags,
};

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
    total_weight: u32,
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
            total_weight: TABLE.iter().map(|(weight, _, _)| weight).sum(),
        }
    }

    /// Does one operation that succeeds and returns what it did; tries that failed are told
    /// too, since they may have left traces.
    pub fn step(&mut self) -> String {
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
        if self.entries().len() > ENTRIES_MAX {
            return ("rm -r (too many)", Operations::remove_tree);
        }
        let mut pick = self.rng.u32(..self.total_weight);
        for &(weight, name, operation) in TABLE {
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
        self.rng.choice(all).map(|(path, _)| path)
    }

    fn existing(&mut self, kind: FileType) -> Option<PathBuf> {
        let all = self.entries().into_iter().filter(|&(_, found)| found == kind);
        self.rng.choice(all.collect::<Vec<_>>()).map(|(path, _)| path)
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
        let depth_max = depth(&self.root) + DEPTH_MAX - 1;
        all.extend(self.entries().into_iter().filter_map(|(path, kind)| {
            (kind == FileType::Directory && depth(&path) <= depth_max).then_some(path)
        }));
        self.rng.choice(all).expect("the root is there")
    }

    /// Returns a path that may exist or not.
    fn place(&mut self) -> PathBuf {
        let parent = self.parent();
        parent.join(self.name())
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
            1..=11 => self.rng.usize(1..64),
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

    // Contents.

    fn create(&mut self) -> Done {
        let (path, content) = (self.place(), self.content());
        write(&path, &content)?;
        Ok(Some(format!("{} ({} bytes)", self.tell(&path), content.len())))
    }

    fn rewrite(&mut self) -> Done {
        let Some(path) = self.file() else { return Ok(None) };
        let content = self.content();
        write(&path, &content)?;
        Ok(Some(format!("{} ({} bytes)", self.tell(&path), content.len())))
    }

    fn rewrite_in_the_middle(&mut self) -> Done {
        let Some(path) = self.file() else { return Ok(None) };
        let file = File::options().write(true).open(&path)?;
        let offset = self.rng.u64(..file.metadata()?.len().max(1));
        file.write_all_at(&self.bytes(10), offset)?;
        Ok(Some(format!("{} at {offset}", self.tell(&path))))
    }

    fn append(&mut self) -> Done {
        let Some(path) = self.file() else { return Ok(None) };
        let content = self.content();
        File::options().append(true).open(&path)?.write_all(&content)?;
        Ok(Some(format!("{} ({} bytes)", self.tell(&path), content.len())))
    }

    fn truncate(&mut self) -> Done {
        let Some(path) = self.file() else { return Ok(None) };
        let length = self.rng.u64(..2 * fs::metadata(&path)?.len().max(10));
        let file = truncate_by_path(&path, length)?;
        self.truncated.push(file);
        if self.truncated.len() > TRUNCATED_OPEN_MAX {
            self.truncated.clear();
        }
        Ok(Some(format!("{} to {length}", self.tell(&path))))
    }

    fn same_size_same_time(&mut self) -> Done {
        let Some(path) = self.file() else { return Ok(None) };
        let before = fs::metadata(&path)?;
        let content = self.bytes(before.len() as usize);
        let file = File::options().write(true).open(&path)?;
        file.write_all_at(&content[..before.len() as usize], 0)?;
        file.set_modified(before.modified()?)?;
        Ok(Some(self.tell(&path)))
    }

    fn replace(&mut self) -> Done {
        let (path, content) = (self.place(), self.content());
        let temporary = self.temporary(path.parent().expect("below the root"));
        write(&temporary, content)?;
        fs::rename(&temporary, &path).inspect_err(|_| {
            let _ = fs::remove_file(&temporary);
        })?;
        Ok(Some(self.tell(&path)))
    }

    fn replace_same_size_and_time(&mut self) -> Done {
        let Some(path) = self.file() else { return Ok(None) };
        let before = fs::metadata(&path)?;
        let temporary = self.temporary(path.parent().expect("below the root"));
        let content = self.bytes(before.len() as usize);
        write(&temporary, &content[..before.len() as usize])?;
        File::options().write(true).open(&temporary)?.set_modified(before.modified()?)?;
        fs::rename(&temporary, &path)?;
        Ok(Some(self.tell(&path)))
    }

    fn big(&mut self) -> Done {
        let path = self.place();
        let length = self.rng.usize(300_000..2_000_000);
        write(&path, self.bytes(length))?;
        Ok(Some(format!("{} ({length} bytes)", self.tell(&path))))
    }

    fn sparse(&mut self) -> Done {
        let path = self.place();
        let file = open(&path, File::options().create(true).write(true).truncate(true))?;
        let length = self.rng.u64(100_000..3_000_000);
        file.set_len(length)?;
        for _ in 0..self.rng.u32(..3) {
            let offset = self.rng.u64(..length - 5000);
            file.write_all_at(&self.bytes(5000), offset)?;
        }
        Ok(Some(format!("{} ({length} bytes)", self.tell(&path))))
    }

    fn open_long(&mut self) -> Done {
        if self.open.take().is_some() && self.rng.bool() {
            return Ok(Some("closed".to_owned()));
        }
        let path = self.place();
        self.open = Some(open(&path, File::options().create(true).append(true))?);
        Ok(Some(format!("{} opened", self.tell(&path))))
    }

    fn write_to_open(&mut self) -> Done {
        let Some(mut file) = self.open.take() else { return Ok(None) };
        let content = self.bytes(100);
        file.write_all(&content)?;
        let length = file.seek(SeekFrom::End(0))?;
        self.open = Some(file);
        Ok(Some(format!("now {length} bytes")))
    }

    // Names.

    fn rename(&mut self) -> Done {
        let Some(from) = self.any() else { return Ok(None) };
        self.rename_to_place(from)
    }

    fn rename_directory(&mut self) -> Done {
        let Some(from) = self.directory() else { return Ok(None) };
        self.rename_to_place(from)
    }

    fn rename_to_place(&mut self, from: PathBuf) -> Done {
        let to = self.place();
        if from == to || self.too_deep(&from, &to) {
            return Ok(None);
        }
        fs::rename(&from, &to)?;
        self.tell_two(&from, &to)
    }

    /// Renames a directory over an existing one after emptying it, in two calls.
    fn rename_over_directory(&mut self) -> Done {
        let (Some(from), Some(to)) = (self.directory(), self.directory()) else {
            return Ok(None);
        };
        if from.starts_with(&to) || to.starts_with(&from) || self.too_deep(&from, &to) {
            return Ok(None);
        }
        fs::remove_dir_all(&to)?;
        if self.rng.bool() {
            fs::create_dir(&to)?;
        }
        fs::rename(&from, &to)?;
        self.tell_two(&from, &to)
    }

    fn rename_file_over(&mut self) -> Done {
        let (Some(from), Some(to)) = (self.file(), self.file()) else { return Ok(None) };
        fs::rename(&from, &to)?;
        self.tell_two(&from, &to)
    }

    fn exchange(&mut self) -> Done {
        let (Some(a), Some(b)) = (self.any(), self.any()) else { return Ok(None) };
        if a == b || self.too_deep(&a, &b) || self.too_deep(&b, &a) {
            return Ok(None);
        }
        exchange(&a, &b)?;
        self.tell_two(&a, &b)
    }

    fn move_there_and_back(&mut self) -> Done {
        let (Some(from), to) = (self.any(), self.place()) else { return Ok(None) };
        if fs::symlink_metadata(&to).is_ok() {
            return Ok(None);
        }
        fs::rename(&from, &to)?;
        if self.rng.bool() {
            let _ = write(if self.rng.bool() { &from } else { &to }, self.content());
        }
        let _ = fs::rename(&to, &from);
        self.tell_two(&from, &to)
    }

    /// f (v1) becomes g, then g is written again, or f comes again.
    fn write_rename_write(&mut self) -> Done {
        let (from, to) = (self.place(), self.place());
        write(&from, self.bytes(20))?;
        fs::rename(&from, &to)?;
        write(&to, self.bytes(20))?;
        if self.rng.bool() {
            write(&from, self.bytes(20))?;
        }
        self.tell_two(&from, &to)
    }

    /// d/x is written, then d becomes e, and sometimes a new d comes.
    fn write_below_and_rename(&mut self) -> Done {
        let (Some(from), to) = (self.directory(), self.place()) else { return Ok(None) };
        if from == to || self.too_deep(&from, &to) {
            return Ok(None);
        }
        write(from.join(self.name()), self.bytes(20))?;
        fs::rename(&from, &to)?;
        if self.rng.bool() {
            fs::create_dir(&from)?;
            write(from.join(self.name()), self.bytes(20))?;
        }
        self.tell_two(&from, &to)
    }

    /// Two names swap by way of a third.
    fn swap_by_third(&mut self) -> Done {
        let (Some(a), Some(b)) = (self.any(), self.any()) else { return Ok(None) };
        if a.starts_with(&b) || b.starts_with(&a) {
            return Ok(None);
        }
        if self.too_deep(&a, &b) || self.too_deep(&b, &a) {
            return Ok(None);
        }
        let third = self.temporary(&self.root.clone());
        fs::rename(&a, &third)?;
        fs::rename(&b, &a)?;
        fs::rename(&third, &b)?;
        self.tell_two(&a, &b)
    }

    fn link(&mut self) -> Done {
        let Some(from) = self.any() else { return Ok(None) };
        if fs::symlink_metadata(&from)?.is_dir() {
            return Ok(None);
        }
        let to = self.place();
        rustix::fs::linkat(CWD, &from, CWD, &to, AtFlags::empty())?;
        self.tell_two(&from, &to)
    }

    /// Writes through one of several names; the others change silently.
    fn write_by_link(&mut self) -> Done {
        let linked = self.entries().into_iter().filter(|(path, kind)| {
            *kind == FileType::RegularFile
                && fs::symlink_metadata(path).is_ok_and(|metadata| metadata.nlink() > 1)
        });
        let Some((path, _)) = self.rng.choice(linked.collect::<Vec<_>>()) else {
            return Ok(None);
        };
        let content = self.content();
        write(&path, &content)?;
        Ok(Some(format!("{} ({} bytes)", self.tell(&path), content.len())))
    }

    fn unlink(&mut self) -> Done {
        let Some(path) = self.any() else { return Ok(None) };
        fs::remove_file(&path)?;
        Ok(Some(self.tell(&path)))
    }

    fn unlink_and_create(&mut self) -> Done {
        let Some(path) = self.file() else { return Ok(None) };
        fs::remove_file(&path)?;
        write(&path, self.content())?;
        Ok(Some(self.tell(&path)))
    }

    fn remove_tree(&mut self) -> Done {
        let Some(path) = self.directory().or_else(|| self.any()) else { return Ok(None) };
        remove(&path)?;
        Ok(Some(self.tell(&path)))
    }

    fn remove_tree_and_create(&mut self) -> Done {
        let Some(path) = self.directory() else { return Ok(None) };
        remove(&path)?;
        fs::create_dir(&path)?;
        write(path.join(self.name()), self.content())?;
        Ok(Some(self.tell(&path)))
    }

    fn make_directories(&mut self) -> Done {
        let mut path = self.place();
        let mut left =
            (self.root.components().count() + DEPTH_MAX).saturating_sub(path.components().count());
        fs::create_dir(&path)?;
        for _ in 0..self.rng.u32(..4) {
            if self.rng.u32(..3) > 0 {
                write(path.join(self.name()), self.content())?;
            }
            if left == 0 {
                break;
            }
            left -= 1;
            let _ = fs::create_dir(path.join("b"));
            if !path.join("b").is_dir() {
                break;
            }
            path.push("b");
        }
        let _ = write(path.join(self.name()), self.content());
        Ok(Some(self.tell(&path)))
    }

    fn symlink(&mut self) -> Done {
        let path = self.place();
        let targets = ["a", "../b", "/nowhere", ".", "..", "c/d/a"];
        let target = targets[self.rng.usize(..targets.len())];
        std::os::unix::fs::symlink(target, &path)?;
        Ok(Some(format!("{} → {target}", self.tell(&path))))
    }

    fn replace_symlink(&mut self) -> Done {
        let Some(path) = self.existing(FileType::Symlink) else { return Ok(None) };
        self.serial += 1;
        let temporary = self.temporary(path.parent().expect("below the root"));
        std::os::unix::fs::symlink(format!("t{}", self.serial % 7), &temporary)?;
        fs::rename(&temporary, &path)?;
        Ok(Some(self.tell(&path)))
    }

    fn special(&mut self) -> Done {
        let path = self.place();
        let kinds =
            [FileType::Fifo, FileType::Socket, FileType::CharacterDevice, FileType::BlockDevice];
        let kind = kinds[self.rng.usize(..if self.privileged { 4 } else { 2 })];
        self.make_special(&path, kind)?;
        Ok(Some(format!("{} {kind:?}", self.tell(&path))))
    }

    fn make_special(&mut self, path: &Path, kind: FileType) -> io::Result<()> {
        let device = rustix::fs::makedev(self.rng.u32(200..240), self.rng.u32(..4));
        let mode = Mode::from_raw_mode(self.rng.choice([0o600, 0o644, 0o666]).expect("some"));
        Ok(rustix::fs::mknodat(CWD, path, kind, mode, device)?)
    }

    /// What is there becomes something of another kind, under the same name.
    fn change_kind(&mut self) -> Done {
        let Some(path) = self.any() else { return Ok(None) };
        let before = FileType::from_raw_mode(fs::symlink_metadata(&path)?.mode());
        remove(&path)?;
        let after = match self.rng.u32(..5) {
            0 | 1 if before != FileType::Directory => {
                fs::create_dir(&path)?;
                write(path.join(self.name()), self.content())?;
                "directory"
            }
            2 if before != FileType::Symlink => {
                std::os::unix::fs::symlink("a", &path)?;
                "symlink"
            }
            3 if before != FileType::Fifo => {
                self.make_special(&path, FileType::Fifo)?;
                "fifo"
            }
            _ => {
                write(&path, self.content())?;
                "file"
            }
        };
        Ok(Some(format!("{} {before:?} → {after}", self.tell(&path))))
    }

    fn move_out(&mut self) -> Done {
        let Some(path) = self.any() else { return Ok(None) };
        let to = self.temporary(&self.outside.clone());
        fs::rename(&path, &to)?;
        // Sometimes it goes on changing out there, where nobody should care.
        if to.is_dir() && self.rng.bool() {
            write(to.join("a"), self.bytes(20))?;
        }
        self.trim_outside();
        self.tell_two(&path, &to)
    }

    fn move_in(&mut self) -> Done {
        let from = match self.rng.bool() {
            true => self.build_outside()?,
            false => match self.rng.choice(self.outside_entries()) {
                Some(path) => path,
                None => self.build_outside()?,
            },
        };
        let to = self.place();
        if self.too_deep(&from, &to) {
            return Ok(None);
        }
        fs::rename(&from, &to)?;
        self.tell_two(&from, &to)
    }

    /// d goes outside, and another d comes in its place.
    fn move_out_and_in(&mut self) -> Done {
        let Some(path) = self.directory() else { return Ok(None) };
        let to = self.temporary(&self.outside.clone());
        let other = self.build_outside()?;
        fs::rename(&path, &to)?;
        if !self.too_deep(&other, &path) {
            fs::rename(&other, &path)?;
        }
        self.trim_outside();
        Ok(Some(self.tell(&path)))
    }

    fn outside_entries(&self) -> Vec<PathBuf> {
        let list = fs::read_dir(&self.outside).into_iter().flatten().flatten();
        let mut paths: Vec<_> = list.map(|entry| entry.path()).collect();
        paths.sort();
        paths
    }

    fn build_outside(&mut self) -> io::Result<PathBuf> {
        let path = self.temporary(&self.outside.clone());
        fs::create_dir(&path)?;
        for _ in 0..self.rng.u32(..4) {
            let _ = write(path.join(self.name()), self.content());
        }
        let below = path.join(self.name());
        if fs::create_dir(&below).is_ok() {
            write(below.join(self.name()), self.content())?;
        }
        // A tree that moves in has old times.
        let old = std::time::UNIX_EPOCH + std::time::Duration::from_secs(1_000_000_000);
        File::open(&path)?.set_modified(old)?;
        Ok(path)
    }

    fn trim_outside(&mut self) {
        let entries = self.outside_entries();
        if entries.len() > 4 {
            let index = self.rng.usize(..entries.len());
            let _ = remove(&entries[index]);
        }
    }

    fn too_deep(&self, from: &Path, to: &Path) -> bool {
        fn height(path: &Path) -> usize {
            match fs::symlink_metadata(path) {
                Ok(metadata) if metadata.is_dir() => {
                    let list = fs::read_dir(path).into_iter().flatten().flatten();
                    1 + list.map(|entry| height(&entry.path())).max().unwrap_or(0)
                }
                _ => 1,
            }
        }
        let parents = to.components().count() - 1 - self.root.components().count();
        parents + height(from) > DEPTH_MAX + 1
    }

    // Attributes.

    fn chmod(&mut self) -> Done {
        let Some(path) = self.any() else { return Ok(None) };
        let metadata = fs::symlink_metadata(&path)?;
        if metadata.is_symlink() {
            return Ok(None);
        }
        // Without root, directories must stay readable and writable to go on.
        let directory = metadata.is_dir();
        let modes: &[u32] = match (directory, self.privileged) {
            (true, true) => &[0o755, 0o700, 0o777, 0o1777, 0o2775, 0o500, 0],
            (true, false) => &[0o755, 0o700, 0o777, 0o1777],
            (false, true) => &[0o644, 0o600, 0o755, 0o4755, 0o2755, 0o400, 0],
            (false, false) => &[0o644, 0o600, 0o755, 0o664],
        };
        let mode = modes[self.rng.usize(..modes.len())];
        fs::set_permissions(&path, fs::Permissions::from_mode(mode))?;
        Ok(Some(format!("{} {mode:o}", self.tell(&path))))
    }

    fn chown(&mut self) -> Done {
        let Some(path) = self.any() else { return Ok(None) };
        if !self.privileged {
            return Ok(None);
        }
        let (uid, gid) = (self.rng.u32(..3) * 1000, self.rng.u32(..3) * 1000);
        let (owner, group) = (Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)));
        rustix::fs::chownat(CWD, &path, owner, group, AtFlags::SYMLINK_NOFOLLOW)?;
        Ok(Some(format!("{} {uid}:{gid}", self.tell(&path))))
    }

    fn utimes(&mut self) -> Done {
        let Some(path) = self.any() else { return Ok(None) };
        let time = Timespec {
            tv_sec: self.rng.i64(0..2_000_000_000),
            tv_nsec: self.rng.i64(0..1_000_000_000) as _,
        };
        let times = Timestamps { last_access: time, last_modification: time };
        rustix::fs::utimensat(CWD, &path, &times, AtFlags::SYMLINK_NOFOLLOW)?;
        Ok(Some(format!("{} {}.{:09}", self.tell(&path), time.tv_sec, time.tv_nsec)))
    }

    fn set_xattr(&mut self) -> Done {
        let Some(path) = self.any() else { return Ok(None) };
        let kind = FileType::from_raw_mode(fs::symlink_metadata(&path)?.mode());
        let user = matches!(kind, FileType::RegularFile | FileType::Directory);
        let names: &[&str] = match (user, self.privileged) {
            (true, true) => &["user.one", "user.two", "trusted.one"],
            (true, false) => &["user.one", "user.two"],
            (false, true) => &["trusted.one"],
            (false, false) => return Ok(None),
        };
        let name = names[self.rng.usize(..names.len())];
        let length = self.rng.usize(..200);
        let value = self.bytes(length);
        rustix::fs::lsetxattr(&path, name, &value, XattrFlags::empty())?;
        Ok(Some(format!("{} {name}", self.tell(&path))))
    }

    fn remove_xattr(&mut self) -> Done {
        let with = self.entries().into_iter().filter_map(|(path, _)| {
            let mut list = [0u8; 1024];
            let length = rustix::fs::llistxattr(&path, &mut list[..]).ok()?;
            let name = list[..length].split(|&byte| byte == 0).find(|name| {
                name.starts_with(b"user.")
                    || name.starts_with(b"trusted.")
                    || name.starts_with(b"system.posix_acl")
            })?;
            Some((path, name.to_vec()))
        });
        let Some((path, name)) = self.rng.choice(with.collect::<Vec<_>>()) else {
            return Ok(None);
        };
        rustix::fs::lremovexattr(&path, OsStr::from_bytes(&name))?;
        Ok(Some(format!("{} {}", self.tell(&path), name.escape_ascii())))
    }

    fn set_acl(&mut self) -> Done {
        let Some(path) = self.any() else { return Ok(None) };
        let metadata = fs::symlink_metadata(&path)?;
        if metadata.is_symlink() {
            return Ok(None);
        }
        let default = metadata.is_dir() && self.rng.bool();
        let name = if default { "system.posix_acl_default" } else { "system.posix_acl_access" };
        let value = acl(self.rng.u32(1000..1003), self.rng.u16(..8));
        rustix::fs::lsetxattr(&path, name, &value, XattrFlags::empty())?;
        Ok(Some(format!("{} {name}", self.tell(&path))))
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

/// Writes a regular file in place, or a new one.
fn write(path: impl AsRef<Path>, content: impl AsRef<[u8]>) -> io::Result<()> {
    let mut options = File::options();
    options.create(true).write(true).truncate(true);
    open(path.as_ref(), &mut options)?.write_all(content.as_ref())
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
    (10, "same size, same time", Operations::same_size_same_time),
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

const NAMES: &[&[u8]] = &[b"a", b"b", b"c", b"d"];
const UNUSUAL: &[&[u8]] = &[b"not\xffutf8", b"new\nline", b" ", b"-rf", b"\\", b"*?[", b"~a"];

/// Levels of entries below the root.
const DEPTH_MAX: usize = 5;

/// Above this, trees are removed until it is below again.
const ENTRIES_MAX: usize = 120;

/// Shortened files held open at once.
const TRUNCATED_OPEN_MAX: usize = 100;
