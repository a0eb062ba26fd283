//! DESIGN 6, point by point, on the real watch and a real tree: what inotify does to the
//! careless. The order is the section's.
//!
//! | point | tests |
//! |---|---|
//! | watch first, list second | `what_happens_while_a_directory_is_listed_is_not_lost` |
//! | what appears is journaled with everything in it | `a_directory_that_appears_is_told_with_all_that_is_in_it` |
//! | watches follow renames, in O(1) | `watches_follow_a_renamed_directory`, `a_big_subtree_moves_without_a_look_at_what_is_in_it` |
//! | MOVED_FROM alone is a removal | `moved_out_of_the_tree_is_a_removal_and_its_watches_go`, `the_second_half_of_a_rename_is_waited_for` |
//! | the pair need not be adjacent | `halves_that_are_not_adjacent_are_one_rename` in `src/watch/tests.rs` |
//! | moved-in directories are new | `a_directory_that_is_moved_in_is_new_with_all_that_is_in_it` |
//! | one descriptor for each directory | `every_directory_has_one_watch_and_nothing_else_has` |
//! | events of removed descriptors | `events_of_a_removed_watch_tell_nothing` in `src/watch/tests.rs` |
//! | hard links are tracked by inode | `a_write_through_one_name_is_told_under_all_names`, `a_name_that_is_added_or_removed_later_is_followed` |
//! | content is final at CLOSE_WRITE, without delay | `a_closed_file_is_told_at_once` |
//! | an open file is told after a rest, at a bounded rate | `a_file_that_stays_open_is_told_after_a_rest`, `a_file_that_never_rests_is_told_at_a_bounded_rate` in `src/watch/tests.rs` |
//! | truncate(2) by path | `truncation_by_path_is_told_without_a_close` |
//! | what is never opened acts at once | `what_is_never_opened_is_told_at_once` |
//! | ATTRIB alone never resends content | `attributes_alone_are_told_without_content` |
//! | mmap writes | `a_write_through_a_mapping_is_told_when_the_mapping_ends` |
//! | drain before any other work, to the end | `all_events_are_read_before_a_directory_is_listed` |
//! | repeats are merged | `repeats_are_told_once` |
//! | overflow looks only for what changed | `after_an_overflow_only_what_changed_is_told`, `after_an_overflow_a_directory_that_is_mounted_twice_has_not_moved`, and `tests/faults.rs` |
//! | each directory has one place | `of_two_places_the_one_where_nothing_is_mounted_is_mirrored` |
//! | the watch limit | `watch_limit_is_met_with_words_and_rescans` in `tests/faults.rs` |
//! | what is never mirrored costs no watch | `reserved_names_are_not_told_and_cost_no_watch` |
//! | the work of a turn is bounded | `a_turn_lists_for_a_bounded_time_and_asks_for_another` |
//! | what raises no event | `what_raised_no_event_is_found_by_a_rescan` |

mod common;

use std::cell::RefCell;
use std::fs::{self, File, FileTimes};
use std::io::{Read as _, Write as _};
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};
use std::path::Path;
use std::rc::Rc;
use std::time::{Duration, Instant, SystemTime};

use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, XattrFlags};

use common::machine::{Bind, need_root};
use common::operations::{Operations, acl};
use common::watched::Watched;
use mirror::role::{Feed as _, Progress};

#[test]
fn what_happens_while_a_directory_is_listed_is_not_lost() {
    let mut watched = Watched::new(|_| {});
    let late = watched.at("d/late");
    let mut times = 0;
    watched.watch.on_listed(Box::new(move || {
        times += 1;
        if times == 1 {
            fs::write(&late, "late").unwrap();
        }
    }));
    fs::create_dir(watched.at("d")).unwrap();
    let records = watched.records();
    assert!(has(&records, "content d/late"), "{records:?}");
}

#[test]
fn a_directory_that_appears_is_told_with_all_that_is_in_it() {
    let mut watched = Watched::new(|_| {});
    fs::create_dir_all(watched.at("a/b/c")).unwrap();
    fs::write(watched.at("a/b/c/f"), "f").unwrap();
    fs::write(watched.at("a/g"), "g").unwrap();
    let records = watched.records();
    for path in ["a", "a/b", "a/b/c", "a/b/c/f", "a/g"] {
        assert!(has(&records, &format!("content {path}")), "{path} is not in {records:?}");
    }
    // And it is watched from then on.
    fs::write(watched.at("a/b/c/f"), "again").unwrap();
    assert_eq!(watched.records(), ["content a/b/c/f"]);
}

#[test]
fn watches_follow_a_renamed_directory() {
    let mut watched = Watched::new(|root| {
        fs::create_dir_all(root.join("d/deep")).unwrap();
        fs::create_dir(root.join("other")).unwrap();
        fs::write(root.join("d/deep/f"), "f").unwrap();
    });
    let before = watched.descriptors();
    fs::rename(watched.at("d"), watched.at("other/e")).unwrap();
    assert_eq!(watched.records(), ["rename d other/e", "content d", "attributes other/e"]);
    assert_eq!(watched.descriptors(), before);
    fs::write(watched.at("other/e/deep/f"), "changed").unwrap();
    assert_eq!(watched.records(), ["content other/e/deep/f"]);
}

#[test]
fn a_big_subtree_moves_without_a_look_at_what_is_in_it() {
    let mut watched = Watched::new(|root| {
        for directory in 0..300 {
            fs::create_dir_all(root.join(format!("d/{}/{directory}", directory % 7))).unwrap();
        }
    });
    let (before, listings) = (watched.descriptors(), Rc::new(RefCell::new(0)));
    let count = listings.clone();
    watched.watch.on_listed(Box::new(move || *count.borrow_mut() += 1));
    fs::rename(watched.at("d"), watched.at("e")).unwrap();
    assert_eq!(watched.records(), ["rename d e", "content d", "attributes e"]);
    assert_eq!(*listings.borrow(), 0, "directories were listed for a rename");
    assert_eq!(watched.descriptors(), before);
}

#[test]
fn moved_out_of_the_tree_is_a_removal_and_its_watches_go() {
    let mut watched = Watched::new(|root| {
        fs::create_dir_all(root.join("d/deep")).unwrap();
        fs::write(root.join("f"), "f").unwrap();
    });
    fs::rename(watched.at("d"), watched.outside.join("d")).unwrap();
    fs::rename(watched.at("f"), watched.outside.join("f")).unwrap();
    assert_eq!(watched.records(), ["content d", "content f"]);
    assert_eq!(watched.descriptors().len(), 1, "only the root is left");
    fs::write(watched.outside.join("d/deep/g"), "not ours").unwrap();
    fs::create_dir(watched.outside.join("d/deep/h")).unwrap();
    assert_eq!(watched.records(), Vec::<String>::new());
}

#[test]
fn the_second_half_of_a_rename_is_waited_for() {
    let mut watched = Watched::new(|root| fs::write(root.join("f"), "f").unwrap());
    fs::rename(watched.at("f"), watched.outside.join("f")).unwrap();
    // It may be about to be told where the file went, so nothing is told and nothing is read.
    assert_eq!(watched.turn(), Vec::<String>::new());
    assert!(!watched.watch.is_settled());
    let due = watched.watch.poll_timeout().unwrap();
    assert!(due <= Instant::now() + Duration::from_millis(10), "the wait is short");
    assert_eq!(watched.wait_for("content f"), ["content f"]);
}

#[test]
fn a_directory_that_is_moved_in_is_new_with_all_that_is_in_it() {
    let mut watched = Watched::new(|_| {});
    fs::create_dir_all(watched.outside.join("d/deep")).unwrap();
    fs::write(watched.outside.join("d/deep/f"), "f").unwrap();
    fs::rename(watched.outside.join("d"), watched.at("in")).unwrap();
    let records = watched.records();
    for path in ["in", "in/deep", "in/deep/f"] {
        assert!(has(&records, &format!("content {path}")), "{path} is not in {records:?}");
    }
    fs::write(watched.at("in/deep/f"), "again").unwrap();
    assert_eq!(watched.records(), ["content in/deep/f"]);
}

/// Whatever is done to directories, and whenever it is looked at.
#[test]
fn every_directory_has_one_watch_and_nothing_else_has() {
    for seed in 0..40 {
        let mut watched = Watched::new(|_| {});
        let mut operations = Operations::new(&watched.root, &watched.outside, seed);
        let mut random = fastrand::Rng::with_seed(seed);
        let mut log = Vec::new();
        for _ in 0..60 {
            log.push(operations.step());
            if random.u8(..4) == 0 {
                log.push(format!("told: {:?}", watched.turn()));
            }
        }
        log.push(format!("told: {:?}", watched.records()));
        let mut directories = inodes_of_directories(&watched.root);
        directories.sort();
        let log = || log.join("\n");
        assert_eq!(watched.inodes(), directories, "seed {seed}:\n{}", log());
    }
}

#[test]
fn a_write_through_one_name_is_told_under_all_names() {
    let mut watched = Watched::new(|root| {
        for directory in ["a", "b"] {
            fs::create_dir(root.join(directory)).unwrap();
        }
        fs::write(root.join("a/f"), "f").unwrap();
        fs::hard_link(root.join("a/f"), root.join("b/g")).unwrap();
    });
    File::options().append(true).open(watched.at("b/g")).unwrap().write_all(b"more").unwrap();
    let mut records = watched.records();
    records.sort();
    assert_eq!(records, ["content a/f", "content b/g"]);
    fs::set_permissions(watched.at("a/f"), fs::Permissions::from_mode(0o600)).unwrap();
    let mut records = watched.records();
    records.sort();
    assert_eq!(records, ["attributes a/f", "attributes b/g"]);
}

#[test]
fn a_name_that_is_added_or_removed_later_is_followed() {
    let mut watched = Watched::new(|root| {
        for directory in ["a", "b"] {
            fs::create_dir(root.join(directory)).unwrap();
        }
        fs::write(root.join("a/f"), "f").unwrap();
    });
    // It is not told that the old name became one of two.
    fs::hard_link(watched.at("a/f"), watched.at("b/g")).unwrap();
    assert_eq!(watched.records(), ["name b/g"]);
    fs::rename(watched.at("b/g"), watched.at("b/h")).unwrap();
    watched.records();
    fs::write(watched.at("a/f"), "changed").unwrap();
    let mut records = watched.records();
    records.sort();
    assert_eq!(records, ["content a/f", "content b/h"]);
    fs::remove_file(watched.at("a/f")).unwrap();
    assert_eq!(watched.records(), ["content a/f"]);
    fs::write(watched.at("b/h"), "alone").unwrap();
    assert_eq!(watched.records(), ["content b/h"]);
}

#[test]
fn a_closed_file_is_told_at_once() {
    let mut watched = Watched::new(|_| {});
    for content in ["new", "", "again"] {
        fs::write(watched.at("f"), content).unwrap();
        assert_eq!(watched.turn(), ["content f"]);
        assert!(watched.watch.is_settled());
    }
}

#[test]
fn a_file_that_stays_open_is_told_after_a_rest() {
    let mut watched = Watched::new(|root| fs::write(root.join("f"), "f").unwrap());
    let path = mirror::model::TreePath::new("f").unwrap();
    let mut file = File::options().append(true).open(watched.at("f")).unwrap();
    for _ in 0..2 {
        file.write_all(b"more").unwrap();
        assert_eq!(watched.turn(), Vec::<String>::new(), "it is being written to");
        assert_eq!(watched.watch.progress(&path), Progress::Writing);
        watched.wait_for("content f");
    }
    // One that was made and not written to yet is no different.
    let _open = File::create(watched.at("new")).unwrap();
    assert_eq!(watched.turn(), Vec::<String>::new(), "it is about to be written to");
    watched.wait_for("content new");
}

#[test]
fn truncation_by_path_is_told_without_a_close() {
    let mut watched = Watched::new(|root| fs::write(root.join("f"), "content").unwrap());
    assert!(watched.helper(&["truncate", "f", "3"]).wait().unwrap().success());
    assert_eq!(fs::read(watched.at("f")).unwrap(), b"con");
    watched.wait_for("content f");
}

type Operation = Box<dyn FnOnce()>;

#[test]
fn what_is_never_opened_is_told_at_once() {
    let mut watched = Watched::new(|root| {
        for name in ["file", "other", "going"] {
            fs::write(root.join(name), name).unwrap();
        }
    });
    let at = |name: &str| watched.root.join(name);
    let fifo = at("fifo");
    let unnamed = rustix::fs::open(&watched.root, OFlags::TMPFILE | OFlags::RDWR, Mode::RUSR);
    let unnamed = unnamed.expect("a file without a name");
    rustix::io::write(&unnamed, b"complete").unwrap();
    let (from, named) = (format!("/proc/self/fd/{}", unnamed.as_raw_fd()), at("named"));
    let (directory, link, source) = (at("directory"), at("link"), at("file"));
    let (symbolic, going) = (at("symbolic"), at("going"));
    let (other, renamed) = (at("other"), at("renamed"));
    let operations: Vec<(&str, Operation)> = vec![
        ("content directory", Box::new(move || fs::create_dir(directory).unwrap())),
        ("content symbolic", Box::new(move || symlink("file", symbolic).unwrap())),
        (
            "content fifo",
            Box::new(move || {
                rustix::fs::mknodat(CWD, fifo, FileType::Fifo, Mode::RUSR, 0).unwrap();
            }),
        ),
        ("name link", Box::new(move || fs::hard_link(source, link).unwrap())),
        ("rename other renamed", Box::new(move || fs::rename(other, renamed).unwrap())),
        ("content going", Box::new(move || fs::remove_file(going).unwrap())),
        (
            "content named",
            Box::new(move || {
                rustix::fs::linkat(CWD, from, CWD, named, AtFlags::SYMLINK_FOLLOW).unwrap();
            }),
        ),
    ];
    for (wanted, operation) in operations {
        operation();
        let records = watched.turn();
        assert!(has(&records, wanted), "{wanted} is not in {records:?}");
    }
    drop(unnamed);
}

#[test]
fn attributes_alone_are_told_without_content() {
    let mut watched = Watched::new(|root| {
        fs::write(root.join("f"), "f").unwrap();
        fs::create_dir(root.join("d")).unwrap();
    });
    for name in ["f", "d"] {
        let path = watched.at(name);
        let owner = fs::metadata(&path).unwrap();
        let mut check = |what: &str| {
            assert_eq!(watched.turn(), [format!("attributes {name}")], "{what}");
        };
        fs::set_permissions(&path, fs::Permissions::from_mode(0o700)).unwrap();
        check("chmod");
        std::os::unix::fs::chown(&path, Some(owner.uid()), Some(owner.gid())).unwrap();
        check("chown");
        let times = FileTimes::new().set_modified(SystemTime::UNIX_EPOCH);
        let both = times.set_accessed(SystemTime::UNIX_EPOCH);
        File::open(&path).unwrap().set_times(both).unwrap();
        check("utimes");
        rustix::fs::setxattr(&path, "user.one", b"1", XattrFlags::empty()).unwrap();
        check("setxattr");
        let list = acl(1000, 7);
        rustix::fs::setxattr(&path, "system.posix_acl_access", &list, XattrFlags::empty()).unwrap();
        check("an ACL");
        // The kernel tells one time alone as it tells a write.
        File::open(&path).unwrap().set_times(times).unwrap();
        watched.wait_for(&format!("content {name}"));
    }
}

#[test]
fn a_write_through_a_mapping_is_told_when_the_mapping_ends() {
    let mut watched = Watched::new(|root| fs::write(root.join("f"), vec![b'.'; 4096]).unwrap());
    let mut helper = watched.helper(&["map", "f"]);
    let mut said = [0; 7];
    helper.stdout.as_mut().unwrap().read_exact(&mut said).unwrap();
    assert_eq!(&said, b"written");
    watched.records();
    drop(helper.stdin.take());
    assert!(helper.wait().unwrap().success());
    assert_eq!(watched.turn(), ["content f"]);
}

#[test]
fn all_events_are_read_before_a_directory_is_listed() {
    let mut watched = Watched::new(|_| {});
    let descriptor = watched.watch.descriptor().unwrap().try_clone_to_owned().unwrap();
    let pending = Rc::new(RefCell::new(Vec::new()));
    let seen = pending.clone();
    watched.watch.on_listed(Box::new(move || {
        seen.borrow_mut().push(rustix::io::ioctl_fionread(&descriptor).unwrap());
    }));
    fs::create_dir(watched.at("d")).unwrap();
    // One event each, together more than any one read brings. They tell nothing, or handling
    // them would take so long that the turn ends before the listing.
    for number in 0..5000 {
        symlink("nowhere", watched.at(&format!(".mirror-stage-{number}"))).unwrap();
    }
    symlink("nowhere", watched.at("last")).unwrap();
    let records = watched.records();
    assert_eq!(*pending.borrow(), [0], "bytes of events were left in the queue");
    assert!(has(&records, "content last"), "{records:?}");
}

#[test]
fn repeats_are_told_once() {
    let mut watched = Watched::new(|_| {});
    for round in 0..200 {
        fs::write(watched.at("f"), format!("{round}")).unwrap();
        let mode = fs::Permissions::from_mode(0o600 + round % 8);
        fs::set_permissions(watched.at("f"), mode).unwrap();
    }
    assert_eq!(watched.records(), ["content f"]);
}

#[test]
fn after_an_overflow_only_what_changed_is_told() {
    let mut watched = Watched::new(|root| {
        for directory in 0..20 {
            for file in 0..4 {
                fs::create_dir_all(root.join(format!("{directory}/below"))).unwrap();
                fs::write(root.join(format!("{directory}/{file}")), "first").unwrap();
            }
        }
        rest(root);
    });
    fs::create_dir_all(watched.outside.join("in/old")).unwrap();
    fs::write(watched.outside.join("in/old/f"), "moved in").unwrap();
    rest(&watched.outside);
    assert_eq!(watched.records(), Vec::<String>::new());
    fs::rename(watched.at("1"), watched.at("moved")).unwrap();
    fs::rename(watched.at("2"), watched.at("moved/two")).unwrap();
    fs::write(watched.at("3/1"), "other").unwrap();
    File::open(watched.at("3/1")).unwrap().set_modified(SystemTime::UNIX_EPOCH).unwrap();
    fs::remove_file(watched.at("4/1")).unwrap();
    File::open(watched.at("4")).unwrap().set_modified(SystemTime::UNIX_EPOCH).unwrap();
    fs::set_permissions(watched.at("5/1"), fs::Permissions::from_mode(0o600)).unwrap();
    fs::remove_dir_all(watched.at("6")).unwrap();
    fs::rename(watched.outside.join("in"), watched.at("7/in")).unwrap();
    watched.watch.lose_events();
    let records = watched.records();
    let wanted = [
        "rename 1 moved",
        "rename 2 moved/two",
        "content 3/1",
        "content 4",
        "content 5/1",
        "content 6",
        "content 7",
        "content 7/in",
        "content 7/in/old",
        "content 7/in/old/f",
    ];
    for wanted in wanted {
        assert!(has(&records, wanted), "{wanted} is not in {records:?}");
    }
    let position = |wanted: &str| records.iter().position(|record| record == wanted);
    assert!(position("rename 1 moved") < position("rename 2 moved/two"));
    for untouched in [0].into_iter().chain(8..20) {
        let is_of = |record: &&String| {
            let path = record.split(' ').nth(1).unwrap();
            path.split('/').next() == Some(&untouched.to_string())
        };
        assert_eq!(records.iter().find(is_of), None, "nothing happened to {untouched}");
    }
    let again = |path: &str| records.iter().any(|record| record.ends_with(path));
    assert!(!again("3/2") && !again("moved/0"), "files beside those that changed: {records:?}");
    fs::write(watched.at("moved/two/0"), "watched").unwrap();
    assert_eq!(watched.records(), ["content moved/two/0"]);
}

#[test]
fn reserved_names_are_not_told_and_cost_no_watch() {
    let mut watched = Watched::new(|root| {
        fs::create_dir_all(root.join(".mirror/stage")).unwrap();
        fs::create_dir_all(root.join("d/.mirror-stage-1/below")).unwrap();
        fs::create_dir(root.join("e")).unwrap();
    });
    assert_eq!(watched.descriptors().len(), 3, "the root, d and e");
    fs::write(watched.at(".mirror/stage/f"), "f").unwrap();
    fs::write(watched.at("d/.mirror-stage-1/f"), "f").unwrap();
    fs::write(watched.at(".mirror-stage-2"), "f").unwrap();
    fs::create_dir(watched.at("d/.mirror-stage-3")).unwrap();
    assert_eq!(watched.records(), Vec::<String>::new());
    assert_eq!(watched.descriptors().len(), 3);
    // What is moved there leaves the tree, and what comes from there is new.
    fs::rename(watched.at("e"), watched.at("d/.mirror-stage-4")).unwrap();
    assert_eq!(watched.records(), ["content e"]);
    assert_eq!(watched.descriptors().len(), 2);
    fs::rename(watched.at("d/.mirror-stage-1"), watched.at("new")).unwrap();
    let records = watched.records();
    assert!(has(&records, "content new") && has(&records, "content new/f"), "{records:?}");
    // Only the root's own is reserved.
    fs::write(watched.at("d/.mirror"), "f").unwrap();
    assert_eq!(watched.records(), ["content d/.mirror"]);
}

#[test]
fn a_turn_lists_for_a_bounded_time_and_asks_for_another() {
    let mut watched = Watched::unscanned(|root| {
        for directory in 0..3000 {
            fs::create_dir(root.join(directory.to_string())).unwrap();
        }
    });
    assert_eq!(watched.watch.poll_event(), None);
    let watches = watched.descriptors().len();
    assert!(!watched.watch.is_settled(), "{watches} directories in one turn");
    assert!(watched.watch.poll_timeout().unwrap() <= Instant::now(), "there is more to do");
    assert_eq!(watched.records(), Vec::<String>::new());
    assert_eq!(watched.descriptors().len(), 3001);
}

#[test]
fn what_raised_no_event_is_found_by_a_rescan() {
    let mut watched = Watched::new(|root| {
        for name in ["f", "g"] {
            fs::write(root.join(name), "first").unwrap();
        }
        rest(root);
    });
    let elsewhere = watched.outside.join("f");
    fs::hard_link(watched.at("f"), &elsewhere).unwrap();
    rest(&elsewhere);
    watched.watch.rescan();
    watched.records();
    fs::write(&elsewhere, "other").unwrap();
    assert_eq!(watched.records(), Vec::<String>::new(), "a write through a link outside");
    watched.watch.rescan();
    let records = watched.wait_for("content f");
    assert!(!has(&records, "content g"), "{records:?}");
}

#[test]
fn after_an_overflow_a_directory_that_is_mounted_twice_has_not_moved() {
    if !need_root("after_an_overflow_a_directory_that_is_mounted_twice_has_not_moved") {
        return;
    }
    let mut watched = Watched::new(|root| {
        for name in ["a/d/deep", "b/d", "all"] {
            fs::create_dir_all(root.join(name)).unwrap();
        }
        rest(&root.join("all"));
    });
    let bind = |of: &str, path: &str| Bind::new(&watched.root.join(of), &watched.root.join(path));
    let _mounts = match bind("a/d", "b/d").and_then(|first| Ok((first, bind("", "all")?))) {
        Ok(mounts) => mounts,
        Err(error) => return common::skip(&format!("no bind mounts: {error}")),
    };
    watched.watch.lose_events();
    assert_eq!(watched.records(), Vec::<String>::new());
    fs::write(watched.at("a/d/deep/f"), "f").unwrap();
    assert_eq!(watched.records(), ["content a/d/deep/f"]);
}

#[test]
fn of_two_places_the_one_where_nothing_is_mounted_is_mirrored() {
    if !need_root("of_two_places_the_one_where_nothing_is_mounted_is_mirrored") {
        return;
    }
    // Enough for either to be listed first; a whole subtree, and one that is known as a part.
    let names: Vec<String> = (0..8).map(|number| number.to_string()).collect();
    let (mut mounts, outside) = (Vec::new(), tempfile::tempdir().unwrap());
    let mut watched = Watched::unscanned(|root| {
        for name in &names {
            fs::create_dir_all(root.join(format!("real-{name}/d/deep"))).unwrap();
            fs::create_dir(root.join(format!("bound-{name}"))).unwrap();
            let real = if name == "0" { "real-0".into() } else { format!("real-{name}/d") };
            mounts.push(Bind::new(&root.join(real), &root.join(format!("bound-{name}"))));
            // Mounted at both, it is mirrored at the lesser path.
            fs::create_dir(outside.path().join(name)).unwrap();
            for place in ["one", "two"] {
                let place = root.join(format!("{place}-{name}"));
                fs::create_dir(&place).unwrap();
                mounts.push(Bind::new(&outside.path().join(name), &place));
            }
        }
    });
    if let Some(Err(error)) = mounts.iter().find(|mount| mount.is_err()) {
        return common::skip(&format!("no bind mounts: {error}"));
    }
    assert_eq!(watched.records(), Vec::<String>::new());
    for name in &names {
        fs::write(watched.at(&format!("real-{name}/d/deep/f")), "f").unwrap();
        assert_eq!(watched.records(), [format!("content real-{name}/d/deep/f")]);
        fs::write(outside.path().join(name).join("f"), "f").unwrap();
        assert_eq!(watched.records(), [format!("content one-{name}/f")]);
    }
}

fn has(records: &[String], wanted: &str) -> bool {
    records.iter().any(|record| record == wanted)
}

fn inodes_of_directories(directory: &Path) -> Vec<u64> {
    let entries = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap());
    let below = entries.filter(|entry| entry.file_type().unwrap().is_dir());
    let below = below.flat_map(|entry| inodes_of_directories(&entry.path()));
    [fs::metadata(directory).unwrap().ino()].into_iter().chain(below).collect()
}

/// Waits until what is at `path` changed longer ago than a clock may be unsure of (2 s).
fn rest(path: &Path) {
    let changed = fs::symlink_metadata(path).unwrap();
    let changed = Duration::new(changed.ctime() as u64, changed.ctime_nsec() as u32);
    let until = SystemTime::UNIX_EPOCH + changed + Duration::from_millis(2100);
    while let Ok(left) = until.duration_since(SystemTime::now()) {
        std::thread::sleep(left);
    }
}
