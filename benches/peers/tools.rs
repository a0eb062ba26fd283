//! The tools that are compared, and how each is started and stopped.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use crate::common::machine::{free_port, has_tool, is_root, scratch};
use crate::common::process::{Process, Usage, mirror};

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Tool {
    /// What this machine can do: directories built under a temporary name, renamed once.
    Own,
    Tar,
    Rsync,
    Mirror,
    Lsyncd,
}

impl Tool {
    pub const ALL: [Tool; 5] = [Tool::Own, Tool::Tar, Tool::Rsync, Tool::Mirror, Tool::Lsyncd];

    pub fn name(self) -> &'static str {
        match self {
            Tool::Own => "own",
            Tool::Tar => "tar",
            Tool::Rsync => "rsync",
            Tool::Mirror => "mirror",
            Tool::Lsyncd => "lsyncd",
        }
    }

    /// lsyncd does not, so it is not waited for.
    pub fn keeps_directory_times(self) -> bool {
        self != Tool::Lsyncd
    }

    /// Returns why it cannot be used here.
    pub fn missing(self) -> Option<String> {
        let needed: &[&str] = match self {
            Tool::Own | Tool::Mirror => &[],
            Tool::Tar => &["tar"],
            Tool::Rsync => &["rsync"],
            Tool::Lsyncd => &["lsyncd", "rsync"],
        };
        let missing = needed.iter().find(|tool| !has_tool(tool))?;
        Some(format!("{missing} is not installed"))
    }
}

/// A tool that follows the source.
pub struct Live {
    pub tool: Tool,
    /// mirror: source and sink. lsyncd: itself, and the daemon.
    pub processes: Vec<Process>,
    scratch: tempfile::TempDir,
    /// rsync reads its configuration anew for each connection.
    _daemon_scratch: Option<tempfile::TempDir>,
}

impl Live {
    /// Starts mirror's source and waits until it has settled.
    pub fn mirror_source(src: &Path) -> Result<(Live, String), String> {
        let (processes, scratch, _daemon_scratch) = (Vec::new(), scratch(), None);
        let mut live = Live { tool: Tool::Mirror, processes, scratch, _daemon_scratch };
        let url = live.start_mirror_source(src)?;
        Ok((live, url))
    }

    /// Ends mirror's processes, starts the source again in a new epoch and waits until it has
    /// settled.
    pub fn restart_mirror_source(&mut self, src: &Path) -> Result<String, String> {
        for mut process in self.processes.drain(..).rev() {
            process.terminate(Duration::from_secs(10)).ok_or("it does not end")?;
        }
        let catalog = self.scratch.path().join("source").join("catalog");
        fs::remove_file(catalog).map_err(|error| format!("the catalog: {error}"))?;
        // What is waited for in it was said before.
        fs::remove_file(self.scratch.path().join("sink.log")).map_err(|error| error.to_string())?;
        self.start_mirror_source(src)
    }

    fn start_mirror_source(&mut self, src: &Path) -> Result<String, String> {
        let scratch = &self.scratch;
        let url = format!("tcp://127.0.0.1:{}", free_port());
        let mut command = Command::new(mirror());
        command.args(["source", "--listen", &url, "--state-dir"]);
        command.arg(scratch.path().join("source")).arg(src);
        let log = scratch.path().join("source.log");
        let mut source = Process::spawn(command, &log).map_err(|error| error.to_string())?;
        settle(&mut source)?;
        self.processes.push(source);
        Ok(url)
    }

    /// Starts mirror's sink: from here on time counts.
    pub fn mirror_sink(&mut self, url: &str, dst: &Path) -> Result<(), String> {
        let mut command = Command::new(mirror());
        command.args(["sink", url]).arg(dst).arg("--state-dir");
        command.arg(self.scratch.path().join("sink"));
        let log = self.scratch.path().join("sink.log");
        let sink = Process::spawn(command, &log).map_err(|error| error.to_string())?;
        self.processes.push(sink);
        Ok(())
    }

    pub fn lsyncd(src: &Path, dst: &Path) -> Result<Live, String> {
        let daemon = Daemon::start(dst)?;
        let scratch = scratch();
        let config = scratch.path().join("config.lua");
        let text = format!(
            "settings {{ nodaemon = true, insist = true, logfile = \"{0}/lsyncd\",\n\
             statusFile = \"{0}/status\" }}\n\
             sync {{ default.rsync, source = \"{1}\", target = \"{2}\", delay = 1, delete = true,\n\
             rsync = {{ archive = true, hard_links = true, acls = true, xattrs = true }} }}\n",
            scratch.path().display(),
            src.display(),
            daemon.url,
        );
        fs::write(&config, text).map_err(|error| error.to_string())?;
        let mut command = Command::new("lsyncd");
        command.arg(&config);
        let log = scratch.path().join("log");
        let lsyncd = Process::spawn(command, &log).map_err(|error| error.to_string())?;
        let processes = vec![lsyncd, daemon.process];
        let _daemon_scratch = Some(daemon._scratch);
        Ok(Live { tool: Tool::Lsyncd, processes, scratch, _daemon_scratch })
    }

    /// Returns whether it says that its initial sync is over, as far as it says that at all.
    pub fn says_initial_done(&self) -> bool {
        // lsyncd: "Startup of …/ -> … finished."
        self.tool != Tool::Lsyncd || self.processes[0].log().contains(" finished.")
    }

    /// Returns CPU seconds of all processes and their children.
    pub fn cpu_s(&self) -> f64 {
        self.processes.iter().map(|process| process.usage().all_cpu_s()).sum()
    }

    pub fn usages(&self) -> Vec<Usage> {
        self.processes.iter().map(Process::usage).collect()
    }

    /// Returns why it cannot go on, if a process has ended.
    pub fn check(&mut self) -> Result<(), String> {
        for process in &mut self.processes {
            if !process.is_running() {
                let log = process.log();
                let last = log.lines().last().unwrap_or("without a word");
                return Err(format!("{} ended: {last}", self.tool.name()));
            }
        }
        Ok(())
    }

    /// Ends everything and waits for it.
    pub fn stop(mut self) {
        for process in self.processes.iter_mut().rev() {
            if process.terminate(Duration::from_secs(10)).is_none() {
                process.kill9();
            }
        }
    }
}

/// An rsync daemon that serves one directory.
pub struct Daemon {
    pub process: Process,
    pub url: String,
    _scratch: tempfile::TempDir,
}

impl Daemon {
    pub fn start(dst: &Path) -> Result<Daemon, String> {
        let scratch = scratch();
        let port = free_port();
        // Outside of a chroot it rewrites the targets of symbolic links.
        let user = if is_root() {
            "uid = root\ngid = root\nuse chroot = yes\n"
        } else {
            "use chroot = no\n"
        };
        let config = format!(
            "address = 127.0.0.1\nport = {port}\nreverse lookup = no\n{user}\
             pid file = {}\n[replica]\npath = {}\nread only = no\n\
             munge symlinks = no\n",
            scratch.path().join("pid").display(),
            dst.display(),
        );
        let path = scratch.path().join("rsyncd.conf");
        fs::write(&path, config).map_err(|error| error.to_string())?;
        let mut command = Command::new("rsync");
        command.args(["--daemon", "--no-detach", "--config"]).arg(&path);
        let log = scratch.path().join("log");
        let process = Process::spawn(command, &log).map_err(|error| error.to_string())?;
        let started = Instant::now();
        while std::net::TcpStream::connect(("127.0.0.1", port)).is_err() {
            if started.elapsed() > Duration::from_secs(10) {
                return Err(format!("the rsync daemon does not listen: {}", process.log()));
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        let url = format!("rsync://127.0.0.1:{port}/replica/");
        Ok(Daemon { process, url, _scratch: scratch })
    }
}

/// Waits until a process has used no CPU for a while.
pub fn settle(process: &mut Process) -> Result<(), String> {
    let (mut quiet, mut before) = (0, -1.0);
    for _ in 0..1200 {
        if !process.is_running() {
            return Err(format!("the source ended: {}", process.log().trim()));
        }
        let now = process.usage().cpu_s;
        quiet = if now > before { 0 } else { quiet + 1 };
        before = now;
        if quiet >= 8 {
            return Ok(());
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    Err("the source does not settle within a minute".to_owned())
}
