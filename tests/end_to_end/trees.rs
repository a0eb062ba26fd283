//! Whole trees: the first sync, random changes, and what else happens meanwhile.

use std::fs;
use std::process::Command;
use std::time::Duration;

use crate::common;
use crate::common::machine::run;
use crate::common::operations::Operations;
use crate::common::pair::Pair;
use crate::{live, write};

#[test]
fn first_sync_of_a_rich_tree() {
    let seed = common::seed();
    let mut pair = Pair::new();
    let (src, outside) = (pair.src.clone(), pair.outside.clone());
    let mut operations = Operations::new(&src, &outside, seed);
    operations.run(800);
    operations.close();
    write(src.join("big"), vec![1; 5 << 20]);
    write(src.join("empty"), "");
    fs::create_dir(src.join("empty directory")).unwrap();
    pair.start();
    pair.converge();
    pair.finish();
}

#[test]
fn live_changes_of_all_sorts() {
    let seed = common::seed();
    let mut pair = live(|_| {});
    let mut operations = Operations::new(&pair.src, &pair.outside, seed);
    for (round, pause_us) in [(0, 0), (1, 500), (2, 3000), (3, 0), (4, 200)] {
        for _ in 0..400 {
            operations.step();
            if pause_us > 0 {
                std::thread::sleep(Duration::from_micros(pause_us));
            }
        }
        println!("round {round}");
        pair.converge();
    }
    operations.close();
    pair.converge();
    pair.finish();
}

#[test]
fn mkdir_p_with_files_at_once() {
    let pair = live(|_| {});
    for round in 0..200 {
        let path = pair.src.join(format!("{round}/b/c/d"));
        fs::create_dir_all(&path).unwrap();
        write(path.join("f"), "f");
        write(pair.src.join(format!("{round}/b/g")), "g");
    }
    pair.converge();
}

/// What cannot be listed is mirrored as soon as its mode lets it.
#[test]
fn directories_that_become_readable_are_mirrored() {
    if !common::machine::need_root("a source without privileges") {
        return;
    }
    let mut pair = Pair::new();
    let nobody = 54_321;
    let mode = |mode| std::os::unix::fs::PermissionsExt::from_mode(mode);
    for name in ["start", "live", "known"] {
        fs::create_dir(pair.src.join(name)).unwrap();
        write(pair.src.join(name).join("f"), name);
    }
    for path in [&pair.src, &pair.source_state] {
        run(Command::new("chown").args(["-R", &nobody.to_string()]).arg(path)).unwrap();
    }
    fs::set_permissions(pair.scratch.path(), mode(0o777)).unwrap();
    fs::set_permissions(pair.src.join("start"), mode(0o000)).unwrap();
    let mut command = Command::new(common::process::mirror());
    std::os::unix::process::CommandExt::uid(&mut command, nobody);
    command.args(pair.source_command());
    pair.source = Some(common::process::Process::spawn(command, &pair.log("source")).unwrap());
    pair.start_sink();
    pair.wait_for("what is readable", || pair.dst.join("known/f").exists());
    assert!(!pair.dst.join("start/f").exists());
    // One that appears unreadable, and one that becomes so for a while.
    fs::create_dir(pair.outside.join("late")).unwrap();
    write(pair.outside.join("late/f"), "late");
    fs::set_permissions(pair.outside.join("late"), mode(0o000)).unwrap();
    fs::rename(pair.outside.join("late"), pair.src.join("late")).unwrap();
    fs::set_permissions(pair.src.join("known"), mode(0o000)).unwrap();
    assert!(pair.source().wait_log("late: Permission denied", common::patience()));
    for name in ["start", "late", "known"] {
        run(Command::new("chown").arg(nobody.to_string()).arg(pair.src.join(name))).unwrap();
        fs::set_permissions(pair.src.join(name), mode(0o755)).unwrap();
    }
    write(pair.src.join("known/g"), "new");
    pair.converge();
}

/// Several sinks of one source, one of them stopped: the others are not held up.
#[test]
fn one_stalled_downstream_costs_the_others_nothing() {
    let mut pair = live(|src| write(src.join("f"), "f"));
    let other = pair.scratch.path().join("other");
    let state = pair.scratch.path().join("other-state");
    fs::create_dir(&other).unwrap();
    let mut args = vec![std::ffi::OsString::from("sink"), pair.upstream.clone().into()];
    args.extend([other.clone().into(), "--state-dir".into(), state.into()]);
    let log = pair.log("other");
    let second = common::process::Process::mirror(args, &log);
    common::judge::wait_equal(&pair.src, &other, common::patience());
    second.stop();
    for number in 0..300 {
        write(pair.src.join(format!("f{number}")), vec![1; 50_000]);
    }
    pair.converge();
    second.resume();
    common::judge::wait_equal(&pair.src, &other, common::patience());
    drop(second);
    pair.finish();
}
