//! Names and paths of any bytes and lengths.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::process::Command;

use rustix::fs::{Mode, OFlags};

use crate::common;
use crate::common::machine::run;
use crate::{live, write};

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
