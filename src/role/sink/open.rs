//! Opening a replica: what may be one, and where it was.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::time::{Duration, Instant};

use super::super::RoleError;
use super::super::checkpointer::Checkpointer;
use super::super::identity::{boot_id, load_node};
use super::super::options::SinkOptions;
use super::Sink;
use crate::journal::checkpoint::Checkpoint;
use crate::model::TreePath;
use crate::model::limits::BACKOFF_MS_MIN;
use crate::model::path::CONTROL_NAME;
use crate::session::ReceiverState;
use crate::tree::replica::{Moved, Replica};

/// Why a sink cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Its disk is full or read-only; this can be cured, and it may be opened then.
    #[error("{0}")]
    NotYet(String),
    /// It cannot.
    #[error(transparent)]
    Role(#[from] RoleError),
}

impl Sink {
    /// Opens the replica at `options.root`.
    ///
    /// # Errors
    ///
    /// If it holds something and never was a replica, unless `options.adopt`.
    pub fn open(options: SinkOptions) -> Result<Self, OpenError> {
        let path = options.root;
        let fail =
            |error: &dyn std::fmt::Display| RoleError(format!("{}: {error}", path.display()));
        let node = load_node(&options.state_dir)?;
        // Looked at before anything is made in it.
        let was_replica = path.join(CONTROL_NAME).join("checkpoint").exists();
        if !was_replica && !options.adopt {
            refuse_foreign(&path)?;
        }
        let mut replica = Replica::open(&path).map_err(|error| match error.is_transient() {
            true => OpenError::NotYet(error.to_string()),
            false => OpenError::Role(fail(&error)),
        })?;
        let checkpoint = Checkpoint::load(replica.control()).map_err(|error| {
            RoleError(error.with_advice(
                "remove it, and start the sink again with --adopt, which compares the tree",
            ))
        })?;
        let mut state = ReceiverState::new(node);
        let is_same_boot =
            checkpoint.as_ref().is_some_and(|checkpoint| checkpoint.boot_id == boot_id());
        if let Some(checkpoint) = checkpoint {
            state.tree = Some(checkpoint.tree);
            state.trusted_until = checkpoint.trusted_until;
            state.trusted_node = checkpoint.trusted_node;
            state.watermarks = checkpoint.watermarks;
            if let Some(marks) = &mut state.watermarks {
                let moved = replica.recover_moved(marks.moved).map_err(|error| fail(&error))?;
                match moved {
                    // After a crash of the machine, a file system may have kept the marker and
                    // lost the rename, or the reverse: a position is claimed only if none was
                    // under way.
                    Moved::Through(moved)
                        if moved == marks.moved || checkpoint.boot_id == boot_id() =>
                    {
                        marks.moved = moved;
                        state.durable = marks.applied;
                    }
                    Moved::Through(_) | Moved::Unknown => state.watermarks = None,
                    Moved::Lost(reason) => {
                        tracing::warn!(
                            "{}: {reason}; how far it has come is unknown, so all of it is \
                             compared",
                            path.display()
                        );
                        state.watermarks = None;
                    }
                }
            }
            let renamed = state.watermarks.map(|marks| marks.moved)
                != checkpoint.watermarks.map(|marks| marks.moved);
            if renamed && !checkpoint.needs.is_empty() {
                // Their paths are of before renames which nobody here knows any more.
                state.need(TreePath::root(), false);
            } else {
                for (path, content) in checkpoint.needs {
                    state.need(path, content);
                }
            }
        }
        let checkpointer =
            Checkpointer::new(options.checkpoint_interval).map_err(|error| fail(&error))?;
        let now = Instant::now();
        Ok(Sink {
            path,
            replica,
            state,
            link: None,
            frames: VecDeque::new(),
            connect_at: now,
            backoff: Duration::from_millis(BACKOFF_MS_MIN),
            unreachable: None,
            flush_at: None,
            survey: None,
            checkpointer,
            checkpoint_failure: None,
            said: BTreeMap::new(),
            full: None,
            look_at: now,
            is_away: false,
            has_trash: true,
            started: now,
            adopts: options.adopt,
            is_same_boot,
            outlet: None,
            received: None,
        })
    }
}

/// Refuses a directory that holds something and never was a replica.
fn refuse_foreign(path: &std::path::Path) -> Result<(), RoleError> {
    let fail = |error: io::Error| RoleError(format!("{}: {error}", path.display()));
    let entries = match std::fs::read_dir(path) {
        Ok(entries) => entries,
        Err(error) => return Err(fail(error)),
    };
    let mut names = Vec::new();
    let mut more = 0;
    for entry in entries {
        let entry = entry.map_err(fail)?;
        let name = entry.file_name();
        let is_own = name == CONTROL_NAME;
        let is_empty_lost_found = name == "lost+found"
            && std::fs::read_dir(entry.path()).is_ok_and(|mut entries| entries.next().is_none());
        if is_own || is_empty_lost_found {
            continue;
        }
        if names.len() < 5 {
            names.push(name.to_string_lossy().escape_debug().to_string());
        } else {
            more += 1;
        }
    }
    if names.is_empty() {
        return Ok(());
    }
    let more = if more > 0 { format!(" and {more} more") } else { String::new() };
    let why = match path.join(CONTROL_NAME).is_dir() {
        // Made before anything else is, so it may also be from before the first position.
        true => "was no replica yet, or lost .mirror/checkpoint, which said so",
        false => "never was a replica",
    };
    Err(RoleError(format!(
        "{}: it is not empty and {why}; a sink removes what its upstream does not \
         have: {}{more} would be lost. Choose an empty directory, or use --adopt to make this one \
         a replica and keep what is equal",
        path.display(),
        names.join(", ")
    )))
}
