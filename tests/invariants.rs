//! Which test fails when an invariant of DESIGN 4 is broken, and the tests of those that no
//! other file is about.
//!
//! | invariant | tests |
//! |---|---|
//! | I1 convergence | `tests/convergence.rs`, `tests/simulation.rs`, `tests/kills.rs`, `tests/restarts`, `tests/faults.rs`, `tests/chaos`, `tests/damage.rs` |
//! | I2 atomicity | `tests/atomicity.rs`, `a_reader_never_sees_a_gap_or_a_part` in `src/tree/replica/tests/safety.rs` |
//! | I3 true content | `i3_…` here, `a_big_file_that_never_rests_is_sent_as_read_and_once_more` in `tests/sessions`, `a_file_that_never_rests_is_told_at_a_bounded_rate` in `src/watch/tests.rs`, `…_without_pause_is_sent_at_a_bounded_rate` in `tests/end_to_end/hot_files.rs` |
//! | I4 true renames | `trap_…` in `tests/renames.rs`, `rename_of_a_big_directory_carries_no_content` in `tests/end_to_end/renames.rs`, `a_rename_that_comes_twice_is_refused` in `tests/sessions` |
//! | I5 durable before acknowledged | `tests/power_cuts.rs` |
//! | I6 confinement | `i6_…` here for the source, `src/tree/replica/tests/safety.rs` for the sink, `refuses_every_way_out_of_the_tree` in `src/model/path.rs` |
//! | I7 bounded memory | `i7_…` here, `too_many_needs_become_one_for_everything` in `tests/sessions`, `agrees_with_plain_replay_and_stays_bounded` in `src/model/renames.rs`, `the_ring_stays_bounded_and_cursors_fall_off_by_name` in `src/journal/tests.rs`, `a_stalled_peer_holds_little_and_costs_the_others_nothing` in `src/event_loop/tests.rs` |
//! | I8 an error is not a deletion | `…_is_not_a_deletion` in `tests/faults.rs`, `unreadable_directory_is_not_a_deletion` among them; `a_mount_that_…` in `tests/restarts`; `a_relay_without_room_…` in `tests/relay_faults.rs` |

mod common;

use std::fs::{self, File, Permissions};
use std::io::Write as _;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::time::{Duration, Instant, SystemTime};

use common::live::{Live, version};
use common::operations::truncate_by_path;
use common::world::with_frame;
use mirror::model::limits::{FRAME_BYTES_MAX, TRANSFER_ATTEMPTS_MAX, WINDOW_BYTES_MAX};
use mirror::model::{Kind, TreePath};
use mirror::role::Role as _;
use mirror::tree::{Opened, Reader, Root, Seen};
use mirror::watch::wall_clock;
use mirror::wire::{FrameKind, Item};

/// Waits until a change has another time than one before.
fn tick() {
    let before = wall_clock();
    while wall_clock() == before {
        std::thread::yield_now();
    }
}

fn look(reader: &mut Reader, path: &str) -> Option<Box<Opened>> {
    match reader.look(&TreePath::new(path).unwrap(), true) {
        Ok(Seen::Entry(opened)) => Some(opened),
        Ok(Seen::Absent { .. }) | Err(_) => None,
    }
}

#[test]
fn i3_what_changed_while_it_was_read_is_known_to_have_changed() {
    let scratch = common::machine::scratch();
    let path = scratch.path().join("f");
    let mut reader = Reader::new(Root::open(scratch.path()).unwrap());
    fs::write(&path, "first").unwrap();
    tick();
    let mut read = |change: &dyn Fn()| {
        let opened = look(&mut reader, "f").unwrap();
        change();
        let mut buffer = Vec::new();
        let unchanged = opened.read_whole(&mut buffer).unwrap();
        assert_eq!(unchanged, opened.digest().unwrap().1);
        unchanged
    };
    assert!(read(&|| {}));
    assert!(!read(&|| fs::write(&path, "longer than first").unwrap()), "longer");
    assert!(!read(&|| fs::write(&path, "x").unwrap()), "shorter");
    tick();
    assert!(!read(&|| fs::write(&path, "y").unwrap()), "of the same size");
    tick();
    let set_back = || {
        let mut file = File::create(&path).unwrap();
        file.write_all(b"z").unwrap();
        file.set_modified(SystemTime::UNIX_EPOCH).unwrap();
    };
    set_back();
    tick();
    assert!(!read(&set_back), "of the same size and time");
}

#[test]
fn i3_a_file_that_grows_is_digested_as_far_as_it_was_announced() {
    let scratch = common::machine::scratch();
    let path = scratch.path().join("f");
    let mut reader = Reader::new(Root::open(scratch.path()).unwrap());
    let content = [7; 300 << 10];
    fs::write(&path, content).unwrap();
    tick();
    let opened = look(&mut reader, "f").unwrap();
    File::options().append(true).open(&path).unwrap().write_all(b"more").unwrap();
    assert_eq!(opened.digest().unwrap(), (blake3::hash(&content).into(), false));
}

#[test]
fn i3_what_changed_between_its_read_and_its_use_is_sent_again() {
    change_after_so_many_drains(100);
}

#[test]
fn i3_a_big_file_that_changed_on_its_way_is_sent_again() {
    change_after_so_many_drains(300_000);
}

/// Changes a file at each step on its way, so that its size and time stay what they were.
fn change_after_so_many_drains(size: usize) {
    for drains in 0..8 {
        let mut live = Live::new(|src| fs::write(src.join("f"), vec![0; size]).unwrap());
        fs::write(live.src.join("f"), vec![1; size]).unwrap();
        let path = live.src.join("f");
        let mut race = live.world.race.borrow_mut();
        race.changes.extend((0..drains).map(|_| Box::new(|| {}) as Box<dyn FnOnce()>));
        race.changes.push_back(Box::new(move || {
            let times = fs::metadata(&path).unwrap().modified().unwrap();
            fs::write(&path, vec![2; size]).unwrap();
            File::options().write(true).open(&path).unwrap().set_modified(times).unwrap();
        }));
        drop(race);
        println!("{size} bytes, {drains} drains before");
        live.settle();
    }
}

/// It is shortened as it is on its way, by path, so that no close follows. That it did is told
/// before it ends.
#[test]
fn i3_a_big_file_that_changed_too_often_is_sent_once_more_when_it_rests() {
    let mut live = Live::new(|_| {});
    let path = live.src.join("f");
    fs::write(&path, vec![1; 8_000_000]).unwrap();
    // Each chunk finds another time of change, until it is sent as it is read.
    let mut begun = 0;
    for step in 0..20 {
        fs::set_permissions(&path, Permissions::from_mode(0o600 + step)).unwrap();
        live.world.send();
        let items = live.world.items();
        begun += items.iter().filter(|item| matches!(item, Item::StageOpen { .. })).count();
        live.world.deliver();
        live.world.answer();
        tick();
    }
    assert_eq!(begun, TRANSFER_ATTEMPTS_MAX as usize);
    let _held = truncate_by_path(&path, 500_000).unwrap();
    live.world.source.handle_timeout(Instant::now()).unwrap();
    std::thread::sleep(Duration::from_millis(100));
    live.settle();
}

#[test]
fn i6_a_source_follows_no_symlink_and_reveals_nothing_outside() {
    // So many drains come before a directory is replaced by a way out: the next one tells of
    // that, or it comes behind that and before what is read next.
    for (drains, is_before) in (0..12).map(|case| (case / 2, case % 2 == 0)) {
        let mut live = Live::new(|src| {
            fs::create_dir(src.join("d")).unwrap();
            version(src.join("d/f"), 0);
            symlink("../outside/vault", src.join("link")).unwrap();
        });
        let outside = live.directory.path().join("outside");
        fs::create_dir(outside.join("vault")).unwrap();
        for name in ["f", "g", "secret"] {
            fs::write(outside.join("vault").join(name), "secret, and as long as nothing else")
                .unwrap();
        }
        let size = fs::metadata(outside.join("vault/f")).unwrap().len();
        version(live.src.join("d/f"), 1);
        version(live.src.join("d/g"), 1);
        let src = live.src.clone();
        let mut race = live.world.race.borrow_mut();
        let changes = if is_before { &mut race.changes } else { &mut race.changes_after };
        changes.extend((0..drains).map(|_| Box::new(|| {}) as Box<dyn FnOnce()>));
        changes.push_back(Box::new(move || {
            fs::rename(src.join("d"), outside.join("d")).unwrap();
            symlink("../outside/vault", src.join("d")).unwrap();
        }));
        drop(race);
        // The other half of the rename is waited for meanwhile.
        let started = Instant::now();
        let dst = live.dst.join("d");
        while !dst.is_symlink() || !live.judge.differences().is_empty() {
            assert!(started.elapsed() < common::patience(), "after {drains} drains, {is_before}");
            std::thread::sleep(Duration::from_millis(1));
            live.world.send();
            for bytes in &live.world.down {
                let secret = bytes.windows(6).any(|window| window == b"secret");
                assert!(!secret, "a content or a name was sent after {drains} drains, {is_before}");
            }
            for item in live.world.items() {
                let secret = matches!(&item, Item::State { entry, .. }
                    if entry.kind == Kind::Regular { size });
                assert!(!secret, "{item:?} was sent after {drains} drains, {is_before}");
            }
            live.world.deliver();
            live.world.answer();
        }
    }
    // Nor is it read by the name of what is behind a link.
    let scratch = common::machine::scratch();
    for directory in ["root/d", "outside"] {
        fs::create_dir_all(scratch.path().join(directory)).unwrap();
    }
    fs::write(scratch.path().join("outside/f"), "secret").unwrap();
    symlink("../outside", scratch.path().join("root/link")).unwrap();
    symlink("../../outside/f", scratch.path().join("root/d/f")).unwrap();
    let mut reader = Reader::new(Root::open(&scratch.path().join("root")).unwrap());
    assert!(look(&mut reader, "link/f").is_none());
    let link = look(&mut reader, "d/f").unwrap();
    assert!(matches!(link.entry.kind, Kind::Symlink { .. }));
}

#[test]
fn i7_a_downstream_that_takes_nothing_is_sent_no_more_than_the_window() {
    let mut live = Live::new(|src| fs::create_dir(src.join("d")).unwrap());
    // The big one first, so that both its chunks and the small ones have to stop.
    fs::write(live.src.join("big"), vec![8; 14_000_000]).unwrap();
    for number in 0..200 {
        fs::write(live.src.join(format!("d/{number}")), vec![7; 100_000]).unwrap();
    }
    let (mut idle, mut bytes) = (0, 0);
    while idle < 20 {
        if live.world.send() {
            let frame = live.world.down.back().unwrap();
            let is_items = with_frame(frame, |frame, _| frame.kind == FrameKind::Items);
            (idle, bytes) = (0, bytes + if is_items { frame.len() } else { 0 });
            assert!(bytes <= WINDOW_BYTES_MAX as usize + 2 * FRAME_BYTES_MAX, "{bytes} bytes");
        } else {
            idle += 1;
            std::thread::sleep(Duration::from_millis(1)); // For what the watch waits for.
        }
    }
    assert!(bytes > 1 << 20, "the window was not tried: {bytes} bytes");
    live.settle();
}
