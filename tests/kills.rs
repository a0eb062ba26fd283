//! Either role killed at any instant, while the tree changes.
//!
//! `MIRROR_SEED` replays, `MIRROR_TEST_KILLS` sets how often (50).

mod common;

use std::time::{Duration, Instant};

use common::operations::Operations;
use common::pair::Pair;

fn kills(mut pair: Pair, count: u64, seed: u64) {
    let mut rng = fastrand::Rng::with_seed(seed ^ 0x6b69_6c6c);
    let mut operations = Operations::new(&pair.src, &pair.outside, seed);
    let mut told = operations.run(60);
    pair.start();
    for kill in 1..=count {
        // From "at start" to "long settled", with operations going on meanwhile.
        let until = Instant::now() + Duration::from_micros(rng.u64(..150_000));
        while Instant::now() < until {
            told.push(operations.step());
            std::thread::sleep(Duration::from_micros(rng.u64(..4000)));
        }
        let (source, sink) = match rng.u32(..5) {
            0 | 1 => (true, false),
            2 | 3 => (false, true),
            _ => (true, true),
        };
        told.push(format!("kill {kill}: source {source}, sink {sink}"));
        if source {
            pair.source().kill9();
        }
        if sink {
            pair.sink().kill9();
        }
        told.extend(operations.run(rng.usize(..10)));
        if source {
            pair.start_source();
        }
        if sink {
            pair.start_sink();
        }
        if kill % 10 == 0 || kill == count {
            let guard = Told { seed, told: &told };
            pair.converge();
            drop(guard);
            told.clear();
        }
    }
    operations.close();
    pair.converge();
    pair.finish();
}

/// Tells what was done when a test fails.
struct Told<'a> {
    seed: u64,
    told: &'a [String],
}

impl Drop for Told<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            println!("MIRROR_SEED={} replays; since it was equal:", self.seed);
            println!("{}", self.told.join("\n"));
        }
    }
}

#[test]
fn either_role_killed_while_operations_run() {
    let count = common::number_from_env("MIRROR_TEST_KILLS", 50);
    kills(Pair::new(), count, common::seed());
}

/// The same when the replica is large enough that kills hit the first sync.
#[test]
fn killed_during_the_first_sync() {
    let seed = common::seed();
    let mut rng = fastrand::Rng::with_seed(seed);
    let mut pair = Pair::new();
    for directory in 0..60 {
        let path = pair.src.join(directory.to_string());
        std::fs::create_dir(&path).unwrap();
        for file in 0..60 {
            std::fs::write(path.join(file.to_string()), vec![file as u8; 3000]).unwrap();
        }
    }
    std::fs::write(pair.src.join("big"), vec![9; 30 << 20]).unwrap();
    pair.start();
    for _ in 0..12 {
        std::thread::sleep(Duration::from_millis(rng.u64(20..250)));
        if rng.bool() {
            pair.sink().kill9();
            pair.start_sink();
        } else {
            pair.source().kill9();
            pair.start_source();
        }
    }
    pair.converge();
}

/// A sink that stops taking, and then goes on, finds what happened meanwhile.
#[test]
fn stopped_and_resumed() {
    let seed = common::seed();
    let mut pair = Pair::new();
    let mut operations = Operations::new(&pair.src, &pair.outside, seed);
    operations.run(50);
    pair.start();
    pair.converge();
    for round in 0..6 {
        let stopped = if round % 2 == 0 { &pair.sink } else { &pair.source };
        stopped.as_ref().unwrap().stop();
        let told = operations.run(150);
        let guard = Told { seed, told: &told };
        stopped.as_ref().unwrap().resume();
        pair.converge();
        drop(guard);
    }
    operations.close();
    pair.converge();
    pair.finish();
}

/// A sink that was down resumes by its watermarks: what did not change is not sent again.
#[test]
fn sink_resumes_by_position() {
    let (mut pair, port) = Pair::new_tcp();
    let proxy = common::proxy::Proxy::start(port);
    pair.upstream = format!("tcp://127.0.0.1:{}", proxy.port());
    for file in 0..200 {
        std::fs::write(pair.src.join(file.to_string()), vec![file as u8; 20_000]).unwrap();
    }
    pair.start();
    pair.converge();
    // Longer than a checkpoint's interval, so that there is one.
    std::thread::sleep(Duration::from_secs(6));
    let before = proxy.bytes().0;
    pair.sink().kill9();
    for file in 0..10 {
        std::fs::write(pair.src.join(file.to_string()), "changed while it was down").unwrap();
    }
    pair.start_sink();
    pair.converge();
    let sent = proxy.bytes().0 - before;
    assert!(sent < 100_000, "{sent} bytes for ten small files");
}

/// A source that is killed again and again resumes its epoch each time: nobody compares.
#[test]
fn a_killed_source_goes_on_in_its_epoch() {
    let seed = common::seed();
    let mut rng = fastrand::Rng::with_seed(seed);
    let mut pair = Pair::new();
    let mut operations = Operations::new(&pair.src, &pair.outside, seed);
    operations.run(200);
    pair.start();
    pair.converge();
    let catalog = pair.source_state.join("catalog");
    pair.wait_for("a catalog", || catalog.exists());
    for _ in 0..common::number_from_env("MIRROR_TEST_KILLS", 20) {
        std::thread::sleep(Duration::from_micros(rng.u64(..60_000)));
        let mut told = operations.run(rng.usize(..20));
        pair.source().kill9();
        told.extend(operations.run(rng.usize(..20)));
        pair.start_source();
        told.extend(operations.run(rng.usize(..10)));
        let guard = Told { seed, told: &told };
        if rng.bool() {
            pair.converge();
        }
        drop(guard);
    }
    operations.close();
    pair.converge();
    let log = pair.source().log();
    assert!(!log.contains("a new epoch begins"), "{log}");
    pair.finish();
}
