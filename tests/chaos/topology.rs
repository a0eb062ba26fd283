//! Who follows whom, as data, and the processes and proxies that are made of it.

use std::fs;
use std::path::{Path, PathBuf};

use crate::common;
use crate::common::node::{Node, NodeRole};
use crate::common::proxy::Proxy;

/// A source and its replicas.
pub struct Topology {
    pub name: &'static str,
    /// Each replica with its role and what it follows at first: the source is number 0, the first
    /// of these number 1.
    pub replicas: &'static [(&'static str, NodeRole, usize)],
}

pub const CHAIN_OF_FOUR: Topology = Topology {
    name: "a chain of four",
    replicas: &[("b", NodeRole::Relay, 0), ("c", NodeRole::Relay, 1), ("d", NodeRole::Sink, 2)],
};

pub const FAN_OF_THREE: Topology = Topology {
    name: "a fan of three",
    replicas: &[("b", NodeRole::Sink, 0), ("c", NodeRole::Sink, 0), ("d", NodeRole::Sink, 0)],
};

pub const TREE: Topology = Topology {
    name: "a tree",
    replicas: &[
        ("b", NodeRole::Relay, 0),
        ("c", NodeRole::Sink, 1),
        ("d", NodeRole::Sink, 1),
        ("e", NodeRole::Sink, 0),
    ],
};

/// The nodes, and a proxy above each of them but the source.
pub struct Links {
    pub nodes: Vec<Node>,
    /// That of node 1 comes first.
    proxies: Vec<Proxy>,
    /// What each of them follows now.
    parents: Vec<usize>,
    scratch: tempfile::TempDir,
}

impl Links {
    /// Prepares everything; nothing runs yet but the proxies.
    pub fn new(topology: &Topology) -> Links {
        let scratch = common::machine::scratch();
        fs::create_dir(scratch.path().join("outside")).unwrap();
        let mut nodes = vec![Node::new(scratch.path(), "a", NodeRole::Source)];
        let (mut proxies, mut parents) = (Vec::new(), Vec::new());
        for &(name, role, parent) in topology.replicas {
            let proxy = Proxy::start(nodes[parent].port);
            let mut node = Node::new(scratch.path(), name, role);
            node.upstream = format!("tcp://127.0.0.1:{}", proxy.port());
            node.args = vec!["--checkpoint-interval".into(), "100ms".into()];
            nodes.push(node);
            proxies.push(proxy);
            parents.push(parent);
        }
        Links { nodes, proxies, parents, scratch }
    }

    pub fn outside(&self) -> PathBuf {
        self.scratch.path().join("outside")
    }

    pub fn scratch(&self) -> &Path {
        self.scratch.path()
    }

    /// Lets trees and logs stay.
    pub fn keep(&mut self) {
        self.scratch.disable_cleanup(true);
    }

    /// Returns the proxy above `node`, which is not the source.
    pub fn proxy(&self, node: usize) -> &Proxy {
        &self.proxies[node - 1]
    }

    /// Returns whom `node` could follow in place of whom it does.
    pub fn other_parents(&self, node: usize) -> Vec<usize> {
        let may = |other: &usize| {
            self.nodes[*other].role != NodeRole::Sink
                && *other != self.parents[node - 1]
                && !self.is_below(*other, node)
        };
        (0..self.nodes.len()).filter(may).collect()
    }

    /// Has `node` follow `parent` with its next connection.
    pub fn follow(&mut self, node: usize, parent: usize) {
        self.parents[node - 1] = parent;
        self.proxy(node).redirect(self.nodes[parent].port);
    }

    /// Panics if a node ended that nobody killed.
    pub fn expect_running(&mut self) {
        for node in &mut self.nodes {
            if let Some(status) = node.ended() {
                let log = node.log_text();
                panic!("{} ended by {status}: {}", node.name, log.lines().last().unwrap_or(""));
            }
        }
    }

    /// Returns whether `node` is `above` or follows it, however indirectly.
    fn is_below(&self, mut node: usize, above: usize) -> bool {
        while node != above && node != 0 {
            node = self.parents[node - 1];
        }
        node == above
    }
}
