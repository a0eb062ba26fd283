//! The tests' own tools, tested: a judge that is blind proves nothing.

mod common;

use std::fs::{self, File};
use std::os::unix::fs::{FileExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, UNIX_EPOCH};

use common::judge::{Judge, rsync_differences};
use common::machine::{is_root, run, scratch};
use common::operations::Operations;

/// Copies with `cp -a`, an independent implementation of most of what a replica preserves.
fn copy(src: &Path, dst: &Path) {
    let mut from = src.as_os_str().to_owned();
    from.push("/.");
    run(Command::new("cp").args(["-a", "--sparse=auto"]).arg(from).arg(dst)).unwrap();
}

/// What one case breaks.
type Break = Box<dyn Fn(&Path)>;

#[test]
fn judge_sees_every_attribute() {
    let scratch = scratch();
    let src = scratch.path().join("src");
    fs::create_dir_all(src.join("d/e")).unwrap();
    for name in ["f", "g", "d/f", "d/e/f"] {
        fs::write(src.join(name), name).unwrap();
    }
    fs::hard_link(src.join("g"), src.join("h")).unwrap();
    std::os::unix::fs::symlink("f", src.join("s")).unwrap();
    let sparse = File::create(src.join("sparse")).unwrap();
    sparse.set_len(1 << 20).unwrap();
    sparse.write_all_at(b"x", 500_000).unwrap();

    let keep_times = |path: PathBuf, change: &dyn Fn(&Path)| {
        let before = fs::symlink_metadata(&path).unwrap().modified().unwrap();
        change(&path);
        File::open(&path).unwrap().set_modified(before).unwrap();
    };
    let cases: Vec<(&str, Break)> = vec![
        ("f: content differs", {
            Box::new(move |dst| keep_times(dst.join("f"), &|path| fs::write(path, "F").unwrap()))
        }),
        ("f: mode", {
            Box::new(|dst| {
                fs::set_permissions(dst.join("f"), fs::Permissions::from_mode(0o751)).unwrap();
            })
        }),
        ("d: mtime", {
            Box::new(|dst| {
                let time = UNIX_EPOCH + Duration::new(1_000_000_000, 1);
                File::open(dst.join("d")).unwrap().set_modified(time).unwrap();
            })
        }),
        (".: mtime", {
            Box::new(|dst| {
                let time = UNIX_EPOCH + Duration::new(1_000_000_000, 1);
                File::open(dst).unwrap().set_modified(time).unwrap();
            })
        }),
        ("d/e/f: missing", Box::new(|dst| fs::remove_file(dst.join("d/e/f")).unwrap())),
        ("d/e/new: left over", Box::new(|dst| fs::write(dst.join("d/e/new"), "").unwrap())),
        ("h: linked", {
            Box::new(|dst| {
                fs::copy(dst.join("h"), dst.join("t")).unwrap();
                fs::rename(dst.join("t"), dst.join("h")).unwrap();
            })
        }),
        ("s: target", {
            Box::new(|dst| {
                fs::remove_file(dst.join("s")).unwrap();
                std::os::unix::fs::symlink("g", dst.join("s")).unwrap();
            })
        }),
        ("sparse: holes", {
            Box::new(|dst| {
                let content = fs::read(dst.join("sparse")).unwrap();
                fs::write(dst.join("sparse"), content).unwrap();
            })
        }),
        ("f: xattrs", {
            Box::new(|dst| {
                let flags = rustix::fs::XattrFlags::empty();
                rustix::fs::setxattr(dst.join("f"), "user.x", b"y", flags).unwrap();
            })
        }),
        ("d: xattrs", {
            Box::new(|dst| {
                let acl = common::operations::acl(1000, 5);
                let flags = rustix::fs::XattrFlags::empty();
                let name = "system.posix_acl_default";
                rustix::fs::setxattr(dst.join("d"), name, &acl, flags).unwrap();
            })
        }),
        ("f: RegularFile ≠ Directory", {
            Box::new(|dst| {
                fs::remove_file(dst.join("f")).unwrap();
                fs::create_dir(dst.join("f")).unwrap();
            })
        }),
    ];
    for (index, (expected, damage)) in cases.iter().enumerate() {
        let dst = scratch.path().join(format!("dst{index}"));
        fs::create_dir(&dst).unwrap();
        copy(&src, &dst);
        fs::create_dir(dst.join(".mirror")).unwrap();
        fs::write(dst.join(".mirror/checkpoint"), "not looked at").unwrap();
        let modified = fs::metadata(&src).unwrap().modified().unwrap();
        File::open(&dst).unwrap().set_modified(modified).unwrap();
        let judge = Judge::new(&src, &dst);
        assert_eq!(judge.differences(), Vec::<String>::new());
        damage(&dst);
        let found = judge.differences();
        let (path, what) = expected.split_once(": ").unwrap();
        let seen = |line: &String| line.starts_with(&format!("{path}: ")) && line.contains(what);
        assert!(found.iter().any(seen), "{expected}: {found:?}");
    }
}

#[test]
fn judge_sees_owners() {
    if !common::machine::need_root("judge_sees_owners") {
        return;
    }
    let scratch = scratch();
    let (src, dst) = (scratch.path().join("src"), scratch.path().join("dst"));
    fs::create_dir(&src).unwrap();
    std::os::unix::fs::symlink("x", src.join("s")).unwrap();
    fs::create_dir(&dst).unwrap();
    copy(&src, &dst);
    std::os::unix::fs::lchown(dst.join("s"), Some(7), None).unwrap();
    assert_eq!(Judge::new(&src, &dst).differences(), ["s: owner 0:0 ≠ 7:0"]);
    assert!(Judge::new(&src, &dst).without_owners().differences().is_empty());
}

/// The same seed does the same, and both judges agree on the trees that come of it.
#[test]
fn operations_replay_and_judges_agree() {
    let seed = common::seed();
    let scratch = scratch();
    let mut told = Vec::new();
    for run in ["one", "two"] {
        let at = |name: &str| {
            let path = scratch.path().join(format!("{run}-{name}"));
            fs::create_dir(&path).unwrap();
            path
        };
        let (root, outside) = (at("root"), at("outside"));
        let mut operations = Operations::new(&root, &outside, seed);
        let mut lines = Vec::new();
        for round in 0..10 {
            lines.extend(operations.run(150));
            let copied = at(&format!("copy{round}"));
            copy(&root, &copied);
            let differences = Judge::new(&root, &copied).differences();
            // cp finds its own way to write holes, and needs root for some kinds.
            let told = differences.iter().filter(|line| !line.contains("holes") && is_root());
            let told: Vec<_> = told.collect();
            assert!(told.is_empty(), "seed {seed}: {told:?}");
            if let Some(lines) = rsync_differences(&root, &copied).filter(|_| is_root()) {
                assert_eq!(lines, "", "seed {seed}");
            }
        }
        told.push(lines);
    }
    assert_eq!(told[0], told[1]);
}

/// Each operation of the table comes up.
#[test]
fn operations_are_all_used() {
    let seed = common::seed();
    let scratch = scratch();
    let (root, outside) = (scratch.path().join("root"), scratch.path().join("outside"));
    fs::create_dir(&root).unwrap();
    fs::create_dir(&outside).unwrap();
    let mut operations = Operations::new(&root, &outside, seed);
    let told = operations.run(6000).join("\n");
    let names = ["exchange ", "link ", "acl ", "sparse ", "special ", "move out ", "big "];
    for name in names.iter().filter(|_| is_root()) {
        assert!(told.contains(&format!(" {name}")), "{name}");
    }
    assert!(!told.contains("nothing worked"), "{told}");
    if std::env::var_os("MIRROR_TEST_VERBOSE").is_some() {
        println!("{told}");
    }
}

#[test]
fn mounts_come_and_go() {
    if !common::machine::need_root("mounts_come_and_go") {
        return;
    }
    let mount = match common::machine::Mount::ext4(16 << 20, &[]) {
        Ok(mount) => mount,
        Err(error) => return common::skip(&format!("no loop mount: {error}")),
    };
    fs::write(mount.path.join("f"), "f").unwrap();
    mount.remount("ro").unwrap();
    assert!(fs::write(mount.path.join("g"), "g").is_err());
    mount.remount("rw").unwrap();
    mount.renew(&[]).unwrap();
    assert!(!mount.path.join("f").exists());
    let path = mount.path.clone();
    drop(mount);
    assert!(!path.exists());
}

#[test]
fn proxy_forwards_and_flips() {
    use std::io::{Read as _, Write as _};
    let server = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let proxy = common::proxy::Proxy::start(server.local_addr().unwrap().port());
    let mut client = std::net::TcpStream::connect(("127.0.0.1", proxy.port())).unwrap();
    let (mut accepted, _) = server.accept().unwrap();
    let mut send = |text: &[u8]| {
        accepted.write_all(text).unwrap();
        let mut read = vec![0; text.len()];
        client.read_exact(&mut read).unwrap();
        read
    };
    assert_eq!(send(b"hello"), b"hello");
    proxy.flip(1, 1);
    let flipped = send(b"hello");
    let bits: u32 = flipped.iter().zip(b"hello").map(|(a, b)| (a ^ b).count_ones()).sum();
    assert_eq!(bits, 1);
    assert_eq!(send(b"again"), b"again");
    assert_eq!(proxy.bytes(), (15, 0));
    proxy.cut();
    assert!(matches!(client.read(&mut [0]), Ok(0) | Err(_)));
}

#[test]
fn processes_are_stopped_and_killed() {
    let scratch = scratch();
    let mut command = Command::new("sh");
    command.args(["-c", "echo started; exec sleep 60"]);
    let log = scratch.path().join("log");
    let mut process = common::process::Process::spawn(command, &log).unwrap();
    assert!(process.wait_log("STARTED", Duration::from_secs(5)));
    assert!(process.usage().resident_bytes > 0);
    process.stop();
    assert!(process.is_running());
    process.resume();
    let status = process.terminate(Duration::from_secs(5)).unwrap();
    assert!(!status.success());
}
