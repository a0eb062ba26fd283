//! DESIGN 7, point by point, with real files: what the watch tells of a rename, what the source
//! sends, what the sink makes of it. Nothing runs by itself, so that each interleaving is the
//! same each time. The rules of the two sessions alone are in `tests/sessions.rs`.
//!
//! | point | tests |
//! |---|---|
//! | traps 1 to 5 | `trap_1_…` to `trap_5_…` |
//! | every rename is sent before a state is read | `every_rename_goes_before_any_state` |
//! | a state is used only if no rename was drained since | `a_rename_between_a_drain_and_a_read_…` and `…a_read_and_its_use_has_it_read_again`, and `tests/sessions.rs` |
//! | renames move stages too | `a_stage_follows_its_file`, `a_big_file_arrives_whatever_happens_on_its_way` in `tests/convergence.rs` |
//! | two watermarks, in hello and checkpoint | `hello_and_checkpoint_carry_two_watermarks` |
//! | the marker | `trap_4_…`, `the_marker_tells_…` in `src/tree/replica/tests/rename_rules.rs` |
//! | a lost marker, or an older one: reconcile | `a_replica_with_another_marker_than_it_wrote_is_compared` |
//! | after a crash of the machine: reconcile | `a_marker_of_another_boot_is_not_believed` |
//! | a directory that appears comes with its names | `a_directory_that_appears_is_sent_with_its_names_and_others_go` |
//! | a missing `from` is Need(to) | `a_rename_of_what_is_missing_needs_its_target` |
//! | missing parents are placeholders, and needed | `missing_parents_are_made_and_asked_for` |
//! | exchange | `an_exchange_of_files_…` and `…of_directories_is_one_record_and_makes_both_ends_dirty`, `a_move_there_and_back_is_no_exchange`, `an_exchange_carries_no_content_below` |
//! | a listing that finds a known directory elsewhere | in `src/watch/tests.rs` |
//! | a rename's two ends | `both_directories_of_a_rename_get_their_times` |
//! | hard links | `a_state_of_a_linked_file_names_all_its_names`, `a_rename_between_two_links_removes_the_first` in `src/tree/replica/tests/rename_rules.rs` |
//! | what is in a directory that is renamed while it is listed | `a_listing_during_which_something_was_renamed_loses_nothing` |

mod common;

use std::fs;

use common::live::{Live, version};
use common::operations::exchange;
use common::pair::inode;
use common::watched::Watched;
use common::world::with_frame;
use mirror::journal::checkpoint::Checkpoint;
use mirror::journal::state_file::Directory;
use mirror::model::TreePath;
use mirror::wire::{Content, Item, Message};

fn is_rename(item: &Item) -> bool {
    matches!(item, Item::Rename { .. } | Item::Exchange { .. })
}

fn path(text: &str) -> TreePath {
    TreePath::new(text).unwrap()
}

#[test]
fn trap_1_a_file_written_renamed_and_written_again() {
    let mut live = Live::new(|src| version(src.join("f"), 0));
    version(live.src.join("f"), 1);
    fs::rename(live.src.join("f"), live.src.join("g")).unwrap();
    version(live.src.join("f"), 2);
    live.settle();
    assert_eq!(fs::read(live.dst.join("g")).unwrap(), [b'1'; 100]);
}

#[test]
fn trap_2_a_file_written_below_a_directory_that_is_renamed() {
    let mut live = Live::new(|src| {
        fs::create_dir(src.join("d")).unwrap();
        version(src.join("d/x"), 0);
    });
    version(live.src.join("d/x"), 1);
    fs::rename(live.src.join("d"), live.src.join("e")).unwrap();
    live.settle();
    assert_eq!(fs::read(live.dst.join("e/x")).unwrap(), [b'1'; 100]);
}

#[test]
fn trap_3_an_exchange_and_a_move_there_and_back() {
    let mut live = Live::new(|src| {
        for (number, name) in ["d", "e"].into_iter().enumerate() {
            fs::create_dir(src.join(name)).unwrap();
            version(src.join(name).join("x"), number as u8);
            version(src.join(format!("{name}-file")), number as u8);
        }
    });
    exchange(&live.src.join("d"), &live.src.join("e")).unwrap();
    exchange(&live.src.join("d-file"), &live.src.join("e-file")).unwrap();
    live.settle();
    for name in ["d", "d-file"] {
        fs::rename(live.src.join(name), live.src.join("there")).unwrap();
        fs::rename(live.src.join("there"), live.src.join(name)).unwrap();
    }
    live.settle();
    // An exchange that is undone before it is told is no change, and not half of one.
    for _ in 0..2 {
        exchange(&live.src.join("d"), &live.src.join("e")).unwrap();
    }
    live.settle();
    assert_eq!(fs::read(live.dst.join("d/x")).unwrap(), [b'1'; 100]);
}

#[test]
fn trap_4_a_rename_is_not_done_again_after_a_crash() {
    let mut live = Live::new(|src| version(src.join("f"), 0));
    live.shut_down_sink();
    live.settle();
    fs::rename(live.src.join("f"), live.src.join("g")).unwrap();
    version(live.src.join("f"), 1);
    let renamed = live.sent().iter().find_map(|item| match item {
        Item::Rename { sequence, .. } => Some(*sequence),
        _ => None,
    });
    let renamed = renamed.unwrap();
    live.deliver();
    assert!(live.checkpoint().watermarks.unwrap().moved < renamed, "it is not checkpointed");
    live.world.kill_sink();
    live.world.connect();
    assert_eq!(live.watermarks().moved, renamed, "the marker tells that it was done");
    while live.world.answer() {}
    let again = live.sent();
    assert!(!again.iter().any(is_rename), "{again:?}");
    live.settle();
    assert_eq!(fs::read(live.dst.join("g")).unwrap(), [b'0'; 100]);
}

#[test]
fn trap_5_a_directory_moved_out_and_another_moved_in() {
    let mut live = Live::new(|src| {
        fs::create_dir_all(src.join("d/deep")).unwrap();
        version(src.join("d/deep/gone"), 0);
        version(src.join("d/both"), 0);
    });
    let outside = live.directory.path().join("outside");
    fs::create_dir_all(outside.join("other/new")).unwrap();
    version(outside.join("other/both"), 1);
    fs::rename(live.src.join("d"), outside.join("d")).unwrap();
    fs::rename(outside.join("other"), live.src.join("d")).unwrap();
    live.settle();
    assert!(!live.dst.join("d/deep").exists() && live.dst.join("d/new").exists());
}

#[test]
fn every_rename_goes_before_any_state() {
    let mut live = Live::new(|src| {
        for name in ["d", "e"] {
            fs::create_dir(src.join(name)).unwrap();
            version(src.join(name).join("x"), 0);
        }
    });
    for round in 1..4 {
        version(live.src.join("a"), round);
        fs::rename(live.src.join("d/x"), live.src.join(format!("d/x{round}"))).unwrap();
        version(live.src.join("d/x"), round);
        fs::rename(live.src.join("e"), live.src.join("f")).unwrap();
        fs::rename(live.src.join("f"), live.src.join("e")).unwrap();
    }
    let items = live.sent();
    let first_state = items.iter().position(|item| !is_rename(item)).unwrap();
    assert_eq!(items[..first_state].len(), items.iter().filter(|item| is_rename(item)).count());
    assert_eq!(first_state, 9);
    live.settle();
}

#[test]
fn a_rename_between_a_read_and_its_use_has_it_read_again() {
    // So many drains come before the rename.
    for drains in 0..6 {
        let mut live = Live::new(|src| {
            fs::create_dir(src.join("d")).unwrap();
            version(src.join("d/x"), 0);
        });
        version(live.src.join("d/x"), 1);
        let src = live.src.clone();
        let mut race = live.world.race.borrow_mut();
        race.changes.extend((0..drains).map(|_| Box::new(|| {}) as Box<dyn FnOnce()>));
        race.changes.push_back(Box::new(move || {
            fs::rename(src.join("d"), src.join("e")).unwrap();
            fs::create_dir(src.join("d")).unwrap();
            version(src.join("d/x"), 2);
        }));
        drop(race);
        live.settle();
        assert_eq!(fs::read(live.dst.join("e/x")).unwrap(), [b'1'; 100], "{drains} drains");
        assert_eq!(fs::read(live.dst.join("d/x")).unwrap(), [b'2'; 100], "{drains} drains");
    }
}

#[test]
fn a_rename_between_a_drain_and_a_read_has_it_read_again() {
    // So many drains come before the rename. What is read then is of another entry, in the same
    // directory.
    for drains in 0..6 {
        let mut live = Live::new(|src| version(src.join("f"), 0));
        version(live.src.join("f"), 1);
        let src = live.src.clone();
        let mut race = live.world.race.borrow_mut();
        race.changes_after.extend((0..drains).map(|_| Box::new(|| {}) as Box<dyn FnOnce()>));
        race.changes_after.push_back(Box::new(move || {
            fs::rename(src.join("f"), src.join("g")).unwrap();
            version(src.join("f"), 2);
        }));
        drop(race);
        live.settle();
        assert_eq!(fs::read(live.dst.join("g")).unwrap(), [b'1'; 100], "{drains} drains");
        assert_eq!(fs::read(live.dst.join("f")).unwrap(), [b'2'; 100], "{drains} drains");
    }
}

#[test]
fn a_stage_follows_its_file() {
    let mut live = Live::new(|src| fs::create_dir(src.join("d")).unwrap());
    fs::write(live.src.join("d/big"), vec![1; 700_000]).unwrap();
    live.world.send();
    let opened = |item: &Item| matches!(item, Item::StageOpen { .. });
    assert_eq!(live.world.items().iter().filter(|item| opened(item)).count(), 1);
    fs::rename(live.src.join("d"), live.src.join("e")).unwrap();
    let items = live.sent();
    // It is neither given up nor begun anew, and comes to its new place.
    assert_eq!(items.iter().filter(|item| opened(item)).count(), 1);
    assert!(!items.iter().any(|item| matches!(item, Item::StageAbort { .. })), "{items:?}");
    let placed = items.iter().find_map(|item| match item {
        Item::State { path, content: Content::Staged { .. }, .. } => Some(path),
        _ => None,
    });
    assert_eq!(placed, Some(&path("e/big")));
    live.settle();
}

#[test]
fn hello_and_checkpoint_carry_two_watermarks() {
    let mut live = Live::new(|src| version(src.join("f"), 0));
    fs::write(live.src.join("big"), vec![1; 3_000_000]).unwrap();
    fs::rename(live.src.join("f"), live.src.join("g")).unwrap();
    live.world.send();
    live.world.deliver();
    // The rename is done; the record before it is not, until the big file is in place.
    let marks = live.watermarks();
    assert!(live.dst.join("g").exists() && !live.dst.join("big").exists());
    assert!(marks.moved > marks.applied, "{marks:?}");
    live.shut_down_sink();
    assert_eq!(live.checkpoint().watermarks, Some(marks));
    live.world.connect();
    live.world.deliver();
    let hello = with_frame(live.world.up.front().unwrap(), |frame, _| frame.message().unwrap());
    let Message::DownstreamHello(hello) = hello else { panic!("{hello:?}") };
    assert_eq!(hello.watermarks, Some(marks));
    while live.world.answer() {}
    let items = live.sent();
    // States may come again, renames never.
    assert!(items.iter().any(|item| matches!(item, Item::StageOpen { .. })), "{items:?}");
    assert!(!items.iter().any(is_rename), "{items:?}");
    live.settle();
}

#[test]
fn a_marker_of_another_boot_is_not_believed() {
    let mut live = Live::new(|src| version(src.join("f"), 0));
    live.shut_down_sink();
    live.settle();
    fs::rename(live.src.join("f"), live.src.join("g")).unwrap();
    live.sent();
    live.deliver();
    live.world.kill_sink();
    // Written in another life of the machine, beside a marker that is ahead of it.
    let checkpoint = Checkpoint { boot_id: 1, ..live.checkpoint() };
    checkpoint.save(&Directory::open(&live.dst.join(".mirror")).unwrap()).unwrap();
    live.world.connect();
    let state = live.world.sink.as_ref().unwrap().state();
    assert_eq!(state.watermarks, None, "the tree must be compared");
    live.settle();
}

#[test]
fn a_directory_that_appears_is_sent_with_its_names_and_others_go() {
    let mut live = Live::new(|_| {});
    fs::create_dir(live.dst.join("d")).unwrap();
    version(live.dst.join("d/stray"), 0);
    fs::create_dir(live.src.join("d")).unwrap();
    for name in ["f", "g"] {
        version(live.src.join("d").join(name), 1);
    }
    let items = live.sent();
    let names = items.iter().find_map(|item| match item {
        Item::Names { path: at, names, last: true, .. } if *at == path("d") => Some(names),
        _ => None,
    });
    let mut names: Vec<&[u8]> = names.unwrap().iter().map(|name| &name[..]).collect();
    names.sort();
    assert_eq!(names, [b"f", b"g"]);
    live.settle();
    assert!(!live.dst.join("d/stray").exists());
}

#[test]
fn a_rename_of_what_is_missing_needs_its_target() {
    let mut live = Live::new(|src| {
        fs::create_dir(src.join("d")).unwrap();
        version(src.join("d/x"), 0);
        version(src.join("f"), 0);
    });
    fs::remove_dir_all(live.dst.join("d")).unwrap();
    fs::remove_file(live.dst.join("f")).unwrap();
    fs::rename(live.src.join("d"), live.src.join("e")).unwrap();
    fs::rename(live.src.join("f"), live.src.join("g")).unwrap();
    live.sent();
    live.deliver();
    let needs: Vec<Message> = live
        .world
        .up
        .iter()
        .map(|bytes| with_frame(bytes, |frame, _| frame.message().unwrap()))
        .collect();
    for wanted in ["e", "g"] {
        let found = needs.iter().any(|message| match message {
            Message::Need { path: at, content: true, .. } => *at == path(wanted),
            _ => false,
        });
        assert!(found, "{wanted} is not in {needs:?}");
    }
    live.settle();
}

#[test]
fn missing_parents_are_made_and_asked_for() {
    let mut live = Live::new(|src| {
        fs::create_dir_all(src.join("p/q")).unwrap();
        version(src.join("p/beside"), 0);
    });
    fs::remove_dir_all(live.dst.join("p")).unwrap();
    version(live.src.join("p/q/f"), 1);
    live.settle();
    assert!(live.dst.join("p/beside").exists());
}

#[test]
fn an_exchange_of_files_is_one_record_and_makes_both_ends_dirty() {
    let mut watched = Watched::new(|root| {
        for (number, name) in ["f", "g"].into_iter().enumerate() {
            version(root.join(name), number as u8);
        }
    });
    exchange(&watched.at("f"), &watched.at("g")).unwrap();
    assert_eq!(watched.records(), ["exchange f g", "content f", "content g"]);
}

#[test]
fn an_exchange_of_directories_is_one_record_and_makes_both_ends_dirty() {
    let mut watched = Watched::new(|root| {
        for (number, name) in ["d", "e"].into_iter().enumerate() {
            fs::create_dir_all(root.join(name).join("deep")).unwrap();
            version(root.join(format!("{name}-file")), number as u8);
        }
    });
    let before = watched.descriptors();
    for (a, b) in [("d-file", "e-file"), ("d", "e"), ("e", "d-file")] {
        exchange(&watched.at(a), &watched.at(b)).unwrap();
        let wanted = [format!("exchange {a} {b}"), format!("content {a}"), format!("content {b}")];
        assert_eq!(watched.records(), wanted);
    }
    // The watches went along.
    assert_eq!(watched.descriptors(), before);
    fs::write(watched.at("d-file/deep/f"), "f").unwrap();
    fs::write(watched.at("d/deep/f"), "f").unwrap();
    assert_eq!(watched.records(), ["content d-file/deep/f", "content d/deep/f"]);
}

#[test]
fn a_move_there_and_back_is_no_exchange() {
    let mut watched = Watched::new(|root| fs::create_dir_all(root.join("d/deep")).unwrap());
    fs::rename(watched.at("d"), watched.at("e")).unwrap();
    fs::rename(watched.at("e"), watched.at("d")).unwrap();
    let records = watched.records();
    let moves: Vec<&String> = records
        .iter()
        .filter(|record| !record.contains("content") && !record.contains("attributes"))
        .collect();
    assert_eq!(moves, ["rename d e", "rename e d"]);
    fs::write(watched.at("d/deep/f"), "f").unwrap();
    assert_eq!(watched.records(), ["content d/deep/f"]);
}

#[test]
fn an_exchange_carries_no_content_below() {
    let mut live = Live::new(|src| {
        for (number, name) in ["d", "e"].into_iter().enumerate() {
            fs::create_dir(src.join(name)).unwrap();
            version(src.join(name).join("x"), number as u8);
        }
    });
    let inodes = ["d/x", "e/x"].map(|name| inode(&live.dst.join(name)));
    exchange(&live.src.join("d"), &live.src.join("e")).unwrap();
    live.settle();
    assert_eq!(["e/x", "d/x"].map(|name| inode(&live.dst.join(name))), inodes);
}

#[test]
fn both_directories_of_a_rename_get_their_times() {
    let mut live = Live::new(|src| {
        for name in ["a", "b"] {
            fs::create_dir(src.join(name)).unwrap();
            version(src.join(name).join("x"), 0);
        }
    });
    for (from, to) in [("a/x", "b/y"), ("b/y", "c"), ("b", "a/b"), ("a/b/x", "a/x")] {
        fs::rename(live.src.join(from), live.src.join(to)).unwrap();
        live.settle();
    }
}

#[test]
fn a_state_of_a_linked_file_names_all_its_names() {
    let mut live = Live::new(|src| {
        fs::create_dir(src.join("d")).unwrap();
        version(src.join("f"), 0);
        for link in ["g", "d/h"] {
            fs::hard_link(src.join("f"), src.join(link)).unwrap();
        }
    });
    version(live.src.join("g"), 1);
    let items = live.sent();
    let state = items.iter().find_map(|item| match item {
        Item::State { path, content: Content::Inline { .. }, links, .. } => {
            Some([std::slice::from_ref(path), &links[..]].concat())
        }
        _ => None,
    });
    let mut names = state.unwrap();
    names.sort();
    assert_eq!(names, [path("d/h"), path("f"), path("g")]);
    live.settle();
    assert_eq!(inode(&live.dst.join("f")), inode(&live.dst.join("d/h")));
}

/// Every place of a rename against a directory that is being listed: the directory itself, what
/// is above it, what is in it, what comes into it, what takes its name.
#[test]
fn a_listing_during_which_something_was_renamed_loses_nothing() {
    let moves: &[&[(&str, &str)]] = &[
        &[("p/d", "p/e")],
        &[("p", "q")],
        &[("p/d", "../outside/d")],
        &[("p/d/sub", "p/d/sub2")],
        &[("p/d/sub", "sub")],
        &[("p/d/f", "p/d/g")],
        &[("p/d/f", "f")],
        &[("other", "p/d/other")],
        &[("other/f", "p/d/f2")],
        &[("p/d/sub", "p/d/sub2"), ("other", "p/d/sub")],
        &[("p/d", "p/e"), ("other", "p/d")],
        &[("p/d", "../outside/d"), ("other", "p/d")],
        &[("p/d/sub", "sub"), ("p/d", "sub/d")],
        &[("p/d/sub", "../outside/sub"), ("../outside/sub", "p/d/back")],
        &[("p/d", "other/d"), ("other", "p/d")],
    ];
    for moves in moves {
        // Before which listing: of the directory, of the first one in it, …
        for at in 1..4 {
            let mut live = Live::new(|src| {
                for directory in ["other/sub", "p"] {
                    fs::create_dir_all(src.join(directory)).unwrap();
                }
                version(src.join("other/f"), 3);
            });
            let (src, mut listings) = (live.src.clone(), 0);
            live.world.source.feed().watch.on_listed(Box::new(move || {
                listings += 1;
                if listings == at {
                    for (from, to) in *moves {
                        // What is not there yet, or not any more, does not move.
                        let _ = fs::rename(src.join(from), src.join(to));
                    }
                }
            }));
            fs::create_dir_all(live.src.join("p/d/sub/deep")).unwrap();
            for name in ["p/d/f", "p/d/sub/f", "p/d/sub/deep/f"] {
                version(live.src.join(name), 1);
            }
            println!("{moves:?} at listing {at}");
            live.settle();
            // Whatever is in the tree is watched under the name that it has.
            let mut pending = vec![live.src.clone()];
            while let Some(directory) = pending.pop() {
                fs::write(directory.join("last"), "last").unwrap();
                let entries = fs::read_dir(&directory).unwrap().map(|entry| entry.unwrap().path());
                pending.extend(entries.filter(|path| path.is_dir()));
            }
            live.settle();
        }
    }
}

/// Renames are never repeated, also by a replica that lost its marker or has an older one: it
/// does not know what it did since its checkpoint, so it is compared.
#[test]
fn a_replica_with_another_marker_than_it_wrote_is_compared() {
    for has_older in [false, true] {
        let mut live = Live::new(|src| {
            for (number, name) in ["x", "f", "g"].into_iter().enumerate() {
                fs::create_dir(src.join(name)).unwrap();
                version(src.join(name).join("in"), number as u8);
            }
        });
        fs::rename(live.src.join("x"), live.src.join("y")).unwrap();
        live.settle();
        live.shut_down_sink();
        live.settle();
        let control = live.dst.join(".mirror");
        let marker = || {
            let names = fs::read_dir(&control).unwrap();
            let mut paths = names.map(|entry| entry.unwrap().path());
            let is_marker = |path: &std::path::PathBuf| {
                path.file_name().unwrap().to_string_lossy().starts_with("moved-")
            };
            paths.find(is_marker).unwrap()
        };
        let older = (marker(), fs::read(marker()).unwrap());
        // A ring: applied again it would turn further, and no size or time would show it.
        for (from, to) in [("y", "between"), ("f", "y"), ("g", "f"), ("between", "g")] {
            fs::rename(live.src.join(from), live.src.join(to)).unwrap();
        }
        live.settle();
        live.world.kill_sink();
        fs::remove_file(marker()).unwrap();
        if has_older {
            fs::write(older.0, older.1).unwrap();
        }
        live.settle();
        assert_eq!(fs::read(live.dst.join("y/in")).unwrap(), [b'1'; 100]);
    }
}
