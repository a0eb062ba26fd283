//! A source and a sink as real processes: the first sync and live changes of every kind.

mod attributes;
#[path = "../common/mod.rs"]
mod common;
mod contents;
mod hot_files;
mod links;
mod names;
mod renames;
mod trees;

use std::fs;
use std::path::Path;

use common::pair::Pair;

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
