//! A source and a sink as real processes, with a tree of their own each.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::judge::{Judge, rsync_judge};
use super::machine::{Mount, need_ext4, scratch};
use super::process::Process;

/// A source at `src` and a sink at `dst`; the processes end with this guard.
pub struct Pair {
    pub scratch: tempfile::TempDir,
    pub src: PathBuf,
    /// On the same file system as `src`, but not mirrored.
    pub outside: PathBuf,
    pub dst: PathBuf,
    pub source_state: PathBuf,
    pub sink_state: PathBuf,
    /// Where the source listens and where the sink connects to: apart when a proxy is between.
    pub listen: String,
    pub upstream: String,
    pub source: Option<Process>,
    pub sink: Option<Process>,
    pub sink_args: Vec<OsString>,
}

impl Pair {
    /// Prepares directories and a Unix socket; nothing runs yet.
    pub fn new() -> Pair {
        let scratch = scratch();
        let at = |name: &str| {
            let path = scratch.path().join(name);
            fs::create_dir(&path).expect("a new directory");
            path
        };
        let url = format!("unix:{}", scratch.path().join("socket").display());
        Pair {
            src: at("src"),
            outside: at("outside"),
            dst: at("dst"),
            source_state: at("source-state"),
            sink_state: at("sink-state"),
            listen: url.clone(),
            upstream: url,
            source: None,
            sink: None,
            sink_args: Vec::new(),
            scratch,
        }
    }

    /// Prepares the same with TCP between; returns the source's port as well.
    pub fn new_tcp() -> (Pair, u16) {
        let mut pair = Pair::new();
        let port = super::machine::free_port();
        pair.listen = format!("tcp://127.0.0.1:{port}");
        pair.upstream.clone_from(&pair.listen);
        (pair, port)
    }

    /// Starts both roles.
    pub fn start(&mut self) {
        self.start_source();
        self.start_sink();
    }

    pub fn start_source(&mut self) {
        self.source = Some(Process::mirror(self.source_command(), &self.log("source")));
    }

    pub fn start_sink(&mut self) {
        self.sink = Some(Process::mirror(self.sink_command(), &self.log("sink")));
    }

    pub fn source_command(&self) -> Vec<OsString> {
        let mut args: Vec<OsString> = vec!["source".into(), "--listen".into()];
        args.extend([self.listen.clone().into(), "--state-dir".into()]);
        args.extend([self.source_state.clone().into(), self.src.clone().into()]);
        args
    }

    pub fn sink_command(&self) -> Vec<OsString> {
        let mut args: Vec<OsString> = vec!["sink".into(), self.upstream.clone().into()];
        args.extend([self.dst.clone().into(), "--state-dir".into()]);
        args.push(self.sink_state.clone().into());
        args.extend(self.sink_args.iter().cloned());
        args
    }

    pub fn log(&self, role: &str) -> PathBuf {
        self.scratch.path().join(format!("{role}.log"))
    }

    pub fn source(&mut self) -> &mut Process {
        self.source.as_mut().expect("the source was started")
    }

    pub fn sink(&mut self) -> &mut Process {
        self.sink.as_mut().expect("the sink was started")
    }

    /// Waits until the replica equals the source by our judge.
    pub fn wait_equal(&self) {
        Judge::new(&self.src, &self.dst).wait(super::patience());
    }

    /// Waits until the replica equals the source by both judges.
    pub fn converge(&self) {
        self.wait_equal();
        rsync_judge(&self.src, &self.dst);
    }

    /// Waits for `condition`; panics with `what` if it does not come true.
    pub fn wait_for(&self, what: &str, condition: impl FnMut() -> bool) {
        assert!(wait_until(super::patience(), condition), "timed out: {what}");
    }

    /// Ends both roles cleanly and checks that they say so.
    pub fn finish(&mut self) {
        for (role, process) in [("sink", &mut self.sink), ("source", &mut self.source)] {
            if let Some(mut process) = process.take() {
                let status = process.terminate(Duration::from_secs(10));
                assert!(
                    status.is_some_and(|status| status.success()),
                    "{role} on SIGTERM: {status:?}"
                );
            }
        }
    }
}

impl Drop for Pair {
    fn drop(&mut self) {
        // The processes end first, then what they use.
        self.sink = None;
        self.source = None;
        if std::thread::panicking() {
            for role in ["source", "sink"] {
                let log = fs::read(self.log(role)).unwrap_or_default();
                let log = String::from_utf8_lossy(&log);
                let lines: Vec<&str> = log.lines().collect();
                println!("--- {role}, last of {} lines", lines.len());
                println!("{}", lines[lines.len().saturating_sub(40)..].join("\n"));
            }
        }
    }
}

/// Polls `condition` until it holds or `timeout` has passed; returns whether it held.
pub fn wait_until(timeout: Duration, mut condition: impl FnMut() -> bool) -> bool {
    let started = std::time::Instant::now();
    loop {
        if condition() {
            return true;
        }
        if started.elapsed() >= timeout {
            return false;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Returns the inode number at `path`, not following a symlink.
pub fn inode(path: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt as _;
    fs::symlink_metadata(path).unwrap_or_else(|error| panic!("{}: {error}", path.display())).ino()
}

/// Prepares a pair whose replica is on a small file system of its own.
pub fn pair_on_ext4(bytes: u64) -> Option<(Pair, Mount)> {
    let mount = need_ext4("a small file system for the sink", bytes)?;
    let mut pair = Pair::new();
    pair.dst = mount.path.join("replica");
    fs::create_dir(&pair.dst).unwrap();
    Some((pair, mount))
}
