//! What must be refused is refused, with a reason, before anything is touched.

mod common;

use std::fs;
use std::path::Path;
use std::time::Duration;

use common::pair::{Pair, inode};
use common::process::Process;

const SOON: Duration = Duration::from_secs(10);

/// A live copy with state in a place of its own.
fn copy_command(pair: &Pair, from: &Path, to: &Path) -> Vec<std::ffi::OsString> {
    let state = pair.scratch.path().join("copy-state");
    let mut args: Vec<std::ffi::OsString> =
        vec!["copy".into(), "--follow".into(), "--state-dir".into(), state.into()];
    args.extend([from.into(), to.into()]);
    args
}

/// Starts a role that ought to give up at once; returns its exit status and what it said.
fn refused(args: Vec<std::ffi::OsString>, log: &Path) -> (Option<i32>, String) {
    let mut process = Process::mirror(args, log);
    let status = process.wait(SOON);
    (status.and_then(|status| status.code()), process.log())
}

#[test]
fn never_a_replica_is_refused_and_what_would_be_lost_is_named() {
    let mut pair = Pair::new();
    fs::write(pair.src.join("new"), "new").unwrap();
    fs::write(pair.dst.join("precious"), "mine").unwrap();
    let before = inode(&pair.dst.join("precious"));
    pair.start_source();
    let (code, said) = refused(pair.sink_command(), &pair.log("refused"));
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("precious"), "does not say what would be lost: {said}");
    assert!(said.contains("--adopt"), "does not say what to do: {said}");
    assert_eq!(fs::read(pair.dst.join("precious")).unwrap(), b"mine");
    assert_eq!(inode(&pair.dst.join("precious")), before);
    assert!(!pair.dst.join("new").exists());
}

#[test]
fn adopt_keeps_what_is_equal() {
    let mut pair = Pair::new();
    for name in ["same", "differs", "same-times"] {
        fs::write(pair.src.join(name), name).unwrap();
    }
    fs::create_dir(pair.src.join("d")).unwrap();
    fs::write(pair.src.join("d/same"), vec![7; 100_000]).unwrap();
    let from = pair.src.join(".");
    let copy = std::process::Command::new("cp")
        .args(["-a", "--no-target-directory"])
        .args([&from, &pair.dst])
        .status();
    assert!(copy.unwrap().success());
    fs::write(pair.dst.join("differs"), "other content").unwrap();
    fs::write(pair.dst.join("left over"), "").unwrap();
    let kept = ["same", "d/same", "d"].map(|name| (name, inode(&pair.dst.join(name))));
    pair.sink_args = vec!["--adopt".into()];
    pair.start();
    pair.converge();
    for (name, before) in kept {
        assert_eq!(inode(&pair.dst.join(name)), before, "{name} was replaced");
    }
}

#[test]
fn replica_of_another_tree_is_refused() {
    let mut pair = Pair::new();
    fs::write(pair.src.join("f"), "one").unwrap();
    pair.start();
    pair.converge();
    pair.finish();

    let mut other = Pair::new();
    fs::write(other.src.join("f"), "another").unwrap();
    other.start_source();
    other.dst.clone_from(&pair.dst);
    let (code, said) = refused(other.sink_command(), &other.log("refused"));
    assert_eq!(code, Some(1), "{said}");
    assert_eq!(fs::read(pair.dst.join("f")).unwrap(), b"one");
}

/// Each says which file, and what it says helps.
#[test]
fn damaged_state_says_what_to_do() {
    let mut pair = Pair::new();
    fs::write(pair.src.join("f"), "one").unwrap();
    pair.start();
    pair.converge();
    pair.finish();
    let damage = |file: &Path| {
        let mut bytes = fs::read(file).unwrap();
        bytes[40] ^= 1;
        fs::write(file, bytes).unwrap();
    };
    let checkpoint = pair.dst.join(".mirror/checkpoint");
    let (node, tree) = (pair.sink_state.join("node"), pair.source_state.join("tree"));
    let commands = [pair.sink_command(), pair.sink_command(), pair.source_command()];
    let words = [("checkpoint", "--adopt"), ("node", "remove it"), ("tree", "--adopt")];
    for ((file, command), (name, advice)) in
        [checkpoint, node, tree].iter().zip(commands).zip(words)
    {
        damage(file);
        let (code, said) = refused(command, &pair.log(&format!("damaged-{name}")));
        assert_eq!(code, Some(1), "{said}");
        assert!(said.contains(file.to_str().unwrap()) && said.contains(advice), "{name}: {said}");
        fs::remove_file(file).unwrap();
    }
    pair.sink_args.push("--adopt".into());
    pair.start();
    pair.converge();
    pair.finish();
}

#[test]
fn second_process_is_refused() {
    let mut pair = Pair::new();
    fs::write(pair.src.join("f"), "f").unwrap();
    pair.start();
    pair.converge();

    // The same replica, with a state directory of its own.
    let mut second = pair.sink_command();
    let state = pair.scratch.path().join("second-state");
    *second.iter_mut().find(|arg| **arg == *pair.sink_state).unwrap() = state.into();
    let (code, said) = refused(second, &pair.log("second-sink"));
    assert_eq!(code, Some(1), "second sink on the same ROOT: {said}");

    // The same state directory, for another tree.
    let mut second = pair.source_command();
    *second.iter_mut().find(|arg| **arg == *pair.src).unwrap() = pair.outside.clone().into();
    *second.iter_mut().find(|arg| **arg == *pair.listen).unwrap() =
        format!("unix:{}", pair.scratch.path().join("second").display()).into();
    let (code, said) = refused(second, &pair.log("second-source"));
    assert_eq!(code, Some(1), "second source on the same state directory: {said}");

    // Neither disturbed the first.
    fs::write(pair.src.join("g"), "g").unwrap();
    pair.converge();
}

#[test]
fn state_directory_inside_root_is_refused() {
    for create in [true, false] {
        let mut pair = Pair::new();
        pair.source_state = pair.src.join("state");
        if create {
            fs::create_dir(&pair.source_state).unwrap();
        }
        let (code, said) = refused(pair.source_command(), &pair.log("refused"));
        assert!(matches!(code, Some(1 | 2)), "{code:?} {said}");
        let left: Vec<_> = fs::read_dir(&pair.src).unwrap().flatten().collect();
        assert_eq!(left.len(), usize::from(create), "the source wrote inside ROOT: {left:?}");
    }
}

#[test]
fn usage_errors_are_exit_2() {
    let scratch = common::machine::scratch();
    let log = scratch.path().join("log");
    for args in [&["source"][..], &["sink"], &["sink", "tcp://127.0.0.1:1"], &["no-such-role"]] {
        let args = args.iter().map(std::ffi::OsString::from).collect();
        let (code, said) = refused(args, &log);
        assert_eq!(code, Some(2), "{said}");
    }
}

#[test]
fn plaintext_off_loopback_is_refused() {
    let mut pair = Pair::new();
    pair.listen = format!("tcp://0.0.0.0:{}", common::machine::free_port());
    let (code, said) = refused(pair.source_command(), &pair.log("refused"));
    assert!(matches!(code, Some(1 | 2)), "{code:?} {said}");
    assert!(said.contains("--insecure-plaintext"), "{said}");
}

#[test]
fn unreachable_upstream_is_retried_for_ever() {
    let mut pair = Pair::new();
    fs::write(pair.src.join("f"), "f").unwrap();
    pair.start_sink();
    std::thread::sleep(Duration::from_millis(700));
    assert!(pair.sink().is_running(), "{}", pair.sink().log());
    pair.start_source();
    pair.converge();
    pair.finish();
}

#[test]
fn copy_follow_mirrors_until_interrupted() {
    let mut pair = Pair::new();
    fs::write(pair.src.join("f"), "f").unwrap();
    let args = copy_command(&pair, &pair.src, &pair.dst);
    pair.source = Some(Process::mirror(args, &pair.log("source")));
    pair.converge();
    fs::write(pair.src.join("g"), "g").unwrap();
    fs::remove_file(pair.src.join("f")).unwrap();
    pair.wait_for("g arrives", || pair.dst.join("g").exists());
    pair.source().signal(rustix::process::Signal::INT);
    let status = pair.source().wait(SOON);
    assert!(status.is_some_and(|status| status.success()), "{status:?}");
}

#[test]
fn a_replica_inside_a_served_tree_is_refused() {
    let mut pair = Pair::new();
    pair.start_source();
    pair.start_sink();
    pair.converge();
    // A sink deep inside the served tree, and one that is the served tree itself.
    let deep = pair.src.join("a/b");
    fs::create_dir_all(&deep).unwrap();
    let was = pair.dst.clone();
    pair.sink_state = pair.scratch.path().join("second-state");
    for root in [deep, pair.src.clone()] {
        pair.dst.clone_from(&root);
        pair.sink_args = vec!["--adopt".into()];
        let (code, said) = refused(pair.sink_command(), &pair.log("refused"));
        assert_eq!(code, Some(1), "{said}");
        assert!(said.contains(&*pair.src.to_string_lossy()), "{said}");
        let (code, said) = refused(copy_command(&pair, &pair.outside, &root), &pair.log("copy"));
        assert_eq!(code, Some(1), "{said}");
        assert!(!root.join(".mirror").exists(), "the served tree was written to");
    }
    pair.dst = was;
    pair.converge();
}

#[test]
fn a_source_of_a_running_replica_or_a_part_of_it_is_refused() {
    let mut pair = Pair::new();
    fs::create_dir(pair.src.join("part")).unwrap();
    pair.start();
    pair.converge();
    pair.source_state = pair.scratch.path().join("second-state");
    pair.listen = format!("unix:{}", pair.scratch.path().join("second").display());
    let src = pair.src.clone();
    for root in [pair.dst.clone(), pair.dst.join("part")] {
        pair.src.clone_from(&root);
        let (code, said) = refused(pair.source_command(), &pair.log("refused"));
        assert_eq!(code, Some(1), "{said}");
        assert!(said.contains(&*pair.dst.to_string_lossy()), "{said}");
        // A copy that is to lead elsewhere, and would close a circle if it led back.
        let (code, said) = refused(copy_command(&pair, &root, &pair.outside), &pair.log("copy"));
        assert_eq!(code, Some(1), "{said}");
    }
    // What is inside a replica is the upstream's alone to change.
    let inside = pair.dst.join("part");
    let (code, said) = refused(copy_command(&pair, &pair.outside, &inside), &pair.log("copy"));
    assert_eq!(code, Some(1), "{said}");
    pair.src = src;
    fs::write(pair.src.join("later"), "later").unwrap();
    pair.converge();
    // A replica that is no longer kept may become the origin.
    let replica = pair.dst.clone();
    pair.finish();
    pair.src = replica;
    pair.start_source();
    let socket = pair.scratch.path().join("second");
    pair.wait_for("it serves", || socket.exists());
}

/// Runs the program under limits of open files: `ulimit` takes the arguments.
fn limited(ulimit: &str, args: Vec<std::ffi::OsString>, log: &Path) -> Process {
    let mut command = std::process::Command::new("sh");
    command.args(["-c", &format!("ulimit {ulimit} && exec \"$@\""), "sh"]);
    command.arg(common::process::mirror()).args(args);
    Process::spawn(command, log).expect("sh starts")
}

#[test]
fn silent_clients_leave_descriptors_for_the_tree() {
    let mut pair = Pair::new();
    fs::create_dir(pair.src.join("d")).unwrap();
    pair.source = Some(limited("-n 256", pair.source_command(), &pair.log("source")));
    pair.start_sink();
    pair.converge();
    let socket = pair.scratch.path().join("socket");
    let mut silent = Vec::new();
    for number in 0..400 {
        // Until the backlog is full too, and a little at a time, as they come.
        let Ok(client) = std::os::unix::net::UnixStream::connect(&socket) else { break };
        silent.push(client);
        if number % 20 == 0 {
            fs::write(pair.src.join(format!("d/{number}")), "content").unwrap();
        }
    }
    pair.converge();
    // One that has something to say is heard, although they hold all places.
    pair.sink().kill9();
    pair.start_sink();
    fs::write(pair.src.join("later"), "later").unwrap();
    pair.converge();
    let said = pair.source().log();
    assert!(said.matches("connections").count() >= 1, "nothing was said: {said}");
    assert!(said.lines().filter(|line| line.contains("WARN")).count() <= 2, "{said}");
    assert!(silent.len() > 64);
}

#[test]
fn the_limit_of_open_files_is_raised_as_far_as_it_goes() {
    let mut pair = Pair::new();
    let command = pair.source_command();
    pair.source = Some(limited("-Sn 64 && ulimit -Hn 512", command, &pair.log("source")));
    let socket = pair.scratch.path().join("socket");
    pair.wait_for("it listens", || socket.exists());
    let limits = fs::read_to_string(format!("/proc/{}/limits", pair.source().id())).unwrap();
    let line = limits.lines().find(|line| line.starts_with("Max open files")).unwrap();
    let numbers: Vec<&str> = line.split_whitespace().skip(3).take(2).collect();
    assert_eq!(numbers, ["512", "512"], "{line}");
}
