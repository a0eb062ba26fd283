//! The measures themselves.

mod chain;
mod fan_out;
mod initial;
mod latency;
mod million;
mod offline;
mod reconcile;
mod reconnect;
mod restart;
mod small_changes;

use std::collections::{BTreeMap, BTreeSet};
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
use crate::common::node::NodeRole;
use crate::common::process::Usage;
use crate::common::proxy::Proxy;
use crate::ground::{Ground, fill};
use crate::site::{RESUMING, SOURCE, Site};
use crate::table::{Row, Table};
use crate::tools::{Daemon, Live, Tool};
pub use initial::tenfold;
use initial::{Expected, build, count, initial_live, initial_once};
use latency::{Latencies, big, percentile};
pub use million::million;
use small_changes::{changes, mtime, rename, same};

/// Uses memory and images once, so that the first timed run pays no more than the others.
pub fn warm_up(ground: &Ground) -> Result<(), String> {
    let expected = Expected::of(&ground.src()).map_err(|error| error.to_string())?;
    build(&ground.new_dst()?, &expected).map_err(|error| error.to_string())
}

/// What is measured in one go through all tools: first synchronisations before anything else, for
/// what the others leave in memory has the system write it back meanwhile.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    Initial,
    Reconcile,
    Live,
}

impl Phase {
    pub const ALL: [Phase; 3] = [Phase::Initial, Phase::Reconcile, Phase::Live];

    /// Returns whether any of its measures was asked for.
    pub fn is_wanted(self, options: &Options) -> bool {
        const LIVE: [&str; 6] = ["memory", "idle", "latency", "rename", "big", "changes"];
        match self {
            Phase::Initial => options.wants("own") || options.wants("initial"),
            Phase::Reconcile => options.wants("reconcile"),
            Phase::Live => LIVE.iter().any(|measure| options.wants(measure)),
        }
    }
}

/// A measure of mirror alone, with nodes as it needs them.
type Measure = fn(&Ground, u64, &Options, &mut Table) -> Outcome;

type Outcome = Result<(), String>;

const ALONE: [(&str, Measure); 6] = [
    ("reconnect", reconnect::reconnect),
    ("chain", chain::chain),
    ("restart", restart::both),
    ("moved", restart::moved),
    ("fanout", fan_out::fan_out),
    ("offline", offline::offline),
];

/// Runs mirror once through what is measured of it alone.
pub fn run_alone(run: u64, ground: &Ground, options: &Options, table: &mut Table) {
    for (name, measure) in ALONE.iter().filter(|(name, _)| options.wants(name)) {
        eprintln!("run {} of mirror alone: {name}", run + 1);
        if let Err(error) = measure(ground, run, options, table) {
            table.fail(Tool::Mirror, &format!("{name}: {error}"));
        }
    }
}

/// Runs one tool once through everything of a phase that was asked for.
pub fn run(
    phase: Phase,
    tool: Tool,
    run: u64,
    ground: &Ground,
    options: &Options,
    table: &mut Table,
) -> Result<(), String> {
    if phase == Phase::Reconcile {
        let is_compared = matches!(tool, Tool::Mirror | Tool::Rsync);
        return if is_compared { reconcile::reconcile(tool, ground, table) } else { Ok(()) };
    }
    let is_live = matches!(tool, Tool::Mirror | Tool::Lsyncd);
    let is_initial = phase == Phase::Initial;
    if is_initial && (tool == Tool::Own || !is_live && options.wants("initial")) {
        return initial_once(tool, run, ground, table);
    }
    if !is_live || is_initial && !options.wants("initial") {
        return Ok(());
    }
    let dst = ground.new_dst()?;
    let mut live = initial_live(tool, ground, &dst, is_initial.then_some(&mut *table))?;
    check_equal(tool, &ground.src(), &dst, if run == 0 { Depth::Full } else { Depth::Metadata })?;
    let measured = match phase {
        Phase::Initial | Phase::Reconcile => Ok(()),
        Phase::Live => live_measures(&mut live, run, ground, &dst, options, table),
    };
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
        let latencies = Latencies::start(&ground.src(), dst, &format!("latency-{run}"))?;
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

/// Returns what went through a proxy so far, in both directions.
fn total_bytes(proxy: &Proxy) -> u64 {
    let (down, up) = proxy.bytes();
    down + up
}

/// Returns the paths of all regular files of a tree, in order.
fn regular_files(root: &Path) -> Result<Vec<PathBuf>, String> {
    let expected = Expected::of(root).map_err(|error| error.to_string())?;
    let mut files = Vec::new();
    for directory in &expected.directories {
        let regular = directory.files.iter().filter(|(_, metadata)| metadata.is_file());
        files.extend(regular.map(|(name, _)| directory.path.join(name)));
    }
    files.sort();
    Ok(files)
}

/// Returns a tree of small files, and room for so many replicas of it.
fn small_ground(replicas: usize, directories: usize, files: usize) -> Result<Ground, String> {
    let entries = (directories * (files + 2) + 2000) * replicas;
    // Half of the blocks are for what is replaced while it is still there.
    let size = entries as u64 * (2 * 4096 + 256) + (200 << 20);
    let ground = Ground::empty(size, size / 2, &["-N", &entries.to_string()])?;
    let filled = fill(&ground.src(), 0..directories, files, FILE_BYTES, 1);
    filled.map_err(|error| error.to_string())?;
    Ok(ground)
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

/// More than a checkpoint interval: files are trusted by size and time by then, and what a restart
/// goes on from is kept.
const CHECKPOINT_TIME: Duration = Duration::from_secs(7);

/// How long anything may take that is measured of mirror alone.
const PATIENCE: Duration = Duration::from_secs(300);

/// The size of a file of a small tree.
const FILE_BYTES: usize = 1024;
