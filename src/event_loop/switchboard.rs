//! Whom an event is for, and everything that belongs to no single role.

use std::io;
use std::os::fd::RawFd;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Instant;

use mio::event::Source;
use mio::unix::SourceFd;
use mio::{Interest, Registry, Token, Waker};
use rustc_hash::FxHashMap;
use rustix::process::{Resource, getrlimit};

use super::dial::{self, Resolved};
use super::limits::connections_max;
use super::link::Farewell;
use super::{FIRST_TOKEN, RoleId};
use crate::role::LinkId;
use crate::wire::url::HostPort;

/// What a token stands for. No token is ever used for two things, but for a connection that
/// was being made and is.
#[derive(Debug, Clone, Copy)]
pub(super) enum Slot {
    /// A descriptor that a role waits on.
    Descriptor(RoleId),
    /// A listener of a role.
    Listener(RoleId),
    /// A role's connection to its upstream that is being made.
    Dial(RoleId),
    /// A connection of a role.
    Link(RoleId),
    /// A connection that is being closed.
    Farewell,
}

/// How many connections there are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Crowd {
    /// At most half of what there may be.
    Few,
    /// More.
    Some,
    /// One that comes takes another's place.
    Full,
}

/// Tokens, the helper threads' answers, and connections that are being closed.
pub(super) struct Switchboard {
    registry: Registry,
    slots: FxHashMap<Token, Slot>,
    next_token: usize,
    farewells: FxHashMap<Token, Farewell>,
    /// Listeners at which more waits than one turn accepts.
    accept_again: Vec<Token>,
    waker: Arc<Waker>,
    answers: (Sender<Resolved>, Receiver<Resolved>),
    /// Most connections, those that are being closed included.
    pub(super) connections_max: u64,
}

impl Switchboard {
    pub(super) fn new(registry: Registry, waker: Arc<Waker>) -> Switchboard {
        Switchboard {
            registry,
            slots: FxHashMap::default(),
            next_token: FIRST_TOKEN.0,
            farewells: FxHashMap::default(),
            accept_again: Vec::new(),
            waker,
            answers: channel(),
            connections_max: connections_max(getrlimit(Resource::Nofile).current),
        }
    }

    pub(super) fn registry(&self) -> &Registry {
        &self.registry
    }

    /// Returns a token that was never used.
    pub(super) fn allot(&mut self, slot: Slot) -> Token {
        let token = Token(self.next_token);
        self.next_token += 1;
        self.slots.insert(token, slot);
        token
    }

    /// Makes `token` stand for something else.
    pub(super) fn reassign(&mut self, token: Token, slot: Slot) {
        self.slots.insert(token, slot);
    }

    /// Forgets `token`: events that are still on their way are for nobody.
    pub(super) fn release(&mut self, token: Token) {
        self.slots.remove(&token);
    }

    /// Returns whom an event is for.
    pub(super) fn slot(&self, token: Token) -> Option<Slot> {
        self.slots.get(&token).copied()
    }

    /// Returns how many connections there are, those that are being closed included, in parts
    /// of what there may be.
    pub(super) fn crowd(&self) -> Crowd {
        let is_connection = |slot: &&Slot| matches!(slot, Slot::Link(_) | Slot::Farewell);
        let connections = self.slots.values().filter(is_connection).count() as u64;
        match connections {
            _ if connections >= self.connections_max => Crowd::Full,
            _ if connections > self.connections_max / 2 => Crowd::Some,
            _ => Crowd::Few,
        }
    }

    /// Watches a stream for everything.
    pub(super) fn watch(&self, stream: &mut impl Source, token: Token) -> io::Result<()> {
        stream.register(&self.registry, token, Interest::READABLE | Interest::WRITABLE)
    }

    /// Stops watching a descriptor whose owner ends.
    pub(super) fn forget_descriptor(&mut self, descriptor: RawFd) {
        if let Err(error) = self.registry.deregister(&mut SourceFd(&descriptor)) {
            tracing::debug!("cannot stop watching descriptor {descriptor}: {error}");
        }
    }

    /// Looks a name up; the answer comes by [`Switchboard::next_resolved`].
    pub(super) fn resolve(&self, role: RoleId, at: HostPort) -> io::Result<()> {
        dial::resolve(role.0, at, self.answers.0.clone(), self.waker.clone())
    }

    /// Returns the next answer to a look-up.
    pub(super) fn next_resolved(&self) -> Option<Resolved> {
        self.answers.1.try_recv().ok()
    }

    /// Lets a listener go on in the next turn.
    pub(super) fn accept_again(&mut self, token: Token) {
        self.accept_again.push(token);
    }

    /// Returns the listeners that were stopped in the last turn.
    pub(super) fn take_accepts(&mut self) -> Vec<Token> {
        std::mem::take(&mut self.accept_again)
    }

    /// Returns whether a listener waits for the next turn.
    pub(super) fn has_accepts(&self) -> bool {
        !self.accept_again.is_empty()
    }

    /// Closes a connection after its last message.
    pub(super) fn see_off(&mut self, link: LinkId, mut farewell: Farewell) {
        let token = Token(link.0 as usize);
        if farewell.advance(Instant::now()) {
            self.release(token);
        } else {
            self.reassign(token, Slot::Farewell);
            self.farewells.insert(token, farewell);
        }
    }

    /// Handles an event for a connection that is being closed.
    pub(super) fn handle_farewell_event(&mut self, token: Token) {
        let is_over =
            self.farewells.get_mut(&token).is_none_or(|farewell| farewell.advance(Instant::now()));
        if is_over {
            self.farewells.remove(&token);
            self.release(token);
        }
    }

    /// Drops the connections whose time is up.
    pub(super) fn handle_time(&mut self, now: Instant) {
        let slots = &mut self.slots;
        self.farewells.retain(|token, farewell| {
            let stays = farewell.deadline > now;
            if !stays {
                slots.remove(token);
            }
            stays
        });
    }

    /// Returns when a connection that is being closed is dropped.
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.farewells.values().map(|farewell| farewell.deadline).min()
    }

    /// Returns whether a connection is still being closed.
    pub(super) fn has_farewells(&self) -> bool {
        !self.farewells.is_empty()
    }
}
