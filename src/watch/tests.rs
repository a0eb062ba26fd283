//! What cannot be brought about from outside: orders of events that a kernel makes once in a
//! thousand tries, and the passing of time. The rest of DESIGN 6 is in `tests/capture.rs`.
//!
//! - The pair of a rename need not be adjacent: `halves_that_are_not_adjacent_are_one_rename`,
//!   `halves_that_come_in_two_turns_are_one_rename`.
//! - Events of a descriptor that was removed still arrive: `events_of_a_removed_watch_tell_nothing`.
//! - A file that is closed again and again is sent at a bounded rate:
//!   `a_file_that_is_closed_again_and_again_is_told_at_a_bounded_rate`.
//! - A file that stays open is sent at a bounded rate:
//!   `a_file_that_never_rests_is_told_at_a_bounded_rate`.
//! - A listing that finds a known directory elsewhere, with nothing queued, is believed (DESIGN
//!   7): `a_listing_that_finds_a_known_directory_elsewhere_is_believed`.
//! - What cannot be read is not gone, and is looked at again: the tests `without_privileges`.
//! - On overflow only what changed is looked for, and once:
//!   `many_names_of_one_file_are_found_after_an_overflow_at_once`.
//! - A name may be longer than a path may have:
//!   `a_name_that_is_too_long_is_not_told_and_stops_nothing`.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use super::scan::Look;
use super::unsettled::Unsettled;
use super::*;
use crate::model::feed::{Feed, FeedEvent, Progress};

/// A tree and its watch, after the first scan.
struct Fixture {
    watch: Watch,
    directory: tempfile::TempDir,
}

impl Fixture {
    /// Makes directories and, in each, a file `f`.
    fn new(directories: &[&str]) -> Fixture {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path().join("root");
        for name in directories {
            fs::create_dir_all(root.join(name)).unwrap();
            fs::write(root.join(name).join("f"), "f").unwrap();
        }
        let options = WatchOptions { rescan_interval: Duration::from_secs(3600) };
        let watch = Watch::new(Root::open(&root).unwrap(), options).unwrap();
        let mut fixture = Fixture { watch, directory };
        assert_eq!(fixture.changes(), Vec::new());
        fixture
    }

    fn at(&self, path: &str) -> PathBuf {
        self.directory.path().join("root").join(path)
    }

    /// Returns what is told until the watch is settled.
    fn changes(&mut self) -> Vec<Change> {
        let mut changes = Vec::new();
        loop {
            while let Some(FeedEvent::Record(record)) = self.watch.poll_event() {
                changes.push(record.change);
            }
            // States may be read while directories are still looked through for changes.
            if self.watch.is_settled() && self.watch.sweeps.is_empty() {
                return changes;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Takes the events that inotify has, unhandled.
    fn events(&mut self) -> Vec<Event> {
        self.watch.read_events();
        self.watch.events.drain(..).collect()
    }
}

/// Has this thread obey the modes of files, as root does not.
fn without_privileges() {
    use rustix::thread::{CapabilitySet, capabilities, set_capabilities};
    let mut sets = capabilities(None).unwrap();
    sets.effective.remove(CapabilitySet::DAC_OVERRIDE | CapabilitySet::DAC_READ_SEARCH);
    set_capabilities(None, sets).unwrap();
}

fn set_mode(path: &std::path::Path, mode: u32) {
    fs::set_permissions(path, PermissionsExt::from_mode(mode)).unwrap();
}

fn path(text: &str) -> TreePath {
    TreePath::new(text).unwrap()
}

fn rename(from: &str, to: &str) -> Change {
    Change::Rename { from: path(from), to: path(to) }
}

/// Returns whether a change says anything of a path.
fn told(change: &Change, text: &str) -> bool {
    matches!(change, Change::Dirty { path: dirty, .. } if *dirty == path(text))
}

fn content(text: &str) -> Change {
    Change::Dirty { path: path(text), what: What::CONTENT }
}

#[test]
fn halves_that_are_not_adjacent_are_one_rename() {
    let mut fixture = Fixture::new(&["a", "b", "c/deep"]);
    fs::rename(fixture.at("a/f"), fixture.at("b/g")).unwrap();
    fs::rename(fixture.at("c"), fixture.at("b/c")).unwrap();
    fs::write(fixture.at("b/f"), "changed").unwrap();
    let mut events = fixture.events();
    // Both first halves, then the write, then the second halves, the last one first.
    let is_second = |event: &Event| event.mask.contains(EventMask::MOVED_TO);
    let (mut second, mut others): (Vec<Event>, Vec<Event>) =
        events.drain(..).partition(|event| is_second(event));
    second.reverse();
    others.append(&mut second);
    fixture.watch.events.extend(others);
    let changes = fixture.changes();
    for wanted in [rename("a/f", "b/g"), rename("c", "b/c"), content("b/f")] {
        assert!(changes.contains(&wanted), "{wanted:?} is not in {changes:?}");
    }
    fs::write(fixture.at("b/c/deep/f"), "watched").unwrap();
    assert_eq!(fixture.changes(), [content("b/c/deep/f")]);
}

#[test]
fn halves_that_come_in_two_turns_are_one_rename() {
    let mut fixture = Fixture::new(&["a", "b"]);
    fs::rename(fixture.at("a/f"), fixture.at("b/g")).unwrap();
    let mut events = fixture.events();
    let second = events.pop().unwrap();
    fixture.watch.events.extend(events);
    assert_eq!(fixture.watch.poll_event(), None);
    assert!(!fixture.watch.is_settled(), "a state read now may be that of another path");
    fixture.watch.events.push_back(second);
    assert_eq!(fixture.changes().first(), Some(&rename("a/f", "b/g")));
}

#[test]
fn events_of_a_removed_watch_tell_nothing() {
    let mut fixture = Fixture::new(&["d"]);
    fs::write(fixture.at("d/f"), "changed").unwrap();
    let mut late = fixture.events();
    assert!(!late.is_empty());
    let node = fixture.watch.nodes.at(b"d").unwrap();
    fs::rename(fixture.at("d"), fixture.directory.path().join("outside")).unwrap();
    fixture.events();
    fixture.watch.drop_node(node);
    // The kernel's last word on the watch comes behind them.
    late.extend(fixture.events());
    fs::create_dir(fixture.at("e")).unwrap();
    fixture.events();
    fixture.watch.look(Look::At(Place { directory: ROOT, name: b"e".to_vec() }));
    assert_ne!(fixture.watch.nodes.at(b"e"), Some(node), "no number is used again");
    fixture.watch.events.extend(late);
    assert_eq!(fixture.changes(), [content("e")]);
    fs::write(fixture.at("e/g"), "watched").unwrap();
    assert_eq!(fixture.changes(), [content("e/g")]);
}

#[test]
fn what_cannot_be_read_after_an_overflow_is_not_gone() {
    without_privileges();
    let mut fixture = Fixture::new(&["d/deep", "e"]);
    let node = fixture.watch.nodes.at(b"d/deep");
    assert!(node.is_some());
    set_mode(&fixture.at("d"), 0);
    fixture.watch.lose_events();
    let changes = fixture.changes();
    assert!(!changes.contains(&content("d/deep")), "{changes:?}");
    assert_eq!(fixture.watch.nodes.at(b"d/deep"), node, "an error became an absence");
    set_mode(&fixture.at("d"), 0o755);
    fixture.changes();
    fs::write(fixture.at("d/deep/f"), "watched").unwrap();
    assert_eq!(fixture.changes(), [content("d/deep/f")]);
}

#[test]
fn what_is_removed_before_it_is_listed_is_gone_and_not_unreadable() {
    let mut fixture = Fixture::new(&["d"]);
    fs::create_dir(fixture.at("e")).unwrap();
    let opened = fixture.watch.root.open_directory(&path("e")).unwrap();
    let identity = crate::tree::root::identity_of(&crate::tree::root::stat_fd(&opened).unwrap());
    let place = Place { directory: ROOT, name: b"e".to_vec() };
    fs::remove_dir(fixture.at("e")).unwrap();
    fixture.watch.discover(ROOT, Some(b"e"), opened, identity, Look::At(place));
    assert!(!fixture.watch.misses(), "it is looked at again and again");
    assert!(fixture.watch.unwatched.is_empty());
    assert!(fixture.changes().contains(&content("e")));
    assert_eq!(fixture.watch.nodes.at(b"e"), None);
}

#[test]
fn what_could_not_be_looked_through_is_when_it_can_be_read() {
    without_privileges();
    // The event that it can be read comes, or something else was in the way.
    for is_told in [true, false] {
        let mut fixture = Fixture::new(&["d/deep"]);
        fs::write(fixture.at("d/f"), "changed").unwrap();
        fs::create_dir(fixture.at("d/new")).unwrap();
        set_mode(&fixture.at("d"), 0);
        fixture.watch.lose_events();
        let changes = fixture.changes();
        assert!(!changes.contains(&content("d/f")), "{changes:?}");
        set_mode(&fixture.at("d"), 0o755);
        if !is_told {
            fixture.events();
            fixture.watch.missed_at = Instant::now();
        }
        // Written this moment, it is told when it rests.
        let started = Instant::now();
        let mut changes = fixture.changes();
        while !changes.contains(&content("d/f")) {
            assert!(started.elapsed() < Duration::from_secs(5), "{changes:?}");
            changes.extend(fixture.changes());
        }
        assert!(changes.contains(&content("d/new")), "{changes:?}");
        assert!(fixture.watch.unread.is_empty());
    }
}

/// To tell all names of a file once for each of them took a minute for 20,000.
#[test]
fn many_names_of_one_file_are_found_after_an_overflow_at_once() {
    let mut fixture = Fixture::new(&["d"]);
    for number in 0..6_000 {
        fs::hard_link(fixture.at("d/f"), fixture.at(&format!("d/{number}"))).unwrap();
    }
    // Not this moment, or the end of its writing would be waited for.
    let file = fs::File::options().write(true).open(fixture.at("d/f")).unwrap();
    file.set_modified(std::time::UNIX_EPOCH).unwrap();
    drop(file);
    fixture.watch.events_lost = true;
    let started = Instant::now();
    let changes = fixture.changes();
    assert!(started.elapsed() < Duration::from_secs(5), "{:?}", started.elapsed());
    for name in ["d/f", "d/0", "d/5999"] {
        assert!(changes.contains(&content(name)), "{name}");
    }
}

#[test]
fn names_in_a_directory_that_could_not_be_read_are_searched_for_again() {
    without_privileges();
    let mut fixture = Fixture::new(&["d", "locked"]);
    fs::hard_link(fixture.at("d/f"), fixture.at("locked/g")).unwrap();
    fixture.changes();
    // As when the link was there before the watch, with another name outside of the tree.
    let [d, locked] = ["d", "locked"].map(|path| fixture.watch.nodes.at(path.as_bytes()).unwrap());
    for (directory, name) in [(d, b"f"), (locked, b"g")] {
        let place = Place { directory, name: name.to_vec() };
        fixture.watch.links.remove(&place);
    }
    set_mode(&fixture.at("locked"), 0);
    fs::hard_link(fixture.at("d/f"), fixture.at("d/h")).unwrap();
    let changes = fixture.changes();
    assert!(changes.iter().any(|change| told(change, "d/h")), "{changes:?}");
    // It does not go on and on until it can be read.
    assert!(fixture.watch.poll_timeout() > Some(Instant::now()));
    set_mode(&fixture.at("locked"), 0o755);
    fixture.changes();
    fixture.watch.missed_at = Instant::now();
    fixture.changes();
    fs::write(fixture.at("d/f"), "changed").unwrap();
    let changes = fixture.changes();
    assert!(changes.contains(&content("locked/g")), "{changes:?}");
    assert!(!fixture.watch.misses());
}

#[test]
fn what_cannot_be_watched_when_its_file_system_is_back_is_known_as_unwatched() {
    without_privileges();
    let mut fixture = Fixture::new(&["d/deep"]);
    let [node, deep] = ["d", "d/deep"].map(|path| fixture.watch.nodes.at(path.as_bytes()).unwrap());
    // As an unmount does.
    let watch = fixture.watch.nodes.get(deep).unwrap().watch.clone().unwrap();
    fixture.watch.nodes.forget_watch(watch.get_watch_descriptor_id());
    fixture.watch.inotify.watches().remove(watch).unwrap();
    fixture.watch.hold_below(node);
    set_mode(&fixture.at("d/deep"), 0);
    fixture.watch.held_at = Instant::now();
    fixture.changes();
    assert!(!fixture.watch.holds());
    assert!(fixture.watch.unwatched.contains(&deep), "it has neither a watch nor looks");
    set_mode(&fixture.at("d/deep"), 0o755);
    fixture.watch.degraded_at = Instant::now();
    while !fixture.watch.unwatched.is_empty() {
        fixture.changes();
    }
    fs::write(fixture.at("d/deep/f"), "watched").unwrap();
    assert!(fixture.changes().contains(&content("d/deep/f")));
}

/// What a directory is taken for changes when events do not tell what moved: it is dropped, and
/// found anew. A write to a file by its name there, which went, is told under the others.
#[test]
fn a_write_by_a_name_that_went_is_told_whatever_became_of_its_directory() {
    let exchange = |fixture: &Fixture, a: &str, b: &str| {
        let (cwd, flags) = (rustix::fs::CWD, rustix::fs::RenameFlags::EXCHANGE);
        rustix::fs::renameat_with(cwd, fixture.at(a), cwd, fixture.at(b), flags).unwrap();
    };
    type Move<'a> = &'a dyn Fn(&Fixture);
    let moves: [(&str, Move<'_>); 4] = [
        ("exchanged", &|fixture| exchange(fixture, "d", "e")),
        ("exchanged with a file", &|fixture| exchange(fixture, "d", "e/deep/f")),
        ("exchanged there and back", &|fixture| {
            exchange(fixture, "d", "e");
            exchange(fixture, "d", "e");
        }),
        ("moved out and in", &|fixture| {
            for name in ["d", "e"] {
                let outside = fixture.directory.path().join("outside");
                fs::rename(fixture.at(name), &outside).unwrap();
                fs::rename(&outside, fixture.at(&format!("{name}-in"))).unwrap();
            }
        }),
    ];
    let names = [("d/f", "x/g"), ("e/f", "x/g"), ("d/f", "e/g"), ("e/f", "d/g"), ("d/f", "d/g")];
    for (moved, moves) in moves {
        for ((opened, left), is_told) in names.into_iter().flat_map(|n| [(n, true), (n, false)]) {
            let mut fixture = Fixture::new(&["d", "e", "e/deep", "x"]);
            fs::hard_link(fixture.at(opened), fixture.at(left)).unwrap();
            fixture.changes();
            let mut file = fs::File::options().append(true).open(fixture.at(opened)).unwrap();
            fs::remove_file(fixture.at(opened)).unwrap();
            fixture.changes();
            moves(&fixture);
            if is_told {
                fixture.changes();
            }
            std::io::Write::write_all(&mut file, b"more").unwrap();
            drop(file);
            let now_at = ["d", "e", "d-in", "e-in", "e/deep/f", "x"].map(|d| format!("{d}/g"));
            let left = now_at.iter().find(|path| fixture.at(path).exists()).unwrap();
            let changes = fixture.changes();
            assert!(
                changes.contains(&content(left)),
                "{moved}, written by {opened}: {left} is not in {changes:?}"
            );
        }
    }
}

/// The burst of writes is over for the name that went, and not for the file.
#[test]
fn a_write_by_a_name_that_went_is_told_if_another_file_takes_the_name() {
    let mut fixture = Fixture::new(&["d", "e"]);
    fs::hard_link(fixture.at("d/f"), fixture.at("e/g")).unwrap();
    fixture.changes();
    let mut file = fs::File::options().append(true).open(fixture.at("d/f")).unwrap();
    fs::remove_file(fixture.at("d/f")).unwrap();
    fixture.changes();
    std::io::Write::write_all(&mut file, b"more").unwrap();
    std::os::unix::fs::symlink("another", fixture.at("d/f")).unwrap();
    let changes = fixture.changes();
    assert!(changes.contains(&content("e/g")), "{changes:?}");
}

/// vfat, exFAT, NTFS and FUSE have longer names than a message may hold.
#[test]
fn a_name_that_is_too_long_is_not_told_and_stops_nothing() {
    let mut fixture = Fixture::new(&["d"]);
    fs::create_dir(fixture.at("e")).unwrap();
    fs::write(fixture.at("made"), "made").unwrap();
    fs::rename(fixture.at("d/f"), fixture.at("g")).unwrap();
    fs::rename(fixture.at("e"), fixture.at("h")).unwrap();
    fs::write(fixture.at("h/f"), "f").unwrap();
    let long: Box<[u8]> = "n".repeat(765).into_bytes().into();
    let mut events = fixture.events();
    for event in &mut events {
        let is_new = event.mask.contains(EventMask::MOVED_TO) && *event.name == *b"g";
        let is_old = event.mask.contains(EventMask::MOVED_FROM) && *event.name == *b"e";
        if is_new || is_old || *event.name == *b"made" || event.mask.contains(EventMask::CREATE) {
            event.name.clone_from(&long);
        }
    }
    fixture.watch.events.extend(events);
    let changes = fixture.changes();
    // What was moved to such a name went out of the tree, and from one it came in.
    assert_eq!(changes, [content("d/f"), content("h"), content("h/f")]);
}

#[test]
fn a_listing_that_finds_a_known_directory_elsewhere_is_believed() {
    let mut fixture = Fixture::new(&["d/deep"]);
    fs::rename(fixture.at("d"), fixture.at("e")).unwrap();
    assert!(!fixture.events().is_empty(), "what is lost here");
    let place = Place { directory: ROOT, name: b"e".to_vec() };
    fixture.watch.looks.push(Look::At(place));
    let changes = fixture.changes();
    for wanted in ["d", "e", "e/deep", "e/deep/f"] {
        assert!(changes.contains(&content(wanted)), "{wanted} is not in {changes:?}");
    }
    assert_eq!(fixture.watch.nodes.at(b"d"), None);
    fs::write(fixture.at("e/deep/f"), "watched").unwrap();
    assert_eq!(fixture.changes(), [content("e/deep/f")]);
}

#[test]
fn a_file_that_never_rests_is_told_at_a_bounded_rate() {
    let start = Instant::now();
    let at = |ms: u64| start + Duration::from_millis(ms);
    let place = Place { directory: ROOT, name: b"log".to_vec() };
    let mut unsettled = Unsettled::default();
    // A single write is told once it has rested, and not before.
    assert!(unsettled.touch(place.clone(), at(0)));
    assert!(unsettled.due(at(40)).is_empty());
    assert_eq!(unsettled.progress(&place), Progress::Writing);
    assert_eq!(unsettled.due(at(60)).len(), 1);
    assert!(unsettled.due(at(5000)).is_empty());
    // One that is written every 10 ms for 10 s is told about once a second.
    let mut told = Vec::new();
    for ms in (10_000..20_000).step_by(10) {
        assert!(unsettled.touch(place.clone(), at(ms)));
        told.extend(unsettled.due(at(ms)).iter().map(|_| ms));
    }
    assert!((8..=11).contains(&told.len()), "told at {told:?}");
    assert_eq!(unsettled.progress(&place), Progress::Restless, "sent although it does not rest");
    // And once more after it rests.
    assert_eq!(unsettled.due(at(20_100)).len(), 1);
    assert!(unsettled.due(at(60_000)).is_empty());
}

/// As in a loop of open, write and close: each of these alone would be sent at once.
#[test]
fn a_file_that_is_closed_again_and_again_is_told_at_a_bounded_rate() {
    let start = Instant::now();
    let at = |ms: u64| start + Duration::from_millis(ms);
    let place = Place { directory: ROOT, name: b"f".to_vec() };
    for (size, at_once_max) in [(100, 32), (50 << 20, 2)] {
        let mut unsettled = Unsettled::default();
        let (mut at_once, mut told) = (0, 0);
        for ms in 0..10_000 {
            assert!(unsettled.touch(place.clone(), at(ms)));
            at_once += usize::from(unsettled.close(&place, at(ms), || size));
            told += unsettled.due(at(ms)).len();
        }
        assert!(at_once <= at_once_max, "{at_once} at once");
        assert!((8..=11).contains(&told), "told {told} times in 10 s");
        // And once more when it rests, as a whole file.
        assert_eq!(unsettled.due(at(10_100)).len(), 1);
        assert_eq!(unsettled.progress(&place), Progress::Finished);
        // A second later it is a file like any other.
        assert!(unsettled.touch(place.clone(), at(12_500)));
        assert!(unsettled.close(&place, at(12_500), || size));
        assert_eq!(unsettled.progress(&place), Progress::Finished);
    }
}
