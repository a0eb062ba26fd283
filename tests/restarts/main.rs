//! A source that is stopped or killed and started again goes on in the same epoch: it tells what
//! differs, and its replicas resume by position.
//!
//! `MIRROR_SEED=N` replays one seed, `MIRROR_SEEDS=N` sets how many are run.

#[path = "../common/mod.rs"]
mod common;
mod harness;

use std::cell::RefCell;
use std::fs;
use std::rc::Rc;
use std::time::{Duration, Instant};

use common::operations::Operations;
use harness::{Restarts, cool, equal, fill};
use mirror::wire::{Content, Item, Plan};

/// Runs one seed; returns what differs in the end, and what was done.
fn run(seed: u64) -> (Vec<String>, Vec<String>) {
    let mut world = Restarts::new();
    let mut random = fastrand::Rng::with_seed(seed);
    let outside = world.directory.path().join("outside");
    let operations = Rc::new(RefCell::new(Operations::new(&world.src, outside, seed)));
    let mut log = Vec::new();
    if random.bool() {
        operations.borrow_mut().hide_versions();
    }
    if random.u8(..3) == 0 {
        operations.borrow_mut().crowd();
    }
    log.extend(operations.borrow_mut().run(random.usize(..80)));
    world.start();
    let mut differences = world.settle(Duration::from_secs(5));
    for round in 0..random.u32(1..5) {
        if !differences.is_empty() {
            break;
        }
        if random.u8(..4) > 0 {
            world.wait_for_catalog();
        }
        for _ in 0..random.usize(..12) {
            if random.bool() {
                log.push(operations.borrow_mut().step());
            }
            for _ in 0..random.usize(..6) {
                world.turn();
            }
            if random.u8(..4) == 0 {
                std::thread::sleep(Duration::from_millis(random.u64(..8)));
            }
        }
        let epoch = world.epoch();
        let is_clean = random.bool();
        if is_clean {
            world.stop();
        } else {
            world.kill();
        }
        let has_catalog = world.catalog().exists();
        log.push(format!("--- {round}: clean {is_clean}, catalog {has_catalog}"));
        if random.bool() {
            operations.borrow_mut().close();
        }
        log.extend(operations.borrow_mut().run(random.usize(..25)));
        world.forget();
        world.start();
        log.push("--- started".into());
        // Some of it while the source looks through the tree.
        let racing = Rc::new(RefCell::new((random.u32(..4) * random.u32(..4), Vec::new())));
        let (hook, theirs) = (racing.clone(), operations.clone());
        let mut when = fastrand::Rng::with_seed(seed + u64::from(round));
        world.source.as_mut().unwrap().feed().on_listed(Box::new(move || {
            let mut racing = hook.borrow_mut();
            if racing.0 > 0 && when.u8(..4) == 0 {
                racing.0 -= 1;
                racing.1.push(theirs.borrow_mut().step());
            }
        }));
        if random.bool() {
            for _ in 0..random.usize(..40) {
                world.turn();
                if random.u8(..5) == 0 {
                    log.push(operations.borrow_mut().step());
                }
            }
        }
        racing.borrow_mut().0 = 0;
        log.extend(racing.borrow().1.iter().map(|step| format!("(racing) {step}")));
        differences = world.settle(Duration::from_secs(5));
        if has_catalog && epoch.is_some() && differences.is_empty() {
            assert_eq!(world.epoch(), epoch, "MIRROR_SEED={seed}:\n{}", log.join("\n"));
        }
    }
    operations.borrow_mut().close();
    if differences.is_empty() {
        differences = world.settle(Duration::from_secs(5));
    }
    if !differences.is_empty() {
        let (src, dst) = (world.src.clone(), world.dst.clone());
        log.push(format!("{} {}", src.display(), dst.display()));
        log.extend(world.items.iter().map(|item| format!("    {item:?}")));
        let _ = world.directory.keep();
    }
    (differences, log)
}

#[test]
fn trees_converge_over_restarts() {
    let seeds = common::seeds(100);
    for seed in seeds {
        let (differences, log) = run(seed);
        assert!(
            differences.is_empty(),
            "MIRROR_SEED={seed}:\n{}\nafter:\n{}",
            differences.join("\n"),
            log.join("\n")
        );
    }
}

#[test]
fn files_that_moved_while_the_source_was_down_do_not_travel() {
    for is_clean in [true, false] {
        let mut world = equal(fill);
        let inode = common::pair::inode(&world.dst.join("old/7/7"));
        if is_clean {
            world.stop()
        } else {
            world.kill()
        }
        // As `git mv` does: the directories are new, the old ones are removed.
        for directory in 0..100 {
            let (from, to) = (format!("old/{directory}"), format!("new/deeper/{directory}"));
            fs::create_dir_all(world.src.join(&to)).unwrap();
            for file in 0..100 {
                let from = world.src.join(&from).join(file.to_string());
                fs::rename(from, world.src.join(&to).join(format!("{file}.moved"))).unwrap();
            }
            fs::remove_dir(world.src.join(&from)).unwrap();
        }
        let epoch = world.epoch();
        world.start();
        world.converge();
        assert_eq!(world.epoch(), epoch);
        assert!(matches!(world.plans[..], [Plan::Resume]), "{:?}", world.plans);
        assert!(!world.has_content(), "content travels");
        let renames = world.items.iter().filter(|item| matches!(item, Item::Rename { .. }));
        assert_eq!(renames.count(), 10_000);
        let moved = world.dst.join("new/deeper/7/7.moved");
        assert_eq!(common::pair::inode(&moved), inode);
        println!("clean {is_clean}: {} bytes", world.bytes);
    }
}

#[test]
fn what_changed_while_both_were_down_is_all_that_travels() {
    let mut world = equal(fill);
    world.stop();
    for number in 0..100 {
        let path = world.src.join(format!("old/{number}/{number}"));
        fs::write(path, format!("changed {number:1000}")).unwrap();
    }
    world.start();
    world.converge();
    assert!(matches!(world.plans[..], [Plan::Resume]), "{:?}", world.plans);
    assert!(world.bytes < 200 << 10, "{} bytes", world.bytes);
    // After a kill, what was told since the catalog is compared, and does not travel again.
    world.forget();
    world.kill();
    world.start();
    world.converge();
    assert!(!world.has_content(), "content travels");
}

#[test]
fn a_restart_of_an_unchanged_tree_tells_nothing() {
    let mut world = equal(fill);
    let catalog = fs::read(world.catalog()).unwrap();
    for _ in 0..2 {
        world.stop();
        assert!(fs::read(world.catalog()).unwrap() == catalog, "it was as of the end already");
        world.start();
        world.converge();
        assert_eq!(world.items.len(), 0, "{:?}", world.items);
    }
    fs::write(world.src.join("old/5/5"), "changed and told").unwrap();
    world.converge();
    cool();
    world.stop();
    world.forget();
    world.start();
    world.converge();
    assert_eq!(world.items.len(), 0, "{:?}", world.items);
    let epoch = world.epoch();
    world.kill();
    for _ in 0..3 {
        // Numbers are skipped after a kill, and no record may come behind them.
        world.start();
        world.converge();
        assert!(!world.has_content());
        world.stop();
        assert_eq!(world.epoch(), epoch);
    }
}

#[test]
fn without_a_usable_catalog_a_new_epoch_begins() {
    type Spoil = fn(&Restarts);
    let spoil: [(&str, Spoil); 4] = [
        ("missing", |world| fs::remove_file(world.catalog()).unwrap()),
        ("damaged", |world| {
            let mut bytes = fs::read(world.catalog()).unwrap();
            let middle = bytes.len() / 2;
            bytes[middle] ^= 1;
            fs::write(world.catalog(), bytes).unwrap();
        }),
        ("of another run", |world| {
            let kept = world.directory.path().join("kept");
            fs::rename(world.catalog(), kept).unwrap();
            let mut again = Restarts::new();
            again.start();
            again.wait_for_catalog();
            again.stop();
            fs::copy(again.catalog(), world.catalog()).unwrap();
        }),
        ("with no journal", |world| fs::remove_dir_all(world.state().join("journal")).unwrap()),
    ];
    for (what, spoil) in spoil {
        let mut world = equal(|src| fs::write(src.join("f"), "f").unwrap());
        world.stop();
        let epoch = world.epoch();
        spoil(&world);
        fs::write(world.src.join("f"), "changed").unwrap();
        world.start();
        world.converge();
        assert!(world.epoch() > epoch, "{what}");
        assert!(matches!(world.plans[..], [Plan::Compare { .. }]), "{what}: {:?}", world.plans);
        // And from there on it goes on.
        world.wait_for_catalog();
        let epoch = world.epoch();
        world.stop();
        world.start();
        world.converge();
        assert_eq!(world.epoch(), epoch, "{what}");
    }
}

#[test]
fn a_catalog_older_than_the_journal_begins_a_new_epoch_and_is_kept_from_becoming_that() {
    let mut world = equal(|src| fs::write(src.join("f"), "f").unwrap());
    world.stop();
    world.journal_bytes = 1 << 20;
    let old = fs::read(world.catalog()).unwrap();
    world.start();
    world.converge();
    // The journal is 1 MiB; each record of these takes some 100 bytes.
    let name = "n".repeat(200);
    for round in 0..400 {
        for number in 0..20 {
            let path = world.src.join(format!("{name}{number}"));
            if round % 2 == 0 {
                fs::write(path, format!("{round}")).unwrap();
            } else {
                fs::remove_file(path).unwrap();
            }
        }
        world.turn();
        world.turn();
    }
    world.converge();
    for _ in 0..100 {
        world.turn();
        std::thread::sleep(Duration::from_millis(1));
    }
    world.kill();
    let epoch = world.epoch();
    world.start();
    world.converge();
    assert_eq!(world.epoch(), epoch, "the catalog fell off the ring");
    world.stop();
    fs::write(world.catalog(), old).unwrap();
    world.start();
    world.converge();
    assert!(world.epoch() > epoch);
}

/// An older copy of the catalog that the journal still reaches is only more to tell.
#[test]
fn an_older_copy_of_the_catalog_is_gone_on_from() {
    let mut world = equal(|src| {
        fs::create_dir(src.join("d")).unwrap();
        for name in ["a", "b", "d/c"] {
            fs::write(src.join(name), name).unwrap();
        }
    });
    let old = fs::read(world.catalog()).unwrap();
    fs::rename(world.src.join("a"), world.src.join("d/a")).unwrap();
    fs::rename(world.src.join("d"), world.src.join("e")).unwrap();
    fs::write(world.src.join("b"), "B").unwrap();
    fs::write(world.src.join("a"), "new").unwrap();
    world.converge();
    world.stop();
    fs::write(world.catalog(), old).unwrap();
    fs::rename(world.src.join("e/c"), world.src.join("c")).unwrap();
    let epoch = world.epoch();
    world.start();
    world.converge();
    assert_eq!(world.epoch(), epoch);
}

#[test]
fn a_whole_state_put_back_from_an_older_copy_gives_no_number_twice() {
    let mut world = equal(|src| fs::write(src.join("kept"), "1").unwrap());
    world.wait_for_catalog();
    world.stop();
    let (state, copy) = (world.state(), world.directory.path().join("copy"));
    run_cp(&state, &copy);
    // Numbers are given that the copy knows nothing of …
    world.start();
    for name in ["h", "k"] {
        fs::write(world.src.join(name), name).unwrap();
    }
    world.converge();
    world.stop();
    for name in ["h", "k"] {
        fs::remove_file(world.src.join(name)).unwrap();
    }
    // … which then counts on until it is beyond them.
    fs::remove_dir_all(&state).unwrap();
    run_cp(&copy, &state);
    world.start();
    for round in 0..20 {
        fs::write(world.src.join("kept"), format!("{round}")).unwrap();
        world.turn();
    }
    world.connect();
    world.converge();
}

/// What came to be while the catalog was written, and went while nobody watched, is missed by its
/// listings: the records of that time tell of it.
#[test]
fn what_came_between_two_parts_of_a_catalog_and_went_is_removed() {
    for changes in 1..=16 {
        let mut world = Restarts::new();
        fill(&world.src);
        world.start();
        world.connect();
        let names: Vec<String> = (0..changes).map(|number| format!("new-{number}")).collect();
        for name in &names {
            fs::write(world.src.join(name), name).unwrap();
            world.turn();
            std::thread::sleep(Duration::from_millis(2));
        }
        world.converge();
        world.wait_for_catalog();
        world.kill();
        names.iter().for_each(|name| fs::remove_file(world.src.join(name)).unwrap());
        world.start();
        world.connect();
        world.converge();
    }
}

fn run_cp(from: &std::path::Path, to: &std::path::Path) {
    let status = std::process::Command::new("cp").arg("-a").arg(from).arg(to).status();
    assert!(status.unwrap().success());
}

#[test]
fn another_version_of_the_catalog_stops_the_source() {
    let mut world = equal(|src| fs::write(src.join("f"), "f").unwrap());
    world.stop();
    let mut bytes = fs::read(world.catalog()).unwrap();
    bytes[8] = 99;
    let checksum = crc32fast::hash(&bytes[..12]);
    bytes[12..16].copy_from_slice(&checksum.to_le_bytes());
    fs::write(world.catalog(), &bytes).unwrap();
    let error = world.try_start().unwrap_err().to_string();
    assert!(error.contains("has format version 99"), "{error}");
    assert!(fs::read(world.catalog()).unwrap() == bytes, "it was changed");
}

/// What is not mounted any more is not removed: the source does not even start.
#[test]
fn a_mount_that_vanished_while_the_source_was_down_holds_it() {
    use common::machine::{Mount, need_root, need_tool};
    if !need_root("a mount in a tree") || !need_tool("mkfs.ext4") {
        return;
    }
    let mount = match Mount::ext4(16 << 20, &[]) {
        Ok(mount) => mount,
        Err(error) => return common::skip(&format!("no loop mount: {error}")),
    };
    fs::create_dir(mount.path.join("d")).unwrap();
    fs::write(mount.path.join("d/f"), "on another file system").unwrap();
    let mut world = Restarts::new();
    fs::create_dir_all(world.src.join("below/mounted")).unwrap();
    let place = world.src.join("below/mounted");
    let bind = match common::machine::Bind::new(&mount.path, &place) {
        Ok(bind) => bind,
        Err(error) => return common::skip(&format!("no bind mount: {error}")),
    };
    world.start();
    world.converge();
    world.wait_for_catalog();
    world.stop();
    // Back in its place, nothing is the matter.
    let epoch = world.epoch();
    world.start();
    world.converge();
    assert_eq!(world.epoch(), epoch);
    world.stop();
    drop(bind);
    let error = world.try_start().unwrap_err().to_string();
    assert!(error.contains("below/mounted") && error.contains("--accept-root"), "{error}");
    assert!(world.dst.join("below/mounted/d/f").exists());
    // Another file system in its place is not it.
    let other = Mount::ext4(16 << 20, &[]).unwrap();
    let bind = common::machine::Bind::new(&other.path, &place).unwrap();
    assert!(world.try_start().is_err());
    drop(bind);
    world.accept_root = true;
    world.start();
    world.converge();
    assert!(world.epoch() > epoch);
    assert!(!world.dst.join("below/mounted/d").exists());
}

/// A file system that covers a directory at the start is not what was mirrored there.
#[test]
fn a_mount_that_covers_a_known_directory_is_held() {
    use common::machine::{Mount, need_root, need_tool};
    if !need_root("a mount in a tree") || !need_tool("mkfs.ext4") {
        return;
    }
    let mount = match Mount::ext4(16 << 20, &[]) {
        Ok(mount) => mount,
        Err(error) => return common::skip(&format!("no loop mount: {error}")),
    };
    fs::write(mount.path.join("foreign"), "foreign").unwrap();
    let mut world = equal(|src| {
        fs::create_dir_all(src.join("covered/deep")).unwrap();
        fs::write(src.join("covered/deep/f"), "f").unwrap();
        fs::write(src.join("g"), "g").unwrap();
    });
    world.stop();
    let bind = common::machine::Bind::new(&mount.path, &world.src.join("covered")).unwrap();
    fs::write(world.src.join("g"), "changed").unwrap();
    world.start();
    world.connect();
    let started = Instant::now();
    while fs::read(world.dst.join("g")).unwrap() != b"changed" {
        assert!(started.elapsed() < common::patience());
        world.turn();
    }
    for _ in 0..50 {
        world.turn();
        std::thread::sleep(Duration::from_millis(1));
    }
    assert!(world.dst.join("covered/deep/f").exists());
    assert!(!world.dst.join("covered/foreign").exists());
    drop(bind);
    std::thread::sleep(Duration::from_millis(1100));
    world.converge();
    // Who says so has it mirrored, also what is not there for it any more.
    world.stop();
    let _bind = common::machine::Bind::new(&mount.path, &world.src.join("covered")).unwrap();
    world.accept_root = true;
    world.start();
    world.converge();
    assert!(world.dst.join("covered/foreign").exists());
    assert!(!world.dst.join("covered/deep").exists());
    // From then on it is known as what is there.
    world.stop();
    world.accept_root = false;
    world.start();
    world.converge();
}

/// A directory whose inode number was given to another one is not that one.
#[test]
fn a_reused_inode_is_no_rename() {
    let mut world = equal(|src| {
        for name in ["d", "e"] {
            fs::create_dir(src.join(name)).unwrap();
            fs::write(src.join(name).join("f"), name).unwrap();
        }
    });
    world.stop();
    for name in ["d", "e"] {
        fs::remove_dir_all(world.src.join(name)).unwrap();
    }
    for name in ["x", "y", "z"] {
        fs::create_dir(world.src.join(name)).unwrap();
        fs::write(world.src.join(name).join("g"), name).unwrap();
    }
    world.start();
    world.converge();
    let is_rename = |item: &&Item| matches!(item, Item::Rename { .. } | Item::Exchange { .. });
    assert_eq!(world.items.iter().find(is_rename), None);
}

/// Directories and files that changed places while nobody watched are where they belong, and
/// what has several names does not move as if it had one.
#[test]
fn moves_of_every_sort_are_found() {
    let at = |world: &Restarts, name: &str| world.src.join(name);
    let mut world = equal(|src| {
        for name in ["a", "b", "c", "d/deep", "e"] {
            fs::create_dir_all(src.join(name)).unwrap();
            fs::write(src.join(name).join("f"), format!("{name:100}")).unwrap();
        }
        for name in ["1", "2", "3", "4", "5", "linked"] {
            fs::write(src.join(name), format!("{name:100}")).unwrap();
        }
        fs::hard_link(src.join("linked"), src.join("e/linked")).unwrap();
    });
    world.stop();
    let rename = |from: &str, to: &str| fs::rename(at(&world, from), at(&world, to)).unwrap();
    // A cycle of directories, one of files, a chain of files, and a swap of a file with a
    // directory.
    for cycle in [["a", "b", "c", "tmp"], ["1", "2", "3", "tmp"]] {
        rename(cycle[2], cycle[3]);
        rename(cycle[1], cycle[2]);
        rename(cycle[0], cycle[1]);
        rename(cycle[3], cycle[0]);
    }
    rename("5", "6");
    rename("4", "5");
    // What was below comes above, under a new directory of the old name.
    rename("d", "tmp");
    fs::create_dir_all(at(&world, "d/new")).unwrap();
    rename("tmp/deep", "d/new/deep");
    rename("tmp", "d/new/deep/d");
    rename("linked", "e/other");
    world.start();
    world.converge();
    assert!(matches!(world.plans[..], [Plan::Resume]));
    let content: Vec<&Item> = world
        .items
        .iter()
        .filter(|item| {
            matches!(item, Item::State { content: Content::Inline { .. }, path, .. }
            if !path.as_bytes().ends_with(b"linked") && path.as_bytes() != b"e/other")
        })
        .collect();
    assert!(
        content.is_empty(),
        "{content:?}\n{}",
        world.items.iter().map(|item| format!("{item:?}\n")).collect::<String>()
    );
}
