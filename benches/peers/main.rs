//! mirror beside tar, an rsync daemon and lsyncd, in one run, over loopback.
//!
//! `cargo bench --bench peers [-- MEASURE…]` with measures out of `own`, `initial`, `reconcile`,
//! `memory`, `idle`, `latency`, `changes`, `rename`, `big`, and of mirror alone `reconnect`,
//! `chain`, `restart`, `moved`, `fanout`, `offline`; all when none is named. Environment:
//!
//! | variable | meaning | default |
//! |---|---|---|
//! | `MIRROR_BENCH_TREE` | tree to copy to the RAM file system and mirror | generated |
//! | `MIRROR_BENCH_FILES` | files of the generated tree, averaging 6 KB in 5,000 directories | 100000 |
//! | `MIRROR_BENCH_RUNS` | runs, of which the median counts | 3 |
//! | `MIRROR_BENCH_LSYNCD_RUNS` | runs of lsyncd, which takes minutes each | 1 |
//! | `MIRROR_BENCH_TOOLS` | comma list out of own, tar, rsync, mirror, lsyncd | all |
//! | `MIRROR_BENCH_LATENCIES` | files for the latency | 1000 |
//! | `MIRROR_BENCH_CHANGES` | random small changes | 20000 |
//! | `MIRROR_BENCH_BIG_MIB` | size of the big file | 4096, or what memory allows |
//! | `MIRROR_BENCH_TENFOLD` | `1`: memory with ten times the files in the same directories | off |
//! | `MIRROR_BENCH_OFFLINE` | changes while a sink is away | 1000000 |
//! | `MIRROR_BENCH_MILLION` | `1`: a tree of a million files, which takes 4 GB of RAM | off |
//! | `MIRROR_BENCH_STRICT` | `1`: exit 1 when a bar is missed | off |
//! | `MIRROR_TEST_DIR` | where images are kept | /dev/shm |
//!
//! What is measured, and the traps that are stepped around:
//! - Both trees lie on journaled ext4 images in RAM when there is root for it. The replica's
//!   file system is made anew before each timed run, so that nobody pays for what the one
//!   before removed; its pages stay touched, and as much memory as a tree takes is touched and
//!   freed before, since first use of memory is slow on virtual machines. One untimed run of
//!   `own` comes first.
//! - The tools take turns within each run. Other load shifts all of them, so ratios count.
//! - Bytes on the wire are those of the loopback interface, headers and acknowledgements
//!   included: compare them on a machine whose loopback is otherwise quiet.
//! - A reconcile is timed from the start of a sink whose source began a new epoch to when it says
//!   that it is as its upstream's; rsync runs a second time, with nothing to change.
//! - lsyncd does not keep directories' times, so they are not asked of it.
//! - mirror's and lsyncd's initial sync ends when the replica has all entries, and all
//!   directories their times: polled cheaply by the inodes in use, then by a walk of some
//!   50 ms. rsync and tar end when their client does. A judge looks at each result, untimed.
//! - What is measured of mirror alone goes through a proxy that counts, where bytes are asked for.

#[path = "../../tests/common/mod.rs"]
mod common;
mod ground;
mod measures;
mod site;
mod table;
mod tools;

use std::path::PathBuf;
use std::process::ExitCode;

use common::number_from_env;
use ground::Ground;
use measures::Phase;
use table::Table;
use tools::Tool;

/// What the environment and the arguments ask for.
pub(crate) struct Options {
    measures: Vec<String>,
    tools: Vec<String>,
    pub tree: Option<PathBuf>,
    pub files: usize,
    runs: u64,
    lsyncd_runs: u64,
    pub latencies: usize,
    pub changes: usize,
    pub big_bytes: u64,
    pub tenfold: bool,
    pub offline: usize,
    million: bool,
}

impl Options {
    fn from_env() -> Options {
        let wanted = std::env::var("MIRROR_BENCH_TOOLS")
            .unwrap_or_else(|_| "own,tar,rsync,mirror,lsyncd".to_owned());
        // It lies twice in images in RAM, which cannot be reclaimed; caches of it can.
        let big_default = (ground::memory_available() / 5).min(4 << 30) >> 20;
        Options {
            measures: std::env::args().skip(1).filter(|arg| !arg.starts_with('-')).collect(),
            tools: wanted.split(',').map(str::to_owned).collect(),
            tree: std::env::var_os("MIRROR_BENCH_TREE").map(PathBuf::from),
            files: number_from_env("MIRROR_BENCH_FILES", 100_000) as usize,
            runs: number_from_env("MIRROR_BENCH_RUNS", 3),
            lsyncd_runs: number_from_env("MIRROR_BENCH_LSYNCD_RUNS", 1),
            latencies: number_from_env("MIRROR_BENCH_LATENCIES", 1000) as usize,
            changes: number_from_env("MIRROR_BENCH_CHANGES", 20_000) as usize,
            big_bytes: number_from_env("MIRROR_BENCH_BIG_MIB", big_default) << 20,
            tenfold: number_from_env("MIRROR_BENCH_TENFOLD", 0) == 1,
            offline: number_from_env("MIRROR_BENCH_OFFLINE", 1_000_000) as usize,
            million: number_from_env("MIRROR_BENCH_MILLION", 0) == 1,
        }
    }

    pub fn wants(&self, measure: &str) -> bool {
        self.measures.is_empty() || self.measures.iter().any(|wanted| wanted == measure)
    }
}

fn main() -> ExitCode {
    let options = Options::from_env();
    let ground = match Ground::prepare(&options) {
        Ok(ground) => ground,
        Err(error) => {
            eprintln!("peers: cannot prepare the trees: {error}");
            return ExitCode::FAILURE;
        }
    };
    println!("{}", ground.about);
    let mut table = Table::new(ground.generated);
    let tools: Vec<Tool> = Tool::ALL
        .into_iter()
        .filter(|tool| options.tools.iter().any(|wanted| wanted == tool.name()))
        .filter(|tool| match tool.missing() {
            None => true,
            Some(reason) => {
                println!("SKIPPED: {}: {reason}", tool.name());
                false
            }
        })
        .collect();
    if let Err(error) = measures::warm_up(&ground) {
        eprintln!("peers: warm-up: {error}");
    }
    for phase in Phase::ALL.into_iter().filter(|phase| phase.is_wanted(&options)) {
        for (run, &tool) in (0..options.runs).flat_map(|run| tools.iter().map(move |it| (run, it)))
        {
            if tool == Tool::Lsyncd && run >= options.lsyncd_runs {
                continue;
            }
            eprintln!("run {} of {}: {}", run + 1, options.runs, tool.name());
            if let Err(error) = measures::run(phase, tool, run, &ground, &options, &mut table) {
                table.fail(tool, &error);
            }
        }
    }
    if options.tenfold && tools.contains(&Tool::Mirror) {
        eprintln!("ten times the files");
        if let Err(error) = measures::tenfold(&ground, &mut table) {
            table.fail(Tool::Mirror, &error);
        }
    }
    if tools.contains(&Tool::Mirror) {
        for run in 0..options.runs {
            measures::run_alone(run, &ground, &options, &mut table);
        }
    }
    drop(ground);
    if options.million && tools.contains(&Tool::Mirror) {
        eprintln!("a million files");
        if let Err(error) = measures::million(&mut table) {
            table.fail(Tool::Mirror, &error);
        }
    }
    let passed = table.print();
    if !passed && number_from_env("MIRROR_BENCH_STRICT", 0) == 1 {
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}
