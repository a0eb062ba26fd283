//! Contents of files: sizes, holes, truncation, files that stay open.

use std::fs::{self, File};
use std::io::Write as _;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::process::Command;

use mirror::model::limits::INLINE_BYTES_MAX;

use crate::common;
use crate::common::machine::{need_tool, run};
use crate::common::operations::truncate_by_path;
use crate::{live, write};

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
