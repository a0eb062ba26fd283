//! The trees and the file systems they lie on.

use std::fs::{self, File};
use std::io::Write as _;
use std::ops::Range;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use crate::Options;
use crate::common::machine::{Mount, has_tool, is_root, run, scratch};

/// A source tree, and a place for replicas that is new for each run.
pub struct Ground {
    pub about: String,
    pub generated: bool,
    /// Bytes of memory that a tree takes.
    pub tree_bytes: u64,
    src: Volume,
    dst: Volume,
    mkfs: Vec<String>,
    serial: std::cell::Cell<u64>,
}

enum Volume {
    Ext4(Mount),
    Plain(tempfile::TempDir),
}

impl Volume {
    fn new(bytes: u64, mkfs: &[String]) -> Result<Volume, String> {
        if is_root() && has_tool("mkfs.ext4") {
            let args: Vec<&str> = mkfs.iter().map(String::as_str).collect();
            match Mount::ext4(bytes, &args) {
                Ok(mount) => return Ok(Volume::Ext4(mount)),
                Err(error) => println!("no loop mount: {error}"),
            }
        }
        Ok(Volume::Plain(scratch()))
    }

    fn path(&self) -> &Path {
        match self {
            Volume::Ext4(mount) => &mount.path,
            Volume::Plain(directory) => directory.path(),
        }
    }
}

impl Ground {
    pub fn prepare(options: &Options) -> Result<Ground, String> {
        let fold = if options.tenfold { 11 } else { 2 };
        let (entries, bytes) = match &options.tree {
            Some(tree) => size_of(tree).map_err(|error| format!("{}: {error}", tree.display()))?,
            // A file of 6 KB takes two blocks of 4 KB, or one.
            None => (options.files + 6000, options.files as u64 * 8500 + (24 << 20)),
        };
        let inodes = entries * fold + 100_000;
        let mkfs = ["-N", &inodes.to_string()];
        // Room for a tree, the changes, the big file, the journal and the inode tables.
        let size = bytes * 3 / 2 + options.big_bytes + (600 << 20) + inodes as u64 * 256;
        let mut ground = Ground::empty(size, bytes, &mkfs)?;
        ground.generated = options.tree.is_none();
        let kind = match &ground.src {
            Volume::Ext4(_) => "journaled ext4 images in".to_owned(),
            Volume::Plain(_) => "plain directories in".to_owned(),
        };
        let base = crate::common::machine::scratch_base();
        let what = match &options.tree {
            Some(tree) => {
                run(Command::new("cp").args(["-a", "-T"]).arg(tree).arg(ground.src()))?;
                "copy of MIRROR_BENCH_TREE".to_owned()
            }
            None => {
                generate(&ground.src(), options.files).map_err(|error| error.to_string())?;
                "generated tree".to_owned()
            }
        };
        let about = format!(
            "{what}: {entries} entries, {} MB; on {kind} {} ({}); {} cores",
            bytes / 1_000_000,
            base.display(),
            if base.starts_with("/dev/shm") { "RAM" } else { "not known to be RAM" },
            std::thread::available_parallelism().map_or(0, usize::from),
        );
        Ok(Ground { about, ..ground })
    }

    /// Makes file systems of `size` bytes for a tree that takes `tree_bytes`, and for replicas.
    pub fn empty(size: u64, tree_bytes: u64, mkfs: &[&str]) -> Result<Ground, String> {
        let mkfs: Vec<String> = mkfs.iter().copied().map(str::to_owned).collect();
        let ground = Ground {
            about: String::new(),
            generated: true,
            tree_bytes,
            src: Volume::new(size, &mkfs)?,
            dst: Volume::new(size, &mkfs)?,
            mkfs,
            serial: 0.into(),
        };
        fs::create_dir(ground.src()).map_err(|error| error.to_string())?;
        fs::create_dir(ground.outside()).map_err(|error| error.to_string())?;
        Ok(ground)
    }

    pub fn src(&self) -> PathBuf {
        self.src.path().join("tree")
    }

    /// On the file system of the source, outside of its tree.
    pub fn outside(&self) -> PathBuf {
        self.src.path().join("outside")
    }

    /// Returns an empty directory on a file system as good as new; the last one is gone.
    pub fn new_dst(&self) -> Result<PathBuf, String> {
        let path = match &self.dst {
            Volume::Ext4(mount) => {
                let args: Vec<&str> = self.mkfs.iter().map(String::as_str).collect();
                renew(mount, &args)?;
                mount.path.join("replica")
            }
            Volume::Plain(directory) => {
                let before = directory.path().join(format!("replica-{}", self.serial.get()));
                let _ = fs::remove_dir_all(before);
                self.serial.set(self.serial.get() + 1);
                directory.path().join(format!("replica-{}", self.serial.get()))
            }
        };
        fs::create_dir(&path).map_err(|error| error.to_string())?;
        touch_memory(self.tree_bytes * 3 / 2);
        Ok(path)
    }

    /// Returns how many inodes are in use where replicas are, if that tells anything.
    pub fn dst_inodes(&self) -> Option<u64> {
        match &self.dst {
            Volume::Ext4(mount) => {
                let stat = rustix::fs::statvfs(&mount.path).ok()?;
                Some(stat.f_files - stat.f_ffree)
            }
            Volume::Plain(_) => None,
        }
    }
}

/// What ended a moment ago may still hold the mount.
fn renew(mount: &Mount, mkfs: &[&str]) -> Result<(), String> {
    let mut tries = 0;
    loop {
        match mount.renew(mkfs) {
            Err(error) if error.contains("busy") && tries < 50 => {
                tries += 1;
                std::thread::sleep(Duration::from_millis(200));
            }
            other => return other,
        }
    }
}

/// Touches and frees so much memory.
fn touch_memory(bytes: u64) {
    let mut memory = vec![0u8; bytes.min(memory_available() / 4) as usize];
    for page in memory.chunks_mut(4096) {
        page[0] = 1;
    }
    std::hint::black_box(&memory);
}

/// Returns the memory that may be had, in bytes.
pub fn memory_available() -> u64 {
    let info = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let line = info.lines().find_map(|line| line.strip_prefix("MemAvailable:"));
    let kib = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
    kib.unwrap_or(1 << 20) * 1024
}

/// Returns entries and allocated bytes of a tree.
fn size_of(path: &Path) -> std::io::Result<(usize, u64)> {
    let (mut entries, mut bytes) = (0, 0);
    for entry in fs::read_dir(path)? {
        let entry = entry?;
        let metadata = entry.metadata()?;
        entries += 1;
        bytes += metadata.blocks() * 512;
        if metadata.is_dir() {
            let below = size_of(&entry.path())?;
            entries += below.0;
            bytes += below.1;
        }
    }
    Ok((entries, bytes))
}

/// Makes a tree of `files` files, about 6 KB each, in 5,043 directories: three at the top, of a
/// third of all each.
fn generate(root: &Path, files: usize) -> std::io::Result<()> {
    let mut rng = fastrand::Rng::with_seed(6);
    let mut noise = vec![0; 2 << 20];
    rng.fill(&mut noise);
    // Half of it repeats, as text does.
    for chunk in noise.chunks_mut(64).step_by(2) {
        chunk.fill(b' ');
    }
    let mut leaves = Vec::new();
    for (a, b, c) in (0..3 * 40 * 41).map(|n| (n / (40 * 41), n / 41 % 40, n % 41)) {
        let path = root.join(format!("part-{a}/section-{b:02}/dir-{c:02}"));
        fs::create_dir_all(&path)?;
        leaves.push(path);
    }
    for number in 0..files {
        let leaf = &leaves[number % leaves.len()];
        let size = small_size(&mut rng);
        let offset = rng.usize(..noise.len() - size);
        let path = leaf.join(format!("file-{number}.txt"));
        File::create(path)?.write_all(&noise[offset..offset + size])?;
    }
    Ok(())
}

/// Makes `directories` below `root`, at most 100 side by side, with `files` in each: one of `part`
/// has noise in it, the others are empty.
pub fn fill(
    root: &Path,
    directories: Range<usize>,
    files: usize,
    bytes: usize,
    part: usize,
) -> std::io::Result<()> {
    let mut rng = fastrand::Rng::with_seed(directories.start as u64);
    let mut noise = vec![0; bytes];
    for number in directories {
        let path = root.join(format!("part-{:03}/dir-{:02}", number / 100, number % 100));
        fs::create_dir_all(&path)?;
        for number in 0..files {
            rng.fill(&mut noise);
            let content = if number % part == 0 { &noise[..] } else { &[] };
            fs::write(path.join(format!("file-{number:04}")), content)?;
        }
    }
    Ok(())
}

/// Returns a size in bytes, log-normal, 6 KB on average, at most 1 MiB.
fn small_size(rng: &mut fastrand::Rng) -> usize {
    const SIGMA: f64 = 1.2;
    let normal = (0..12).map(|_| rng.f64()).sum::<f64>() - 6.0;
    let size = (6144f64.ln() - SIGMA * SIGMA / 2.0 + SIGMA * normal).exp();
    (size as usize).min(1 << 20)
}
