//! The event loop: the only place that knows sockets, timers and signals.
//!
//! It hosts any number of roles, each apart from the others. One turn of the loop is: wait until
//! something is ready or the nearest deadline is due; accept, read and hand on frames; call what
//! is due; ask every link of each role that was called for what it has to send, and write it in
//! that same turn. Idle, it sleeps until a role's next deadline.
//!
//! mio is edge-triggered: a socket that was said to be ready must be used until it would block.
//! To keep one connection from starving the others, a turn does so only up to a limit
//! (`limits.rs`) and notes that there is more; the next turn then does not wait.
//!
//! A role whose [`Role::poll_transmit`] for one link finds news for another must either return a
//! frame or let [`Role::poll_timeout`] be due: the loop asks all links again after any frame,
//! but cannot see what else a call has found.

mod dial;
mod host;
mod limits;
mod link;
mod listener;
mod outbox;
mod stream;
mod switchboard;
#[cfg(test)]
mod tests;

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use mio::net::UnixStream;
use mio::{Events, Interest, Poll, Token, Waker};
use signal_hook::consts::signal::{SIGHUP, SIGINT, SIGTERM};
use signal_hook_mio::v1_0::Signals;

use crate::role::{LinkId, Peer, Received, Role, RoleError};
use crate::transport::TlsConfig;
use crate::wire::Url;
use host::Host;
use limits::{FAREWELL_TIME_MAX, PROGRESS_PAUSE};
use listener::Listener;
use stream::Stream;
use switchboard::{Slot, Switchboard};

const SIGNALS: Token = Token(0);
const WAKER: Token = Token(1);
const FIRST_TOKEN: Token = Token(2);

/// Names a role of a loop.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RoleId(usize);

/// Where a role finds its upstream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Upstream {
    /// At this address.
    Url(Url),
    /// In the same loop, over a pair of sockets.
    Local(RoleId),
}

/// How a role shows who it is and judges who others are, on either side of it.
#[derive(Debug, Clone, Default)]
pub struct TlsConfigs {
    /// For those who connect to it.
    pub downstreams: Option<TlsConfig>,
    /// For the one that it connects to.
    pub upstream: Option<TlsConfig>,
}

impl TlsConfigs {
    /// Returns what is for peers of this kind.
    pub fn of(&self, peer: Peer) -> Option<&TlsConfig> {
        match peer {
            Peer::Upstream => self.upstream.as_ref(),
            Peer::Downstream => self.downstreams.as_ref(),
        }
    }
}

/// Why the loop cannot start or has ended.
#[derive(Debug, thiserror::Error)]
pub enum LoopError {
    /// The kernel refuses something that the loop is built on.
    #[error("cannot set up the event loop: {0}")]
    SetUp(io::Error),
    /// An address cannot be listened on.
    #[error("cannot listen on {url}: {reason}")]
    Listen {
        /// The address.
        url: Url,
        /// Why not, and what to do.
        reason: String,
    },
    /// The transport is not there yet.
    #[error("{0}: this transport is not built yet; use tcp://HOST:PORT or unix:/PATH")]
    NotBuilt(Url),
    /// Waiting for events failed.
    #[error("cannot wait for events: {0}")]
    Wait(io::Error),
    /// A role could not go on.
    #[error(transparent)]
    Role(#[from] RoleError),
}

/// Hosts roles and drives them.
pub struct EventLoop {
    poll: Poll,
    events: Events,
    signals: Signals,
    switchboard: Switchboard,
    /// By [`RoleId`]; `None` for a role that has ended.
    hosts: Vec<Option<Host>>,
    stop: Arc<AtomicBool>,
    waker: Arc<Waker>,
    progress: Option<Progress>,
    /// What says on SIGHUP how roles are secured.
    loaders: Vec<(RoleId, Box<LoadTls>)>,
    /// The first failure of a role, which [`EventLoop::run`] returns in the end.
    failure: Option<RoleError>,
}

/// Reads keys and peers anew.
type LoadTls = dyn FnMut() -> Result<TlsConfigs, RoleError>;

/// Whom to tell how far the roles are.
struct Progress {
    show: Box<dyn FnMut(Option<Received>)>,
    is_shown: bool,
    next: Instant,
}

impl Progress {
    /// Tells it at once when something begins or ends, else only now and then.
    fn update(&mut self, received: Option<Received>) {
        let now = Instant::now();
        if received.is_some() == self.is_shown && (!self.is_shown || now < self.next) {
            return;
        }
        self.is_shown = received.is_some();
        self.next = now + PROGRESS_PAUSE;
        (self.show)(received);
    }
}

/// Ends a loop from another thread, as SIGTERM does.
#[derive(Debug, Clone)]
pub struct Stopper {
    stop: Arc<AtomicBool>,
    waker: Arc<Waker>,
}

impl Stopper {
    /// Asks the loop to end.
    pub fn stop(&self) {
        self.stop.store(true, Ordering::Release);
        // This fails only when the loop is gone already.
        let _ = self.waker.wake();
    }
}

impl EventLoop {
    /// Makes a loop without roles. From here on SIGTERM, SIGINT and SIGHUP are its events.
    pub fn new() -> Result<EventLoop, LoopError> {
        let poll = Poll::new().map_err(LoopError::SetUp)?;
        let registry = poll.registry().try_clone().map_err(LoopError::SetUp)?;
        let mut signals = Signals::new([SIGTERM, SIGINT, SIGHUP]).map_err(LoopError::SetUp)?;
        registry.register(&mut signals, SIGNALS, Interest::READABLE).map_err(LoopError::SetUp)?;
        let waker = Arc::new(Waker::new(&registry, WAKER).map_err(LoopError::SetUp)?);
        Ok(EventLoop {
            poll,
            events: Events::with_capacity(256),
            signals,
            switchboard: Switchboard::new(registry, waker.clone()),
            hosts: Vec::new(),
            stop: Arc::new(AtomicBool::new(false)),
            waker,
            progress: None,
            loaders: Vec::new(),
            failure: None,
        })
    }

    /// Has `show` called with how far a role is in receiving a whole tree, while one does, and
    /// with `None` after that. The loop never wakes up for it.
    pub fn show_progress(&mut self, show: impl FnMut(Option<Received>) + 'static) {
        let next = Instant::now();
        self.progress = Some(Progress { show: Box::new(show), is_shown: false, next });
    }

    /// Hosts a role from now on.
    ///
    /// `listen` is where it accepts connections, `upstream` where it is connected to when it
    /// [wants](Role::wants_upstream) to be. `name` is what the log calls it.
    pub fn add_role(
        &mut self,
        name: &str,
        role: Box<dyn Role>,
        listen: &[Url],
        upstream: Option<Upstream>,
    ) -> Result<RoleId, LoopError> {
        if let Some(Upstream::Url(url @ Url::Ssh(_))) = &upstream {
            return Err(LoopError::NotBuilt(url.clone()));
        }
        if let Some(Upstream::Local(upstream)) = upstream
            && let Some(upstream) = &mut self.hosts[upstream.0]
        {
            upstream.had_local = true;
        }
        let id = RoleId(self.hosts.len());
        let mut host =
            Host::new(id, name, role, upstream, &mut self.switchboard).map_err(LoopError::SetUp)?;
        for url in listen {
            let listener = Listener::bind(url)?;
            tracing::info!("{name}: listening on {}", listener.url());
            host.listen(listener, &mut self.switchboard).map_err(LoopError::SetUp)?;
        }
        self.hosts.push(Some(host));
        Ok(id)
    }

    /// Has a role show who it is and judge who others are by what `load` returns, which is called
    /// now, and again on SIGHUP. What fails then leaves everything as it was.
    ///
    /// # Errors
    ///
    /// What `load` fails with now.
    pub fn secure(
        &mut self,
        id: RoleId,
        mut load: impl FnMut() -> Result<TlsConfigs, RoleError> + 'static,
    ) -> Result<(), LoopError> {
        let tls = load()?;
        if let Some(host) = &mut self.hosts[id.0] {
            host.secure(tls, &mut self.switchboard);
        }
        self.loaders.push((id, Box::new(load)));
        Ok(())
    }

    /// Returns where a role listens, with the ports that the kernel chose.
    pub fn listening(&self, role: RoleId) -> Vec<Url> {
        self.hosts[role.0].iter().flat_map(Host::listening).cloned().collect()
    }

    /// Returns a handle that ends the loop from another thread.
    pub fn stopper(&self) -> Stopper {
        Stopper { stop: self.stop.clone(), waker: self.waker.clone() }
    }

    /// Drives the roles until SIGTERM or SIGINT, or until none is left.
    ///
    /// A role that fails is dropped, with those that are of no use without it; the others go on.
    ///
    /// # Errors
    ///
    /// The first failure of a role, after all have ended.
    pub fn run(&mut self) -> Result<(), LoopError> {
        while self.turn(None)? {}
        self.shut_down()?;
        self.failure.take().map_or(Ok(()), |error| Err(error.into()))
    }

    /// Lets time pass before there are roles. Returns `false` if a signal ends it.
    pub fn pause(&mut self, time: Duration) -> Result<bool, LoopError> {
        let until = Instant::now() + time;
        let mut left = time;
        while !left.is_zero() && !self.stop.load(Ordering::Acquire) {
            self.turn(Some(left))?;
            left = until.saturating_duration_since(Instant::now());
        }
        Ok(!self.stop.load(Ordering::Acquire))
    }

    /// Waits for events, at most for `wait_max`, and acts on them. Returns whether to go on.
    fn turn(&mut self, wait_max: Option<Duration>) -> Result<bool, LoopError> {
        self.wait(wait_max)?;
        let events: Vec<(Token, bool, bool)> = self
            .events
            .iter()
            .map(|event| {
                // An error or an end is noticed by reading.
                let readable = event.is_readable() || event.is_read_closed() || event.is_error();
                (event.token(), readable, event.is_writable() || event.is_error())
            })
            .collect();
        for (token, readable, writable) in events {
            match token {
                SIGNALS => self.handle_signals(),
                WAKER => self.handle_answers(),
                _ => self.handle_event(token, readable, writable),
            }
        }
        for token in self.switchboard.take_accepts() {
            self.handle_event(token, true, false);
        }
        // What came in is read before anyone is taken for silent: it may have been this process
        // that was stopped.
        for index in 0..self.hosts.len() {
            self.with_host(RoleId(index), Host::receive);
        }
        let now = Instant::now();
        self.switchboard.handle_time(now);
        for index in 0..self.hosts.len() {
            self.with_host(RoleId(index), |host, switchboard| {
                host.handle_time(now, switchboard)?;
                host.dial_if_wanted(now, switchboard);
                Ok(())
            });
            self.connect_local(RoleId(index), now);
        }
        for index in 0..self.hosts.len() {
            self.with_host(RoleId(index), Host::transmit);
        }
        if let Some(progress) = &mut self.progress {
            progress.update(self.hosts.iter().flatten().find_map(Host::received));
        }
        let is_stopped = self.stop.load(Ordering::Acquire);
        Ok(!is_stopped && self.hosts.iter().any(Option::is_some))
    }

    fn wait(&mut self, wait_max: Option<Duration>) -> Result<(), LoopError> {
        let now = Instant::now();
        let has_more = self.switchboard.has_accepts()
            || self.hosts.iter().flatten().any(Host::has_more)
            || self.stop.load(Ordering::Acquire);
        let timeout = if has_more {
            Some(Duration::ZERO)
        } else {
            let deadlines = self.hosts.iter().flatten().filter_map(Host::deadline);
            let nearest = deadlines.chain(self.switchboard.deadline()).min();
            let until = nearest.map(|deadline| deadline.saturating_duration_since(now));
            until.into_iter().chain(wait_max).min()
        };
        match self.poll.poll(&mut self.events, timeout) {
            Ok(()) => Ok(()),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {
                self.events.clear();
                Ok(())
            }
            Err(error) => Err(LoopError::Wait(error)),
        }
    }

    fn handle_signals(&mut self) {
        for signal in self.signals.pending() {
            match signal {
                SIGHUP => self.reload(),
                _ => {
                    tracing::info!("{}: ending", signal_name(signal));
                    self.stop.store(true, Ordering::Release);
                }
            }
        }
    }

    fn reload(&mut self) {
        tracing::info!("SIGHUP: reading keys and peers again");
        for (id, load) in &mut self.loaders {
            let Some(host) = &mut self.hosts[id.0] else { continue };
            match load() {
                Ok(tls) => host.secure(tls, &mut self.switchboard),
                Err(error) => tracing::error!("{}: {error}; all stays as it was", host.name),
            }
        }
    }

    fn handle_answers(&mut self) {
        while let Some(resolved) = self.switchboard.next_resolved() {
            self.with_host(RoleId(resolved.role), |host, switchboard| {
                host.handle_resolved(resolved.addresses, switchboard);
                Ok(())
            });
        }
    }

    fn handle_event(&mut self, token: Token, readable: bool, writable: bool) {
        // What is still said of something that has ended is for nobody.
        let Some(slot) = self.switchboard.slot(token) else { return };
        match slot {
            Slot::Descriptor(id) => self.with_host(id, |host, _| host.handle_descriptors()),
            Slot::Listener(id) => self.with_host(id, |host, switchboard| {
                host.handle_listener_event(token, switchboard);
                Ok(())
            }),
            Slot::Dial(id) => self.with_host(id, |host, switchboard| {
                host.handle_dial_event(switchboard);
                Ok(())
            }),
            Slot::Link(id) => self.with_host(id, |host, _| {
                host.handle_link_event(LinkId(token.0 as u64), readable, writable);
                Ok(())
            }),
            Slot::Farewell => self.switchboard.handle_farewell_event(token),
        }
    }

    /// Connects a role to its upstream in this loop if it wants to be.
    fn connect_local(&mut self, id: RoleId, now: Instant) {
        let wanted = self.hosts[id.0].as_ref().and_then(|host| host.wants_local(now));
        let Some(upstream) = wanted else { return };
        let pair = UnixStream::pair();
        match pair {
            Ok((ours, theirs)) => {
                let ends = [(id, ours, Peer::Upstream), (upstream, theirs, Peer::Downstream)];
                for (id, stream, peer) in ends {
                    self.with_host(id, |host, switchboard| {
                        let name = "a role of this process";
                        let stream = Stream::Unix(stream);
                        host.connected(stream, (peer, false), None, name, now, switchboard);
                        Ok(())
                    });
                }
            }
            Err(error) => self.with_host(id, |host, _| {
                host.unreachable(&error, now);
                Ok(())
            }),
        }
    }

    /// Calls a role that has not ended, and ends it if that fails.
    fn with_host(
        &mut self,
        id: RoleId,
        call: impl FnOnce(&mut Host, &mut Switchboard) -> Result<(), RoleError>,
    ) {
        let Some(host) = &mut self.hosts[id.0] else { return };
        if let Err(error) = call(host, &mut self.switchboard) {
            let mut host = self.hosts[id.0].take().expect("it was called just now");
            host.say_goodbye(&mut self.switchboard);
            self.end_orphans();
            // The failure that ends the loop is returned; the program says it then.
            if self.failure.is_some() || self.hosts.iter().any(Option::is_some) {
                tracing::error!("{}: {error}", host.name);
            }
            self.failure.get_or_insert(error);
        }
    }

    /// Ends the roles that were tied to others by [`Upstream::Local`] and have lost them: a copy
    /// is over when either of its ends is.
    fn end_orphans(&mut self) {
        loop {
            let is_gone = |id: RoleId| self.hosts[id.0].is_none();
            let orphan = self.hosts.iter().flatten().find(|host| match host.upstream {
                Some(Upstream::Local(upstream)) => is_gone(upstream),
                _ => host.had_local && !self.serves_anybody(host),
            });
            let Some(id) = orphan.map(|host| host.id) else { return };
            let mut host = self.hosts[id.0].take().expect("it was found just now");
            if let Err(error) = host.shut_down(&mut self.switchboard) {
                tracing::error!("{}: {error}", host.name);
            }
        }
    }

    /// Returns whether a role may still have downstreams.
    fn serves_anybody(&self, host: &Host) -> bool {
        let is_local = |other: &Host| other.upstream == Some(Upstream::Local(host.id));
        host.listening().next().is_some() || self.hosts.iter().flatten().any(is_local)
    }

    /// Ends all roles, and gives the peers a moment to be told.
    fn shut_down(&mut self) -> Result<(), LoopError> {
        for host in &mut self.hosts {
            let Some(mut host) = host.take() else { continue };
            if let Err(error) = host.shut_down(&mut self.switchboard) {
                if self.failure.is_none() {
                    self.failure = Some(error);
                } else {
                    tracing::error!("{}: {error}", host.name);
                }
            }
        }
        self.stop.store(false, Ordering::Release);
        let deadline = Instant::now() + FAREWELL_TIME_MAX;
        while self.switchboard.has_farewells() && Instant::now() < deadline {
            self.turn(Some(FAREWELL_TIME_MAX))?;
            // A second signal means: at once.
            if self.stop.load(Ordering::Acquire) {
                break;
            }
        }
        Ok(())
    }
}

fn signal_name(signal: i32) -> &'static str {
    match signal {
        SIGTERM => "SIGTERM",
        SIGINT => "SIGINT",
        _ => "a signal",
    }
}
