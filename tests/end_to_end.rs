//! A source and a sink as real processes: the first sync and live changes of every kind.

mod common;

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::Write as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{FileExt as _, PermissionsExt as _};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use rustix::fs::{CWD, FileType, Mode, OFlags, XattrFlags};

use common::machine::{is_root, need_root, need_tool, run};
use common::operations::{Operations, acl, exchange, truncate_by_path};
use common::pair::{Pair, inode};
use common::proxy::Proxy;
use mirror::journal::checkpoint::Checkpoint;
use mirror::journal::state_file::Directory;
use mirror::model::limits::{INLINE_BYTES_MAX, TRANSFER_ATTEMPTS_MAX};

/// Returns a running pair that is equal, with `prepare` done before the first sync.
fn live(prepare: impl FnOnce(&Path)) -> Pair {
    let mut pair = Pair::new();
    prepare(&pair.src);
    pair.start();
    pair.converge();
    pair
}

fn write(path: impl AsRef<Path>, content: impl AsRef<[u8]>) {
    fs::write(path.as_ref(), content).unwrap_or_else(|error| {
        panic!("{}: {error}", path.as_ref().display());
    });
}

#[test]
fn first_sync_of_a_rich_tree() {
    let seed = common::seed();
    let mut pair = Pair::new();
    let (src, outside) = (pair.src.clone(), pair.outside.clone());
    let mut operations = Operations::new(&src, &outside, seed);
    operations.run(800);
    operations.close();
    write(src.join("big"), vec![1; 5 << 20]);
    write(src.join("empty"), "");
    fs::create_dir(src.join("empty directory")).unwrap();
    pair.start();
    pair.converge();
    pair.finish();
}

#[test]
fn live_changes_of_all_sorts() {
    let seed = common::seed();
    let mut pair = live(|_| {});
    let mut operations = Operations::new(&pair.src, &pair.outside, seed);
    for (round, pause_us) in [(0, 0), (1, 500), (2, 3000), (3, 0), (4, 200)] {
        for _ in 0..400 {
            operations.step();
            if pause_us > 0 {
                std::thread::sleep(Duration::from_micros(pause_us));
            }
        }
        println!("round {round}");
        pair.converge();
    }
    operations.close();
    pair.converge();
    pair.finish();
}

/// Around the size up to which a file travels inside its state, as a whole tree and live, alone
/// and many to a frame.
#[test]
fn files_of_the_greatest_size_that_is_inline() {
    let sizes = [INLINE_BYTES_MAX - 1, INLINE_BYTES_MAX, INLINE_BYTES_MAX + 1];
    let fill = |directory: &Path, byte: u8| {
        fs::create_dir(directory).unwrap();
        for size in sizes {
            for number in 0..3 {
                write(directory.join(format!("{size}-{number}")), vec![byte; size]);
            }
        }
    };
    let mut pair = live(|src| fill(&src.join("first"), 1));
    fill(&pair.src.join("live"), 2);
    pair.converge();
    // And from each size to each other.
    for (from, byte) in sizes.into_iter().zip(3..) {
        for (number, to) in sizes.into_iter().enumerate() {
            write(pair.src.join(format!("first/{from}-{number}")), vec![byte; to]);
            write(pair.src.join("alone"), vec![byte; to]);
            pair.converge();
        }
    }
    pair.finish();
}

#[test]
fn mkdir_p_with_files_at_once() {
    let pair = live(|_| {});
    for round in 0..200 {
        let path = pair.src.join(format!("{round}/b/c/d"));
        fs::create_dir_all(&path).unwrap();
        write(path.join("f"), "f");
        write(pair.src.join(format!("{round}/b/g")), "g");
    }
    pair.converge();
}

#[test]
fn rename_of_a_big_directory_carries_no_content() {
    let (mut pair, port) = Pair::new_tcp();
    let proxy = Proxy::start(port);
    pair.upstream = format!("tcp://127.0.0.1:{}", proxy.port());
    for directory in 0..50 {
        let path = pair.src.join(format!("big/{directory}"));
        fs::create_dir_all(&path).unwrap();
        for file in 0..40 {
            write(path.join(file.to_string()), vec![file; 1000]);
        }
    }
    fs::create_dir(pair.src.join("into")).unwrap();
    pair.start();
    pair.converge();
    let kept =
        ["", "/7", "/7/7"].map(|below| (below, inode(&pair.dst.join(format!("big{below}")))));
    let before = proxy.bytes().0;
    fs::rename(pair.src.join("big"), pair.src.join("into/renamed")).unwrap();
    pair.wait_equal();
    let sent = proxy.bytes().0 - before;
    for (below, inode_before) in kept {
        let path = pair.dst.join(format!("into/renamed{below}"));
        assert_eq!(inode(&path), inode_before, "{below} was made anew");
    }
    assert!(sent <= 64 << 10, "{sent} bytes on the wire for a rename");
    // The watches went along.
    write(pair.src.join("into/renamed/3/new"), "new");
    pair.converge();
}

#[test]
fn exchange_of_files_directories_and_both() {
    let pair = live(|src| {
        write(src.join("f"), "f");
        write(src.join("g"), "other g");
        for name in ["d", "e/deep"] {
            fs::create_dir_all(src.join(name)).unwrap();
            write(src.join(name).join("x"), name);
        }
    });
    for (a, b) in [("f", "g"), ("d", "e"), ("f", "d"), ("f/deep", "g"), ("f", "g")] {
        exchange(&pair.src.join(a), &pair.src.join(b)).unwrap();
        pair.converge();
    }
    for _ in 0..51 {
        exchange(&pair.src.join("f"), &pair.src.join("g")).unwrap();
    }
    pair.converge();
}

#[test]
fn moved_in_and_out() {
    let pair = live(|src| {
        fs::create_dir_all(src.join("d/deep")).unwrap();
        write(src.join("d/deep/f"), "f");
    });
    fs::rename(pair.src.join("d"), pair.outside.join("d")).unwrap();
    pair.converge();
    assert!(!pair.dst.join("d").exists());
    // What goes on out there is none of ours.
    write(pair.outside.join("d/deep/secret"), "secret");
    std::thread::sleep(Duration::from_millis(300));
    pair.converge();
    fs::rename(pair.outside.join("d"), pair.src.join("back")).unwrap();
    pair.converge();
    assert!(pair.dst.join("back/deep/secret").exists());
    // One out, another in, under the same name, at once.
    fs::create_dir(pair.outside.join("other")).unwrap();
    write(pair.outside.join("other/f"), "another");
    fs::rename(pair.src.join("back"), pair.outside.join("gone")).unwrap();
    fs::rename(pair.outside.join("other"), pair.src.join("back")).unwrap();
    pair.converge();
}

#[test]
fn hard_links_stay_linked() {
    let pair = live(|src| {
        fs::create_dir(src.join("d")).unwrap();
        write(src.join("f"), "one");
        fs::hard_link(src.join("f"), src.join("d/g")).unwrap();
    });
    let linked = |a: &str, b: &str| inode(&pair.dst.join(a)) == inode(&pair.dst.join(b));
    assert!(linked("f", "d/g"));
    write(pair.src.join("d/g"), "written by one name");
    pair.converge();
    fs::hard_link(pair.src.join("f"), pair.src.join("h")).unwrap();
    pair.converge();
    assert!(linked("f", "h") && linked("f", "d/g"));
    // rename(2) between two names of one inode does nothing.
    fs::rename(pair.src.join("f"), pair.src.join("h")).unwrap();
    pair.converge();
    fs::remove_file(pair.src.join("f")).unwrap();
    write(pair.src.join("h"), "written again");
    pair.converge();
    write(pair.src.join("temporary"), "apart");
    fs::rename(pair.src.join("temporary"), pair.src.join("h")).unwrap();
    pair.converge();
    assert!(!linked("h", "d/g"));
    fs::rename(pair.src.join("d"), pair.src.join("e")).unwrap();
    fs::hard_link(pair.src.join("e/g"), pair.src.join("again")).unwrap();
    pair.converge();
}

/// The events of a program that goes on writing bear the name that it opened, gone or not.
/// More at once than one batch takes, so that the sender lags; and as many files that each have
/// another name, which must be found without a look at all for each.
#[test]
fn bursts_of_hard_links_arrive() {
    let pair = live(|src| {
        write(src.join("one"), "one");
        fs::create_dir(src.join("many")).unwrap();
        for number in 0..3_000 {
            write(src.join(format!("many/{number}")), "many");
        }
    });
    for number in 0..300 {
        fs::hard_link(pair.src.join("one"), pair.src.join(format!("name-{number}"))).unwrap();
    }
    fs::create_dir(pair.src.join("copies")).unwrap();
    for number in 0..3_000 {
        let name = number.to_string();
        fs::hard_link(pair.src.join("many").join(&name), pair.src.join("copies").join(&name))
            .unwrap();
    }
    write(pair.src.join("another"), "arrives beside them");
    pair.wait_equal();
    pair.converge();
}

#[test]
fn writes_through_a_name_that_went_are_seen_under_the_others() {
    let goes: [fn(&Path); 2] = [
        |src| fs::remove_file(src.join("d/b")).unwrap(),
        |src| fs::rename(src.join("other"), src.join("d/b")).unwrap(),
    ];
    for go in goes {
        let pair = live(|src| {
            fs::create_dir(src.join("d")).unwrap();
            write(src.join("a"), "before");
            fs::hard_link(src.join("a"), src.join("d/b")).unwrap();
            write(src.join("other"), "other");
        });
        let mut open = fs::File::options().write(true).open(pair.src.join("d/b")).unwrap();
        go(&pair.src);
        pair.wait_equal();
        std::io::Write::write_all(&mut open, b"after!").unwrap();
        drop(open);
        pair.converge();
        assert_eq!(fs::read(pair.dst.join("a")).unwrap(), b"after!");
    }
}

/// A file that is written to, with its rest waited for, loses the name that this was seen by.
#[test]
fn a_write_is_not_forgotten_with_the_name_it_was_seen_by() {
    let goes: [fn(&Path, &Path); 4] = [
        |src, _| fs::remove_file(src.join("d/b")).unwrap(),
        |src, _| fs::rename(src.join("other"), src.join("d/b")).unwrap(),
        |src, outside| fs::rename(src.join("d/b"), outside.join("b")).unwrap(),
        |src, outside| fs::rename(src.join("d"), outside.join("d")).unwrap(),
    ];
    for go in goes {
        let pair = live(|src| {
            fs::create_dir(src.join("d")).unwrap();
            write(src.join("a"), "before");
            fs::hard_link(src.join("a"), src.join("d/b")).unwrap();
            write(src.join("other"), "other");
        });
        truncate_by_path(&pair.src.join("d/b"), 2).unwrap();
        go(&pair.src, &pair.outside);
        pair.converge();
        assert_eq!(fs::read(pair.dst.join("a")).unwrap(), b"be");
    }
}

/// What cannot be listed is mirrored as soon as its mode lets it.
#[test]
fn directories_that_become_readable_are_mirrored() {
    if !common::machine::need_root("a source without privileges") {
        return;
    }
    let mut pair = Pair::new();
    let nobody = 54_321;
    let mode = |mode| std::os::unix::fs::PermissionsExt::from_mode(mode);
    for name in ["start", "live", "known"] {
        fs::create_dir(pair.src.join(name)).unwrap();
        write(pair.src.join(name).join("f"), name);
    }
    for path in [&pair.src, &pair.source_state] {
        run(Command::new("chown").args(["-R", &nobody.to_string()]).arg(path)).unwrap();
    }
    fs::set_permissions(pair.scratch.path(), mode(0o777)).unwrap();
    fs::set_permissions(pair.src.join("start"), mode(0o000)).unwrap();
    let mut command = Command::new(common::process::mirror());
    std::os::unix::process::CommandExt::uid(&mut command, nobody);
    command.args(pair.source_command());
    pair.source = Some(common::process::Process::spawn(command, &pair.log("source")).unwrap());
    pair.start_sink();
    pair.wait_for("what is readable", || pair.dst.join("known/f").exists());
    assert!(!pair.dst.join("start/f").exists());
    // One that appears unreadable, and one that becomes so for a while.
    fs::create_dir(pair.outside.join("late")).unwrap();
    write(pair.outside.join("late/f"), "late");
    fs::set_permissions(pair.outside.join("late"), mode(0o000)).unwrap();
    fs::rename(pair.outside.join("late"), pair.src.join("late")).unwrap();
    fs::set_permissions(pair.src.join("known"), mode(0o000)).unwrap();
    assert!(pair.source().wait_log("late: Permission denied", common::patience()));
    for name in ["start", "late", "known"] {
        run(Command::new("chown").arg(nobody.to_string()).arg(pair.src.join(name))).unwrap();
        fs::set_permissions(pair.src.join(name), mode(0o755)).unwrap();
    }
    write(pair.src.join("known/g"), "new");
    pair.converge();
}

/// Files that are renamed elsewhere do not keep a big directory from being taken up.
#[test]
fn renames_of_files_do_not_hold_up_a_listing() {
    let pair = live(|src| fs::create_dir(src.join("busy")).unwrap());
    let big = pair.outside.join("big");
    fs::create_dir(&big).unwrap();
    for number in 0..20_000 {
        fs::File::create(big.join(number.to_string())).unwrap();
    }
    let done = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let (temporary, file) = (pair.src.join("busy/temporary"), pair.src.join("busy/file"));
            while !done.load(std::sync::atomic::Ordering::Relaxed) {
                write(&temporary, "again");
                fs::rename(&temporary, &file).unwrap();
                std::thread::sleep(Duration::from_millis(5));
            }
        });
        fs::rename(&big, pair.src.join("big")).unwrap();
        let last = || fs::read_dir(pair.dst.join("big")).is_ok_and(|names| names.count() == 20_000);
        let seen = common::pair::wait_until(common::patience(), last);
        done.store(true, std::sync::atomic::Ordering::Relaxed);
        assert!(seen, "held up by renames elsewhere");
    });
    pair.wait_equal();
}

#[test]
fn truncate_with_no_close() {
    let pair = live(|src| write(src.join("f"), vec![1; 10_000]));
    let held = truncate_by_path(&pair.src.join("f"), 123).unwrap();
    pair.converge();
    held.set_len(50_000).unwrap();
    pair.converge();
    drop(held);
    if need_tool("perl") {
        let script = "truncate($ARGV[0], 77) or die";
        run(Command::new("perl").args(["-e", script]).arg(pair.src.join("f"))).unwrap();
        pair.converge();
    } else {
        common::skip("perl, for truncate(2) by path, is not installed");
    }
}

#[test]
fn long_open_file_is_sent_while_open() {
    let pair = live(|_| {});
    let mut log = File::create(pair.src.join("log")).unwrap();
    for line in 0..5 {
        writeln!(log, "line {line}").unwrap();
        // Equal while it is still open.
        pair.converge();
    }
    fs::rename(pair.src.join("log"), pair.src.join("log.1")).unwrap();
    writeln!(log, "after the rename").unwrap();
    pair.converge();
    drop(log);
    pair.converge();
}

/// A file written without a rest is sent now and then, and does not hold others back.
#[test]
fn restless_file_does_not_starve_others() {
    let pair = live(|_| {});
    let mut log = File::create(pair.src.join("log")).unwrap();
    let until = Instant::now() + Duration::from_secs(4);
    let mut number = 0;
    let mut arrived = 0;
    while Instant::now() < until {
        log.write_all(&[b'x'; 512]).unwrap();
        std::thread::sleep(Duration::from_millis(2));
        if number == arrived {
            number += 1;
            write(pair.src.join(format!("small-{number}")), "small");
        }
        if pair.dst.join(format!("small-{number}")).exists() {
            arrived = number;
        }
    }
    assert!(arrived > 50, "only {arrived} small files in 4 s beside a restless one");
    let sent = fs::metadata(pair.dst.join("log")).map_or(0, |metadata| metadata.len());
    assert!(sent > 0, "nothing of a file open for 4 s was sent");
    drop(log);
    pair.converge();
}

/// A big one is not sent once more as soon as it was, and the position passes it all the same.
#[test]
fn a_big_restless_file_is_sent_at_a_bounded_rate_and_holds_no_position_back() {
    const SIZE: usize = 2 << 20;
    let (mut pair, port) = Pair::new_tcp();
    let proxy = Proxy::start(port);
    pair.upstream = format!("tcp://127.0.0.1:{}", proxy.port());
    pair.sink_args = vec!["--checkpoint-interval".into(), "100ms".into()];
    write(pair.src.join("restless"), vec![0; SIZE]);
    pair.start();
    pair.converge();
    let applied = || {
        let control = Directory::open(&pair.dst.join(".mirror")).ok()?;
        let checkpoint = Checkpoint::load(&control).ok()??;
        checkpoint.watermarks.map(|watermarks| watermarks.applied)
    };
    let (before, started) = (proxy.bytes().0, Instant::now());
    let file = File::options().write(true).open(pair.src.join("restless")).unwrap();
    let mut positions = std::collections::BTreeSet::new();
    for number in 0.. {
        if started.elapsed() > Duration::from_secs(6) {
            break;
        }
        file.write_all_at(&[number as u8; 4096], number as u64 * 4096 % SIZE as u64).unwrap();
        if number % 50 == 0 {
            write(pair.src.join("small"), number.to_string());
        }
        positions.extend(applied());
        std::thread::sleep(Duration::from_millis(2));
    }
    let sent = (proxy.bytes().0 - before) as usize / SIZE;
    println!("sent {sent} times in 6 s, {} positions", positions.len());
    assert!(sent >= 1, "nothing of a file open for 6 s was sent");
    assert!(positions.len() >= 4, "the positions reached in 6 s: {positions:?}");
    // Once a second and at first, each time from the beginning again when it is found to change.
    assert!(sent <= 7 * TRANSFER_ATTEMPTS_MAX as usize, "sent {sent} times in 6 s");
    drop(file);
    pair.converge();
}

#[test]
fn attributes_alone_keep_the_inode() {
    let pair = live(|src| {
        write(src.join("f"), vec![3; 300_000]);
        fs::create_dir(src.join("d")).unwrap();
        write(src.join("d/g"), "g");
    });
    let kept = ["f", "d", "d/g"].map(|name| (name, inode(&pair.dst.join(name))));
    fs::set_permissions(pair.src.join("f"), fs::Permissions::from_mode(0o4711)).unwrap();
    fs::set_permissions(pair.src.join("d"), fs::Permissions::from_mode(0o1750)).unwrap();
    pair.converge();
    let time = std::time::UNIX_EPOCH + Duration::new(1_234_567_890, 123_456_789);
    // Both times: for the modification time alone the kernel reports a write, not a change of
    // attributes.
    let times = fs::FileTimes::new().set_modified(time).set_accessed(time);
    File::open(pair.src.join("f")).unwrap().set_times(times).unwrap();
    File::open(pair.src.join("d")).unwrap().set_times(times).unwrap();
    pair.converge();
    let flags = XattrFlags::empty();
    rustix::fs::setxattr(pair.src.join("f"), "user.x", b"value", flags).unwrap();
    let list = acl(1001, 6);
    rustix::fs::setxattr(pair.src.join("d/g"), "system.posix_acl_access", &list, flags).unwrap();
    rustix::fs::setxattr(pair.src.join("d"), "system.posix_acl_default", &list, flags).unwrap();
    pair.converge();
    rustix::fs::removexattr(pair.src.join("f"), "user.x").unwrap();
    pair.converge();
    if is_root() {
        std::os::unix::fs::chown(pair.src.join("f"), Some(1234), Some(4321)).unwrap();
        rustix::fs::setxattr(pair.src.join("f"), "trusted.x", b"value", flags).unwrap();
        pair.converge();
    }
    for (name, before) in kept {
        assert_eq!(inode(&pair.dst.join(name)), before, "{name} was made anew");
    }
    // New entries below a default ACL get what the source has, not what they inherit.
    write(pair.src.join("d/new"), "new");
    fs::create_dir(pair.src.join("d/e")).unwrap();
    pair.converge();
}

#[test]
fn holes_stay_holes() {
    let sparse = |path: &Path| {
        let file = File::create(path).unwrap();
        file.set_len(64 << 20).unwrap();
        file.write_all_at(&[1; 10_000], 0).unwrap();
        file.write_all_at(&[2; 10_000], 40 << 20).unwrap();
    };
    let pair = live(|src| sparse(&src.join("before")));
    sparse(&pair.src.join("after"));
    File::create(pair.src.join("all hole")).unwrap().set_len(8 << 20).unwrap();
    pair.converge();
    // A file grows a hole where it had data.
    write(pair.src.join("punched"), vec![3; 4 << 20]);
    pair.converge();
    let file = File::options().write(true).open(pair.src.join("punched")).unwrap();
    let flags = rustix::fs::FallocateFlags::PUNCH_HOLE | rustix::fs::FallocateFlags::KEEP_SIZE;
    rustix::fs::fallocate(&file, flags, 1 << 20, 2 << 20).unwrap();
    drop(file);
    pair.converge();
}

#[test]
fn unusual_names() {
    let long = "n".repeat(255);
    let names: [&[u8]; 9] = [
        b"not\xff\xfeutf8",
        b"new\nline",
        b" ",
        b"-rf",
        b"*?[]{}$'\"\\",
        b"\x01\x1b[31m",
        b"...",
        long.as_bytes(),
        b"~",
    ];
    let pair = live(|src| {
        for name in names {
            write(src.join(OsStr::from_bytes(name)), name);
        }
    });
    fs::create_dir(pair.src.join("d")).unwrap();
    for name in names {
        let path = pair.src.join("d").join(OsStr::from_bytes(name));
        fs::create_dir(&path).unwrap();
        write(path.join(OsStr::from_bytes(name)), name);
        fs::rename(pair.src.join(OsStr::from_bytes(name)), path.join("renamed")).unwrap();
    }
    // `.mirror` is reserved at the root alone.
    fs::create_dir(pair.src.join("d/.mirror")).unwrap();
    write(pair.src.join("d/.mirror/f"), "f");
    pair.converge();
}

#[test]
fn paths_longer_than_path_max() {
    let name = "deep".repeat(50);
    let pair = live(|src| deepen(src, &name, 15));
    // 15 × 201 bytes were there; twice that is more than PATH_MAX.
    fs::create_dir(pair.outside.join("more")).unwrap();
    deepen(&pair.outside.join("more"), &name, 15);
    fs::rename(pair.src.join(&name), pair.outside.join("first")).unwrap();
    pair.converge();
    deepen(&pair.src, &name, 30);
    pair.wait_equal();
    // rsync cannot look there; ours can. Then a change at the very bottom, and the way back.
    let mut directory = open_directory(&pair.src);
    for _ in 0..30 {
        let flags = OFlags::DIRECTORY | OFlags::CLOEXEC;
        directory = rustix::fs::openat(&directory, name.as_str(), flags, Mode::empty()).unwrap();
    }
    let flags = OFlags::CREATE | OFlags::WRONLY | OFlags::CLOEXEC;
    let file = rustix::fs::openat(&directory, "bottom", flags, Mode::from(0o640)).unwrap();
    rustix::io::write(&file, b"far down").unwrap();
    drop((file, directory));
    pair.wait_equal();
    fs::rename(pair.src.join(&name), pair.src.join("short")).unwrap();
    pair.wait_equal();
    run(Command::new("rm").arg("-r").arg(pair.src.join("short"))).unwrap();
    pair.converge();
}

/// What the host's own security modules know of its files is theirs, which is said, and once.
#[test]
fn attributes_that_are_not_mirrored_are_named_once() {
    if !need_root("attributes_that_are_not_mirrored_are_named_once") {
        return;
    }
    let mut pair = live(|_| ());
    for name in ["f", "g", "h"] {
        write(pair.src.join(name), name);
        let flags = XattrFlags::empty();
        rustix::fs::setxattr(pair.src.join(name), "user.kept", b"1", flags).unwrap();
        let set = rustix::fs::setxattr(pair.src.join(name), "security.mirror", b"1", flags);
        if let Err(error) = set {
            return common::skip(&format!("no security attributes: {error}"));
        }
    }
    assert!(pair.source().wait_log("security.mirror is not mirrored", common::patience()));
    let attribute = |name: &str, attribute: &str| {
        let mut value = [0; 8];
        rustix::fs::getxattr(pair.dst.join(name), attribute, &mut value).is_ok()
    };
    for name in ["f", "g", "h"] {
        pair.wait_for("the attribute", || attribute(name, "user.kept"));
        assert!(!attribute(name, "security.mirror"));
    }
    let log = pair.source.as_ref().unwrap().log();
    assert_eq!(log.matches("security.mirror").count(), 1, "{log}");
}

/// A path that no message can hold is not mirrored, which is said, and everything else is.
#[test]
fn paths_too_long_for_any_message_are_left_out() {
    let name = "y".repeat(250);
    let mut pair = live(|_| ());
    deepen(&pair.src, &name, 200);
    pair.wait_equal();
    // Also one that is already deep and becomes too deep by a rename.
    fs::create_dir(pair.src.join("z")).unwrap();
    deepen(&pair.src.join("z"), &name, 100);
    rename_into_deepest(&pair.src, &name, 200, "z");
    write(pair.src.join("other"), "other");
    deepen(&pair.src, &"w".repeat(250), 300);
    pair.wait_for("the other", || fs::read(pair.dst.join("other")).is_ok());
    assert!(pair.source().wait_log("are not mirrored", common::patience()));
    write(pair.src.join("after"), "after");
    pair.wait_for("what comes after", || fs::read(pair.dst.join("after")).is_ok());
    let log = pair.source().log();
    assert!(!log.contains("downstream left"), "{log}");
}

/// Renames `from`, in the root, into the deepest of `levels` directories of the same name.
fn rename_into_deepest(root: &Path, name: &str, levels: usize, from: &str) {
    let top = open_directory(root);
    let mut deepest = open_directory(root);
    for _ in 0..levels {
        let flags = rustix::fs::OFlags::DIRECTORY;
        let mode = rustix::fs::Mode::empty();
        deepest = rustix::fs::openat(&deepest, name, flags, mode).unwrap();
    }
    rustix::fs::renameat(&top, from, &deepest, from).unwrap();
}

fn open_directory(path: &Path) -> std::os::fd::OwnedFd {
    rustix::fs::open(path, OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()).unwrap()
}

/// Makes `levels` of directories in each other, each with a file.
fn deepen(root: &Path, name: &str, levels: usize) {
    let mut directory = open_directory(root);
    for _ in 0..levels {
        rustix::fs::mkdirat(&directory, name, Mode::from(0o755)).unwrap();
        let flags = OFlags::DIRECTORY | OFlags::CLOEXEC;
        directory = rustix::fs::openat(&directory, name, flags, Mode::empty()).unwrap();
        let flags = OFlags::CREATE | OFlags::WRONLY | OFlags::CLOEXEC;
        let file = rustix::fs::openat(&directory, "f", flags, Mode::from(0o644)).unwrap();
        rustix::io::write(&file, b"deep").unwrap();
    }
}

#[test]
fn fifos_sockets_and_devices() {
    let node = |path: &Path, kind, device| {
        rustix::fs::mknodat(CWD, path, kind, Mode::from(0o640), device).unwrap();
    };
    let pair = live(|src| {
        node(&src.join("fifo"), FileType::Fifo, 0);
        node(&src.join("socket"), FileType::Socket, 0);
    });
    node(&pair.src.join("fifo2"), FileType::Fifo, 0);
    fs::rename(pair.src.join("fifo"), pair.src.join("fifo3")).unwrap();
    pair.converge();
    if need_root("fifos_sockets_and_devices, its devices,") {
        let device = rustix::fs::makedev(240, 7);
        node(&pair.src.join("character"), FileType::CharacterDevice, device);
        node(&pair.src.join("block"), FileType::BlockDevice, rustix::fs::makedev(241, 300));
        pair.converge();
        // The same name, another number.
        fs::remove_file(pair.src.join("character")).unwrap();
        let device = rustix::fs::makedev(240, 8);
        node(&pair.src.join("character"), FileType::CharacterDevice, device);
        pair.converge();
    }
}

#[test]
fn kinds_change_under_one_name() {
    let pair = live(|src| write(src.join("x"), "file"));
    let path = pair.src.join("x");
    let makers: [(&str, &dyn Fn()); 4] = [
        ("directory", &|| {
            fs::create_dir(&path).unwrap();
            write(path.join("f"), "f");
        }),
        ("symlink", &|| std::os::unix::fs::symlink("nowhere", &path).unwrap()),
        ("fifo", &|| {
            rustix::fs::mknodat(CWD, &path, FileType::Fifo, Mode::from(0o600), 0).unwrap();
        }),
        ("file", &|| write(&path, "file")),
    ];
    for (_, first) in &makers {
        for (name, second) in &makers {
            common::operations::remove(&path).unwrap();
            first();
            common::operations::remove(&path).unwrap();
            second();
            println!("to {name}");
            pair.wait_equal();
        }
    }
    pair.converge();
}

/// Several sinks of one source, one of them stopped: the others are not held up.
#[test]
fn one_stalled_downstream_costs_the_others_nothing() {
    let mut pair = live(|src| write(src.join("f"), "f"));
    let other = pair.scratch.path().join("other");
    let state = pair.scratch.path().join("other-state");
    fs::create_dir(&other).unwrap();
    let mut args = vec![std::ffi::OsString::from("sink"), pair.upstream.clone().into()];
    args.extend([other.clone().into(), "--state-dir".into(), state.into()]);
    let log = pair.log("other");
    let second = common::process::Process::mirror(args, &log);
    common::judge::wait_equal(&pair.src, &other, common::patience());
    second.stop();
    for number in 0..300 {
        write(pair.src.join(format!("f{number}")), vec![1; 50_000]);
    }
    pair.converge();
    second.resume();
    common::judge::wait_equal(&pair.src, &other, common::patience());
    drop(second);
    pair.finish();
}
