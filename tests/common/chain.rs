//! A chain in one process, driven step by step: an origin `A`, relays `B` and `C`, a sink `D`, and
//! the frames between them in queues.
//!
//! Real trees and the real code; nothing runs by itself. A node is killed by dropping it, and
//! opened again from its files.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::fs;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::{Duration, Instant};

use super::feed::Meddled;
use super::judge::Judge;
use super::world::{Race, Racer, open_source, sink_options, with_frame};
use mirror::journal::Checkpoint;
use mirror::journal::state_file::Directory;
use mirror::model::Watermarks;
use mirror::role::{LinkError, LinkId, Peer, Relay, RelayOptions, Role, Sink, Source};
use mirror::wire::{FrameKind, Item, ItemsFrame, Message, Refusal, encode_message};

/// The nodes by their numbers.
pub const A: usize = 0;
/// A relay.
pub const B: usize = 1;
/// A relay.
pub const C: usize = 2;
/// The sink.
pub const D: usize = 3;

const NAMES: [&str; 4] = ["A", "B", "C", "D"];

/// One process of the chain.
pub enum Node {
    /// The origin.
    Origin(Box<Source<Meddled<Racer>>>),
    /// A relay.
    Relay(Box<Relay>),
    /// A sink.
    Sink(Box<Sink>),
}

impl Node {
    pub fn role(&mut self) -> &mut dyn Role {
        match self {
            Node::Origin(node) => node.as_mut(),
            Node::Relay(node) => node.as_mut(),
            Node::Sink(node) => node.as_mut(),
        }
    }

    /// Returns how far the replica is, `None` of the origin or if that is not known.
    pub fn watermarks(&mut self) -> Option<Watermarks> {
        match self {
            Node::Origin(_) => None,
            Node::Relay(node) => node.feed().state().watermarks,
            Node::Sink(node) => node.state().watermarks,
        }
    }
}

/// What is between a node and its upstream.
#[derive(Default)]
pub struct Edge {
    pub up: usize,
    /// The connection, as the upstream calls it and as the downstream does.
    link: Option<(LinkId, LinkId)>,
    pub down: VecDeque<Vec<u8>>,
    pub back: VecDeque<Vec<u8>>,
    /// What came down since this was cleared last.
    pub told: Vec<Item>,
    /// The upstream's last hello, and how the last one was answered.
    pub plans: Vec<mirror::wire::Plan>,
}

/// The chain; see the module.
pub struct Chain {
    directory: PathBuf,
    pub nodes: [Option<Node>; 4],
    /// By the downstream of each; that of the origin is not used.
    pub edges: [Edge; 4],
    pub race: Rc<RefCell<Race>>,
    pub random: fastrand::Rng,
    links: u64,
    /// Nodes that ended by themselves, and why.
    pub ended: Vec<(usize, String)>,
    /// Why connections were closed.
    pub cuts: Vec<String>,
    pub checkpoint_interval: [Duration; 4],
    /// Most jobs that are read at once, none for as many as there are.
    pub jobs_max: Option<usize>,
    /// Most bytes of each journal, and of each segment of it, if they are limited.
    pub journal_bytes: Option<(u64, u64)>,
}

impl Chain {
    /// Makes a chain A→B→C→D in which nothing is opened yet but the origin, whose tree is made by
    /// random operations, not more than so many.
    pub fn new(directory: &Path, seed: u64, operations_max: usize) -> Chain {
        let race = Race::begin(directory, seed, operations_max);
        let mut edges: [Edge; 4] = Default::default();
        for node in [B, C, D] {
            edges[node].up = node - 1;
        }
        let origin = Node::Origin(Box::new(open_source(directory, &race)));
        Chain {
            directory: directory.to_owned(),
            nodes: [Some(origin), None, None, None],
            edges,
            race,
            random: fastrand::Rng::with_seed(seed ^ 0xc4a1),
            links: 0,
            ended: Vec::new(),
            cuts: Vec::new(),
            checkpoint_interval: [Duration::from_millis(1); 4],
            jobs_max: None,
            journal_bytes: None,
        }
    }

    /// Makes a chain with an empty tree, in which nothing happens but what the test does.
    pub fn quiet(directory: &Path) -> Chain {
        let chain = Chain::new(directory, 1, 0);
        chain.race.borrow_mut().overflows = 0;
        chain
    }

    /// Returns the tree of a node.
    pub fn tree(&self, node: usize) -> PathBuf {
        self.directory.join(["src", "B", "C", "D"][node])
    }

    /// Returns where a relay keeps its journal.
    pub fn journal(&self, node: usize) -> PathBuf {
        self.directory.join(format!("{}-state/journal", NAMES[node]))
    }

    fn log(&self, text: String) {
        self.race.borrow_mut().log.push(text);
    }

    /// Opens a node that is not running.
    pub fn open(&mut self, node: usize) {
        if self.nodes[node].is_some() {
            return;
        }
        let options = || sink_options(&self.directory, NAMES[node], self.checkpoint_interval[node]);
        let opened = match node {
            A => Node::Origin(Box::new(open_source(&self.directory, &self.race))),
            D => Node::Sink(Box::new(Sink::open(options()).expect("the sink opens"))),
            _ => {
                let options = RelayOptions { sink: options(), journal_bytes: 64 << 20 };
                Node::Relay(Box::new(Relay::open_relay(options).expect("the relay opens")))
            }
        };
        self.nodes[node] = Some(opened);
        self.set_limits(node);
    }

    /// Has a node lag, and its journal forget, as this chain says.
    pub fn set_limits(&mut self, node: usize) {
        let (jobs_max, journal_bytes) = (self.jobs_max, self.journal_bytes);
        match &mut self.nodes[node] {
            Some(Node::Origin(node)) => limit(node, jobs_max, journal_bytes),
            Some(Node::Relay(node)) => limit(node, jobs_max, journal_bytes),
            Some(Node::Sink(_)) | None => {}
        }
    }

    pub fn node(&mut self, node: usize) -> &mut Node {
        self.nodes[node].as_mut().expect("it is running")
    }

    pub fn relay(&mut self, node: usize) -> &mut Relay {
        match self.node(node) {
            Node::Relay(relay) => relay,
            _ => panic!("no relay"),
        }
    }

    pub fn origin(&mut self) -> &mut Source<Meddled<Racer>> {
        match self.node(A) {
            Node::Origin(origin) => origin,
            _ => panic!("no origin"),
        }
    }

    pub fn is_connected(&self, node: usize) -> bool {
        self.edges[node].link.is_some()
    }

    /// Connects a node to its upstream, opening both if need be.
    pub fn connect(&mut self, node: usize) {
        if node == A || self.is_connected(node) {
            return;
        }
        let up = self.edges[node].up;
        self.open(up);
        self.open(node);
        self.links += 2;
        let (above, below, now) = (LinkId(self.links), LinkId(self.links + 1), Instant::now());
        self.edges[node].link = Some((above, below));
        self.node(up).role().handle_connected(above, Peer::Downstream, now);
        self.node(node).role().handle_connected(below, Peer::Upstream, now);
        self.take_messages(node);
    }

    /// Cuts the connection of a node with its upstream.
    pub fn cut(&mut self, node: usize, reason: &str) {
        let edge = &mut self.edges[node];
        edge.down.clear();
        edge.back.clear();
        let (up, now) = (edge.up, Instant::now());
        let Some((above, below)) = edge.link.take() else { return };
        self.cuts.push(reason.to_owned());
        for (end, link) in [(up, above), (node, below)] {
            if let Some(end) = &mut self.nodes[end] {
                end.role().handle_closed(Some(link), reason, now);
            }
        }
    }

    /// Has a node follow another upstream from now on, which must not follow it.
    pub fn re_parent(&mut self, node: usize, up: usize) {
        self.cut(node, "re-parented");
        self.edges[node].up = up;
    }

    /// Returns whether `node` is `up` or gets its tree from it.
    pub fn follows(&self, mut node: usize, up: usize) -> bool {
        while node != up && node != A {
            node = self.edges[node].up;
        }
        node == up
    }

    /// Kills a node: nothing of its memory survives.
    pub fn kill(&mut self, node: usize) {
        let killed = self.nodes[node].take();
        for edge in [B, C, D] {
            if edge == node || self.edges[edge].up == node {
                self.cut(edge, "killed");
            }
        }
        drop(killed);
    }

    /// Ends a node in order.
    pub fn stop(&mut self, node: usize) {
        if let Some(node) = &mut self.nodes[node] {
            node.role().shut_down().expect("it ends in order");
        }
        self.kill(node);
    }

    /// Makes the checkpoint of a node that is not running one of before the machine was booted.
    pub fn reboot(&self, node: usize) {
        self.change_checkpoint(node, |checkpoint| checkpoint.boot_id ^= 1);
    }

    pub fn change_checkpoint(&self, node: usize, change: impl FnOnce(&mut Checkpoint)) {
        let Ok(control) = Directory::open(&self.tree(node).join(".mirror")) else { return };
        if let Some(mut checkpoint) = Checkpoint::load(&control).unwrap() {
            change(&mut checkpoint);
            checkpoint.save(&control).unwrap();
        }
    }

    /// Returns the journal of a relay as it is on disk now.
    pub fn copy_journal(&self, node: usize) -> Vec<(PathBuf, Vec<u8>)> {
        let Ok(files) = fs::read_dir(self.journal(node)) else { return Vec::new() };
        let paths = files.map(|file| file.unwrap().path());
        paths.map(|path| (path.clone(), fs::read(path).unwrap())).collect()
    }

    /// Puts the journal of a relay that is not running back.
    pub fn restore_journal(&self, node: usize, files: &[(PathBuf, Vec<u8>)]) {
        let _ = fs::remove_dir_all(self.journal(node));
        fs::create_dir_all(self.journal(node)).unwrap();
        for (path, content) in files {
            fs::write(path, content).unwrap();
        }
    }

    /// Takes one frame that a node's upstream has for it.
    pub fn send(&mut self, node: usize) -> bool {
        let Some((link, _)) = self.edges[node].link else { return false };
        let (up, now) = (self.edges[node].up, Instant::now());
        self.node(up).role().handle_timeout(now).unwrap();
        if let Err(error) = self.node(up).role().check(link, now) {
            return self.closed_by_upstream(node, error);
        }
        let sent = self.node(up).role().poll_transmit(link, now);
        match sent {
            Ok(Some(frame)) => {
                self.edges[node].down.push_back(frame.to_vec());
                true
            }
            Ok(None) => false,
            Err(error) => self.closed_by_upstream(node, error),
        }
    }

    /// Lets a node handle one frame, and takes what it has to say.
    pub fn deliver(&mut self, node: usize) -> bool {
        let Some((_, link)) = self.edges[node].link else { return false };
        let now = Instant::now();
        let frame = self.edges[node].down.pop_front();
        let moved = frame.is_some();
        if let Some(bytes) = frame
            && !self.handle(node, &bytes)
        {
            return false;
        }
        // A part of what is on its way may be all that came.
        if (self.edges[node].down.is_empty() || self.random.bool())
            && let Err(error) = self.node(node).role().handle_drained(link, now)
        {
            return self.closed_by_downstream(node, error);
        }
        self.node(node).role().handle_timeout(now).unwrap();
        self.take_messages(node);
        moved
    }

    /// Lets a node handle the first items only of the next frame.
    pub fn deliver_part(&mut self, node: usize) {
        let Some(mut bytes) = self.edges[node].down.pop_front() else { return };
        let random = &mut self.random;
        let part = with_frame(&bytes, |frame, _| {
            if frame.kind != FrameKind::Items {
                return None;
            }
            let items: Vec<_> = frame.items().map(|item| item.unwrap()).collect();
            let mut part = ItemsFrame::default();
            for (item, raw) in &items[..random.usize(1..=items.len())] {
                part.push(item);
                part.buffer(raw.len()).extend_from_slice(raw);
            }
            Some(part.finish())
        });
        if let Some(part) = part {
            bytes = part;
        }
        self.handle(node, &bytes);
    }

    /// Lets a node handle one frame.
    fn handle(&mut self, node: usize, bytes: &[u8]) -> bool {
        let Some((_, link)) = self.edges[node].link else { return false };
        with_frame(bytes, |frame, _| match frame.kind {
            FrameKind::Message => {
                if let Ok(Message::UpstreamHello(hello)) = frame.message() {
                    self.edges[node].plans.push(hello.plan);
                }
                self.trace(node, format!("<< {:?}", frame.message()));
            }
            FrameKind::Items => {
                for item in frame.items() {
                    let item = item.unwrap().0;
                    self.trace(node, format!("< {item:?}"));
                    self.edges[node].told.push(item);
                }
            }
        });
        let now = Instant::now();
        let role = self.nodes[node].as_mut().expect("it is running").role();
        let handled =
            with_frame(bytes, |frame, length| role.handle_frame(link, frame, length, now));
        match handled {
            Ok(()) => true,
            Err(error) => self.closed_by_downstream(node, error),
        }
    }

    /// Lets the upstream of a node handle one message of it.
    pub fn answer(&mut self, node: usize) -> bool {
        let Some((link, _)) = self.edges[node].link else { return false };
        let Some(bytes) = self.edges[node].back.pop_front() else { return false };
        with_frame(&bytes, |frame, _| self.trace(node, format!("> {:?}", frame.message())));
        let (up, now) = (self.edges[node].up, Instant::now());
        let role = self.nodes[up].as_mut().expect("it is running").role();
        let handled =
            with_frame(&bytes, |frame, length| role.handle_frame(link, frame, length, now));
        match handled {
            Ok(()) => true,
            Err(error) => self.closed_by_upstream(node, error),
        }
    }

    fn take_messages(&mut self, node: usize) {
        let Some((_, link)) = self.edges[node].link else { return };
        let now = Instant::now();
        while let Some(frame) = self.node(node).role().poll_transmit(link, now).unwrap() {
            self.edges[node].back.push_back(frame.to_vec());
        }
    }

    fn trace(&self, node: usize, text: String) {
        if std::env::var_os("MIRROR_TRACE").is_some() {
            self.log(format!("    {} {text}", NAMES[node]));
        }
    }

    /// The upstream of a node closes the connection, and says why.
    fn closed_by_upstream(&mut self, node: usize, error: LinkError) -> bool {
        self.log(format!("({} closed by its upstream: {error})", NAMES[node]));
        let LinkError::Refuse(refusal) = error else { panic!("{error}") };
        assert!(!matches!(refusal, Refusal::Protocol(_)), "{refusal}");
        // What was sent before comes before.
        while self.random.bool() && self.deliver(node) {}
        let Some((_, link)) = self.edges[node].link else { return false };
        let bytes = encode_message(&Message::Bye(refusal.clone()));
        let role = self.nodes[node].as_mut().expect("it is running").role();
        let handled = with_frame(&bytes, |frame, length| {
            role.handle_frame(link, frame, length, Instant::now())
        });
        self.cut(node, &refusal.to_string());
        self.note_end(node, handled);
        false
    }

    /// A node closes the connection with its upstream, or ends.
    fn closed_by_downstream(&mut self, node: usize, error: LinkError) -> bool {
        self.log(format!("({} closes: {error})", NAMES[node]));
        if let LinkError::Refuse(refusal) = &error {
            assert!(!matches!(refusal, Refusal::Protocol(_)), "{refusal}");
        }
        self.cut(node, &error.to_string());
        self.note_end(node, Err(error));
        false
    }

    fn note_end(&mut self, node: usize, handled: Result<(), LinkError>) {
        if let Err(LinkError::Role(error)) = handled {
            self.kill(node);
            self.ended.push((node, error.to_string()));
        }
    }

    /// Lets an edge work once; returns whether anything moved.
    pub fn work(&mut self, node: usize) -> bool {
        self.send(node) | self.deliver(node) | self.answer(node)
    }

    /// Lets these nodes follow their upstreams until nothing moves any more.
    pub fn run(&mut self, nodes: &[usize]) {
        let started = Instant::now();
        let mut idle = 0;
        while idle < 8 && started.elapsed() < Duration::from_secs(20) {
            let mut moved = false;
            for node in nodes {
                moved |= self.work(*node);
            }
            idle = if moved { 0 } else { idle + 1 };
            if !moved {
                std::thread::sleep(Duration::from_millis(3));
            }
        }
    }

    /// Returns what is not equal, in all replicas.
    pub fn differences(&self) -> Vec<String> {
        let mut differences = Vec::new();
        for node in [B, C, D] {
            let found = Judge::new(self.tree(A), self.tree(node)).differences();
            differences.extend(found.iter().map(|line| format!("{}: {line}", NAMES[node])));
        }
        differences
    }

    /// Connects all and lets them work undisturbed until their trees are equal; returns what is
    /// not.
    pub fn settle(&mut self, patience: Duration) -> Vec<String> {
        let started = Instant::now();
        loop {
            for node in [B, C, D] {
                self.connect(node);
            }
            let mut idle = 0;
            while idle < 3 && started.elapsed() < Duration::from_secs(40) {
                let moved =
                    [B, C, D].into_iter().fold(false, |moved, node| moved | self.work(node));
                idle = if moved { 0 } else { idle + 1 };
            }
            assert!(self.ended.is_empty(), "{:?}", self.ended);
            let differences = self.differences();
            if differences.is_empty() || started.elapsed() > patience {
                return differences;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// As [`settle`](Self::settle), for tests in which nothing is in the way of that.
    pub fn converge(&mut self) {
        let differences = self.settle(Duration::from_secs(10));
        assert!(differences.is_empty(), "{}", differences.join("\n"));
    }
}

impl Drop for Chain {
    fn drop(&mut self) {
        if std::thread::panicking()
            && let Ok(race) = self.race.try_borrow()
        {
            println!("what was done:\n{}", race.log.join("\n"));
        }
    }
}

fn limit<F: mirror::role::SourceFeed>(
    node: &mut Source<F>,
    jobs_max: Option<usize>,
    journal_bytes: Option<(u64, u64)>,
) {
    if let Some(jobs_max) = jobs_max {
        node.limit_batches(jobs_max);
    }
    if let Some((bytes_max, segment_bytes)) = journal_bytes {
        node.limit_journal(bytes_max, segment_bytes);
    }
}
