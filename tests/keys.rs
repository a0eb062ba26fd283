//! Keys: who follows whom over `tls://`, by real processes.

mod common;

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use common::judge::wait_equal;
use common::machine::{free_port, scratch};
use common::patience;
use common::process::{Process, mirror};
use mirror::model::limits::HANDSHAKE_MS_MAX;
use mirror::transport::tls::{TlsConfig, TlsError};
use mirror::transport::{NodeKey, PublicKey};
use rustix::process::Signal;

/// A source and a sink, each with a state directory and so with a key.
struct Hosts {
    directory: tempfile::TempDir,
    port: u16,
}

impl Hosts {
    fn new() -> Hosts {
        let hosts = Hosts { directory: scratch(), port: free_port() };
        for name in ["src", "dst", "source", "sink"] {
            fs::create_dir(hosts.path(name)).unwrap();
        }
        fs::write(hosts.path("src/file"), "one").unwrap();
        hosts
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn at(&self) -> String {
        format!("localhost:{}", self.port)
    }

    /// Returns the line that `mirror key` prints for a host.
    fn key(&self, host: &str) -> String {
        let state_dir = self.path(host);
        let output = Command::new(mirror()).arg("key").arg("--state-dir").arg(state_dir).output();
        let output = output.unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let text = String::from_utf8(output.stdout).unwrap();
        text.lines().next().unwrap().to_owned()
    }

    /// Lets exactly these lines in at the source.
    fn authorize(&self, lines: &[String]) {
        write_private(&self.path("source/authorized_peers"), &format!("{}\n", lines.join("\n")));
    }

    fn source(&self, listen: &str) -> Process {
        let (src, state_dir) = (self.path("src"), self.path("source"));
        let [src, state_dir] = [&src, &state_dir].map(|path| path.to_str().unwrap());
        let args = ["source", "--state-dir", state_dir, "--listen", listen, src];
        let source = Process::mirror(args, &self.path("source.log"));
        assert!(source.wait_log("listening on", patience()));
        source
    }

    fn tls_source(&self) -> Process {
        self.source(&format!("tls://127.0.0.1:{}", self.port))
    }

    fn sink(&self, options: &[&str], upstream: &str) -> Process {
        let (dst, state_dir) = (self.path("dst"), self.path("sink"));
        let [dst, state_dir] = [&dst, &state_dir].map(|path| path.to_str().unwrap());
        let args = [&["sink", "--state-dir", state_dir], options, &[upstream, dst]].concat();
        Process::mirror(args, &self.path("sink.log"))
    }

    fn wait_equal(&self) {
        wait_equal(&self.path("src"), &self.path("dst"), patience());
    }

    /// Changes the tree, and waits until the other end has it.
    fn follow(&self, text: &str) {
        fs::write(self.path("src/file"), text).unwrap();
        self.wait_equal();
    }
}

fn write_private(path: &Path, text: &str) {
    fs::write(path, text).unwrap();
    fs::set_permissions(path, PermissionsExt::from_mode(0o600)).unwrap();
}

/// Asserts that a process ends with status 1, and that its log has these words.
fn assert_ends(process: &mut Process, words: &[&str]) {
    let status = process.wait(patience()).expect("it ends");
    let log = process.log();
    assert_eq!(status.code(), Some(1), "{log}");
    for word in words {
        assert!(log.contains(word), "{word:?} is not in {log}");
    }
}

#[test]
fn two_hosts_that_know_each_other_mirror() {
    let hosts = Hosts::new();
    hosts.authorize(&[hosts.key("sink")]);
    let source = hosts.tls_source();
    // A bare address means TLS.
    let _sink = hosts.sink(&["--upstream-key", &hosts.key("source")], &hosts.at());
    hosts.wait_equal();
    hosts.follow("two");
    assert!(!source.log().contains("WARN"), "{}", source.log());
    // Content of megabytes goes through the same way.
    fs::write(hosts.path("src/big"), vec![7; 5 << 20]).unwrap();
    hosts.wait_equal();
}

#[test]
fn an_unknown_upstream_is_refused_with_the_line_that_makes_it_known() {
    let hosts = Hosts::new();
    hosts.authorize(&[hosts.key("sink")]);
    let source = hosts.tls_source();
    let key: PublicKey = hosts.key("source").parse().unwrap();
    let line = format!("{} {key}", hosts.at());
    let mut sink = hosts.sink(&[], &hosts.at());
    assert_ends(&mut sink, &[&line, &key.fingerprint(), "known_upstreams"]);
    assert!(!source.log().contains("turned away"), "nothing was shown to it");
    // A key that is not the right one is no better than none.
    let mut sink = hosts.sink(&["--upstream-key", &hosts.key("sink")], &hosts.at());
    assert_ends(&mut sink, &[&line]);
    write_private(&hosts.path("sink/known_upstreams"), &format!("{line}\n"));
    let _sink = hosts.sink(&[], &hosts.at());
    hosts.wait_equal();
}

#[test]
fn a_sink_that_is_not_let_in_is_told_which_line_would_let_it_in() {
    let hosts = Hosts::new();
    let source = hosts.tls_source();
    assert!(source.wait_log("lets nobody in", patience()));
    let (key, own) = (hosts.key("source"), hosts.key("sink"));
    let own = own.parse::<PublicKey>().unwrap().to_string();
    let mut sink = hosts.sink(&["--upstream-key", &key], &hosts.at());
    assert_ends(&mut sink, &["authorized_peers", &own]);
    assert!(source.wait_log(&format!("SIGHUP: {own}"), patience()));
    assert!(!hosts.path("dst/file").exists());
    hosts.authorize(&[own]);
    source.signal(Signal::HUP);
    let _sink = hosts.sink(&["--upstream-key", &key], &hosts.at());
    hosts.wait_equal();
}

#[test]
fn whoever_is_not_let_in_learns_nothing() {
    let hosts = Hosts::new();
    let _source = hosts.tls_source();
    let stranger = NodeKey::load_or_make(&hosts.path("sink")).unwrap();
    let config = TlsConfig::client(&stranger, Arc::new(|_| true));
    let stream = TcpStream::connect(("127.0.0.1", hosts.port)).unwrap();
    stream.set_read_timeout(Some(patience())).unwrap();
    let mut session = config.begin(stream).unwrap();
    session.handshake().unwrap();
    // It may say what it likes: the first that it hears is that it is not wanted.
    let _ = session.write_all(&[0; 100]);
    let mut heard = Vec::new();
    let error = session.read_to_end(&mut heard).unwrap_err();
    assert_eq!(TlsError::of(&error), Some(&TlsError::Rejected), "{error}");
    assert!(heard.is_empty());
}

#[test]
fn a_key_that_is_taken_back_ends_its_connections() {
    let hosts = Hosts::new();
    let own = hosts.key("sink");
    hosts.authorize(std::slice::from_ref(&own));
    let source = hosts.tls_source();
    let mut sink = hosts.sink(&["--upstream-key", &hosts.key("source")], &hosts.at());
    hosts.wait_equal();
    hosts.authorize(&[]);
    source.signal(Signal::HUP);
    assert!(source.wait_log("its key is not let in any more", patience()));
    fs::write(hosts.path("src/file"), "secret").unwrap();
    // It has met its upstream, and so waits for a better time.
    assert!(sink.wait_log("it does not let this node in", patience()));
    assert!(sink.is_running());
    assert_ne!(fs::read(hosts.path("dst/file")).unwrap(), b"secret");
    hosts.authorize(&[own]);
    source.signal(Signal::HUP);
    hosts.wait_equal();
}

#[test]
fn a_wrong_file_of_peers_leaves_everything_as_it_was() {
    let hosts = Hosts::new();
    hosts.authorize(&[hosts.key("sink")]);
    let source = hosts.tls_source();
    let _sink = hosts.sink(&["--upstream-key", &hosts.key("source")], &hosts.at());
    hosts.wait_equal();
    hosts.authorize(&["nonsense".to_owned()]);
    source.signal(Signal::HUP);
    assert!(source.wait_log("authorized_peers, line 1", patience()));
    hosts.follow("two");
    // At the start nobody would be let in, or not those who should.
    drop(source);
    let (src, state_dir) = (hosts.path("src"), hosts.path("source"));
    let [src, state_dir] = [&src, &state_dir].map(|path| path.to_str().unwrap());
    let args = ["source", "--state-dir", state_dir, "--listen", "tls://127.0.0.1:0", src];
    assert_ends(&mut Process::mirror(args, &hosts.path("again.log")), &["line 1", "nonsense"]);
}

#[test]
fn a_node_changes_its_key_without_a_stop() {
    let hosts = Hosts::new();
    hosts.authorize(&[hosts.key("sink")]);
    let old = hosts.key("source");
    let source = hosts.tls_source();
    fs::remove_file(hosts.path("source/key")).unwrap();
    let new = hosts.key("source");
    assert_ne!(old, new);
    // Those who follow it are told of both for a while.
    let mut sink = hosts.sink(&["--upstream-key", &old, "--upstream-key", &new], &hosts.at());
    hosts.wait_equal();
    source.signal(Signal::HUP);
    assert!(source.wait_log("reading keys", patience()));
    hosts.follow("two");
    sink.kill9();
    let _sink = hosts.sink(&["--upstream-key", &new], &hosts.at());
    hosts.follow("three");
}

#[test]
fn plaintext_and_tls_do_not_meet() {
    let hosts = Hosts::new();
    hosts.authorize(&[hosts.key("sink")]);
    let key = hosts.key("source");
    let mut source = hosts.tls_source();
    let mut sink = hosts.sink(&[], &format!("tcp://127.0.0.1:{}", hosts.port));
    assert!(sink.wait_log("no upstream", patience()));
    assert!(!hosts.path("dst/file").exists());
    sink.kill9();
    // Nobody else is harmed.
    let mut sink = hosts.sink(&["--upstream-key", &key], &hosts.at());
    hosts.wait_equal();
    sink.kill9();
    source.kill9();
    let _source = hosts.source(&format!("tcp://127.0.0.1:{}", hosts.port));
    let sink = hosts.sink(&["--upstream-key", &key], &hosts.at());
    assert!(sink.wait_log("it does not speak TLS", patience()), "{}", sink.log());
}

#[test]
fn a_handshake_that_does_not_come_to_its_end_is_given_up() {
    let hosts = Hosts::new();
    hosts.authorize(&[hosts.key("sink")]);
    let _source = hosts.tls_source();
    let started = Instant::now();
    let mut silent = TcpStream::connect(("127.0.0.1", hosts.port)).unwrap();
    let _sink = hosts.sink(&["--upstream-key", &hosts.key("source")], &hosts.at());
    hosts.wait_equal();
    silent.set_read_timeout(Some(patience())).unwrap();
    assert_eq!(silent.read(&mut [0; 100]).unwrap(), 0);
    let took = started.elapsed();
    let limit = Duration::from_millis(HANDSHAKE_MS_MAX);
    assert!(limit - Duration::from_millis(50) <= took && took < limit * 2, "{took:?}");
    hosts.follow("two");
}

#[test]
fn a_key_that_others_can_read_is_not_used() {
    let hosts = Hosts::new();
    let key = hosts.key("source");
    let file = hosts.path("source/key");
    assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o7777, 0o600);
    fs::set_permissions(&file, PermissionsExt::from_mode(0o644)).unwrap();
    let (src, state_dir) = (hosts.path("src"), hosts.path("source"));
    let [src, state_dir] = [&src, &state_dir].map(|path| path.to_str().unwrap());
    let args = ["source", "--state-dir", state_dir, "--listen", "tls://127.0.0.1:0", src];
    assert_ends(&mut Process::mirror(args, &hosts.path("open.log")), &["chmod 600", "0644"]);
    fs::set_permissions(&file, PermissionsExt::from_mode(0o600)).unwrap();
    assert_eq!(hosts.key("source"), key);
}
