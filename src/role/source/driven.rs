//! The source as a role: what the loop calls.

use std::os::fd::BorrowedFd;
use std::time::{Duration, Instant};

use super::super::{LinkError, LinkId, Peer, Received, Role, RoleError, SourceFeed};
use super::session::{Downstream, Session, Target};
use super::{BUFFERED_BYTES_MAX, Source};
use crate::model::limits::HEARTBEAT_MS;
use crate::watch::wall_clock;
use crate::wire::{EncodedFrame, Frame, FrameKind, Message, Refusal, encode_message};

/// Longest time that the end of a source takes to be kept. Without, a restart goes on from an
/// earlier one, and tells what came since again.
const END_TIME_MAX: Duration = Duration::from_secs(20);

impl<F: SourceFeed> Role for Source<F> {
    fn descriptors(&self) -> Vec<BorrowedFd<'_>> {
        let own = self.feed.descriptor();
        let inner = self.feed.role().map(|role| role.descriptors());
        own.into_iter().chain(inner.into_iter().flatten()).collect()
    }

    fn handle_readable(&mut self, now: Instant) -> Result<(), RoleError> {
        match self.with_role(now, |role| role.handle_readable(now)) {
            Some(handled) => handled,
            None => {
                self.drain(now);
                Ok(())
            }
        }
    }

    fn wants_upstream(&self, now: Instant) -> bool {
        // What cannot be journaled must not be applied.
        self.held.is_none() && self.feed.role().is_some_and(|role| role.wants_upstream(now))
    }

    fn handle_connected(&mut self, link: LinkId, peer: Peer, now: Instant) {
        if peer == Peer::Upstream {
            self.with_role(now, |role| role.handle_connected(link, peer, now));
            return;
        }
        self.downstreams.insert(link, Downstream::new(now));
    }

    fn handle_frame(
        &mut self,
        link: LinkId,
        frame: Frame<'_>,
        bytes: usize,
        now: Instant,
    ) -> Result<(), LinkError> {
        if !self.downstreams.contains_key(&link) {
            let handled = self.with_role(now, |role| role.handle_frame(link, frame, bytes, now));
            handled.unwrap_or(Ok(()))?;
            if self.journal.buffered_bytes() < BUFFERED_BYTES_MAX {
                return Ok(());
            }
            let reason = "what it applies cannot be journaled".to_string();
            return Err(LinkError::Refuse(Refusal::StartOver(reason)));
        }
        let refuse = |reason: String| LinkError::Refuse(Refusal::Protocol(reason));
        if frame.kind != FrameKind::Message {
            return Err(refuse("a downstream sends no items".into()));
        }
        let message = frame.message().map_err(|error| refuse(error.to_string()))?;
        let state = self.state();
        let Some(downstream) = self.downstreams.get_mut(&link) else { return Ok(()) };
        match message {
            Message::Bye(reason) => Err(LinkError::Refused(reason)),
            // Also while there is nothing to serve, or it would wait for itself for ever.
            Message::DownstreamHello(hello) if hello.node == self.node => {
                Err(LinkError::Refuse(Refusal::Cycle(hello.node)))
            }
            Message::DownstreamHello(hello) if !downstream.session.sender.is_running() => {
                downstream.hello = Some(hello);
                downstream.heartbeat_at = now + Duration::from_millis(HEARTBEAT_MS);
                Ok(())
            }
            message => {
                // It is greeted anew soon.
                let Some(state) = state else { return Ok(()) };
                if !matches!(message, Message::Ack { .. }) {
                    self.part(link, now);
                }
                let Some(downstream) = self.downstreams.get_mut(&link) else { return Ok(()) };
                let Session { sender, frames, .. } = &mut downstream.session;
                let answer = sender
                    .handle_message(message, &state, &self.renames, now)
                    .map_err(LinkError::Refuse)?;
                frames.extend(answer.map(|answer| encode_message(&answer).into()));
                if let (Some(lead), Some(ride)) = (&mut self.lead, &downstream.ride) {
                    lead.handle_ack(ride, sender.window_bytes().1, now);
                }
                Ok(())
            }
        }
    }

    fn handle_received(&mut self, link: LinkId, now: Instant) {
        if !self.downstreams.contains_key(&link)
            && let Some(role) = self.feed.role_mut()
        {
            role.handle_received(link, now);
        }
    }

    fn handle_drained(&mut self, link: LinkId, now: Instant) -> Result<(), LinkError> {
        if self.downstreams.contains_key(&link) {
            return Ok(());
        }
        self.with_role(now, |role| role.handle_drained(link, now)).unwrap_or(Ok(()))
    }

    fn check(&mut self, link: LinkId, now: Instant) -> Result<(), LinkError> {
        let Some(downstream) = self.downstreams.get_mut(&link) else {
            return self.feed.role_mut().map_or(Ok(()), |role| role.check(link, now));
        };
        downstream.refusal.take().map_or(Ok(()), |refusal| Err(LinkError::Refuse(refusal)))
    }

    fn poll_transmit(
        &mut self,
        link: LinkId,
        now: Instant,
    ) -> Result<Option<EncodedFrame>, LinkError> {
        if !self.downstreams.contains_key(&link) {
            return self.feed.role_mut().map_or(Ok(None), |role| role.poll_transmit(link, now));
        }
        self.join(link, now);
        let Some(downstream) = self.downstreams.get_mut(&link) else { return Ok(None) };
        if let Some(frame) = downstream.session.frames.pop_front() {
            return Ok(Some(frame));
        }
        if downstream.ride.is_some() {
            let shared = self.poll_shared(link, now)?;
            let rides = |downstream: &Downstream| downstream.ride.is_some();
            if shared.is_some() || self.downstreams.get(&link).is_some_and(rides) {
                return Ok(shared);
            }
            // It goes on alone from here.
        }
        self.fill_some(Target::Link(link), now)?;
        Ok(self.session(Target::Link(link)).and_then(|session| session.frames.pop_front()))
    }

    fn handle_closed(&mut self, link: Option<LinkId>, reason: &str, now: Instant) {
        let left = link.and_then(|link| self.downstreams.remove(&link));
        self.trim(now);
        if left.is_none() {
            self.with_role(now, |role| role.handle_closed(link, reason, now));
        }
        // Who never said hello was none.
        if left.is_some_and(|downstream| downstream.session.sender.is_running()) {
            tracing::info!("{}: a downstream left: {reason}", self.path.display());
        }
    }

    fn poll_timeout(&self) -> Option<Instant> {
        // A journal without room takes nothing up: its next attempt is what is waited for.
        let is_full = self.journal.buffered_bytes() >= BUFFERED_BYTES_MAX;
        let mut next = if is_full { None } else { self.feed.poll_timeout() };
        let role = self.feed.role().and_then(|role| role.poll_timeout());
        next = next.into_iter().chain(role).min();
        let mut at = |moment: Instant| next = Some(next.map_or(moment, |next| next.min(moment)));
        if self.has_news || self.has_backlog {
            at(self.started);
        }
        if self.held.is_some() {
            at(self.held_until);
        }
        if let Some(due) = self.problems.next_due() {
            at(due);
        }
        for downstream in self.downstreams.values() {
            if downstream.hello.is_some() {
                at(downstream.heartbeat_at);
            } else if downstream.refusal.is_none() {
                at(downstream.session.sender.poll_timeout());
            }
        }
        next
    }

    fn handle_timeout(&mut self, now: Instant) -> Result<(), RoleError> {
        for path in self.problems.due(now) {
            self.feed.mark(&path);
        }
        self.has_news = false;
        if self.feed.wants_journal_sync(now) {
            match self.journal.sync_later() {
                Ok(sync) => self.feed.handle_journal_sync(sync),
                Err(error) => tracing::error!("{error}; the checkpoint waits"),
            }
        }
        match self.with_role(now, |role| role.handle_timeout(now)) {
            Some(handled) => handled?,
            None => _ = self.drain(now),
        }
        let own = (self.journal.committed(), wall_clock());
        let (head, clock) = self.feed.upstream().map_or(own, |standing| standing.origin);
        for downstream in self.downstreams.values_mut() {
            downstream.keep_alive(head, clock, now);
        }
        Ok(())
    }

    fn received(&self) -> Option<Received> {
        self.feed.role()?.received()
    }

    fn shut_down(&mut self) -> Result<(), RoleError> {
        let now = Instant::now();
        self.feed.settle(now);
        self.drain(now);
        self.feed.end();
        while self.feed.is_ending() && self.again.is_none() && now.elapsed() < END_TIME_MAX {
            self.drain(Instant::now());
            if self.held.is_some() {
                break; // The next start finds what is different.
            }
        }
        let failed = |error: &dyn std::fmt::Display| {
            RoleError(format!("the journal could not be written at the end: {error}"))
        };
        self.journal.close().map_err(|error| failed(&error))?;
        // What its checkpoint names is in the journal by now.
        self.feed.role_mut().map_or(Ok(()), |role| role.shut_down())
    }
}
