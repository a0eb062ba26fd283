//! Files that are written to without a rest: sent at a bounded rate, at nobody's cost.

use std::fs::{self, File};
use std::io::Write as _;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};

use mirror::journal::checkpoint::Checkpoint;
use mirror::journal::state_file::Directory;
use mirror::model::limits::{INLINE_BYTES_MAX, TRANSFER_ATTEMPTS_MAX};

use crate::common::pair::{Pair, wait_until};
use crate::common::proxy::Proxy;
use crate::{live, write};

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

/// What a hot file costs while something goes on writing to it.
struct Heat {
    /// How long that was, in whole seconds begun.
    seconds: u64,
    /// On the wire to the replica, the other files' part included.
    bytes: u64,
    /// From the writing of another small file to its being in place, the longest of all.
    latency_max: Duration,
    /// How many durable positions were seen.
    positions: usize,
}

impl Heat {
    /// Panics if the hot file was sent in full more often than `times` in the beginning and once
    /// a second then, which is `AGE_MAX` of `src/watch/unsettled.rs`, or kept others waiting. A
    /// file of several frames is begun anew so many times a sending when it is found to change.
    fn assert_bounded(&self, size: u64, times: u64) {
        let attempts =
            if size > INLINE_BYTES_MAX as u64 { TRANSFER_ATTEMPTS_MAX.into() } else { 1 };
        // The others, acks and heartbeats are small change; so is a frame around a small file.
        let others = self.seconds * (64 << 10);
        let most = (times + self.seconds) * attempts * (size + 256) + others;
        assert!(self.bytes <= most, "{} bytes in {} s, not {most}", self.bytes, self.seconds);
        // Milliseconds, but for a machine that is busy with other tests.
        assert!(self.latency_max < Duration::from_secs(2), "others after {:?}", self.latency_max);
        assert!(self.positions >= 4, "only {} positions", self.positions);
    }
}

/// Has `write_once` called without pause for so long beside ordinary changes, then lets all rest.
fn heat(
    seconds: u64,
    prepare: impl FnOnce(&Path),
    mut write_once: impl FnMut(&Path, u64) + Send,
) -> Heat {
    let (mut pair, port) = Pair::new_tcp();
    let proxy = Proxy::start(port);
    pair.upstream = format!("tcp://127.0.0.1:{}", proxy.port());
    pair.sink_args = vec!["--checkpoint-interval".into(), "100ms".into()];
    prepare(&pair.src);
    fs::create_dir(pair.src.join("others")).unwrap();
    pair.start();
    pair.converge();
    let applied = || {
        let control = Directory::open(&pair.dst.join(".mirror")).ok()?;
        let checkpoint = Checkpoint::load(&control).ok()??;
        checkpoint.watermarks.map(|watermarks| watermarks.applied)
    };
    let done = AtomicBool::new(false);
    let (before, started) = (proxy.bytes().0, Instant::now());
    let mut positions = std::collections::BTreeSet::new();
    let mut latency_max = Duration::ZERO;
    let mut writes = 0;
    std::thread::scope(|scope| {
        let hot = scope.spawn(|| {
            let mut count = 0;
            while !done.load(Relaxed) {
                write_once(&pair.src, count);
                count += 1;
            }
            count
        });
        for number in 0.. {
            if started.elapsed() > Duration::from_secs(seconds) {
                break;
            }
            let name = format!("others/{}", number % 10);
            let content = number.to_string();
            write(pair.src.join(&name), &content);
            let written = Instant::now();
            let replica = pair.dst.join(&name);
            let is_there = || fs::read(&replica).is_ok_and(|read| read == content.as_bytes());
            let came = wait_until(Duration::from_secs(10), is_there);
            latency_max = latency_max.max(written.elapsed());
            positions.extend(applied());
            if !came {
                break;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        done.store(true, Relaxed);
        writes = hot.join().expect("the writer does not fail");
    });
    let elapsed = started.elapsed();
    let heat = Heat {
        seconds: elapsed.as_secs() + 1,
        bytes: proxy.bytes().0 - before,
        latency_max,
        positions: positions.len(),
    };
    println!(
        "{writes} writes in {elapsed:?}: {} bytes, others after {latency_max:?} at most, {} \
         positions",
        heat.bytes, heat.positions
    );
    // Once more after it rests, and all is equal.
    pair.converge();
    heat
}

/// A file that is opened, written and closed in a loop.
#[test]
fn a_small_file_rewritten_without_pause_is_sent_at_a_bounded_rate() {
    let heat =
        heat(4, |_| {}, |src, number| write(src.join("hot"), number.to_string().repeat(500)));
    // As often at once as `CLOSINGS_MAX` of `src/watch/unsettled.rs` says.
    heat.assert_bounded(7 * 500, 32);
}

/// A log, through one descriptor.
#[test]
fn a_small_file_appended_without_pause_is_sent_at_a_bounded_rate() {
    const LINES_MAX: u64 = 30_000;
    let mut file: Option<File> = None;
    let append = move |src: &Path, number| {
        let file = file.get_or_insert_with(|| File::create(src.join("hot")).unwrap());
        if number < LINES_MAX {
            writeln!(file, "{number:9}").unwrap();
        }
        std::thread::sleep(Duration::from_micros(50));
    };
    heat(4, |_| {}, append).assert_bounded(LINES_MAX * 10, 1);
}

/// A big file, for which two closings within a second are more than `CLOSINGS_BYTES_MAX`.
#[test]
fn a_big_file_rewritten_without_pause_is_sent_at_a_bounded_rate() {
    const SIZE: usize = 50 << 20;
    let rewrite = |src: &Path, number| write(src.join("hot"), vec![number as u8; SIZE]);
    heat(5, |src| write(src.join("hot"), vec![0; SIZE]), rewrite).assert_bounded(SIZE as u64, 2);
}
