//! What becomes of an entry between the two halves of a look: its status, then all else.

use std::cell::Cell;
use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::rc::Rc;

use super::*;

/// What a test does between the halves.
pub(super) struct Hook(Box<dyn FnMut()>);

impl Hook {
    pub fn call(&mut self) {
        (self.0)();
    }
}

impl std::fmt::Debug for Hook {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("a hook")
    }
}

/// Returns what a look at `name` sees in a tree that `prepare` makes, and `meddle` changes each
/// time between the halves.
fn look(
    name: &str,
    prepare: impl FnOnce(&Path),
    mut meddle: impl FnMut(&Path) + 'static,
) -> io::Result<Seen> {
    let directory = tempfile::tempdir().unwrap();
    prepare(directory.path());
    let mut reader = Reader::new(Root::open(directory.path()).unwrap());
    let root: PathBuf = directory.path().into();
    reader.on_seen = Some(Hook(Box::new(move || meddle(&root))));
    reader.look(&TreePath::new(name).unwrap(), true)
}

#[test]
fn what_goes_during_a_look_is_absent() {
    type Prepare = fn(&Path);
    let kinds: [Prepare; 3] = [
        |root| fs::write(root.join("d/e"), "e").unwrap(),
        |root| fs::create_dir(root.join("d/e")).unwrap(),
        |root| symlink("nowhere", root.join("d/e")).unwrap(),
    ];
    for make in kinds {
        for above in [false, true] {
            let prepare = |root: &Path| {
                fs::create_dir(root.join("d")).unwrap();
                make(root);
            };
            let seen = look("d/e", prepare, move |root| {
                let _ = fs::remove_file(root.join("d/e"));
                let _ = fs::remove_dir(root.join("d/e"));
                if above {
                    let _ = fs::remove_dir(root.join("d"));
                }
            });
            let Seen::Absent { path, .. } = seen.unwrap() else { panic!("it is gone") };
            assert_eq!(path.as_bytes(), if above { &b"d"[..] } else { b"d/e" });
        }
    }
}

#[test]
fn a_directory_that_was_removed_since_it_was_opened_has_no_list() {
    let directory = tempfile::tempdir().unwrap();
    fs::create_dir(directory.path().join("d")).unwrap();
    let mut reader = Reader::new(Root::open(directory.path()).unwrap());
    let seen = reader.look(&TreePath::new("d").unwrap(), true);
    let Seen::Entry(opened) = seen.unwrap() else { panic!("it is there") };
    assert_eq!(reader.list(&opened).unwrap(), Some(Vec::new()));
    fs::remove_dir(directory.path().join("d")).unwrap();
    assert_eq!(reader.list(&opened).unwrap(), None);
}

#[test]
fn what_is_replaced_during_a_look_is_seen_as_what_it_is_then() {
    let seen = look(
        "e",
        |root| fs::write(root.join("e"), "e").unwrap(),
        |root| {
            let _ = fs::remove_file(root.join("e"));
            symlink("nowhere", root.join("e")).unwrap();
        },
    );
    let Seen::Entry(opened) = seen.unwrap() else { panic!("it is there") };
    assert_eq!(opened.entry.kind, Kind::Symlink { target: b"nowhere".into() });
}

#[test]
fn what_is_another_at_each_look_is_a_problem() {
    without_privileges();
    let looks = Rc::new(Cell::new(0));
    let counted = looks.clone();
    let seen = look("e", locked, move |root| {
        counted.set(counted.get() + 1);
        fs::rename(root.join("e"), root.join(counted.get().to_string())).unwrap();
        locked(root);
    });
    assert!(seen.unwrap_err().to_string().contains("comes and goes"));
    assert_eq!(looks.get(), LOOKS_MAX);
}

#[test]
fn what_cannot_be_read_is_not_looked_at_again() {
    without_privileges();
    let looks = Rc::new(Cell::new(0));
    let counted = looks.clone();
    let seen = look("e", locked, move |_| counted.set(counted.get() + 1));
    assert_eq!(seen.unwrap_err().kind(), io::ErrorKind::PermissionDenied);
    assert_eq!(looks.get(), 1);
}

/// Makes a file that cannot be opened.
fn locked(root: &Path) {
    fs::write(root.join("e"), "e").unwrap();
    fs::set_permissions(root.join("e"), fs::Permissions::from_mode(0o000)).unwrap();
}

/// Has this thread obey the modes of files, as root does not.
fn without_privileges() {
    use rustix::thread::{CapabilitySet, capabilities, set_capabilities};
    let mut sets = capabilities(None).unwrap();
    sets.effective.remove(CapabilitySet::DAC_OVERRIDE | CapabilitySet::DAC_READ_SEARCH);
    set_capabilities(None, sets).unwrap();
}
