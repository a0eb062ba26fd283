//! What goes wrong at the sink: it heals by itself, and keeps nothing else waiting.

mod common;

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use common::pair::{Pair, pair_on_ext4};
use common::proxy::Proxy;
use mirror::journal::checkpoint::Checkpoint;
use mirror::model::{EpochId, Sequence, Timestamp, TreeId, TreePath, Watermarks};
use mirror::role::{Sink, SinkOptions};
use mirror::tree::replica::Replica;
use mirror::wire::Item;

/// Makes a directory immutable, or no longer.
fn immutable(path: &Path, flag: &str) {
    assert!(Command::new("chattr").arg(flag).arg(path).status().unwrap().success());
}

#[test]
fn an_immutable_directory_keeps_nothing_else_waiting() {
    let Some((mut pair, _mount)) = pair_on_ext4(32 << 20) else { return };
    fs::create_dir(pair.src.join("p")).unwrap();
    fs::write(pair.src.join("other"), "one").unwrap();
    fs::write(pair.src.join("gone"), "x").unwrap();
    pair.start();
    pair.converge();
    immutable(&pair.dst.join("p"), "+i");
    fs::create_dir(pair.src.join("p/new")).unwrap();
    fs::write(pair.src.join("p/new/f"), "f").unwrap();
    fs::write(pair.src.join("other"), "changed").unwrap();
    fs::remove_file(pair.src.join("gone")).unwrap();
    fs::write(pair.src.join("later"), "later").unwrap();
    let dst = pair.dst.clone();
    pair.wait_for("the others are applied", || {
        fs::read(dst.join("other")).unwrap() == b"changed"
            && !dst.join("gone").exists()
            && dst.join("later").exists()
    });
    immutable(&pair.dst.join("p"), "-i");
    pair.converge();
    drop(pair);
}

/// What does not fit is not sent all the time nor to its end, but soon when there is room.
#[test]
fn a_full_disk_is_tried_rarely_and_then_at_once() {
    let Some((mut pair, mount)) = pair_on_ext4(48 << 20) else { return };
    let port = common::machine::free_port();
    pair.listen = format!("tcp://127.0.0.1:{port}");
    let proxy = Proxy::start(port);
    pair.upstream = format!("tcp://127.0.0.1:{}", proxy.port());
    fs::write(pair.src.join("small"), "x").unwrap();
    pair.start();
    pair.converge();
    let ballast = mount.path.join("ballast");
    fs::write(&ballast, vec![0; 34 << 20]).unwrap();
    fs::write(pair.src.join("big"), vec![7; 24 << 20]).unwrap();
    assert!(pair.sink().wait_log("no space", common::patience()), "{}", pair.sink().log());
    std::thread::sleep(Duration::from_secs(10));
    let sent = proxy.bytes().0;
    // Four times as much as fits, and what was on its way by then.
    assert!(sent < 2 * (24 << 20), "{sent} bytes were sent in vain");
    assert!(pair.sink().log().contains("big"), "names no file: {}", pair.sink().log());
    let stage = fs::read_dir(pair.dst.join(".mirror/stage")).unwrap().count();
    assert!(stage <= 1, "{stage} files are left in the stage");
    fs::remove_file(&ballast).unwrap();
    let (started, dst) = (Instant::now(), pair.dst.clone());
    pair.wait_for("the big file comes", || dst.join("big").exists());
    assert!(started.elapsed() < Duration::from_secs(4), "after {:?}", started.elapsed());
    pair.converge();
    drop(pair);
}

#[test]
fn a_checkpoint_without_descriptors_is_said_once() {
    let mut pair = Pair::new();
    pair.sink_args = vec!["--checkpoint-interval".into(), "100ms".into()];
    fs::write(pair.src.join("f"), "one").unwrap();
    pair.start();
    pair.converge();
    std::thread::sleep(Duration::from_millis(500));
    let pid = rustix::process::Pid::from_raw(pair.sink().id() as i32);
    let limit = rustix::process::Resource::Nofile;
    let before = rustix::process::getrlimit(limit);
    let low = rustix::process::Rlimit { current: Some(3), maximum: before.maximum };
    rustix::process::prlimit(pid, limit, low).unwrap();
    fs::write(pair.src.join("f"), "two").unwrap();
    assert!(pair.sink().wait_log("checkpoint", common::patience()), "{}", pair.sink().log());
    std::thread::sleep(Duration::from_secs(1));
    let log = pair.sink().log();
    assert!(log.lines().count() < 20, "{} lines", log.lines().count());
    assert_eq!(log.matches("checkpoint failed").count(), 1, "{log}");
    rustix::process::prlimit(pid, limit, before).unwrap();
    fs::write(pair.src.join("f"), "three").unwrap();
    pair.converge();
    assert!(pair.sink().wait_log("succeed again", common::patience()), "{}", pair.sink().log());
    pair.finish();
}

fn state_of_replica(root: &Path) -> Sink {
    let state_dir = root.with_extension("state");
    fs::create_dir_all(&state_dir).unwrap();
    Sink::open(SinkOptions {
        root: root.to_owned(),
        state_dir,
        adopt: false,
        checkpoint_interval: Duration::from_secs(5),
    })
    .unwrap_or_else(|error| panic!("{error}"))
}

fn boot_id() -> u128 {
    let text = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap();
    u128::from_str_radix(&text.trim().replace('-', ""), 16).unwrap()
}

/// A need in a checkpoint is of before the renames that were done since.
#[test]
fn needs_are_not_asked_by_names_of_before_a_rename() {
    let scratch = common::machine::scratch();
    let root = scratch.path().join("replica");
    fs::create_dir(&root).unwrap();
    let path = |text: &str| TreePath::new(text).unwrap();
    let needs = |sink: &Sink| -> Vec<(TreePath, bool)> {
        sink.state().needs().map(|(path, content)| (path.clone(), content)).collect()
    };
    let mut replica = Replica::open(&root).unwrap();
    let epoch = EpochId { counter: 1, random: 1 };
    let checkpoint = Checkpoint {
        tree: TreeId(1),
        watermarks: Some(Watermarks { epoch, moved: Sequence(5), applied: Sequence(5) }),
        trusted_until: Timestamp::default(),
        trusted_node: None,
        needs: vec![(path("a"), true)],
        boot_id: boot_id(),
    };
    replica.ensure_marker(Sequence(5)).unwrap();
    checkpoint.save(replica.control()).unwrap();
    drop(replica);
    assert_eq!(needs(&state_of_replica(&root)), [(path("a"), true)]);
    fs::write(root.join("a"), "old").unwrap();
    replica = Replica::open(&root).unwrap();
    let rename = Item::Rename { sequence: Sequence(6), from: path("a"), to: path("b") };
    replica.apply(&rename, b"").unwrap();
    drop(replica);
    let sink = state_of_replica(&root);
    assert_eq!(sink.state().watermarks.map(|marks| marks.moved), Some(Sequence(6)));
    assert_eq!(needs(&sink), [(TreePath::root(), false)]);
}

/// A frame that takes longer than silence may last is no silence.
#[test]
fn a_slow_link_is_not_silent() {
    let (mut pair, port) = Pair::new_tcp();
    let proxy = Proxy::start(port);
    pair.upstream = format!("tcp://127.0.0.1:{}", proxy.port());
    fs::write(pair.src.join("f"), "one").unwrap();
    pair.start();
    pair.converge();
    let connections = proxy.connections();
    proxy.throttle(16 << 10);
    fs::write(pair.src.join("big"), vec![7; 256 << 10]).unwrap();
    pair.converge();
    assert_eq!(proxy.connections(), connections, "{}", pair.sink().log());
    pair.finish();
}

/// What does not fit beside an inode is a difference and no full disk.
#[test]
fn an_attribute_that_never_fits_is_passed_over() {
    let Some((mut pair, _mount)) = pair_on_ext4(32 << 20) else { return };
    let flags = rustix::fs::XattrFlags::empty();
    let value = vec![b'x'; 20_000];
    fs::write(pair.src.join("f"), "one").unwrap();
    if rustix::fs::setxattr(pair.src.join("f"), "user.big", &value, flags).is_err() {
        return common::skip("the source's file system holds no such attribute");
    }
    pair.start();
    let dst = pair.dst.join("f");
    pair.wait_for("the file comes", || fs::read(&dst).is_ok_and(|content| content == b"one"));
    fs::write(pair.src.join("f"), "changed").unwrap();
    pair.wait_for("it changes", || fs::read(&dst).is_ok_and(|content| content == b"changed"));
    assert!(!pair.sink().log().contains("No space"), "{}", pair.sink().log());
    pair.finish();
}

#[test]
fn a_root_that_is_away_is_waited_for() {
    let mut pair = Pair::new();
    fs::write(pair.src.join("f"), "one").unwrap();
    pair.start();
    pair.converge();
    let away = pair.outside.join("away");
    fs::rename(&pair.dst, &away).unwrap();
    fs::create_dir(&pair.dst).unwrap();
    std::thread::sleep(Duration::from_millis(1100));
    fs::write(pair.src.join("f"), "two").unwrap();
    assert!(pair.sink().wait_log("until it is back", common::patience()), "{}", pair.sink().log());
    std::thread::sleep(Duration::from_millis(1500));
    assert!(pair.sink().is_running(), "{}", pair.sink().log());
    assert_eq!(fs::read(away.join("f")).unwrap(), b"one");
    assert_eq!(fs::read_dir(&pair.dst).unwrap().count(), 0);
    assert_eq!(pair.sink().log().matches("until it is back").count(), 1);
    assert!(pair.sink().usage().cpu_s < 1.0);
    fs::remove_dir(&pair.dst).unwrap();
    fs::rename(&away, &pair.dst).unwrap();
    pair.converge();
    pair.finish();
}

#[test]
fn a_replica_without_its_control_directory_ends_and_can_be_adopted() {
    for gone in [".mirror", ".mirror/stage"] {
        let mut pair = Pair::new();
        fs::write(pair.src.join("f"), "one").unwrap();
        pair.start();
        pair.converge();
        fs::remove_dir_all(pair.dst.join(gone)).unwrap();
        std::thread::sleep(Duration::from_millis(1100));
        fs::write(pair.src.join("f"), "two").unwrap();
        let status = pair.sink().wait(common::patience()).and_then(|status| status.code());
        assert_eq!(status, Some(1), "{}", pair.sink().log());
        let log = pair.sink().log();
        assert!(log.contains(".mirror") && log.contains("--adopt"), "{log}");
        pair.sink_args.push("--adopt".into());
        pair.start_sink();
        pair.converge();
        pair.finish();
    }
}

#[test]
fn a_replica_of_another_tree_can_be_adopted() {
    let mut pair = Pair::new();
    fs::write(pair.src.join("f"), "one").unwrap();
    fs::write(pair.src.join("only"), "here").unwrap();
    pair.start();
    pair.converge();
    pair.finish();
    // The same sizes and times, so that only a comparison of content tells.
    let other = Pair::new();
    fs::write(other.src.join("f"), "two").unwrap();
    let time = fs::metadata(pair.src.join("f")).unwrap().modified().unwrap();
    fs::File::options().write(true).open(other.src.join("f")).unwrap().set_modified(time).unwrap();
    pair.src.clone_from(&other.src);
    pair.source_state.clone_from(&other.source_state);
    pair.start();
    let status = pair.sink().wait(common::patience()).and_then(|status| status.code());
    assert_eq!(status, Some(1), "{}", pair.sink().log());
    assert!(pair.sink().log().contains("--adopt"));
    pair.sink_args.push("--adopt".into());
    pair.start_sink();
    pair.converge();
    pair.finish();
}

#[test]
fn a_read_only_disk_at_the_end_is_no_failure() {
    let Some((mut pair, mount)) = pair_on_ext4(32 << 20) else { return };
    fs::write(pair.src.join("f"), "one").unwrap();
    pair.start();
    pair.converge();
    pair.wait_for("no file is open for writing", || mount.remount("ro").is_ok());
    fs::write(pair.src.join("f"), "two").unwrap();
    assert!(pair.sink().wait_log("read-only", common::patience()), "{}", pair.sink().log());
    let status = pair.sink().terminate(Duration::from_secs(10)).and_then(|status| status.code());
    assert_eq!(status, Some(0), "{}", pair.sink().log());
    mount.remount("rw").unwrap();
    pair.start_sink();
    pair.converge();
    drop(pair);
}
