//! Directories that are held as they are downstream: what is there now is not what was mirrored.

use super::Watch;
use super::nodes::{NodeId, Place};
use crate::model::Timestamp;

/// What is known of a directory where another file system appeared or vanished.
#[derive(Debug, Clone, Copy)]
pub(super) struct Held {
    /// When that was.
    pub since: Timestamp,
    /// Whether something below it was to be sent since.
    pub was_read: bool,
}

impl Watch {
    /// Another file system was mounted over a directory, or one was unmounted: what is there
    /// now is not what was mirrored, and its absence is no removal (I8).
    pub(super) fn hold_below(&mut self, id: NodeId) {
        if self.held.contains_key(&id) {
            return;
        }
        if let Some(path) = self.nodes.path(id) {
            tracing::error!(
                "{path}: a file system was mounted or unmounted here; it is held as it was \
                 downstream until that is undone (or restart the source to mirror what is there)"
            );
        }
        self.held.insert(id, Held { since: self.clock, was_read: false });
    }

    /// Looks whether held directories are back.
    pub(super) fn release_held(&mut self) {
        let held: Vec<(NodeId, Held)> = self.held.iter().map(|(id, held)| (*id, *held)).collect();
        for (id, held) in held {
            // What was to be sent and was not is not told by any time.
            let since = if held.was_read { Timestamp::default() } else { held.since };
            let Some(node) = self.nodes.get(id) else {
                self.held.remove(&id);
                continue;
            };
            let place = Place { directory: node.parent, name: node.name.to_vec() };
            if self.identity_at(&place) != Some(node.identity) {
                continue;
            }
            self.held.remove(&id);
            if let Some(path) = self.nodes.path(id) {
                tracing::info!("{path}: the file system is back");
            }
            let below: Vec<NodeId> =
                self.nodes.ids().filter(|node| self.nodes.is_above(id, *node)).collect();
            for node in below {
                // The watches went with the mount.
                let path = self.nodes.path(node);
                let fd = path.and_then(|path| self.root.open_directory(&path).ok());
                if let Some(fd) = fd
                    && let Ok(watch) = self.add_watch(&fd)
                    && self.nodes.by_watch(watch.get_watch_descriptor_id()).is_none()
                {
                    self.nodes.set_watch(node, watch);
                }
                self.sweeps.push_back((node, since));
            }
        }
    }
}
