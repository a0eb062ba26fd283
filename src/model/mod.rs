//! What every layer speaks of: paths, entries, positions, records, limits, and the
//! [`Feed`](feed::Feed) that records come from.
//!
//! Nothing here touches a file, a socket or a clock.

pub mod digest;
pub mod entry;
pub mod feed;
pub mod identity;
pub mod limits;
pub mod marks;
pub mod path;
pub mod position;
pub mod record;
pub mod renames;
pub mod survey;

pub use digest::StageDigest;
pub use entry::{Entry, Kind, Metadata, Timestamp, Xattr};
pub use identity::Identity;
pub use marks::Marks;
pub use path::{Name, PathError, TreePath};
pub use position::{Epoch, EpochId, Mark, NodeId, Position, Sequence, TreeId, Watermarks};
pub use record::{Change, Record, What};
pub use renames::RenameIndex;
pub use survey::{DirectoryDigest, Glance, Lacks, Surveyed};
