//! Sources and sinks: sessions put together with trees and journals.
//!
//! A role is driven by the event loop and names no socket itself: frames come in and go out as
//! bytes, each belonging to a [`LinkId`].

mod batch;
mod checkpointer;
pub mod identity;
pub mod options;
mod problems;
mod relay;
mod replay;
mod restart;
mod sink;
mod source;

pub use crate::model::feed::{Confirmation, Feed, FeedEvent, Progress, Standing};
pub use options::{RelayOptions, SinkOptions, SourceOptions};
pub use relay::Relay;
pub use sink::{OpenError, Sink};
pub use source::Source;

use std::os::fd::BorrowedFd;
use std::time::Instant;

use crate::journal::PendingSync;
use crate::watch::Watch;
use crate::wire::{EncodedFrame, Frame, Refusal};

/// Names one connection of a role; never used again for another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct LinkId(pub u64);

/// Who is at the other end of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Peer {
    /// The one that the role asked for.
    Upstream,
    /// One that came.
    Downstream,
}

/// What the event loop drives.
///
/// Order of calls: [`handle_connected`](Role::handle_connected), then any number of
/// [`handle_frame`](Role::handle_frame), [`handle_drained`](Role::handle_drained) and
/// [`poll_transmit`](Role::poll_transmit), then one [`handle_closed`](Role::handle_closed).
/// After every call into a role the loop polls `poll_transmit` for each of its links that has
/// room, and looks at [`poll_timeout`](Role::poll_timeout) anew.
pub trait Role {
    /// Returns descriptors other than connections on which the role waits to read. The set
    /// does not change while the role lives.
    fn descriptors(&self) -> Vec<BorrowedFd<'_>>;

    /// Handles one or more of [`Role::descriptors`] becoming readable.
    fn handle_readable(&mut self, now: Instant) -> Result<(), RoleError>;

    /// Returns whether the role wants a connection to its upstream at `now` and has none.
    fn wants_upstream(&self, now: Instant) -> bool;

    /// Handles a connection that was made or accepted.
    fn handle_connected(&mut self, link: LinkId, peer: Peer, now: Instant);

    /// Handles that bytes came in on `link`, be it a part of a frame only.
    fn handle_received(&mut self, _link: LinkId, _now: Instant) {}

    /// Handles one frame; `bytes` is its length, header included.
    fn handle_frame(
        &mut self,
        link: LinkId,
        frame: Frame<'_>,
        bytes: usize,
        now: Instant,
    ) -> Result<(), LinkError>;

    /// Handles that nothing more is there to read from `link` at the moment.
    fn handle_drained(&mut self, link: LinkId, now: Instant) -> Result<(), LinkError>;

    /// Returns an error if `link` is to be closed. Asked before each turn's frames, also of a
    /// link that takes none.
    fn check(&mut self, _link: LinkId, _now: Instant) -> Result<(), LinkError> {
        Ok(())
    }

    /// Returns the next frame to send on `link`, `None` until something happens. Each call does
    /// a bounded amount of work.
    fn poll_transmit(
        &mut self,
        link: LinkId,
        now: Instant,
    ) -> Result<Option<EncodedFrame>, LinkError>;

    /// Handles the end of a connection, or that the upstream could not be reached; `link` is
    /// `None` then. `reason` is one line for the log.
    fn handle_closed(&mut self, link: Option<LinkId>, reason: &str, now: Instant);

    /// Returns when to call [`handle_timeout`](Role::handle_timeout) next.
    fn poll_timeout(&self) -> Option<Instant>;

    /// Handles the passing of time. Called whenever [`poll_timeout`](Role::poll_timeout) is due.
    fn handle_timeout(&mut self, now: Instant) -> Result<(), RoleError>;

    /// Returns how far the role is in receiving or comparing a whole tree, `None` while it does
    /// not. Asked often, so it must cost nothing.
    fn received(&self) -> Option<Received> {
        None
    }

    /// Leaves a clean state behind: what is applied becomes durable. Called once, last.
    fn shut_down(&mut self) -> Result<(), RoleError>;
}

/// A feed that may be a role by itself: a sink, which makes a relay of its source.
pub trait SourceFeed: Feed {
    /// Returns what is driven besides, if there is anything.
    fn role(&self) -> Option<&dyn Role> {
        None
    }

    /// See [`SourceFeed::role`].
    fn role_mut(&mut self) -> Option<&mut dyn Role> {
        None
    }

    /// Brings in place what came, so that it can be served.
    fn settle(&mut self, _now: Instant) {}

    /// Returns whether the feed waits for [`SourceFeed::handle_journal_sync`].
    fn wants_journal_sync(&self, _now: Instant) -> bool {
        false
    }

    /// Takes what makes the journal durable as far as it was written.
    fn handle_journal_sync(&mut self, _sync: PendingSync) {}
}

impl SourceFeed for Watch {}

/// How far a role is in receiving or comparing a whole tree.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Received {
    /// Entries that are as the upstream has them, found or made so.
    pub entries: u64,
    /// Bytes of content that came for it.
    pub bytes: u64,
}

/// What a call for one connection failed with.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// Send this as the last message and close the connection.
    #[error("{0}")]
    Refuse(Refusal),
    /// The peer said this and is gone.
    #[error("the peer closed the connection: {0}")]
    Refused(Refusal),
    /// The role cannot go on.
    #[error(transparent)]
    Role(#[from] RoleError),
}

/// Returns what to do when a tree cannot be watched.
fn watch_advice(error: &std::io::Error) -> &'static str {
    match rustix::io::Errno::from_io_error(error) {
        // Of inotify, not of files, most of the time: the default is 128 for each user.
        Some(rustix::io::Errno::MFILE) => {
            "; raise fs.inotify.max_user_instances by sysctl, or the limit of open files by \
             ulimit -n"
        }
        Some(rustix::io::Errno::NFILE) => "; raise fs.file-max by sysctl",
        Some(rustix::io::Errno::NOSPC) => "; raise fs.inotify.max_user_watches by sysctl",
        _ => "",
    }
}

/// Why a role cannot go on: one line of what, where, why, and what to do.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct RoleError(pub String);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tree_that_cannot_be_watched_comes_with_advice() {
        let advice = |errno: rustix::io::Errno| watch_advice(&errno.into());
        assert!(advice(rustix::io::Errno::MFILE).contains("fs.inotify.max_user_instances"));
        assert!(advice(rustix::io::Errno::NOSPC).contains("fs.inotify.max_user_watches"));
        assert_eq!(advice(rustix::io::Errno::NOENT), "");
    }
}
