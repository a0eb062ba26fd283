//! The command line from outside: exit statuses and what is said.

mod common;

use std::fs::File;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use common::pair::wait_until;
use rustix::process::{Pid, Signal, kill_process};

/// Runs the program with `$HOME` and all state below `home`.
fn mirror(home: &Path, args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_mirror"))
        .args(args)
        .env_clear()
        .env("STATE_DIRECTORY", home.join("state"))
        .current_dir(home)
        .output()
        .expect("the program was built")
}

/// Checks the exit status and that standard error is one line with all of `words` in it.
#[track_caller]
fn assert_refused(output: &Output, status: i32, words: &[&str]) {
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(status), "{said}");
    assert_eq!(said.lines().count(), 1, "{said}");
    assert!(said.starts_with("mirror: "), "{said}");
    for word in words {
        assert!(said.contains(word), "no {word:?} in: {said}");
    }
}

#[test]
fn help_teaches_and_succeeds() {
    let home = tempfile::tempdir().unwrap();
    for args in [&["--help"][..], &["source", "--help"], &["sink", "--help"], &["copy", "--help"]] {
        let output = mirror(home.path(), args);
        assert_eq!(output.status.code(), Some(0));
        assert!(String::from_utf8_lossy(&output.stdout).contains("Examples:"), "{args:?}");
    }
    let version = mirror(home.path(), &["--version"]);
    assert!(String::from_utf8_lossy(&version.stdout).starts_with("mirror "));
}

#[test]
fn nonsense_is_a_usage_error() {
    let home = tempfile::tempdir().unwrap();
    for args in [
        &["frobnicate"][..],
        &["source"],
        &["sink", "tcp://localhost"],
        &["source", "--listen", "http://x", "."],
        &["source", "--listen", "unix:relative", "."],
        &["source", "--listen", "unix:/x", "--journal-size", "much", "."],
        &["source", "--listen", "unix:/x", "--rescan-interval", "0s", "."],
        &["sink", "--checkpoint-interval", "soon", "tcp://localhost", "."],
        &["copy", "-v", "-q", "a", "b"],
    ] {
        assert_refused(&mirror(home.path(), args), 2, &["; see mirror ", "--help"]);
    }
    // The line says what is wrong, and where to read on.
    let missing = mirror(home.path(), &["sink", "tcp://localhost"]);
    assert_refused(&missing, 2, &["not provided: <ROOT>; see mirror sink --help"]);
    let wrong = mirror(home.path(), &["source", "--listen", "http://x\ny", "."]);
    assert_refused(&wrong, 2, &["http://x y", "see mirror source --help"]);
    let typo = mirror(home.path(), &["source", "--listn", "unix:/x", "."]);
    assert_refused(&typo, 2, &["'--listn' found; tip: ", "'--listen'; see mirror source --help"]);
    // One who asks for nothing is shown what there is.
    let bare = mirror(home.path(), &[]);
    assert_eq!(bare.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&bare.stderr).contains("Usage:"));
    let output =
        mirror(home.path(), &["source", "--listen", "unix:/x", "--journal-size", "1kB", "."]);
    assert_refused(&output, 2, &["--journal-size", "1MiB"]);
}

#[test]
fn what_is_not_built_says_what_to_use() {
    let home = tempfile::tempdir().unwrap();
    let check = |args: &[&str], words: &[&str]| {
        assert_refused(&mirror(home.path(), args), 2, &[&["not built yet"], words].concat());
    };
    check(&["sink", "ssh://me@backup/srv", "."], &["ssh -L"]);
    check(&["source", "--listen", "ssh://me@backup/srv", "."], &["tls://HOST:PORT"]);
    check(&["copy", "a", "b"], &["--follow"]);
    check(&["copy", "--follow", "me@host:a", "b"], &["me@host:a", "mirror source"]);
    check(&["copy", "--follow", "a", "host:b"], &["host:b"]);
}

#[test]
fn plaintext_off_this_machine_must_be_wanted() {
    let home = tempfile::tempdir().unwrap();
    let words = ["plaintext", "--insecure-plaintext"];
    for url in ["tcp://[::]:0", "tcp://0.0.0.0:0", "tcp://10.0.0.1", "tcp://host"] {
        assert_refused(&mirror(home.path(), &["source", "--listen", url, "."]), 2, &words);
        assert_refused(&mirror(home.path(), &["sink", url, "."]), 2, &words);
    }
    // With the flag the next check is reached.
    let url = "tcp://10.0.0.1";
    let output = mirror(home.path(), &["sink", "--insecure-plaintext", url, "missing"]);
    assert_refused(&output, 1, &["missing"]);
}

#[test]
fn a_root_must_be_a_directory() {
    let home = tempfile::tempdir().unwrap();
    std::fs::write(home.path().join("file"), "").unwrap();
    let listen = format!("unix:{}", home.path().join("socket").display());
    for (root, why) in [("missing", "; make it"), ("file", "not a directory")] {
        let source = ["source", "--listen", &listen, root];
        assert_refused(&mirror(home.path(), &source), 1, &[root, why]);
        assert_refused(&mirror(home.path(), &["sink", &listen, root]), 1, &[root, why]);
        assert_refused(&mirror(home.path(), &["copy", "--follow", root, "d"]), 1, &[root, why]);
    }
    assert!(!home.path().join("state").exists(), "state was made for nothing");
    assert!(!home.path().join("d").exists());
}

#[test]
fn state_inside_the_tree_and_trees_inside_each_other_are_refused() {
    let home = tempfile::tempdir().unwrap();
    std::fs::create_dir_all(home.path().join("a/b")).unwrap();
    let source = ["source", "--listen", "unix:/x", "--state-dir", "a/b/c", "a"];
    assert_refused(&mirror(home.path(), &source), 2, &["inside", "--state-dir"]);
    assert!(!home.path().join("a/b/c").exists(), "it was written to");
    let socket = format!("unix:{}", home.path().join("a/socket").display());
    assert_refused(&mirror(home.path(), &["source", "--listen", &socket, "a"]), 2, &["inside"]);
    assert_refused(&mirror(home.path(), &["copy", "--follow", "a", "a/b"]), 2, &["inside"]);
    assert_refused(&mirror(home.path(), &["copy", "--follow", "a", "a/new/x"]), 2, &["inside"]);
    assert_refused(&mirror(home.path(), &["copy", "--follow", "a/b", "a"]), 2, &["inside"]);
    assert_refused(&mirror(home.path(), &["copy", "--follow", "a", "a"]), 2, &["inside"]);
    assert!(!home.path().join("a/new").exists());
}

#[test]
fn state_in_use_is_refused() {
    let home = tempfile::tempdir().unwrap();
    std::fs::create_dir(home.path().join("a")).unwrap();
    let state = home.path().join("state");
    let held = mirror::cli::state_dir::StateDir::lock(&state).unwrap();
    let listen = format!("unix:{}", home.path().join("socket").display());
    let output = mirror(home.path(), &["source", "--listen", &listen, "a"]);
    assert_refused(&output, 1, &["another mirror process", "--state-dir"]);
    drop(held);
}

/// Where log lines go and nobody takes them.
fn lost_ends() -> Vec<(&'static str, Stdio)> {
    // The reading end is closed at once, as that of a collector that died.
    let (_, pipe) = std::io::pipe().unwrap();
    let full = File::options().write(true).open("/dev/full").unwrap();
    vec![("a closed pipe", pipe.into()), ("a full device", full.into())]
}

fn end(mut child: Child) -> Option<i32> {
    kill_process(Pid::from_child(&child), Signal::TERM).unwrap();
    let mut status = None;
    wait_until(common::patience(), || {
        status = child.try_wait().unwrap();
        status.is_some()
    });
    let _ = child.kill();
    status.and_then(|status| status.code())
}

#[test]
fn a_log_that_cannot_be_written_ends_nothing() {
    for format in ["text", "json"] {
        for ((what, for_source), (_, for_sink)) in lost_ends().into_iter().zip(lost_ends()) {
            let scratch = common::machine::scratch();
            let at = |name: &str| scratch.path().join(name);
            for name in ["src", "dst"] {
                std::fs::create_dir(at(name)).unwrap();
            }
            let url = format!("unix:{}", at("socket").display());
            let start = |args: &[&str], stderr: Stdio| {
                Command::new(env!("CARGO_BIN_EXE_mirror"))
                    .args(["-vv", "--log-format", format])
                    .args(args)
                    .current_dir(scratch.path())
                    .stderr(stderr)
                    .spawn()
                    .unwrap()
            };
            let source = ["source", "--listen", &url, "--state-dir", "source-state", "src"];
            let source = start(&source, for_source);
            let sink = start(&["sink", "--state-dir", "sink-state", &url, "dst"], for_sink);
            std::fs::write(at("src/file"), "content").unwrap();
            let arrived = wait_until(Duration::from_secs(10), || at("dst/file").exists());
            assert_eq!((end(sink), end(source)), (Some(0), Some(0)), "{what}, {format}");
            assert!(arrived, "{what}, {format}");
        }
    }
}

#[test]
fn an_error_that_cannot_be_said_has_its_status() {
    for args in [&["source"][..], &["no-such-role"], &[]] {
        for (what, stderr) in lost_ends() {
            let mut command = Command::new(env!("CARGO_BIN_EXE_mirror"));
            let status = command.args(args).stderr(stderr).status().unwrap();
            assert_eq!(status.code(), Some(2), "{args:?}, {what}");
        }
    }
}

#[test]
fn where_it_cannot_listen_it_says_once_why_and_what_to_do() {
    let scratch = common::machine::scratch();
    let at = |name: &str| scratch.path().join(name).display().to_string();
    std::fs::create_dir(at("root")).unwrap();
    std::fs::write(at("file"), "not a socket").unwrap();
    let _taken = std::os::unix::net::UnixListener::bind(at("taken")).unwrap();
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port_taken = format!("tcp://{}", port.local_addr().unwrap());
    let long = format!("unix:{}", at(&"x".repeat(120)));
    for (url, why, what_to_do) in [
        (format!("unix:{}", at("missing/socket")), "No such file", "make the directory"),
        (format!("unix:{}", at("file")), "a file and not a socket", "choose another path"),
        (format!("unix:{}", at("taken")), "in use", "another process listens there"),
        (long, "107 bytes", "choose a shorter path"),
        (port_taken, "in use", "choose another port"),
        ("tcp://no-such-host.invalid:0".into(), "lookup", "an address of this machine"),
        ("tcp://192.0.2.1:0".into(), "assign", "an address of this machine"),
    ] {
        let args = ["source", "--insecure-plaintext", "--listen", &url, "root"];
        let output = mirror(scratch.path(), &args);
        assert_refused(&output, 1, &[&format!("cannot listen on {url}: "), why, what_to_do]);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(said.matches("os error").count().max(1), 1, "twice: {said}");
    }
    assert_eq!(std::fs::read(at("file")).unwrap(), b"not a socket");
}

#[test]
fn state_directories_that_cannot_be_made_are_said_once() {
    let scratch = common::machine::scratch();
    std::fs::create_dir(scratch.path().join("root")).unwrap();
    std::fs::write(scratch.path().join("file"), "").unwrap();
    let listen = format!("unix:{}", scratch.path().join("socket").display());
    let args = ["source", "--listen", &listen, "--state-dir", "file", "root"];
    let output = mirror(scratch.path(), &args);
    assert_refused(&output, 1, &["state directory", "--state-dir"]);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(said.matches("os error").count(), 1, "twice: {said}");
}

/// A terminal: what programs write to, and what a person sees of it.
fn terminal() -> (File, File) {
    use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
    let seen = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
    grantpt(&seen).unwrap();
    unlockpt(&seen).unwrap();
    let name = ptsname(&seen, Vec::new()).unwrap();
    let written = File::options().write(true).open(Path::new(name.to_str().unwrap())).unwrap();
    let size = rustix::termios::Winsize { ws_row: 24, ws_col: 50, ws_xpixel: 0, ws_ypixel: 0 };
    rustix::termios::tcsetwinsize(&written, size).unwrap();
    (written, seen.into())
}

#[test]
fn a_terminal_sees_progress_and_whole_log_lines() {
    let scratch = common::machine::scratch();
    let at = |name: &str| scratch.path().join(name);
    for name in ["src", "dst", "dst2"] {
        std::fs::create_dir(at(name)).unwrap();
    }
    for number in 0..500 {
        std::fs::write(at(&format!("src/{number}")), vec![7; 2000]).unwrap();
    }
    let run = |destination: &str, format: &str| {
        let (written, mut seen) = terminal();
        let child = Command::new(env!("CARGO_BIN_EXE_mirror"))
            .args(["copy", "--follow", "-v", "--log-format", format, "--state-dir"])
            .args([&*format!("{destination}-state"), "src", destination].map(at))
            .current_dir(at("."))
            .env("NO_COLOR", "1")
            .env("TERM", "xterm")
            .env_remove("STATE_DIRECTORY")
            .env_remove("MIRROR_LOG")
            .env_remove("JOURNAL_STREAM")
            .stderr(written)
            .spawn()
            .unwrap();
        // A terminal whose writers are all gone fails to be read.
        let reader = std::thread::spawn(move || {
            let (mut text, mut buffer) = (Vec::new(), [0; 4096]);
            while let Ok(count) = std::io::Read::read(&mut seen, &mut buffer) {
                text.extend_from_slice(&buffer[..count]);
            }
            String::from_utf8(text).unwrap()
        });
        let arrived = || (0..500).all(|number| at(&format!("{destination}/{number}")).exists());
        assert!(wait_until(common::patience(), arrived));
        assert_eq!(end(child), Some(0));
        reader.join().unwrap()
    };

    let text = run("dst", "text");
    let progress = text.find("receiving: ").unwrap_or_else(|| panic!("no progress: {text:?}"));
    assert!(text[progress..].contains("entries ("), "{text:?}");
    let line = text[progress..].split(['\r', '\n', '\x1b']).next().unwrap();
    assert!(line.len() <= 50, "wider than the terminal: {line:?}");
    // What stays is log lines, each from its beginning, and the line is gone in the end.
    let mut rest = String::new();
    for line in text.split_inclusive('\n') {
        let erased = line.rfind("\x1b[2K").map_or(0, |at| at + "\x1b[2K".len());
        rest.push_str(line[erased..].trim_start_matches('\r'));
    }
    for line in rest.lines().filter(|line| !line.is_empty()) {
        assert!(line.starts_with("20") && line.contains("Z "), "{line:?} in {text:?}");
    }
    assert!(!rest.contains("receiving: "), "{text:?}");

    let json = run("dst2", "json");
    assert!(!json.contains("receiving: "), "{json:?}");
    assert!(json.lines().all(|line| line.starts_with('{')), "{json:?}");
}
