//! What a replica knows of itself: how far it is, and what is missing or wrong in it.

use std::time::{Duration, Instant};

use crate::model::limits::*;
use crate::model::{
    Change, Epoch, Lacks, NodeId, Sequence, Timestamp, TreeId, TreePath, Watermarks,
};

/// First and longest pause before what failed is asked for again.
pub(super) const RETRY_MIN: Duration = Duration::from_secs(1);
/// See [`RETRY_MIN`].
const RETRY_MAX: Duration = Duration::from_secs(60);

/// Most needs that are asked and not answered at one time: those that wait can still be merged.
pub(super) const NEEDS_ASKED_MAX: usize = 1024;

/// What a replica knows of itself, whether connected or not.
#[derive(Debug, Clone)]
pub struct ReceiverState {
    /// Who we are.
    pub node: NodeId,
    /// Which tree this is a replica of.
    pub tree: Option<TreeId>,
    /// How far it is; `None` while its state is unknown.
    pub watermarks: Option<Watermarks>,
    /// The nodes from the origin to the upstream that it was connected to last.
    pub chain: Vec<NodeId>,
    /// That upstream's epoch.
    pub epoch: Option<Epoch>,
    /// The origin's journal head and clock, as the upstream said last.
    pub origin: (Sequence, Timestamp),
    /// Up to this moment of `trusted_node`'s clock, equal size and time mean equal content.
    pub trusted_until: Timestamp,
    /// The upstream that said so.
    pub trusted_node: Option<NodeId>,
    /// Everything through this sequence is on stable storage.
    pub durable: Sequence,
    /// What the replica cannot hold.
    pub lacks: Lacks,
    /// What `trusted_until` and `trusted_node` become when nothing is missing any more, which may
    /// be when another node is followed.
    pub(super) trusted_next: Option<(Timestamp, Option<NodeId>)>,
    /// Subtrees that are missing or wrong here.
    pub(super) needs: Vec<Need>,
    pub(super) need_next: u64,
    /// Changes whenever the needs do.
    pub(super) revision: u64,
}

/// A subtree to be asked for.
#[derive(Debug, Clone)]
pub(super) struct Need {
    pub(super) id: u64,
    pub(super) path: TreePath,
    pub(super) content: bool,
    /// Asked on the present connection, and not answered yet.
    pub(super) asked: bool,
    /// Not to be asked before this moment, after a failure.
    pub(super) not_before: Option<Instant>,
    /// How long that was, zero if nothing failed yet.
    pub(super) pause: Duration,
}

impl ReceiverState {
    /// Returns the state of a replica that knows nothing yet.
    pub fn new(node: NodeId) -> Self {
        ReceiverState {
            node,
            tree: None,
            watermarks: None,
            chain: Vec::new(),
            epoch: None,
            origin: Default::default(),
            trusted_until: Timestamp::default(),
            trusted_node: None,
            durable: Sequence(0),
            lacks: Lacks::NOTHING,
            trusted_next: None,
            needs: Vec::new(),
            need_next: 0,
            revision: 0,
        }
    }

    /// Returns the subtrees that are missing or wrong, and whether their content must travel.
    pub fn needs(&self) -> impl Iterator<Item = (&TreePath, bool)> {
        self.needs.iter().map(|need| (&need.path, need.content))
    }

    /// Returns whether the file at `path` is one whose content was asked for, or is to be.
    pub(super) fn awaits_content(&self, path: &TreePath) -> bool {
        self.needs.iter().any(|need| need.content && path.starts_with(&need.path))
    }

    /// Forgets everything but who we are, to become a replica of whatever tree there is.
    pub fn forget(&mut self) {
        let (revision, lacks) = (self.revision + 1, self.lacks);
        *self = ReceiverState { revision, lacks, ..ReceiverState::new(self.node) };
    }

    /// Returns a number that changes whenever the needs do.
    pub fn revision(&self) -> u64 {
        self.revision
    }

    /// Adds a subtree to be asked for at once.
    pub fn need(&mut self, path: TreePath, content: bool) {
        self.add(path, content, None, Duration::ZERO);
    }

    /// Adds a subtree that could not be made what it must be. The pause before it is asked for
    /// doubles each time that fails again, for all of it may have to travel.
    pub fn need_after_failure(&mut self, path: TreePath, content: bool, now: Instant) {
        let tried = self.needs.iter().filter(|need| need.asked && path.starts_with(&need.path));
        let last = tried.map(|need| need.pause).max().unwrap_or_default();
        let pause = (last * 2).clamp(RETRY_MIN, RETRY_MAX);
        self.add(path, content, Some(now + pause), pause);
    }

    /// Has everything asked for at once that waits after a failure: its reason may be gone.
    pub fn retry(&mut self) {
        self.needs.iter_mut().for_each(|need| need.not_before = None);
    }

    pub(super) fn may_ask(&self) -> bool {
        self.needs.iter().filter(|need| need.asked).count() < NEEDS_ASKED_MAX
    }

    fn add(&mut self, path: TreePath, content: bool, not_before: Option<Instant>, pause: Duration) {
        self.revision += 1;
        let known = |need: &Need| !need.asked && need.path == path;
        if let Some(need) = self.needs.iter_mut().find(|need| known(need)) {
            need.content |= content;
            need.not_before = need.not_before.max(not_before);
            need.pause = need.pause.max(pause);
            return;
        }
        let covers = |need: &Need| {
            let comes_first = need.not_before <= not_before;
            !need.asked && comes_first && need.content >= content && path.starts_with(&need.path)
        };
        if self.needs.iter().any(|need| covers(need) || is_comparison_of_all(need)) {
            return;
        }
        if self.needs.len() >= NEEDS_MAX {
            // Too many to tell one by one: the whole tree is compared, once that can help.
            let waiting = self.needs.iter().filter(|need| !need.asked);
            let later = waiting.clone().filter_map(|need| need.not_before).max();
            let longest = waiting.map(|need| need.pause).max().unwrap_or_default();
            self.needs.retain(|need| need.asked);
            return self.add(TreePath::root(), false, not_before.max(later), pause.max(longest));
        }
        let id = self.need_next;
        self.need_next += 1;
        self.needs.push(Need { id, path, content, asked: false, not_before, pause });
    }
}

impl ReceiverState {
    /// Follows a rename, which takes what is needed along, or a part of it elsewhere.
    pub(super) fn follow(&mut self, change: &Change) {
        let mut parts = Vec::new();
        for need in &mut self.needs {
            if let Some(to) = change.taken_from(&need.path) {
                parts.push(Need { path: to.clone(), ..need.clone() });
            }
            if let Some(path) = change.translate(&need.path) {
                need.path = path;
                self.revision += 1;
            }
        }
        for part in parts {
            if !part.asked || self.needs.len() >= NEEDS_MAX {
                self.add(part.path, part.content, part.not_before, part.pause);
                continue;
            }
            // The upstream follows as well: the answer is for all parts.
            let covers = |need: &Need| need.id == part.id && part.path.starts_with(&need.path);
            if !self.needs.iter().any(covers) {
                self.revision += 1;
                self.needs.push(part);
            }
        }
    }
}

pub(super) fn is_comparison_of_all(need: &Need) -> bool {
    !need.asked && need.path.is_root() && !need.content
}
