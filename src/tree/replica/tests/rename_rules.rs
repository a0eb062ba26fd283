//! Renames, exchanges and the marker.

use super::*;
use crate::tree::replica::Moved;

fn marker_names(fixture: &Fixture) -> Vec<String> {
    let mut all = names(&fixture.path(".mirror"));
    all.retain(|name| name.starts_with("moved"));
    all
}

#[test]
fn a_rename_moves_and_keeps_the_times_of_both_directories() {
    let mut fixture = Fixture::new();
    fixture.directory("a");
    fixture.file("a/f", b"x");
    fixture.directory("b");
    fixture.flush();
    let inode = fixture.stat("a/f").ino();
    fixture.done(rename(4, "a/f", "b/g"), b"");
    fixture.flush();
    assert_eq!(fixture.stat("b/g").ino(), inode);
    assert!(!fixture.exists("a/f"));
    assert_eq!((fixture.mtime("a"), fixture.mtime("b")), (10, 10));
    assert_eq!(marker_names(&fixture), [format!("moved-4-{inode}")]);
}

#[test]
fn a_rename_of_a_directory_takes_pending_times_along() {
    let mut fixture = Fixture::new();
    fixture.directory("a");
    fixture.directory("a/b");
    fixture.file("a/b/f", b"x");
    fixture.directory("a/c");
    fixture.done(rename(1, "a", "z"), b"");
    fixture.file("z/b/g", b"x");
    fixture.flush();
    for at in ["z", "z/b", "z/c"] {
        assert_eq!(fixture.mtime(at), 10, "{at}");
    }
}

#[test]
fn a_rename_replaces_whatever_is_there() {
    let mut fixture = Fixture::new();
    let mut sequence = 0;
    let make = |fixture: &mut Fixture, at: &str, kind: &str| match kind {
        "file" => fixture.file(at, b"x"),
        "empty" => fixture.directory(at),
        _ => {
            fixture.directory(at);
            fixture.file(&format!("{at}/f"), b"y");
        }
    };
    for from in ["file", "empty", "full"] {
        for to in ["file", "empty", "full"] {
            make(&mut fixture, "from", from);
            make(&mut fixture, "to", to);
            fixture.flush();
            let inode = fixture.stat("from").ino();
            sequence += 1;
            fixture.done(rename(sequence, "from", "to"), b"");
            assert!(!fixture.exists("from"));
            assert_eq!(fixture.stat("to").ino(), inode, "{from} over {to}");
            fixture.done(absent("to"), b"");
        }
    }
}

#[test]
fn a_rename_of_nothing_needs_its_target_and_leaves_it() {
    let mut fixture = Fixture::new();
    fixture.file("to", b"old");
    assert_eq!(fixture.apply(rename(3, "from", "to"), b""), [(path("to"), true)]);
    assert_eq!(fixture.apply(rename(4, "a/b", "c/d"), b""), [(path("c/d"), true)]);
    assert_eq!(fixture.read("to"), b"old");
    assert_eq!(marker_names(&fixture), ["moved-4-0"]);
}

#[test]
fn a_rename_between_two_links_removes_the_first() {
    let mut fixture = Fixture::new();
    fixture.file("a", b"x");
    std::fs::hard_link(fixture.path("a"), fixture.path("b")).unwrap();
    fixture.done(rename(1, "a", "b"), b"");
    assert!(!fixture.exists("a"));
    assert_eq!(fixture.read("b"), b"x");
}

#[test]
fn a_rename_into_itself_needs_both_ends() {
    let mut fixture = Fixture::new();
    fixture.directory("a");
    fixture.directory("a/b");
    let both = |a: &str, b: &str| [(path(a), false), (path(b), false)];
    assert_eq!(fixture.apply(rename(1, "a", "a/b/c"), b""), both("a", "a/b/c"));
    assert_eq!(fixture.apply(rename(2, "a/b", "a"), b""), both("a/b", "a"));
    assert_eq!(fixture.apply(exchange(3, "a/b", "a"), b""), both("a/b", "a"));
    assert!(fixture.exists("a/b"));
}

#[test]
fn a_rename_makes_missing_parents_and_needs_them() {
    let mut fixture = Fixture::new();
    fixture.file("f", b"x");
    assert_eq!(fixture.apply(rename(1, "f", "a/b/f"), b""), [(path("a"), false)]);
    assert_eq!(fixture.read("a/b/f"), b"x");
}

#[test]
fn an_exchange_swaps_moves_the_only_one_or_needs_both() {
    let mut fixture = Fixture::new();
    fixture.file("f", b"x");
    fixture.directory("d");
    fixture.file("d/g", b"y");
    fixture.done(exchange(1, "f", "d"), b"");
    assert_eq!((fixture.read("d"), fixture.read("f/g")), (b"x".to_vec(), b"y".to_vec()));
    fixture.flush();
    assert_eq!(fixture.mtime("f"), 10);
    assert_eq!(fixture.apply(exchange(2, "f", "none"), b""), [(path("f"), true)]);
    assert_eq!(fixture.read("none/g"), b"y");
    assert_eq!(fixture.apply(exchange(3, "nil", "d"), b""), [(path("d"), true)]);
    assert_eq!(fixture.read("nil"), b"x");
    let needs = fixture.apply(exchange(4, "p", "q"), b"");
    assert_eq!(needs, [(path("p"), true), (path("q"), true)]);
}

/// I2: a part must not take the place of a whole file, which stays until the whole one comes.
#[test]
fn an_unfinished_file_replaces_none() {
    let mut fixture = Fixture::new();
    for at in ["part", "to", "other", "log", "whole"] {
        fixture.file(at, at.as_bytes());
    }
    let unfinished = |at: &str| Item::Unfinished { path: path(at) };
    for at in ["part", "log"] {
        fixture.done(unfinished(at), b"");
    }
    assert_eq!(fixture.apply(rename(1, "part", "to"), b""), [(path("to"), true)]);
    assert_eq!((fixture.exists("part"), fixture.read("to")), (false, b"to".to_vec()));
    // To a name where nothing is, it moves, as logs do, and stays what it is.
    fixture.done(rename(2, "log", "log.1"), b"");
    let both = [(path("log.1"), true), (path("other"), true)];
    assert_eq!(fixture.apply(exchange(3, "log.1", "other"), b""), both);
    assert_eq!(fixture.apply(rename(4, "log.1", "other"), b""), [(path("other"), true)]);
    // Whole content ends it, and others were never in doubt.
    fixture.file("part", b"part");
    fixture.done(unfinished("part"), b"");
    fixture.file("part", b"whole now");
    fixture.done(rename(5, "part", "to"), b"");
    fixture.done(rename(6, "whole", "other"), b"");
    assert_eq!((fixture.read("to"), fixture.read("other")), (b"whole now".into(), b"whole".into()));
}

/// Which files are parts is told behind the renames that were missed.
#[test]
fn a_connection_begins_with_every_file_in_doubt() {
    let mut fixture = Fixture::new();
    for at in ["a", "b", "part", "c", "d"] {
        fixture.file(at, at.as_bytes());
    }
    fixture.directory("x");
    fixture.directory("y");
    fixture.flush();
    fixture.replica.begin_connection();
    assert_eq!(fixture.apply(rename(1, "a", "b"), b""), [(path("b"), true)]);
    assert_eq!(fixture.read("b"), b"b");
    // Directories never are, and a file that replaces none does no harm.
    fixture.done(exchange(2, "x", "y"), b"");
    fixture.done(rename(3, "part", "moved"), b"");
    fixture.done(Item::Unfinished { path: path("moved") }, b"");
    fixture.done(Item::Answered { id: 7 }, b"");
    fixture.done(rename(4, "c", "d"), b"");
    assert_eq!(fixture.read("d"), b"c");
    assert_eq!(fixture.apply(rename(5, "moved", "d"), b""), [(path("d"), true)]);
}

/// What is asked for in the place of a part is lost with the process: its marker claims nothing,
/// and those of later renames neither.
#[test]
fn a_part_that_was_not_moved_is_in_doubt_after_a_kill() {
    for renames in [1, 2] {
        let mut fixture = Fixture::new();
        for at in ["part", "to", "f"] {
            fixture.file(at, at.as_bytes());
        }
        fixture.flush();
        fixture.done(Item::Unfinished { path: path("part") }, b"");
        assert_eq!(fixture.apply(rename(1, "part", "to"), b""), [(path("to"), true)]);
        if renames > 1 {
            fixture.done(rename(2, "f", "g"), b"");
        }
        let mut fixture = fixture.reopen();
        assert_eq!(fixture.replica.recover_moved(Sequence(0)).unwrap(), Moved::Unknown);
    }
}

#[test]
fn a_rename_of_a_staged_directory_publishes_it_first() {
    let mut fixture = Fixture::new();
    fixture.directory("d");
    fixture.file("d/f", b"x");
    fixture.done(rename(1, "d", "e"), b"");
    assert_eq!(fixture.read("e/f"), b"x");
    fixture.file("d2", b"x");
    fixture.flush();
    assert_eq!(fixture.mtime("e"), 10);
}

#[test]
fn the_marker_tells_a_rename_that_was_done() {
    let mut fixture = Fixture::new();
    fixture.replica.ensure_marker(Sequence(5)).unwrap();
    assert_eq!(marker_names(&fixture), ["moved-5-0"]);
    assert_eq!(fixture.replica.recover_moved(Sequence(5)).unwrap(), Moved::Through(Sequence(5)));
    assert_eq!(fixture.replica.recover_moved(Sequence(4)).unwrap(), Moved::Unknown);
    fixture.file("f", b"x");
    fixture.done(rename(8, "f", "g"), b"");
    let mut fixture = fixture.reopen();
    assert_eq!(fixture.replica.recover_moved(Sequence(5)).unwrap(), Moved::Through(Sequence(8)));
    assert_eq!(fixture.replica.recover_moved(Sequence(9)).unwrap(), Moved::Through(Sequence(9)));
    // States after it change both ends, and may reuse the inode's number.
    fixture.file("g", b"new");
    fixture.file("f", b"new");
    let mut fixture = fixture.reopen();
    let moved = fixture.replica.recover_moved(Sequence(5)).unwrap();
    assert!(matches!(moved, Moved::Through(Sequence(8)) | Moved::Unknown), "{moved:?}");
}

#[test]
fn a_marker_that_is_not_what_was_written_tells_nothing() {
    let mut fixture = Fixture::new();
    fixture.file("f", b"x");
    fixture.done(rename(8, "f", "g"), b"");
    let path = fixture.path(".mirror").join(&marker_names(&fixture)[0]);
    let written = std::fs::read(&path).unwrap();
    let tell = |fixture: Fixture| {
        let mut fixture = fixture.reopen();
        let told = match fixture.replica.recover_moved(Sequence(8)).unwrap() {
            Moved::Lost(reason) => reason,
            other => panic!("{other:?}"),
        };
        (fixture, told)
    };
    std::fs::write(&path, &written[..written.len() - 1]).unwrap();
    let (fixture, told) = tell(fixture);
    assert!(told.contains("moved-8-") && told.contains("damaged"), "{told}");
    std::fs::rename(&path, fixture.path("away")).unwrap();
    std::fs::write(&path, &written).unwrap();
    let (fixture, told) = tell(fixture);
    assert!(told.contains("moved-8-") && told.contains("copy"), "{told}");
    std::fs::remove_file(&path).unwrap();
    let (_, told) = tell(fixture);
    assert!(told.contains("missing"), "{told}");
}

#[test]
fn the_marker_tells_a_rename_that_was_not_done() {
    let mut fixture = Fixture::new();
    fixture.file("f", b"x");
    fixture.file("old", b"x");
    fixture.done(rename(7, "old", "older"), b"");
    announce(&mut fixture, 8, false, "f", "g");
    let mut fixture = fixture.reopen();
    assert_eq!(fixture.replica.recover_moved(Sequence(5)).unwrap(), Moved::Through(Sequence(7)));
    fixture.done(rename(8, "f", "g"), b"");
    announce(&mut fixture, 9, true, "g", "older");
    let mut fixture = fixture.reopen();
    assert_eq!(fixture.replica.recover_moved(Sequence(5)).unwrap(), Moved::Through(Sequence(8)));
    fixture.done(exchange(9, "g", "older"), b"");
    let mut fixture = fixture.reopen();
    assert_eq!(fixture.replica.recover_moved(Sequence(5)).unwrap(), Moved::Through(Sequence(9)));
}

#[test]
fn a_marker_that_says_nothing_is_unknown() {
    let mut fixture = Fixture::new();
    fixture.apply(rename(8, "none", "g"), b"");
    let mut fixture = fixture.reopen();
    assert_eq!(fixture.replica.recover_moved(Sequence(5)).unwrap(), Moved::Unknown);
    assert_eq!(fixture.replica.recover_moved(Sequence(8)).unwrap(), Moved::Through(Sequence(8)));
}

/// Writes the marker and does nothing more, as if killed there.
fn announce(fixture: &mut Fixture, sequence: u64, exchange: bool, from: &str, to: &str) {
    fixture.flush();
    fixture.replica.announce(Sequence(sequence), exchange, &path(from), &path(to)).unwrap();
}
