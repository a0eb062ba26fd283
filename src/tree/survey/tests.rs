//! Surveys of real trees.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;
use std::time::{Duration, SystemTime};

use rustix::fs::XattrFlags;

use super::*;
use crate::model::DirectoryDigest;

fn path(text: &str) -> TreePath {
    TreePath::new(text).unwrap()
}

/// Surveys on, a few entries at a time.
fn rest(survey: &mut Survey, root: &Root, through: Option<&TreePath>) -> Vec<Surveyed> {
    let mut found = Vec::new();
    loop {
        match survey.step(root, through, 2, |_, _, _| ()) {
            Step::Directory(surveyed) => found.push(surveyed),
            Step::More => {}
            Step::End => return found,
        }
    }
}

fn survey(root: &Root, at: &str, after: Option<&str>) -> Vec<Surveyed> {
    let after = after.map(path);
    rest(&mut Survey::new(root, &path(at), after.as_ref(), Lacks::NOTHING), root, None)
}

fn paths(surveyed: &[Surveyed]) -> Vec<&TreePath> {
    surveyed.iter().map(|surveyed| &surveyed.path).collect()
}

/// A tree whose names sort otherwise by bytes than in a walk, and the paths of its directories.
fn tree() -> (tempfile::TempDir, Root, Vec<TreePath>) {
    let temporary = tempfile::tempdir().unwrap();
    let directories = ["", "a", "a/b", "a/b/c", "a/b-", "a\x01", "a-", "a-/x", "b", "b/d", "b/d/e"];
    for at in &directories[1..] {
        fs::create_dir_all(temporary.path().join(at)).unwrap();
    }
    for at in directories {
        fs::write(temporary.path().join(at).join("file"), at).unwrap();
    }
    let root = Root::open(temporary.path()).unwrap();
    (temporary, root, directories.map(path).to_vec())
}

#[test]
fn all_directories_come_in_order_wherever_it_begins() {
    let (_temporary, root, all) = tree();
    let whole = survey(&root, "", None);
    assert_eq!(paths(&whole), all.iter().collect::<Vec<_>>());
    let places = all.iter().map(|path| path.as_bytes().to_vec());
    // Also where nothing is any more.
    let gone = ["a/a", "a/b/b/b", "a/c", "aa", "b/d/e/f", "zz"].map(|at| at.as_bytes().to_vec());
    for after in places.chain(gone) {
        let behind: Vec<&TreePath> =
            all.iter().filter(|path| walk_order(path.as_bytes(), &after).is_gt()).collect();
        let after = String::from_utf8(after).unwrap();
        assert_eq!(paths(&survey(&root, "", Some(&after))), behind, "after {after:?}");
    }
    assert_eq!(paths(&survey(&root, "b", None)), all[8..].iter().collect::<Vec<_>>());
    assert_eq!(paths(&survey(&root, "b", Some("b/d"))), [&path("b/d/e")]);
    assert_eq!(survey(&root, "none", None), []);
}

#[test]
fn it_goes_on_where_a_range_ended() {
    let (_temporary, root, _) = tree();
    let mut walk = Survey::new(&root, &path(""), None, Lacks::NOTHING);
    let first = rest(&mut walk, &root, Some(&path("a/b/zz")));
    assert_eq!(paths(&first), ["", "a", "a/b", "a/b/c"].map(path).iter().collect::<Vec<_>>());
    let (whole, after) = (path(""), path("a/b/zz"));
    assert!(!walk.continues(&whole, Some(&after), Lacks::NOTHING));
    walk.reach(&after);
    assert!(walk.continues(&whole, Some(&after), Lacks::NOTHING));
    assert!(!walk.continues(&whole, Some(&after), Lacks::OWNERS));
    assert!(!walk.continues(&path("a"), Some(&after), Lacks::NOTHING));
    assert!(!walk.continues(&whole, None, Lacks::NOTHING));
    let second = rest(&mut walk, &root, None);
    assert_eq!([first, second].concat(), survey(&root, "", None));
}

fn digest_of(root: &Root, at: &str) -> DirectoryDigest {
    let all = survey(root, "", None);
    let found = all.into_iter().find(|surveyed| surveyed.path == path(at)).unwrap();
    found.digest.unwrap()
}

fn set_time(path: &Path, seconds: u64) {
    let file = fs::File::open(path).unwrap();
    file.set_modified(SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)).unwrap();
}

/// Each thing that a replica preserves, changed alone, changes the digest of its directory and of
/// no other; and what it does not preserve changes none.
#[test]
fn what_is_preserved_is_covered() {
    let (temporary, root, _) = tree();
    let at = |name: &str| temporary.path().join(name);
    symlink("target", at("b/link")).unwrap();
    let is_root = rustix::process::geteuid().is_root();
    type Change<'a> = (&'a str, bool, Box<dyn Fn() + 'a>);
    let keep_time = |name: &str, change: &dyn Fn()| {
        let times = [at(name), at("b")].map(|path| (fs::metadata(&path).unwrap().modified(), path));
        change();
        for (time, path) in times {
            fs::File::open(path).unwrap().set_modified(time.unwrap()).unwrap();
        }
    };
    let xattr = |name: &str, value: &[u8]| {
        rustix::fs::setxattr(at(name), "user.x", value, XattrFlags::empty()).unwrap();
    };
    let mode = |name: &str, mode| {
        fs::set_permissions(at(name), fs::Permissions::from_mode(mode)).unwrap();
    };
    let link = |target: &str| {
        fs::remove_file(at("b/link")).unwrap();
        symlink(target, at("b/link")).unwrap();
        let time = rustix::fs::Timespec { tv_sec: 7, tv_nsec: 7 };
        let times = rustix::fs::Timestamps { last_access: time, last_modification: time };
        let flags = rustix::fs::AtFlags::SYMLINK_NOFOLLOW;
        rustix::fs::utimensat(rustix::fs::CWD, at("b/link"), &times, flags).unwrap();
    };
    keep_time("b", &|| link("one"));
    let mut changes: Vec<Change<'_>> = vec![
        ("mode", true, Box::new(|| mode("b/file", 0o4711))),
        ("time", true, Box::new(|| set_time(&at("b/file"), 5))),
        (
            "size",
            true,
            Box::new(|| keep_time("b/file", &|| fs::write(at("b/file"), "xy").unwrap())),
        ),
        (
            "content",
            false,
            Box::new(|| keep_time("b/file", &|| fs::write(at("b/file"), "zz").unwrap())),
        ),
        ("attribute", true, Box::new(|| xattr("b/file", b"1"))),
        ("its value", true, Box::new(|| xattr("b/file", b"2"))),
        ("target", true, Box::new(|| keep_time("b", &|| link("two")))),
        ("new name", true, Box::new(|| keep_time("b", &|| fs::write(at("b/more"), "").unwrap()))),
        (
            "kind",
            true,
            Box::new(|| {
                keep_time("b", &|| {
                    fs::remove_file(at("b/more")).unwrap();
                    fs::create_dir(at("b/more")).unwrap();
                })
            }),
        ),
        ("removal", true, Box::new(|| keep_time("b", &|| fs::remove_dir(at("b/more")).unwrap()))),
        ("several names", true, Box::new(|| fs::hard_link(at("b/file"), at("other")).unwrap())),
        ("attributes of such a file", false, Box::new(|| mode("b/file", 0o600))),
        ("mode of the directory", true, Box::new(|| mode("b", 0o711))),
        ("time of the directory", true, Box::new(|| set_time(&at("b"), 5))),
        ("attribute of the directory", true, Box::new(|| xattr("b", b"1"))),
        ("what is below", false, Box::new(|| fs::write(at("b/d/more"), "").unwrap())),
        (
            "a stage",
            false,
            Box::new(|| keep_time("b", &|| fs::write(at("b/.mirror-stage-1"), "").unwrap())),
        ),
    ];
    if is_root {
        let chown = |name: &'static str, uid, gid| -> Box<dyn Fn() + '_> {
            Box::new(move || std::os::unix::fs::chown(at(name), uid, gid).unwrap())
        };
        changes.insert(0, ("group", true, chown("b/file", None, Some(7))));
        changes.insert(0, ("owner", true, chown("b/file", Some(7), None)));
        changes.push(("owner of the directory", true, chown("b", Some(7), None)));
    }
    for (what, counts, change) in changes {
        let (before, elsewhere) = (digest_of(&root, "b"), digest_of(&root, "a"));
        change();
        assert_eq!(digest_of(&root, "b") != before, counts, "{what}");
        assert_eq!(digest_of(&root, "a"), elsewhere, "{what}");
    }
}

#[test]
fn the_replicas_own_directory_is_left_out() {
    let (temporary, root, all) = tree();
    let before = survey(&root, "", None);
    let time = fs::metadata(temporary.path()).unwrap().modified().unwrap();
    fs::create_dir_all(temporary.path().join(".mirror/stage")).unwrap();
    fs::File::open(temporary.path()).unwrap().set_modified(time).unwrap();
    assert_eq!(survey(&root, "", None), before);
    // Below, it is a name as any other.
    fs::create_dir(temporary.path().join("b/.mirror")).unwrap();
    assert_eq!(survey(&root, "", None).len(), all.len() + 1);
}

#[test]
fn what_cannot_be_read_has_no_digest_and_is_not_left_out() {
    use rustix::thread::{CapabilitySet, capabilities, set_capabilities};
    let (temporary, root, all) = tree();
    let closed = temporary.path().join("a/b");
    fs::set_permissions(&closed, fs::Permissions::from_mode(0o000)).unwrap();
    if rustix::process::geteuid().is_root() {
        let mut sets = capabilities(None).unwrap();
        sets.effective.remove(CapabilitySet::DAC_OVERRIDE | CapabilitySet::DAC_READ_SEARCH);
        set_capabilities(None, sets).unwrap();
    }
    let found = survey(&root, "", None);
    fs::set_permissions(&closed, fs::Permissions::from_mode(0o700)).unwrap();
    let unread: Vec<&TreePath> =
        found.iter().filter(|surveyed| surveyed.digest.is_none()).map(|it| &it.path).collect();
    assert_eq!(unread, [&path("a/b")]);
    assert_eq!(found.len(), all.len() - 1, "nobody knows of what is below");
}

#[test]
fn what_a_digest_cannot_find_is_shown() {
    let (temporary, root, _) = tree();
    fs::hard_link(temporary.path().join("a/file"), temporary.path().join("b/d/e/link")).unwrap();
    let mut seen = Vec::new();
    let mut survey = Survey::new(&root, &path("b/d/e"), None, Lacks::NOTHING);
    while survey.step(&root, None, 1, |directory, name, glance| {
        seen.push((directory.join(name), glance));
    }) != Step::End
    {}
    let [(file, one), (link, other)] = &seen[..] else { panic!("{seen:?}") };
    assert_eq!((file, link), (&path("b/d/e/file"), &path("b/d/e/link")));
    let inode = fs::metadata(temporary.path().join("a/file")).unwrap().ino();
    assert_eq!((one.linked, other.linked.map(|it| it.inode)), (None, Some(inode)));
    assert!(one.is_regular && one.ctime.seconds > 1_600_000_000);
}
