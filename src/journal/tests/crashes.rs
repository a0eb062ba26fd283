//! What a crash may take, and what it may not.

use super::*;

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
