//! Renames, exchanges, and moves into the tree and out of it.

use std::fs;
use std::time::Duration;

use crate::common;
use crate::common::operations::exchange;
use crate::common::pair::{Pair, inode};
use crate::common::proxy::Proxy;
use crate::{live, write};

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
