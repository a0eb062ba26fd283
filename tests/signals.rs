//! Signals, and a process out of descriptors. A process of its own, for both are shared by all of
//! a process's threads; one test, for the same reason.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::BorrowedFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use mirror::event_loop::EventLoop;
use mirror::model::{Sequence, Timestamp};
use mirror::role::{LinkError, LinkId, Peer, Role, RoleError};
use mirror::wire::{EncodedFrame, Frame, FrameDecoder, Message, Refusal, Url, encode_message};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use signal_hook::consts::signal::{SIGHUP, SIGTERM};

/// Greets everybody, counts connections and its own end.
#[derive(Default)]
struct Greeter {
    greetings: Vec<LinkId>,
    connected: Arc<AtomicU32>,
    shut_down: Arc<AtomicU32>,
}

fn greeting() -> Message {
    Message::Heartbeat { head: Sequence(1), clock: Timestamp::default() }
}

impl Role for Greeter {
    fn descriptors(&self) -> Vec<BorrowedFd<'_>> {
        Vec::new()
    }
    fn handle_readable(&mut self, _: Instant) -> Result<(), RoleError> {
        Ok(())
    }
    fn wants_upstream(&self, _: Instant) -> bool {
        false
    }
    fn handle_connected(&mut self, link: LinkId, _: Peer, _: Instant) {
        self.greetings.push(link);
        self.connected.fetch_add(1, Ordering::SeqCst);
    }
    fn handle_frame(
        &mut self,
        _: LinkId,
        _: Frame<'_>,
        _: usize,
        _: Instant,
    ) -> Result<(), LinkError> {
        Ok(())
    }
    fn handle_drained(&mut self, _: LinkId, _: Instant) -> Result<(), LinkError> {
        Ok(())
    }
    fn poll_transmit(
        &mut self,
        link: LinkId,
        _: Instant,
    ) -> Result<Option<EncodedFrame>, LinkError> {
        let Some(at) = self.greetings.iter().position(|id| *id == link) else { return Ok(None) };
        self.greetings.remove(at);
        Ok(Some(encode_message(&greeting()).into()))
    }
    fn handle_closed(&mut self, _: Option<LinkId>, _: &str, _: Instant) {}
    fn poll_timeout(&self) -> Option<Instant> {
        None
    }
    fn handle_timeout(&mut self, _: Instant) -> Result<(), RoleError> {
        Ok(())
    }
    fn shut_down(&mut self) -> Result<(), RoleError> {
        self.shut_down.fetch_add(1, Ordering::SeqCst);
        Ok(())
    }
}

/// Reads messages until the peer ends, or `count` have come.
fn read(mut stream: &UnixStream, decoder: &mut FrameDecoder, count: usize) -> Vec<Message> {
    let mut messages = Vec::new();
    loop {
        while let Some((frame, _)) = decoder.next_frame().unwrap() {
            messages.push(frame.message().unwrap());
        }
        if messages.len() >= count {
            return messages;
        }
        match stream.read(decoder.space()).expect("no answer in time") {
            0 => return messages,
            read => decoder.received(read),
        }
    }
}

fn cpu_time() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

#[test]
fn signals_end_it_cleanly_and_no_descriptors_do_not_spin_it() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("socket");
    let role = Greeter::default();
    let (connected, shut_down) = (role.connected.clone(), role.shut_down.clone());
    let listen = Url::Unix(path.clone());
    let event_loop = std::thread::spawn(move || {
        let mut event_loop = EventLoop::new().unwrap();
        event_loop.add_role("greeter", Box::new(role), &[listen], None).unwrap();
        event_loop.run().map_err(|error| error.to_string())
    });
    while !path.exists() {
        std::thread::sleep(Duration::from_millis(5));
    }

    // SIGHUP does nothing yet, and least of all ends it.
    signal_hook::low_level::raise(SIGHUP).unwrap();
    let first = UnixStream::connect(&path).unwrap();
    first.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    let mut first_decoder = FrameDecoder::default();
    assert_eq!(read(&first, &mut first_decoder, 1), [greeting()]);

    // All descriptors but one are taken; that one is the next peer's own end.
    let limit = getrlimit(Resource::Nofile);
    let low = Rlimit { current: Some(128), maximum: limit.maximum };
    setrlimit(Resource::Nofile, low).unwrap();
    let mut taken = Vec::new();
    while let Ok(file) = File::open("/dev/null") {
        taken.push(file);
    }
    taken.pop();
    let mut second = UnixStream::connect(&path).unwrap();
    let before = cpu_time();
    std::thread::sleep(Duration::from_millis(500));
    assert!(cpu_time() - before < Duration::from_millis(100), "it spins");
    assert_eq!(connected.load(Ordering::SeqCst), 1);
    taken.clear();
    second.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    let mut second_decoder = FrameDecoder::default();
    assert_eq!(read(&second, &mut second_decoder, 1), [greeting()]);
    setrlimit(Resource::Nofile, limit).unwrap();
    second.write_all(&encode_message(&greeting())).unwrap();

    signal_hook::low_level::raise(SIGTERM).unwrap();
    let bye = Message::Bye(Refusal::ShuttingDown);
    for (peer, decoder) in [(&first, &mut first_decoder), (&second, &mut second_decoder)] {
        assert_eq!(read(peer, decoder, 2), std::slice::from_ref(&bye));
    }
    drop((first, second));
    event_loop.join().unwrap().unwrap();
    assert_eq!(shut_down.load(Ordering::SeqCst), 1);
    assert!(!path.exists());
}
