//! What goes wrong: drawn at random, and cured after a while.

use std::os::unix::process::ExitStatusExt as _;
use std::time::{Duration, Instant};

use crate::topology::Links;

/// What will be cured, and when.
#[derive(Default)]
pub struct Faults {
    cures: Vec<(Instant, Cure)>,
    /// How many faults there were.
    pub drawn: u64,
}

/// The end of a fault.
#[derive(Debug, Clone, Copy)]
enum Cure {
    Flow(usize),
    Go(usize),
    Restart(usize),
}

impl Faults {
    /// Draws a fault and has it happen.
    pub fn draw(&mut self, rng: &mut fastrand::Rng, links: &mut Links, told: &mut Vec<String>) {
        self.drawn += 1;
        let node = rng.usize(..links.nodes.len());
        let edge = rng.usize(1..links.nodes.len());
        let duration = Duration::from_millis(rng.u64(..400));
        let until = Instant::now() + duration;
        let name = links.nodes[node].name.clone();
        let to = links.nodes[edge].name.clone();
        match rng.u8(..100) {
            0..15 => {
                told.push(format!("# the edge to {to} is cut"));
                links.proxy(edge).cut();
            }
            15..25 => {
                told.push(format!("# the edge to {to} stalls for {duration:?}"));
                links.proxy(edge).stall(true);
                self.cures.push((until, Cure::Flow(edge)));
            }
            25..33 => {
                let delay = Duration::from_millis(rng.u64(1..20));
                told.push(format!("# the edge to {to} is slower by {delay:?} for {duration:?}"));
                links.proxy(edge).delay(delay);
                self.cures.push((until, Cure::Flow(edge)));
            }
            33..40 => {
                let bytes_per_s = rng.u64(50_000..2_000_000);
                told.push(format!("# the edge to {to} takes {bytes_per_s} B/s for {duration:?}"));
                links.proxy(edge).throttle(bytes_per_s);
                self.cures.push((until, Cure::Flow(edge)));
            }
            40..52 => {
                let count = rng.u64(1..4);
                told.push(format!("# {count} bits are flipped on the edge to {to}"));
                links.proxy(edge).flip(count, rng.u64(..));
            }
            52..72 if links.nodes[node].process.is_some() => {
                told.push(format!("# {name} is killed, and comes again after {duration:?}"));
                links.nodes[node].kill9();
                self.cures.push((until, Cure::Restart(node)));
            }
            72..77 if links.nodes[node].process.is_some() && !links.nodes[node].is_stopped => {
                told.push(format!("# {name} is ended, and comes again after {duration:?}"));
                let status = links.nodes[node].terminate().expect("it ends when it is asked to");
                // One that was started a moment ago may not have come to ask for signals.
                let is_young = status.signal() == Some(rustix::process::Signal::TERM.as_raw());
                assert!(status.success() || is_young, "{name}: {status}");
                self.cures.push((until, Cure::Restart(node)));
            }
            77..87 if links.nodes[node].process.is_some() => {
                told.push(format!("# {name} is stopped for {duration:?}"));
                links.nodes[node].stop(true);
                self.cures.push((until, Cure::Go(node)));
            }
            87..100 => {
                let Some(parent) = rng.choice(links.other_parents(edge)) else { return };
                let restart = rng.bool() && links.nodes[edge].process.is_some();
                told.push(format!(
                    "# {to} follows {}{}",
                    links.nodes[parent].name,
                    if restart { " after a kill" } else { "" }
                ));
                if restart {
                    links.nodes[edge].kill9();
                }
                links.follow(edge, parent);
                links.proxy(edge).cut();
                if restart {
                    links.nodes[edge].start();
                }
            }
            _ => {}
        }
    }

    /// Cures what has lasted long enough.
    pub fn heal_due(&mut self, links: &mut Links, told: &mut Vec<String>) {
        let now = Instant::now();
        let (due, left) = self.cures.drain(..).partition(|(at, _)| *at <= now);
        self.cures = left;
        for (_, cure) in due {
            cure.apply(links, told);
        }
    }

    /// Cures everything.
    pub fn heal_all(&mut self, links: &mut Links, told: &mut Vec<String>) {
        for (_, cure) in std::mem::take(&mut self.cures) {
            cure.apply(links, told);
        }
        for edge in 1..links.nodes.len() {
            links.proxy(edge).flip(0, 0);
            Cure::Flow(edge).apply(links, told);
        }
        told.push("# all is well".into());
    }
}

impl Cure {
    fn apply(self, links: &mut Links, told: &mut Vec<String>) {
        match self {
            Cure::Flow(edge) => {
                let proxy = links.proxy(edge);
                proxy.stall(false);
                proxy.delay(Duration::ZERO);
                proxy.throttle(0);
            }
            Cure::Go(node) => links.nodes[node].stop(false),
            Cure::Restart(node) => {
                if links.nodes[node].process.is_none() {
                    told.push(format!("# {} comes again", links.nodes[node].name));
                    links.nodes[node].start();
                }
            }
        }
    }
}
