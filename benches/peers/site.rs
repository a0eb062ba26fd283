//! Nodes of mirror in any arrangement, for what is measured of it alone.

use std::path::Path;
use std::time::Duration;

use crate::common::machine::scratch;
use crate::common::node::{Node, NodeRole};
use crate::common::pair::wait_until;
use crate::common::process::{Process, Usage};
use crate::tools::settle;

/// The number of the source among the nodes.
pub const SOURCE: usize = 0;

/// A source, and who follows it; all end with this guard.
pub struct Site {
    nodes: Vec<Node>,
    scratch: tempfile::TempDir,
}

impl Site {
    /// Starts a source of the tree at `src` and waits until it has settled.
    pub fn new(src: &Path) -> Result<Site, String> {
        let scratch = scratch();
        let nodes = vec![Node::at(src, scratch.path(), "source", NodeRole::Source)];
        let mut site = Site { nodes, scratch };
        site.start(SOURCE);
        site.settle()?;
        Ok(site)
    }

    /// Adds a node whose replica is at `root`; returns its number. It does not run yet.
    pub fn add(&mut self, role: NodeRole, upstream: String, root: &Path) -> usize {
        let name = format!("{}-{}", role.name(), self.nodes.len());
        let mut node = Node::at(root, self.scratch.path(), &name, role);
        node.upstream = upstream;
        self.nodes.push(node);
        self.nodes.len() - 1
    }

    pub fn node(&self, node: usize) -> &Node {
        &self.nodes[node]
    }

    /// Starts a node; what it said before is gone.
    pub fn start(&mut self, node: usize) {
        let _ = std::fs::remove_file(&self.nodes[node].log);
        self.nodes[node].start();
    }

    /// Waits until the source has used no CPU for a while.
    pub fn settle(&mut self) -> Result<(), String> {
        settle(self.nodes[SOURCE].process.as_mut().ok_or("the source was not started")?)
    }

    /// Starts nodes and waits until each says that its replica is whole.
    pub fn synchronise(&mut self, nodes: &[usize]) -> Result<(), String> {
        nodes.iter().for_each(|node| self.start(*node));
        nodes.iter().try_for_each(|node| self.wait_said(*node, WHOLE))
    }

    /// Waits until a node has said `text`.
    pub fn wait_said(&mut self, node: usize, text: &str) -> Result<(), String> {
        let node = &mut self.nodes[node];
        let mut ended = None;
        let said = wait_until(PATIENCE, || {
            ended = node.ended();
            ended.is_some() || node.log_text().contains(text)
        });
        if said && ended.is_none() {
            return Ok(());
        }
        let log = node.log_text();
        let last = log.lines().last().unwrap_or("nothing");
        Err(format!("{} did not say {text:?}, but {last:?}", node.name))
    }

    /// Returns how often a node has said `text`.
    pub fn count_said(&self, node: usize, text: &str) -> usize {
        self.nodes[node].log_text().matches(text).count()
    }

    /// Ends nodes cleanly, one after the other.
    pub fn terminate(&mut self, nodes: &[usize]) -> Result<(), String> {
        for node in nodes {
            let node = &mut self.nodes[*node];
            let status = node.process.take().and_then(|mut it| it.terminate(PATIENCE));
            status.ok_or_else(|| format!("{} does not end", node.name))?;
        }
        Ok(())
    }

    /// Stops a node by a signal, or has it go on.
    pub fn pause(&mut self, node: usize, pause: bool) {
        self.nodes[node].stop(pause);
    }

    pub fn usage(&self, node: usize) -> Usage {
        self.nodes[node].process.as_ref().map(Process::usage).unwrap_or_default()
    }
}

/// What a replica says that was received or compared as a whole.
const WHOLE: &str = "it is as its upstream's";

/// What one says that goes on where it was.
pub const RESUMING: &str = "resuming by position";

/// How long anything may take.
const PATIENCE: Duration = Duration::from_secs(300);
