//! Every file that a role keeps, damaged while the role is down: at its next start it either goes
//! on, and its replica becomes equal, or it refuses with one line that names the file and says
//! what to do, and equal it is after that was done. In no case is the tree wrong, and in no case
//! is nothing said.
//!
//! What there is to damage is listed at run time, so that what a role will keep one day is tried
//! from its first day on. `MIRROR_TEST_DAMAGES` sets how many cases of each role are tried (10,
//! drawn by `MIRROR_SEED`); 0 means all of them.

mod common;

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use common::judge::{Judge, rsync_judge, summary};
use common::node::{Node, NodeRole};
use common::operations::Operations;

/// What is done to a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Damage {
    Emptied,
    Truncated,
    Flipped,
    Deleted,
    /// What it was some time ago, as from a backup.
    Older,
}

const DAMAGES: [Damage; 5] =
    [Damage::Deleted, Damage::Emptied, Damage::Truncated, Damage::Flipped, Damage::Older];

/// A role's files of one kind: their path, below the state directory or ROOT, with `#` for
/// numbers.
type Class = String;

/// What need not be said, and why.
const NEED_NOT_BE_SAID: &[(&str, &[Damage], &str)] = &[
    ("/lock", &DAMAGES, "it holds nothing, and is made at each start if it is not there"),
    ("/stage", &[Damage::Deleted], "what is in it is removed at each start anyway"),
    ("/trash", &[Damage::Deleted], "what is in it is removed as soon as there is time"),
    (
        "/moved-#-#",
        &[Damage::Flipped, Damage::Truncated],
        "behind a short note may be nobody's bytes",
    ),
    (
        "/#.segment",
        &[Damage::Deleted, Damage::Older],
        "the last one, or its end, is what a crash may cost, if it is not synced",
    ),
    (
        "-state/tree",
        &[Damage::Older],
        "the epoch that it counts up to is the journal's all the same",
    ),
    (
        "/catalog",
        &[Damage::Older],
        "more is told again from there, and that it is compared is said",
    ),
    // It is true, only older, as after a power cut: resuming from there is what it is for.
    ("/checkpoint", &[Damage::Older], "the replica goes on from there, which it says"),
];

/// A chain with one node that suffers.
struct World {
    nodes: Vec<Node>,
    victim: usize,
    operations: Operations,
    rng: fastrand::Rng,
    /// The victim's files of some time ago, by path.
    older: BTreeMap<PathBuf, Vec<u8>>,
    scratch: tempfile::TempDir,
}

impl World {
    fn new(role: NodeRole, seed: u64) -> World {
        let scratch = common::machine::scratch();
        let mut nodes = vec![Node::new(scratch.path(), "source", NodeRole::Source)];
        if role == NodeRole::Relay {
            nodes.push(Node::new(scratch.path(), "relay", NodeRole::Relay));
        }
        nodes.push(Node::new(scratch.path(), "sink", NodeRole::Sink));
        for index in 1..nodes.len() {
            nodes[index].upstream = nodes[index - 1].url();
            nodes[index].args = vec!["--checkpoint-interval".into(), "50ms".into()];
        }
        let victim = nodes.iter().position(|node| node.role == role).expect("it is one of them");
        let outside = scratch.path().join("outside");
        fs::create_dir(&outside).unwrap();
        let operations = Operations::new(&nodes[0].root, outside, seed);
        let rng = fastrand::Rng::with_seed(seed);
        World { nodes, victim, operations, rng, older: BTreeMap::new(), scratch }
    }

    /// Lives until the victim is down, with a past to be damaged.
    fn live(&mut self) {
        self.operations.run(60);
        self.nodes.iter_mut().for_each(Node::start);
        self.converge();
        self.operations.run(40);
        self.converge();
        // A checkpoint comes meanwhile.
        std::thread::sleep(Duration::from_millis(150));
        let victim = self.victim;
        self.nodes[victim].kill9();
        for path in self.files() {
            if path.is_file() {
                self.older.insert(path.clone(), fs::read(&path).unwrap());
            }
        }
        self.nodes[victim].start();
        self.operations.run(60);
        self.converge();
        if self.rng.u8(..4) > 0 {
            std::thread::sleep(Duration::from_millis(150));
        }
        self.operations.run(20);
        std::thread::sleep(Duration::from_millis(self.rng.u64(..60)));
        if self.rng.u8(..4) == 0 {
            let status = self.nodes[victim].terminate();
            assert!(status.is_some_and(|status| status.success()), "{status:?}");
        } else {
            self.nodes[victim].kill9();
        }
        self.operations.run(20);
    }

    fn converge(&mut self) {
        for node in &self.nodes[1..] {
            common::judge::wait_equal(&self.nodes[0].root, &node.root, common::patience());
        }
    }

    /// Returns everything that the victim keeps, directories as well.
    fn files(&self) -> Vec<PathBuf> {
        fn descend(directory: &Path, found: &mut Vec<PathBuf>) {
            for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
                found.push(entry.path());
                // What is staged is as good as gone, and emptied at each start.
                if entry.path().is_dir() && !entry.path().ends_with("stage") {
                    descend(&entry.path(), found);
                }
            }
        }
        let mut found = Vec::new();
        for directory in self.nodes[self.victim].own_directories() {
            descend(&directory, &mut found);
        }
        // Sockets, as of control, are made anew.
        found.retain(|path| path.is_file() || path.is_dir());
        found.sort();
        found
    }

    fn class(&self, path: &Path) -> Class {
        let path = path.strip_prefix(self.scratch.path()).unwrap().display().to_string();
        let mut class = String::new();
        for letter in path.chars() {
            match letter {
                _ if !letter.is_ascii_digit() => class.push(letter),
                _ if class.ends_with('#') => {}
                _ => class.push('#'),
            }
        }
        class
    }

    /// Damages a file of `class`; returns which, `None` if that would change nothing.
    fn damage(&mut self, class: &Class, damage: Damage) -> Option<PathBuf> {
        let all: Vec<PathBuf> =
            self.files().into_iter().filter(|path| self.class(path) == *class).collect();
        let path = self.rng.choice(all)?;
        if path.is_dir() {
            if damage != Damage::Deleted {
                return None;
            }
            fs::remove_dir_all(&path).unwrap();
            return Some(path);
        }
        let length = fs::metadata(&path).unwrap().len();
        match damage {
            Damage::Deleted => fs::remove_file(&path).unwrap(),
            Damage::Emptied | Damage::Truncated | Damage::Flipped if length == 0 => return None,
            Damage::Emptied => fs::File::create(&path).map(drop).unwrap(),
            Damage::Truncated => {
                let file = fs::File::options().write(true).open(&path).unwrap();
                file.set_len(self.rng.u64(1..length.max(2))).unwrap();
            }
            Damage::Flipped => {
                let file = fs::File::options().read(true).write(true).open(&path).unwrap();
                let (mut byte, at) = ([0], self.rng.u64(..length));
                file.read_exact_at(&mut byte, at).unwrap();
                byte[0] ^= 1 << self.rng.u8(..8);
                file.write_all_at(&byte, at).unwrap();
            }
            Damage::Older => {
                let older: Vec<_> =
                    self.older.keys().filter(|path| self.class(path) == *class).collect();
                let older = self.rng.choice(older)?.clone();
                let content = &self.older[&older];
                if older == path && fs::read(&path).unwrap() == *content {
                    return None;
                }
                fs::remove_file(&path).unwrap();
                fs::write(&older, content).unwrap();
            }
        }
        Some(path)
    }

    /// Starts the victim, does what those who refuse ask for, and returns what went wrong.
    fn recover(&mut self, damaged: &Path, class: &Class, damage: Damage) -> Option<String> {
        let before: Vec<usize> = self.nodes.iter().map(|node| node.log_text().len()).collect();
        self.nodes[self.victim].start();
        self.operations.run(10);
        self.operations.close();
        let started = Instant::now();
        let mut asked = 0;
        let judges: Vec<Judge> = self.nodes[1..]
            .iter()
            .map(|node| Judge::new(&self.nodes[0].root, &node.root))
            .collect();
        loop {
            std::thread::sleep(Duration::from_millis(20));
            let differences: Vec<String> =
                judges.iter().flat_map(|judge| judge.differences()).collect();
            if differences.is_empty() {
                break;
            }
            if started.elapsed() > common::patience() {
                return Some(format!("not equal:\n{}", summary(&differences)));
            }
            for node in &mut self.nodes {
                let Some(status) = node.ended() else { continue };
                let log = node.log_text();
                let line = log.lines().last().unwrap_or_default().to_owned();
                if status.code() != Some(1) {
                    return Some(format!("{} ended by {status}: {line}", node.name));
                }
                asked += 1;
                if asked > 4 {
                    return Some(format!("{} refuses again and again: {line}", node.name));
                }
                let is_told = line.contains("--") || line.contains("remove");
                if !line.starts_with("mirror: ") || !is_told {
                    return Some(format!("{} does not say what to do: {line}", node.name));
                }
                obey(node, &line);
            }
        }
        rsync_judge(&self.nodes[0].root, &self.nodes[self.nodes.len() - 1].root);
        let said: String = self
            .nodes
            .iter()
            .zip(before)
            .map(|(node, before)| format!("{}:\n{}", node.name, &node.log_text()[before..]))
            .collect();
        // By its path, or that of the directory that is damaged by its loss.
        let name = damaged.file_name().unwrap().to_string_lossy();
        let name = format!("/{}", name.split('-').next().unwrap_or_default());
        let parent = damaged.parent().unwrap().display().to_string();
        let is_own = self.nodes[self.victim].own_directories().iter().any(|own| *own == *parent);
        let tells = |line: &str| line.contains(&name) || (!is_own && line.contains(&parent));
        let is_said = said.lines().any(tells);
        let need_not = NEED_NOT_BE_SAID
            .iter()
            .any(|(end, of, _)| class.ends_with(end) && of.contains(&damage));
        (!is_said && !need_not).then(|| format!("nothing was said of {name}; only:\n{said}"))
    }
}

/// Does what a line asks its reader to do.
fn obey(node: &mut Node, line: &str) {
    if line.contains("remove it") {
        // The file comes first, or after what cannot be done with it.
        let word = line.split([' ', ':', ',']).find(|word| word.starts_with('/'));
        let path = Path::new(word.expect("the line names a file"));
        assert!(node.own_directories().iter().any(|own| path.starts_with(own)), "{line}");
        let _ = fs::remove_file(path);
    }
    // A source may speak of what its sinks must be started with, who will say so themselves.
    for (flag, is_its) in [
        ("--adopt", node.role != NodeRole::Source),
        ("--accept-root", node.role == NodeRole::Source),
    ] {
        if is_its && line.contains(flag) && !node.args.iter().any(|arg| *arg == flag) {
            node.args.push(flag.into());
        }
    }
    node.start();
}

fn damages(role: NodeRole) {
    let seed = common::seed();
    // Without any damage first, which tells what there is.
    let mut world = World::new(role, seed);
    world.live();
    let mut cases: Vec<(Class, Damage)> = Vec::new();
    for path in world.files() {
        let is_empty = fs::metadata(&path).unwrap().len() == 0;
        // Directories, and files without content, can be lost, and no more.
        let count = if path.is_dir() || is_empty { 1 } else { DAMAGES.len() };
        cases.extend(DAMAGES[..count].iter().map(|damage| (world.class(&path), *damage)));
    }
    cases.dedup();
    let victim = world.victim;
    world.nodes[victim].start();
    world.converge();
    drop(world);
    fastrand::Rng::with_seed(seed).shuffle(&mut cases);
    match common::number_from_env("MIRROR_TEST_DAMAGES", 10) {
        0 => {}
        count => cases.truncate(count as usize),
    }
    let mut failures = Vec::new();
    for (number, (class, damage)) in cases.into_iter().enumerate() {
        let mut world = World::new(role, seed + number as u64);
        world.live();
        let Some(path) = world.damage(&class, damage) else {
            println!("{class} {damage:?}: would change nothing");
            continue;
        };
        let failure = world.recover(&path, &class, damage);
        println!("{class} {damage:?}: {}", failure.as_deref().unwrap_or("well"));
        if let Some(failure) = failure {
            let kept = world.scratch.path().to_owned();
            world.scratch.disable_cleanup(true);
            failures.push(format!("{class} {damage:?} ({}): {failure}", kept.display()));
        }
    }
    assert!(failures.is_empty(), "MIRROR_SEED={seed}:\n{}", failures.join("\n"));
}

#[test]
fn damaged_files_of_a_source() {
    damages(NodeRole::Source);
}

#[test]
fn damaged_files_of_a_sink() {
    damages(NodeRole::Sink);
}

#[test]
fn damaged_files_of_a_relay() {
    damages(NodeRole::Relay);
}
