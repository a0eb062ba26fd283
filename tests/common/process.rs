//! One process under test: its end, its log, its use of the machine.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

/// A running program; killed on drop.
pub struct Process {
    child: Child,
    log: PathBuf,
}

impl Process {
    /// Starts `mirror` with `args`; its standard error is appended to `log`.
    pub fn mirror<A: AsRef<OsStr>>(args: impl IntoIterator<Item = A>, log: &Path) -> Process {
        let mut command = Command::new(mirror());
        command.args(args);
        Process::spawn(command, log).expect("mirror starts")
    }

    /// Starts any program; both its outputs are appended to `log`.
    pub fn spawn(mut command: Command, log: &Path) -> std::io::Result<Process> {
        let file = File::options().create(true).append(true).open(log)?;
        command.stdin(Stdio::null()).stdout(file.try_clone()?).stderr(file);
        Ok(Process { child: command.spawn()?, log: log.to_owned() })
    }

    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Ends it as a power cut would, and reaps it.
    pub fn kill9(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Asks it to end cleanly, and waits for it.
    pub fn terminate(&mut self, timeout: Duration) -> Option<ExitStatus> {
        self.signal(Signal::TERM);
        self.wait(timeout)
    }

    pub fn stop(&self) {
        self.signal(Signal::STOP);
    }

    pub fn resume(&self) {
        self.signal(Signal::CONT);
    }

    pub fn signal(&self, signal: Signal) {
        if let Some(pid) = Pid::from_raw(self.child.id() as i32) {
            let _ = kill_process(pid, signal);
        }
    }

    /// Returns the exit status, `None` if it still runs after `timeout`.
    pub fn wait(&mut self, timeout: Duration) -> Option<ExitStatus> {
        let started = Instant::now();
        loop {
            match self.child.try_wait() {
                Ok(Some(status)) => return Some(status),
                Ok(None) if started.elapsed() < timeout => {
                    std::thread::sleep(Duration::from_millis(5));
                }
                _ => return None,
            }
        }
    }

    pub fn is_running(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Returns everything it wrote to standard error so far.
    pub fn log(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.log).unwrap_or_default()).into_owned()
    }

    /// Waits until `text` is in the log, letter case aside; returns whether it came.
    pub fn wait_log(&self, text: &str, timeout: Duration) -> bool {
        let started = Instant::now();
        let text = text.to_lowercase();
        while !self.log().to_lowercase().contains(&text) {
            if started.elapsed() >= timeout {
                return false;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        true
    }

    /// Returns what it has used.
    pub fn usage(&self) -> Usage {
        Usage::of(self.child.id())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill9();
    }
}

/// Returns the binary under test.
pub fn mirror() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_mirror"))
}

/// What a process has used of the machine, from /proc.
#[derive(Debug, Clone, Copy, Default)]
pub struct Usage {
    /// Its own CPU seconds.
    pub cpu_s: f64,
    /// The same of its living threads in nanoseconds, for what takes less than a tick.
    pub busy_ns: u64,
    /// CPU seconds of its children that have ended.
    pub children_cpu_s: f64,
    pub resident_bytes: u64,
    pub resident_bytes_max: u64,
    /// How often it went to sleep of its own accord.
    pub sleeps: u64,
}

impl Usage {
    /// Returns zeros for a process that is gone.
    pub fn of(pid: u32) -> Usage {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        // The second field may hold anything, but ends at the last parenthesis.
        let fields: Vec<&str> =
            stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
        let tick = |index: usize| -> f64 {
            fields.get(index).and_then(|field| field.parse::<f64>().ok()).unwrap_or(0.0)
                / TICKS_PER_S
        };
        let line = |name: &str| -> u64 {
            let value = status.lines().find_map(|line| line.strip_prefix(name));
            let digits = value.and_then(|value| value.split_whitespace().next());
            digits.and_then(|digits| digits.parse().ok()).unwrap_or(0)
        };
        let tasks = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
        let busy_ns = tasks.filter_map(|task| {
            let text = fs::read_to_string(task.path().join("schedstat")).ok()?;
            text.split_whitespace().next()?.parse::<u64>().ok()
        });
        Usage {
            busy_ns: busy_ns.sum(),
            cpu_s: tick(11) + tick(12),
            children_cpu_s: tick(13) + tick(14),
            resident_bytes: line("VmRSS:") * 1024,
            resident_bytes_max: line("VmHWM:") * 1024,
            sleeps: line("voluntary_ctxt_switches:"),
        }
    }

    /// Returns the CPU seconds of the process and its children.
    pub fn all_cpu_s(&self) -> f64 {
        self.cpu_s + self.children_cpu_s
    }
}

/// The unit of times in /proc, the same on every Linux.
const TICKS_PER_S: f64 = 100.0;
