//! Equality of two trees in every attribute that a replica preserves.

use std::collections::{BTreeMap, HashMap};
use std::ffi::{CStr, OsStr};
use std::fmt::Write as _;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use rustix::fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags, Stat};
use rustix::io::Errno;

/// Compares a source's tree with a replica's; `/.mirror` belongs to neither.
pub struct Judge {
    src: PathBuf,
    dst: PathBuf,
    owners: bool,
    directory_times: bool,
}

/// What is left out of a comparison to make it cheap.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Depth {
    /// All but contents.
    Metadata,
    /// Everything.
    Full,
}

impl Judge {
    pub fn new(src: impl Into<PathBuf>, dst: impl Into<PathBuf>) -> Self {
        Judge { src: src.into(), dst: dst.into(), owners: true, directory_times: true }
    }

    /// Does not compare owners: for sinks that do not run as root.
    pub fn without_owners(mut self) -> Self {
        self.owners = false;
        self
    }

    /// Does not compare directories' times: for lsyncd, which does not keep them.
    pub fn without_directory_times(mut self) -> Self {
        self.directory_times = false;
        self
    }

    /// Returns what differs, one readable line each; empty when the trees are equal.
    pub fn differences(&self) -> Vec<String> {
        self.compare(Depth::Full)
    }

    /// Returns what differs, looking no deeper than `depth`.
    pub fn compare(&self, depth: Depth) -> Vec<String> {
        let (src, dst) = match (Snapshot::take(&self.src, depth), Snapshot::take(&self.dst, depth))
        {
            (Ok(src), Ok(dst)) => (src, dst),
            (Err(error), _) => return vec![format!("{}: {error}", self.src.display())],
            (_, Err(error)) => return vec![format!("{}: {error}", self.dst.display())],
        };
        let mut differences = Vec::new();
        for (path, ours) in &src.entries {
            match dst.entries.get(path) {
                None => differences.push(format!("{}: missing ({:?})", show(path), ours.kind)),
                Some(theirs) => {
                    let mut details = ours.differences(theirs, self.owners, self.directory_times);
                    let (a, b) = (src.group(path, ours), dst.group(path, theirs));
                    if a != b {
                        details.push(format!("linked with {:?} ≠ {:?}", show(a), show(b)));
                    }
                    if !details.is_empty() {
                        differences.push(format!("{}: {}", show(path), details.join(", ")));
                    }
                }
            }
        }
        for (path, theirs) in &dst.entries {
            if !src.entries.contains_key(path) {
                differences.push(format!("{}: left over ({:?})", show(path), theirs.kind));
            }
        }
        differences
    }

    /// Polls until the trees are equal; panics with the differences after `timeout`.
    pub fn wait(&self, timeout: Duration) {
        let started = Instant::now();
        let mut pause = Duration::from_millis(5);
        loop {
            // Contents cost the most, so they are looked at only once all else is equal.
            let mut differences = self.compare(Depth::Metadata);
            if differences.is_empty() {
                differences = self.compare(Depth::Full);
            }
            if differences.is_empty() {
                return;
            }
            if started.elapsed() >= timeout {
                panic!(
                    "not equal after {timeout:?}: {} ≠ {}\n{}",
                    self.src.display(),
                    self.dst.display(),
                    summary(&differences)
                );
            }
            std::thread::sleep(pause);
            pause = (pause * 2).min(Duration::from_millis(200));
        }
    }
}

/// Polls until `dst` equals `src`; panics with the differences after `timeout`.
pub fn wait_equal(src: &Path, dst: &Path, timeout: Duration) {
    Judge::new(src, dst).wait(timeout);
}

/// Panics unless `dst` equals `src` by both judges, ours and rsync's.
pub fn assert_equal(src: &Path, dst: &Path) {
    let differences = Judge::new(src, dst).differences();
    assert!(differences.is_empty(), "trees differ\n{}", summary(&differences));
    rsync_judge(src, dst);
}

/// Panics unless rsync finds nothing to do between the trees.
pub fn rsync_judge(src: &Path, dst: &Path) {
    match rsync_differences(src, dst) {
        Some(lines) => assert!(lines.is_empty(), "rsync finds differences:\n{lines}"),
        None => super::skip("rsync is not installed"),
    }
}

/// Returns rsync's itemized changes, `None` when there is no rsync.
pub fn rsync_differences(src: &Path, dst: &Path) -> Option<String> {
    let slash = |path: &Path| {
        let mut text = path.as_os_str().to_owned();
        text.push("/");
        text
    };
    let output = Command::new("rsync")
        .args(["-aHAX", "--checksum", "-n", "-i", "--delete", "--exclude=/.mirror"])
        .args([slash(src), slash(dst)])
        .output()
        .ok()?;
    let mut lines = String::from_utf8_lossy(&output.stdout).into_owned();
    if !output.status.success() {
        let _ = write!(lines, "{} {}", output.status, String::from_utf8_lossy(&output.stderr));
    }
    Some(lines)
}

/// Returns the first differences of many, one a line.
pub fn summary(differences: &[String]) -> String {
    let mut text = differences.iter().take(40).fold(String::new(), |text, line| text + line + "\n");
    if differences.len() > 40 {
        let _ = writeln!(text, "… and {} more", differences.len() - 40);
    }
    text
}

/// One tree as it is now, by path relative to its root (the root itself is empty).
pub struct Snapshot {
    pub entries: BTreeMap<Vec<u8>, State>,
    /// The first name of each multiply linked inode.
    groups: HashMap<(u64, u64), Vec<u8>>,
}

/// Everything about one entry that a replica preserves, and what tells how.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct State {
    pub kind: FileType,
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    pub mtime: (i64, i64),
    pub size: u64,
    pub allocated: u64,
    pub rdev: u64,
    pub inode: (u64, u64),
    pub links: u64,
    pub target: Vec<u8>,
    pub xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    pub digest: Option<blake3::Hash>,
}

impl Snapshot {
    /// Reads the tree at `root`. What vanishes meanwhile is left out.
    pub fn take(root: &Path, depth: Depth) -> rustix::io::Result<Snapshot> {
        let mut snapshot = Snapshot { entries: BTreeMap::new(), groups: HashMap::new() };
        let root = rustix::fs::open(root, DIRECTORY, Mode::empty())?;
        let state = State::read(CWD, &proc_path(root.as_fd(), b"."), depth, &mut HashMap::new())?;
        snapshot.entries.insert(Vec::new(), state);
        snapshot.descend(&root, &mut Vec::new(), depth, &mut HashMap::new())?;
        for (path, state) in &snapshot.entries {
            if state.links > 1 && state.kind != FileType::Directory {
                snapshot.groups.entry(state.inode).or_insert_with(|| path.clone());
            }
        }
        Ok(snapshot)
    }

    fn descend(
        &mut self,
        directory: &OwnedFd,
        path: &mut Vec<u8>,
        depth: Depth,
        digests: &mut HashMap<(u64, u64), blake3::Hash>,
    ) -> rustix::io::Result<()> {
        for entry in Dir::read_from(directory)? {
            let entry = entry?;
            let name = entry.file_name();
            let bytes = name.to_bytes();
            if bytes == b"." || bytes == b".." || (path.is_empty() && bytes == b".mirror") {
                continue;
            }
            let state = match State::read(directory.as_fd(), name, depth, digests) {
                Err(Errno::NOENT | Errno::NXIO) => continue,
                other => other?,
            };
            let length = path.len();
            if length > 0 {
                path.push(b'/');
            }
            path.extend_from_slice(bytes);
            let kind = state.kind;
            self.entries.insert(path.clone(), state);
            if kind == FileType::Directory {
                match rustix::fs::openat(directory, name, DIRECTORY, Mode::empty()) {
                    Ok(child) => self.descend(&child, path, depth, digests)?,
                    Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => {}
                    Err(error) => return Err(error),
                }
            }
            path.truncate(length);
        }
        Ok(())
    }

    /// Returns the first name with the same inode: equal for equal groups.
    fn group<'a>(&'a self, path: &'a [u8], state: &State) -> &'a [u8] {
        match self.groups.get(&state.inode) {
            Some(first) if state.kind != FileType::Directory => first,
            _ => path,
        }
    }
}

impl State {
    fn read(
        directory: BorrowedFd<'_>,
        name: &CStr,
        depth: Depth,
        digests: &mut HashMap<(u64, u64), blake3::Hash>,
    ) -> rustix::io::Result<State> {
        let stat: Stat = rustix::fs::statat(directory, name, AtFlags::SYMLINK_NOFOLLOW)?;
        let kind = FileType::from_raw_mode(stat.st_mode);
        let inode = (stat.st_dev, stat.st_ino);
        let target = match kind {
            FileType::Symlink => rustix::fs::readlinkat(directory, name, Vec::new())?.into_bytes(),
            _ => Vec::new(),
        };
        let digest = match kind {
            FileType::RegularFile if depth == Depth::Full => Some(match digests.get(&inode) {
                Some(digest) if stat.st_nlink > 1 => *digest,
                _ => {
                    let digest = read_digest(directory, name)?;
                    digests.insert(inode, digest);
                    digest
                }
            }),
            _ => None,
        };
        let device = matches!(kind, FileType::CharacterDevice | FileType::BlockDevice);
        let sized = matches!(kind, FileType::RegularFile | FileType::Symlink);
        Ok(State {
            kind,
            // Symlinks have no mode of their own on Linux.
            mode: if kind == FileType::Symlink { 0 } else { stat.st_mode & 0o7777 },
            uid: stat.st_uid,
            gid: stat.st_gid,
            mtime: (stat.st_mtime as i64, stat.st_mtime_nsec as i64),
            size: if sized { stat.st_size as u64 } else { 0 },
            allocated: stat.st_blocks as u64 * 512,
            rdev: if device { stat.st_rdev } else { 0 },
            inode,
            links: stat.st_nlink as u64,
            target,
            xattrs: read_xattrs(directory, name)?,
            digest,
        })
    }

    fn differences(&self, theirs: &State, owners: bool, directory_times: bool) -> Vec<String> {
        let mut found = Vec::new();
        if self.kind != theirs.kind {
            return vec![format!("{:?} ≠ {:?}", self.kind, theirs.kind)];
        }
        if self.mode != theirs.mode {
            found.push(format!("mode {:o} ≠ {:o}", self.mode, theirs.mode));
        }
        if owners && (self.uid, self.gid) != (theirs.uid, theirs.gid) {
            found.push(format!("owner {}:{} ≠ {}:{}", self.uid, self.gid, theirs.uid, theirs.gid));
        }
        let timed = directory_times || self.kind != FileType::Directory;
        if timed && self.mtime != theirs.mtime {
            found.push(format!("mtime {:?} ≠ {:?}", self.mtime, theirs.mtime));
        }
        if self.size != theirs.size {
            found.push(format!("size {} ≠ {}", self.size, theirs.size));
        } else if self.digest != theirs.digest {
            found.push("content differs".to_owned());
        }
        if self.target != theirs.target {
            found.push(format!("target {:?} ≠ {:?}", show(&self.target), show(&theirs.target)));
        }
        if self.rdev != theirs.rdev {
            found.push(format!("device {:#x} ≠ {:#x}", self.rdev, theirs.rdev));
        }
        if self.xattrs != theirs.xattrs {
            let text = |xattrs: &BTreeMap<Vec<u8>, Vec<u8>>| {
                let all = xattrs.iter().map(|(name, value)| (show(name), show(value)));
                format!("{:?}", all.collect::<Vec<_>>())
            };
            found.push(format!("xattrs {} ≠ {}", text(&self.xattrs), text(&theirs.xattrs)));
        }
        let sparse = self.kind == FileType::RegularFile && self.allocated < self.size;
        if sparse && theirs.allocated > self.allocated + HOLE_SLACK_BYTES {
            found.push(format!("holes: {} allocated ≠ {}", self.allocated, theirs.allocated));
        }
        found
    }
}

/// Returns `bytes` as text, with what is not printable escaped.
pub fn show(bytes: &[u8]) -> String {
    if bytes.is_empty() { ".".to_owned() } else { bytes.escape_ascii().to_string() }
}

fn read_digest(directory: BorrowedFd<'_>, name: &CStr) -> rustix::io::Result<blake3::Hash> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let file = rustix::fs::openat(directory, name, flags, Mode::empty())?;
    let mut hasher = blake3::Hasher::new();
    let mut buffer = vec![0; 128 << 10];
    loop {
        match rustix::io::read(&file, &mut buffer)? {
            0 => return Ok(hasher.finalize()),
            count => hasher.update(&buffer[..count]),
        };
    }
}

fn read_xattrs(
    directory: BorrowedFd<'_>,
    name: &CStr,
) -> rustix::io::Result<BTreeMap<Vec<u8>, Vec<u8>>> {
    // The descriptor's name under /proc keeps this short however deep the entry lies.
    let path = proc_path(directory, name.to_bytes());
    let mut list = vec![0u8; 4096];
    let length = match rustix::fs::llistxattr(path.as_c_str(), &mut list[..]) {
        Err(Errno::NOTSUP) => return Ok(BTreeMap::new()),
        other => other?,
    };
    let mut xattrs = BTreeMap::new();
    for xattr in list[..length].split(|&byte| byte == 0).filter(|xattr| !xattr.is_empty()) {
        let mirrored = [&b"user."[..], b"trusted.", b"system.posix_acl_"];
        if !mirrored.iter().any(|prefix| xattr.starts_with(prefix))
            && xattr != b"security.capability"
            // How xfs shows root the ACLs a second time.
            || xattr.starts_with(b"trusted.SGI_ACL_")
        {
            continue;
        }
        let mut value = vec![0u8; 64 << 10];
        match rustix::fs::lgetxattr(path.as_c_str(), OsStr::from_bytes(xattr), &mut value[..]) {
            Err(Errno::NODATA | Errno::NOENT) => {}
            other => {
                value.truncate(other?);
                xattrs.insert(xattr.to_vec(), value);
            }
        }
    }
    Ok(xattrs)
}

fn proc_path(directory: BorrowedFd<'_>, name: &[u8]) -> std::ffi::CString {
    let mut path = match directory.as_raw_fd() {
        fd if fd < 0 => Vec::new(),
        fd => format!("/proc/self/fd/{fd}/").into_bytes(),
    };
    path.extend_from_slice(name);
    std::ffi::CString::new(path).expect("names hold no NUL")
}

/// Allocation granularity differs between file systems, and extents take blocks as well.
const HOLE_SLACK_BYTES: u64 = 64 << 10;

const DIRECTORY: OFlags =
    OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);
