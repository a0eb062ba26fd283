//! Kinds of entries, and every change of one into another.

use super::*;

fn entries() -> Vec<(Entry, &'static [u8])> {
    let special = |kind| Entry { kind, metadata: metadata(0o640, 7) };
    let mut all: Vec<(Entry, &[u8])> = vec![
        (regular(7), b"content"),
        (directory(8), b""),
        (symlink(b"one"), b""),
        (symlink(b"two/../..//x"), b""),
        (special(Kind::Fifo), b""),
        (special(Kind::Socket), b""),
    ];
    if is_root() {
        all.push((special(Kind::CharDevice { major: 1, minor: 3 }), b""));
        all.push((special(Kind::CharDevice { major: 1, minor: 5 }), b""));
        all.push((special(Kind::BlockDevice { major: 7, minor: 300 }), b""));
    }
    all
}

/// What is at `at`, as a reader would tell it.
fn observed(fixture: &Fixture, at: &str) -> Entry {
    let root = fixture.replica.root();
    let stat = crate::tree::root::stat_at(root, at.as_bytes()).unwrap();
    let target = || Ok(rustix::fs::readlinkat(root, at, []).unwrap().into_bytes());
    let kind = crate::tree::metadata::entry_kind(&stat, target).unwrap();
    let mtime = crate::tree::metadata::timestamp(stat.stx_mtime);
    let mode = crate::tree::metadata::mode_bits(&stat);
    let xattrs = crate::tree::metadata::read_xattrs_at(root, at.as_bytes(), |_| ()).unwrap();
    let metadata = Metadata { mode, uid: stat.stx_uid, gid: stat.stx_gid, mtime, xattrs };
    Entry { kind, metadata }
}

fn put(fixture: &mut Fixture, at: &str, entry: &Entry, raw: &[u8]) {
    let content = match entry.kind {
        Kind::Regular { .. } => Content::Inline { length: raw.len() as u32 },
        _ => Content::Keep,
    };
    fixture.done(state_of(path(at), entry.clone(), content, &[]), raw);
    fixture.flush();
}

#[test]
fn every_kind_replaces_every_kind() {
    let mut fixture = Fixture::new();
    for (before, raw_before) in entries() {
        for (after, raw_after) in entries() {
            put(&mut fixture, "x", &before, raw_before);
            if before.is_directory() {
                fixture.file("x/full", b"");
                fixture.flush();
            }
            put(&mut fixture, "x", &after, raw_after);
            assert_eq!(observed(&fixture, "x"), after, "instead of {before:?}");
            fixture.assert_clean();
            fixture.done(absent("x"), b"");
        }
    }
}

#[test]
fn equal_special_entries_keep_their_inode_and_get_attributes() {
    let mut fixture = Fixture::new();
    for (mut entry, raw) in entries().split_off(2) {
        put(&mut fixture, "x", &entry, raw);
        let inode = fixture.stat("x").ino();
        entry.metadata.mtime = seconds(1234);
        if !matches!(entry.kind, Kind::Symlink { .. }) {
            entry.metadata.mode = 0o2611;
        }
        if is_root() {
            entry.metadata.uid = 77;
            entry.metadata.gid = 78;
            entry.metadata.xattrs = vec![xattr("trusted.a", b"1")];
        }
        put(&mut fixture, "x", &entry, raw);
        assert_eq!(observed(&fixture, "x"), entry);
        assert_eq!(fixture.stat("x").ino(), inode);
        fixture.done(absent("x"), b"");
    }
}

#[test]
fn special_entries_are_parted_from_names_that_they_do_not_have_upstream() {
    let mut fixture = Fixture::new();
    for (entry, _) in entries().split_off(2) {
        let state = |at: &str, content: Content, links: &[&str]| {
            state_of(path(at), entry.clone(), content, links)
        };
        let compare = Content::Compare { digest: None };
        fixture.done(state("a", Content::Keep, &["b", "c", "d"]), b"");
        let inode = fixture.stat("a").ino();
        // Not all names need be told with attributes alone.
        fixture.done(state("a", Content::Keep, &["b"]), b"");
        fixture.done(state("a", compare, &["b", "c", "d"]), b"");
        assert_eq!((fixture.stat("a").ino(), fixture.stat("a").nlink()), (inode, 4));
        // One that has no other names is another one.
        fixture.done(state("d", Content::Keep, &[]), b"");
        assert_eq!((fixture.stat("d").nlink(), fixture.stat("a").nlink()), (1, 3));
        // So are two of all three.
        fixture.done(state("b", compare, &["c"]), b"");
        assert_eq!(fixture.stat("b").ino(), fixture.stat("c").ino());
        assert_eq!((fixture.stat("a").ino(), fixture.stat("a").nlink()), (inode, 1));
        for name in ["a", "b", "c", "d"] {
            assert_eq!(observed(&fixture, name), entry);
            fixture.done(absent(name), b"");
        }
    }
}

#[test]
fn special_entries_are_made_in_place_in_a_staged_directory() {
    let mut fixture = Fixture::new();
    fixture.directory("d");
    for (number, (entry, _)) in entries().split_off(2).into_iter().enumerate() {
        fixture.done(state(&format!("d/{number}"), entry), b"");
    }
    assert!(!fixture.exists("d"));
    fixture.flush();
    assert_eq!(names(&fixture.path("d")).len(), entries().len() - 2);
    assert_eq!(fixture.mtime("d"), 10);
}
