//! Regular files: content, attributes, stages and links.

use std::os::unix::fs::FileExt;

use super::*;

#[test]
fn a_new_file_has_content_mode_and_time() {
    let mut fixture = Fixture::new();
    fixture.file("f", b"hello");
    assert_eq!(fixture.read("f"), b"hello");
    let stat = fixture.stat("f");
    assert_eq!((stat.mode() & 0o7777, stat.mtime(), stat.mtime_nsec()), (0o644, 5, 123_456_789));
    fixture.assert_clean();
}

#[test]
fn changed_content_comes_in_a_new_inode() {
    let mut fixture = Fixture::new();
    fixture.file("f", b"one");
    let before = std::fs::File::open(fixture.path("f")).unwrap();
    fixture.file("f", b"two");
    assert_ne!(before.metadata().unwrap().ino(), fixture.stat("f").ino());
    assert_eq!(fixture.read("f"), b"two");
    fixture.assert_clean();
}

#[test]
fn setuid_survives_a_change_of_owner() {
    if !is_root() {
        return;
    }
    let mut fixture = Fixture::new();
    let mut entry = regular(1);
    entry.metadata.mode = 0o6755;
    entry.metadata.uid = 1234;
    entry.metadata.gid = 4321;
    fixture.done(inline("new", entry.clone(), b"x"), b"x");
    fixture.file("old", b"y");
    fixture.done(state("old", entry), b"");
    for name in ["new", "old"] {
        let stat = fixture.stat(name);
        assert_eq!((stat.mode() & 0o7777, stat.uid(), stat.gid()), (0o6755, 1234, 4321));
    }
    assert_eq!(fixture.read("old"), b"y");
}

#[test]
fn keep_changes_attributes_in_place_and_needs_what_is_missing_or_of_another_size() {
    let mut fixture = Fixture::new();
    fixture.file("f", b"abc");
    let inode = fixture.stat("f").ino();
    let mut entry = regular(3);
    entry.metadata.mode = 0o600;
    fixture.done(state("f", entry.clone()), b"");
    let stat = fixture.stat("f");
    assert_eq!((stat.ino(), stat.mode() & 0o777, stat.mtime()), (inode, 0o600, 5));
    assert_eq!(fixture.apply(state("g", entry.clone()), b""), [(path("g"), true)]);
    entry.kind = Kind::Regular { size: 4 };
    assert_eq!(fixture.apply(state("f", entry), b""), [(path("f"), true)]);
}

/// A write of the same size may not have come yet when its time does.
#[test]
fn a_new_time_vouches_for_content_only_by_a_digest() {
    let mut fixture = Fixture::new();
    fixture.file("f", b"abc");
    let inode = fixture.stat("f").ino();
    let mut entry = regular(3);
    entry.metadata.mtime = seconds(99);
    assert_eq!(fixture.apply(state("f", entry.clone()), b""), [(path("f"), false)]);
    let linked = state_of(path("g"), entry.clone(), Content::Linked, &["f"]);
    assert_eq!(fixture.apply(linked, b""), [(path("g"), false)]);
    assert_eq!(fixture.mtime("f"), 5);
    let mut compared = |content: &[u8]| {
        let digest = Some(*blake3::hash(content).as_bytes());
        let item = state_of(path("f"), entry.clone(), Content::Compare { digest }, &[]);
        fixture.apply(item, b"")
    };
    assert_eq!(compared(b"abd"), [(path("f"), true)]);
    assert_eq!(compared(b"abc"), []);
    assert_eq!((fixture.stat("f").ino(), fixture.mtime("f")), (inode, 99));
}

#[test]
fn compare_needs_what_differs_in_time_digest_or_links() {
    let mut fixture = Fixture::new();
    fixture.file("f", b"abc");
    let compare = |entry: &Entry, digest| {
        state_of(path("f"), entry.clone(), Content::Compare { digest }, &[])
    };
    let entry = regular(3);
    let right = *blake3::hash(b"abc").as_bytes();
    fixture.done(compare(&entry, None), b"");
    fixture.done(compare(&entry, Some(right)), b"");
    assert_eq!(fixture.apply(compare(&entry, Some([7; 32])), b""), [(path("f"), true)]);
    let mut later = entry.clone();
    later.metadata.mtime.nanoseconds += 1;
    assert_eq!(fixture.apply(compare(&later, None), b""), [(path("f"), true)]);
    std::fs::hard_link(fixture.path("f"), fixture.path("g")).unwrap();
    assert_eq!(fixture.apply(compare(&entry, None), b""), [(path("f"), true)]);
}

#[test]
fn compare_needs_a_file_that_has_more_names_here_than_upstream() {
    let mut fixture = Fixture::new();
    let group = state_of(path("a"), regular(3), Content::Inline { length: 3 }, &["b", "c", "d"]);
    fixture.done(group, b"abc");
    let compare = |at: &str, links: &[&str]| {
        state_of(path(at), regular(3), Content::Compare { digest: None }, links)
    };
    fixture.done(compare("a", &["b", "c", "d"]), b"");
    // Two files by now, of the same content and time.
    assert_eq!(fixture.apply(compare("a", &["b"]), b""), [(path("a"), true)]);
    let half = state_of(path("a"), regular(3), Content::Inline { length: 3 }, &["b"]);
    fixture.done(half, b"abc");
    fixture.done(compare("a", &["b"]), b"");
    fixture.done(compare("c", &["d"]), b"");
    assert_eq!(fixture.stat("a").ino(), fixture.stat("b").ino());
    assert_ne!(fixture.stat("a").ino(), fixture.stat("c").ino());
    // A name that is not here yet is made, and says nothing against the others.
    fixture.done(compare("c", &["d", "e"]), b"");
    assert_eq!(fixture.stat("e").ino(), fixture.stat("c").ino());
}

#[test]
fn acls_and_attributes_are_set_changed_and_removed() {
    let mut fixture = Fixture::new();
    let mut entry = regular(1);
    entry.metadata.xattrs =
        vec![xattr("system.posix_acl_access", &acl(1000)), xattr("user.a", b"1")];
    fixture.done(inline("f", entry.clone(), b"x"), b"x");
    let stored = xattrs_of(&fixture.path("f"));
    if stored.is_empty() {
        eprintln!("this file system holds no attributes");
        return;
    }
    assert_eq!(stored, entry.metadata.xattrs);
    entry.metadata.xattrs = vec![xattr("user.a", b"2"), xattr("user.b", &[0; 2000])];
    fixture.done(state("f", entry.clone()), b"");
    assert_eq!(xattrs_of(&fixture.path("f")), entry.metadata.xattrs);
    assert_eq!(fixture.stat("f").mode() & 0o777, 0o644);
    entry.metadata.xattrs.clear();
    fixture.done(state("f", entry), b"");
    assert_eq!(xattrs_of(&fixture.path("f")), []);
}

#[test]
fn a_default_acl_does_not_leak_into_new_entries() {
    let mut fixture = Fixture::new();
    let mut entry = directory(3);
    entry.metadata.xattrs = vec![xattr("system.posix_acl_default", &acl(1000))];
    fixture.done(state("d", entry), b"");
    fixture.file("d/in_place", b"x");
    fixture.directory("d/below");
    fixture.flush();
    fixture.file("d/later", b"x");
    fixture.flush();
    for name in ["d/in_place", "d/below", "d/later"] {
        assert_eq!(xattrs_of(&fixture.path(name)), [], "{name}");
    }
}

#[test]
fn a_sparse_stage_keeps_its_holes() {
    let mut fixture = Fixture::new();
    // To digest the holes as well would take minutes.
    let size = 1 << 40;
    let digest = digest_of(size, &[(1 << 20, b"hello")]);
    let stage = StageId(1);
    fixture.done(Item::StageOpen { stage, size, path: path("big") }, b"");
    fixture.done(Item::StageData { stage, offset: 1 << 20, length: 5 }, b"hello");
    assert!(!fixture.exists("big"));
    let entry = regular(size);
    fixture.done(state_of(path("big"), entry, Content::Staged { stage, digest }, &[]), b"");
    let (file, mut read) = (std::fs::File::open(fixture.path("big")).unwrap(), [1; 7]);
    file.read_exact_at(&mut read, (1 << 20) - 1).unwrap();
    assert_eq!((&read, fixture.stat("big").len()), (b"\0hello\0", size));
    assert!(fixture.stat("big").blocks() < 1000);
    assert_eq!(fixture.stat("big").mode() & 0o777, 0o644);
    fixture.assert_clean();
}

#[test]
fn a_stage_of_another_digest_or_none_is_a_failure() {
    let mut fixture = Fixture::new();
    let staged =
        |stage, digest| state_of(path("f"), regular(4), Content::Staged { stage, digest }, &[]);
    let stage = StageId(9);
    let fails = |fixture: &mut Fixture| {
        let error = fixture.try_apply(staged(stage, [0; 32]), b"").unwrap_err();
        assert_eq!((error.path.clone(), error.is_protocol()), (path("f"), false), "{error}");
        assert_eq!(fixture.replica.take_needs(), [], "what failed is asked for after a pause");
    };
    fails(&mut fixture);
    fixture.done(Item::StageOpen { stage, size: 4, path: path("f") }, b"");
    fixture.done(Item::StageData { stage, offset: 0, length: 4 }, b"abcd");
    fails(&mut fixture);
    fixture.assert_clean();
    // Chunks may come out of order.
    fixture.done(Item::StageOpen { stage, size: 4, path: path("f") }, b"");
    fixture.done(Item::StageData { stage, offset: 2, length: 2 }, b"cd");
    fixture.done(Item::StageData { stage, offset: 0, length: 2 }, b"ab");
    fixture.done(staged(stage, digest_of(4, &[(2, b"cd"), (0, b"ab")])), b"");
    assert_eq!(fixture.read("f"), b"abcd");
    let beyond = Item::StageData { stage: StageId(2), offset: u64::MAX, length: 1 };
    fixture.done(Item::StageOpen { stage: StageId(2), size: 4, path: path("f") }, b"");
    assert!(fixture.try_apply(beyond, b"x").unwrap_err().is_protocol());
    fixture.replica.drop_stages();
    fixture.assert_clean();
}

#[test]
fn a_group_of_links_stays_one_inode_when_content_changes() {
    let mut fixture = Fixture::new();
    fixture.directory("d");
    let group = |content: &'static [u8]| {
        let length = content.len() as u32;
        state_of(path("a"), regular(length.into()), Content::Inline { length }, &["b", "d/c"])
    };
    fixture.done(group(b"one"), b"one");
    fixture.done(group(b"three"), b"three");
    fixture.flush();
    for name in ["a", "b", "d/c"] {
        assert_eq!(fixture.read(name), b"three");
        assert_eq!(
            (fixture.stat(name).ino(), fixture.stat(name).nlink()),
            (fixture.stat("a").ino(), 3)
        );
    }
    assert_eq!(fixture.mtime("d"), 10);
    fixture.assert_clean();
}

#[test]
fn linked_makes_another_name_and_needs_a_missing_first() {
    let mut fixture = Fixture::new();
    fixture.file("a", b"abc");
    fixture.file("b", b"old");
    let linked = |at: &str, first: &str| state_of(path(at), regular(3), Content::Linked, &[first]);
    fixture.done(linked("b", "a"), b"");
    fixture.done(linked("b", "a"), b"");
    assert_eq!(fixture.stat("a").ino(), fixture.stat("b").ino());
    assert_eq!(fixture.apply(linked("b", "none"), b""), [(path("b"), true)]);
    assert_eq!(fixture.apply(linked("b", "none/none"), b""), [(path("b"), true)]);
    fixture.assert_clean();
}

#[test]
fn keep_unites_names_of_the_same_size_only() {
    let mut fixture = Fixture::new();
    fixture.file("a", b"abc");
    fixture.file("b", b"abc");
    fixture.file("c", b"other");
    let item = state_of(path("a"), regular(3), Content::Keep, &["b", "c", "d"]);
    assert_eq!(fixture.apply(item, b""), [(path("c"), true)]);
    for name in ["b", "d"] {
        assert_eq!(fixture.stat(name).ino(), fixture.stat("a").ino());
    }
    assert_eq!(fixture.read("c"), b"other");
}

/// As many as may be on their way; more would break the protocol.
#[test]
fn a_stage_that_fails_is_given_up_and_so_is_its_commit() {
    let mut fixture = Fixture::new();
    let (size, digest) = (1u64 << 20, [0; 32]);
    let content = |number| Content::Staged { stage: StageId(number), digest };
    for number in 0..=crate::model::limits::TRANSFERS_MAX as u64 {
        let at = format!("f{number}");
        let stage = StageId(number);
        fixture.done(Item::StageOpen { stage, size, path: path(&at) }, b"");
        // Its chunks cannot be written.
        fixture.replica.stages.get_mut(&stage).unwrap().make_read_only();
        let chunk = Item::StageData { stage, offset: 0, length: 1 };
        let error = fixture.try_apply(chunk.clone(), b"x").unwrap_err();
        assert_eq!(error.path, path(&at));
        fixture.assert_clean();
        fixture.done(chunk, b"x");
        let state = state_of(path(&at), regular(size), content(number), &[]);
        let error = fixture.try_apply(state, b"").unwrap_err();
        assert_eq!((error.path.clone(), error.is_protocol()), (path(&at), false), "{error}");
    }
    // Complete, but it cannot be put in place.
    let digest = digest_of(1, &[(0, b"x")]);
    for number in 10..=10 + crate::model::limits::TRANSFERS_MAX as u64 {
        let stage = StageId(number);
        fixture.done(Item::StageOpen { stage, size: 1, path: path("g") }, b"");
        fixture.done(Item::StageData { stage, offset: 0, length: 1 }, b"x");
        let directory = fixture.path(".mirror/stage");
        std::fs::remove_file(directory.join(&names(&directory)[0])).unwrap();
        let content = Content::Staged { stage, digest };
        fixture.try_apply(state_of(path("g"), regular(1), content, &[]), b"").unwrap_err();
    }
}
