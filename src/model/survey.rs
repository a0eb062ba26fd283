//! What two trees are compared by: the order in which both sides walk, and digests.
//!
//! A directory's digest covers its own attributes and, of each entry in it, the name, the kind
//! and all that a replica preserves besides content. Of directories and of files with several
//! names it covers the name and the kind only: the former have digests of their own, and the
//! latter are compared with all their names at once.

use std::cmp::Ordering;

use serde::{Deserialize, Serialize};

use super::{Identity, Kind, Metadata, Timestamp, TreePath};

/// Compares two paths by their place in a walk: a directory comes before what is in it, and all
/// of that before what comes after the directory. Names are sorted by their bytes.
pub fn walk_order(a: &[u8], b: &[u8]) -> Ordering {
    // The slash ends a name, so it is less than anything that a name has in its place.
    let common = a.iter().zip(b).position(|(one, other)| one != other);
    match common {
        None => a.len().cmp(&b.len()),
        Some(at) => match (a[at], b[at]) {
            (b'/', _) => Ordering::Less,
            (_, b'/') => Ordering::Greater,
            (one, other) => one.cmp(&other),
        },
    }
}

/// What a replica cannot hold, as a set of bits: by want of privilege, or because its file system
/// does not. It is left out of digests on both sides.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lacks(u32);

impl Lacks {
    /// Nothing is lacked.
    pub const NOTHING: Lacks = Lacks(0);
    /// Owners and groups, and with them the bits of a mode that run programs as their owners.
    pub const OWNERS: Lacks = Lacks(1);
    /// Attributes whose names begin with `user.`.
    pub const USER_XATTRS: Lacks = Lacks(2);
    /// Attributes that only root may set: `trusted.` and `security.capability`.
    pub const PRIVILEGED_XATTRS: Lacks = Lacks(4);
    /// POSIX ACLs.
    pub const ACLS: Lacks = Lacks(8);

    /// Returns whether all of `other` is lacked.
    pub fn covers(self, other: Lacks) -> bool {
        self.0 & other.0 == other.0
    }

    /// Returns what one of the two lacks.
    pub fn with(self, other: Lacks) -> Lacks {
        Lacks(self.0 | other.0)
    }

    /// Takes what is lacked away from an entry's metadata.
    fn less(self, metadata: &mut Metadata) {
        if self.covers(Lacks::OWNERS) {
            (metadata.uid, metadata.gid) = (0, 0);
            metadata.mode &= !0o6000;
        }
        metadata.xattrs.retain(|xattr| {
            let name = &xattr.name;
            !self.covers(if name.starts_with(b"user.") {
                Lacks::USER_XATTRS
            } else if name.starts_with(b"system.posix_acl_") {
                Lacks::ACLS
            } else {
                Lacks::PRIVILEGED_XATTRS
            })
        });
    }
}

/// The digest of one directory: BLAKE3, cut to half of its length, for it finds differences and
/// vouches for no content.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct DirectoryDigest(pub [u8; 16]);

/// A directory as it was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Surveyed {
    /// Which.
    pub path: TreePath,
    /// Its digest; `None` if a part of it could not be read, which is never equal to anything.
    pub digest: Option<DirectoryDigest>,
    /// How many entries it has.
    pub entries: u64,
}

/// What a survey shows of an entry that its directory's digest alone may not find to differ.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Glance {
    /// Its inode, if it has several names.
    pub linked: Option<Identity>,
    /// The time of its last change of any sort.
    pub ctime: Timestamp,
    /// Whether it is a regular file.
    pub is_regular: bool,
}

/// Computes a [`DirectoryDigest`]: BLAKE3 over what is added, in the encoding of messages.
#[derive(Debug)]
pub struct DirectoryHasher {
    lacks: Lacks,
    hasher: blake3::Hasher,
    buffer: Vec<u8>,
}

impl DirectoryHasher {
    /// Begins with a directory's own attributes.
    pub fn new(lacks: Lacks, mut metadata: Metadata) -> Self {
        lacks.less(&mut metadata);
        let mut hasher = DirectoryHasher {
            lacks,
            hasher: blake3::Hasher::new(),
            buffer: Vec::with_capacity(2 * BUFFER_BYTES),
        };
        hasher.add(&metadata);
        hasher
    }

    /// Adds an entry with its attributes. Entries are added in the order of their names.
    pub fn entry(&mut self, name: &[u8], kind: &Kind, mut metadata: Metadata) {
        self.lacks.less(&mut metadata);
        self.add(&(serde_bytes::Bytes::new(name), Part::Whole(kind, &metadata)));
    }

    /// Adds a directory, which has a digest of its own.
    pub fn directory(&mut self, name: &[u8]) {
        self.add(&(serde_bytes::Bytes::new(name), Part::Directory));
    }

    /// Adds a name of a file that has several.
    pub fn linked(&mut self, name: &[u8], kind: &Kind) {
        self.add(&(serde_bytes::Bytes::new(name), Part::Linked(number_of(kind))));
    }

    /// Returns the digest.
    pub fn finish(mut self) -> DirectoryDigest {
        self.hasher.update(&self.buffer);
        let mut digest = [0; 16];
        digest.copy_from_slice(&self.hasher.finalize().as_bytes()[..16]);
        DirectoryDigest(digest)
    }

    fn add(&mut self, part: &impl Serialize) {
        let buffer = std::mem::take(&mut self.buffer);
        self.buffer = postcard::to_extend(part, buffer).expect("plain data can be encoded");
        if self.buffer.len() >= BUFFER_BYTES {
            self.hasher.update(&self.buffer);
            self.buffer.clear();
        }
    }
}

/// Bytes that are digested at once: BLAKE3 is the faster the more it has.
const BUFFER_BYTES: usize = 8 << 10;

/// What a digest covers of an entry. Append-only, as messages are.
#[derive(Serialize)]
enum Part<'a> {
    Directory,
    Linked(u8),
    Whole(&'a Kind, &'a Metadata),
}

/// Returns the number that a kind has in messages.
fn number_of(kind: &Kind) -> u8 {
    match kind {
        Kind::Regular { .. } => 0,
        Kind::Directory => 1,
        Kind::Symlink { .. } => 2,
        Kind::Fifo => 3,
        Kind::Socket => 4,
        Kind::CharDevice { .. } => 5,
        Kind::BlockDevice { .. } => 6,
    }
}

/// Returns the digest of consecutive directories; `None` if one of them could not be read.
pub fn range_digest<'a>(
    directories: impl IntoIterator<Item = (&'a TreePath, Option<DirectoryDigest>)>,
) -> Option<[u8; 32]> {
    let mut hasher = blake3::Hasher::new();
    for (path, digest) in directories {
        hasher.update(&(path.as_bytes().len() as u64).to_le_bytes());
        hasher.update(path.as_bytes());
        hasher.update(&digest?.0);
    }
    Some(hasher.finalize().into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Xattr;

    #[test]
    fn a_directory_comes_right_before_what_is_in_it() {
        // '-' is less than '/', and so "a-b" is less than "a/b" as bytes.
        let sorted = ["", "a", "a/\x01", "a/b", "a/b/c", "a/b-", "a\x01", "a-b", "a-b/c", "ab"];
        for (index, one) in sorted.iter().enumerate() {
            for (other_index, other) in sorted.iter().enumerate() {
                let order = walk_order(one.as_bytes(), other.as_bytes());
                assert_eq!(order, index.cmp(&other_index), "{one:?} and {other:?}");
            }
        }
    }

    fn metadata() -> Metadata {
        let xattr = |name: &str| Xattr { name: name.into(), value: b"v".into() };
        Metadata {
            mode: 0o4755,
            uid: 1,
            gid: 2,
            mtime: Timestamp { seconds: 3, nanoseconds: 4 },
            xattrs: vec![xattr("user.x")],
        }
    }

    fn with(change: impl FnOnce(&mut Metadata)) -> Metadata {
        let mut metadata = metadata();
        change(&mut metadata);
        metadata
    }

    fn xattr(metadata: &mut Metadata, name: &str) {
        metadata.xattrs.push(Xattr { name: name.into(), value: b"v".into() });
    }

    type Change = fn(&mut Metadata);

    const CHANGES: [(Lacks, Change); 12] = [
        (Lacks::NOTHING, |metadata| metadata.mode = 0o4754),
        (Lacks::OWNERS, |metadata| metadata.mode = 0o755),
        (Lacks::OWNERS, |metadata| metadata.uid = 9),
        (Lacks::OWNERS, |metadata| metadata.gid = 9),
        (Lacks::NOTHING, |metadata| metadata.mtime.seconds = 9),
        (Lacks::NOTHING, |metadata| metadata.mtime.nanoseconds = 9),
        (Lacks::USER_XATTRS, |metadata| metadata.xattrs.clear()),
        (Lacks::USER_XATTRS, |metadata| metadata.xattrs[0].value = b"w".into()),
        (Lacks::USER_XATTRS, |metadata| metadata.xattrs[0].name = b"user.y".into()),
        (Lacks::PRIVILEGED_XATTRS, |metadata| xattr(metadata, "trusted.x")),
        (Lacks::PRIVILEGED_XATTRS, |metadata| xattr(metadata, "security.capability")),
        (Lacks::ACLS, |metadata| xattr(metadata, "system.posix_acl_access")),
    ];

    #[test]
    fn each_attribute_counts_unless_it_is_lacked() {
        let of_entry = |lacks, metadata: Metadata| {
            let mut hasher = DirectoryHasher::new(lacks, self::metadata());
            hasher.entry(b"f", &Kind::Regular { size: 5 }, metadata);
            hasher.finish()
        };
        let of_directory = |lacks, metadata| DirectoryHasher::new(lacks, metadata).finish();
        for (number, (lack, change)) in CHANGES.into_iter().enumerate() {
            let all = [Lacks::OWNERS, Lacks::USER_XATTRS, Lacks::PRIVILEGED_XATTRS, Lacks::ACLS];
            for lacks in all.into_iter().chain([Lacks::NOTHING]) {
                let counts = lack == Lacks::NOTHING || lacks != lack;
                let same = of_entry(lacks, metadata()) == of_entry(lacks, with(change));
                assert_eq!(same, !counts, "change {number} with {lacks:?}");
                let same = of_directory(lacks, metadata()) == of_directory(lacks, with(change));
                assert_eq!(same, !counts, "change {number} of a directory with {lacks:?}");
            }
        }
    }

    #[test]
    fn names_and_kinds_count() {
        let device = |major, minor| Kind::CharDevice { major, minor };
        let link = |target: &str| Kind::Symlink { target: target.into() };
        type Add = Box<dyn Fn(&mut DirectoryHasher)>;
        let entry = |name: &'static str, kind: Kind| -> Add {
            Box::new(move |hasher| hasher.entry(name.as_bytes(), &kind, metadata()))
        };
        let linked = |kind: Kind| -> Add { Box::new(move |hasher| hasher.linked(b"f", &kind)) };
        let directory: Add = Box::new(|hasher| hasher.directory(b"f"));
        let renamed: Add = Box::new(|hasher| hasher.directory(b"g"));
        let nothing: Add = Box::new(|_| ());
        let all = [
            nothing,
            directory,
            renamed,
            linked(Kind::Regular { size: 1 }),
            linked(Kind::Fifo),
            entry("f", Kind::Regular { size: 1 }),
            entry("g", Kind::Regular { size: 1 }),
            entry("f", Kind::Regular { size: 2 }),
            entry("f", link("a")),
            entry("f", link("b")),
            entry("f", Kind::Fifo),
            entry("f", Kind::Socket),
            entry("f", device(1, 2)),
            entry("f", device(1, 3)),
            entry("f", device(2, 2)),
            entry("f", Kind::BlockDevice { major: 1, minor: 2 }),
        ];
        let digests: Vec<DirectoryDigest> = all
            .iter()
            .map(|add| {
                let mut hasher = DirectoryHasher::new(Lacks::NOTHING, metadata());
                add(&mut hasher);
                hasher.finish()
            })
            .collect();
        for (index, digest) in digests.iter().enumerate() {
            assert_eq!(digests.iter().position(|other| other == digest), Some(index));
        }
        // The size of a file with several names is told with its state.
        let mut one = DirectoryHasher::new(Lacks::NOTHING, metadata());
        one.linked(b"f", &Kind::Regular { size: 2 });
        assert_eq!(one.finish(), digests[3]);
    }

    #[test]
    fn a_range_is_never_equal_if_a_part_of_it_could_not_be_read() {
        let [a, b] = ["a", "b"].map(|path| TreePath::new(path).unwrap());
        let digest = |number| Some(DirectoryDigest([number; 16]));
        let both = range_digest([(&a, digest(1)), (&b, digest(2))]);
        assert!(both.is_some());
        assert_ne!(both, range_digest([(&a, digest(2)), (&b, digest(1))]));
        assert_ne!(both, range_digest([(&a, digest(1))]));
        assert_eq!(range_digest([(&a, digest(1)), (&b, None)]), None);
    }
}
