//! Files that are not what the journal wrote.

use super::*;

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
    assert!(matches!(error, FileError::UnknownVersion { version: 2, .. }), "{error}");
    assert!(error.to_string().contains("0000000000000001.segment"), "{error}");
    assert_eq!(fs::read(&path).unwrap(), bytes);

    restore(temporary.path(), &before);
    let directory = Directory::open(temporary.path()).unwrap();
    StateFile::new("reserved", 2).save(&directory, &1_u8).unwrap();
    let error = Journal::open(temporary.path(), 0).unwrap_err();
    assert!(matches!(error, FileError::UnknownVersion { version: 2, .. }), "{error}");
    assert!(error.to_string().ends_with("or move the journal away"), "{error}");
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
