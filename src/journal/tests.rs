//! The journal against crashes, damage, full disks and slow readers.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use super::*;
use crate::model::{EpochId, TreePath, What};

const TREE: TreeId = TreeId(0x0123_4567_89ab_cdef_0123_4567_89ab_cdef);

/// Compares `bytes` with a file of `tests/data`; with `MIRROR_BLESS` set, writes a missing one.
///
/// These files are never edited: journals and checkpoints of this version lie on disks.
pub(super) fn assert_golden(name: &str, bytes: &[u8]) {
    let path = golden(name);
    if std::env::var_os("MIRROR_BLESS").is_some() && !path.exists() {
        fs::write(&path, bytes).unwrap();
    }
    assert!(fs::read(&path).unwrap() == bytes, "{name} is not what is written now");
}

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data").join(name)
}

fn epoch(counter: u64) -> Epoch {
    Epoch {
        id: EpochId { counter, random: 0xfeed },
        parent: Some((EpochId { counter: counter - 1, random: 0xbeef }, Sequence(12))),
    }
}

fn record(sequence: u64) -> Record {
    let path = |text: String| TreePath::new(text).unwrap();
    let change = match sequence % 5 {
        0 => Change::Rename { from: path(format!("a/{sequence}")), to: path("b".into()) },
        1 => Change::Exchange { a: path("x".into()), b: path(format!("y/{sequence}")) },
        2 => Change::Through { sequence: Sequence(sequence / 2) },
        3 => Change::Dirty { path: TreePath::root(), what: What::ATTRIBUTES },
        _ => Change::Dirty { path: path(format!("directory/{sequence}")), what: What::CONTENT },
    };
    Record { sequence: Sequence(sequence), change }
}

/// A record that takes about `bytes`.
fn long_record(sequence: u64, bytes: usize) -> Record {
    let names = vec![vec![b'n'; 100]; bytes.div_ceil(101)].join(&b'/');
    let path = TreePath::new(&names[..bytes.min(names.len())]).unwrap_or_default();
    Record { sequence: Sequence(sequence), change: Change::Dirty { path, what: What::CONTENT } }
}

fn new_journal(directory: &Path) -> Journal {
    let mut journal = Journal::open(directory, 0).unwrap();
    journal.begin_epoch(TREE, epoch(7)).unwrap();
    journal
}

fn append(journal: &mut Journal, count: u64) -> Vec<Record> {
    let first = journal.next_sequence().0;
    let records: Vec<_> = (first..first + count).map(record).collect();
    records.iter().for_each(|record| journal.append(record));
    records
}

fn read_all(journal: &Journal, after: Sequence) -> Vec<Record> {
    let mut cursor = journal.cursor(after).expect("in the journal");
    let mut records = Vec::new();
    loop {
        let count = records.len();
        journal.read(&mut cursor, 100, &mut records).unwrap();
        if records.len() == count {
            return records;
        }
    }
}

fn files(directory: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    fs::read_dir(directory)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .map(|path| (path.clone(), fs::read(path).unwrap()))
        .collect()
}

fn restore(directory: &Path, files: &BTreeMap<PathBuf, Vec<u8>>) {
    for entry in fs::read_dir(directory).unwrap() {
        fs::remove_file(entry.unwrap().path()).unwrap();
    }
    for (path, bytes) in files {
        fs::write(path, bytes).unwrap();
    }
}

fn last_segment(directory: &Path) -> PathBuf {
    let mut names = files(directory).into_keys();
    names.rfind(|path| path.extension().is_some()).unwrap()
}

/// Fills the journal so that it has `count` segments, each of a few records.
fn fill_segments(journal: &mut Journal, count: usize) -> Vec<Record> {
    let mut records = Vec::new();
    while journal.segments.len() < count {
        let record = long_record(journal.next_sequence().0, 20_000);
        journal.append(&record);
        journal.commit().unwrap();
        records.push(record);
    }
    records
}

#[test]
fn a_closed_journal_goes_on_where_it_ended() {
    let temporary = tempfile::tempdir().unwrap();
    let directory = temporary.path().join("state/journal");
    let mut journal = Journal::open(&directory, 0).unwrap();
    assert_eq!(*journal.recovery(), Recovery::New);
    assert_eq!(journal.tree_and_epoch(), None);
    assert!(journal.cursor(Sequence(0)).is_none());
    journal.close().unwrap();

    journal = new_journal(&directory);
    assert_eq!((journal.head(), journal.next_sequence()), (Sequence(0), Sequence(1)));
    let mut all = append(&mut journal, 10);
    assert_eq!((journal.head(), journal.committed()), (Sequence(10), Sequence(0)));
    assert!(read_all(&journal, Sequence(0)).is_empty());
    journal.commit().unwrap();
    assert_eq!(read_all(&journal, Sequence(0)), all);
    all.extend(append(&mut journal, 5));
    journal.close().unwrap();

    for _ in 0..2 {
        let journal = Journal::open(&directory, 0).unwrap();
        assert_eq!(*journal.recovery(), Recovery::Clean);
        assert_eq!(journal.tree_and_epoch(), Some((TREE, epoch(7))));
        assert_eq!((journal.head(), journal.next_sequence()), (Sequence(15), Sequence(16)));
        assert_eq!(read_all(&journal, Sequence(0)), all);
        assert_eq!(read_all(&journal, Sequence(12)), all[12..]);
        assert!(journal.cursor(Sequence(16)).is_none());
        // Nothing was written, so dropping it is no unclean end.
    }
    let mut journal = Journal::open(&directory, 0).unwrap();
    all.extend(append(&mut journal, 5));
    journal.commit().unwrap();
    assert_eq!(read_all(&journal, Sequence(0)), all);
    assert_eq!(journal.segments.len(), 1);
    drop(journal);
    assert_eq!(*Journal::open(&directory, 0).unwrap().recovery(), Recovery::Unclean);
}

#[test]
fn a_torn_end_is_cut_off_wherever_it_is_torn() {
    let temporary = tempfile::tempdir().unwrap();
    let mut journal = new_journal(temporary.path());
    let kept = append(&mut journal, 7);
    journal.commit().unwrap();
    let path = last_segment(temporary.path());
    let whole = fs::metadata(&path).unwrap().len();
    append(&mut journal, 1);
    journal.commit().unwrap();
    drop(journal);
    let before = files(temporary.path());
    let length = before[&path].len() as u64;
    for torn in whole..length {
        for garbage in [0, 1, 300] {
            restore(temporary.path(), &before);
            let mut bytes = before[&path][..torn as usize].to_vec();
            bytes.extend(std::iter::repeat_n(0, garbage));
            fs::write(&path, bytes).unwrap();
            let mut journal = Journal::open(temporary.path(), 0).unwrap();
            assert_eq!(*journal.recovery(), Recovery::Unclean);
            assert_eq!(read_all(&journal, Sequence(0)), kept, "torn at {torn}");
            assert_eq!(fs::metadata(&path).unwrap().len(), whole);
            // Record 8 was there and is lost: its number is never given again, and who stands
            // there cannot go on, now or later.
            assert!(journal.next_sequence() > Sequence(8));
            assert!(journal.cursor(Sequence(8)).is_none());
            let more = append(&mut journal, 3);
            assert!(journal.cursor(Sequence(8)).is_none());
            journal.commit().unwrap();
            assert!(journal.cursor(Sequence(8)).is_none());
            assert_eq!(read_all(&journal, Sequence(7)), more);
            journal.close().unwrap();
            let journal = Journal::open(temporary.path(), 0).unwrap();
            assert!(journal.cursor(Sequence(8)).is_none());
            assert_eq!(read_all(&journal, Sequence(0)), [&kept[..], &more].concat());
        }
    }
}

#[test]
fn lost_numbers_stay_lost_through_a_clean_end() {
    let temporary = tempfile::tempdir().unwrap();
    let mut journal = new_journal(temporary.path());
    append(&mut journal, 3);
    journal.commit().unwrap();
    let kept = fs::read(last_segment(temporary.path())).unwrap();
    append(&mut journal, 3);
    journal.commit().unwrap();
    drop(journal);
    fs::write(last_segment(temporary.path()), kept).unwrap();
    // Two runs in which nothing happens.
    for recovery in [Recovery::Unclean, Recovery::Clean] {
        let mut journal = Journal::open(temporary.path(), 0).unwrap();
        assert_eq!(*journal.recovery(), recovery);
        journal.close().unwrap();
    }
    let mut journal = Journal::open(temporary.path(), 0).unwrap();
    assert!(journal.next_sequence() > Sequence(6));
    let more = append(&mut journal, 1);
    journal.commit().unwrap();
    assert!(journal.cursor(Sequence(5)).is_none());
    assert_eq!(read_all(&journal, Sequence(3)), more);
}

#[test]
fn no_flipped_bit_gives_a_wrong_record() {
    let temporary = tempfile::tempdir().unwrap();
    let mut journal = new_journal(temporary.path());
    let mut all = append(&mut journal, 4);
    journal.commit().unwrap();
    drop(journal);
    // A second segment: after an unclean end, the next record begins one.
    let mut journal = Journal::open(temporary.path(), 0).unwrap();
    all.extend(append(&mut journal, 4));
    journal.commit().unwrap();
    let used = journal.head();
    drop(journal);
    let before = files(temporary.path());
    assert_eq!(before.len(), 3);
    let (mut cut, mut discarded) = (0, 0);
    for (path, bytes) in &before {
        for bit in 0..bytes.len() * 8 {
            restore(temporary.path(), &before);
            let mut damaged = bytes.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            fs::write(path, damaged).unwrap();
            let place = format!("bit {bit} of {}", path.display());
            let journal = Journal::open(temporary.path(), 0).unwrap();
            match journal.recovery() {
                Recovery::Unclean => {
                    let records = read_all(&journal, Sequence(0));
                    assert!(all.starts_with(&records) && records.len() >= 4, "{place}");
                    assert!(records.len() < 8, "{place} went unnoticed");
                    assert!(journal.next_sequence() > used, "{place}");
                    cut += 1;
                }
                Recovery::Discarded { reason } => {
                    assert!(journal.tree_and_epoch().is_none());
                    let known = journal.known_at_open();
                    assert_eq!(known, Some((TREE, epoch(7))), "{place}: {reason}");
                    discarded += 1;
                }
                other => panic!("{place}: {other:?}"),
            }
        }
    }
    assert!(cut > 500 && discarded > 1000, "{cut} {discarded}");
}

#[test]
fn damage_in_the_middle_discards_and_names_the_file() {
    let temporary = tempfile::tempdir().unwrap();
    let mut journal = new_journal(temporary.path());
    fill_segments(&mut journal, 4);
    journal.close().unwrap();
    let before = files(temporary.path());
    let segments: Vec<_> =
        before.keys().filter(|path| path.extension().is_some()).cloned().collect();
    let discards = |what: &str, path: &Path| {
        let journal = Journal::open(temporary.path(), 0).unwrap();
        let Recovery::Discarded { reason } = journal.recovery() else {
            panic!("{what}: {:?}", journal.recovery());
        };
        assert!(reason.contains(path.to_str().unwrap()), "{what}: {reason}");
        // Until an epoch begins, it is as it was.
        assert!(files(temporary.path()).len() >= before.len() - 1, "{what}");
        drop(journal);
        let mut journal = Journal::open(temporary.path(), 0).unwrap();
        assert!(matches!(journal.recovery(), Recovery::Discarded { .. }), "{what}");
        journal.begin_epoch(TREE, epoch(8)).unwrap();
        assert_eq!(files(temporary.path()).len(), 2);
        drop(journal);
        let journal = Journal::open(temporary.path(), 0).unwrap();
        assert_eq!(journal.tree_and_epoch(), Some((TREE, epoch(8))));
        assert_eq!(journal.next_sequence(), Sequence(1));
        drop(journal);
        restore(temporary.path(), &before);
    };
    fs::remove_file(&segments[1]).unwrap();
    discards("a missing segment", &segments[2]);
    fs::write(&segments[1], &before[&segments[1]][..before[&segments[1]].len() - 1]).unwrap();
    discards("a cut segment", &segments[1]);
    fs::write(&segments[1], "").unwrap();
    discards("an empty segment", &segments[1]);
    fs::rename(&segments[1], segments[1].with_file_name("0000000000000002.segment")).unwrap();
    discards("a wrong name", &segments[1].with_file_name("0000000000000002.segment"));
    let reserved = temporary.path().join("reserved");
    fs::remove_file(&reserved).unwrap();
    discards("no reservation", &reserved);
    let stale = Reserved { tree: TREE, epoch: epoch(7), through: Sequence(1), closed: None };
    RESERVED.save(&Directory::open(temporary.path()).unwrap(), &stale).unwrap();
    discards("an old reservation", &reserved);
    // A crash cannot take what a clean end has promised.
    let last = &segments[3];
    fs::write(last, &before[last][..before[last].len() - 1]).unwrap();
    discards("a loss after a clean end", last);
}

#[test]
fn an_unknown_version_is_neither_read_nor_removed() {
    let temporary = tempfile::tempdir().unwrap();
    let mut journal = new_journal(temporary.path());
    append(&mut journal, 3);
    journal.close().unwrap();
    let before = files(temporary.path());
    let path = last_segment(temporary.path());
    let mut bytes = before[&path].clone();
    bytes[8] = 2;
    let checksum = crc32fast::hash(&bytes[..12]);
    bytes[12..16].copy_from_slice(&checksum.to_le_bytes());
    fs::write(&path, &bytes).unwrap();
    let error = Journal::open(temporary.path(), 0).unwrap_err();
    assert!(matches!(error, JournalError::UnknownVersion { version: 2, .. }), "{error}");
    assert!(error.to_string().contains("0000000000000001.segment"), "{error}");
    assert_eq!(fs::read(&path).unwrap(), bytes);

    restore(temporary.path(), &before);
    let directory = Directory::open(temporary.path()).unwrap();
    StateFile::new("reserved", 2).save(&directory, &1_u8).unwrap();
    let error = Journal::open(temporary.path(), 0).unwrap_err();
    assert!(matches!(error, JournalError::UnknownVersion { version: 2, .. }), "{error}");
}

#[test]
fn the_ring_stays_bounded_and_cursors_fall_off_by_name() {
    let temporary = tempfile::tempdir().unwrap();
    let mut journal = new_journal(temporary.path());
    let mut slow = journal.cursor(Sequence(0)).unwrap();
    let mut waiting = None;
    let mut records = Vec::new();
    for number in 1..400 {
        journal.append(&long_record(number, 12_000));
        journal.commit().unwrap();
        let total: usize = files(temporary.path()).values().map(Vec::len).sum();
        assert!(total as u64 <= JOURNAL_BYTES_MIN, "{total}");
        if journal.floor() == Sequence(0) {
            // Reads a little of the first segment, so that it has a buffer and a file.
            journal.read(&mut slow, usize::from(number == 2), &mut records).unwrap();
            if journal.segments.len() == 2 && waiting.is_none() {
                waiting = journal.cursor(journal.segments[0].last);
            }
        }
    }
    assert!(journal.floor() > Sequence(200));
    let error = journal.read(&mut slow, 10, &mut records).unwrap_err();
    assert!(
        matches!(error, ReadError::Fallen { after: Sequence(1), floor } if floor == journal.floor()),
        "{error}"
    );
    assert_eq!(records.len(), 1);
    assert!(journal.cursor(Sequence(journal.floor().0 - 1)).is_none());
    let first = read_all(&journal, journal.floor())[0].sequence;
    assert_eq!(first, journal.floor().next());
    assert!(journal.read(&mut waiting.unwrap(), 1, &mut records).is_err());

    let mut cursor = journal.cursor(journal.head()).unwrap();
    journal.begin_epoch(TREE, epoch(8)).unwrap();
    let error = journal.read(&mut cursor, 1, &mut records).unwrap_err();
    assert!(matches!(error, ReadError::Fallen { .. }), "{error}");
}

#[test]
fn a_cursor_that_read_a_segment_to_its_end_survives_its_drop() {
    let temporary = tempfile::tempdir().unwrap();
    let mut journal = new_journal(temporary.path());
    fill_segments(&mut journal, 3);
    let mut cursor = journal.cursor(Sequence(0)).unwrap();
    let mut records = Vec::new();
    let count = journal.segments[0].last.0 as usize;
    journal.read(&mut cursor, count, &mut records).unwrap();
    let total: u64 = journal.segments.iter().map(|segment| segment.length).sum();
    journal.drop_oldest(journal.bytes_max - total + 1).unwrap();
    assert_eq!(journal.floor(), cursor.after());
    journal.read(&mut cursor, 1, &mut records).unwrap();
    assert_eq!(records.last(), Some(&long_record(count as u64 + 1, 20_000)));
    // Now it stands in the middle of what is dropped next.
    let total: u64 = journal.segments.iter().map(|segment| segment.length).sum();
    journal.drop_oldest(journal.bytes_max - total + 1).unwrap();
    let error = journal.read(&mut cursor, 1, &mut records).unwrap_err();
    assert!(matches!(error, ReadError::Fallen { .. }), "{error}");
}

#[test]
fn cursors_see_every_record_once_while_the_journal_grows() {
    for seed in 0..4 {
        let mut random = fastrand::Rng::with_seed(seed);
        let temporary = tempfile::tempdir().unwrap();
        let mut journal = Journal::open(temporary.path(), 8 << 20).unwrap();
        journal.begin_epoch(TREE, epoch(7)).unwrap();
        let mut all: Vec<Record> = Vec::new();
        let mut cursors = vec![(journal.cursor(Sequence(0)).unwrap(), Vec::new(), 0)];
        for _ in 0..400 {
            match random.u32(0..10) {
                0..4 => {
                    for _ in 0..random.usize(0..60) {
                        // Numbers may be left out.
                        let number = journal.next_sequence().0 + u64::from(random.u8(0..10) / 9);
                        let record = if random.u8(0..30) == 0 {
                            long_record(number, random.usize(1..40_000))
                        } else {
                            record(number)
                        };
                        journal.append(&record);
                        all.push(record);
                    }
                }
                4..7 => journal.commit().unwrap(),
                7 if cursors.len() < 20 => {
                    let from = random.usize(0..=all.len());
                    let after = from.checked_sub(1).map_or(Sequence(0), |at| all[at].sequence);
                    let cursor = journal.cursor(after).expect("nothing was dropped");
                    cursors.push((cursor, Vec::new(), from));
                }
                _ => {
                    let (cursor, seen, _) = random.choice(&mut cursors).unwrap();
                    journal.read(cursor, random.usize(0..80), seen).unwrap();
                }
            }
        }
        journal.commit().unwrap();
        assert!(journal.segments.len() > 1 && journal.floor() == Sequence(0), "seed {seed}");
        for (cursor, seen, from) in &mut cursors {
            while cursor.after() < journal.head() {
                journal.read(cursor, 1000, seen).unwrap();
            }
            assert!(*seen == all[*from..], "seed {seed}, from {from}");
        }
        // The same from disk alone.
        journal.close().unwrap();
        let journal = Journal::open(temporary.path(), 8 << 20).unwrap();
        assert!(read_all(&journal, Sequence(0)) == all, "seed {seed}");
        for _ in 0..5 {
            let from = random.usize(1..all.len());
            assert!(read_all(&journal, all[from - 1].sequence) == all[from..], "seed {seed}");
        }
    }
}

#[test]
fn a_cursor_at_the_head_touches_no_file() {
    let temporary = tempfile::tempdir().unwrap();
    let mut journal = new_journal(temporary.path());
    let mut cursor = journal.cursor(Sequence(0)).unwrap();
    fs::remove_file(last_segment(temporary.path())).unwrap();
    let mut records = Vec::new();
    for _ in 0..10 {
        append(&mut journal, 10);
        journal.commit().unwrap();
        journal.read(&mut cursor, 100, &mut records).unwrap();
    }
    assert_eq!(records, (1..=100).map(record).collect::<Vec<_>>());
}

#[test]
fn the_tail_is_bounded_and_ends_with_the_segment() {
    let temporary = tempfile::tempdir().unwrap();
    let mut journal = Journal::open(temporary.path(), u64::MAX).unwrap();
    journal.begin_epoch(TREE, epoch(7)).unwrap();
    for burst in [1, 1, 30, 1, 80, 1, 200, 1, 30] {
        for _ in 0..burst {
            journal.append(&long_record(journal.next_sequence().0, 30_000));
        }
        let after = journal.committed();
        journal.commit().unwrap();
        assert_eq!(read_all(&journal, after).len(), burst);
    }
    assert_eq!(journal.segments.len(), 1);
    assert!(!journal.segments[0].index.is_empty());
    let after = Sequence(journal.head().0 - 60);
    assert_eq!(read_all(&journal, after).len(), 60);
    // Fewer come only if there are no more.
    let mut records = Vec::new();
    journal.read(&mut journal.cursor(Sequence(0)).unwrap(), usize::MAX, &mut records).unwrap();
    assert_eq!(records.len() as u64, journal.head().0);
}

#[test]
fn no_number_is_used_twice_whatever_a_crash_takes() {
    for seed in 0..40 {
        let mut random = fastrand::Rng::with_seed(seed);
        let temporary = tempfile::tempdir().unwrap();
        // What each number ever meant, and what is lost.
        let mut meaning: BTreeMap<Sequence, Change> = BTreeMap::new();
        let mut journal = new_journal(temporary.path());
        for _ in 0..12 {
            for _ in 0..random.u32(0..4) {
                for _ in 0..random.u32(0..5) {
                    let number = journal.next_sequence();
                    let record = long_record(number.0, random.usize(1..9000));
                    let before = meaning.insert(number, record.change.clone());
                    assert!(before.is_none(), "seed {seed}: {number} twice");
                    journal.append(&record);
                }
                journal.commit().unwrap();
            }
            if random.bool() {
                journal.close().unwrap();
                journal = Journal::open(temporary.path(), 0).unwrap();
                assert_eq!(*journal.recovery(), Recovery::Clean, "seed {seed}");
                continue;
            }
            let head = journal.head();
            let clean = journal.reserved == head;
            drop(journal);
            let path = last_segment(temporary.path());
            if !clean && random.bool() {
                // A power cut takes the end of the file, or all of a file that has a predecessor.
                let length = fs::metadata(&path).unwrap().len();
                let floor = if path.ends_with("0000000000000001.segment") { 104 } else { 0 };
                let file = fs::File::options().write(true).open(&path).unwrap();
                file.set_len(random.u64(floor..=length)).unwrap();
            }
            journal = Journal::open(temporary.path(), 0).unwrap();
            let recovery = journal.recovery().clone();
            assert!(!matches!(recovery, Recovery::Discarded { .. }), "seed {seed}: {recovery:?}");
            assert!(journal.next_sequence() > head, "seed {seed}");
            let lost: Vec<_> = meaning.keys().copied().filter(|at| *at > journal.head()).collect();
            journal.append(&record(journal.next_sequence().0));
            meaning.insert(journal.head(), record(journal.head().0).change);
            journal.commit().unwrap();
            for number in lost {
                assert!(journal.cursor(number).is_none(), "seed {seed}: {number}");
            }
            for record in read_all(&journal, journal.floor()) {
                assert_eq!(meaning[&record.sequence], record.change, "seed {seed}");
            }
        }
    }
}

#[test]
fn a_failed_commit_loses_nothing_and_can_be_repeated() {
    for seed in 0..10 {
        let mut random = fastrand::Rng::with_seed(seed);
        let temporary = tempfile::tempdir().unwrap();
        let mut journal = Journal::open(temporary.path(), 16 << 20).unwrap();
        journal.segment_bytes = 64 << 10;
        journal.begin_epoch(TREE, epoch(7)).unwrap();
        let mut all = Vec::new();
        let mut failures = 0;
        for _ in 0..40 {
            for _ in 0..random.u32(1..8) {
                let record = long_record(journal.next_sequence().0, random.usize(1..20_000));
                journal.append(&record);
                all.push(record);
            }
            journal.fault = random.bool().then(|| random.usize(0..30_000));
            let before = journal.committed();
            match journal.commit() {
                Ok(()) => assert_eq!(journal.buffered_bytes(), 0),
                Err(error) => {
                    failures += 1;
                    assert!(error.to_string().starts_with("cannot write "), "{error}");
                    assert!(journal.buffered_bytes() > 0 && journal.committed() >= before);
                    // What is committed can be read, and nothing else, now and after a crash.
                    let committed = all.iter().filter(|at| at.sequence <= journal.committed());
                    let committed: Vec<_> = committed.cloned().collect();
                    assert!(read_all(&journal, Sequence(0)) == committed, "seed {seed}");
                }
            }
        }
        assert!(failures > 0, "seed {seed}");
        journal.fault = None;
        journal.close().unwrap();
        let journal = Journal::open(temporary.path(), 16 << 20).unwrap();
        assert_eq!(*journal.recovery(), Recovery::Clean, "seed {seed}");
        assert!(read_all(&journal, Sequence(0)) == all, "seed {seed}");
    }
}

#[test]
fn what_stands_in_the_way_of_a_segment_or_a_reservation_is_named() {
    let temporary = tempfile::tempdir().unwrap();
    let mut journal = new_journal(temporary.path());
    let obstacle = temporary.path().join("reserved.new");
    fs::create_dir(&obstacle).unwrap();
    append(&mut journal, 2);
    let error = journal.commit().unwrap_err().to_string();
    assert!(error.contains(obstacle.to_str().unwrap()), "{error}");
    fs::remove_dir(&obstacle).unwrap();
    journal.commit().unwrap();
    // Three long records more fill the segment: the fourth begins another one.
    for number in 3..7 {
        journal.append(&long_record(number, 20_000));
    }
    let obstacle = temporary.path().join("0000000000000006.segment");
    fs::create_dir(&obstacle).unwrap();
    for _ in 0..2 {
        let error = journal.commit().unwrap_err().to_string();
        assert!(error.contains(obstacle.to_str().unwrap()), "{error}");
        assert_eq!(journal.committed(), Sequence(5));
    }
    fs::remove_dir(&obstacle).unwrap();
    journal.commit().unwrap();
    assert_eq!(journal.sync_later().unwrap().run().unwrap(), Sequence(6));
    assert_eq!(read_all(&journal, Sequence(0)).len(), 6);
}

#[test]
fn an_epoch_begins_after_a_crash_in_the_middle_of_beginning_it() {
    let temporary = tempfile::tempdir().unwrap();
    let mut journal = new_journal(temporary.path());
    append(&mut journal, 3);
    journal.close().unwrap();
    // The records were removed, and no more was done.
    fs::remove_file(last_segment(temporary.path())).unwrap();
    let mut journal = Journal::open(temporary.path(), 0).unwrap();
    assert!(matches!(journal.recovery(), Recovery::Discarded { .. }));
    assert_eq!(journal.known_at_open(), Some((TREE, epoch(7))));
    journal.begin_epoch(TREE, epoch(8)).unwrap();
    assert_eq!(append(&mut journal, 1)[0].sequence, Sequence(1));
    journal.close().unwrap();
}

#[test]
#[should_panic(expected = "3 < 4")]
fn sequences_must_rise() {
    let temporary = tempfile::tempdir().unwrap();
    let mut journal = new_journal(temporary.path());
    append(&mut journal, 3);
    journal.append(&record(3));
}

#[test]
fn the_format_is_the_one_of_version_1() {
    let temporary = tempfile::tempdir().unwrap();
    let mut journal = new_journal(temporary.path());
    let all = append(&mut journal, 12);
    journal.close().unwrap();
    let segment = temporary.path().join("0000000000000001.segment");
    let reserved = temporary.path().join("reserved");
    assert_golden("journal-v1.bin", &fs::read(&segment).unwrap());
    assert_golden("reserved-v1.bin", &fs::read(&reserved).unwrap());

    fs::copy(golden("journal-v1.bin"), &segment).unwrap();
    fs::copy(golden("reserved-v1.bin"), &reserved).unwrap();
    let journal = Journal::open(temporary.path(), 0).unwrap();
    assert_eq!(*journal.recovery(), Recovery::Clean);
    assert_eq!(journal.tree_and_epoch(), Some((TREE, epoch(7))));
    assert_eq!(read_all(&journal, Sequence(0)), all);
}
