//! Checkpoints: the loop goes on while one of them waits for its disk.

mod common;

use std::fs;
use std::process::Command;
use std::time::{Duration, Instant};

use common::judge::wait_equal;
use common::machine::{Mount, need_root, need_tool, run};
use common::node::{Node, NodeRole};
use common::proxy::Proxy;

/// A file system that takes no writes until this is dropped.
struct Frozen<'a>(&'a Mount);

impl Frozen<'_> {
    fn new(mount: &Mount) -> Result<Frozen<'_>, String> {
        run(Command::new("fsfreeze").arg("-f").arg(&mount.path))?;
        Ok(Frozen(mount))
    }
}

impl Drop for Frozen<'_> {
    fn drop(&mut self) {
        let _ = run(Command::new("fsfreeze").arg("-u").arg(&self.0.path));
    }
}

/// Waits until `done`, and returns whether it came to that.
fn wait_for(patience: Duration, mut done: impl FnMut() -> bool) -> bool {
    let until = Instant::now() + patience;
    while Instant::now() < until {
        if done() {
            return true;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    done()
}

/// A write-back of gigabytes takes a minute; this one takes as long as the test wants.
#[test]
fn heartbeats_go_on_while_a_checkpoint_waits_for_its_disk() {
    if !need_root("freezing a file system") || !need_tool("fsfreeze") {
        return;
    }
    let scratch = common::machine::scratch();
    let mount = match Mount::ext4(64 << 20, &[]) {
        Ok(mount) => mount,
        Err(error) => return common::skip(&error),
    };
    let mut source = Node::new(scratch.path(), "source", NodeRole::Source);
    let mut sink = Node::new(scratch.path(), "sink", NodeRole::Sink);
    let proxy = Proxy::start(source.port);
    sink.root = mount.path.clone();
    sink.upstream = format!("tcp://127.0.0.1:{}", proxy.port());
    sink.args = vec!["--checkpoint-interval".into(), "3s".into()];
    fs::write(source.root.join("f"), "f").unwrap();
    source.start();
    sink.start();
    let checkpoint = mount.path.join(".mirror/checkpoint");
    let read = || fs::read(&checkpoint).ok();
    wait_equal(&source.root, &sink.root, common::patience());
    // The first one comes at once, the next after the interval.
    std::thread::sleep(Duration::from_secs(1));
    assert!(read().is_some(), "{}", sink.log_text());
    // Applied, and not durable yet.
    fs::write(source.root.join("g"), "g").unwrap();
    wait_equal(&source.root, &sink.root, common::patience());
    let before = read();
    let frozen = Frozen::new(&mount).expect("the file system can be frozen");
    let (_, said) = proxy.bytes();
    std::thread::sleep(Duration::from_secs(5));
    assert_eq!(read(), before, "nothing can be written");
    let (_, says) = proxy.bytes();
    assert!(says > said + 20, "the sink said {} bytes in 5 seconds", says - said);
    assert_eq!(proxy.connections(), 1, "{}{}", source.log_text(), sink.log_text());
    drop(frozen);
    assert!(wait_for(common::patience(), || read() != before), "the checkpoint never came");
    fs::write(source.root.join("h"), "h").unwrap();
    wait_equal(&source.root, &sink.root, common::patience());
    sink.terminate();
}
