//! The initial sync, its limit on this machine, and what memory a tree takes.

use super::*;

pub(super) fn initial_once(
    tool: Tool,
    run: u64,
    ground: &Ground,
    table: &mut Table,
) -> Result<(), String> {
    let (src, dst) = (ground.src(), ground.new_dst()?);
    let expected = Expected::of(&src).map_err(|error| error.to_string())?;
    let daemon = if tool == Tool::Rsync { Some(Daemon::start(&dst)?) } else { None };
    let cpu = || {
        let daemon_cpu_s = daemon.as_ref().map_or(0.0, |daemon| daemon.process.usage().all_cpu_s());
        let own = Usage::of(std::process::id());
        daemon_cpu_s + if tool == Tool::Own { own.cpu_s } else { own.children_cpu_s }
    };
    let (cpu_before, wire_before, started) = (cpu(), loopback_bytes(), Instant::now());
    match tool {
        Tool::Own => build(&dst, &expected).map_err(|error| error.to_string())?,
        Tool::Tar => {
            let script = "tar -C \"$0\" -cf - . | tar -C \"$1\" -xpf -";
            run_command(Command::new("sh").args(["-c", script]).arg(&src).arg(&dst))?;
        }
        _ => {
            let mut from = src.clone().into_os_string();
            from.push("/");
            let url = &daemon.as_ref().expect("started above").url;
            run_command(Command::new("rsync").args(["-aHAX", "--delete"]).arg(from).arg(url))?;
        }
    }
    table.add(Row::Initial, tool, started.elapsed().as_secs_f64());
    if tool == Tool::Rsync {
        table.add(Row::InitialWire, tool, (loopback_bytes() - wire_before) as f64 / 1e6);
        // The daemon's child is counted once it is reaped.
        std::thread::sleep(Duration::from_millis(200));
    }
    table.add(Row::InitialCpu, tool, cpu() - cpu_before);
    match tool {
        _ if run > 0 => Ok(()),
        // It has no contents to copy.
        Tool::Own => check_equal(tool, &src, &dst, Depth::Metadata),
        // Its format keeps whole seconds only.
        Tool::Tar => Ok(()),
        _ => check_equal(tool, &src, &dst, Depth::Full),
    }
}

pub(super) fn initial_live(
    tool: Tool,
    ground: &Ground,
    dst: &Path,
    table: Option<&mut Table>,
) -> Result<Live, String> {
    let src = ground.src();
    let expected = Expected::of(&src).map_err(|error| error.to_string())?;
    let inodes_before = ground.dst_inodes();
    let (mut live, wire_before, started);
    if tool == Tool::Mirror {
        let (source, url) = Live::mirror_source(&src)?;
        (live, wire_before, started) = (source, loopback_bytes(), Instant::now());
        live.mirror_sink(&url, dst)?;
    } else {
        (wire_before, started) = (loopback_bytes(), Instant::now());
        live = Live::lsyncd(&src, dst)?;
    }
    let enough = || match (inodes_before, ground.dst_inodes()) {
        (Some(before), Some(now)) => now - before >= expected.inodes,
        _ => true,
    };
    let mut checked = Instant::now();
    let seconds = loop {
        if enough() && live.says_initial_done() && expected.has_root_timed(dst, tool) {
            // To look at each takes time of its own, in which nothing changes if all is there.
            let seconds = started.elapsed().as_secs_f64();
            if expected.is_timed(dst, tool) && count(dst, true) == expected.entries {
                break seconds;
            }
        }
        if started.elapsed() > patience(tool) {
            return Err(format!("no initial sync within {:?}", patience(tool)));
        }
        if checked.elapsed() > Duration::from_millis(200) {
            live.check()?;
            checked = Instant::now();
        }
        std::thread::sleep(Duration::from_millis(2));
    };
    if let Some(table) = table {
        table.add(Row::Initial, tool, seconds);
        table.add(Row::InitialWire, tool, (loopback_bytes() - wire_before) as f64 / 1e6);
        if tool == Tool::Lsyncd {
            // rsync counts once lsyncd has reaped it.
            std::thread::sleep(Duration::from_secs(1));
        }
        table.add(Row::InitialCpu, tool, live.cpu_s());
    }
    Ok(live)
}

/// Ten times the files in the same directories: what memory it takes.
pub fn tenfold(ground: &Ground, table: &mut Table) -> Result<(), String> {
    let expected = Expected::of(&ground.src()).map_err(|error| error.to_string())?;
    for directory in &expected.directories {
        for number in 0..directory.files.len() * 9 {
            let path = ground.src().join(&directory.path).join(format!("more-{number}"));
            File::create(path).map_err(|error| error.to_string())?;
        }
    }
    let dst = ground.new_dst()?;
    let live = initial_live(Tool::Mirror, ground, &dst, None)?;
    std::thread::sleep(Duration::from_secs(1));
    let usages = live.usages();
    for (usage, row) in usages.iter().zip([Row::MemorySourceTenfold, Row::MemorySinkTenfold]) {
        table.add(row, Tool::Mirror, megabytes(usage.resident_bytes));
    }
    live.stop();
    Ok(())
}

/// What a replica is to have, in the order in which directories can be made.
pub(super) struct Expected {
    pub(super) directories: Vec<Directory>,
    pub(super) entries: usize,
    pub(super) inodes: u64,
}

pub(super) struct Directory {
    pub(super) path: PathBuf,
    pub(super) metadata: Metadata,
    pub(super) files: Vec<(OsString, Metadata)>,
}

impl Directory {
    fn is_timed(&self, dst: &Path) -> bool {
        fs::symlink_metadata(dst.join(&self.path))
            .is_ok_and(|metadata| mtime(&metadata) == mtime(&self.metadata))
    }
}

impl Expected {
    pub(super) fn of(root: &Path) -> std::io::Result<Expected> {
        let mut expected = Expected { directories: Vec::new(), entries: 0, inodes: 0 };
        expected.descend(root, PathBuf::new())?;
        let mut seen = BTreeSet::new();
        for (_, metadata) in expected.directories.iter().flat_map(|directory| &directory.files) {
            if metadata.nlink() == 1 || seen.insert(metadata.ino()) {
                expected.inodes += 1;
            }
        }
        // The root is there already.
        expected.inodes += expected.directories.len() as u64 - 1;
        Ok(expected)
    }

    fn descend(&mut self, root: &Path, path: PathBuf) -> std::io::Result<()> {
        let full = root.join(&path);
        let mut files = Vec::new();
        let mut below = Vec::new();
        for entry in fs::read_dir(&full)? {
            let entry = entry?;
            self.entries += 1;
            if entry.file_type()?.is_dir() {
                below.push(path.join(entry.file_name()));
            } else {
                files.push((entry.file_name(), entry.metadata()?));
            }
        }
        let metadata = fs::symlink_metadata(&full)?;
        self.directories.push(Directory { path, metadata, files });
        below.into_iter().try_for_each(|path| self.descend(root, path))
    }

    /// Returns whether each directory of `dst` has its time, which comes last.
    fn is_timed(&self, dst: &Path, tool: Tool) -> bool {
        !tool.keeps_directory_times() || self.directories.iter().all(|it| it.is_timed(dst))
    }

    /// Returns whether the first of them has, the last one to get it.
    fn has_root_timed(&self, dst: &Path, tool: Tool) -> bool {
        !tool.keeps_directory_times() || self.directories[0].is_timed(dst)
    }
}

/// Counts entries below `path`.
pub(super) fn count(path: &Path, root: bool) -> usize {
    let Ok(list) = fs::read_dir(path) else { return 0 };
    let mut found = 0;
    for entry in list.flatten() {
        if root && entry.file_name() == ".mirror" {
            continue;
        }
        found += 1;
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            found += count(&entry.path(), false);
        }
    }
    found
}

/// Builds the tree as fast as one thread can: each directory under a temporary name, its files
/// in place, renamed once; times of directories last. Contents are right in length only.
pub(super) fn build(dst: &Path, expected: &Expected) -> std::io::Result<()> {
    let noise = vec![b'x'; 1 << 20];
    for directory in &expected.directories {
        let path = dst.join(&directory.path);
        let root = directory.path.as_os_str().is_empty();
        let temporary = if root { path.clone() } else { path.with_file_name(".building") };
        if !root {
            rustix::fs::mkdirat(CWD, &temporary, Mode::from(0o700))?;
        }
        let flags = OFlags::DIRECTORY | OFlags::CLOEXEC;
        let descriptor = rustix::fs::openat(CWD, &temporary, flags, Mode::empty())?;
        for (name, metadata) in &directory.files {
            if metadata.file_type().is_symlink() {
                // Its content is not right either, but it is a link as long as the true one.
                let target = "x".repeat(metadata.len() as usize);
                rustix::fs::symlinkat(target, &descriptor, name)?;
                continue;
            }
            let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC;
            let mode = Mode::from(0o600);
            let file = rustix::fs::openat(&descriptor, name, flags, mode)?;
            let mut left = if metadata.is_file() { metadata.len() as usize } else { 0 };
            while left > 0 {
                left -= rustix::io::write(&file, &noise[..left.min(noise.len())])?;
            }
            let (owner, group) = (Uid::from_raw(metadata.uid()), Gid::from_raw(metadata.gid()));
            rustix::fs::fchown(&file, Some(owner), Some(group))?;
            rustix::fs::fchmod(&file, Mode::from(metadata.mode() & 0o7777))?;
            rustix::fs::futimens(&file, &times(metadata))?;
        }
        rustix::fs::fchmod(&descriptor, Mode::from(directory.metadata.mode() & 0o7777))?;
        if !root {
            rustix::fs::renameat(CWD, &temporary, CWD, &path)?;
        }
    }
    for directory in expected.directories.iter().rev() {
        let path = dst.join(&directory.path);
        rustix::fs::utimensat(CWD, &path, &times(&directory.metadata), AtFlags::empty())?;
    }
    Ok(())
}

pub(super) fn times(metadata: &Metadata) -> Timestamps {
    let time = Timespec { tv_sec: metadata.mtime(), tv_nsec: metadata.mtime_nsec() as _ };
    Timestamps { last_access: time, last_modification: time }
}
