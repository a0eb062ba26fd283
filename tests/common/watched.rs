//! A watch on a tree of its own, driven by hand, with its records as text.

use std::collections::BTreeSet;
use std::fs;
use std::os::fd::AsRawFd as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use mirror::model::{Change, Record, TreePath, What};
use mirror::role::{Feed as _, FeedEvent};
use mirror::tree::Root;
use mirror::watch::{Watch, WatchOptions};

/// A tree, a directory beside it, and the watch.
pub struct Watched {
    pub root: PathBuf,
    pub outside: PathBuf,
    pub watch: Watch,
    scratch: tempfile::TempDir,
}

impl Watched {
    /// Watches a tree that `prepare` makes; the first scan is done.
    pub fn new(prepare: impl FnOnce(&Path)) -> Watched {
        let mut watched = Watched::unscanned(prepare);
        assert_eq!(watched.records(), Vec::<String>::new(), "the first scan is not journaled");
        watched
    }

    /// Watches a tree that `prepare` makes; nothing was looked at yet.
    pub fn unscanned(prepare: impl FnOnce(&Path)) -> Watched {
        let scratch = super::machine::scratch();
        let [root, outside] = ["root", "outside"].map(|name| scratch.path().join(name));
        for directory in [&root, &outside] {
            fs::create_dir(directory).unwrap();
        }
        prepare(&root);
        let options = WatchOptions { rescan_interval: Duration::from_secs(3600) };
        let watch = Watch::new(Root::open(&root).unwrap(), options).unwrap();
        Watched { root, outside, watch, scratch }
    }

    pub fn at(&self, path: &str) -> PathBuf {
        self.root.join(path)
    }

    /// Returns the records that one turn brings; nothing is waited for.
    pub fn turn(&mut self) -> Vec<String> {
        self.turn_of_records().iter().map(|record| tell(&record.change)).collect()
    }

    /// Returns the records that come until the watch is settled: no half of a rename is waited
    /// for, and everything that appeared was looked at.
    pub fn records(&mut self) -> Vec<String> {
        self.raw_records().iter().map(|record| tell(&record.change)).collect()
    }

    pub fn raw_records(&mut self) -> Vec<Record> {
        let started = Instant::now();
        let mut records = self.turn_of_records();
        while !self.watch.is_settled() {
            assert!(started.elapsed() < super::patience(), "the watch does not settle");
            self.wait();
            records.extend(self.turn_of_records());
        }
        records
    }

    /// Waits for a record; returns all that came until then.
    pub fn wait_for(&mut self, wanted: &str) -> Vec<String> {
        let started = Instant::now();
        let mut records = self.records();
        while !records.iter().any(|record| record == wanted) {
            assert!(started.elapsed() < super::patience(), "no {wanted:?} in {records:?}");
            self.wait();
            records.extend(self.records());
        }
        records
    }

    fn turn_of_records(&mut self) -> Vec<Record> {
        let mut records = Vec::new();
        while let Some(event) = self.watch.poll_event() {
            match event {
                FeedEvent::Record(record) => records.push(record),
                FeedEvent::Reset(_) => panic!("a watch has one epoch"),
            }
        }
        records
    }

    /// Waits until the watch has something to do, as the event loop would.
    fn wait(&self) {
        let now = Instant::now();
        let until = self.watch.poll_timeout().map_or(now, |at| at.max(now));
        std::thread::sleep((until - now).min(Duration::from_millis(5)));
    }

    /// Returns the kernel's list of this watch's descriptors.
    pub fn descriptors(&self) -> BTreeSet<String> {
        let inotify = self.watch.descriptor().unwrap().as_raw_fd();
        let info = fs::read_to_string(format!("/proc/self/fdinfo/{inotify}")).unwrap();
        let watches = info.lines().filter(|line| line.starts_with("inotify"));
        watches.map(|line| line.split(' ').take(3).collect::<Vec<_>>().join(" ")).collect()
    }

    /// Returns the inodes that this watch watches, in order.
    pub fn inodes(&self) -> Vec<u64> {
        let inode = |line: &String| {
            let hex = line.split("ino:").nth(1).expect("an inode");
            u64::from_str_radix(hex, 16).expect("a number")
        };
        let mut inodes: Vec<u64> = self.descriptors().iter().map(inode).collect();
        inodes.sort();
        inodes
    }

    /// Runs the C helper of `tests/data`: what only a system call does that std does not have.
    pub fn helper(&self, arguments: &[&str]) -> Child {
        let program = self.scratch.path().join("helper");
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/helper.c");
        super::machine::run(Command::new("cc").arg("-o").arg(&program).arg(source)).unwrap();
        let mut command = Command::new(program);
        command.args(arguments).current_dir(&self.root);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap()
    }
}

/// Returns a change as text.
pub fn tell(change: &Change) -> String {
    match change {
        Change::Dirty { path, what } => {
            let what = match *what {
                What::ATTRIBUTES => "attributes",
                What::NAME => "name",
                What::CONTENT => "content",
                _ => "something",
            };
            format!("{what} {}", show(path))
        }
        Change::Rename { from, to } => format!("rename {} {}", show(from), show(to)),
        Change::Exchange { a, b } => format!("exchange {} {}", show(a), show(b)),
        Change::Through(_) => panic!("a watch makes no marks"),
    }
}

fn show(path: &TreePath) -> String {
    if path.is_root() { ".".into() } else { String::from_utf8_lossy(path.as_bytes()).into() }
}
