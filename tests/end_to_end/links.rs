//! Hard links: they stay linked, and what is written through one is seen under all.

use std::fs;
use std::os::unix::fs::{MetadataExt as _, symlink};
use std::path::Path;

use crate::common::operations::truncate_by_path;
use crate::common::pair::{Pair, inode};
use crate::{live, write};

#[test]
fn hard_links_stay_linked() {
    let pair = live(|src| {
        fs::create_dir(src.join("d")).unwrap();
        write(src.join("f"), "one");
        fs::hard_link(src.join("f"), src.join("d/g")).unwrap();
    });
    let linked = |a: &str, b: &str| inode(&pair.dst.join(a)) == inode(&pair.dst.join(b));
    assert!(linked("f", "d/g"));
    write(pair.src.join("d/g"), "written by one name");
    pair.converge();
    fs::hard_link(pair.src.join("f"), pair.src.join("h")).unwrap();
    pair.converge();
    assert!(linked("f", "h") && linked("f", "d/g"));
    // rename(2) between two names of one inode does nothing.
    fs::rename(pair.src.join("f"), pair.src.join("h")).unwrap();
    pair.converge();
    fs::remove_file(pair.src.join("f")).unwrap();
    write(pair.src.join("h"), "written again");
    pair.converge();
    write(pair.src.join("temporary"), "apart");
    fs::rename(pair.src.join("temporary"), pair.src.join("h")).unwrap();
    pair.converge();
    assert!(!linked("h", "d/g"));
    fs::rename(pair.src.join("d"), pair.src.join("e")).unwrap();
    fs::hard_link(pair.src.join("e/g"), pair.src.join("again")).unwrap();
    pair.converge();
}

/// What costs nothing to make anew must stay linked all the same, and part from what is another
/// one by now.
#[test]
fn names_of_what_is_no_file_stay_linked_and_come_apart() {
    let makes: [fn(&Path); 2] = [
        |at| symlink("target", at).unwrap(),
        |at| {
            let mode = rustix::fs::Mode::from_raw_mode(0o644);
            let kind = rustix::fs::FileType::Fifo;
            rustix::fs::mknodat(rustix::fs::CWD, at, kind, mode, 0).unwrap();
        },
    ];
    for make in makes {
        let pair = live(|src| {
            make(&src.join("a"));
            fs::hard_link(src.join("a"), src.join("b")).unwrap();
            fs::hard_link(src.join("a"), src.join("c")).unwrap();
        });
        let names = |pair: &Pair| {
            ["a", "b", "c", "d", "e"].map(|name| {
                fs::symlink_metadata(pair.dst.join(name))
                    .map_or((0, 0), |it| (it.ino(), it.nlink()))
            })
        };
        for name in ["d", "e"] {
            fs::hard_link(pair.src.join("a"), pair.src.join(name)).unwrap();
            pair.converge();
        }
        assert_eq!(names(&pair), [(names(&pair)[0].0, 5); 5]);
        // One goes alone, by its name and by a rename; then two of the others go together.
        for way in 0..2 {
            fs::remove_file(pair.src.join("e")).unwrap();
            make(&pair.src.join(["e", "temporary"][way]));
            if way == 1 {
                fs::rename(pair.src.join("temporary"), pair.src.join("e")).unwrap();
            }
            pair.converge();
            assert_eq!(names(&pair).map(|(_, links)| links), [4, 4, 4, 4, 1]);
        }
        fs::remove_file(pair.src.join("c")).unwrap();
        fs::remove_file(pair.src.join("d")).unwrap();
        make(&pair.src.join("c"));
        fs::hard_link(pair.src.join("c"), pair.src.join("d")).unwrap();
        pair.converge();
        assert_eq!(names(&pair).map(|(_, links)| links), [2, 2, 2, 2, 1]);
    }
}

/// More at once than one batch takes, so that the sender lags; and as many files that each have
/// another name, which must be found without a look at all for each.
#[test]
fn bursts_of_hard_links_arrive() {
    let pair = live(|src| {
        write(src.join("one"), "one");
        fs::create_dir(src.join("many")).unwrap();
        for number in 0..3_000 {
            write(src.join(format!("many/{number}")), "many");
        }
    });
    for number in 0..300 {
        fs::hard_link(pair.src.join("one"), pair.src.join(format!("name-{number}"))).unwrap();
    }
    fs::create_dir(pair.src.join("copies")).unwrap();
    for number in 0..3_000 {
        let name = number.to_string();
        fs::hard_link(pair.src.join("many").join(&name), pair.src.join("copies").join(&name))
            .unwrap();
    }
    write(pair.src.join("another"), "arrives beside them");
    pair.wait_equal();
    pair.converge();
}

/// The events of a program that goes on writing bear the name that it opened, gone or not.
#[test]
fn writes_through_a_name_that_went_are_seen_under_the_others() {
    let goes: [fn(&Path); 2] = [
        |src| fs::remove_file(src.join("d/b")).unwrap(),
        |src| fs::rename(src.join("other"), src.join("d/b")).unwrap(),
    ];
    for go in goes {
        let pair = live(|src| {
            fs::create_dir(src.join("d")).unwrap();
            write(src.join("a"), "before");
            fs::hard_link(src.join("a"), src.join("d/b")).unwrap();
            write(src.join("other"), "other");
        });
        let mut open = fs::File::options().write(true).open(pair.src.join("d/b")).unwrap();
        go(&pair.src);
        pair.wait_equal();
        std::io::Write::write_all(&mut open, b"after!").unwrap();
        drop(open);
        pair.converge();
        assert_eq!(fs::read(pair.dst.join("a")).unwrap(), b"after!");
    }
}

/// A file that is written to, with its rest waited for, loses the name that this was seen by.
#[test]
fn a_write_is_not_forgotten_with_the_name_it_was_seen_by() {
    let goes: [fn(&Path, &Path); 4] = [
        |src, _| fs::remove_file(src.join("d/b")).unwrap(),
        |src, _| fs::rename(src.join("other"), src.join("d/b")).unwrap(),
        |src, outside| fs::rename(src.join("d/b"), outside.join("b")).unwrap(),
        |src, outside| fs::rename(src.join("d"), outside.join("d")).unwrap(),
    ];
    for go in goes {
        let pair = live(|src| {
            fs::create_dir(src.join("d")).unwrap();
            write(src.join("a"), "before");
            fs::hard_link(src.join("a"), src.join("d/b")).unwrap();
            write(src.join("other"), "other");
        });
        truncate_by_path(&pair.src.join("d/b"), 2).unwrap();
        go(&pair.src, &pair.outside);
        pair.converge();
        assert_eq!(fs::read(pair.dst.join("a")).unwrap(), b"be");
    }
}
