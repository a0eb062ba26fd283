//! The journal against crashes, damage, full disks and slow readers.

mod crashes;
mod cursors;
mod damage;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use super::*;
use crate::model::{EpochId, Mark, Timestamp, TreePath, Watermarks, What};

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
        2 => Change::Through(Mark {
            watermarks: Watermarks {
                epoch: EpochId { counter: 7, random: 0xfeed },
                moved: Sequence(sequence),
                applied: Sequence(sequence / 2),
            },
            clock: Timestamp { seconds: 1_000_000 + sequence as i64, nanoseconds: 999_999_999 },
            reached: (!sequence.is_multiple_of(3)).then_some(Sequence(sequence)),
            is_whole: sequence % 4 == 2,
        }),
        3 => Change::Dirty { path: TreePath::root(), what: What::ATTRIBUTES },
        _ => Change::Dirty { path: path(format!("directory/{sequence}")), what: What::CONTENT },
    };
    let origin = (sequence % 10 < 5 && change.ends().is_some()).then_some(Sequence(sequence * 3));
    Record { sequence: Sequence(sequence), origin, change }
}

/// A record that takes about `bytes`.
fn long_record(sequence: u64, bytes: usize) -> Record {
    let names = vec![vec![b'n'; 100]; bytes.div_ceil(101)].join(&b'/');
    let path = TreePath::new(&names[..bytes.min(names.len())]).unwrap_or_default();
    Record::new(Sequence(sequence), Change::Dirty { path, what: What::CONTENT })
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
