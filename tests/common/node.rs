//! Nodes of any role as real processes, of which topologies are made: chains, fans, trees.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::time::Duration;

use super::machine::free_port;
use super::process::Process;

/// What a node is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NodeRole {
    Source,
    Sink,
    Relay,
}

impl NodeRole {
    pub fn name(self) -> &'static str {
        match self {
            NodeRole::Source => "source",
            NodeRole::Sink => "sink",
            NodeRole::Relay => "relay",
        }
    }
}

/// One node: its directories, its command, and its process while it runs.
pub struct Node {
    pub name: String,
    pub role: NodeRole,
    pub root: PathBuf,
    pub state: PathBuf,
    /// Its port on loopback, for those with downstreams.
    pub port: u16,
    /// What it follows; may be changed between two starts.
    pub upstream: String,
    pub args: Vec<OsString>,
    pub log: PathBuf,
    pub process: Option<Process>,
    pub is_stopped: bool,
}

impl Node {
    /// Prepares a node with its own directories below `scratch`; nothing runs yet.
    pub fn new(scratch: &Path, name: &str, role: NodeRole) -> Node {
        let root = scratch.join(name);
        fs::create_dir(&root).expect("a new directory");
        Node::at(&root, scratch, name, role)
    }

    /// Prepares a node whose tree is at `root`, with all else below `scratch`.
    pub fn at(root: &Path, scratch: &Path, name: &str, role: NodeRole) -> Node {
        let state = scratch.join(format!("{name}-state"));
        fs::create_dir(&state).expect("a new directory");
        Node {
            name: name.to_owned(),
            role,
            root: root.to_owned(),
            state,
            port: if role == NodeRole::Sink { 0 } else { free_port() },
            upstream: String::new(),
            args: Vec::new(),
            log: scratch.join(format!("{name}.log")),
            process: None,
            is_stopped: false,
        }
    }

    /// Returns the URL by which others follow it.
    pub fn url(&self) -> String {
        format!("tcp://127.0.0.1:{}", self.port)
    }

    pub fn command(&self) -> Vec<OsString> {
        let mut args: Vec<OsString> = vec![self.role.name().into()];
        if self.role != NodeRole::Sink {
            args.extend(["--listen".into(), self.url().into()]);
        }
        args.extend(["--state-dir".into(), self.state.clone().into()]);
        args.extend(self.args.iter().cloned());
        if self.role != NodeRole::Source {
            args.push(self.upstream.clone().into());
        }
        args.push(self.root.clone().into());
        args
    }

    pub fn start(&mut self) {
        self.is_stopped = false;
        self.process = Some(Process::mirror(self.command(), &self.log));
    }

    pub fn kill9(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.kill9();
        }
    }

    /// Ends it cleanly; returns its status, `None` if it would not end.
    pub fn terminate(&mut self) -> Option<ExitStatus> {
        self.process.take()?.terminate(Duration::from_secs(10))
    }

    /// Stops it by a signal, or has it go on.
    pub fn stop(&mut self, stop: bool) {
        self.is_stopped = stop;
        match &self.process {
            Some(process) if stop => process.stop(),
            Some(process) => process.resume(),
            None => {}
        }
    }

    /// Returns its exit status if it ended by itself.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.process.as_mut()?.wait(Duration::ZERO)
    }

    /// Returns the directories in which it keeps what is its own.
    pub fn own_directories(&self) -> Vec<PathBuf> {
        let mut all = vec![self.state.clone()];
        if self.role != NodeRole::Source {
            all.push(self.root.join(".mirror"));
        }
        all
    }

    pub fn log_text(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.log).unwrap_or_default()).into_owned()
    }
}
