//! The sink's checkpoint: the durable position of a replica, kept inside the replica.
//!
//! It says what the tree beside it holds, so it is replaced only after everything that it names
//! is on stable storage, and by "no watermarks" before anything is changed that it would not
//! describe (DESIGN 8, reconcile).

use serde::{Deserialize, Serialize};

use super::FileError;
use super::state_file::{DirectoryRef, StateFile};
use crate::model::{NodeId, Timestamp, TreeId, TreePath, Watermarks};

/// What a replica's tree is known to hold.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Checkpoint {
    /// Which tree this is a replica of.
    pub tree: TreeId,
    /// How far it has come, `None` if its state is unknown and must be compared.
    pub watermarks: Option<Watermarks>,
    /// Files that changed at or after this moment of `trusted_node`'s clock may differ although
    /// their size and time agree.
    pub trusted_until: Timestamp,
    /// The upstream that said so.
    pub trusted_node: Option<NodeId>,
    /// Subtrees that were asked for and have not come, and whether their content must travel.
    pub needs: Vec<(TreePath, bool)>,
    /// The kernel's boot in which this was written: in a later one the file system may have
    /// lost what was not synchronised.
    pub boot_id: u128,
}

impl Checkpoint {
    /// Replaces the checkpoint in `directory`, durably.
    ///
    /// Everything through its watermarks must be on stable storage by then.
    pub fn save<'a>(&self, directory: impl Into<DirectoryRef<'a>>) -> Result<(), FileError> {
        assert!(self.watermarks.is_none_or(|marks| marks.applied <= marks.moved));
        CHECKPOINT.save(directory, self)
    }

    /// Returns the checkpoint in `directory`, `None` if there is none.
    pub fn load<'a>(
        directory: impl Into<DirectoryRef<'a>>,
    ) -> Result<Option<Checkpoint>, FileError> {
        CHECKPOINT.load(directory)
    }
}

/// The checkpoint's file.
pub const CHECKPOINT: StateFile = StateFile::new("checkpoint", 1);

#[cfg(test)]
mod tests {
    use super::super::state_file::Directory;
    use super::*;
    use crate::model::{EpochId, Sequence};

    fn checkpoint() -> Checkpoint {
        Checkpoint {
            tree: TreeId(0x0102_0304_0506_0708_090a_0b0c_0d0e_0f10),
            watermarks: Some(Watermarks {
                epoch: EpochId { counter: 3, random: 0x1122_3344_5566_7788 },
                moved: Sequence(70_000),
                applied: Sequence(69_999),
            }),
            trusted_until: Timestamp { seconds: -5, nanoseconds: 999_999_999 },
            trusted_node: Some(NodeId(77)),
            needs: vec![(TreePath::root(), false), (TreePath::new(&b"a\xff/b"[..]).unwrap(), true)],
            boot_id: u128::MAX - 1,
        }
    }

    #[test]
    fn the_format_is_the_one_of_version_1() {
        let temporary = tempfile::tempdir().unwrap();
        let directory = Directory::open(temporary.path()).unwrap();
        assert_eq!(Checkpoint::load(&directory).unwrap(), None);
        checkpoint().save(&directory).unwrap();
        let path = temporary.path().join("checkpoint");
        super::super::tests::assert_golden("checkpoint-v1.bin", &std::fs::read(&path).unwrap());
        assert_eq!(Checkpoint::load(&directory).unwrap(), Some(checkpoint()));
        let unknown = Checkpoint { watermarks: None, needs: Vec::new(), ..checkpoint() };
        unknown.save(&directory).unwrap();
        assert_eq!(Checkpoint::load(&directory).unwrap(), Some(unknown));
    }
}
