//! Paths inside a tree: bytes, relative, and never a way out.

use std::borrow::Borrow;
use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::limits::{NAME_BYTES_MAX, PATH_BYTES_MAX};

/// A path from the root of a tree: names joined by `/`, empty for the root itself.
///
/// Every value satisfies the rules of [`TreePath::new`], those that came from a peer too: no
/// name is empty, `.`, `..`, longer than 255 bytes, or has a NUL or a `/` in it.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct TreePath(Vec<u8>);

/// Sorts and hashes as its bytes do, so that maps are searched without making a path.
impl Borrow<[u8]> for TreePath {
    fn borrow(&self) -> &[u8] {
        &self.0
    }
}

impl TreePath {
    /// Returns the root's path.
    pub fn root() -> Self {
        TreePath(Vec::new())
    }

    /// Checks `bytes` and takes them as a path.
    pub fn new(bytes: impl Into<Vec<u8>>) -> Result<Self, PathError> {
        let bytes = bytes.into();
        if bytes.len() > PATH_BYTES_MAX {
            return Err(PathError::TooLong);
        }
        if !bytes.is_empty() {
            for name in bytes.split(|byte| *byte == b'/') {
                check_name(name)?;
            }
        }
        Ok(TreePath(bytes))
    }

    /// Returns the path's bytes, without a slash at either end.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// Returns whether this is the root's path.
    pub fn is_root(&self) -> bool {
        self.0.is_empty()
    }

    /// Returns the names on the way from the root.
    pub fn names(&self) -> impl Iterator<Item = &[u8]> {
        self.0.split(|byte| *byte == b'/').filter(|name| !name.is_empty())
    }

    /// Returns the parent's path and the last name, `None` for the root.
    pub fn split(&self) -> Option<(TreePath, &[u8])> {
        let (parent, name) = self.split_bytes()?;
        Some((TreePath(parent.to_vec()), name))
    }

    /// Returns the parent's path as bytes and the last name, `None` for the root.
    pub fn split_bytes(&self) -> Option<(&[u8], &[u8])> {
        if self.0.is_empty() {
            return None;
        }
        match self.0.iter().rposition(|byte| *byte == b'/') {
            Some(slash) => Some((&self.0[..slash], &self.0[slash + 1..])),
            None => Some((&[], &self.0)),
        }
    }

    /// Returns the parent's path, `None` for the root.
    pub fn parent(&self) -> Option<TreePath> {
        self.split().map(|(parent, _)| parent)
    }

    /// Returns the last name, `None` for the root.
    pub fn name(&self) -> Option<&[u8]> {
        self.split_bytes().map(|(_, name)| name)
    }

    /// Returns the path of the entry `name` in this directory.
    ///
    /// # Panics
    ///
    /// If `name` is not a valid name; names read from a directory or a peer are checked by
    /// then.
    pub fn join(&self, name: &[u8]) -> TreePath {
        assert!(check_name(name).is_ok(), "not a name: {:?}", name.escape_ascii().to_string());
        let mut bytes = Vec::with_capacity(self.0.len() + 1 + name.len());
        bytes.extend_from_slice(&self.0);
        if !bytes.is_empty() {
            bytes.push(b'/');
        }
        bytes.extend_from_slice(name);
        TreePath(bytes)
    }

    /// Returns whether this path is `ancestor` or lies below it.
    pub fn starts_with(&self, ancestor: &TreePath) -> bool {
        self.suffix(ancestor).is_some()
    }

    /// Returns whether one of the two paths is, or lies below, the other.
    pub fn is_related(&self, other: &TreePath) -> bool {
        self.starts_with(other) || other.starts_with(self)
    }

    /// Returns this path with its leading `from` replaced by `to`, `None` if it has none.
    ///
    /// The result may be longer than a path may be; see [`TreePath::new`].
    pub fn rebase(&self, from: &TreePath, to: &TreePath) -> Option<TreePath> {
        let suffix = self.suffix(from)?;
        let mut bytes = Vec::with_capacity(to.0.len() + 1 + suffix.len());
        bytes.extend_from_slice(&to.0);
        if !bytes.is_empty() && !suffix.is_empty() {
            bytes.push(b'/');
        }
        bytes.extend_from_slice(suffix);
        Some(TreePath(bytes))
    }

    /// Returns the path and all its ancestors as bytes, the longest first, the root last.
    pub fn self_and_ancestors(&self) -> impl Iterator<Item = &[u8]> {
        let mut next = Some(&self.0[..]);
        std::iter::from_fn(move || {
            let current = next?;
            next = if current.is_empty() {
                None
            } else {
                let slash = current.iter().rposition(|byte| *byte == b'/').unwrap_or(0);
                Some(&current[..slash])
            };
            Some(current)
        })
    }

    /// Returns whether the path is ours and never mirrored: `.mirror` in the root and what is in
    /// it, and stages beside their targets.
    pub fn is_reserved(&self) -> bool {
        self.names().next() == Some(CONTROL_NAME.as_bytes())
            || self.names().any(|name| name.starts_with(STAGE_PREFIX.as_bytes()))
    }

    /// Returns the part below `ancestor`, without a leading slash.
    fn suffix(&self, ancestor: &TreePath) -> Option<&[u8]> {
        if ancestor.is_root() {
            return Some(&self.0);
        }
        let rest = self.0.strip_prefix(&ancestor.0[..])?;
        match rest.split_first() {
            None => Some(rest),
            Some((b'/', below)) => Some(below),
            Some(_) => None,
        }
    }
}

/// The directory of a replica that holds its checkpoint and its stages.
pub const CONTROL_NAME: &str = ".mirror";

/// How the names of stages begin that cannot be in the control directory.
pub const STAGE_PREFIX: &str = ".mirror-stage-";

/// One entry's name in its directory, checked by [`check_name`] before it is made.
pub type Name = Vec<u8>;

/// Checks that `name` is the name of an entry: 1 to 255 bytes, no `/`, no NUL, not `.` or `..`.
pub fn check_name(name: &[u8]) -> Result<(), PathError> {
    match name {
        b"" => Err(PathError::EmptyName),
        b"." | b".." => Err(PathError::DotName),
        _ if name.len() > NAME_BYTES_MAX => Err(PathError::NameTooLong),
        _ if name.iter().any(|byte| matches!(byte, b'/' | 0)) => Err(PathError::ForbiddenByte),
        _ => Ok(()),
    }
}

/// Why bytes are not a path inside a tree.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PathError {
    /// Two slashes in a row, or one at an end.
    #[error("a name in the path is empty")]
    EmptyName,
    /// `.` or `..`.
    #[error("a name in the path is \".\" or \"..\"")]
    DotName,
    /// More than 255 bytes.
    #[error("a name in the path is longer than {NAME_BYTES_MAX} bytes")]
    NameTooLong,
    /// A NUL, or a slash in a name.
    #[error("a name in the path has a forbidden byte")]
    ForbiddenByte,
    /// The whole path is too long.
    #[error("the path is longer than {PATH_BYTES_MAX} bytes")]
    TooLong,
}

/// Shows the path with everything escaped that a terminal or a log could stumble over.
impl fmt::Display for TreePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_root() {
            return f.write_str(".");
        }
        match std::str::from_utf8(&self.0) {
            Ok(text) if !text.chars().any(char::is_control) => f.write_str(text),
            _ => write!(f, "{}", self.0.escape_ascii()),
        }
    }
}

impl fmt::Debug for TreePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{self}\"")
    }
}

impl Serialize for TreePath {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(&self.0)
    }
}

impl<'de> Deserialize<'de> for TreePath {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let bytes: &serde_bytes::Bytes = Deserialize::deserialize(deserializer)?;
        TreePath::new(bytes.to_vec()).map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(text: &str) -> TreePath {
        TreePath::new(text).unwrap()
    }

    #[test]
    fn refuses_every_way_out_of_the_tree() {
        for bad in ["/", "/a", "a/", "a//b", ".", "..", "a/../b", "a/./b", "a\0b"] {
            assert!(TreePath::new(bad).is_err(), "{bad:?}");
        }
        assert!(TreePath::new("a".repeat(256)).is_err());
        assert!(TreePath::new("a".repeat(255)).is_ok());
        assert!(TreePath::new(&b"\xff\n"[..]).is_ok());
    }

    #[test]
    fn rebases_at_name_boundaries_only() {
        assert_eq!(path("a/b/c").rebase(&path("a/b"), &path("x")), Some(path("x/c")));
        assert_eq!(path("a/b").rebase(&path("a/b"), &path("x/y")), Some(path("x/y")));
        assert_eq!(path("a/bc").rebase(&path("a/b"), &path("x")), None);
        assert_eq!(path("a").rebase(&TreePath::root(), &path("x")), Some(path("x/a")));
    }

    #[test]
    fn walks_up_to_the_root() {
        let path = path("a/b/c");
        let all: Vec<_> = path.self_and_ancestors().collect();
        assert_eq!(all, [&b"a/b/c"[..], b"a/b", b"a", b""]);
    }
}
