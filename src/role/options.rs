//! What a role is opened with: checked already, free of how people write it.

use std::path::PathBuf;
use std::time::Duration;

/// What a source is opened with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SourceOptions {
    /// The tree, an existing directory by its real path.
    pub root: PathBuf,
    /// An existing directory of mode 0700 outside the tree, locked by this process.
    pub state_dir: PathBuf,
    /// Most bytes that the journal may take on disk.
    pub journal_bytes: u64,
    /// Time between two looks for what raises no event.
    pub rescan_interval: Duration,
    /// Whether a ROOT that is not the directory it was before is taken as the tree.
    pub accept_root: bool,
    /// Whether the tree is locked against a second process.
    pub lock_root: bool,
}

/// What a sink is opened with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SinkOptions {
    /// The replica, an existing directory by its real path.
    pub root: PathBuf,
    /// An existing directory of mode 0700 outside the replica, locked by this process.
    pub state_dir: PathBuf,
    /// Whether a non-empty directory that has never been a replica is taken as one.
    pub adopt: bool,
    /// Time between two checkpoints.
    pub checkpoint_interval: Duration,
}

/// What a relay is opened with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RelayOptions {
    /// Its replica.
    pub sink: SinkOptions,
    /// Most bytes that the journal may take on disk.
    pub journal_bytes: u64,
}
