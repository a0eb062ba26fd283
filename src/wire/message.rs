//! The protocol's vocabulary. Enums are append-only: the encoding holds the variant's number.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::model::{
    DirectoryDigest, Entry, Epoch, Lacks, Name, NodeId, Sequence, Timestamp, TreeId, TreePath,
    Watermarks,
};

/// The protocol versions that this program speaks, oldest and newest.
pub const VERSIONS: Versions = Versions { oldest: 1, newest: 1 };

/// A range of protocol versions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Versions {
    /// Oldest version spoken.
    pub oldest: u16,
    /// Newest version spoken.
    pub newest: u16,
}

impl Versions {
    /// Returns the newest version that both speak.
    pub fn agree(self, other: Versions) -> Option<u16> {
        let newest = self.newest.min(other.newest);
        (newest >= self.oldest.max(other.oldest)).then_some(newest)
    }
}

/// A message that travels alone in its frame, in either direction.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Message {
    /// The first message of a downstream.
    DownstreamHello(DownstreamHello),
    /// The upstream's answer to it.
    UpstreamHello(UpstreamHello),
    /// From the downstream: how far it is.
    Ack {
        /// Every rename through this is applied.
        moved: Sequence,
        /// Every record through this is applied.
        applied: Sequence,
        /// Every record through this is on stable storage.
        durable: Sequence,
        /// Bytes of item frames handled on this connection so far.
        handled_bytes: u64,
    },
    /// From the downstream: `path` is missing or wrong here; send what it is.
    Need {
        /// Names the request in [`Item::Answered`].
        id: u64,
        /// Which subtree.
        path: TreePath,
        /// Whether content must travel; else the subtree is compared.
        content: bool,
        /// The path is as of this rename.
        moved: Sequence,
    },
    /// From the upstream, while nothing else is sent.
    Heartbeat {
        /// The last sequence of the tree's source.
        head: Sequence,
        /// That source's clock.
        clock: Timestamp,
    },
    /// The last message of either side: why it closes the connection.
    Bye(Refusal),
    /// From the downstream: it gave this file up, so that no more of it need be sent. Its state
    /// still must be, by which the downstream learns what it lacks.
    StageAbort {
        /// Which file.
        stage: StageId,
    },
    /// From the downstream: the answer to an [`Item::Digest`], in the order in which those came.
    Compared {
        /// Which range.
        range: RangeId,
        /// What is there, unless it is equal.
        differs: Option<Differs>,
    },
}

/// Names a range of directories that are compared, unique within a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct RangeId(pub u64);

/// The directories that a downstream has where a digest was not the same.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Differs {
    /// All that it has, in the order of the walk, from the beginning of the range.
    pub directories: Vec<Listed>,
    /// Whether they are all of the range; else the part of it after the last of them is to be
    /// compared by another digest.
    pub is_whole: bool,
}

/// A directory of a [`Differs`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Listed {
    /// How many bytes its path has in common with the one before, from their beginning.
    pub shared: u32,
    /// The rest of its path.
    #[serde(with = "serde_bytes")]
    pub rest: Vec<u8>,
    /// Its digest; `None` if a part of it could not be read.
    pub digest: Option<DirectoryDigest>,
}

/// What a downstream says first.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DownstreamHello {
    /// Protocol versions that it speaks.
    pub versions: Versions,
    /// Who it is.
    pub node: NodeId,
    /// Which tree it replicates, `None` if it does not know yet.
    pub tree: Option<TreeId>,
    /// How far it is, `None` if its tree is in an unknown state.
    pub watermarks: Option<Watermarks>,
    /// Files changed at or after this moment of `trusted_node`'s clock may differ although their
    /// size and time agree.
    pub trusted_until: Timestamp,
    /// The upstream that said so.
    pub trusted_node: Option<NodeId>,
    /// Whether its tree has nothing in it.
    pub empty: bool,
    /// What it cannot hold.
    pub lacks: Lacks,
}

/// What an upstream answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UpstreamHello {
    /// The protocol version that both use from here on.
    pub version: u16,
    /// Which tree this is.
    pub tree: TreeId,
    /// The nodes from the origin to this upstream, both included.
    pub chain: Vec<NodeId>,
    /// The epoch that all sequences on this connection belong to.
    pub epoch: Epoch,
    /// How the downstream is brought up to date.
    pub plan: Plan,
    /// The last sequence of the tree's source, as far as the upstream knows.
    pub head: Sequence,
    /// That source's clock.
    pub clock: Timestamp,
}

/// How a downstream is brought up to date.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Plan {
    /// By the records after its watermarks.
    Resume,
    /// By comparing both trees; renames through `moved` are part of what is compared.
    Compare {
        /// The journal's head when the comparison began.
        moved: Sequence,
    },
    /// By sending everything, for the downstream is empty.
    Full {
        /// The journal's head when the sending began.
        moved: Sequence,
    },
}

/// Names a file on its way that is not in place yet, unique within a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct StageId(pub u64);

/// From the upstream: one step for the downstream's tree. A frame holds many.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Item {
    /// Move `from` to `to`; what is at `to` goes.
    Rename {
        /// The record's sequence.
        sequence: Sequence,
        /// Old path.
        from: TreePath,
        /// New path.
        to: TreePath,
    },
    /// Let `a` and `b` change places.
    Exchange {
        /// The record's sequence.
        sequence: Sequence,
        /// One of the two.
        a: TreePath,
        /// The other.
        b: TreePath,
    },
    /// The entry at `path` is this now.
    State {
        /// Where.
        path: TreePath,
        /// What.
        entry: Entry,
        /// Where its content is; `Keep` for all but regular files.
        content: Content,
        /// The other names of the same file, which must all become this one inode.
        links: Vec<TreePath>,
        /// Modification time of the directory that holds it, to be set last.
        parent_mtime: Option<Timestamp>,
    },
    /// There is nothing at `path`.
    Absent {
        /// Where.
        path: TreePath,
        /// Modification time of the directory that held it.
        parent_mtime: Option<Timestamp>,
    },
    /// The directory at `path` holds no names after `after`, up to the last of `names`, but
    /// these. Names are sorted by their bytes.
    Names {
        /// Which directory.
        path: TreePath,
        /// Exclusive lower bound, empty for none.
        #[serde(with = "serde_bytes")]
        after: Name,
        /// The names.
        names: Vec<serde_bytes::ByteBuf>,
        /// Whether nothing comes after the last of them either.
        last: bool,
    },
    /// A file too big for one frame begins.
    StageOpen {
        /// Its name on this connection.
        stage: StageId,
        /// Its length, in bytes.
        size: u64,
        /// Where it will go, as far as is known now.
        path: TreePath,
    },
    /// `length` bytes for `offset` of a staged file follow this item.
    StageData {
        /// Which file.
        stage: StageId,
        /// Where in it.
        offset: u64,
        /// Bytes that follow.
        length: u32,
    },
    /// A staged file is given up.
    StageAbort {
        /// Which file.
        stage: StageId,
    },
    /// Every record through `sequence` has been sent and is done when all items before are.
    Through {
        /// The sequence.
        sequence: Sequence,
        /// The upstream's clock when it knew of no later change.
        clock: Timestamp,
        /// The last record that what was sent so far may have told of, for a state may be of later
        /// records than the one for which it was sent; `None` if that cannot be said.
        reached: Option<Sequence>,
    },
    /// The subtree of a [`Message::Need`] has been sent.
    Answered {
        /// The request's id.
        id: u64,
    },
    /// The file whose state came just before was open for writing when it was read: that may be
    /// a part of it, and must not replace another file by a rename before its next state.
    Unfinished {
        /// Which file.
        path: TreePath,
    },
    /// The directories of a part of the tree have this digest here; compare. Each is answered by
    /// a [`Message::Compared`].
    Digest {
        /// Names the range in the answer; these rise.
        range: RangeId,
        /// The subtree that is compared.
        path: TreePath,
        /// The range begins after this directory, in the order of a walk; at `path` if `None`.
        after: Option<TreePath>,
        /// It ends with this one.
        through: TreePath,
        /// How many entries it has here.
        entries: u64,
        /// The [`range_digest`](crate::model::survey::range_digest) of the directories; `None` if
        /// one of them could not be read.
        digest: Option<[u8; 32]>,
    },
}

/// Where the content of a regular file is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Content {
    /// Only attributes changed.
    Keep,
    /// As the downstream has it, if size and time agree, and the digest if one is given.
    Compare {
        /// BLAKE3 of the content.
        digest: Option<[u8; 32]>,
    },
    /// `length` bytes that follow this item.
    Inline {
        /// Bytes that follow, the whole file.
        length: u32,
    },
    /// In a stage whose chunks were sent before; what was not sent is a hole.
    Staged {
        /// Which stage.
        stage: StageId,
        /// The [`StageDigest`](crate::model::StageDigest) of its chunks.
        digest: [u8; 32],
    },
    /// The file is another name of the first of `links`.
    Linked,
}

/// Why a side ends a connection.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Refusal {
    /// No protocol version in common; the other's range.
    Version(Versions),
    /// The downstream replicates this other tree.
    WrongTree(TreeId),
    /// The downstream is in the upstream's own chain.
    Cycle(NodeId),
    /// The other side broke the protocol.
    Protocol(String),
    /// The process ends.
    ShuttingDown,
    /// The two must begin anew, by another hello.
    StartOver(String),
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Refusal::Version(versions) => write!(
                f,
                "it speaks protocol versions {} to {}, this program {} to {}",
                versions.oldest, versions.newest, VERSIONS.oldest, VERSIONS.newest
            ),
            Refusal::WrongTree(tree) => write!(f, "the upstream's tree is another one, {tree}"),
            Refusal::Cycle(node) => write!(f, "node {node} would become its own upstream"),
            Refusal::Protocol(what) => write!(f, "protocol error: {}", what.escape_debug()),
            Refusal::ShuttingDown => f.write_str("it is shutting down"),
            Refusal::StartOver(why) => write!(f, "it asks to start over: {}", why.escape_debug()),
        }
    }
}

impl Item {
    /// Returns how many raw bytes follow the item in its frame.
    pub fn raw_bytes(&self) -> usize {
        match self {
            Item::StageData { length, .. }
            | Item::State { content: Content::Inline { length }, .. } => *length as usize,
            _ => 0,
        }
    }
}
