//! Files that are written to without a rest: sent at a bounded rate, at nobody's cost.

use std::fs::{self, File};
use std::io::Write as _;
use std::os::unix::fs::FileExt as _;
use std::time::{Duration, Instant};

use mirror::journal::checkpoint::Checkpoint;
use mirror::journal::state_file::Directory;
use mirror::model::limits::TRANSFER_ATTEMPTS_MAX;

use crate::common::pair::Pair;
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
