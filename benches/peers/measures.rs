//! The measures themselves.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs::{self, File, Metadata};
use std::io::Write as _;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use inotify::{Inotify, WatchMask};
use rustix::fs::{AtFlags, CWD, Gid, Mode, OFlags, Timespec, Timestamps, Uid};

use crate::Options;
use crate::common::judge::{Depth, Judge, summary};
use crate::common::machine::run as run_command;
use crate::common::process::Usage;
use crate::ground::Ground;
use crate::table::{Row, Table};
use crate::tools::{Daemon, Live, Tool};

/// Uses memory and images once, so that the first timed run pays no more than the others.
pub fn warm_up(ground: &Ground) -> Result<(), String> {
    let expected = Expected::of(&ground.src()).map_err(|error| error.to_string())?;
    build(&ground.new_dst()?, &expected).map_err(|error| error.to_string())
}

/// Runs one tool once through everything that was asked for.
pub fn run(
    tool: Tool,
    run: u64,
    ground: &Ground,
    options: &Options,
    table: &mut Table,
) -> Result<(), String> {
    let own = tool == Tool::Own && (options.wants("own") || options.wants("initial"));
    let once = matches!(tool, Tool::Tar | Tool::Rsync) && options.wants("initial");
    if own || once {
        return initial_once(tool, run, ground, table);
    }
    if !matches!(tool, Tool::Mirror | Tool::Lsyncd) {
        return Ok(());
    }
    let dst = ground.new_dst()?;
    let mut live = initial_live(tool, ground, &dst, options.wants("initial").then_some(table))?;
    check_equal(tool, &ground.src(), &dst, if run == 0 { Depth::Full } else { Depth::Metadata })?;
    let measured = live_measures(&mut live, run, ground, &dst, options, table);
    live.stop();
    measured
}

fn live_measures(
    live: &mut Live,
    run: u64,
    ground: &Ground,
    dst: &Path,
    options: &Options,
    table: &mut Table,
) -> Result<(), String> {
    let tool = live.tool;
    let mirror = tool == Tool::Mirror;
    if options.wants("memory") {
        // A moment for what is done after the last entry is in place.
        std::thread::sleep(Duration::from_secs(1));
        let usages = live.usages();
        let rows =
            [(Row::MemorySource, Row::MemorySourcePeak), (Row::MemorySink, Row::MemorySinkPeak)];
        // lsyncd's second process is the daemon, whose work is done by its children.
        for (usage, (row, peak)) in usages.iter().zip(rows).take(if mirror { 2 } else { 1 }) {
            table.add(row, tool, megabytes(usage.resident_bytes));
            table.add(peak, tool, megabytes(usage.resident_bytes_max));
        }
    }
    if options.wants("idle") {
        let before = live.usages();
        std::thread::sleep(Duration::from_secs(IDLE_S));
        let after = live.usages();
        let sum = |usages: &[Usage]| {
            let busy_ns: u64 = usages.iter().map(|usage| usage.busy_ns).sum();
            (busy_ns as f64, usages.iter().map(|usage| usage.sleeps).sum::<u64>() as f64)
        };
        let ((busy_before, sleeps_before), (busy, sleeps)) = (sum(&before), sum(&after));
        table.add(Row::IdleCpu, tool, (busy - busy_before) / IDLE_S as f64 / 1e9 * 100.0);
        table.add(Row::IdleWakeups, tool, (sleeps - sleeps_before) / IDLE_S as f64);
    }
    live.check()?;
    if options.wants("latency") {
        // A second each, for lsyncd.
        let count = if mirror { options.latencies } else { 10 };
        let latencies = Latencies::start(ground, dst, &format!("latency-{run}"))?;
        let times = latencies.measure(|done| done >= count)?;
        table.add(Row::LatencyP50, tool, percentile(&times, 0.50));
        table.add(Row::LatencyP99, tool, percentile(&times, 0.99));
        latencies.remove();
    }
    live.check()?;
    if options.wants("rename") {
        rename(live, run, ground, dst, table)?;
    }
    live.check()?;
    if options.wants("big") && mirror {
        big(run, ground, dst, options, table)?;
    }
    live.check()?;
    if options.wants("changes") {
        changes(live, run, ground, dst, options.changes, table)?;
    }
    live.check()?;
    settled_equal(tool, &ground.src(), dst)
}

// The initial sync.

fn initial_once(tool: Tool, run: u64, ground: &Ground, table: &mut Table) -> Result<(), String> {
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

fn initial_live(
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
    while !(enough() && live.says_initial_done() && expected.is_complete(dst, tool)) {
        if started.elapsed() > patience(tool) {
            return Err(format!("no initial sync within {:?}", patience(tool)));
        }
        if checked.elapsed() > Duration::from_millis(200) {
            live.check()?;
            checked = Instant::now();
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    let seconds = started.elapsed().as_secs_f64();
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
struct Expected {
    directories: Vec<Directory>,
    entries: usize,
    inodes: u64,
}

struct Directory {
    path: PathBuf,
    metadata: Metadata,
    files: Vec<(OsString, Metadata)>,
}

impl Expected {
    fn of(root: &Path) -> std::io::Result<Expected> {
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

    /// Returns whether `dst` has as many entries, and each directory its time, which comes last.
    fn is_complete(&self, dst: &Path, tool: Tool) -> bool {
        let timed = !tool.keeps_directory_times()
            || self.directories.iter().all(|directory| {
                fs::symlink_metadata(dst.join(&directory.path))
                    .is_ok_and(|metadata| mtime(&metadata) == mtime(&directory.metadata))
            });
        timed && count(dst, true) == self.entries
    }
}

/// Counts entries below `path`.
fn count(path: &Path, root: bool) -> usize {
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
fn build(dst: &Path, expected: &Expected) -> std::io::Result<()> {
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

fn times(metadata: &Metadata) -> Timestamps {
    let time = Timespec { tv_sec: metadata.mtime(), tv_nsec: metadata.mtime_nsec() as _ };
    Timestamps { last_access: time, last_modification: time }
}

// Latency.

/// Small files written at the source, and a thread that sees them arrive.
struct Latencies {
    src: PathBuf,
    arrivals: Receiver<(OsString, Instant)>,
}

impl Latencies {
    fn start(ground: &Ground, dst: &Path, name: &str) -> Result<Latencies, String> {
        let src = ground.src().join(name);
        fs::create_dir(&src).map_err(|error| error.to_string())?;
        fs::write(src.join("first"), "first").map_err(|error| error.to_string())?;
        let replica = dst.join(name);
        await_condition(Duration::from_secs(60), "the directory to write into", || {
            replica.join("first").exists()
        })?;
        let mut inotify = Inotify::init().map_err(|error| error.to_string())?;
        let mask = WatchMask::MOVED_TO | WatchMask::CREATE | WatchMask::DELETE_SELF;
        inotify.watches().add(&replica, mask).map_err(|error| error.to_string())?;
        let (sender, arrivals) = channel();
        std::thread::spawn(move || {
            let mut buffer = [0; 16384];
            while let Ok(events) = inotify.read_events_blocking(&mut buffer) {
                let now = Instant::now();
                for event in events {
                    let sent = match event.name {
                        Some(name) => sender.send((name.to_owned(), now)),
                        None => return,
                    };
                    if sent.is_err() {
                        return;
                    }
                }
            }
        });
        Ok(Latencies { src, arrivals })
    }

    /// Writes files one after the other until `enough`; returns milliseconds from just before
    /// each close until it was seen.
    fn measure(&self, mut enough: impl FnMut(usize) -> bool) -> Result<Vec<f64>, String> {
        let mut rng = fastrand::Rng::with_seed(4);
        let mut milliseconds = Vec::new();
        let mut content = vec![0; 4096];
        while !enough(milliseconds.len()) {
            rng.fill(&mut content);
            let name = OsString::from(format!("file-{}", milliseconds.len()));
            let mut file = File::create(self.src.join(&name)).map_err(|error| error.to_string())?;
            file.write_all(&content).map_err(|error| error.to_string())?;
            let closing = Instant::now();
            drop(file);
            loop {
                match self.arrivals.recv_timeout(Duration::from_secs(30)) {
                    Ok((arrived, at)) if arrived == name => {
                        milliseconds.push((at - closing).as_secs_f64() * 1e3);
                        break;
                    }
                    Ok(_) => {}
                    Err(_) => return Err("a small file did not arrive within 30 s".to_owned()),
                }
            }
            std::thread::sleep(Duration::from_micros(rng.u64(500..1500)));
        }
        Ok(milliseconds)
    }

    /// Removes the files, which ends the thread as well once the replica follows.
    fn remove(self) {
        let _ = fs::remove_dir_all(&self.src);
    }
}

fn percentile(values: &[f64], part: f64) -> f64 {
    let mut values = values.to_vec();
    values.sort_by(f64::total_cmp);
    let index = ((values.len() as f64 * part).ceil() as usize).clamp(1, values.len().max(1));
    values.get(index - 1).copied().unwrap_or(f64::NAN)
}

// A big file.

fn big(
    run: u64,
    ground: &Ground,
    dst: &Path,
    options: &Options,
    table: &mut Table,
) -> Result<(), String> {
    let latencies = Latencies::start(ground, dst, &format!("beside-{run}"))?;
    // Written outside and moved in: what is measured is the transfer, not the writing.
    let outside = ground.outside().join("big");
    let mut rng = fastrand::Rng::with_seed(run);
    let mut chunk = vec![0; 1 << 20];
    let mut file = File::create(&outside).map_err(|error| error.to_string())?;
    for _ in 0..options.big_bytes >> 20 {
        rng.fill(&mut chunk[..4096]);
        file.write_all(&chunk).map_err(|error| format!("writing the big file: {error}"))?;
        // Zeros would be sent as what they are; a rotation keeps the rest from repeating.
        chunk.rotate_right(4096);
    }
    drop(file);
    let name = format!("big-{run}");
    let (src, replica) = (ground.src().join(&name), dst.join(&name));
    let started = Instant::now();
    fs::rename(&outside, &src).map_err(|error| error.to_string())?;
    let mut arrived = None;
    let times = latencies.measure(|_| {
        if arrived.is_none() && fs::metadata(&replica).is_ok_and(|it| it.len() == options.big_bytes)
        {
            arrived = Some(started.elapsed());
        }
        arrived.is_some() || started.elapsed() > Duration::from_secs(120)
    })?;
    let Some(arrived) = arrived else {
        return Err("the big file did not arrive within 120 s".to_owned());
    };
    eprintln!("  {} small files beside {} MiB", times.len(), options.big_bytes >> 20);
    table.add(Row::BigSeconds, Tool::Mirror, arrived.as_secs_f64());
    if !times.is_empty() {
        table.add(Row::BigP50, Tool::Mirror, percentile(&times, 0.50));
        table.add(Row::BigP99, Tool::Mirror, percentile(&times, 0.99));
    }
    latencies.remove();
    fs::remove_file(&src).map_err(|error| error.to_string())?;
    await_condition(Duration::from_secs(60), "the big file's removal", || !replica.exists())
}

// Renames.

fn rename(
    live: &mut Live,
    run: u64,
    ground: &Ground,
    dst: &Path,
    table: &mut Table,
) -> Result<(), String> {
    /// drivers/ of Linux 6.1, which others' numbers are about.
    const ENTRIES_WANTED: usize = 33_616;
    settled_equal(live.tool, &ground.src(), dst)?;
    let src = ground.src();
    let tops = fs::read_dir(&src).map_err(|error| error.to_string())?.flatten();
    let (entries, from) = tops
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
        .map(|entry| (count(&entry.path(), false), entry.path()))
        .min_by_key(|(entries, _)| entries.abs_diff(ENTRIES_WANTED))
        .ok_or("no directory to rename")?;
    let name = format!("renamed-{run}-{}", live.tool.name());
    let (to, replica) = (src.join(&name), dst.join(&name));
    // The clock runs before the rename: followers may well be done when the call returns.
    let (wire_before, started) = (loopback_bytes(), Instant::now());
    fs::rename(&from, &to).map_err(|error| error.to_string())?;
    let elapsed = loop {
        if fs::symlink_metadata(&replica).is_ok() {
            // Counting takes long, so it does not count if all is there at first sight.
            let elapsed = started.elapsed();
            if count(&replica, false) == entries {
                break elapsed;
            }
        }
        if started.elapsed() > patience(live.tool) {
            return Err("the renamed directory did not arrive".to_owned());
        }
        std::thread::sleep(Duration::from_micros(100));
    };
    eprintln!("  renamed a directory of {entries} entries");
    table.add(Row::Rename, live.tool, elapsed.as_secs_f64() * 1e3);
    settled_equal(live.tool, &src, dst)?;
    table.add(Row::RenameWire, live.tool, (loopback_bytes() - wire_before) as f64 / 1024.0);
    fs::rename(&to, &from).map_err(|error| error.to_string())?;
    settled_equal(live.tool, &src, dst)
}

// Many small changes.

fn changes(
    live: &mut Live,
    run: u64,
    ground: &Ground,
    dst: &Path,
    count: usize,
    table: &mut Table,
) -> Result<(), String> {
    let src = ground.src();
    let expected = Expected::of(&src).map_err(|error| error.to_string())?;
    let mut files: Vec<PathBuf> = Vec::new();
    for directory in &expected.directories {
        let regular = directory.files.iter().filter(|(_, metadata)| metadata.is_file());
        files.extend(regular.map(|(name, _)| directory.path.join(name)));
    }
    if files.is_empty() {
        return Err("no files to change".to_owned());
    }
    let (cpu_before, wire_before) = (live.cpu_s(), loopback_bytes());
    let mut rng = fastrand::Rng::with_seed(run);
    let mut touched = BTreeSet::new();
    let changing = Instant::now();
    for number in 0..count {
        let change = one_change(&src, &mut files, &mut rng, number, &mut touched);
        change.map_err(|error| format!("change {number}: {error}"))?;
    }
    let (last, applying) = (Instant::now(), changing.elapsed());
    // What is equal once stays so: nothing changes any more. Directories have to be, too.
    let parents: BTreeSet<PathBuf> =
        touched.iter().filter_map(|path| path.parent().map(Path::to_owned)).collect();
    let mut left: Vec<PathBuf> = touched.into_iter().chain(parents).collect();
    loop {
        left.retain(|path| !same(live.tool, &src.join(path), &dst.join(path)));
        if left.is_empty() {
            break;
        }
        if last.elapsed() > patience(live.tool) {
            return Err(format!("{} entries still differ, e.g. {:?}", left.len(), left[0]));
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    eprintln!("  {count} changes in {:.2} s", applying.as_secs_f64());
    table.add(Row::Changes, live.tool, last.elapsed().as_secs_f64());
    table.add(Row::ChangesCpu, live.tool, live.cpu_s() - cpu_before);
    table.add(Row::ChangesWire, live.tool, (loopback_bytes() - wire_before) as f64 / 1e6);
    Ok(())
}

/// Changes one file at random; as many come as go.
fn one_change(
    src: &Path,
    files: &mut Vec<PathBuf>,
    rng: &mut fastrand::Rng,
    number: usize,
    touched: &mut BTreeSet<PathBuf>,
) -> std::io::Result<()> {
    let index = rng.usize(..files.len());
    let path = files[index].clone();
    let full = src.join(&path);
    let mut content = vec![0; rng.usize(1..4096)];
    rng.fill(&mut content);
    touched.insert(path.clone());
    match rng.u32(..100) {
        0..40 => fs::write(&full, content)?,
        40..55 => File::options().append(true).open(&full)?.write_all(&content[..1])?,
        55..70 => {
            let new = path.with_file_name(format!("new-{number}"));
            fs::write(src.join(&new), content)?;
            touched.insert(new.clone());
            files.push(new);
        }
        70..85 => {
            fs::remove_file(&full)?;
            files.swap_remove(index);
        }
        85..92 => {
            let new = path.with_file_name(format!("moved-{number}"));
            fs::rename(&full, src.join(&new))?;
            touched.insert(new.clone());
            files[index] = new;
        }
        _ => fs::set_permissions(
            &full,
            fs::Permissions::from_mode(rng.choice([0o600, 0o664]).unwrap_or(0o640)),
        )?,
    }
    Ok(())
}

/// Returns whether both are missing, or of the same kind, size, mode and time.
fn same(tool: Tool, ours: &Path, theirs: &Path) -> bool {
    match (fs::symlink_metadata(ours), fs::symlink_metadata(theirs)) {
        (Ok(ours), Ok(theirs)) => {
            let timed = tool.keeps_directory_times() || !ours.is_dir();
            ours.mode() == theirs.mode()
                && (!timed || mtime(&ours) == mtime(&theirs))
                && (ours.is_dir() || ours.len() == theirs.len())
        }
        (Err(_), Err(_)) => true,
        _ => false,
    }
}

fn mtime(metadata: &Metadata) -> (i64, i64) {
    (metadata.mtime(), metadata.mtime_nsec())
}

// Helpers.

fn check_equal(tool: Tool, src: &Path, dst: &Path, depth: Depth) -> Result<(), String> {
    let mut judge = Judge::new(src, dst);
    if !tool.keeps_directory_times() {
        judge = judge.without_directory_times();
    }
    let differences = judge.compare(depth);
    if differences.is_empty() {
        return Ok(());
    }
    Err(format!("the replica differs:\n{}", summary(&differences)))
}

/// Waits until the replica is equal but for contents; untimed.
fn settled_equal(tool: Tool, src: &Path, dst: &Path) -> Result<(), String> {
    let started = Instant::now();
    loop {
        match check_equal(tool, src, dst, Depth::Metadata) {
            Err(error) if started.elapsed() > patience(tool) => return Err(error),
            Err(_) => std::thread::sleep(Duration::from_millis(300)),
            Ok(()) => return Ok(()),
        }
    }
}

fn await_condition(
    patience: Duration,
    what: &str,
    mut condition: impl FnMut() -> bool,
) -> Result<(), String> {
    let started = Instant::now();
    while !condition() {
        if started.elapsed() > patience {
            return Err(format!("waited {patience:?} for {what}"));
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    Ok(())
}

/// Returns what went over the loopback interface so far, in bytes.
fn loopback_bytes() -> u64 {
    let text = fs::read_to_string("/proc/net/dev").unwrap_or_default();
    let line = text.lines().find_map(|line| line.trim_start().strip_prefix("lo:"));
    line.and_then(|line| line.split_whitespace().next()?.parse().ok()).unwrap_or(0)
}

fn megabytes(bytes: u64) -> f64 {
    bytes as f64 / 1e6
}

/// How long a tool may take for one thing.
fn patience(tool: Tool) -> Duration {
    Duration::from_secs(if tool == Tool::Lsyncd { 400 } else { 120 })
}

/// How long idleness is watched.
const IDLE_S: u64 = 10;
