//! Reconciles of real trees, where the replica knows when it was equal last but has no position.

mod common;

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use common::judge::Judge;
use common::live::Live;
use common::machine::is_root;
use common::pair::Pair;
use common::process::Process;
use common::world::World;
use common::{number_from_env, patience};
use mirror::journal::checkpoint::Checkpoint;
use mirror::journal::state_file::Directory;
use mirror::model::{Lacks, Surveyed, TreePath};
use mirror::role::Role as _;
use mirror::tree::{Root, Step, Survey};
use mirror::wire::Item;

/// Longer than files are distrusted for being recent.
const TRUST_TIME: Duration = Duration::from_millis(3200);

/// Ends the sink, and takes its position from it as a user could who has its checkpoint.
fn forget_position(world: &mut World, dst: &Path) {
    world.sink.as_mut().expect("there is a sink").shut_down().unwrap();
    world.kill_sink();
    let control = Directory::open(&dst.join(".mirror")).unwrap();
    let checkpoint = Checkpoint::load(&control).unwrap().unwrap();
    let checkpoint = Checkpoint { watermarks: None, ..checkpoint };
    assert!(checkpoint.trusted_until.seconds > 0);
    checkpoint.save(&control).unwrap();
}

/// Changes a tree so that sizes and times tell of it, in every way that there is.
fn damage(root: &Path, random: &mut fastrand::Rng) {
    let mut paths = Vec::new();
    entries(root, &mut paths);
    for (number, path) in paths.iter().enumerate() {
        let Ok(metadata) = fs::symlink_metadata(path) else { continue };
        let time = SystemTime::UNIX_EPOCH + Duration::from_secs(number as u64 + 77);
        // Some of these fail, as for a name that is too long or a directory's sake.
        match random.u8(..60) {
            0 => _ = fs::remove_file(path),
            1 => _ = fs::remove_dir_all(path),
            2 if !metadata.is_symlink() => {
                let mode = fs::Permissions::from_mode(random.u32(..0o10000) | 0o500);
                let _ = fs::set_permissions(path, mode);
            }
            3 if metadata.is_file() || metadata.is_dir() => {
                _ = fs::File::open(path).and_then(|file| file.set_modified(time));
            }
            4 if metadata.is_file() => {
                _ = fs::write(path, vec![b'#'; 5 + number + metadata.len() as usize]);
            }
            5 if metadata.is_dir() => _ = fs::rename(path, root.join(format!("moved-{number}"))),
            6 if metadata.is_dir() => {
                _ = fs::create_dir_all(path.join("surplus/below/deep"));
                _ = fs::write(path.join("surplus/below/file"), "surplus");
            }
            7 if metadata.is_dir() => _ = fs::write(path.join("surplus-file"), "surplus"),
            8 if !metadata.is_dir() => {
                _ = fs::remove_file(path);
                _ = fs::create_dir(path);
                _ = fs::write(path.join("instead"), "of a file");
            }
            9 if metadata.is_dir() => {
                _ = fs::remove_dir_all(path);
                _ = symlink("somewhere", path);
            }
            10 => _ = std::os::unix::fs::lchown(path, Some(1234), Some(4321)),
            11 if !metadata.is_symlink() => {
                let flags = rustix::fs::XattrFlags::empty();
                let _ = rustix::fs::setxattr(path, "user.damage", b"1", flags);
            }
            12 if metadata.is_file() && metadata.nlink() > 1 => {
                // Parts it from the other names of its file.
                let content = fs::read(path).unwrap_or_default();
                _ = fs::remove_file(path);
                _ = fs::write(path, content);
                let file = fs::File::open(path);
                _ = file.and_then(|file| file.set_modified(metadata.modified().unwrap()));
            }
            13 if metadata.is_file() => _ = fs::hard_link(path, root.join(format!("l-{number}"))),
            _ => {}
        }
    }
}

fn entries(directory: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        let path = entry.path();
        if entry.file_name() == ".mirror" {
            continue;
        }
        found.push(path.clone());
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            entries(&path, found);
        }
    }
}

/// Whatever happened to a replica, and whatever users do meanwhile.
#[test]
fn trees_that_differ_in_every_way_become_equal() {
    let seed = common::seed();
    let count = number_from_env("MIRROR_SEEDS", 12);
    let directory = common::machine::scratch();
    let mut worlds: Vec<(u64, World, Judge, PathBuf)> = (seed..seed + count)
        .map(|seed| {
            let here = directory.path().join(seed.to_string());
            let mut world = World::new(&here, seed, 250);
            let [src, dst] = ["src", "dst"].map(|name| here.join(name));
            let judge = Judge::new(&src, &dst);
            let differences = world.settle(&judge, patience());
            assert!(differences.is_empty(), "seed {seed}: {differences:?}");
            (seed, world, judge, src)
        })
        .collect();
    std::thread::sleep(TRUST_TIME);
    for (seed, world, judge, src) in &mut worlds {
        // A later mark, by which what is there is trusted.
        fs::write(src.join("later"), "later").unwrap();
        let differences = world.settle(judge, patience());
        assert!(differences.is_empty(), "seed {seed}: {differences:?}");
        let dst = src.with_file_name("dst");
        forget_position(world, &dst);
        let mut random = fastrand::Rng::with_seed(*seed);
        damage(&dst, &mut random);
        world.race.borrow_mut().budget = random.u32(..40);
        // Cuts come at any time.
        for _ in 0..random.u32(..4) {
            world.connect();
            for _ in 0..random.u32(..30) {
                world.send();
                world.deliver();
                world.answer();
            }
            world.cut();
        }
        world.race.borrow_mut().budget = random.u32(..20);
        let differences = world.settle(judge, patience());
        let log = world.race.borrow().log.join("\n");
        assert!(differences.is_empty(), "MIRROR_SEED={seed}\n{log}\n{differences:#?}");
    }
}

/// Makes a tree of so many directories, with five files each.
fn make(root: &Path, directories: usize) {
    for number in 0..directories {
        let path = root.join(format!("part-{}/section-{}/dir-{number}", number % 7, number % 40));
        fs::create_dir_all(&path).unwrap();
        for file in 0..5 {
            fs::write(path.join(format!("file-{file}")), number.to_string()).unwrap();
        }
    }
}

/// Runs a reconcile. Returns the bytes of both directions, and the items.
fn count(live: &mut Live) -> (usize, Vec<Item>) {
    let world = &mut live.world;
    world.connect();
    let (mut bytes, mut items, mut idle) = (0, Vec::new(), 0);
    while idle < 100 {
        let sent = world.send();
        bytes += world.down.iter().map(Vec::len).sum::<usize>();
        items.extend(world.items());
        while world.deliver() {}
        world.deliver(); // Without input, it goes on with what it compares.
        bytes += world.up.iter().map(Vec::len).sum::<usize>();
        let mut answered = false;
        while world.answer() {
            answered = true;
        }
        let is_done = world.sink.as_ref().unwrap().state().watermarks.is_some();
        idle = if sent || answered || !is_done { 0 } else { idle + 1 };
    }
    (bytes, items)
}

#[test]
fn equal_trees_cost_a_few_bytes_for_each_range() {
    let mut live = Live::new(|src| make(src, 1500));
    std::thread::sleep(TRUST_TIME);
    fs::write(live.src.join("later"), "later").unwrap();
    live.settle();
    forget_position(&mut live.world, &live.dst);
    let (bytes, items) = count(&mut live);
    // The Linux tree has three times as many directories, and 64 KiB for them.
    assert!(bytes < 16 << 10, "{bytes} bytes: {items:?}");
    let digests = items.iter().filter(|item| matches!(item, Item::Digest { .. })).count();
    assert!((14..40).contains(&digests), "{digests}");
    let state = |item: &&Item| matches!(item, Item::State { path, .. } if !path.is_root());
    let states: Vec<&Item> = items.iter().filter(state).collect();
    assert!(states.len() <= 1, "only what is recent: {states:?}");
    live.settle();

    // One that differs, one that is gone, one that is surplus: no content but that of the second
    // travels, and that at once.
    forget_position(&mut live.world, &live.dst);
    let at = |name: &str| live.dst.join("part-1/section-1").join(name);
    fs::set_permissions(at("dir-1/file-2"), fs::Permissions::from_mode(0o600)).unwrap();
    fs::rename(at("dir-281"), live.dst.join("part-2/surplus")).unwrap();
    let (bytes, items) = count(&mut live);
    assert!(bytes < 64 << 10, "{bytes} bytes");
    let contents: Vec<&TreePath> = items
        .iter()
        .filter(|item| item.raw_bytes() > 0)
        .filter_map(|item| if let Item::State { path, .. } = item { Some(path) } else { None })
        .collect();
    let is_lacked = |path: &&TreePath| path.as_bytes().starts_with(b"part-1/section-1/dir-281/");
    assert_eq!(contents.iter().filter(|path| is_lacked(path)).count(), 5, "{contents:?}");
    assert_eq!(contents.len(), 5, "{contents:?}");
    live.settle();
}

fn survey(root: &Path, lacks: Lacks) -> Vec<Surveyed> {
    let root = Root::open(root).unwrap();
    let mut survey = Survey::new(&root, &TreePath::root(), None, lacks);
    let mut found = Vec::new();
    loop {
        match survey.step(&root, None, 1000, |_, _, _| ()) {
            Step::Directory(surveyed) => found.push(surveyed),
            Step::More => {}
            Step::End => return found,
        }
    }
}

/// What it cannot hold makes no difference to it, or each reconcile would send everything.
#[test]
fn a_sink_without_privileges_is_equal_but_for_what_it_lacks() {
    if !is_root() {
        return common::skip("a_sink_without_privileges_is_equal_but_for_what_it_lacks: no root");
    }
    let (mut pair, _) = Pair::new_tcp();
    make(&pair.src, 40);
    let flags = rustix::fs::XattrFlags::empty();
    let file = pair.src.join("part-1/section-1/dir-1/file-1");
    for name in ["trusted.x", "user.x"] {
        let _ = rustix::fs::setxattr(&file, name, b"1", flags);
    }
    std::os::unix::fs::chown(&file, Some(1234), Some(4321)).unwrap();
    fs::set_permissions(&file, fs::Permissions::from_mode(0o6755)).unwrap();
    let nobody = 65534;
    for path in [&pair.dst, &pair.sink_state] {
        fs::create_dir_all(path).unwrap();
        std::os::unix::fs::chown(path, Some(nobody), Some(nobody)).unwrap();
    }
    fs::set_permissions(pair.scratch.path(), fs::Permissions::from_mode(0o777)).unwrap();
    pair.start_source();
    let mut command = std::process::Command::new(common::process::mirror());
    std::os::unix::process::CommandExt::uid(&mut command, nobody);
    std::os::unix::process::CommandExt::gid(&mut command, nobody);
    command.args(pair.sink_command());
    pair.sink = Some(Process::spawn(command, &pair.log("sink")).unwrap());
    let lacks = Lacks::OWNERS.with(Lacks::PRIVILEGED_XATTRS);
    pair.wait_for("all entries", || survey(&pair.src, lacks) == survey(&pair.dst, lacks));
    assert_ne!(survey(&pair.src, Lacks::NOTHING), survey(&pair.dst, Lacks::NOTHING));
}
