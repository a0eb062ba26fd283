//! I1, I4 and DESIGN 7 as a property: random operations on a real tree, through the real
//! capture, journal, sessions and apply code, against a link that lags and is cut at random,
//! with operations injected between every read and its use. Then both trees are equal in every
//! attribute.
//!
//! `MIRROR_SEED=N` replays one seed, `MIRROR_SEEDS=N` sets how many are run.

mod common;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use common::judge::Judge;
use common::world::{Change, World};
use mirror::role::Role as _;

/// How a seed ended.
struct Outcome {
    /// What is not equal.
    differences: Vec<String>,
    /// Whether it took a rescan to find all changes.
    rescued: bool,
    /// What was done.
    log: Vec<String>,
    /// Where the trees are, if they differ.
    kept: PathBuf,
}

/// Runs one seed.
fn run(seed: u64) -> Outcome {
    let directory = common::machine::scratch();
    let mut world = World::new(directory.path(), seed, 39);
    let mut random = fastrand::Rng::with_seed(seed);
    let judge = Judge::new(directory.path().join("src"), directory.path().join("dst"));
    // What happens while a whole tree is on its way is found by that in the end. Most worlds are
    // equal before anything happens, and each change must be told.
    if random.u8(..4) > 0 {
        assert!(world.settle(&judge, Duration::from_secs(5)).is_empty(), "MIRROR_SEED={seed}");
    }
    // A small tree is read in one go, and what happens then finds everything sent. With few jobs
    // at once most is still to be read. Every fourth world may read all that there is.
    if random.u8(..4) > 0 {
        world.source.limit_batches(random.usize(1..=5));
    }
    for _ in 0..random.usize(20..220) {
        world.race.borrow_mut().budget = 4;
        match random.u8(..100) {
            0..35 => world.race.borrow_mut().operate(),
            35..42 => _ = world.source.handle_timeout(Instant::now()),
            42..70 => {
                for _ in 0..random.usize(1..4) {
                    world.send();
                }
            }
            70..85 => {
                for _ in 0..random.usize(1..5) {
                    world.deliver();
                }
            }
            85..94 => {
                for _ in 0..random.usize(1..5) {
                    world.answer();
                }
            }
            94..96 => world.cut(),
            96..97 => world.kill_sink(),
            _ => std::thread::sleep(Duration::from_millis(random.u64(0..6))),
        }
        if world.link.is_none() && random.bool() {
            world.connect();
        }
    }
    world.race.borrow_mut().budget = 0;
    world.race.borrow_mut().operations.close();
    let mut differences = world.settle(&judge, Duration::from_secs(5));
    let rescued = !differences.is_empty();
    if rescued {
        // A file written through a link that was gone before anybody could look raised no event
        // under its other names. That is what the periodic rescan is for.
        world.source.feed().watch.rescan();
        differences = world.settle(&judge, Duration::from_secs(5));
    }
    let log = std::mem::take(&mut world.race.borrow_mut().log);
    let kept = if differences.is_empty() { PathBuf::new() } else { directory.keep() };
    Outcome { differences, rescued, log, kept }
}
#[test]
fn trees_converge_whatever_happens_between_a_read_and_its_use() {
    let seeds = common::seeds(150);
    let count = seeds.end - seeds.start;
    let mut rescued = Vec::new();
    for seed in seeds {
        let outcome = run(seed);
        let Outcome { differences, log, kept, .. } = outcome;
        assert!(
            differences.is_empty(),
            "MIRROR_SEED={seed} ({}):\n{}\nafter:\n{}",
            kept.display(),
            differences.join("\n"),
            log.join("\n")
        );
        rescued.extend(outcome.rescued.then_some(seed));
        // A rescan heals nearly every mistake, so many of them are one.
        assert!(
            rescued.len() as u64 <= 1 + count / 500,
            "seeds {rescued:?} of {count} needed a rescan; MIRROR_SEED={} is the first",
            rescued[0]
        );
    }
    println!("seeds {rescued:?} of {count} needed a rescan");
}

/// What may happen to a big file, `big` in `d`, while it is on its way.
fn disturbances(src: &Path) -> Vec<(&'static str, Vec<Change>)> {
    let at = |name: &str| src.join(name);
    let (d, other, big) = (at("d"), at("other"), at("d/big"));
    let replace_directory = {
        let (d, big) = (d.clone(), big.clone());
        move || {
            std::fs::remove_dir_all(&d).unwrap();
            std::fs::create_dir(&d).unwrap();
            std::fs::write(&big, "small").unwrap();
        }
    };
    let (empty, fill) = {
        let (d, big) = (d.clone(), big.clone());
        let empty = move || {
            std::fs::remove_dir_all(&d).unwrap();
            std::fs::create_dir(&d).unwrap();
        };
        (empty, move || std::fs::write(&big, "small").unwrap())
    };
    let replace_file = {
        let big = big.clone();
        move || {
            std::fs::remove_file(&big).unwrap();
            std::fs::write(&big, "small").unwrap();
        }
    };
    let (remove, create) = {
        let (big, again) = (big.clone(), big.clone());
        (
            move || std::fs::remove_file(&big).unwrap(),
            move || std::fs::write(&again, "small").unwrap(),
        )
    };
    let exchange = {
        let (d, other) = (d.clone(), other.clone());
        move || common::operations::exchange(&d, &other).unwrap()
    };
    let (there, back) = (exchange.clone(), exchange.clone());
    let touch = move || std::fs::write(&big, vec![7; 700_000]).unwrap();
    vec![
        ("its directory is replaced", vec![Box::new(replace_directory)]),
        ("its directory is emptied and it comes again", vec![Box::new(empty), Box::new(fill)]),
        ("it is replaced", vec![Box::new(replace_file)]),
        ("it is removed and comes again", vec![Box::new(remove), Box::new(create)]),
        ("its directory is exchanged", vec![Box::new(exchange)]),
        ("its directory is exchanged there and back", vec![Box::new(there), Box::new(back)]),
        ("it is written to", vec![Box::new(touch)]),
    ]
}

/// DESIGN 7: whatever happens to a big file at any step of its way, also with the events of it
/// lost, what is there in the end arrives.
#[test]
fn a_big_file_arrives_whatever_happens_on_its_way() {
    let count = disturbances(Path::new("")).len();
    for case in 0..count * 64 {
        // So many frames were sent before, so many drains come before each change.
        let (index, step, gap, overflows) = (case / 64, case / 8 % 8, case % 4, case as u8 / 4 % 2);
        let directory = common::machine::scratch();
        let mut world = World::new(directory.path(), 1, 0);
        let (src, dst) = (directory.path().join("src"), directory.path().join("dst"));
        for name in ["d", "other"] {
            std::fs::create_dir(src.join(name)).unwrap();
        }
        std::fs::write(src.join("d/big"), "first").unwrap();
        let judge = Judge::new(&src, &dst);
        assert!(world.settle(&judge, Duration::from_secs(5)).is_empty());
        world.race.borrow_mut().overflows = overflows;
        std::fs::write(src.join("d/big"), vec![3; 600_000]).unwrap();
        for _ in 0..step {
            world.send();
            world.deliver();
            world.answer();
        }
        let (what, changes) = disturbances(&src).swap_remove(index);
        for change in changes {
            let mut race = world.race.borrow_mut();
            for _ in 0..gap {
                race.changes.push_back(Box::new(|| {}));
            }
            race.changes.push_back(change);
        }
        let differences = world.settle(&judge, Duration::from_secs(5));
        assert!(
            differences.is_empty(),
            "{what} at step {step}, {gap} drains between, overflows {overflows}:\n{}",
            differences.join("\n")
        );
    }
}
