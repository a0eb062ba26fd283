//! Whole topologies under random operations and random faults: a proxy on every edge cuts, stalls,
//! delays, throttles and flips bits; nodes are killed, stopped, restarted and given other parents.
//! Then it is quiet, and every replica becomes equal to the source by the judge of DESIGN I1.
//!
//! Topologies are data (`topology.rs`), and so are faults (`faults.rs`). `MIRROR_SEED` replays what
//! is done and in which order; the moments are the scheduler's. `MIRROR_TEST_CHAOS` sets how many
//! rounds each topology goes through (40, which takes seconds; 2000 take about half an hour).

#[path = "../common/mod.rs"]
mod common;
mod faults;
mod topology;

use std::time::{Duration, Instant};

use common::judge::{Judge, rsync_differences, summary};
use common::operations::Operations;
use faults::Faults;
use topology::{CHAIN_OF_FOUR, FAN_OF_THREE, Links, TREE, Topology};

/// Rounds from one quiet to the next.
const ROUNDS_BETWEEN: u64 = 10;

/// What is told when a test fails.
struct Story<'a> {
    seed: u64,
    topology: &'a Topology,
    links: &'a mut Links,
    /// Operations and faults since the trees were last equal.
    told: Vec<String>,
}

impl Drop for Story<'_> {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            return;
        }
        self.links.keep();
        println!("{}", self.told.join("\n"));
        for node in &self.links.nodes {
            let log = node.log_text();
            let lines: Vec<&str> = log.lines().collect();
            let last = lines.len().saturating_sub(15);
            println!(
                "--- {}, last of {} lines\n{}",
                node.name,
                lines.len(),
                lines[last..].join("\n")
            );
        }
        println!(
            "MIRROR_SEED={} replays {}; above is what was done since all was equal, and trees and \
             logs are in {}",
            self.seed,
            self.topology.name,
            self.links.scratch().display()
        );
    }
}

impl Story<'_> {
    /// Waits until every replica is equal to the source.
    fn converge(&mut self) {
        let source = self.links.nodes[0].root.clone();
        let started = Instant::now();
        for replica in 1..self.links.nodes.len() {
            let judge = Judge::new(&source, &self.links.nodes[replica].root);
            loop {
                self.links.expect_running();
                let differences = judge.differences();
                if differences.is_empty() {
                    break;
                }
                assert!(
                    started.elapsed() < common::patience(),
                    "{} is not equal after {:?} of quiet:\n{}",
                    self.links.nodes[replica].name,
                    started.elapsed(),
                    summary(&differences)
                );
                std::thread::sleep(Duration::from_millis(20));
            }
        }
        self.told.clear();
    }
}

fn chaos(topology: &Topology) {
    let seed = common::seed();
    let mut rng = fastrand::Rng::with_seed(seed ^ 0xc4a0_5000);
    let mut links = Links::new(topology);
    let mut operations = Operations::new(&links.nodes[0].root, links.outside(), seed);
    let mut faults = Faults::default();
    let mut story = Story { seed, topology, links: &mut links, told: Vec::new() };
    story.told = operations.run(60);
    story.links.nodes.iter_mut().for_each(common::node::Node::start);
    let rounds = common::number_from_env("MIRROR_TEST_CHAOS", 40);
    let started = Instant::now();
    let mut steps = 60;
    for round in 1..=rounds {
        for _ in 0..rng.u32(..60) {
            story.told.push(operations.step());
            steps += 1;
            if rng.u8(..8) == 0 {
                std::thread::sleep(Duration::from_micros(rng.u64(..8_000)));
            }
            faults.heal_due(story.links, &mut story.told);
        }
        for _ in 0..rng.u8(..3) {
            faults.draw(&mut rng, story.links, &mut story.told);
        }
        story.links.expect_running();
        if round % ROUNDS_BETWEEN == 0 || round == rounds {
            if round == rounds {
                operations.close();
            }
            faults.heal_all(story.links, &mut story.told);
            story.converge();
        }
    }
    for replica in &story.links.nodes[1..] {
        let lines = rsync_differences(&story.links.nodes[0].root, &replica.root);
        assert_eq!(lines.unwrap_or_default(), "", "rsync finds differences in {}", replica.name);
    }
    println!(
        "{}: {steps} operations, {} faults, all equal after {:?}",
        topology.name,
        faults.drawn,
        started.elapsed()
    );
}

#[test]
fn chain_of_four() {
    chaos(&CHAIN_OF_FOUR);
}

#[test]
fn fan_of_three() {
    chaos(&FAN_OF_THREE);
}

#[test]
fn tree() {
    chaos(&TREE);
}
