//! Connecting to an upstream without ever blocking the loop.

use std::collections::VecDeque;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, ToSocketAddrs};
use std::sync::Arc;
use std::sync::mpsc::Sender;
use std::time::{Duration, Instant};

use mio::net::{TcpStream, UnixStream};
use mio::{Token, Waker};

use super::stream::Stream;
use crate::model::limits::HANDSHAKE_MS_MAX;
use crate::wire::url::{HostPort, Url};

/// How far the connection to an upstream has come before there is one.
#[derive(Debug, Default)]
pub(super) enum Dial {
    /// Nothing is under way.
    #[default]
    Idle,
    /// A helper thread looks the name up.
    Resolving,
    /// The kernel connects to one of the addresses.
    Connecting(Attempt),
}

/// One attempt at one address.
#[derive(Debug)]
pub(super) struct Attempt {
    pub(super) stream: Stream,
    pub(super) token: Token,
    /// When this address is given up: a host that drops packets would hold us for minutes.
    pub(super) deadline: Instant,
    /// Addresses not tried yet.
    pub(super) rest: VecDeque<SocketAddr>,
}

/// What a helper thread found out.
#[derive(Debug)]
pub(super) struct Resolved {
    /// Which role of the loop wanted to know.
    pub(super) role: usize,
    pub(super) addresses: io::Result<VecDeque<SocketAddr>>,
}

/// A stream that was begun and the addresses left for later.
pub(super) struct Begun {
    pub(super) stream: Stream,
    pub(super) rest: VecDeque<SocketAddr>,
}

/// Begins to connect to the first of `addresses` that does not fail at once.
pub(super) fn begin_tcp(mut addresses: VecDeque<SocketAddr>) -> io::Result<Begun> {
    let mut failure = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
    while let Some(address) = addresses.pop_front() {
        match TcpStream::connect(address) {
            Ok(stream) => return Ok(Begun { stream: Stream::Tcp(stream), rest: addresses }),
            Err(error) => failure = error,
        }
    }
    Err(failure)
}

/// Begins to connect to a Unix socket.
pub(super) fn begin_unix(path: &std::path::Path) -> io::Result<Begun> {
    let stream = Stream::Unix(UnixStream::connect(path)?);
    Ok(Begun { stream, rest: VecDeque::new() })
}

/// Returns when an attempt that begins at `now` is given up.
pub(super) fn attempt_deadline(now: Instant) -> Instant {
    now + Duration::from_millis(HANDSHAKE_MS_MAX)
}

/// Returns the addresses that need no look-up.
pub(super) fn known_addresses(at: &HostPort) -> Option<VecDeque<SocketAddr>> {
    if at.host == "localhost" {
        let loopback = [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)];
        return Some(loopback.map(|address| SocketAddr::new(address, at.port)).into());
    }
    let address = at.host.parse::<IpAddr>().ok()?;
    Some(VecDeque::from([SocketAddr::new(address, at.port)]))
}

/// Looks a name up in a thread that lives just as long, for the system's resolver blocks.
pub(super) fn resolve(
    role: usize,
    at: HostPort,
    answers: Sender<Resolved>,
    waker: Arc<Waker>,
) -> io::Result<()> {
    let look_up = move || {
        let addresses = (at.host.as_str(), at.port).to_socket_addrs().map(|all| all.collect());
        // The loop may be gone by now, which is no one's loss.
        if answers.send(Resolved { role, addresses }).is_ok() {
            let _ = waker.wake();
        }
    };
    std::thread::Builder::new().name("resolver".into()).spawn(look_up).map(drop)
}

/// Returns the one line that says that `url` cannot be reached.
pub(super) fn failure_line(url: &Url, error: &io::Error) -> String {
    format!("cannot connect to {url}: {error}")
}
