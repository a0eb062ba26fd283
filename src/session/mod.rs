//! The protocol's two state machines. Pure: they name no socket, no file and no clock.
//!
//! # How renames and states are kept in step
//!
//! A record says that an entry changed; what is sent is the entry's state when its turn comes.
//! That converges by itself for everything but renames, which move what the other side has. So:
//!
//! 1. Before a sender reads any state it sends every rename journaled so far, each as it was.
//! 2. Then it takes records from its cursor, translates each path through all later renames,
//!    and reads and addresses the state *there*.
//! 3. **Read, drain, use**: between reading and sending the watch is drained; what a rename
//!    touched meanwhile is thrown away and read again.
//! 4. There are two watermarks. Every rename through `moved` is applied, every record through
//!    `applied`. States may repeat after a reconnect, renames never.
//! 5. What is missing or failed is asked for again by `Need`, the one way of healing.
//!
//! 6. Where there is no position, and for a `Need`, subtrees are compared by digests of ranges of
//!    directories, while records go on; both ends of a rename meanwhile are compared for
//!    themselves. See the sender's `digests`.
//!
//! It converges because every entry either equals the receiver's, or has a Dirty record above
//! `applied` that translates to it, or an event that is not drained yet.

pub mod receiver;
pub mod sender;
mod walk;

pub use receiver::{Receiver, ReceiverState};
pub use sender::{Job, Look, Origin, Relayed, Sender, SourceState};
pub use walk::Mode;
