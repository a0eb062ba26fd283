//! What goes wrong at a relay: it heals by itself, and so does what follows it.

mod common;

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use common::judge::wait_equal;
use common::machine::need_ext4;
use common::node::{Node, NodeRole};
use common::pair::wait_until;

/// A source, a relay and a sink that are equal.
struct Chain {
    nodes: Vec<Node>,
    _scratch: tempfile::TempDir,
}

impl Chain {
    fn new() -> Chain {
        Chain::with(|_| ())
    }

    /// Makes one whose relay was changed before it started.
    fn with(change: impl FnOnce(&mut Node)) -> Chain {
        let scratch = common::machine::scratch();
        let mut nodes: Vec<Node> =
            [("a", NodeRole::Source), ("b", NodeRole::Relay), ("c", NodeRole::Sink)]
                .map(|(name, role)| Node::new(scratch.path(), name, role))
                .into();
        for index in 1..nodes.len() {
            nodes[index].upstream = nodes[index - 1].url();
            nodes[index].args = vec!["--checkpoint-interval".into(), "50ms".into()];
        }
        change(&mut nodes[1]);
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

    /// Waits until a node has said something so many times.
    fn wait_log(&self, node: usize, text: &str, times: usize) {
        let node = &self.nodes[node];
        let said =
            wait_until(common::patience(), || node.log_text().matches(text).count() >= times);
        assert!(said, "no {text:?}: {}", node.log_text());
    }

    /// Checks for a while that the sink has its files, each with one of its contents, and that
    /// all nodes run.
    fn sink_keeps(&mut self, contents: &BTreeMap<String, Vec<Vec<u8>>>) {
        let until = Instant::now() + Duration::from_secs(3);
        while Instant::now() < until {
            for (name, contents) in contents {
                let there = fs::read(self.nodes[2].root.join(name));
                let there = there.unwrap_or_else(|error| panic!("{name}: {error}"));
                assert!(contents.contains(&there), "{name} has {} strange bytes", there.len());
            }
            for node in &mut self.nodes {
                assert!(node.ended().is_none(), "{} ended: {}", node.name, node.log_text());
            }
            std::thread::sleep(Duration::from_millis(20));
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

/// Fills the file system at `path` up to its last block. Returns what is to be removed.
fn fill_up(path: &Path) -> PathBuf {
    let ballast = path.join("ballast");
    let file = File::create(&ballast).unwrap();
    for size in [1 << 20, 4 << 10] {
        while (&file).write_all(&vec![1; size]).is_ok() {}
    }
    ballast
}

/// What a relay could not journal nobody below it hears of, and then all of it.
#[test]
fn a_relay_without_room_for_its_journal_waits_for_it() {
    let Some(disk) = need_ext4("a small disk for a relay's journal", 16 << 20) else { return };
    let state = disk.path.join("state");
    fs::create_dir(&state).unwrap();
    let mut chain = Chain::with(|relay| relay.state = state);
    let src = chain.nodes[0].root.clone();
    let mut contents = BTreeMap::new();
    for number in 0..20 {
        let (name, content) = (format!("file-{number}"), vec![number; 3000]);
        fs::write(src.join(&name), &content).unwrap();
        contents.insert(name, vec![content, vec![number; 5000]]);
    }
    chain.converge();
    for restarts in [false, true] {
        let ballast = fill_up(&disk.path);
        // More records than fit into the journal's last block.
        for _ in 0..500 {
            for (from, to) in [("f", "a-longer-name"), ("a-longer-name", "f")] {
                fs::rename(src.join(from), src.join(to)).unwrap();
            }
        }
        for (name, contents) in &contents {
            fs::write(src.join(name), &contents[usize::from(!restarts)]).unwrap();
        }
        chain.wait_log(1, "the journal cannot be written", 1 + usize::from(restarts));
        if restarts {
            chain.nodes[1].kill9();
            chain.nodes[1].start();
        }
        let late = format!("late-{restarts}");
        fs::write(src.join(&late), "late").unwrap();
        chain.sink_keeps(&contents);
        assert!(chain.nodes[1].root.join(&late).exists(), "{}", chain.nodes[1].log_text());
        // A relay that was killed has begun its journal anew, for which the old one made room.
        assert!(restarts || !chain.nodes[2].root.join(&late).exists(), "it is not in the journal");
        fs::remove_file(ballast).unwrap();
        chain.converge();
    }
}

/// A relay that cannot take what it is told keeps what it has, and so does who follows it.
#[test]
fn a_relay_without_room_for_its_replica_waits_for_it() {
    let Some(disk) = need_ext4("a small disk for a relay's replica", 24 << 20) else { return };
    let root = disk.path.join("replica");
    fs::create_dir(&root).unwrap();
    let mut chain = Chain::with(|relay| relay.root = root);
    let src = chain.nodes[0].root.clone();
    let mut contents = BTreeMap::new();
    fs::create_dir(src.join("d")).unwrap();
    for number in 0..20 {
        let (name, content) = (format!("d/file-{number}"), vec![number; 3000]);
        fs::write(src.join(&name), &content).unwrap();
        contents.insert(name, vec![content, vec![number; 200_000]]);
    }
    chain.converge();
    for restarts in [false, true] {
        let ballast = fill_up(&disk.path);
        for (name, contents) in &contents {
            fs::write(src.join(name), &contents[usize::from(!restarts)]).unwrap();
        }
        fs::write(src.join("big"), vec![7; 4 << 20]).unwrap();
        fs::create_dir(src.join(format!("new-{restarts}"))).unwrap();
        for number in 0..50 {
            fs::write(src.join(format!("new-{restarts}/{number}")), vec![7; 5000]).unwrap();
        }
        chain.wait_log(1, "No space left", 1 + usize::from(restarts));
        if restarts {
            chain.nodes[1].kill9();
            chain.nodes[1].start();
        }
        chain.sink_keeps(&contents);
        fs::remove_file(ballast).unwrap();
        chain.converge();
    }
}
