//! What goes wrong at a relay: it heals by itself, and so does what follows it.

mod common;

use std::fs;
use std::time::{Duration, Instant};

use common::judge::wait_equal;
use common::node::{Node, NodeRole};

/// A source, a relay and a sink that are equal.
struct Chain {
    nodes: Vec<Node>,
    _scratch: tempfile::TempDir,
}

impl Chain {
    fn new() -> Chain {
        let scratch = common::machine::scratch();
        let mut nodes: Vec<Node> =
            [("a", NodeRole::Source), ("b", NodeRole::Relay), ("c", NodeRole::Sink)]
                .map(|(name, role)| Node::new(scratch.path(), name, role))
                .into();
        for index in 1..nodes.len() {
            nodes[index].upstream = nodes[index - 1].url();
            nodes[index].args = vec!["--checkpoint-interval".into(), "50ms".into()];
        }
        fs::write(nodes[0].root.join("f"), "f").unwrap();
        nodes.iter_mut().for_each(Node::start);
        let chain = Chain { nodes, _scratch: scratch };
        chain.converge();
        chain
    }

    fn converge(&self) {
        for node in &self.nodes[1..] {
            wait_equal(&self.nodes[0].root, &node.root, common::patience());
        }
    }

    fn rename(&self, from: &str, to: &str) {
        fs::rename(self.nodes[0].root.join(from), self.nodes[0].root.join(to)).unwrap();
        self.converge();
    }
}

/// A journal that does not reach its tree is begun anew, at each start that finds it so.
#[test]
fn a_relay_whose_journal_is_older_than_its_tree_begins_it_anew() {
    let mut chain = Chain::new();
    let journal = chain.nodes[1].state.join("journal");
    let older = |entry: fs::DirEntry| (entry.path(), fs::read(entry.path()).unwrap());
    let older: Vec<_> =
        fs::read_dir(&journal).unwrap().map(|entry| older(entry.unwrap())).collect();
    chain.rename("f", "g");
    std::thread::sleep(std::time::Duration::from_millis(200));
    chain.rename("g", "h");
    chain.nodes[1].kill9();
    for (path, content) in older {
        fs::write(path, content).unwrap();
    }
    chain.nodes[1].start();
    chain.rename("h", "i");
    let log = chain.nodes[1].log_text();
    assert!(log.contains("journal") && !log.contains("panicked"), "{log}");
}

/// What was done when it was killed is in its journal, so that nobody compares a tree.
#[test]
fn a_relay_that_is_killed_goes_on_with_its_journal() {
    let mut chain = Chain::new();
    chain.rename("f", "g");
    std::thread::sleep(std::time::Duration::from_millis(200));
    // Another rename than the checkpoint knows of, and changes behind it.
    chain.rename("g", "h");
    fs::write(chain.nodes[0].root.join("f"), "another f").unwrap();
    chain.converge();
    chain.nodes[1].kill9();
    chain.nodes[1].start();
    chain.rename("h", "i");
    let compared = |log: &str| log.matches("receiving the whole tree").count();
    for node in &chain.nodes[1..] {
        let log = node.log_text();
        assert!(compared(&log) == 1 && log.contains("resuming by position"), "{log}");
    }
}

/// What a relay was told of the nodes above it says nothing when it has lost them: were it taken
/// for a cycle, the node that takes its place would end for good.
#[test]
fn a_relay_that_lost_its_upstream_may_become_that_nodes_upstream() {
    let scratch = common::machine::scratch();
    let mut nodes: Vec<Node> =
        [("a", NodeRole::Source), ("b", NodeRole::Relay), ("c", NodeRole::Relay)]
            .map(|(name, role)| Node::new(scratch.path(), name, role))
            .into();
    let proxy = common::proxy::Proxy::start(nodes[1].port);
    nodes[1].upstream = nodes[0].url();
    nodes[2].upstream = format!("tcp://127.0.0.1:{}", proxy.port());
    fs::write(nodes[0].root.join("f"), "f").unwrap();
    nodes.iter_mut().for_each(Node::start);
    for node in &nodes[1..] {
        wait_equal(&nodes[0].root, &node.root, common::patience());
    }
    // C loses B, lives on, and will follow A. B follows C meanwhile.
    proxy.refuse(true);
    nodes[1].terminate();
    nodes[1].upstream = nodes[2].url();
    nodes[1].start();
    let until = Instant::now() + common::patience();
    while !nodes[1].log_text().contains("resuming by position") && Instant::now() < until {
        std::thread::sleep(Duration::from_millis(10));
    }
    proxy.redirect(nodes[0].port);
    proxy.refuse(false);
    fs::write(nodes[0].root.join("g"), "g").unwrap();
    for node in &mut nodes[1..] {
        assert!(node.ended().is_none(), "{}", node.log_text());
    }
    for node in &nodes[1..] {
        wait_equal(&nodes[0].root, &node.root, common::patience());
    }
}
