//! Directories: staging, publishing, times, placeholders, removal.

use super::*;

#[test]
fn a_new_directory_is_filled_before_it_is_seen() {
    let mut fixture = Fixture::new();
    fixture.directory("d");
    fixture.file("d/f", b"x");
    fixture.done(state("d/l", symlink(b"f")), b"");
    assert!(!fixture.exists("d"));
    // Told twice, and taken away again, before it is there.
    fixture.file("d/g", b"y");
    fixture.done(absent("d/g"), b"");
    fixture.flush();
    assert_eq!(names(&fixture.path("d")), ["f", "l"]);
    assert_eq!(fixture.stat("d").mode() & 0o7777, 0o755);
    assert_eq!(fixture.mtime("d"), 10);
    fixture.assert_clean();
}

#[test]
fn a_file_told_twice_in_a_staged_directory_is_the_second_one() {
    let mut fixture = Fixture::new();
    fixture.directory("d");
    fixture.file("d/f", b"one");
    fixture.file("d/f", b"two");
    fixture.done(state("d/l", symlink(b"f")), b"");
    fixture.flush();
    assert_eq!(fixture.read("d/f"), b"two");
    assert_eq!(fixture.mtime("d"), 10);
}

#[test]
fn times_hold_after_nested_publishes() {
    let mut fixture = Fixture::new();
    fixture.done(state("", directory(1)), b"");
    for at in ["a", "a/b", "a/b/c", "a/d", "e"] {
        fixture.directory(at);
        fixture.file(&format!("{at}/f"), b"x");
    }
    fixture.file("a/late", b"x");
    fixture.flush();
    for at in ["a", "a/b", "a/b/c", "a/d", "e"] {
        assert_eq!(fixture.mtime(at), 10, "{at}");
    }
    assert_eq!(fixture.mtime(""), 1);
}

#[test]
fn more_directories_than_are_remembered_keep_their_times() {
    let mut fixture = Fixture::new();
    for number in 0..600 {
        fixture.directory(&format!("d{number}"));
    }
    for number in 0..600 {
        fixture.file(&format!("d{number}/f"), b"x");
    }
    fixture.flush();
    assert!((0..600).all(|number| fixture.mtime(&format!("d{number}")) == 10));
}

#[test]
fn a_parents_time_is_the_given_one_or_stays() {
    let mut fixture = Fixture::new();
    fixture.directory("d");
    fixture.flush();
    fixture.file("d/f", b"x");
    fixture.flush();
    assert_eq!(fixture.mtime("d"), 10);
    fixture.done(Item::Absent { path: path("d/f"), parent_mtime: Some(seconds(77)) }, b"");
    fixture.flush();
    assert_eq!(fixture.mtime("d"), 77);
    fixture.directory("d/new");
    fixture.flush();
    assert_eq!(fixture.mtime("d"), 77);
}

#[test]
fn missing_parents_are_made_and_needed() {
    let mut fixture = Fixture::new();
    let needs = fixture.apply(inline("a/b/f", regular(1), b"x"), b"x");
    assert_eq!(needs, [(path("a"), false)]);
    assert_eq!(fixture.read("a/b/f"), b"x");
    assert_eq!(fixture.stat("a").mode() & 0o7777, 0o700);
    // A file where a directory must be.
    fixture.file("g", b"x");
    let needs = fixture.apply(inline("g/h", regular(1), b"y"), b"y");
    assert_eq!(needs, [(path("g"), false)]);
    assert_eq!(fixture.read("g/h"), b"y");
    fixture.assert_clean();
}

#[test]
fn an_existing_directory_only_changes_attributes() {
    let mut fixture = Fixture::new();
    fixture.directory("d");
    fixture.file("d/f", b"x");
    fixture.flush();
    let mut entry = directory(20);
    entry.metadata.mode = 0o1750;
    entry.metadata.xattrs = vec![xattr("user.x", b"y")];
    fixture.done(state("d", entry), b"");
    fixture.flush();
    assert_eq!((fixture.stat("d").mode() & 0o7777, fixture.mtime("d")), (0o1750, 20));
    assert_eq!(fixture.read("d/f"), b"x");
}

#[test]
fn absent_removes_whatever_is_there() {
    let mut fixture = Fixture::new();
    fixture.file("f", b"x");
    fixture.directory("empty");
    fixture.directory("full");
    fixture.file("full/f", b"x");
    fixture.directory("full/below");
    fixture.file("full/below/f", b"x");
    for at in ["f", "empty", "full", "none", "none/below", "f/below"] {
        fixture.done(absent(at), b"");
    }
    fixture.flush();
    assert_eq!(names(fixture.directory.path()), [".mirror"]);
    let mut turns = 0;
    while fixture.replica.empty_trash(1) {
        turns += 1;
    }
    assert!(turns > 1);
    assert!(names(&fixture.path(".mirror/trash")).is_empty());
}

#[test]
fn names_remove_the_others_of_their_interval() {
    let mut fixture = Fixture::new();
    fixture.directory("d");
    fixture.flush();
    for name in ["a", "b", "c", "d", "e"] {
        fixture.file(&format!("d/{name}"), b"x");
    }
    let list = |after: &str, names: &[&str], last| Item::Names {
        path: path("d"),
        after: after.as_bytes().to_vec(),
        names: names.iter().map(|name| serde_bytes::ByteBuf::from(name.as_bytes())).collect(),
        last,
    };
    fixture.done(list("a", &["c"], false), b"");
    assert_eq!(names(&fixture.path("d")), ["a", "c", "d", "e"]);
    fixture.done(list("c", &["d"], true), b"");
    assert_eq!(names(&fixture.path("d")), ["a", "c", "d"]);
    fixture.flush();
    assert_eq!(fixture.mtime("d"), 10);
    fixture.done(list("", &[], false), b"");
    fixture.done(list("", &[], true), b"");
    assert!(names(&fixture.path("d")).is_empty());
    let all = Item::Names { path: TreePath::root(), after: vec![], names: vec![], last: true };
    fixture.done(all, b"");
    assert_eq!(names(fixture.directory.path()), [".mirror"]);
}

#[test]
fn names_of_a_staged_directory_do_not_publish_it() {
    let mut fixture = Fixture::new();
    fixture.directory("d");
    fixture.file("d/f", b"x");
    fixture.file("d/g", b"x");
    let names_item = Item::Names {
        path: path("d"),
        after: vec![],
        names: vec![serde_bytes::ByteBuf::from(&b"g"[..])],
        last: true,
    };
    fixture.done(names_item, b"");
    assert!(!fixture.exists("d"));
    fixture.flush();
    assert_eq!(names(&fixture.path("d")), ["g"]);
}

/// Big files are put in place while other directories are built.
#[test]
fn what_has_nothing_to_do_with_a_staged_directory_does_not_publish_it() {
    let mut fixture = Fixture::new();
    fixture.directory("d");
    fixture.directory("d/new");
    fixture.file("d/new/f", b"x");
    fixture.file("big", b"there at once");
    // A neighbour, whose word of the time of both's directory is the later one.
    let mut later = inline("d/big", regular(1), b"b");
    if let Item::State { parent_mtime, .. } = &mut later {
        *parent_mtime = Some(seconds(77));
    }
    fixture.done(later, b"b");
    fixture.done(absent("big"), b"");
    assert!(fixture.exists("d/big") && !fixture.exists("big") && !fixture.exists("d/new"));
    fixture.file("d/new/g", b"y");
    fixture.flush();
    assert_eq!(names(&fixture.path("d/new")), ["f", "g"]);
    assert_eq!((fixture.mtime("d"), fixture.mtime("d/new")), (77, 10));
}

/// What is above or below it, or is it, finds it in place.
#[test]
fn what_has_to_do_with_a_staged_directory_publishes_it() {
    let related = [
        inline("d/new/below/f", regular(1), b"x"),
        inline("d/new", regular(1), b"x"),
        inline("d", regular(1), b"x"),
        absent("d/new"),
        absent("d"),
        rename(1, "d", "e"),
        state("d/other", directory(10)),
    ];
    for item in related {
        let mut fixture = Fixture::new();
        fixture.directory("d");
        fixture.directory("d/new");
        fixture.file("d/new/f", b"x");
        fixture.apply(item.clone(), b"x");
        assert!(!fixture.replica.is_staged(b"d/new"), "{item:?}");
        fixture.flush();
        fixture.assert_clean();
    }
}

#[test]
fn leftovers_of_a_killed_process_go() {
    let mut fixture = Fixture::new();
    fixture.directory("d");
    fixture.file("d/f", b"x");
    let stage = StageId(1);
    fixture.done(Item::StageOpen { stage, size: 10, path: path("big") }, b"");
    let fixture = fixture.reopen();
    assert!(!fixture.exists("d"));
    fixture.assert_clean();
    assert!(fixture.replica.is_empty().unwrap());
}

#[test]
fn emptiness_looks_past_the_replicas_own_and_the_file_systems() {
    let mut fixture = Fixture::new();
    std::fs::create_dir(fixture.path("lost+found")).unwrap();
    assert!(fixture.replica.is_empty().unwrap());
    fixture.file("lost+found/f", b"");
    assert!(!fixture.replica.is_empty().unwrap());
}

#[test]
fn a_directory_that_cannot_be_shown_keeps_nothing_else_waiting() {
    let mut fixture = Fixture::new();
    fixture.file("gone", b"x");
    fixture.directory("d");
    fixture.file("d/f", b"x");
    let stage = fixture.path(".mirror/stage");
    std::fs::remove_dir_all(stage.join(&names(&stage)[0])).unwrap();
    fixture.file("other", b"y");
    fixture.done(absent("gone"), b"");
    fixture.flush_with_problem("d", true);
    assert_eq!(fixture.read("other"), b"y");
    assert!(!fixture.exists("gone") && !fixture.exists("d"));
    fixture.directory("d");
    fixture.flush();
    fixture.assert_clean();
}

#[test]
fn a_directory_whose_time_cannot_be_set_keeps_no_other_waiting() {
    let mut fixture = Fixture::new();
    fixture.replica.pending.know(&[b'x'; 300], seconds(1), true);
    for number in 0..600 {
        fixture.directory(&format!("d{number}"));
    }
    let at = String::from_utf8(vec![b'x'; 300]).unwrap();
    fixture.flush_with_problem(&at, false);
    assert!((0..600).all(|number| fixture.mtime(&format!("d{number}")) == 10));
}
