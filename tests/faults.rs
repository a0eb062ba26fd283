//! What goes wrong around the roles: queues, limits, disks, mounts, networks. All of it heals.

mod common;

use std::fs;
use std::io::Write as _;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use common::judge::Judge;
use common::machine::{Bind, Mount, Sysctl, need_root, need_tool};
use common::operations::Operations;
use common::pair::{Pair, inode, pair_on_ext4, wait_until};
use common::process::{Process, mirror};
use common::proxy::Proxy;
use mirror::model::{NodeId, Timestamp};
use mirror::wire::{DownstreamHello, Message, encode_message};

/// Makes directories of files, so many of each.
fn fill(root: &Path, directories: usize, files: usize) {
    for directory in 0..directories {
        let path = root.join(directory.to_string());
        fs::create_dir_all(&path).unwrap();
        for file in 0..files {
            fs::write(path.join(file.to_string()), format!("{directory} {file}")).unwrap();
        }
    }
}

/// Does what an overflow must not lose: moves, old times, removals, attributes, new trees.
fn change_a_lot(pair: &Pair) {
    fs::rename(pair.src.join("1"), pair.src.join("moved")).unwrap();
    fs::rename(pair.src.join("2"), pair.src.join("moved/two")).unwrap();
    fs::remove_dir_all(pair.src.join("3")).unwrap();
    fs::remove_file(pair.src.join("4/4")).unwrap();
    fs::write(pair.src.join("5/5"), "changed").unwrap();
    let metadata = fs::metadata(pair.src.join("6/6")).unwrap();
    fs::write(pair.src.join("6/6"), "6!6").unwrap();
    let file = fs::File::options().write(true).open(pair.src.join("6/6")).unwrap();
    file.set_modified(metadata.modified().unwrap()).unwrap();
    fill(&pair.outside.join("in"), 3, 3);
    let old = std::time::UNIX_EPOCH + Duration::from_secs(1_000_000_000);
    for path in ["in", "in/1", "in/1/1"] {
        fs::File::open(pair.outside.join(path)).unwrap().set_modified(old).unwrap();
    }
    fs::rename(pair.outside.join("in"), pair.src.join("7/in")).unwrap();
    fs::remove_file(pair.src.join("9/9")).unwrap();
    fs::File::open(pair.src.join("9")).unwrap().set_modified(old).unwrap();
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o600);
    fs::set_permissions(pair.src.join("8/8"), mode).unwrap();
}

/// The queue overflows while the source is stopped; then only what changed is sent.
#[test]
fn overflow_sends_only_what_changed() {
    let (mut pair, port) = Pair::new_tcp();
    let proxy = Proxy::start(port);
    pair.upstream = format!("tcp://127.0.0.1:{}", proxy.port());
    fill(&pair.src, 40, 50);
    fs::write(pair.src.join("big"), vec![5; 8 << 20]).unwrap();
    pair.start();
    pair.converge();
    // Clear of the two seconds by which a clock may be unsure.
    std::thread::sleep(Duration::from_secs(3));
    let before = proxy.bytes().0;
    pair.source().stop();
    let limit = fs::read_to_string("/proc/sys/fs/inotify/max_queued_events").unwrap();
    let limit: usize = limit.trim().parse().unwrap();
    // Two names, or the kernel would merge the repeats.
    for round in 0..limit {
        fs::write(pair.src.join(format!("flood-{}", round % 2)), "").unwrap();
    }
    change_a_lot(&pair);
    pair.source().resume();
    pair.converge();
    let sent = proxy.bytes().0 - before;
    assert!(sent < 2 << 20, "{sent} bytes after an overflow: that is a full resend");
    assert!(pair.source().log().contains("the event queue overflowed"));
}

#[test]
fn overflow_by_a_low_queue_limit() {
    if !need_root("overflow_by_a_low_queue_limit") {
        return;
    }
    let seed = common::seed();
    let mut pair = Pair::new();
    fill(&pair.src, 10, 10);
    {
        // The limit counts when the queue is made; others on this machine are not to suffer.
        let _low = Sysctl::set("fs/inotify/max_queued_events", 16).unwrap();
        pair.start();
        pair.converge();
    }
    let mut operations = Operations::new(&pair.src, &pair.outside, seed);
    for _ in 0..8 {
        operations.run(120);
        pair.converge();
    }
    operations.close();
    change_and_converge(&pair);
}

fn change_and_converge(pair: &Pair) {
    fill(&pair.src, 20, 20);
    pair.converge();
    change_a_lot(pair);
    pair.converge();
}

/// Returns whether a user namespace with its own limits can be had.
fn namespaces() -> bool {
    let tried = Command::new("unshare")
        .args(["--user", "--map-root-user", "true"])
        .output()
        .is_ok_and(|output| output.status.success());
    if !tried {
        common::skip("user namespaces are not to be had");
    }
    tried
}

#[test]
fn watch_limit_is_met_with_words_and_rescans() {
    if !namespaces() {
        return;
    }
    let mut pair = Pair::new();
    fill(&pair.src, 60, 2);
    let mut command = Command::new("unshare");
    let script = "echo 20 > /proc/sys/user/max_inotify_watches && exec \"$0\" \"$@\"";
    command.args(["--user", "--map-root-user", "sh", "-c", script]).arg(mirror());
    let mut args = pair.source_command();
    args.extend(["--rescan-interval".into(), "1s".into()]);
    command.args(args);
    pair.source = Some(Process::spawn(command, &pair.log("source")).unwrap());
    pair.start_sink();
    pair.converge();
    let said = pair.source().wait_log("max_user_watches", common::patience());
    assert!(said, "does not name the sysctl: {}", pair.source().log());
    // What is not watched is found by rescanning.
    for directory in 0..60 {
        fs::write(pair.src.join(directory.to_string()).join("new"), "new").unwrap();
    }
    pair.converge();
}

#[test]
fn full_disk_is_waited_for() {
    let Some((pair, mount)) = pair_on_ext4(48 << 20) else { return };
    let mut pair = pair;
    fill(&pair.src, 5, 5);
    pair.start();
    pair.converge();
    let ballast = mount.path.join("ballast");
    fs::write(&ballast, vec![0; 20 << 20]).unwrap();
    let kept = inode(&pair.dst.join("1/1"));
    for number in 0..30 {
        fs::write(pair.src.join(format!("more-{number}")), vec![number; 1 << 20]).unwrap();
    }
    fs::write(pair.src.join("1/2"), "after the disk was full").unwrap();
    let full = || {
        let stat = rustix::fs::statvfs(&mount.path).unwrap();
        stat.f_bavail * stat.f_bsize < 2 << 20
    };
    pair.wait_for("the disk fills", full);
    std::thread::sleep(Duration::from_secs(1));
    assert!(pair.sink().is_running(), "a full disk ended the sink: {}", pair.sink().log());
    assert!(pair.source().is_running());
    assert_eq!(inode(&pair.dst.join("1/1")), kept, "nothing is deleted by mistake");
    let said = pair.sink().log().to_lowercase().matches("no space").count();
    assert!((1..=3).contains(&said), "said {said} times: {}", pair.sink().log());
    fs::remove_file(&ballast).unwrap();
    pair.converge();
    pair.finish();
    // Its processes use the mount.
    drop(pair);
}

#[test]
fn full_disk_and_a_kill() {
    let Some((pair, mount)) = pair_on_ext4(32 << 20) else { return };
    let mut pair = pair;
    let ballast = mount.path.join("ballast");
    fs::write(&ballast, vec![0; 16 << 20]).unwrap();
    fill(&pair.src, 30, 30);
    for number in 0..18 {
        fs::write(pair.src.join(format!("more-{number}")), vec![number; 1 << 20]).unwrap();
    }
    pair.start();
    std::thread::sleep(Duration::from_secs(2));
    pair.sink().kill9();
    pair.start_sink();
    std::thread::sleep(Duration::from_secs(1));
    fs::remove_file(&ballast).unwrap();
    pair.converge();
    pair.finish();
    // Its processes use the mount.
    drop(pair);
}

#[test]
fn read_only_disk_is_waited_for() {
    let Some((pair, mount)) = pair_on_ext4(32 << 20) else { return };
    let mut pair = pair;
    fill(&pair.src, 5, 5);
    pair.start();
    pair.converge();
    // The kernel refuses while anything there is open for writing.
    pair.wait_for("no file is open for writing", || mount.remount("ro").is_ok());
    fs::write(pair.src.join("new"), "new").unwrap();
    fs::remove_file(pair.src.join("1/1")).unwrap();
    fs::rename(pair.src.join("2"), pair.src.join("3/two")).unwrap();
    std::thread::sleep(Duration::from_secs(2));
    assert!(pair.sink().is_running(), "ended: {}", pair.sink().log());
    assert!(pair.dst.join("1/1").exists());
    mount.remount("rw").unwrap();
    pair.converge();
    pair.finish();
    // Its processes use the mount.
    drop(pair);
}

/// A disk that is read-only at the start is waited for as well.
#[test]
fn read_only_disk_at_the_start_is_waited_for() {
    let Some((pair, mount)) = pair_on_ext4(32 << 20) else { return };
    let mut pair = pair;
    fill(&pair.src, 5, 5);
    pair.start();
    pair.converge();
    for is_replica in [true, false] {
        pair.sink().kill9();
        if !is_replica {
            fs::remove_dir_all(&pair.dst).unwrap();
            fs::create_dir(&pair.dst).unwrap();
        }
        mount.remount("ro").unwrap();
        pair.start_sink();
        assert!(pair.sink().wait_log("again until", common::patience()), "{}", pair.sink().log());
        assert!(pair.sink().is_running(), "ended: {}", pair.sink().log());
        fs::write(pair.src.join("new"), if is_replica { "new" } else { "newer" }).unwrap();
        mount.remount("rw").unwrap();
        pair.converge();
    }
    drop(pair);
}

/// The journal's disk is full: nothing is sent, nothing is lost, and memory stays bounded.
#[test]
fn full_journal_disk_is_waited_for() {
    let Some((pair, mount)) = pair_on_ext4(32 << 20) else { return };
    let mut pair = pair;
    let state = mount.path.join("state");
    fs::create_dir(&state).unwrap();
    pair.source_state = state;
    pair.dst = pair.scratch.path().join("dst");
    fill(&pair.src, 5, 5);
    pair.start();
    pair.converge();
    let ballast = fs::File::create(mount.path.join("ballast")).unwrap();
    let chunk = vec![1; 16 << 10];
    while std::io::Write::write_all(&mut &ballast, &chunk).is_ok() {}
    let before = pair.source().usage().resident_bytes;
    for round in 0..30_000 {
        let (from, to) = (format!("1/{}", round % 2), format!("1/{}", 2 + round % 2));
        fs::rename(pair.src.join(&from), pair.src.join(&to)).unwrap();
        fs::rename(pair.src.join(&to), pair.src.join(&from)).unwrap();
    }
    assert!(pair.source().wait_log("journal cannot be written", common::patience()));
    fs::write(pair.src.join("1/3"), "after").unwrap();
    let grown = pair.source().usage().resident_bytes.saturating_sub(before);
    assert!(grown < 32 << 20, "grew by {grown} bytes");
    assert!(pair.source().is_running());
    fs::remove_file(mount.path.join("ballast")).unwrap();
    drop(ballast);
    pair.converge();
    pair.finish();
    drop(pair);
}

/// Checks that the replica is what it was, for a while.
fn replica_keeps_everything(pair: &Pair, before: &Path) {
    for _ in 0..10 {
        std::thread::sleep(Duration::from_millis(200));
        let differences = Judge::new(before, &pair.dst).differences();
        assert!(differences.is_empty(), "an error became a deletion: {differences:?}");
    }
}

#[test]
fn vanished_root_is_not_a_deletion() {
    let mut pair = Pair::new();
    fill(&pair.src, 10, 10);
    pair.start();
    pair.converge();
    let away = pair.outside.join("away");
    fs::rename(&pair.src, &away).unwrap();
    replica_keeps_everything(&pair, &away);
    // Nor is an empty directory in its place.
    fs::create_dir(&pair.src).unwrap();
    replica_keeps_everything(&pair, &away);
    assert!(pair.source().is_running(), "the source holds: {}", pair.source().log());
    fs::remove_dir(&pair.src).unwrap();
    fs::rename(&away, &pair.src).unwrap();
    fs::write(pair.src.join("1/after"), "after").unwrap();
    pair.converge();
    let log = pair.source().log();
    assert!(log.contains("looking for what changed meanwhile"), "{log}");
    assert!(!log.contains("overflow"), "nothing overflowed: {log}");
    pair.finish();
}

#[test]
fn root_away_at_a_restart_is_not_a_deletion() {
    let mut pair = Pair::new();
    fill(&pair.src, 10, 10);
    pair.start();
    pair.converge();
    pair.source().kill9();
    let away = pair.outside.join("away");
    fs::rename(&pair.src, &away).unwrap();
    // It may hold or give up, as long as nothing is removed.
    pair.start_source();
    replica_keeps_everything(&pair, &away);
    pair.source().kill9();
    fs::rename(&away, &pair.src).unwrap();
    pair.start_source();
    fs::write(pair.src.join("1/after"), "after").unwrap();
    pair.converge();
}

#[test]
fn unmounted_root_is_not_a_deletion() {
    if !need_root("unmounted_root_is_not_a_deletion") || !need_tool("mkfs.ext4") {
        return;
    }
    let mut pair = Pair::new();
    let mount = match Mount::ext4(32 << 20, &[]) {
        Ok(mount) => mount,
        Err(error) => return common::skip(&format!("no loop mount: {error}")),
    };
    pair.src.clone_from(&mount.path);
    fill(&pair.src, 5, 5);
    pair.start();
    pair.converge();
    let before = pair.scratch.path().join("before");
    let copied = Command::new("cp").arg("-a").arg(&pair.src).arg(&before).status().unwrap();
    assert!(copied.success());
    let lazily = Command::new("umount").arg("-l").arg(&mount.path).status().unwrap();
    assert!(lazily.success());
    replica_keeps_everything(&pair, &before);
    pair.sink = None;
    pair.source = None;
    drop(mount);
}

/// A directory that is in the tree twice is mirrored at one of its places, and the other holds
/// back nothing but itself.
#[test]
fn a_bind_mount_within_the_tree_does_not_stop_the_rest() {
    if !need_root("a_bind_mount_within_the_tree_does_not_stop_the_rest") {
        return;
    }
    // Known from the start, and met by the first change below it.
    for is_there_at_start in [true, false] {
        let mut pair = Pair::new();
        for name in ["a/d/deep", "b/d", "c"] {
            fs::create_dir_all(pair.src.join(name)).unwrap();
            fs::write(pair.src.join(name).join("f"), name).unwrap();
        }
        fs::create_dir(pair.src.join("all")).unwrap();
        if !is_there_at_start {
            pair.start();
            pair.converge();
            // Another replica is to be made, for which everything is looked at.
            pair.sink().kill9();
            fs::remove_dir_all(&pair.dst).unwrap();
            fs::create_dir(&pair.dst).unwrap();
        }
        let bind = |of: &str, path: &str| Bind::new(&pair.src.join(of), &pair.src.join(path));
        let mounts = match bind("a/d", "b/d").and_then(|first| Ok((first, bind("", "all")?))) {
            Ok(mounts) => mounts,
            Err(error) => return common::skip(&format!("no bind mounts: {error}")),
        };
        if is_there_at_start {
            pair.start_source();
        }
        pair.start_sink();
        let is_live = |name: &str, path: &str| {
            fs::write(pair.src.join(path).join(name), name).unwrap();
            let in_place = || pair.dst.join(path).join(name).exists();
            assert!(wait_until(common::patience(), in_place), "{path}/{name} is not mirrored");
        };
        is_live("live", "c");
        // One of the two, whichever was met first.
        fs::write(pair.src.join("a/d/deep/live"), "live").unwrap();
        let seen = |path: &str| pair.dst.join(path).join("deep/live").exists();
        pair.wait_for("one of the two", || seen("a/d") || seen("b/d"));
        std::thread::sleep(Duration::from_secs(2));
        let before = pair.source.as_ref().unwrap().usage().cpu_s;
        std::thread::sleep(Duration::from_secs(2));
        let spent = pair.source.as_ref().unwrap().usage().cpu_s - before;
        assert!(spent < 0.5, "{spent} s of CPU in 2 s in which nothing happens");
        let log = pair.source.as_ref().unwrap().log();
        assert_eq!(log.matches("is also at").count(), 2, "{log}");
        drop(mounts);
        pair.converge();
        for path in ["a/d/deep", "b/d", "all"] {
            is_live("after", path);
        }
    }
}

/// A directory that cannot be read is an error, and no deletion. Root reads everything, so
/// the source runs as nobody.
#[test]
fn unreadable_directory_is_not_a_deletion() {
    if !need_root("unreadable_directory_is_not_a_deletion") || !need_tool("setpriv") {
        return;
    }
    let mut pair = Pair::new();
    fill(&pair.src, 5, 5);
    // Nobody owns its state, and may read the tree.
    std::os::unix::fs::chown(&pair.source_state, Some(65534), Some(65534)).unwrap();
    for path in [pair.scratch.path(), &pair.src] {
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o777);
        fs::set_permissions(path, mode).unwrap();
    }
    let mut command = Command::new("setpriv");
    command.args(["--reuid=65534", "--regid=65534", "--clear-groups", "--inh-caps=-all"]);
    command.arg(mirror()).args(pair.source_command());
    pair.source = Some(Process::spawn(command, &pair.log("source")).unwrap());
    pair.start_sink();
    let judge = Judge::new(&pair.src, &pair.dst);
    if !wait_until(Duration::from_secs(5), || judge.differences().is_empty()) {
        if !pair.source().is_running() && pair.source().log().contains("ermission") {
            return common::skip("nobody cannot run the program under test from where it lies");
        }
        judge.wait(common::patience());
    }
    let locked = |mode: u32| {
        let mode = std::os::unix::fs::PermissionsExt::from_mode(mode);
        fs::set_permissions(pair.src.join("3"), mode).unwrap();
    };
    locked(0);
    fs::write(pair.src.join("4/4"), "changed").unwrap();
    pair.wait_for("what can be read is mirrored", || {
        fs::read(pair.dst.join("4/4")).is_ok_and(|content| content == b"changed")
    });
    std::thread::sleep(Duration::from_secs(1));
    assert!(pair.dst.join("3/3").exists(), "an error became a deletion");
    locked(0o755);
    judge.wait(common::patience());
}

#[test]
fn connections_cut_delayed_and_corrupted() {
    let seed = common::seed();
    let mut rng = fastrand::Rng::with_seed(seed);
    let (mut pair, port) = Pair::new_tcp();
    let proxy = Proxy::start(port);
    pair.upstream = format!("tcp://127.0.0.1:{}", proxy.port());
    fill(&pair.src, 20, 20);
    fs::write(pair.src.join("big"), vec![5; 8 << 20]).unwrap();
    // Already the first sync is disturbed.
    proxy.flip(2, seed);
    pair.start();
    let mut operations = Operations::new(&pair.src, &pair.outside, seed);
    for round in 0..24 {
        operations.run(40);
        match rng.u32(..4) {
            0 => proxy.cut(),
            1 => proxy.flip(rng.u64(1..4), rng.u64(..)),
            2 => proxy.delay(Duration::from_millis(rng.u64(1..15))),
            _ => {
                proxy.stall(true);
                operations.run(20);
                std::thread::sleep(Duration::from_millis(rng.u64(..100)));
                proxy.stall(false);
            }
        }
        std::thread::sleep(Duration::from_millis(rng.u64(..80)));
        if round % 8 == 7 {
            proxy.delay(Duration::ZERO);
            pair.converge();
        }
    }
    operations.close();
    proxy.flip(0, 0);
    pair.converge();
    println!("{} connections", proxy.connections());
    assert!(proxy.connections() > 3, "nothing was cut: this tested nothing");
    pair.finish();
}

/// A bit flipped anywhere is never applied.
#[test]
fn corrupt_frames_are_never_applied() {
    let seed = common::seed();
    let (mut pair, port) = Pair::new_tcp();
    let proxy = Proxy::start(port);
    pair.upstream = format!("tcp://127.0.0.1:{}", proxy.port());
    pair.start();
    pair.converge();
    let content = vec![b'a'; 60_000];
    for round in 0..20 {
        proxy.flip(1, seed.wrapping_add(round));
        let path = format!("f{round}");
        fs::write(pair.src.join(&path), &content).unwrap();
        let replica = pair.dst.join(&path);
        pair.wait_for("the file", || match fs::read(&replica) {
            Ok(read) => {
                assert!(read == content, "round {round}: corrupt content in place");
                true
            }
            Err(_) => false,
        });
    }
    pair.converge();
}

/// A peer silent for 10 s is gone: a stalled network is noticed and the sink reconnects.
#[test]
fn silent_peer_is_given_up() {
    let (mut pair, port) = Pair::new_tcp();
    let proxy = Proxy::start(port);
    pair.upstream = format!("tcp://127.0.0.1:{}", proxy.port());
    fs::write(pair.src.join("f"), "f").unwrap();
    pair.start();
    pair.converge();
    let before = proxy.connections();
    proxy.stall(true);
    let noticed = wait_until(Duration::from_secs(20), || proxy.connections() > before);
    assert!(noticed, "no new connection within 20 s of silence");
    proxy.stall(false);
    fs::write(pair.src.join("g"), "g").unwrap();
    pair.converge();
}

/// A downstream that greets and then neither reads nor speaks keeps no place for ever, though
/// the frame that would tell it so cannot be sent.
#[test]
fn a_downstream_that_reads_nothing_is_given_up() {
    let (mut pair, port) = Pair::new_tcp();
    for number in 0..200 {
        fs::write(pair.src.join(format!("file-{number}")), vec![7; 200_000]).unwrap();
    }
    pair.start_source();
    let hello = DownstreamHello {
        versions: mirror::wire::message::VERSIONS,
        node: NodeId(7),
        tree: None,
        watermarks: None,
        trusted_until: Timestamp::default(),
        trusted_node: None,
        empty: true,
        lacks: mirror::model::Lacks::NOTHING,
    };
    let mut stream = None;
    pair.wait_for("the source to listen", || {
        stream = std::net::TcpStream::connect(("127.0.0.1", port)).ok();
        stream.is_some()
    });
    let mut stream = stream.unwrap();
    stream.write_all(&encode_message(&Message::DownstreamHello(hello))).unwrap();
    let left = || {
        let log = fs::read_to_string(pair.log("source")).unwrap();
        log.contains("a downstream left: protocol error: silent for too long")
    };
    let gone = wait_until(Duration::from_secs(20), left);
    assert!(gone, "it still has its place after 20 s of silence");
}
