//! Which file a name leads to.

/// What tells one inode from another while it lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Identity {
    /// Device number of the file system, major and minor in one.
    pub device: u64,
    /// Inode number.
    pub inode: u64,
}
