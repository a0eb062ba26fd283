//! The ring, and those who read it.

use super::*;

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
