//! One role with its listeners, its connections and its way to its upstream.

mod handshake;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io;
use std::net::SocketAddr;
use std::os::fd::AsRawFd;
use std::time::Instant;

use mio::unix::SourceFd;
use mio::{Interest, Token};

use super::dial::{self, Attempt, Begun, Dial};
use super::limits::{
    ACCEPT_PAUSE, ACCEPTS_TURN_MAX, FRAMES_TURN_MAX, GIVE_WAY_TURN_MAX, READ_TURN_BYTES_MAX,
};
use super::link::Link;
use super::listener::Listener;
use super::stream::Stream;
use super::switchboard::{Crowd, Slot, Switchboard};
use super::{RoleId, TlsConfigs, Upstream};
use crate::role::{LinkError, LinkId, Peer, Received, Role, RoleError};
use crate::transport::PublicKey;
use crate::transport::tls::TlsError;
use crate::wire::{Refusal, Url};

/// A role and all that belongs to it; nothing of one host is shared with another.
pub(super) struct Host {
    pub(super) id: RoleId,
    pub(super) name: String,
    role: Box<dyn Role>,
    pub(super) upstream: Option<Upstream>,
    /// Whether another role of the loop has this one as its upstream, or had.
    pub(super) had_local: bool,
    dial: Dial,
    listeners: Vec<(Token, Listener)>,
    /// How the role shows who it is, and judges who others are.
    tls: TlsConfigs,
    /// Whether the upstream has ever said anything: until then, what is wrong with it is for a
    /// person to put right.
    has_met_upstream: bool,
    /// The keys of which it was said that they are not let in, since keys were read.
    turned_away: BTreeSet<PublicKey>,
    links: BTreeMap<LinkId, Link>,
    /// Whether the role was called since its links were last asked for frames.
    is_touched: bool,
    /// Whether it was said that too many connect.
    is_crowded: bool,
    /// Whether links have more to read or to send than one turn allows.
    has_more: bool,
}

/// Why reading stopped.
enum ReadEnd {
    Drained,
    TurnOver,
    Closed(String),
    Lost(io::Error),
    Failed(LinkError),
}

impl Host {
    /// Takes a role and registers the descriptors that it waits on.
    pub(super) fn new(
        id: RoleId,
        name: &str,
        role: Box<dyn Role>,
        upstream: Option<Upstream>,
        switchboard: &mut Switchboard,
    ) -> io::Result<Host> {
        for descriptor in role.descriptors() {
            let token = switchboard.allot(Slot::Descriptor(id));
            let registry = switchboard.registry();
            registry.register(&mut SourceFd(&descriptor.as_raw_fd()), token, Interest::READABLE)?;
        }
        Ok(Host {
            id,
            name: name.to_string(),
            role,
            upstream,
            had_local: false,
            dial: Dial::Idle,
            listeners: Vec::new(),
            tls: TlsConfigs::default(),
            has_met_upstream: false,
            turned_away: BTreeSet::new(),
            links: BTreeMap::new(),
            is_touched: true,
            is_crowded: false,
            has_more: false,
        })
    }

    /// Accepts connections from `listener` from now on.
    pub(super) fn listen(
        &mut self,
        mut listener: Listener,
        switchboard: &mut Switchboard,
    ) -> io::Result<()> {
        let token = switchboard.allot(Slot::Listener(self.id));
        listener.register(switchboard.registry(), token)?;
        self.listeners.push((token, listener));
        Ok(())
    }

    /// Returns where the role listens.
    pub(super) fn listening(&self) -> impl Iterator<Item = &Url> {
        self.listeners.iter().map(|(_, listener)| listener.url())
    }

    /// Returns how far the role is in receiving a whole tree.
    pub(super) fn received(&self) -> Option<Received> {
        self.role.received()
    }

    /// Returns whether the host must be called again without waiting for an event.
    pub(super) fn has_more(&self) -> bool {
        self.has_more || self.is_touched
    }

    /// Returns when the host must be called although nothing happened.
    pub(super) fn deadline(&self) -> Option<Instant> {
        let dial = match &self.dial {
            Dial::Connecting(attempt) => Some(attempt.deadline),
            Dial::Idle | Dial::Resolving => None,
        };
        let listeners = self.listeners.iter().filter_map(|(_, listener)| listener.paused_until);
        let handshakes = self.links.values().filter_map(|link| link.handshake_until);
        self.role.poll_timeout().into_iter().chain(dial).chain(listeners).chain(handshakes).min()
    }

    /// Handles the role's own descriptors becoming readable.
    pub(super) fn handle_descriptors(&mut self) -> Result<(), RoleError> {
        self.is_touched = true;
        self.role.handle_readable(Instant::now())
    }

    /// Notes an event for a connection; the turn's end acts on it.
    pub(super) fn handle_link_event(&mut self, link: LinkId, readable: bool, writable: bool) {
        // An event may be older than the end of its connection.
        if let Some(link) = self.links.get_mut(&link) {
            link.readable |= readable;
            link.writable |= writable;
            self.has_more = true;
        }
    }

    /// Accepts what waits at the listener of `token`.
    pub(super) fn handle_listener_event(&mut self, token: Token, switchboard: &mut Switchboard) {
        let now = Instant::now();
        let mut gave_way = 0;
        for _ in 0..ACCEPTS_TURN_MAX {
            if gave_way == GIVE_WAY_TURN_MAX {
                break;
            }
            let has_place = self.has_place(switchboard);
            let Some((_, listener)) = self.listeners.iter_mut().find(|(at, _)| *at == token) else {
                return;
            };
            if !has_place {
                listener.paused_until = Some(now + ACCEPT_PAUSE);
                return;
            }
            match listener.accept() {
                Ok((stream, peer)) => {
                    if listener.paused_until.take().is_some() {
                        tracing::info!("{} accepts connections again", listener.url());
                    }
                    let is_secure = matches!(listener.url(), Url::Tls(_));
                    gave_way += usize::from(self.make_place(switchboard));
                    let end = (Peer::Downstream, is_secure);
                    self.connected(stream, end, None, &peer, now, switchboard);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    listener.paused_until = None;
                    return;
                }
                Err(error)
                    if matches!(
                        error.kind(),
                        io::ErrorKind::Interrupted | io::ErrorKind::ConnectionAborted
                    ) => {}
                Err(error) => {
                    // Out of descriptors or memory: said once, and tried again by the clock,
                    // for the listener stays ready and would keep the loop spinning.
                    if listener.paused_until.is_none() {
                        let url = listener.url();
                        tracing::warn!(
                            "cannot accept a connection on {url}: {error}; will try again; \
                             if this is the limit of open files, raise it (ulimit -n)"
                        );
                    }
                    listener.paused_until = Some(now + ACCEPT_PAUSE);
                    return;
                }
            }
        }
        switchboard.accept_again(token);
    }

    /// Returns whether another connection may be accepted: there is a place, or one who has said
    /// nothing yet can give way.
    ///
    /// Otherwise a peer that only connects would take all descriptors, and with them the tree
    /// from those who follow it.
    fn has_place(&mut self, switchboard: &Switchboard) -> bool {
        match switchboard.crowd() {
            Crowd::Few => self.is_crowded = false,
            Crowd::Some => {}
            Crowd::Full => {
                if !std::mem::replace(&mut self.is_crowded, true) {
                    tracing::warn!(
                        "{}: as many connections as the limit of open files allows; more wait, \
                         and who says nothing gives way; if they are wanted, raise the limit \
                         (ulimit -n, LimitNOFILE=)",
                        self.name
                    );
                }
                return self.oldest_silent().is_some();
            }
        }
        true
    }

    /// Makes place for one more connection. Returns whether another had to go for it.
    fn make_place(&mut self, switchboard: &mut Switchboard) -> bool {
        if switchboard.crowd() != Crowd::Full {
            return false;
        }
        let Some(oldest) = self.oldest_silent() else { return false };
        self.close(oldest, "it said nothing, and others wait", switchboard);
        true
    }

    fn oldest_silent(&self) -> Option<LinkId> {
        self.links.iter().find(|(_, link)| !link.has_spoken).map(|(id, _)| *id)
    }

    /// Handles what is due at `now`: the role's timers, and the host's own.
    pub(super) fn handle_time(
        &mut self,
        now: Instant,
        switchboard: &mut Switchboard,
    ) -> Result<(), RoleError> {
        let is_due = |deadline: &Instant| *deadline <= now;
        let due: Vec<Token> = self
            .listeners
            .iter()
            .filter(|(_, listener)| listener.paused_until.as_ref().is_some_and(is_due))
            .map(|(token, _)| *token)
            .collect();
        for token in due {
            self.handle_listener_event(token, switchboard);
        }
        if matches!(&self.dial, Dial::Connecting(attempt) if is_due(&attempt.deadline)) {
            self.attempt_failed(&io::ErrorKind::TimedOut.into(), now, switchboard);
        }
        let late = |(_, link): &(&LinkId, &Link)| link.handshake_until.as_ref().is_some_and(is_due);
        let late: Vec<LinkId> = self.links.iter().filter(late).map(|(id, _)| *id).collect();
        for id in late {
            self.handshake_failed(id, &io::ErrorKind::TimedOut.into(), switchboard)?;
        }
        if self.role.poll_timeout().as_ref().is_some_and(is_due) {
            self.is_touched = true;
            self.role.handle_timeout(now)?;
        }
        Ok(())
    }

    /// Returns the role of this loop that the role wants a connection to now.
    pub(super) fn wants_local(&self, now: Instant) -> Option<RoleId> {
        match self.upstream {
            Some(Upstream::Local(upstream)) if self.role.wants_upstream(now) => Some(upstream),
            _ => None,
        }
    }

    /// Begins to connect if the role wants its upstream.
    pub(super) fn dial_if_wanted(&mut self, now: Instant, switchboard: &mut Switchboard) {
        let Some(Upstream::Url(url)) = &self.upstream else { return };
        if !matches!(self.dial, Dial::Idle) || !self.role.wants_upstream(now) {
            return;
        }
        // The role does not know yet of a connection whose ends do not know each other.
        if self.links.values().any(|link| link.peer == Peer::Upstream && !link.is_open()) {
            return;
        }
        let begun = match url {
            Url::Unix(path) => dial::begin_unix(path),
            Url::Tls(at) | Url::Tcp(at) => match dial::known_addresses(at) {
                Some(addresses) => dial::begin_tcp(addresses),
                None => match switchboard.resolve(self.id, at.clone()) {
                    Ok(()) => {
                        self.dial = Dial::Resolving;
                        return;
                    }
                    Err(error) => Err(error),
                },
            },
            Url::Ssh(_) => Err(io::ErrorKind::Unsupported.into()),
        };
        self.attempt(begun, now, switchboard);
    }

    /// Handles the answer to a name's look-up.
    pub(super) fn handle_resolved(
        &mut self,
        addresses: io::Result<VecDeque<SocketAddr>>,
        switchboard: &mut Switchboard,
    ) {
        if matches!(self.dial, Dial::Resolving) {
            self.dial = Dial::Idle;
            self.attempt(addresses.and_then(dial::begin_tcp), Instant::now(), switchboard);
        }
    }

    /// Handles an event for the connection that is being made.
    pub(super) fn handle_dial_event(&mut self, switchboard: &mut Switchboard) {
        let now = Instant::now();
        let Dial::Connecting(attempt) = &self.dial else { return };
        match attempt.stream.finish_connect() {
            Ok(false) => {}
            Ok(true) => {
                let Dial::Connecting(attempt) = std::mem::take(&mut self.dial) else { return };
                let (stream, token) = (attempt.stream, Some(attempt.token));
                let name = self.upstream_name();
                let is_secure = matches!(self.upstream, Some(Upstream::Url(Url::Tls(_))));
                let end = (Peer::Upstream, is_secure);
                self.connected(stream, end, token, &name, now, switchboard);
            }
            Err(error) => self.attempt_failed(&error, now, switchboard),
        }
    }

    /// Takes a connected stream as a link, registered already if it has a `token`; `end` is what
    /// the peer is, and whether it must show who it is.
    pub(super) fn connected(
        &mut self,
        stream: Stream,
        (peer, is_secure): (Peer, bool),
        token: Option<Token>,
        name: &str,
        now: Instant,
        switchboard: &mut Switchboard,
    ) {
        // A connection that was made here is watched since it was begun.
        let is_watched = token.is_some();
        let token = match token {
            Some(token) => {
                switchboard.reassign(token, Slot::Link(self.id));
                token
            }
            None => switchboard.allot(Slot::Link(self.id)),
        };
        let set_up = || {
            stream.set_nodelay()?;
            let mut stream = match self.tls.of(peer) {
                _ if !is_secure => stream,
                Some(config) => stream.secured(config)?,
                None => return Err(io::Error::other("there is no key to show")),
            };
            if !is_watched {
                switchboard.watch(&mut stream, token)?;
            }
            Ok(stream)
        };
        let stream = match set_up() {
            Ok(stream) => stream,
            Err(error) => {
                // Only a connection that broke at once, or a kernel without memory, comes here.
                tracing::debug!("{}: gave up a new connection, {name}: {error}", self.name);
                switchboard.release(token);
                if peer == Peer::Upstream {
                    self.unreachable(&error, now);
                }
                return;
            }
        };
        let id = LinkId(token.0 as u64);
        tracing::debug!(link = id.0, "{}: connected, {name}", self.name);
        let link = Link::new(stream, peer, name, now);
        let is_open = link.is_open();
        self.links.insert(id, link);
        self.has_more = true;
        self.is_touched = true;
        if is_open {
            self.role.handle_connected(id, peer, now);
        }
    }

    /// Reads what came in.
    pub(super) fn receive(&mut self, switchboard: &mut Switchboard) -> Result<(), RoleError> {
        if std::mem::take(&mut self.has_more) {
            let readable: Vec<LinkId> =
                self.links.iter().filter(|(_, link)| link.readable).map(|(id, _)| *id).collect();
            for id in readable {
                self.read_link(id, switchboard)?;
            }
            // A link that became writable has room again, whoever called the role meanwhile.
            self.is_touched = true;
        }
        Ok(())
    }

    /// Sends what the role has; ends the turn of this host.
    pub(super) fn transmit(&mut self, switchboard: &mut Switchboard) -> Result<(), RoleError> {
        if std::mem::take(&mut self.is_touched) { self.send(switchboard) } else { Ok(()) }
    }

    /// Tells the role and all peers that this is the end.
    pub(super) fn shut_down(&mut self, switchboard: &mut Switchboard) -> Result<(), RoleError> {
        let result = self.role.shut_down();
        self.say_goodbye(switchboard);
        result
    }

    /// Closes everything but lets each peer know why.
    pub(super) fn say_goodbye(&mut self, switchboard: &mut Switchboard) {
        let now = Instant::now();
        for (id, link) in std::mem::take(&mut self.links) {
            if !link.is_open() {
                switchboard.release(Token(id.0 as usize));
                continue;
            }
            switchboard.see_off(id, link.into_farewell(&Refusal::ShuttingDown, now));
        }
        for (token, _) in self.listeners.drain(..) {
            switchboard.release(token);
        }
        if let Dial::Connecting(attempt) = std::mem::take(&mut self.dial) {
            switchboard.release(attempt.token);
        }
        for descriptor in self.role.descriptors() {
            switchboard.forget_descriptor(descriptor.as_raw_fd());
        }
    }

    /// Has the role's links asked for frames in the next turn.
    #[cfg(test)]
    pub(super) fn touch(&mut self) {
        self.is_touched = true;
    }

    /// Returns how much waits for each link's socket.
    #[cfg(test)]
    pub(super) fn outbox_bytes(&self) -> impl Iterator<Item = usize> {
        self.links.values().map(Link::outbox_bytes)
    }

    fn read_link(&mut self, id: LinkId, switchboard: &mut Switchboard) -> Result<(), RoleError> {
        let is_open = self.links.get(&id).is_some_and(Link::is_open);
        if !is_open && !self.shake_hands(id, switchboard)? {
            return Ok(());
        }
        let Some(link) = self.links.get_mut(&id) else { return Ok(()) };
        self.is_touched = true;
        self.has_met_upstream |= link.has_spoken && link.peer == Peer::Upstream;
        match read_frames(link, self.role.as_mut(), id) {
            ReadEnd::Drained => match self.role.handle_drained(id, Instant::now()) {
                Ok(()) => {
                    if let Some(reason) = link.broken.take() {
                        self.close(id, &reason, switchboard);
                    }
                    Ok(())
                }
                Err(error) => self.link_failed(id, error, switchboard),
            },
            ReadEnd::TurnOver => {
                self.has_more = true;
                Ok(())
            }
            ReadEnd::Closed(reason) => {
                self.close(id, &reason, switchboard);
                Ok(())
            }
            ReadEnd::Lost(error) => {
                let link = self.links.get(&id);
                let upstream = link.filter(|link| link.peer == Peer::Upstream);
                let is_lasting = TlsError::of(&error).is_some_and(TlsError::is_lasting);
                if is_lasting && upstream.is_some_and(|link| !link.has_spoken) {
                    return self.handshake_failed(id, &error, switchboard);
                }
                self.close(id, &format!("the connection is lost: {error}"), switchboard);
                Ok(())
            }
            ReadEnd::Failed(error) => self.link_failed(id, error, switchboard),
        }
    }

    /// Asks each link for frames, one each in turns, so that one with much to send does not
    /// keep the others waiting.
    fn send(&mut self, switchboard: &mut Switchboard) -> Result<(), RoleError> {
        let is_open = |(_, link): &(&LinkId, &Link)| link.is_open();
        let links: Vec<LinkId> = self.links.iter().filter(is_open).map(|(id, _)| *id).collect();
        for id in &links {
            if let Err(error) = self.role.check(*id, Instant::now()) {
                self.link_failed(*id, error, switchboard)?;
            }
        }
        for round in 1..=FRAMES_TURN_MAX {
            let now = Instant::now();
            let mut sent = false;
            for id in &links {
                let Some(link) = self.links.get_mut(id) else { continue };
                if !link.has_room() {
                    continue;
                }
                match self.role.poll_transmit(*id, now) {
                    Ok(Some(frame)) => {
                        link.push(frame);
                        sent = true;
                    }
                    Ok(None) => {}
                    Err(error) => {
                        self.link_failed(*id, error, switchboard)?;
                        sent = true;
                    }
                }
            }
            if !sent {
                break;
            }
            self.has_more |= round == FRAMES_TURN_MAX;
        }
        for link in self.links.values_mut() {
            link.flush();
            self.has_more |= link.broken.is_some();
        }
        Ok(())
    }

    /// Acts on what a call for one link failed with.
    fn link_failed(
        &mut self,
        id: LinkId,
        error: LinkError,
        switchboard: &mut Switchboard,
    ) -> Result<(), RoleError> {
        match error {
            LinkError::Role(error) => return Err(error),
            LinkError::Refused(_) => self.close(id, &error.to_string(), switchboard),
            LinkError::Refuse(ref refusal) => {
                let now = Instant::now();
                if let Some(link) = self.links.remove(&id) {
                    switchboard.see_off(id, link.into_farewell(refusal, now));
                    self.closed(id, &error.to_string(), now);
                }
            }
        }
        Ok(())
    }

    fn close(&mut self, id: LinkId, reason: &str, switchboard: &mut Switchboard) {
        let Some(link) = self.links.remove(&id) else { return };
        switchboard.release(Token(id.0 as usize));
        if link.is_open() {
            self.closed(id, reason, Instant::now());
        }
    }

    fn closed(&mut self, id: LinkId, reason: &str, now: Instant) {
        tracing::debug!(link = id.0, "{}: closed, {reason}", self.name);
        self.is_touched = true;
        self.role.handle_closed(Some(id), reason, now);
    }

    fn attempt(&mut self, begun: io::Result<Begun>, now: Instant, switchboard: &mut Switchboard) {
        let watched = begun.and_then(|Begun { mut stream, rest }| {
            let token = switchboard.allot(Slot::Dial(self.id));
            match switchboard.watch(&mut stream, token) {
                Ok(()) => {
                    let deadline = dial::attempt_deadline(now);
                    Ok(Attempt { stream, token, deadline, rest })
                }
                Err(error) => {
                    switchboard.release(token);
                    Err(error)
                }
            }
        });
        match watched {
            Ok(attempt) => self.dial = Dial::Connecting(attempt),
            Err(error) => self.unreachable(&error, now),
        }
    }

    /// Goes on with the next address, or tells the role that there is none.
    fn attempt_failed(&mut self, error: &io::Error, now: Instant, switchboard: &mut Switchboard) {
        let Dial::Connecting(attempt) = std::mem::take(&mut self.dial) else { return };
        switchboard.release(attempt.token);
        if attempt.rest.is_empty() {
            self.unreachable(error, now);
        } else {
            self.attempt(dial::begin_tcp(attempt.rest), now, switchboard);
        }
    }

    /// Tells the role that its upstream cannot be reached.
    pub(super) fn unreachable(&mut self, error: &io::Error, now: Instant) {
        let reason = match &self.upstream {
            Some(Upstream::Url(url)) => dial::failure_line(url, error),
            _ => error.to_string(),
        };
        tracing::debug!("{}: {reason}", self.name);
        self.is_touched = true;
        self.role.handle_closed(None, &reason, now);
    }

    fn upstream_name(&self) -> String {
        match &self.upstream {
            Some(Upstream::Url(url)) => url.to_string(),
            _ => "a role of this process".to_string(),
        }
    }
}

/// Reads until the socket would block or the turn is over, and hands on every whole frame.
fn read_frames(link: &mut Link, role: &mut dyn Role, id: LinkId) -> ReadEnd {
    let mut budget = READ_TURN_BYTES_MAX;
    loop {
        match link.read() {
            Ok(None) => return ReadEnd::Drained,
            Ok(Some(0)) => return ReadEnd::Closed("the peer closed the connection".to_string()),
            Ok(Some(count)) => {
                budget = budget.saturating_sub(count);
                role.handle_received(id, Instant::now());
            }
            Err(error) => return ReadEnd::Lost(error),
        }
        loop {
            match link.decoder.next_frame() {
                Ok(None) => break,
                Ok(Some((frame, bytes))) => {
                    link.has_spoken = true;
                    // Each at its own moment, for one may take long on a slow disk.
                    if let Err(error) = role.handle_frame(id, frame, bytes, Instant::now()) {
                        return ReadEnd::Failed(error);
                    }
                }
                Err(error) => {
                    let refusal = Refusal::Protocol(error.to_string());
                    return ReadEnd::Failed(LinkError::Refuse(refusal));
                }
            }
        }
        if budget == 0 {
            return ReadEnd::TurnOver;
        }
    }
}
