//! I2: a reader of a replica sees one complete version or another, never a part, never a gap.

mod common;

use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};

use common::pair::Pair;

/// Returns version `number` of a file: every line tells which it is.
fn version(number: u64) -> String {
    // Lengths differ between versions, and some take several reads.
    let lines = 1 + (number * 7919) % 3000;
    format!("{number:08}\n").repeat(lines as usize)
}

/// Panics unless `path` holds one whole version; returns which.
fn check(path: &Path) -> u64 {
    let text = fs::read_to_string(path).unwrap_or_else(|error| panic!("a gap: {error}"));
    let number = text.get(..8).and_then(|digits| digits.parse().ok());
    let number = number.unwrap_or_else(|| panic!("no version in {} bytes", text.len()));
    assert!(text == version(number), "part of version {number}: {} bytes", text.len());
    number
}

fn reader_sees_whole_versions(
    replacements: u64,
    burst: u64,
    rises: bool,
    replace: impl Fn(&Path, &Path, u64),
) {
    let mut pair = Pair::new();
    let (file, temporary) = (pair.src.join("file"), pair.src.join("temporary"));
    fs::write(&file, version(0)).unwrap();
    fs::write(&temporary, version(0)).unwrap();
    pair.start();
    pair.wait_equal();
    let replica = pair.dst.join("file");
    let (done, seen) = (AtomicBool::new(false), AtomicU64::new(0));
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                let mut last = 0;
                while !done.load(Relaxed) {
                    let number = check(&replica);
                    assert!(number >= last || !rises, "version {number} after {last}");
                    seen.fetch_add(u64::from(number != last), Relaxed);
                    last = number;
                }
            });
        }
        for number in 1..=replacements {
            replace(&file, &temporary, number);
            // Flat out, most versions would be superseded before they are sent.
            if number % burst == 0 {
                std::thread::sleep(std::time::Duration::from_millis(2));
            }
        }
        pair.wait_for("the last version", || check(&replica) == replacements);
        done.store(true, Relaxed);
    });
    let seen = seen.load(Relaxed);
    println!("{seen} versions seen");
    // On a machine with other work to do, few are: the storm leaves the sink behind.
    assert!(seen > 1, "only {seen} versions seen: this tested nothing");
    pair.converge();
}

#[test]
fn reader_of_a_file_replaced_10_000_times() {
    reader_sees_whole_versions(10_000, 16, true, |file, temporary, number| {
        fs::write(temporary, version(number)).unwrap();
        fs::rename(temporary, file).unwrap();
    });
}

/// With a rest after each, the sink sees every version, the temporary file's too.
#[test]
fn reader_of_a_file_replaced_at_leisure() {
    reader_sees_whole_versions(1_000, 1, true, |file, temporary, number| {
        fs::write(temporary, version(number)).unwrap();
        fs::rename(temporary, file).unwrap();
    });
}

/// The writer of the temporary file rests so long that a part of it is sent: that part must not
/// take the place of the whole file by the rename that follows.
#[test]
fn reader_of_a_file_replaced_by_a_slow_writer() {
    reader_sees_whole_versions(12, 1, true, |file, temporary, number| {
        let whole = version(number);
        let mut writer = fs::File::create(temporary).unwrap();
        let middle = whole.len() / 2;
        std::io::Write::write_all(&mut writer, &whole.as_bytes()[..middle]).unwrap();
        // Longer than a file must rest to be sent while it is open.
        std::thread::sleep(std::time::Duration::from_millis(120));
        std::io::Write::write_all(&mut writer, &whole.as_bytes()[middle..]).unwrap();
        drop(writer);
        fs::rename(temporary, file).unwrap();
    });
}

/// A sink that is killed forgets which of its files are parts: it is told anew, and takes no
/// rename for granted before.
#[test]
fn reader_of_a_file_whose_part_outlived_the_sink() {
    let text = |number: u64| format!("{number:08}\n").repeat(300_000);
    let mut pair = Pair::new();
    let (file, temporary) = (pair.src.join("file"), pair.src.join("temporary"));
    fs::write(&file, text(0)).unwrap();
    pair.start();
    pair.wait_equal();
    let replica = |name: &str| pair.dst.join(name);
    let (replica_file, replica_temporary) = (replica("file"), replica("temporary"));
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Relaxed) {
                let seen = fs::read_to_string(&replica_file).unwrap();
                let number = seen[..8].parse().unwrap();
                assert!(seen == text(number), "part of version {number}: {} bytes", seen.len());
            }
        });
        for number in 1..=6 {
            let whole = text(number);
            let (part, rest) = whole.split_at(whole.len() / 2);
            let mut writer = fs::File::create(&temporary).unwrap();
            std::io::Write::write_all(&mut writer, part.as_bytes()).unwrap();
            pair.wait_for("a part", || {
                fs::metadata(&replica_temporary).is_ok_and(|there| there.len() == part.len() as u64)
            });
            pair.sink().kill9();
            let mut finish = || {
                std::io::Write::write_all(&mut writer, rest.as_bytes()).unwrap();
                fs::rename(&temporary, &file).unwrap();
            };
            if number % 2 == 0 {
                finish();
                pair.start_sink();
            } else {
                pair.start_sink();
                // It is connected again when something else comes.
                let sign = format!("sign-{number}");
                fs::write(pair.src.join(&sign), "").unwrap();
                pair.wait_for("the sign", || pair.dst.join(&sign).exists());
                finish();
            }
            drop(writer);
            pair.wait_for("the whole", || {
                fs::read(&replica_file).is_ok_and(|there| there == whole.as_bytes())
            });
        }
        done.store(true, Relaxed);
    });
    pair.converge();
}

#[test]
fn reader_of_a_file_exchanged_2_000_times() {
    // Both names hold whole versions at all times. A replica that lags exchanges what it has,
    // so an older version may come back for a moment; a part or a gap may not.
    reader_sees_whole_versions(2_000, 2, false, |file, temporary, number| {
        let third = temporary.with_file_name("third");
        fs::write(&third, version(number)).unwrap();
        fs::rename(&third, temporary).unwrap();
        common::operations::exchange(temporary, file).unwrap();
    });
}

/// A directory that appears in the replica is complete in its files: it was built aside.
#[test]
fn new_directories_appear_with_their_files() {
    let mut pair = Pair::new();
    pair.start();
    pair.wait_equal();
    for round in 0..50 {
        let staged = pair.outside.join("staged");
        fs::create_dir(&staged).unwrap();
        for file in 0..20 {
            fs::write(staged.join(file.to_string()), version(file)).unwrap();
        }
        let name = round.to_string();
        fs::rename(&staged, pair.src.join(&name)).unwrap();
        let replica = pair.dst.join(&name);
        pair.wait_for("the directory", || replica.is_dir());
        assert_eq!(fs::read_dir(&replica).unwrap().count(), 20, "round {round}");
    }
    pair.converge();
}
