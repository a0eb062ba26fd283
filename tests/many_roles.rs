//! One loop hosts any number of roles, and none suffers from another.

mod common;

use std::fs;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use common::judge::wait_equal;
use mirror::event_loop::{EventLoop, Stopper, Upstream};
use mirror::role::{Relay, RelayOptions, Sink, SinkOptions, Source, SourceOptions};
use mirror::wire::Url;

fn directory(at: PathBuf) -> PathBuf {
    fs::create_dir_all(&at).unwrap();
    at
}

fn source(scratch: &Path, name: &str) -> Source<mirror::watch::Watch> {
    let options = SourceOptions {
        root: directory(scratch.join(name)),
        state_dir: directory(scratch.join(format!("{name}-state"))),
        journal_bytes: 16 << 20,
        rescan_interval: Duration::from_secs(3600),
        accept_root: false,
        lock_root: true,
    };
    Source::open(options).unwrap()
}

fn replica(scratch: &Path, name: &str) -> SinkOptions {
    SinkOptions {
        root: directory(scratch.join(name)),
        state_dir: directory(scratch.join(format!("{name}-state"))),
        adopt: false,
        checkpoint_interval: Duration::from_millis(50),
    }
}

/// Two trees: one with a relay that two sinks follow, over a socket and inside of the loop, and
/// one that a single sink follows.
fn run(scratch: &Path, started: &mpsc::Sender<Stopper>) {
    let mut event_loop = EventLoop::new().unwrap();
    let url = |name: &str| Url::Unix(scratch.join(name));
    let one = Box::new(source(scratch, "one"));
    event_loop.add_role("one", one, &[url("one.sock")], None).unwrap();
    let relay = RelayOptions { sink: replica(scratch, "relay"), journal_bytes: 16 << 20 };
    let relay = Box::new(Relay::open_relay(relay).unwrap());
    let upstream = Some(Upstream::Url(url("one.sock")));
    let relay = event_loop.add_role("relay", relay, &[url("relay.sock")], upstream).unwrap();
    let sink = |name: &str| Box::new(Sink::open(replica(scratch, name)).unwrap());
    event_loop.add_role("near", sink("near"), &[], Some(Upstream::Local(relay))).unwrap();
    let upstream = Some(Upstream::Url(url("relay.sock")));
    event_loop.add_role("far", sink("far"), &[], upstream).unwrap();
    let two = Box::new(source(scratch, "two"));
    event_loop.add_role("two", two, &[url("two.sock")], None).unwrap();
    let upstream = Some(Upstream::Url(url("two.sock")));
    event_loop.add_role("other", sink("other"), &[], upstream).unwrap();
    started.send(event_loop.stopper()).unwrap();
    // One of them fails in the end, which is what this returns.
    assert!(event_loop.run().is_err());
}

#[test]
fn roles_of_all_kinds_share_a_loop_and_fail_alone() {
    let scratch = common::machine::scratch();
    let (send, started) = mpsc::channel();
    let path = scratch.path().to_owned();
    let thread = std::thread::spawn(move || run(&path, &send));
    let stopper = started.recv().unwrap();
    let at = |name: &str| scratch.path().join(name);
    let equal = |one: &str, other: &str| wait_equal(&at(one), &at(other), common::patience());
    fs::create_dir(at("one/d")).unwrap();
    fs::write(at("one/d/f"), "first").unwrap();
    fs::write(at("two/f"), "second").unwrap();
    for replica in ["relay", "near", "far"] {
        equal("one", replica);
    }
    equal("two", "other");
    // The relay's replica loses what makes it one, for which there is no cure: it ends.
    fs::remove_dir_all(at("relay/.mirror")).unwrap();
    let until = Instant::now() + common::patience();
    for number in 0.. {
        fs::write(at("one/d/g"), format!("for nobody, {number}")).unwrap();
        std::thread::sleep(Duration::from_millis(50));
        if UnixStream::connect(at("relay.sock")).is_err() {
            break;
        }
        assert!(Instant::now() < until, "the relay goes on");
    }
    fs::rename(at("two/f"), at("two/g")).unwrap();
    equal("two", "other");
    fs::write(at("two/h"), "still there").unwrap();
    equal("two", "other");
    assert!(!at("far/d/g").exists() && at("far/d/f").exists());
    stopper.stop();
    thread.join().unwrap();
}
