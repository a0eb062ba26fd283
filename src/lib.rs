//! `mirror` keeps copies of a directory tree on other hosts identical within milliseconds.
//!
//! # Architecture
//!
//! Data goes one way; only acknowledgements and requests come back.
//!
//! ```text
//! watch ─▶ journal ─▶ sender ─▶ message ─▶ frame ─▶ socket          (source)
//! socket ─▶ frame ─▶ message ─▶ receiver ─▶ apply ─▶ checkpoint     (sink)
//!                                              └────▶ journal ─▶ …   (relay)
//! ```
//!
//! | module | what lives there |
//! |---|---|
//! | [`model`] | positions, paths, entries, records, limits: plain data |
//! | [`wire`] | messages, frames and URLs: bytes to messages and back |
//! | [`tree`] | file access relative to descriptors: reading states, applying them |
//! | [`watch`] | inotify: which directories are watched, what became dirty; after a restart, what differs from the catalog |
//! | [`journal`] | the records on disk: segments, recovery, cursors; the catalog, a listing of the tree |
//! | [`session`] | sender and receiver: pure state machines of the protocol |
//! | [`role`] | source, sink and relay: sessions put together with trees and journals |
//! | [`transport`] | who is at the other end: keys, peers, TLS over any stream |
//! | [`event_loop`] | the only place that knows sockets, timers and signals |
//! | [`cli`] | the command line |
//!
//! Where a replica has no position, both sides walk their trees in the same order and compare
//! digests ([`tree::survey`], [`model::survey`]); only what differs is read and sent.
//!
//! The journal says *what changed*; what is sent is the *state at that path when its turn
//! comes*. Renames overtake states: how they are kept in step is told in [`session`].

pub mod cli;
pub mod event_loop;
pub mod journal;
pub mod model;
pub mod role;
pub mod session;
pub mod transport;
pub mod tree;
pub mod watch;
pub mod wire;
