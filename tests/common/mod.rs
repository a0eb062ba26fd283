//! What the integration tests and the benchmark share: judges, random operations, processes,
//! mounts, a proxy that misbehaves.
//!
//! Each test binary uses a part of it, hence the `allow`.
#![allow(dead_code)]

pub mod chain;
pub mod feed;
pub mod judge;
pub mod live;
pub mod machine;
pub mod node;
pub mod operations;
pub mod pair;
pub mod process;
pub mod proxy;
pub mod watched;
pub mod world;

use std::io::Write as _;
use std::time::Duration;

/// Says that a test does not run here, and why; `.ci/run` fails when it sees this.
///
/// Written past the test harness's capture, which would swallow it.
pub fn skip(reason: &str) {
    let _ = writeln!(std::io::stdout(), "SKIPPED: {reason}");
}

/// Returns the number in the environment variable `name`, or `default`.
pub fn number_from_env(name: &str, default: u64) -> u64 {
    match std::env::var(name) {
        Ok(text) => text.parse().unwrap_or_else(|_| panic!("{name}={text} is not a number")),
        Err(_) => default,
    }
}

/// Returns the seed to use: `MIRROR_SEED` or a new one; prints it either way.
///
/// Where a change is judged (`CI` is set), it is the same for all changes; new ones are for those
/// who have the time to follow what they find.
pub fn seed() -> u64 {
    let new = if std::env::var_os("CI").is_some() { 1 } else { fastrand::u64(..1 << 32) };
    let seed = number_from_env("MIRROR_SEED", new);
    println!("MIRROR_SEED={seed} replays this");
    seed
}

/// Returns the seeds to run: that of `MIRROR_SEED`, else `MIRROR_SEEDS` of them, or so many as
/// given, from `MIRROR_SEED_FIRST` on.
pub fn seeds(count: u64) -> std::ops::Range<u64> {
    if std::env::var_os("MIRROR_SEED").is_some() {
        let seed = number_from_env("MIRROR_SEED", 0);
        return seed..seed + 1;
    }
    let first = number_from_env("MIRROR_SEED_FIRST", 0);
    first..first + number_from_env("MIRROR_SEEDS", count)
}

/// Returns how long to wait for what should happen at once (`MIRROR_TEST_WAIT_S`, 30 s).
pub fn patience() -> Duration {
    Duration::from_secs(number_from_env("MIRROR_TEST_WAIT_S", 30))
}
