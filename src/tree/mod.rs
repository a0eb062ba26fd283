//! File access relative to directory descriptors: reading states and applying them.
//!
//! No call here follows a symbolic link or leaves the root: every path is resolved by
//! [`Root`] with `openat2` and `RESOLVE_BENEATH`, every last name with no-follow flags.

pub mod metadata;
pub mod reader;
pub mod replica;
pub mod root;
pub mod stage_reader;
pub mod survey;
mod working_directory;

pub use reader::{Holder, Opened, Reader, Seen};
pub use replica::{Applied, ApplyError, Replica, ReplicaError};
pub use root::Root;
pub use stage_reader::StageReader;
pub use survey::{Step, Survey};
