//! What goes wrong at the sink: it heals by itself, and keeps nothing else waiting.

mod common;

use std::fs;
use std::path::Path;
use std::process::Command;

use common::machine::{Mount, has_tool, need_root};
use common::pair::Pair;

/// Prepares a pair whose replica is on an ext4 of its own.
fn pair_on_ext4(bytes: u64) -> Option<(Pair, Mount)> {
    if !need_root("a file system of the sink's own") || !has_tool("mkfs.ext4") {
        return None;
    }
    let mut pair = Pair::new();
    match Mount::ext4(bytes, &[]) {
        Ok(mount) => {
            pair.dst = mount.path.join("replica");
            fs::create_dir(&pair.dst).unwrap();
            Some((pair, mount))
        }
        Err(error) => {
            common::skip(&format!("no loop mount: {error}"));
            None
        }
    }
}

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
    drop(pair);
}
