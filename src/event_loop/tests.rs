//! The loop with toy roles: one loop, driven turn by turn, and peers on plain sockets.

use std::cell::RefCell;
use std::collections::{BTreeMap, VecDeque};
use std::io::{Read, Write};
use std::net::TcpStream as StdTcpStream;
use std::os::fd::BorrowedFd;
use std::os::unix::fs::PermissionsExt;
use std::rc::Rc;

use super::*;
use crate::model::{Sequence, Timestamp};
use crate::role::{LinkError, Peer};
use crate::wire::frame::HEADER_BYTES;
use crate::wire::url::HostPort;
use crate::wire::{
    EncodedFrame, Frame, FrameDecoder, ItemsFrame, Message, Refusal, encode_message,
};

/// What a toy is to do, and what happened to it.
#[derive(Default)]
struct Toy {
    connects: bool,
    upstream: Option<LinkId>,
    retry_at: Option<Instant>,
    /// Sends every message back.
    echoes: bool,
    /// Sends frames of this size without end.
    floods: Option<usize>,
    /// Fails with the next message.
    fails: bool,
    /// How long each message takes.
    takes: Duration,
    /// When something is due, whatever comes in.
    due_at: Option<Instant>,
    outgoing: BTreeMap<LinkId, VecDeque<Vec<u8>>>,
    received: Vec<Message>,
    /// The moments that the messages were handed over as of.
    received_at: Vec<Instant>,
    /// How many messages there were when it was due.
    received_when_due: Option<usize>,
    flooded_bytes: u64,
    closed: Vec<(Option<LinkId>, String)>,
    is_shut_down: bool,
}

#[derive(Clone, Default)]
struct ToyRole(Rc<RefCell<Toy>>);

impl Role for ToyRole {
    fn descriptors(&self) -> Vec<BorrowedFd<'_>> {
        Vec::new()
    }

    fn handle_readable(&mut self, _: Instant) -> Result<(), RoleError> {
        unreachable!("there is nothing to read")
    }

    fn wants_upstream(&self, now: Instant) -> bool {
        let toy = self.0.borrow();
        toy.connects && toy.upstream.is_none() && toy.retry_at.is_none_or(|at| at <= now)
    }

    fn handle_connected(&mut self, link: LinkId, _: Peer, _: Instant) {
        let mut toy = self.0.borrow_mut();
        if toy.connects {
            toy.upstream = Some(link);
        }
        toy.outgoing.insert(link, VecDeque::new());
    }

    fn handle_frame(
        &mut self,
        link: LinkId,
        frame: Frame<'_>,
        _: usize,
        now: Instant,
    ) -> Result<(), LinkError> {
        let mut toy = self.0.borrow_mut();
        toy.received_at.push(now);
        std::thread::sleep(toy.takes);
        let message = frame
            .message()
            .map_err(|error| LinkError::Refuse(Refusal::Protocol(error.to_string())))?;
        if toy.fails {
            return Err(RoleError("the toy is broken".to_string()).into());
        }
        if toy.echoes {
            toy.outgoing.get_mut(&link).unwrap().push_back(encode_message(&message));
        }
        toy.received.push(message.clone());
        match message {
            Message::Bye(refusal) => Err(LinkError::Refused(refusal)),
            _ => Ok(()),
        }
    }

    fn handle_drained(&mut self, _: LinkId, _: Instant) -> Result<(), LinkError> {
        Ok(())
    }

    fn poll_transmit(
        &mut self,
        link: LinkId,
        _: Instant,
    ) -> Result<Option<EncodedFrame>, LinkError> {
        let mut toy = self.0.borrow_mut();
        if let Some(frame) = toy.outgoing.get_mut(&link).unwrap().pop_front() {
            return Ok(Some(frame.into()));
        }
        let Some(size) = toy.floods else { return Ok(None) };
        toy.flooded_bytes += size as u64;
        let mut frame = ItemsFrame::default();
        frame.buffer(size).resize(size, 0);
        Ok(Some(frame.finish().into()))
    }

    fn handle_closed(&mut self, link: Option<LinkId>, reason: &str, now: Instant) {
        let mut toy = self.0.borrow_mut();
        toy.closed.push((link, reason.to_string()));
        if link.is_none() || toy.upstream == link {
            toy.upstream = None;
            toy.retry_at = Some(now + Duration::from_millis(20));
        }
        toy.outgoing.retain(|id, _| Some(*id) != link);
    }

    fn poll_timeout(&self) -> Option<Instant> {
        let toy = self.0.borrow();
        let retry_at = toy.retry_at.filter(|_| toy.connects && toy.upstream.is_none());
        retry_at.into_iter().chain(toy.due_at).min()
    }

    fn handle_timeout(&mut self, now: Instant) -> Result<(), RoleError> {
        let mut toy = self.0.borrow_mut();
        // Clears the deadline: the loop asks whether the upstream is wanted right after.
        toy.retry_at = None;
        if toy.due_at.take_if(|due_at| *due_at <= now).is_some() {
            toy.received_when_due = Some(toy.received.len());
        }
        Ok(())
    }

    fn shut_down(&mut self) -> Result<(), RoleError> {
        self.0.borrow_mut().is_shut_down = true;
        Ok(())
    }
}

fn tcp() -> Url {
    Url::Tcp(HostPort { host: "127.0.0.1".into(), port: 0 })
}

fn message(number: u64) -> Message {
    Message::Heartbeat { head: Sequence(number), clock: Timestamp::default() }
}

/// Turns the loop until `done`, at most for a minute: others may use the machine.
fn turn_until(event_loop: &mut EventLoop, mut done: impl FnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(60);
    while !done() {
        assert!(Instant::now() < end, "still not done");
        event_loop.turn(Some(Duration::from_millis(10))).unwrap();
    }
}

fn echo_server(event_loop: &mut EventLoop, url: Url) -> (ToyRole, Url) {
    let role = ToyRole::default();
    role.0.borrow_mut().echoes = true;
    let id = event_loop.add_role("server", Box::new(role.clone()), &[url], None).unwrap();
    let url = event_loop.listening(id).remove(0);
    (role, url)
}

fn client(event_loop: &mut EventLoop, upstream: Upstream) -> ToyRole {
    let role = ToyRole::default();
    role.0.borrow_mut().connects = true;
    event_loop.add_role("client", Box::new(role.clone()), &[], Some(upstream)).unwrap();
    role
}

fn connect(url: &Url) -> StdTcpStream {
    let Url::Tcp(at) = url else { unreachable!("a TCP listener") };
    let stream = StdTcpStream::connect((at.host.as_str(), at.port)).unwrap();
    stream.set_nonblocking(true).unwrap();
    stream
}

/// Reads what is there and returns the messages so far and whether that was all for ever.
fn read_messages(stream: &mut StdTcpStream, decoder: &mut FrameDecoder) -> (Vec<Message>, bool) {
    let mut messages = Vec::new();
    loop {
        match stream.read(decoder.space()) {
            Ok(0) => return (messages, true),
            Ok(count) => decoder.received(count),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return (messages, false),
            Err(error) => panic!("{error}"),
        }
        while let Some((frame, _)) = decoder.next_frame().unwrap() {
            messages.push(frame.message().unwrap());
        }
    }
}

fn echo_through(event_loop: &mut EventLoop, client: &ToyRole) {
    turn_until(event_loop, || client.0.borrow().upstream.is_some());
    let link = client.0.borrow().upstream.unwrap();
    let sent: Vec<Message> = (0..100).map(message).collect();
    let frames = sent.iter().map(encode_message).collect();
    client.0.borrow_mut().outgoing.insert(link, frames);
    event_loop.hosts.iter_mut().flatten().for_each(Host::touch);
    turn_until(event_loop, || client.0.borrow().received.len() >= sent.len());
    assert_eq!(client.0.borrow().received, sent);
}

#[test]
fn frames_go_there_and_back() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("socket");
    let mut event_loop = EventLoop::new().unwrap();
    for url in [tcp(), Url::Unix(path.clone())] {
        let (_, url) = echo_server(&mut event_loop, url);
        let client = client(&mut event_loop, Upstream::Url(url));
        echo_through(&mut event_loop, &client);
    }
    let (_, Url::Tcp(at)) = echo_server(&mut event_loop, tcp()) else { unreachable!() };
    // The second is an address only to the system's resolver, so a helper thread looks it up.
    for host in ["localhost", "127.1"] {
        let by_name = Url::Tcp(HostPort { host: host.into(), port: at.port });
        let by_name = client(&mut event_loop, Upstream::Url(by_name));
        echo_through(&mut event_loop, &by_name);
    }

    let mode = path.symlink_metadata().unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    drop(event_loop);
    assert!(!path.exists(), "the socket's file stays behind");
}

#[test]
fn roles_of_one_loop_are_joined_by_a_pair() {
    let mut event_loop = EventLoop::new().unwrap();
    let server = ToyRole::default();
    server.0.borrow_mut().echoes = true;
    let id = event_loop.add_role("server", Box::new(server.clone()), &[], None).unwrap();
    let client = client(&mut event_loop, Upstream::Local(id));
    echo_through(&mut event_loop, &client);
    // A copy is over when either end is.
    server.0.borrow_mut().fails = true;
    let link = client.0.borrow().upstream.unwrap();
    client.0.borrow_mut().outgoing.get_mut(&link).unwrap().push_back(encode_message(&message(1)));
    event_loop.hosts.iter_mut().flatten().for_each(Host::touch);
    let error = event_loop.run().unwrap_err();
    assert_eq!(error.to_string(), "the toy is broken");
    assert!(client.0.borrow().is_shut_down);
    assert!(!server.0.borrow().is_shut_down);
}

#[test]
fn a_corrupt_frame_closes_with_a_reason_that_the_peer_sees() {
    let mut event_loop = EventLoop::new().unwrap();
    let (server, url) = echo_server(&mut event_loop, tcp());
    let mut stream = connect(&url);
    let mut bytes = encode_message(&message(1));
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    stream.write_all(&bytes).unwrap();
    // More than one turn reads: the last message must get through although this is not read.
    bytes.resize(100_000, 0);
    let _ = stream.write(&bytes);
    let mut decoder = FrameDecoder::default();
    let mut seen = Vec::new();
    turn_until(&mut event_loop, || {
        let (messages, ended) = read_messages(&mut stream, &mut decoder);
        seen.extend(messages);
        ended
    });
    let [Message::Bye(Refusal::Protocol(reason))] = &seen[..] else { panic!("{seen:?}") };
    assert!(reason.contains("payload is damaged"), "{reason}");
    let toy = server.0.borrow();
    assert!(toy.received.is_empty());
    assert_eq!(toy.closed.len(), 1);
    assert!(toy.closed[0].1.contains("payload is damaged"), "{:?}", toy.closed);
}

#[test]
fn an_upstream_is_wanted_again_after_each_failure() {
    let mut event_loop = EventLoop::new().unwrap();
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    drop(listener);
    let url = Url::Tcp(HostPort { host: "127.0.0.1".into(), port });
    let client = client(&mut event_loop, Upstream::Url(url));
    turn_until(&mut event_loop, || client.0.borrow().closed.len() >= 3);
    assert!(client.0.borrow().closed.iter().all(|(link, _)| link.is_none()));
    assert!(client.0.borrow().closed[0].1.contains("127.0.0.1"), "{:?}", client.0.borrow().closed);

    let listener = std::net::TcpListener::bind(("127.0.0.1", port)).unwrap();
    turn_until(&mut event_loop, || client.0.borrow().upstream.is_some());
    let first = client.0.borrow().upstream;
    drop(listener.accept().unwrap());
    turn_until(&mut event_loop, || {
        let upstream = client.0.borrow().upstream;
        upstream.is_some() && upstream != first
    });
    assert_eq!(client.0.borrow().closed.last().unwrap().0, first);
}

#[test]
fn a_stalled_peer_holds_little_and_costs_the_others_nothing() {
    let mut event_loop = EventLoop::new().unwrap();
    let (server, url) = echo_server(&mut event_loop, tcp());
    server.0.borrow_mut().floods = Some(100 << 10);
    let stalled = connect(&url);
    turn_until(&mut event_loop, || !server.0.borrow().outgoing.is_empty());
    // It is sent to until the kernel's buffers and the outbox are full, and then no more.
    let mut last = u64::MAX;
    let mut quiet = 0;
    turn_until(&mut event_loop, || {
        let flooded = server.0.borrow().flooded_bytes;
        quiet = if flooded == last { quiet + 1 } else { 0 };
        last = flooded;
        quiet > 10
    });
    assert!(last < 64 << 20, "{last}");
    let host = event_loop.hosts[0].as_ref().unwrap();
    assert!(host.outbox_bytes().all(|bytes| bytes < limits::OUTBOX_BYTES_MAX + (101 << 10)));
    // A second one is served meanwhile.
    server.0.borrow_mut().floods = None;
    let mut other = connect(&url);
    other.write_all(&encode_message(&message(7))).unwrap();
    let mut decoder = FrameDecoder::default();
    let mut seen = Vec::new();
    turn_until(&mut event_loop, || {
        seen.extend(read_messages(&mut other, &mut decoder).0);
        !seen.is_empty()
    });
    assert_eq!(seen, [message(7)]);
    drop(stalled);
    turn_until(&mut event_loop, || server.0.borrow().closed.len() == 1);
}

#[test]
fn a_peer_that_reads_gets_a_flood_whole_and_in_order() {
    let mut event_loop = EventLoop::new().unwrap();
    let (server, url) = echo_server(&mut event_loop, tcp());
    server.0.borrow_mut().floods = Some(200 << 10);
    let mut stream = connect(&url);
    let mut decoder = FrameDecoder::default();
    let mut frames = 0;
    turn_until(&mut event_loop, || {
        while let Ok(count) = stream.read(decoder.space()) {
            assert!(count > 0, "closed");
            decoder.received(count);
            while let Some((frame, _)) = decoder.next_frame().unwrap() {
                assert_eq!(frame.payload.len() + HEADER_BYTES, 200 << 10);
                frames += 1;
            }
        }
        frames > 500
    });
}

#[test]
fn idle_waits_for_as_long_as_it_may() {
    let mut event_loop = EventLoop::new().unwrap();
    let (server, url) = echo_server(&mut event_loop, tcp());
    let client = client(&mut event_loop, Upstream::Url(url));
    turn_until(&mut event_loop, || {
        client.0.borrow().upstream.is_some() && !server.0.borrow().outgoing.is_empty()
    });
    for _ in 0..5 {
        event_loop.turn(Some(Duration::from_millis(1))).unwrap();
    }
    let start = Instant::now();
    event_loop.turn(Some(Duration::from_millis(200))).unwrap();
    assert!(start.elapsed() >= Duration::from_millis(200), "{:?}", start.elapsed());
}

#[test]
fn stopping_shuts_roles_down_and_tells_the_peers() {
    let mut event_loop = EventLoop::new().unwrap();
    let (server, url) = echo_server(&mut event_loop, tcp());
    let mut stream = connect(&url);
    turn_until(&mut event_loop, || !server.0.borrow().outgoing.is_empty());
    let stopper = event_loop.stopper();
    let peer = std::thread::spawn(move || {
        stopper.stop();
        stream.set_nonblocking(false).unwrap();
        let mut decoder = FrameDecoder::default();
        read_messages(&mut stream, &mut decoder)
    });
    event_loop.run().unwrap();
    assert!(server.0.borrow().is_shut_down);
    let (seen, ended) = peer.join().unwrap();
    assert_eq!(seen, [Message::Bye(Refusal::ShuttingDown)]);
    assert!(ended);
}

#[test]
fn a_socket_file_left_behind_is_replaced_and_one_in_use_is_not() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("socket");
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    let mut event_loop = EventLoop::new().unwrap();
    echo_server(&mut event_loop, Url::Unix(path.clone()));
    let add = |event_loop: &mut EventLoop, path: &std::path::Path| {
        let listen = [Url::Unix(path.to_path_buf())];
        event_loop.add_role("second", Box::new(ToyRole::default()), &listen, None)
    };
    let error = add(&mut event_loop, &path).unwrap_err().to_string();
    assert!(error.starts_with("cannot listen on unix:"), "{error}");
    let file = directory.path().join("file");
    std::fs::write(&file, "precious").unwrap();
    add(&mut event_loop, &file).unwrap_err();
    assert_eq!(std::fs::read_to_string(&file).unwrap(), "precious");
}

#[test]
fn one_role_that_fails_does_not_end_the_others() {
    let mut event_loop = EventLoop::new().unwrap();
    let (broken, broken_url) = echo_server(&mut event_loop, tcp());
    broken.0.borrow_mut().fails = true;
    let (_, url) = echo_server(&mut event_loop, tcp());
    let mut stream = connect(&broken_url);
    stream.write_all(&encode_message(&message(1))).unwrap();
    let mut decoder = FrameDecoder::default();
    turn_until(&mut event_loop, || read_messages(&mut stream, &mut decoder).1);
    let client = client(&mut event_loop, Upstream::Url(url));
    echo_through(&mut event_loop, &client);
    event_loop.stopper().stop();
    assert_eq!(event_loop.run().unwrap_err().to_string(), "the toy is broken");
}

/// Else a peer would be taken for silent since before a frame that took long on a slow disk.
#[test]
fn each_frame_comes_with_its_own_moment() {
    let mut event_loop = EventLoop::new().unwrap();
    let (server, url) = echo_server(&mut event_loop, tcp());
    let takes = Duration::from_millis(50);
    server.0.borrow_mut().takes = takes;
    let mut stream = connect(&url);
    // In one piece, so that they are read together.
    let frames: Vec<u8> =
        (0..3).map(message).flat_map(|message| encode_message(&message)).collect();
    stream.write_all(&frames).unwrap();
    turn_until(&mut event_loop, || server.0.borrow().received.len() == 3);
    let at = server.0.borrow().received_at.clone();
    for pair in at.windows(2) {
        assert!(pair[1] >= pair[0] + takes, "{:?} after the one before", pair[1] - pair[0]);
    }
}

/// Else a process that was stopped would take its own standstill for its peers' silence.
#[test]
fn what_came_in_is_read_before_anything_is_due() {
    let mut event_loop = EventLoop::new().unwrap();
    let (server, url) = echo_server(&mut event_loop, tcp());
    let mut stream = connect(&url);
    stream.write_all(&encode_message(&message(0))).unwrap();
    turn_until(&mut event_loop, || server.0.borrow().received.len() == 1);
    // What is due becomes so, and the peer speaks, while the process stands still.
    server.0.borrow_mut().due_at = Some(Instant::now());
    stream.write_all(&encode_message(&message(1))).unwrap();
    std::thread::sleep(Duration::from_millis(20));
    turn_until(&mut event_loop, || server.0.borrow().received_when_due.is_some());
    assert_eq!(server.0.borrow().received_when_due, Some(2));
}

#[test]
fn who_says_nothing_gives_way_and_who_speaks_stays() {
    let mut event_loop = EventLoop::new().unwrap();
    let (server, url) = echo_server(&mut event_loop, tcp());
    event_loop.switchboard.connections_max = 3;
    let mut said = 0;
    let mut speak = |event_loop: &mut EventLoop, stream: &mut StdTcpStream| {
        said += 1;
        stream.write_all(&encode_message(&message(said))).unwrap();
        let mut decoder = FrameDecoder::default();
        let mut heard = Vec::new();
        let mut is_over = false;
        let end = Instant::now() + Duration::from_secs(60);
        while heard.is_empty() && !is_over {
            assert!(Instant::now() < end, "no echo");
            event_loop.turn(Some(Duration::from_millis(10))).unwrap();
            (heard, is_over) = read_messages(stream, &mut decoder);
        }
        heard == [message(said)]
    };
    let mut first = connect(&url);
    assert!(speak(&mut event_loop, &mut first));
    let silent: Vec<StdTcpStream> = (0..20).map(|_| connect(&url)).collect();
    // All were accepted, and all but the last two had to go.
    turn_until(&mut event_loop, || server.0.borrow().closed.len() == 18);
    let mut last = connect(&url);
    assert!(speak(&mut event_loop, &mut last));
    assert!(speak(&mut event_loop, &mut first), "who had spoken was closed");
    // When all have spoken, who comes waits until one leaves.
    let mut third = connect(&url);
    assert!(speak(&mut event_loop, &mut third));
    let mut fourth = connect(&url);
    for _ in 0..5 {
        event_loop.turn(Some(Duration::from_millis(10))).unwrap();
    }
    assert_eq!(event_loop.hosts[0].as_ref().unwrap().outbox_bytes().count(), 3);
    drop((first, silent));
    assert!(speak(&mut event_loop, &mut fourth));
    assert!(speak(&mut event_loop, &mut last));
    assert!(speak(&mut event_loop, &mut third));
}
