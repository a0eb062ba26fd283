//! Mount points inside ROOT. Only root can mount; elsewhere these tests do nothing.

use std::process::Command;

use super::*;
use crate::tree::replica::Moved;

/// A mount that ends with the test.
struct Mounted(PathBuf);

impl Mounted {
    fn new(arguments: &[&str], at: PathBuf) -> Option<Self> {
        std::fs::create_dir_all(&at).unwrap();
        let mounted = is_root()
            && Command::new("mount").args(arguments).arg(&at).status().is_ok_and(|s| s.success());
        mounted.then_some(Mounted(at))
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

fn everything_works_in(fixture: &mut Fixture, publish_needs: &[(TreePath, bool)]) {
    fixture.file("m/f", b"x");
    fixture.file("m/f", b"y");
    assert_eq!(fixture.read("m/f"), b"y");
    fixture.done(state("m/l", symlink(b"f")), b"");
    let grouped = Content::Inline { length: 1 };
    fixture.done(state_of(path("m/g"), regular(1), grouped, &["m/h"]), b"z");
    assert_eq!(fixture.stat("m/g").ino(), fixture.stat("m/h").ino());

    // What is known of the mount is forgotten with the burst.
    fixture.flush();
    fixture.directory("m/d");
    fixture.flush();
    assert_eq!(fixture.replica.take_needs(), publish_needs);
    fixture.file("m/d/f", b"x");
    fixture.flush();
    assert_eq!((fixture.mtime("m/d"), fixture.stat("m/d").mode() & 0o777), (10, 0o755));

    let (stage, digest) = (StageId(1), digest_of(6, &[(0, b"ab"), (4, b"cd")]));
    fixture.done(Item::StageOpen { stage, size: 6, path: path("m/big") }, b"");
    fixture.done(Item::StageData { stage, offset: 0, length: 2 }, b"ab");
    fixture.done(Item::StageData { stage, offset: 4, length: 2 }, b"cd");
    fixture.done(state_of(path("m/big"), regular(6), Content::Staged { stage, digest }, &[]), b"");
    assert_eq!(fixture.read("m/big"), b"ab\0\0cd");
    fixture.assert_clean();

    fixture.file("out", b"x");
    assert_eq!(fixture.apply(rename(1, "out", "m/in"), b""), [(path("m/in"), true)]);
    assert!(!fixture.exists("out") && !fixture.exists("m/in"));
    fixture.done(rename(2, "m/d", "m/e"), b"");

    std::fs::create_dir_all(fixture.path("m/e/1/2/3")).unwrap();
    std::fs::write(fixture.path("m/e/1/2/f"), b"x").unwrap();
    // Wide, and deeper than descriptors are kept.
    std::fs::create_dir_all(fixture.path(&format!("m/e{}", "/d".repeat(300)))).unwrap();
    for number in 0..100 {
        std::fs::create_dir_all(fixture.path(&format!("m/e/wide/{number}/below"))).unwrap();
    }
    fixture.done(absent("m/e"), b"");
    assert_eq!(names(&fixture.path("m")), ["big", "f", "g", "h", "l"]);
}

#[test]
fn another_file_system_inside_works() {
    let mut fixture = Fixture::new();
    let Some(_mount) = Mounted::new(&["-t", "tmpfs", "tmpfs"], fixture.path("m")) else { return };
    everything_works_in(&mut fixture, &[]);
}

#[test]
fn the_same_file_system_mounted_inside_works() {
    let mut fixture = Fixture::new();
    let elsewhere = fixture.path("elsewhere");
    std::fs::create_dir(&elsewhere).unwrap();
    let arguments = ["--bind", elsewhere.to_str().unwrap()];
    let Some(_mount) = Mounted::new(&arguments, fixture.path("m")) else { return };
    everything_works_in(&mut fixture, &[(path("m/d"), true)]);
}

#[test]
fn a_directory_that_cannot_be_made_on_another_mount_is_given_up() {
    let mut fixture = Fixture::new();
    let elsewhere = fixture.path("elsewhere");
    std::fs::create_dir(&elsewhere).unwrap();
    let arguments = ["-o", "bind,ro", elsewhere.to_str().unwrap()];
    let Some(_mount) = Mounted::new(&arguments, fixture.path("m")) else { return };
    fixture.directory("m/d");
    // It does not come up again and again.
    for _ in 0..2 {
        fixture.directory("other");
    }
    let problems = fixture.replica.take_problems();
    let found: Vec<_> = problems.iter().map(|it| (it.error.path.clone(), it.content)).collect();
    assert_eq!(found, [(path("m/d"), true)]);
    fixture.replica.flush();
    fixture.assert_clean();
}

/// What a rename to another mount needs is known to the process only, until a checkpoint.
#[test]
fn a_rename_to_another_mount_claims_nothing_after_a_kill() {
    let mut fixture = Fixture::new();
    let Some(_mount) = Mounted::new(&["-t", "tmpfs", "tmpfs"], fixture.path("m")) else { return };
    for name in ["a", "b", "c"] {
        fixture.file(name, b"x");
    }
    let recovered = |fixture: &mut Fixture| fixture.replica.recover_moved(Sequence(0)).unwrap();
    fixture.apply(rename(1, "a", "m/a"), b"");
    let mut fixture = fixture.reopen();
    assert_eq!(recovered(&mut fixture), Moved::Unknown);
    // Nor does a later rename claim it, before a checkpoint says what is needed.
    fixture.apply(rename(2, "b", "m/b"), b"");
    fixture.done(rename(3, "c", "d"), b"");
    let mut fixture = fixture.reopen();
    assert_eq!(recovered(&mut fixture), Moved::Unknown);
    fixture.apply(rename(4, "d", "m/d"), b"");
    fixture.replica.handle_checkpoint(Sequence(4));
    fixture.file("e", b"x");
    fixture.done(rename(5, "e", "f"), b"");
    let mut fixture = fixture.reopen();
    assert_eq!(recovered(&mut fixture), Moved::Through(Sequence(5)));
}
