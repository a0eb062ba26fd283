//! What a hostile upstream, a planted link or a reader at the wrong moment must not get.

use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::{Mode, OFlags};

use super::*;
use crate::tree::replica::ReplicaError;

#[test]
fn a_reader_never_sees_a_gap_or_a_part() {
    let mut fixture = Fixture::new();
    let content = |number: usize| vec![b'a' + (number % 26) as u8; 10_000];
    fixture.file("f", &content(0));
    let stop = AtomicBool::new(false);
    let target = fixture.path("f");
    std::thread::scope(|scope| {
        let reader = scope.spawn(|| {
            let mut reads = 0;
            while !stop.load(Ordering::Relaxed) {
                let seen = std::fs::read(&target).expect("there is always a file");
                assert_eq!(seen.len(), 10_000);
                assert!(seen.iter().all(|byte| *byte == seen[0]));
                reads += 1;
            }
            reads
        });
        for number in 0..2_000 {
            fixture.file("f", &content(number));
        }
        stop.store(true, Ordering::Relaxed);
        assert!(reader.join().unwrap() > 0);
    });
}

#[test]
fn a_symlink_at_a_parent_is_not_followed() {
    let outside = tempfile::tempdir().unwrap();
    std::fs::write(outside.path().join("f"), b"precious").unwrap();
    let plant = |fixture: &Fixture| {
        let _ = std::fs::remove_dir_all(fixture.path("d"));
        let _ = std::fs::remove_file(fixture.path("d"));
        std::os::unix::fs::symlink(outside.path(), fixture.path("d")).unwrap();
    };
    let mut fixture = Fixture::new();
    plant(&fixture);
    fixture.done(absent("d/f"), b"");
    plant(&fixture);
    let names = Item::Names { path: path("d"), after: vec![], names: vec![], last: true };
    fixture.done(names, b"");
    for item in [rename(1, "d/f", "g"), state("d/f", regular(8)), inline("d/f", regular(1), b"x")] {
        plant(&fixture);
        let raw: &[u8] = if matches!(item, Item::State { content: Content::Inline { .. }, .. }) {
            b"x"
        } else {
            b""
        };
        assert!(!fixture.apply(item, raw).is_empty());
        fixture.flush();
    }
    assert!(fixture.stat("d").is_dir(), "the link gave way to a placeholder");
    assert_eq!(std::fs::read(outside.path().join("f")).unwrap(), b"precious");
    assert_eq!(super::names(outside.path()), ["f"]);
}

#[test]
fn a_symlink_at_the_last_name_is_replaced_and_not_followed() {
    let outside = tempfile::tempdir().unwrap();
    let precious = outside.path().join("f");
    std::fs::write(&precious, b"precious").unwrap();
    let before = std::fs::metadata(&precious).unwrap();
    let mut fixture = Fixture::new();
    std::os::unix::fs::symlink(&precious, fixture.path("l")).unwrap();
    assert_eq!(fixture.apply(state("l", regular(8)), b""), [(path("l"), true)]);
    let mut link = symlink(precious.to_str().unwrap().as_bytes());
    link.metadata.mode = 0o600;
    fixture.done(state("l", link), b"");
    fixture.file("l", b"own");
    assert!(fixture.stat("l").is_file());
    let after = std::fs::metadata(&precious).unwrap();
    assert_eq!((before.mode(), before.mtime()), (after.mode(), after.mtime()));
    assert_eq!(std::fs::read(&precious).unwrap(), b"precious");
}

#[test]
fn reserved_names_the_root_and_senseless_items_are_refused() {
    let mut fixture = Fixture::new();
    let bad_entry = |change: fn(&mut Entry)| {
        let mut entry = regular(0);
        change(&mut entry);
        state("f", entry)
    };
    let items = [
        absent(".mirror"),
        absent(".mirror/lock"),
        absent("a/.mirror-stage-1"),
        absent(""),
        rename(1, "", "a"),
        rename(1, "a", ".mirror/stage/x"),
        exchange(1, "a", ""),
        state(".mirror", directory(1)),
        state("", regular(0)),
        state_of(path("a"), regular(0), Content::Keep, &[".mirror/x"]),
        state_of(path("a"), regular(0), Content::Linked, &[]),
        state_of(path("a"), symlink(b"x"), Content::Inline { length: 0 }, &[]),
        state_of(path("a"), directory(1), Content::Keep, &["b"]),
        state("a", symlink(b"")),
        state("a", symlink(b"x\0y")),
        inline("a", regular(2), b"x"),
        bad_entry(|entry| entry.metadata.uid = u32::MAX),
        bad_entry(|entry| entry.metadata.gid = u32::MAX),
        bad_entry(|entry| entry.metadata.mode = 0o100_644),
        bad_entry(|entry| entry.metadata.mtime.nanoseconds = (1 << 30) - 1),
        bad_entry(|entry| entry.metadata.xattrs = vec![xattr("user.\0", b"")]),
        Item::StageData { stage: StageId(1), offset: 0, length: 2 },
        Item::Names { path: path(".mirror/stage"), after: vec![], names: vec![], last: true },
    ];
    for item in items {
        let error = fixture.try_apply(item.clone(), b"x").unwrap_err();
        assert!(error.is_protocol() && !error.is_transient(), "{item:?}: {error}");
    }
    // Deeper down, the name of the replica's own directory is like any other.
    fixture.directory("a");
    fixture.file("a/.mirror", b"x");
    fixture.file(".mirrored", b"x");
}

#[test]
fn a_second_process_is_kept_out() {
    let fixture = Fixture::new();
    let second = Replica::open(fixture.directory.path());
    assert!(matches!(second, Err(ReplicaError::Locked { .. })));
}

#[test]
fn a_control_directory_that_is_a_link_is_refused() {
    let outside = tempfile::tempdir().unwrap();
    let directory = tempfile::tempdir().unwrap();
    std::os::unix::fs::symlink(outside.path(), directory.path().join(".mirror")).unwrap();
    assert!(matches!(Replica::open(directory.path()), Err(ReplicaError::Io { .. })));
    assert!(names(outside.path()).is_empty());
}

#[test]
fn names_need_not_be_text_and_paths_not_short() {
    let mut fixture = Fixture::new();
    let mut deep = TreePath::root();
    let name = [0xff, 0xfe, b'\n', b' '].repeat(60);
    for _ in 0..40 {
        deep = deep.join(&name);
        fixture.done(state_of(deep.clone(), directory(10), Content::Keep, &[]), b"");
    }
    assert!(deep.as_bytes().len() > 8_000);
    let file = deep.join(b"\xf0f");
    let content = Content::Inline { length: 1 };
    fixture.done(state_of(file.clone(), regular(1), content, &[]), b"x");
    fixture.flush();
    fixture.done(state_of(file.clone(), regular(1), content, &[]), b"y");
    fixture.flush();
    let parent = fixture.replica.root().open_directory(&deep).unwrap();
    assert_eq!(crate::tree::root::stat_fd(&parent).unwrap().stx_mtime.tv_sec, 10);
    let fd = rustix::fs::openat(&parent, &b"\xf0f"[..], OFlags::RDONLY, Mode::empty()).unwrap();
    assert_eq!(std::io::read_to_string(std::fs::File::from(fd)).unwrap(), "y");
    let top = TreePath::new(&name[..]).unwrap();
    fixture.done(Item::Absent { path: top, parent_mtime: None }, b"");
    while fixture.replica.empty_trash(7) {}
    assert!(names(&fixture.path(".mirror/trash")).is_empty());
}

#[test]
fn errors_of_the_whole_replica_are_told_from_those_of_an_entry() {
    let error = |errno: rustix::io::Errno| ApplyError::new(&path("f"), "create", errno.into());
    assert!(error(rustix::io::Errno::NOSPC).is_transient());
    assert!(error(rustix::io::Errno::IO).is_transient());
    assert!(!error(rustix::io::Errno::PERM).is_transient());
    assert_eq!(
        error(rustix::io::Errno::PERM).to_string(),
        "cannot create f: Operation not permitted (os error 1)"
    );
}

/// To be run as another user than root, whom no mode keeps out.
#[test]
fn directories_of_our_own_are_opened_up_and_closed_again() {
    if is_root() {
        return;
    }
    let closed = |mode| {
        let mut entry = directory(10);
        entry.metadata.mode = mode;
        entry
    };
    let mut fixture = Fixture::new();
    fixture.done(state("a", closed(0o555)), b"");
    fixture.done(state("a/b", closed(0)), b"");
    fixture.file("a/b/f", b"x");
    fixture.flush();
    assert_eq!((fixture.stat("a").mode() & 0o777, fixture.mtime("a")), (0o555, 10));
    fixture.file("a/b/f", b"y");
    fixture.file("a/b/g", b"y");
    fixture.flush();
    fixture.done(rename(1, "a/b", "b"), b"");
    fixture.flush();
    assert_eq!((fixture.stat("b").mode() & 0o777, fixture.mtime("b")), (0, 10));
    assert_eq!((fixture.stat("a").mode() & 0o777, fixture.mtime("a")), (0o555, 10));
    fixture.done(absent("b/g"), b"");
    fixture.done(absent("b"), b"");
    fixture.done(absent("a"), b"");
    while fixture.replica.empty_trash(3) {}
    assert_eq!(names(fixture.directory.path()), [".mirror"]);
    assert!(names(&fixture.path(".mirror/trash")).is_empty());
    // An owner that we cannot give is passed over, and setuid with it.
    let mut entry = regular(1);
    entry.metadata.uid = 0;
    entry.metadata.mode = 0o6755;
    fixture.done(inline("f", entry, b"x"), b"x");
    assert_eq!(fixture.stat("f").mode() & 0o7777, 0o2755);
    assert_eq!(fixture.replica.refused(), 1);
}
